package flow_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/flow"
)

// with are options with k as the order.
func (k *keeper) with(o flow.Options) flow.Options {
	if o.Ordering.Mode == flow.OrderingFIFO && !o.Ordering.UnorderedEmptyKey {
		o.Ordering.Mode = flow.OrderingKeyedFIFO
	}
	o.Ordering.Resolver = k
	return o
}

func TestNewRefusesAResolverThatCantMeanAnything(t *testing.T) {
	for _, c := range []struct {
		o     flow.OrderingOptions
		wants string
	}{
		{flow.OrderingOptions{Mode: flow.OrderingNone}, "OrderingNone"},
		{flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow}, "ScopeStream"},
		{flow.OrderingOptions{Mode: flow.OrderingFIFO, Scope: flow.ScopeFlow}, "ScopeStream"},
	} {
		c.o.Resolver = newKeeper()
		_, err := flow.New(newStage().handle, keyOf, flow.Options{Ordering: c.o})
		if err == nil || !strings.Contains(err.Error(), "Ordering.Resolver") || !strings.Contains(err.Error(), c.wants) {
			t.Errorf("New() with %+v = %v", c.o, err)
		}
	}
}

func TestResolverIsAskedInTurnWithAllThatTheOptionsOffer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		var mu sync.Mutex
		events := map[flow.EventKind]int{}
		f := mustNew(t, s.handle, k.with(flow.Options{
			Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
			OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
				if f.Key == "a" {
					return flow.SkipKey
				}
				return flow.SkipMessage
			},
			Observer: func(_ context.Context, e flow.Event) {
				mu.Lock()
				defer mu.Unlock()
				events[e.Kind]++
			},
		}))
		c := start(t, f, "a1", "a2", "b1", "b2")
		c.End()
		k.want(t, "a b / ")
		k.grant(t, "a", "b")
		s.fail(t, "b1", errHandler)
		k.want(t, "a b / ") // it keeps its turn from try to try
		s.fail(t, "a1", flow.Permanent(errHandler))
		k.want(t, "a b / a") // a2 is skipped with its key, and asks nobody
		time.Sleep(time.Second)
		s.finish(t, "b1")
		k.want(t, "a b b / a b")
		k.refuse(t, "b", errors.New("no"))
		sum, err := c.result(t)
		if err != nil || sum.Succeeded != 1 || sum.Failed != 1 || sum.Rejected != 2 || sum.Retried != 1 || sum.Committed != 4 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
		for kind, want := range map[flow.EventKind]int{
			flow.EventAttempt: 3, flow.EventRetry: 1, flow.EventSuccess: 1, flow.EventFailure: 1, flow.EventReject: 2, flow.EventStreamEnd: 1,
		} {
			if events[kind] != want {
				t.Errorf("%v came %d times, want %d", kind, events[kind], want)
			}
		}
		if k.closed {
			t.Error("flow closed a resolver that it did not make")
		}
	})
}

func TestResolverIsAskedBeforeASlotIsTakenUnderEveryPolicy(t *testing.T) {
	for _, o := range []flow.BackpressureOptions{
		{Capacity: 1},
		{Capacity: 1, QueueCapacity: 8},
		{Capacity: 1, Policy: flow.BackpressureHardReject},
		{Capacity: 1, Policy: flow.BackpressureSoftAllow},
		{Capacity: 1, Policy: flow.BackpressureSoftAllowWithSignal},
	} {
		t.Run(o.Policy.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s, k := newStage(), newKeeper()
				f := mustNew(t, s.handle, k.with(flow.Options{Backpressure: o}))
				c := start(t, f, "a1", "b1") // nothing runs as they are received: none is refused
				c.End()
				k.grant(t, "b")
				wantNow(t, s, "b1")
				k.grant(t, "a")
				if o.Policy == flow.BackpressureSoftAllow || o.Policy == flow.BackpressureSoftAllowWithSignal {
					wantNow(t, s, "a1 b1")
				} else {
					wantNow(t, s, "b1")
				}
				s.finish(t, "b1", "a1")
				for _, m := range s.attempts() {
					if want := m.Value == "a1" && o.Policy == flow.BackpressureSoftAllowWithSignal; m.Pressured != want {
						t.Errorf("%q is pressured: %v", m.Value, m.Pressured)
					}
				}
				if sum, err := c.result(t); err != nil || sum.Succeeded != 2 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
				k.want(t, "a b / b a")
			})
		})
	}
}

func TestResolverAndMaxPendingBoundWhatIsRead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		f := mustNew(t, s.handle, k.with(flow.Options{MaxPending: 2}))
		c := start(t, f, "a1", "b1", "c1")
		c.End()
		k.want(t, "a b / ")
		k.grant(t, "b")
		s.finish(t, "b1")
		k.want(t, "a b c / b")
		k.grant(t, "a", "c")
		s.finishAll(t)
		if _, err := c.result(t); err != nil {
			t.Error(err)
		}
	})
}

