package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"example.com/flow"
	"example.com/flow/bench/internal/contender"
	"example.com/flow/bench/internal/load"
)

// byHand is what somebody would write who needs just what the column asks for: without bounds, retries, recovered panics or
// counts, unless that is what it asks.
const byHand = "by hand"

// situation is an option, a shape of the load or a size of the window, of which none may be a cliff.
type situation struct {
	hand    func(h contender.Handler) contender.Executor
	options func(*flow.Options)
	streams int // how many run at once; 0: one
	each    int // messages a stream, one stream after the other; 0: all
	poison  bool
}

// hand64 and handOne are the two plain ways: 64 goroutines behind channels by a key's hash, or one.
func hand64(h contender.Handler) contender.Executor {
	return contender.Named(contender.Hash).Start(h, workers, pending)
}

func handOne(buffer int) func(contender.Handler) contender.Executor {
	return func(h contender.Handler) contender.Executor {
		return contender.Named(contender.One).Start(h, 1, buffer)
	}
}

// timed gives each message a context of its own.
func timed(h contender.Handler) contender.Handler {
	return func(m *load.Message) {
		_, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		h(m)
	}
}

// observed counts what an Observer would be told, and measures what it is told.
func observed(h contender.Handler) contender.Handler {
	var n, took atomic.Int64
	return func(m *load.Message) {
		n.Add(1)
		began := time.Now()
		h(m)
		took.Add(int64(time.Since(began)))
		n.Add(1)
	}
}

func with(change func(contender.Handler) contender.Handler) func(contender.Handler) contender.Executor {
	return func(h contender.Handler) contender.Executor { return hand64(change(h)) }
}

func maxPending(n int) situation {
	return situation{hand: handOne(n), options: func(o *flow.Options) { o.MaxPending = n }}
}

var situations = map[string]situation{
	"plain":         {hand: hand64, options: func(*flow.Options) {}},
	"MaxPending 2":  maxPending(2),
	"MaxPending 8":  maxPending(8),
	"MaxPending 32": maxPending(32),
	"Capacity 1":    {hand: handOne(pending), options: func(o *flow.Options) { o.Backpressure.Capacity = 1 }},
	"HardReject": {hand: hand64, options: func(o *flow.Options) {
		o.Backpressure = flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1 << 20}
	}},
	"QueueCapacity":     {hand: hand64, options: func(o *flow.Options) { o.Backpressure.QueueCapacity = 1 << 20 }},
	"AttemptTimeout":    {hand: with(timed), options: func(o *flow.Options) { o.Retry.AttemptTimeout = time.Minute }},
	"ScopeFlow":         {hand: hand64, options: func(o *flow.Options) { o.Ordering.Scope = flow.ScopeFlow }},
	"Ordering.Capacity": {hand: hand64, options: func(o *flow.Options) { o.Ordering.Capacity = 1 << 20 }},
	"KeyCapacity":       {hand: hand64, options: func(o *flow.Options) { o.Ordering.KeyCapacity = 1 << 20 }},
	"bytes":             {hand: hand64, options: func(o *flow.Options) { o.MaxPendingBytes = 1 << 30 }},
	"bytes, full":       {hand: handOne(8), options: func(o *flow.Options) { o.MaxPendingBytes = 8 * 128 }},
	"Observer": {hand: with(observed), options: func(o *flow.Options) {
		var n, took atomic.Int64
		o.Observer = func(_ context.Context, e flow.Event) { n.Add(1); took.Add(int64(e.Took)) }
	}},
	"after SkipKey": {hand: hand64, poison: true, options: func(o *flow.Options) {
		o.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey }
	}},
	"streams of 3":            {hand: handOne(64), each: 3, options: func(*flow.Options) {}},
	"streams of 10":           {hand: handOne(64), each: 10, options: func(*flow.Options) {}},
	"64 streams, Capacity 2":  {hand: hand64, streams: 64, options: func(o *flow.Options) { o.Backpressure.Capacity = 2 }},
	"64 streams, Capacity 64": {hand: hand64, streams: 64, options: func(*flow.Options) {}},
}

