package flow_test

import (
	"context"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc/metadata"
)

// goroutines counts the bubble's: the runtime and the testing package start some of their own when they please.
func goroutines() int {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return strings.Count(string(stacks), ", synctest bubble ")
}

func TestWaitingMessageCostsNoGoroutine(t *testing.T) {
	const many = 10_000
	sameKey := func(int) string { return "a" }
	ownKey := strconv.Itoa
	for name, c := range map[string]struct {
		key  func(int) string
		opts flow.Options
	}{
		"for its turn":            {sameKey, flow.Options{Ordering: testkit.Keyed}},
		"for its turn, FIFO":      {sameKey, flow.Options{}},
		"for its turn, ScopeFlow": {sameKey, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow}}},
		"for a slot":              {ownKey, flow.Options{Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1}}},
		"for a slot, counted":     {ownKey, flow.Options{Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1, QueueCapacity: many}}},
		"for its next try":        {ownKey, flow.Options{Ordering: testkit.Keyed, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c.opts.MaxPending = -1
				handle := func(ctx context.Context, m flow.Message[int]) error {
					if c.opts.Retry.MaxAttempts > 0 && m.Value > 0 {
						return testkit.ErrHandler
					}
					<-ctx.Done()
					return ctx.Err()
				}
				f, err := flow.New(handle, c.key, c.opts)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.Background())
				ch := make(chan int)
				done := make(chan struct{})
				go func() {
					defer close(done)
					_, _ = f.Run(ctx, flow.FromChan(ctx, ch))
				}()
				ch <- 0
				synctest.Wait()
				before := goroutines()
				for i := range many {
					ch <- i + 1
				}
				testkit.Advance(time.Second) // workers without work end after a tenth of that
				// One more may be waiting for a slot.
				if n := goroutines() - before; n > 1 {
					t.Errorf("%d messages that wait cost %d goroutines", many, n)
				}
				if st := f.Stats(); st.Waiting != many || st.InFlight != 1 {
					t.Errorf("Stats() = %+v, want %d waiting behind one", st, many)
				}
				cancel()
				<-done
			})
		})
	}
}

func TestIdleStreamCostsTwoGoroutinesAndItsFlowOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed})
		before := goroutines()
		if before == 0 {
			t.Fatal("the goroutines of a bubble are not recognised")
		}
		c := testkit.Start(t, f, keysOf(100)...)
		s.FinishAll(t)
		testkit.Advance(time.Second)           // workers without work end after a tenth of that
		if n := goroutines() - before; n > 3 { // Run's own, the one in recv, and the Flow's shard
			t.Errorf("an idle stream has %d goroutines", n)
		}
		c.End()
		if _, err := c.Result(t); err != nil {
			t.Error(err)
		}
		if n := goroutines() - before; n > 0 {
			t.Errorf("%d goroutines stay after Run", n)
		}
	})
}

