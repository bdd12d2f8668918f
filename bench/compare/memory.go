package main

import (
	"encoding/binary"
	"runtime"
	"runtime/debug"
	"time"

	pb "google.golang.org/grpc/interop/grpc_testing"

	"example.com/flow"
	"example.com/flow/bench/internal/contender"
	"example.com/flow/bench/internal/load"
)

// inUse is the memory that goroutines and what they refer to take.
func inUse() float64 {
	debug.FreeOSMemory()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapInuse + m.StackInuse + m.MSpanInuse)
}

var idleRow = &row{
	name: "idle", unit: "B", base: wayLoop,
	note:       above,
	title:      "10,000 gRPC streams that have sent one message each and are idle: memory of each, both ends",
	target:     "flow at most 4,096 above the Recv loop",
	columns:    []string{"a stream"},
	contenders: []string{wayLoop, wayRun, wayInterceptor},
	measure: func(j job) (result, error) {
		n := j.size(10_000)
		check := load.NewChecker(n * grpcKeys)
		s, err := serve(j.Contender, n, check)
		if err != nil {
			return result{}, err
		}
		defer s.stop()
		if err := s.send(1, 0); err != nil {
			return result{}, err
		}
		before := inUse()
		b := make([]byte, 128)
		for i := range n {
			out, err := s.open()
			if err != nil {
				return result{}, err
			}
			binary.LittleEndian.PutUint32(b[4:], uint32(i))
			b[8] = 1
			if err := out.Send(&request{Payload: &pb.Payload{Body: b}}); err != nil {
				return result{}, err
			}
		}
		for check.Done() < uint64(n) {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
		return result{Value: (inUse() - before) / float64(n), Allocs: -1, Broken: check.Breaches()}, nil
	},
}

// flowOnReceipt decides on receipt, as it does where a bound may refuse: then each waiting message is in its lane.
const flowOnReceipt = "flow KeyCapacity"

var keyMemoryRow = &row{
	name: "memory", unit: "B", base: contender.Flow,
	title:      "Memory of a key: one of a million that have passed, and one of 100,000 that have one message each",
	target:     "flow: idle 0, active at most 128",
	columns:    []string{"idle", "active"},
	contenders: []string{contender.Hash, contender.Flow, flowOnReceipt, contender.Ring},
	measure: func(j job) (result, error) {
		active := j.Column == "active"
		n := j.size(1_000_000)
		if active {
			n = j.size(100_000)
		}
		if active && j.Contender == contender.Hash {
			return result{}, errNot // its channels don't hold so many
		}
		list, slots := load.Stream(load.Unique, n)
		check := load.NewChecker(slots)
		release := make(chan struct{})
		h := func(m *load.Message) {
			if active {
				<-release
			}
			check.Note(m)
		}
		room := pending
		if active {
			room += n
		}
		var e contender.Executor
		if c := contender.Named(j.Contender); c != nil {
			e = c.Start(h, workers, room)
		} else {
			opts := contender.FlowOptions(flow.OrderingKeyedFIFO, workers, room)
			opts.Ordering.KeyCapacity = n
			e = contender.StartFlow(h, opts)
		}
		next := load.Source(list)
		before := inUse()
		var each float64
		e.Run(func() *load.Message {
			m := next()
			if m == nil {
				for !active && check.Done() < uint64(n) {
					time.Sleep(time.Millisecond)
				}
				time.Sleep(50 * time.Millisecond)
				each = (inUse() - before) / float64(n)
				close(release)
			}
			return m
		})
		e.Close()
		return result{Value: each, Allocs: -1, Broken: check.Breaches()}, nil
	},
}