func TestResolverWithBoundsOfTheLanesRefusesOnReceipt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		o := k.with(flow.Options{OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }})
		o.Ordering.KeyCapacity = 1
		c := start(t, mustNew(t, s.handle, o), "a1", "a2", "a3")
		c.End()
		k.grant(t, "a")
		s.finishAll(t)
		k.grant(t, "a")
		s.finishAll(t)
		if sum, err := c.result(t); err != nil || sum.Succeeded != 2 || sum.Rejected != 1 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestResolverIsAskedForAllThatADrainRuns(t *testing.T) {
	for _, drain := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			s, k := newStage(), newKeeper()
			f := mustNew(t, s.handle, k.with(flow.Options{Shutdown: flow.ShutdownOptions{DrainOnClose: drain}}))
			c := start(t, f, "a1", "a2", "b1")
			k.grant(t, "a")
			wantNow(t, s, "a1")
			done := make(chan error)
			go func() { done <- f.Shutdown(t.Context()) }()
			s.finish(t, "a1")
			if drain {
				k.grant(t, "a", "b")
				s.finishAll(t)
			}
			if err := <-done; err != nil {
				t.Errorf("Shutdown() = %v", err)
			}
			sum, err := c.result(t)
			failureOf(t, err, flow.FailureShutdown)
			want := flow.Summary{Received: 3, Succeeded: 3}
			if !drain { // b1, which asked, is dropped as well
				want = flow.Summary{Received: 3, Succeeded: 1, Dropped: 2}
			}
			if sum.Succeeded != want.Succeeded || sum.Dropped+sum.Rejected != want.Dropped || sum.Received != 3 {
				t.Errorf("with drain %v: Run() = %+v", drain, sum)
			}
		})
	}
}

func TestResolverBesideFIFOKeepsFIFOWithinTheStreamAndIsAskedWithoutAKey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		f := mustNew(t, s.handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingFIFO, Resolver: k}})
		c := start(t, f, "a1", "b1", "c1")
		c.End()
		for _, v := range []string{"a1", "b1", "c1"} {
			wantNow(t, s, "")
			k.grant(t, "")
			wantNow(t, s, v)
			s.finish(t, v)
		}
		if sum, err := c.result(t); err != nil || sum.Succeeded != 3 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestResolverIsNotAskedForAnEmptyKeyThatHasNoOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		o := k.with(flow.Options{})
		o.Ordering.UnorderedEmptyKey = true
		c := start(t, mustNew(t, s.handle, o), "1", "2", "a1")
		c.End()
		k.want(t, "a / ")
		wantNow(t, s, "1 2")
		k.grant(t, "a")
		s.finishAll(t)
		if _, err := c.result(t); err != nil {
			t.Error(err)
		}
	})
}

func TestResolverBuiltInKeepsAKeysOrderAcrossTheFlowsThatShareIt(t *testing.T) {
	for _, mode := range []flow.OrderingMode{flow.OrderingKeyedFIFO, flow.OrderingFIFO} {
		t.Run(mode.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				shared := flow.NewKeyedFIFO(flow.OrderingOptions{})
				if mode == flow.OrderingFIFO {
					shared = flow.NewFIFO(flow.OrderingOptions{})
				}
				s := newStage()
				o := flow.Options{Ordering: flow.OrderingOptions{Mode: mode, Resolver: shared}}
				one := start(t, mustNew(t, s.handle, o), "a1", "a3")
				two := start(t, mustNew(t, s.handle, o), "a2", "b1")
				one.End()
				two.End()
				if mode == flow.OrderingFIFO {
					for _, v := range strings.Fields("a1 a2 a3 b1") { // who asks, asks when its own stream lets it
						wantNow(t, s, v)
						s.finish(t, v)
					}
				} else {
					wantNow(t, s, "a1 b1")
					s.finish(t, "b1", "a1")
					wantNow(t, s, "a2")
					s.finish(t, "a2")
					wantNow(t, s, "a3")
					s.finish(t, "a3")
				}
				for _, c := range []*call{one, two} {
					if sum, err := c.result(t); err != nil || sum.Succeeded != 2 {
						t.Errorf("Run() = %+v, %v", sum, err)
					}
				}
			})
		})
	}
}

func TestResolverThatIsClosedRefusesTheMessagesOfItsFlows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		shared := flow.NewKeyedFIFO(flow.OrderingOptions{})
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Resolver: shared}})
		c := start(t, f, "a1", "a2")
		wantNow(t, s, "a1")
		shared.Close()
		s.finish(t, "a1") // a turn that has come stays
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureOrdering)
		if sum.Succeeded != 1 || sum.Rejected != 1 {
			t.Errorf("Run() = %+v", sum)
		}
	})
}

func TestResolversOrderHoldsForManyStreams(t *testing.T) {
	bubble(t, func(t *testing.T) {
		shared := flow.NewKeyedFIFO(flow.OrderingOptions{})
		var mu sync.Mutex
		running := map[string]bool{}
		last := map[uint64]map[string]uint64{}
		var all []*call
		for id := range uint64(4) {
			last[id] = map[string]uint64{}
			f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
				mu.Lock()
				if running[m.Key] || m.Seq <= last[id][m.Key] {
					t.Errorf("message %d of key %q of stream %d runs out of turn", m.Seq, m.Key, id)
				}
				running[m.Key], last[id][m.Key] = true, m.Seq
				mu.Unlock()
				if m.Seq%3 == 0 {
					time.Sleep(time.Millisecond)
				}
				mu.Lock()
				defer mu.Unlock()
				running[m.Key] = false
				return nil
			}, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Resolver: shared}})
			values := slices.Repeat([]string{"a", "b", "c", "a"}, 100)
			c := start(t, f, values...)
			c.End()
			all = append(all, c)
		}
		time.Sleep(time.Hour)
		for _, c := range all {
			if sum, err := c.result(t); err != nil || sum.Succeeded != 400 {
				t.Errorf("Run() = %+v, %v", sum, err)
			}
		}
	})
}
