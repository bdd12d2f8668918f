package flow_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

// caller is a goroutine in Admit, or in another part's function that blocks.
type caller struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
	adm    flow.Admission
	err    error
}

// ask calls what blocks, in the background.
func ask(t testing.TB, what func(context.Context) (flow.Admission, error)) *caller {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &caller{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.adm, c.err = what(ctx)
	}()
	t.Cleanup(func() { cancel(nil); <-c.done; c.adm.Release() })
	synctest.Wait()
	return c
}

// admit is ask for a Gate.
func admit(t testing.TB, g *flow.Gate, key string) *caller {
	t.Helper()
	return ask(t, func(ctx context.Context) (flow.Admission, error) { return g.Admit(ctx, key) })
}

func (c *caller) waits() bool {
	synctest.Wait()
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// wantIn and wantWaits check on several callers at once.
func wantIn(t testing.TB, callers ...*caller) {
	t.Helper()
	for i, c := range callers {
		if c.waits() {
			t.Fatalf("caller %d still waits", i)
		} else if c.err != nil {
			t.Fatalf("caller %d was refused: %v", i, c.err)
		}
	}
}

func wantWaits(t testing.TB, callers ...*caller) {
	t.Helper()
	for i, c := range callers {
		if !c.waits() {
			t.Fatalf("caller %d doesn't wait: %v", i, c.err)
		}
	}
}

func wantRefused(t testing.TB, c *caller, kind flow.FailureKind) *flow.Failure {
	t.Helper()
	if c.waits() {
		t.Fatal("the caller still waits")
	}
	return failureOf(t, c.err, kind)
}

func keyedGate(o flow.BackpressureOptions) *flow.Gate {
	return flow.NewGate(flow.NewKeyedFIFO(flow.OrderingOptions{}), flow.NewPressureController(o), nil)
}

func TestAdmitPassesCallersOfAKeyByArrival(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := keyedGate(flow.BackpressureOptions{})
		a1 := admit(t, g, "a")
		a2, a3 := admit(t, g, "a"), admit(t, g, "a")
		b1 := admit(t, g, "b")
		wantIn(t, a1, b1)
		wantWaits(t, a2, a3)
		b1.adm.Release()
		wantWaits(t, a2, a3)
		a1.adm.Release()
		wantIn(t, a2)
		wantWaits(t, a3)
		a2.adm.Release()
		wantIn(t, a3)
	})
}

func TestAdmitWaitsForASlotAsWell(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := keyedGate(flow.BackpressureOptions{Capacity: 1})
		a1, a2 := admit(t, g, "a"), admit(t, g, "a")
		b1 := admit(t, g, "b")
		wantIn(t, a1)
		wantWaits(t, a2, b1)
		a1.adm.Release()
		wantIn(t, b1) // it asked for the slot before a2 had its turn
		wantWaits(t, a2)
		b1.adm.Release()
		wantIn(t, a2)
	})
}

func TestGateOfNilPartsAdmitsAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := flow.NewGate(nil, nil, nil)
		for range 100 {
			c := admit(t, g, "a")
			wantIn(t, c)
			if c.adm.Pressured() {
				t.Error("pressured without a capacity")
			}
		}
		s := newStage()
		c := receive(t, flow.NewReceiver(g, flow.NewEngine(s.handle, flow.RetryOptions{})), keyOf, "a1", "a2")
		c.End()
		wantNow(t, s, "a1 a2")
		s.finishAll(t)
		if _, err := c.result(t); err != nil {
			t.Error(err)
		}
	})
}

func TestReleaseOfAnAdmissionTwiceIsHarmless(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := keyedGate(flow.BackpressureOptions{Capacity: 1})
		a, b, c := admit(t, g, "a"), admit(t, g, "b"), admit(t, g, "c")
		wantIn(t, a)
		again := a.adm // a copy is the same Admission
		a.adm.Release()
		again.Release()
		a.adm.Release()
		wantIn(t, b)
		wantWaits(t, c)
		b.adm.Release()
		wantIn(t, c)
		for range 10 {
			go c.adm.Release()
		}
		synctest.Wait()
		d, e := admit(t, g, "d"), admit(t, g, "e")
		wantIn(t, d)
		wantWaits(t, e)
		flow.Admission{}.Release()
		wantWaits(t, e)
	})
}

func TestReleaseTwiceDoesNotEndTheNextOnesTurn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := keyedGate(flow.BackpressureOptions{})
		a1, a2, a3 := admit(t, g, "a"), admit(t, g, "a"), admit(t, g, "a")
		a1.adm.Release()
		a1.adm.Release()
		wantIn(t, a2)
		wantWaits(t, a3)
	})
}