// cliffRows are the situations, in groups that fit a page, with handlers that do nothing and that compute for a microsecond.
func cliffRows() (rows []*row) {
	for _, group := range []struct {
		name, title string
		columns     []string
	}{
		{"windows", "Windows and shapes", []string{"plain", "MaxPending 2", "MaxPending 8", "MaxPending 32", "Capacity 1", "bytes", "bytes, full"}},
		{"policies", "Options", []string{"HardReject", "QueueCapacity", "AttemptTimeout", "ScopeFlow", "Ordering.Capacity", "KeyCapacity", "Observer", "after SkipKey"}},
		{"shapes", "Streams", []string{"streams of 3", "streams of 10", "64 streams, Capacity 2", "64 streams, Capacity 64"}},
	} {
		for _, work := range []struct {
			suffix, title, target string
			handler               func(*load.Checker) func(*load.Message)
			n                     int
			clock                 func() time.Duration
		}{
			{"0", "a handler that does nothing", "at most 2.5 × what somebody would write for just that, and 1 µs a message", nil, 400_000, wall},
			{"1", "a handler that computes for a microsecond", "at most 1.5 × what somebody would write for just that", load.Spin, 100_000, wall},
			{"cpu", "a handler that does nothing: processor time", "at most 2.5 × what somebody would write for just that", nil, 400_000, cpuTime},
		} {
			rows = append(rows, &row{
				name: group.name + work.suffix, unit: "ns", base: byHand,
				title:  group.title + ", keyed, 64 keys, " + work.title,
				target: work.target, columns: group.columns, contenders: []string{byHand, contender.Flow},
				measure: func(j job) (result, error) { return situated(j, work.handler, work.n, work.clock) },
			})
		}
	}
	return rows
}

var errPoison = errors.New("poison")

// started is when this program was.
var started = time.Now()

// wall is the time that has passed.
func wall() time.Duration { return time.Since(started) }

// situated measures one situation.
func situated(j job, handler func(*load.Checker) func(*load.Message), n int, clock func() time.Duration) (r result, err error) {
	s := situations[j.Column]
	n = j.size(n)
	list, slots := load.Stream(load.Keys64, n)
	var check *load.Checker
	var before, after runtime.MemStats
	for range 2 { // the first warms up
		check = load.NewChecker(slots)
		h := check.Note
		if handler != nil {
			h = handler(check)
		}
		runtime.GC()
		runtime.ReadMemStats(&before)
		start := clock()
		if j.Contender == byHand {
			s.runByHand(h, list)
		} else if err = s.runFlow(h, list); err != nil {
			return r, err
		}
		r.Value = float64(clock()-start) / float64(n)
		runtime.ReadMemStats(&after)
		r.Allocs = float64(after.Mallocs-before.Mallocs) / float64(n)
	}
	if check.Done() != uint64(n) {
		return r, fmt.Errorf("%d of %d messages were handled", check.Done(), n)
	}
	if s.streams <= 1 && s.each == 0 {
		r.Broken = check.Breaches()
	}
	return r, nil
}

// parts are the streams that list comes in, and whether they run at once.
func (s situation) parts(list []load.Message) (parts [][]load.Message, atOnce bool) {
	size := len(list)
	if s.streams > 1 {
		size, atOnce = len(list)/s.streams, true
	} else if s.each > 0 {
		size = s.each
	}
	for ; len(list) > size; list = list[size:] {
		parts = append(parts, list[:size])
	}
	return append(parts, list), atOnce
}

func (s situation) runByHand(h contender.Handler, list []load.Message) {
	parts, atOnce := s.parts(list)
	if !atOnce {
		for _, part := range parts {
			e := s.hand(h)
			e.Run(load.Source(part))
			e.Close()
		}
		return
	}
	e := s.hand(h)
	var all sync.WaitGroup
	for _, part := range parts {
		all.Go(func() { e.Run(load.Source(part)) })
	}
	all.Wait()
	e.Close()
}

func (s situation) runFlow(h contender.Handler, list []load.Message) error {
	opts := contender.FlowOptions(flow.OrderingKeyedFIFO, workers, pending)
	s.options(&opts)
	f, err := flow.New(func(_ context.Context, m flow.Message[*load.Message]) error {
		if m.Value.Key == "poison" {
			return errPoison
		}
		h(m.Value)
		return nil
	}, func(m *load.Message) string { return m.Key }, opts)
	if err != nil {
		return err
	}
	run := func(part []load.Message) error {
		next := load.Source(part)
		first := s.poison
		_, err := f.Run(context.Background(), func() (*load.Message, error) {
			if first {
				first = false
				return &load.Message{Key: "poison"}, nil
			}
			if m := next(); m != nil {
				return m, nil
			}
			return nil, io.EOF
		})
		return err
	}
	parts, atOnce := s.parts(list)
	if !atOnce {
		for _, part := range parts {
			if err := run(part); err != nil {
				return err
			}
		}
		return nil
	}
	errs := make([]error, len(parts))
	var all sync.WaitGroup
	for i, part := range parts {
		all.Go(func() { errs[i] = run(part) })
	}
	all.Wait()
	return errors.Join(errs...)
}