// heap is what is reachable.
func heap() int64 {
	for range 3 { // a sync.Pool lets go of what it holds in two steps
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The stream goes on while it is measured: the keys are idle, not the stream over. A pointer kept for each key would
// be twice what is allowed.
func TestIdleKeysCostNothing(t *testing.T) {
	for name, c := range map[string]struct {
		distinct int
		opts     flow.Options
	}{
		"passing through": {1_000_000, flow.Options{Ordering: testkit.Keyed}},
		"through the flow's lanes": {200_000, flow.Options{Ordering: flow.OrderingOptions{
			Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow,
		}}},
		"pending all at once": {200_000, flow.Options{Ordering: testkit.Keyed, MaxPending: -1}},
	} {
		o, distinct, allowed := c.opts, c.distinct, int64(4*c.distinct)
		t.Run(name, func(t *testing.T) {
			open := make(chan struct{}) // the handlers wait for it where all are to be pending
			if o.MaxPending == 0 {
				close(open)
			}
			var handled atomic.Int64
			all := make(chan struct{})
			f, err := flow.New(func(context.Context, flow.Message[int]) error {
				<-open
				if handled.Add(1) == int64(distinct) {
					close(all)
				}
				return nil
			}, strconv.Itoa, flow.Options{
				Ordering: o.Ordering, MaxPending: o.MaxPending, Backpressure: flow.BackpressureOptions{Capacity: 4},
			})
			if err != nil {
				t.Fatal(err)
			}
			sent, received, end := 0, make(chan struct{}), make(chan struct{})
			recv := func() (int, error) {
				if sent == distinct {
					close(received)
					<-end
					return 0, io.EOF
				}
				sent++
				return sent, nil
			}
			before := heap()
			done := make(chan error)
			go func() {
				_, err := f.Run(context.Background(), recv)
				done <- err
			}()
			<-received
			if o.MaxPending != 0 {
				if grown := heap() - before; grown < allowed {
					t.Errorf("the pending messages take only %d bytes: the measurement is wrong", grown)
				}
				close(open)
			}
			<-all // before asking Stats, whose cost grows with what is pending
			for st := f.Stats(); st.InFlight+st.Waiting > 0; st = f.Stats() {
				time.Sleep(time.Millisecond)
			}
			if st := f.Stats(); st.ActiveKeys != 0 || st.Total.Succeeded != uint64(distinct) {
				t.Errorf("Stats() = %+v", st)
			}
			if grown := heap() - before; grown > allowed {
				t.Errorf("after %d keys the heap has grown by %d bytes", distinct, grown)
			}
			close(end)
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// The lane of a key outlives the message that opened it, in the memory of which it lay: so a message that stayed kept others
// alive that had finished long ago, and these kept others.
func TestBurstsLeaveNothingBehindBesideAMessageThatStays(t *testing.T) {
	testkit.SkipIfShort(t)
	const bursts, burst, keys = 10, 5000, 40
	release := make(chan struct{})
	var gate sync.RWMutex // held while a burst is received, so that all of it is pending
	f, err := flow.New(func(_ context.Context, m flow.Message[int]) error {
		if m.Value == 0 {
			<-release
			return nil
		}
		gate.RLock()
		defer gate.RUnlock()
		return nil
	}, strconv.Itoa, flow.Options{
		Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Capacity: 1 << 20}, // everything is lined up on receipt
		Backpressure: flow.BackpressureOptions{Capacity: 2}, MaxPending: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	source := make(chan int)
	s := f.Start(context.Background(), flow.FromChan(context.Background(), source))
	source <- 0
	random := rand.New(rand.NewPCG(1, 2))
	grown := func() int64 {
		gate.Lock()
		for range burst {
			source <- 1 + random.IntN(keys)
		}
		gate.Unlock()
		for f.Stats().InFlight+f.Stats().Waiting > 1 {
			time.Sleep(time.Millisecond)
		}
		return heap()
	}
	first := grown()
	last := first
	for range bursts {
		last = grown()
	}
	if n := last - first; n > 100<<10 {
		t.Errorf("after %d bursts of %d messages the heap has grown by %d bytes", bursts, burst, n)
	}
	close(release)
	close(source)
	if _, err := s.Wait(); err != nil {
		t.Error(err)
	}
}

// A message may be megabytes, and a client may say nothing more for hours.
func TestIdleStreamKeepsNoMessageAlive(t *testing.T) {
	type message = *[1024]byte
	for name, o := range map[string]flow.Options{
		"FIFO":      {},
		"keyed":     {Ordering: testkit.Keyed},
		"ScopeFlow": {Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow}},
		"refusing":  {Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 4}},
		"observed":  {Observer: func(context.Context, flow.Event) {}},
	} {
		t.Run(name, func(t *testing.T) {
			var last weak.Pointer[[1024]byte]
			f, err := flow.New(func(_ context.Context, m flow.Message[message]) error {
				last = weak.Make(m.Value)
				return nil
			}, func(message) string { return "" }, o)
			if err != nil {
				t.Fatal(err)
			}
			idle, end := make(chan struct{}), make(chan struct{})
			sent := 0
			done := make(chan error)
			go func() {
				_, err := f.Run(context.Background(), func() (message, error) {
					if sent++; sent <= 3 {
						return new([1024]byte), nil
					}
					close(idle)
					<-end
					return nil, io.EOF
				})
				done <- err
			}()
			<-idle
			for st := f.Stats(); st.InFlight+st.Waiting > 0; st = f.Stats() {
				time.Sleep(time.Millisecond)
			}
			for range 100 { // what ran it may still be on its way home
				runtime.GC()
				if last.Value() == nil {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if last.Value() != nil {
				t.Error("the last message is still reachable")
			}
			close(end)
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

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
	// On a busy machine goroutines are preempted, for which others are started: what each message costs is there each time.
	got := math.Inf(1)
	for try := 0; try < 3 && got >= allocSlack; try++ {
		got = min(got, (count(2*n)-count(n))/float64(n))
	}
	return got
}

// allocSlack is a rounding: one allocation in a hundred messages is no cost of each.
const allocSlack = 0.01

func skipUnderRace(t *testing.T) {
	t.Helper()
	if testkit.RaceEnabled {
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

// TestBatchAllocatesNothingPerMessage allows a call a few allocations, for its context, when it is of 256 messages.
func TestBatchAllocatesNothingPerMessage(t *testing.T) {
	skipUnderRace(t)
	for _, keys := range []int{1, 1024} {
		list := records(keys)
		var read, last, done atomic.Int64
		f, err := flow.NewBatch(func(_ context.Context, batch []flow.Message[*record], _ []error) error {
			for read.Load() < min(done.Load()+800, last.Load()) { // a full batch waits when this one ends
				runtime.Gosched()
			}
			done.Add(int64(len(batch)))
			return nil
		}, recordKey, flow.Options{Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1}})
		if err != nil {
			t.Fatal(err)
		}
		got := allocsPerMessage(100_000, func(n int) {
			read.Store(0)
			done.Store(0)
			last.Store(int64(n))
			recv := repeat(list, n)
			runAll(t, f, func() (*record, error) { read.Add(1); return recv() })
		})
		t.Logf("%d keys: %.4f allocations a message", keys, got)
		if got > 8.0/256 {
			t.Errorf("%d keys: %.4f allocations a message, want none but those of a call", keys, got)
		}
	}
}
