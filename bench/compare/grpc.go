package main

import (
	"fmt"
	"runtime"
	"time"

	"example.com/flow/bench/internal/contender"
	"example.com/flow/bench/internal/load"
)

const (
	wayLoop        = "Recv loop"
	wayHash        = contender.Hash
	wayRun         = "flow"
	wayInterceptor = "flow interceptor"
	grpcKeys       = 1024
)

var grpcRow = &row{
	name: "grpc", unit: "ns", base: wayLoop,
	title:      "gRPC over loopback TCP, 128 bytes a message, client and server on the same cores",
	target:     "flow within 10 % of the Recv loop on one stream, 3 % on 64",
	columns:    []string{"1 stream", "64 streams"},
	contenders: []string{wayLoop, wayHash, wayRun, wayInterceptor},
	measure: func(j job) (result, error) {
		streams := 1
		if j.Column != "1 stream" {
			streams = 64
		}
		check := load.NewChecker(streams * grpcKeys)
		s, err := serve(j.Contender, streams, check)
		if err != nil {
			return result{}, err
		}
		defer s.stop()
		n := j.size(200_000) / streams
		if err := s.send(streams, n/8); err != nil {
			return result{}, err
		}
		warm := check.Done()
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		start := time.Now()
		if err := s.send(streams, n); err != nil {
			return result{}, err
		}
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		all := n * streams
		if got := check.Done() - warm; got != uint64(all) {
			return result{}, fmt.Errorf("%d of %d messages were handled", got, all)
		}
		return result{
			Value:  float64(took) / float64(all),
			Allocs: float64(after.Mallocs-before.Mallocs) / float64(all),
			Broken: check.Breaches(),
		}, nil
	},
}

const sparseStreams = 10_000

// sparseRow is many devices on one server, each of which says something now and then.
var sparseRow = &row{
	name: "sparse", unit: "µs", base: wayLoop,
	title:      "gRPC: 10,000 streams with a message a second each, processor time of client and server a message",
	target:     "flow at most 1.5 × the Recv loop",
	columns:    []string{"10,000 streams"},
	contenders: []string{wayLoop, wayRun, wayInterceptor},
	measure: func(j job) (result, error) {
		streams := j.size(sparseStreams)
		check := load.NewChecker(streams + grpcKeys)
		s, err := serve(j.Contender, 1, check)
		if err != nil {
			return result{}, err
		}
		defer s.stop()
		const seconds = 5
		spent, err := s.trickle(streams, seconds)
		if err != nil {
			return result{}, err
		}
		if got, all := check.Done(), uint64(streams*(seconds+1)); got != all {
			return result{}, fmt.Errorf("%d of %d messages were handled", got, all)
		}
		return result{Value: float64(spent) / float64(streams*seconds) / 1e3, Allocs: -1, Broken: check.Breaches()}, nil
	},
}
