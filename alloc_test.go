package flow_test

import (
	"context"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
	"google.golang.org/grpc/metadata"
)

// What a message costs in allocations is exact, so it is gated, where times on shared machines can't be.

// allocsPerMessage is what each further message of a stream allocates: the difference between a run of 2n messages and
// one of n, so that what a run costs once cancels out. Each is the least of a few tries, since how many workers a run
// starts and how far its buffers grow is up to the scheduler. No garbage is collected meanwhile: that empties the pool
// which a stream's messages go to when it is idle, and the next burst then fills it again, at most MaxPending of them.
func allocsPerMessage(n int, run func(n int)) float64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	count := func(n int) float64 {
		least := uint64(1 << 63)
		for range 5 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			run(n)
			runtime.ReadMemStats(&after)
			least = min(least, after.Mallocs-before.Mallocs)
		}
		return float64(least)
	}
	run(n) // fills the pools
	return (count(2*n) - count(n)) / float64(n)
}

// allocSlack is a rounding: one allocation in a hundred messages is no cost of each.
const allocSlack = 0.01

func skipUnderRace(t *testing.T) {
	t.Helper()
	if raceEnabled {
		t.Skip("under the race detector sync.Pool drops some of what it is given, and the runtime allocates")
	}
}

// ahead is a source and a handler of its messages that lets the source be a little ahead of it, so that a worker always
// finds its next message. How often one starts because it found none is up to the scheduler, and to the machine. A handler
// doesn't wait for long: the source itself waits while MaxPending are pending, which then are not all before its message.
func ahead(list []*record) (from func(n int) func() (*record, error), h flow.Handler[*record]) {
	const margin = 256 // far less than MaxPending, or both would wait for each other
	var read, last atomic.Int64
	from = func(n int) func() (*record, error) {
		read.Store(0)
		last.Store(int64(n))
		recv := repeat(list, n)
		return func() (*record, error) {
			read.Add(1)
			return recv()
		}
	}
	return from, func(_ context.Context, m flow.Message[*record]) error {
		for range 100 {
			if read.Load() >= min(int64(m.Seq)+margin, last.Load()) {
				break
			}
			runtime.Gosched()
		}
		return nil
	}
}

func TestRunAllocatesNothingPerMessage(t *testing.T) {
	skipUnderRace(t)
	for _, m := range modes {
		for _, keys := range []struct {
			name string
			n    int
		}{{"one key", 1}, {"1024 keys", 1024}, {"keys that all differ", 0}} {
			t.Run(m.name+"/"+keys.name, func(t *testing.T) {
				from, handle := ahead(records(keys.n))
				f := newFlow(t, handle, busyOptions(m.mode))
				got := allocsPerMessage(100_000, func(n int) { runAll(t, f, from(n)) })
				t.Logf("%.4f allocations a message", got)
				if got >= allocSlack {
					t.Errorf("%.4f allocations a message, want none", got)
				}
			})
		}
	}
}

// No option costs an allocation a message.
func TestRunAllocatesNothingPerMessageWhateverTheOptions(t *testing.T) {
	skipUnderRace(t)
	keyed := busyOptions(flow.OrderingKeyedFIFO)
	for name, change := range map[string]func(*flow.Options){
		"AttemptTimeout": func(o *flow.Options) { o.Retry.AttemptTimeout = time.Minute },
		"HardReject": func(o *flow.Options) {
			o.Backpressure = flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1 << 20}
		},
		"QueueCapacity":     func(o *flow.Options) { o.Backpressure.QueueCapacity = 1 << 20 },
		"SoftAllow":         func(o *flow.Options) { o.Backpressure.Policy = flow.BackpressureSoftAllow },
		"ScopeFlow":         func(o *flow.Options) { o.Ordering.Scope = flow.ScopeFlow },
		"Ordering.Capacity": func(o *flow.Options) { o.Ordering.Capacity = 1 << 20 },
		"KeyCapacity":       func(o *flow.Options) { o.Ordering.KeyCapacity = 1 << 20 },
		"MaxPendingBytes":   func(o *flow.Options) { o.MaxPendingBytes = 1 << 30 },
		"MaxPending":        func(o *flow.Options) { o.MaxPending = 8 },
		"IdleTimeout":       func(o *flow.Options) { o.IdleTimeout = time.Hour },
		"Observer":          func(o *flow.Options) { o.Observer = func(context.Context, flow.Event) {} },
	} {
		t.Run(name, func(t *testing.T) {
			o := keyed
			change(&o)
			f, list := newFlow(t, noop, o), records(1024)
			got := allocsPerMessage(50_000, func(n int) { runAll(t, f, repeat(list, n)) })
			t.Logf("%.4f allocations a message", got)
			if limit := allocSlack + map[string]float64{"AttemptTimeout": 1. / 64}[name]; got >= limit { // 64 contexts at a time
				t.Errorf("%.4f allocations a message, want none", got)
			}
		})
	}
}

// A stream that has one message in flight at a time holds no goroutine between two that are more than a moment apart: for
// such a one it starts a worker, and errgroup.Group.Go allocates the closure that it starts. That is the one allocation,
// of 24 bytes. On an idle machine there is none here, but how long a moment is, is up to the scheduler.
func TestOneMessageInFlightAllocatesOnceAtMost(t *testing.T) {
	skipUnderRace(t)
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			list := records(1024)
			got := allocsPerMessage(10_000, func(n int) { pingPong(t, m.mode, list, n) })
			t.Logf("%.4f allocations a message", got)
			if got >= 1+allocSlack {
				t.Errorf("%.4f allocations a message, want at most one", got)
			}
		})
	}
}

func TestSessionAllocatesNothingPerMessage(t *testing.T) {
	skipUnderRace(t)
	from, handle := ahead(records(1024))
	o := busyOptions(flow.OrderingKeyedFIFO)
	o.Sessions = &flow.SessionOptions{}
	f := newFlow(t, handle, o)
	name := 0
	got := allocsPerMessage(100_000, func(n int) {
		name++ // another session each time: none is a duplicate
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("flow-session", strconv.Itoa(name)))
		if _, err := f.Run(ctx, from(n)); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("%.4f allocations a message", got)
	if got >= allocSlack {
		t.Errorf("%.4f allocations a message, want none", got)
	}
}
