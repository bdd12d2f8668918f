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