func TestAdmitRefusesWhenCalled(t *testing.T) {
	none := func(flow.OrderingOptions) flow.OrderingResolver { return nil }
	hard := flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1}
	for name, c := range map[string]struct {
		resolver func(flow.OrderingOptions) flow.OrderingResolver
		ordering flow.OrderingOptions
		pressure flow.BackpressureOptions
		before   string // the keys of those who come first
		kind     flow.FailureKind
	}{
		"no slot":                      {flow.NewKeyedFIFO, keyed, hard, "b", flow.FailureBackpressure},
		"no slot and no turn":          {flow.NewKeyedFIFO, keyed, hard, "a", flow.FailureBackpressure},
		"no slot and no order":         {none, unordered, hard, "b", flow.FailureBackpressure},
		"queue full":                   {none, unordered, flow.BackpressureOptions{Capacity: 1, QueueCapacity: 2}, "bcd", flow.FailureBackpressure},
		"too many wait for their turn": {flow.NewKeyedFIFO, flow.OrderingOptions{Capacity: 2}, flow.BackpressureOptions{}, "babba", flow.FailureOrdering},
		"too many wait, FIFO":          {flow.NewFIFO, flow.OrderingOptions{Capacity: 1}, flow.BackpressureOptions{}, "bc", flow.FailureOrdering},
		"too many of the key wait":     {flow.NewKeyedFIFO, flow.OrderingOptions{KeyCapacity: 1}, flow.BackpressureOptions{}, "aba", flow.FailureOrdering},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := flow.NewGate(c.resolver(c.ordering), flow.NewPressureController(c.pressure), nil)
				for _, key := range c.before {
					admit(t, g, string(key))
				}
				if f := wantRefused(t, admit(t, g, "a"), c.kind); f.Key != "a" || f.Seq != 0 {
					t.Errorf("failure %+v", f)
				}
			})
		})
	}
}

func TestAdmitNeverRefusesAfterItsTurnHasCome(t *testing.T) {
	for name, o := range map[string]flow.BackpressureOptions{
		"hard reject":    {Policy: flow.BackpressureHardReject, Capacity: 2},
		"queue capacity": {Capacity: 2, QueueCapacity: 1},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				// Slots are taken past the Gate, so that none is free when a2's turn comes.
				p := flow.NewPressureController(o)
				order := flow.NewKeyedFIFO(flow.OrderingOptions{})
				g := flow.NewGate(order, p, nil)
				turn, err := order.Wait(context.Background(), "a")
				if err != nil {
					t.Fatal(err)
				}
				a := admit(t, g, "a")
				var slots []*caller
				for range 2 {
					slots = append(slots, ask(t, p.Acquire))
				}
				wantIn(t, slots...)
				if o.QueueCapacity > 0 {
					wantWaits(t, ask(t, p.Acquire))
				}
				turn()
				wantWaits(t, a)
				wantRefused(t, ask(t, p.Acquire), flow.FailureBackpressure)
				slots[0].adm.Release()
				slots[1].adm.Release()
				wantIn(t, a)
			})
		})
	}
}

func TestCancelledCallerGivesUpItsPlace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := keyedGate(flow.BackpressureOptions{Capacity: 1})
		a1, a2, a3 := admit(t, g, "a"), admit(t, g, "a"), admit(t, g, "a")
		b1, b2 := admit(t, g, "b"), admit(t, g, "b")
		wantIn(t, a1)
		a2.cancel(errHandler) // waits for its turn
		if f := wantRefused(t, a2, flow.FailureContextCancelled); !errors.Is(f, errHandler) || !errors.Is(f, context.Canceled) || f.Key != "a" {
			t.Errorf("failure %+v", f)
		}
		b1.cancel(nil) // has its turn and waits for a slot: both go to those behind
		wantRefused(t, b1, flow.FailureContextCancelled)
		wantWaits(t, a3, b2)
		a1.adm.Release()
		wantIn(t, b2)
		wantWaits(t, a3)
		b2.adm.Release()
		wantIn(t, a3)
	})
}

func TestCancelledPlaceIsNoLongerCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := flow.NewGate(flow.NewKeyedFIFO(flow.OrderingOptions{Capacity: 1}),
			flow.NewPressureController(flow.BackpressureOptions{Capacity: 1, QueueCapacity: 1}), nil)
		wantIn(t, admit(t, g, "a"))
		for range 3 {
			turn, slot := admit(t, g, "a"), admit(t, g, "b")
			wantWaits(t, turn, slot)
			turn.cancel(nil)
			slot.cancel(nil)
			wantRefused(t, turn, flow.FailureContextCancelled)
			wantRefused(t, slot, flow.FailureContextCancelled)
		}
	})
}

func TestAdmitOnADeadContextIsRefusedAlsoWhenThereIsRoom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		time.Sleep(time.Second)
		synctest.Wait()
		_, err := flow.NewGate(nil, nil, nil).Admit(ctx, "a")
		if f := failureOf(t, err, flow.FailureContextCancelled); !errors.Is(f, context.DeadlineExceeded) {
			t.Errorf("failure %v", f)
		}
	})
}
