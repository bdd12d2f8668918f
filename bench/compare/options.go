package main

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"example.com/flow"
	"example.com/flow/bench/internal/contender"
	"example.com/flow/bench/internal/load"
	"example.com/flow/bench/internal/report"
)

var settings = map[string]func(*flow.Options){
	"flow": func(*flow.Options) {},
	"flow retry": func(o *flow.Options) {
		o.Retry = flow.RetryOptions{MaxAttempts: 3, Backoff: time.Millisecond, Jitter: 0.5}
	},
	"flow budget": func(o *flow.Options) {
		o.Retry = flow.RetryOptions{MaxAttempts: 3, Budget: flow.RetryBudget{MaxTokens: 100, TokenRatio: 0.1}}
	},
	"flow bytes": func(o *flow.Options) { o.MaxPendingBytes = 1 << 20 },
	"flow observer": func(o *flow.Options) {
		var n atomic.Int64
		o.Observer = func(context.Context, flow.Event) { n.Add(1) }
	},
}

var optionsRow = &row{
	name: "options", unit: "ns", base: contender.Flow, note: above,
	title:      "What options cost when they are set, keyed, a handler that does nothing",
	target:     "at most 100 ns a message above flow without, the observer apart",
	columns:    []string{load.Keys1Ki.Name},
	contenders: []string{contender.Flow, "flow retry", "flow budget", "flow bytes", "flow observer"},
	measure: func(j job) (result, error) {
		opts := contender.FlowOptions(flow.OrderingKeyedFIFO, workers, pending)
		settings[j.Contender](&opts)
		return pushed(nil, j, 1, opts)
	},
}

const sharedFlow, sharedKeys = "flow ScopeStream", "flow ScopeFlow"

var streamsRow = &row{
	name: "streams", unit: "ns", base: contender.Hash, note: across,
	title:      "Streams that push at once, keyed, 1,024 keys, a handler that does nothing: time by all messages",
	target:     "flow with eight at most what it takes with one",
	columns:    []string{"1", "8"},
	contenders: []string{contender.Hash, sharedFlow, sharedKeys, contender.Ring},
	measure: func(j job) (result, error) {
		streams := 1
		if j.Column == "8" {
			streams = 8
		}
		opts := contender.FlowOptions(flow.OrderingKeyedFIFO, workers, pending)
		if j.Contender == sharedKeys {
			opts.Ordering.Scope = flow.ScopeFlow
		}
		return pushed(contender.Named(j.Contender), j, streams, opts)
	},
}

// pushed runs streams side by side on one executor: c's, or without c flow's with opts.
func pushed(c *contender.Contender, j job, streams int, opts flow.Options) (result, error) {
	n := j.size(1_600_000) / streams
	var lists [][]load.Message
	slots := 0
	for i := range streams {
		list, k := load.Stream(load.Keys1Ki, n)
		list = report.Rotated(list, i*n/streams) // else all would be at the same key at the same time
		for m := range list {                    // an order of its own for each stream
			list[m].Seq, list[m].Slot = uint64(m+1), list[m].Slot+uint32(i*k)
		}
		lists, slots = append(lists, list), slots+k
	}
	var r result
	for _, part := range []int{n / 8, n} {
		check := load.NewChecker(slots)
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		var e contender.Executor
		if c != nil {
			e = c.Start(check.Note, workers, pending)
		} else {
			e = contender.StartFlow(check.Note, opts)
		}
		var wg sync.WaitGroup
		for _, list := range lists {
			wg.Go(func() { e.Run(load.Source(list[:part])) })
		}
		wg.Wait()
		e.Close()
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		all := part * streams
		if check.Done() != uint64(all) {
			return r, fmt.Errorf("%d of %d messages were handled", check.Done(), all)
		}
		r = result{
			Value:  float64(took) / float64(all),
			Allocs: float64(after.Mallocs-before.Mallocs) / float64(all),
			Broken: check.Breaches(),
		}
	}
	return r, nil
}
