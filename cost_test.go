package flow_test

import (
	"context"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"example.com/flow"
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
		"for its turn":            {sameKey, flow.Options{Ordering: keyed}},
		"for its turn, FIFO":      {sameKey, flow.Options{}},
		"for its turn, ScopeFlow": {sameKey, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow}}},
		"for a slot":              {ownKey, flow.Options{Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1}}},
		"for a slot, counted":     {ownKey, flow.Options{Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1, QueueCapacity: many}}},
		"for its next try":        {ownKey, flow.Options{Ordering: keyed, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour}}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c.opts.MaxPending = -1
				handle := func(ctx context.Context, m flow.Message[int]) error {
					if c.opts.Retry.MaxAttempts > 0 && m.Value > 0 {
						return errHandler
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
				pass(time.Second) // workers without work end after a tenth of that
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
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed})
		before := goroutines()
		if before == 0 {
			t.Fatal("the goroutines of a bubble are not recognised")
		}
		c := start(t, f, strangers(100)...)
		s.finishAll(t)
		pass(time.Second)                      // workers without work end after a tenth of that
		if n := goroutines() - before; n > 3 { // Run's own, the one in recv, and the Flow's shard
			t.Errorf("an idle stream has %d goroutines", n)
		}
		c.End()
		if _, err := c.result(t); err != nil {
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
		"passing through": {1_000_000, flow.Options{Ordering: keyed}},
		"through the flow's lanes": {200_000, flow.Options{Ordering: flow.OrderingOptions{
			Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow,
		}}},
		"pending all at once": {200_000, flow.Options{Ordering: keyed, MaxPending: -1}},
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

// A message may be megabytes, and a client may say nothing more for hours.
func TestIdleStreamKeepsNoMessageAlive(t *testing.T) {
	type message = *[1024]byte
	for name, o := range map[string]flow.Options{
		"FIFO":      {},
		"keyed":     {Ordering: keyed},
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
