package main

import (
	"fmt"
	"runtime"
	"time"

	"example.com/flow/bench/internal/contender"
	"example.com/flow/bench/internal/load"
)

const (
	workers = 64
	pending = 4096
)

var distributions = []load.Keys{load.OneKey, load.Keys64, load.Keys1Ki, load.Keys100k, load.Zipf, load.Unique}

func keysOf(column string) load.Keys {
	for _, k := range distributions {
		if k.Name == column {
			return k
		}
	}
	panic("bug: no keys for column " + column)
}

func names(of []load.Keys) (list []string) {
	for _, k := range of {
		list = append(list, k.Name)
	}
	return list
}

var keyed = []string{contender.Hash, contender.Flow, contender.Ring}

var libraries = []string{contender.Sub, "conc/stream", "pond", "ants", "workerpool", "errgroup"}

var keysRow = &row{
	name: "keys", unit: "ns", base: contender.Hash,
	title:      "A handler that does nothing, by how many keys there are",
	target:     "flow at most 1.0 × hash64, 0 allocations a message",
	columns:    names(distributions),
	contenders: append(append([]string{}, keyed...), libraries...),
	measure: func(j job) (result, error) {
		if j.Contender == contender.Sub && (j.Column == "100k" || j.Column == "unique") {
			return result{}, errNot // several KB a key, never given back
		}
		return throughput(j, 400_000, func(c *load.Checker) contender.Handler { return c.Note })
	},
}

var fifoRow = &row{
	name: "fifo", unit: "ns", base: contender.One,
	title:      "One message at a time, a handler that does nothing",
	target:     "flow FIFO at most 1.5 × one worker behind one buffered channel",
	columns:    []string{load.OneKey.Name, load.Keys1Ki.Name},
	contenders: []string{contender.One, contender.FIFO},
	measure: func(j job) (result, error) {
		return throughput(j, 400_000, func(c *load.Checker) contender.Handler { return c.Note })
	},
}

var cpuRow = &row{
	name: "cpu", unit: "ns", base: contender.Hash,
	title:      "A handler that computes for a microsecond",
	target:     "flow at most 1.03 × hash64 at 1,024 keys",
	columns:    []string{load.Keys64.Name, load.Keys1Ki.Name, load.Unique.Name},
	contenders: append(append([]string{}, keyed...), libraries...),
	measure: func(j job) (result, error) {
		if j.Contender == contender.Sub && j.Column == "unique" {
			return result{}, errNot
		}
		ideal := float64(load.SpinTime()) / float64(runtime.GOMAXPROCS(0))
		r, err := throughput(j, 200_000, func(c *load.Checker) contender.Handler { return load.Spin(c) })
		r.Ideal = ideal
		return r, err
	},
}

var sleepRow = &row{
	name: "sleep", unit: "ns", base: contender.Hash,
	title:      "A handler that sleeps for a millisecond, 64 at once",
	target:     "flow at most 1.25 × ideal at 1,024 and unique keys, 1.4 × at 64",
	columns:    []string{load.Keys64.Name, load.Keys1Ki.Name, load.Unique.Name},
	contenders: append(append([]string{}, keyed...), libraries...),
	measure: func(j job) (result, error) {
		r, err := throughput(j, 19_200, func(c *load.Checker) contender.Handler { return load.Sleep(c, time.Millisecond) })
		r.Ideal = float64(time.Millisecond) / workers
		return r, err
	},
}

// throughput runs n messages of one stream, after a few to warm up, and gives the time of each.
func throughput(j job, n int, handler func(*load.Checker) contender.Handler) (result, error) {
	c := contender.Named(j.Contender)
	n = j.size(n)
	list, slots := load.Stream(keysOf(j.Column), n)
	var took time.Duration
	var r result
	for _, part := range [][]load.Message{list[:n/8], list} {
		check := load.NewChecker(slots)
		h := handler(check)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		start := time.Now()
		e := c.Start(h, workers, pending)
		e.Run(load.Source(part))
		e.Close()
		took = time.Since(start)
		runtime.ReadMemStats(&after)
		if check.Done() != uint64(len(part)) {
			return r, fmt.Errorf("%d of %d messages were handled", check.Done(), len(part))
		}
		r = result{
			Value:  float64(took) / float64(len(part)),
			Allocs: float64(after.Mallocs-before.Mallocs) / float64(len(part)),
			Broken: check.Breaches(),
		}
	}
	return r, nil
}

var pingRow = &row{
	name: "ping", unit: "ns", base: contender.Hash,
	title:      "One message in flight at a time: to the handler and back",
	target:     "flow at most 1.2 × hash64",
	columns:    []string{load.Keys1Ki.Name},
	contenders: append([]string{contender.Hash, contender.Flow, contender.FIFO, contender.Ring, contender.One}, libraries...),
	measure: func(j job) (result, error) {
		n := j.size(100_000)
		list, slots := load.Stream(keysOf(j.Column), n)
		check := load.NewChecker(slots)
		handled := make(chan struct{}, 1)
		handled <- struct{}{}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		start := time.Now()
		e := contender.Named(j.Contender).Start(func(m *load.Message) {
			check.Note(m)
			handled <- struct{}{}
		}, workers, pending)
		next := load.Source(list)
		e.Run(func() *load.Message { <-handled; return next() })
		e.Close()
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		return result{
			Value:  float64(took) / float64(n),
			Allocs: float64(after.Mallocs-before.Mallocs) / float64(n),
			Broken: check.Breaches(),
		}, nil
	},
}
