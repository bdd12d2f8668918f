package main

import (
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"example.com/flow/bench/internal/contender"
	"example.com/flow/bench/internal/load"
	"example.com/flow/bench/internal/report"
)

const slowKey = 0 // its slot

var slowRow = &row{
	name: "slow", unit: "%", base: contender.Hash,
	title:      "One key of 1,024 sleeps for a millisecond each time: what the others keep of their throughput",
	target:     "flow at least 97 %",
	columns:    []string{"does nothing", "computes 1 µs"},
	contenders: append(append([]string{}, keyed...), contender.Sub),
	measure: func(j job) (result, error) {
		list, slots := load.Stream(load.Keys1Ki, j.size(600_000))
		work := func(c *load.Checker) contender.Handler { return c.Note }
		if j.Column != "does nothing" {
			work = func(c *load.Checker) contender.Handler { return load.Spin(c) }
		}
		last, fast := lastOfFast(list)
		var broken uint64
		// once runs all and returns the time until the last message of a fast key was done.
		once := func(slow time.Duration) (took time.Duration) {
			var left atomic.Int64
			left.Store(fast)
			check := load.NewChecker(slots)
			h := work(check)
			runtime.GC()
			start := time.Now()
			e := contender.Named(j.Contender).Start(func(m *load.Message) {
				if m.Slot == slowKey {
					time.Sleep(slow)
				}
				h(m)
				if last[m.Seq-1] && left.Add(-1) == 0 {
					took = time.Since(start)
				}
			}, workers, pending)
			e.Run(load.Source(list))
			e.Close()
			broken += check.Breaches()
			return took
		}
		once(0)
		var kept []float64 // one time is too short to tell
		for range slowPairs {
			alone := once(0)
			kept = append(kept, 100*float64(alone)/float64(once(time.Millisecond)))
		}
		return result{Value: report.Median(kept), Ideal: 100, Allocs: -1, Broken: broken}, nil
	},
}

const slowPairs = 5

// lastOfFast marks the last message of each key but the slow one, and counts these keys.
func lastOfFast(list []load.Message) (last []bool, keys int64) {
	last = make([]bool, len(list))
	seen := make(map[uint32]bool)
	for i, m := range slices.Backward(list) {
		if m.Slot != slowKey && !seen[m.Slot] {
			seen[m.Slot], last[i] = true, true
		}
	}
	return last, int64(len(seen))
}

var pacedRow = &row{
	name: "paced", unit: "µs", base: contender.Hash, note: across,
	title:      "The same at 400,000 messages a second: p99.9 of the time from receipt to done, fast keys",
	target:     "flow with the slow key as without it",
	columns:    []string{"without", "with a slow key"},
	contenders: keyed,
	measure: func(j job) (result, error) {
		const perMs = 400
		list, slots := load.Stream(load.Keys1Ki, j.size(200_000))
		check := load.NewChecker(slots)
		sent := make([]time.Duration, len(list))
		late := make([]float64, len(list))
		slow := j.Column != "without"
		runtime.GC()
		start := time.Now()
		e := contender.Named(j.Contender).Start(func(m *load.Message) {
			if slow && m.Slot == slowKey {
				time.Sleep(time.Millisecond)
			}
			check.Note(m)
			late[m.Seq-1] = float64(time.Since(start)-sent[m.Seq-1]) / 1e3
		}, workers, pending)
		i := 0
		e.Run(func() *load.Message {
			if i == len(list) {
				return nil
			}
			for int(time.Since(start).Microseconds())*perMs/1000 <= i {
				time.Sleep(200 * time.Microsecond)
			}
			sent[i] = time.Since(start)
			i++
			return &list[i-1]
		})
		e.Close()
		var fast []float64
		for i := range list {
			if list[i].Slot != slowKey {
				fast = append(fast, late[i])
			}
		}
		return result{Value: report.Quantile(fast, 0.999), Allocs: -1, Broken: check.Breaches()}, nil
	},
}
