package flow_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
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
	return testkit.FailureOf(t, c.err, kind)
}

func keyedGate(o flow.BackpressureOptions) *flow.Gate {
	return flow.NewGate(flow.NewKeyedFIFO(flow.OrderingOptions{}), flow.NewPressureController(o), nil)
}

func TestAdmitPassesCallersOfAKeyByArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
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
	synctest.Test(t, func(t *testing.T) {
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
	synctest.Test(t, func(t *testing.T) {
		g := flow.NewGate(nil, nil, nil)
		for range 100 {
			c := admit(t, g, "a")
			wantIn(t, c)
			if c.adm.Pressured() {
				t.Error("pressured without a capacity")
			}
		}
		s := testkit.NewManualHandler()
		c := receive(t, flow.NewReceiver(g, flow.NewEngine(s.Handle, flow.RetryOptions{})), testkit.KeyOf, "a1", "a2")
		c.End()
		s.WantRunning(t, "a1 a2")
		s.FinishAll(t)
		if _, err := c.Result(t); err != nil {
			t.Error(err)
		}
	})
}

func TestReleaseOfAnAdmissionTwiceIsHarmless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
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
	synctest.Test(t, func(t *testing.T) {
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
		"no slot":                      {flow.NewKeyedFIFO, testkit.Keyed, hard, "b", flow.FailureBackpressure},
		"no slot and no turn":          {flow.NewKeyedFIFO, testkit.Keyed, hard, "a", flow.FailureBackpressure},
		"no slot and no order":         {none, testkit.Unordered, hard, "b", flow.FailureBackpressure},
		"queue full":                   {none, testkit.Unordered, flow.BackpressureOptions{Capacity: 1, QueueCapacity: 2}, "bcd", flow.FailureBackpressure},
		"too many wait for their turn": {flow.NewKeyedFIFO, flow.OrderingOptions{Capacity: 2}, flow.BackpressureOptions{}, "babba", flow.FailureOrdering},
		"too many wait, FIFO":          {flow.NewFIFO, flow.OrderingOptions{Capacity: 1}, flow.BackpressureOptions{}, "bc", flow.FailureOrdering},
		"too many of the key wait":     {flow.NewKeyedFIFO, flow.OrderingOptions{KeyCapacity: 1}, flow.BackpressureOptions{}, "aba", flow.FailureOrdering},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
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
			synctest.Test(t, func(t *testing.T) {
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
	synctest.Test(t, func(t *testing.T) {
		g := keyedGate(flow.BackpressureOptions{Capacity: 1})
		a1, a2, a3 := admit(t, g, "a"), admit(t, g, "a"), admit(t, g, "a")
		b1, b2 := admit(t, g, "b"), admit(t, g, "b")
		wantIn(t, a1)
		a2.cancel(testkit.ErrHandler) // waits for its turn
		if f := wantRefused(t, a2, flow.FailureContextCancelled); !errors.Is(f, testkit.ErrHandler) || !errors.Is(f, context.Canceled) || f.Key != "a" {
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
	synctest.Test(t, func(t *testing.T) {
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
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		time.Sleep(time.Second)
		synctest.Wait()
		_, err := flow.NewGate(nil, nil, nil).Admit(ctx, "a")
		if f := testkit.FailureOf(t, err, flow.FailureContextCancelled); !errors.Is(f, context.DeadlineExceeded) {
			t.Errorf("failure %v", f)
		}
	})
}

func TestGateSharesOrderAndCapacityBetweenItsReceiverAndItsCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := flow.NewGate(flow.NewKeyedFIFO(flow.OrderingOptions{Scope: flow.ScopeFlow}),
			flow.NewPressureController(flow.BackpressureOptions{Capacity: 2}), nil)
		s := testkit.NewManualHandler()
		c := receive(t, flow.NewReceiver(g, flow.NewEngine(s.Handle, flow.RetryOptions{})), testkit.KeyOf, "a1")
		a2 := admit(t, g, "a")
		c.Send("a3", "b1")
		s.WantRunning(t, "a1 b1")
		wantWaits(t, a2)
		s.Finish(t, "a1")
		wantIn(t, a2)
		c.Send("c1")
		s.WantRunning(t, "b1") // capacity is b1's and the caller's
		a2.adm.Release()
		if now := s.Running(); now != "a3 b1" && now != "b1 c1" {
			t.Errorf("running: %q", now)
		}
		c.End()
		s.FinishAll(t)
		if sum, err := c.Result(t); err != nil || sum.Succeeded != 4 {
			t.Errorf("Receive() = %+v, %v", sum, err)
		}
	})
}

func TestGateHandsACallersTurnToTheStreamsMessageBehindIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := flow.NewGate(flow.NewKeyedFIFO(flow.OrderingOptions{Scope: flow.ScopeFlow}), nil, nil)
		first := admit(t, g, "a")
		wantIn(t, first)
		s := testkit.NewManualHandler()
		c := receive(t, flow.NewReceiver(g, flow.NewEngine(s.Handle, flow.RetryOptions{})), testkit.KeyOf, "a1", "b1")
		s.WantRunning(t, "b1")
		first.adm.Release() // nothing else wakes the stream
		s.WantRunning(t, "a1 b1")
		c.End()
		s.FinishAll(t)
		if _, err := c.Result(t); err != nil {
			t.Error(err)
		}
	})
}

func TestAdmitAsksAnOwnResolver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper()
		g := flow.NewGate(k, flow.NewPressureController(flow.BackpressureOptions{Capacity: 1}), nil)
		a, b, c := admit(t, g, "a"), admit(t, g, "b"), admit(t, g, "c")
		wantWaits(t, a, b, c)
		k.grant(t, "b", "a")
		wantIn(t, b)
		wantWaits(t, a, c)
		a.cancel(nil) // it has its turn and waits for a slot
		wantRefused(t, a, flow.FailureContextCancelled)
		k.want(t, "a b c / a")
		b.adm.Release()
		b.adm.Release()
		k.want(t, "a b c / a b")
		lost := errors.New("lost the database")
		k.refuse(t, "c", lost)
		if f := wantRefused(t, c, flow.FailureOrdering); !errors.Is(f, lost) || f.Key != "c" {
			t.Errorf("failure %+v", f)
		}
		d := admit(t, g, "d")
		d.cancel(testkit.ErrHandler)
		if f := wantRefused(t, d, flow.FailureContextCancelled); !errors.Is(f, testkit.ErrHandler) {
			t.Errorf("failure %v", f)
		}
	})
}

func TestOwnResolverThatPanicsInAdmitIsNoAdmissionForShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shutdown := flow.NewShutdownCoordinator(flow.ShutdownOptions{})
		g := flow.NewGate(resolverFunc(func(context.Context, string) (flow.ReleaseFunc, error) {
			panic("resolver")
		}), nil, shutdown)
		func() {
			defer func() {
				if recover() != "resolver" {
					t.Error("a direct caller's panic is the caller's")
				}
			}()
			_, _ = g.Admit(context.Background(), "a")
		}()
		if err := shutdown.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestOwnResolverWhoseReleasePanicsLeavesNoAdmissionForShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shutdown := flow.NewShutdownCoordinator(flow.ShutdownOptions{})
		pressure := flow.NewPressureController(flow.BackpressureOptions{Capacity: 1})
		g := flow.NewGate(resolverFunc(func(context.Context, string) (flow.ReleaseFunc, error) {
			return func() { panic("release") }, nil
		}), pressure, shutdown)
		for range 2 { // the slot is given back each time
			a, err := g.Admit(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			func() {
				defer func() {
					if recover() != "release" {
						t.Error("a direct caller's panic is the caller's")
					}
				}()
				a.Release()
			}()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := shutdown.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
}

// shutdownOf begins a Shutdown in the background.
func shutdownOf(t testing.TB, c interface{ Shutdown(context.Context) error }) *caller {
	t.Helper()
	return ask(t, func(ctx context.Context) (a flow.Admission, err error) { return a, c.Shutdown(ctx) })
}

func TestShutdownRefusesCallersWhoWaitUnlessItDrains(t *testing.T) {
	for name, drain := range map[string]bool{"without drain": false, "with drain": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := flow.NewShutdownCoordinator(flow.ShutdownOptions{DrainOnClose: drain})
				g := flow.NewGate(flow.NewKeyedFIFO(flow.OrderingOptions{}),
					flow.NewPressureController(flow.BackpressureOptions{Capacity: 1}), c)
				runs, turn, slot := admit(t, g, "a"), admit(t, g, "a"), admit(t, g, "b")
				down := shutdownOf(t, c)
				if f := wantRefused(t, admit(t, g, "c"), flow.FailureShutdown); f.Key != "c" {
					t.Errorf("failure %+v", f)
				}
				wantWaits(t, down)
				if drain {
					wantWaits(t, turn, slot)
					runs.adm.Release()
					wantIn(t, slot)
					slot.adm.Release()
					wantIn(t, turn)
					wantWaits(t, down) // an Admission counts as running until its Release
					turn.adm.Release()
				} else {
					wantRefused(t, turn, flow.FailureShutdown)
					wantRefused(t, slot, flow.FailureShutdown)
					wantWaits(t, down)
					runs.adm.Release()
				}
				wantIn(t, down)
			})
		})
	}
}

func TestAdmissionThatIsNotReleasedIsCutOff(t *testing.T) {
	for name, drain := range map[string]bool{"without drain": false, "with drain": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := flow.NewShutdownCoordinator(flow.ShutdownOptions{DrainOnClose: drain, GracePeriod: 5 * time.Second})
				g := flow.NewGate(flow.NewKeyedFIFO(flow.OrderingOptions{}), nil, c)
				runs, waits := admit(t, g, "a"), admit(t, g, "a")
				began := time.Now()
				err := c.Shutdown(context.Background())
				cut, ok := errors.AsType[*flow.ShutdownError](err)
				want := flow.ShutdownError{CutOff: 1, Key: "a", Err: flow.ErrGracePeriod}
				if drain {
					want.CutOff = 2
				}
				if !ok || *cut != want {
					t.Errorf("Shutdown() = %+v, want %+v", err, want)
				}
				if took := time.Since(began); took != 6*time.Second { // nobody can take it from its caller
					t.Errorf("Shutdown took %v", took)
				}
				wantRefused(t, waits, flow.FailureShutdown)
				runs.adm.Release()
			})
		})
	}
}

func TestCloseRefusesCallersWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := flow.NewShutdownCoordinator(flow.ShutdownOptions{DrainOnClose: true})
		g := flow.NewGate(flow.NewKeyedFIFO(flow.OrderingOptions{}), nil, c)
		runs, waits := admit(t, g, "a"), admit(t, g, "a")
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		wantRefused(t, waits, flow.FailureShutdown)
		wantRefused(t, admit(t, g, "b"), flow.FailureShutdown)
		down := shutdownOf(t, c)
		wantWaits(t, down)
		runs.adm.Release()
		wantIn(t, down)
	})
}

// A resolver's turn may come just as Close ends the wait for it.
func TestTurnThatComesAfterCloseLetsNobodyInAndHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := flow.NewShutdownCoordinator(flow.ShutdownOptions{})
		p := flow.NewPressureController(flow.BackpressureOptions{Capacity: 1})
		turn, released := make(chan struct{}), 0
		g := flow.NewGate(resolverFunc(func(context.Context, string) (flow.ReleaseFunc, error) {
			<-turn
			return func() { released++ }, nil
		}), p, c)
		a := admit(t, g, "a")
		_ = c.Close()
		wantWaits(t, a)
		close(turn)
		wantRefused(t, a, flow.FailureShutdown)
		if released != 1 {
			t.Errorf("the turn was released %d times, want once", released)
		}
		wantIn(t, ask(t, p.Acquire))
		if err := c.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// A worker waits for a second slot; meanwhile the first one's takes what it was to run.
func TestSlotThatComesTooLateIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := flow.NewPressureController(flow.BackpressureOptions{Capacity: 2})
		s := testkit.NewManualHandler()
		other := ask(t, p.Acquire)
		r := flow.NewReceiver(flow.NewGate(nil, p, nil), flow.NewEngine(s.Handle, flow.RetryOptions{}))
		c := receive(t, r, testkit.KeyOf, "1", "2")
		s.WantRunning(t, "1")
		s.Finish(t, "1")
		s.WantRunning(t, "2")
		other.adm.Release()
		wantIn(t, ask(t, p.Acquire)) // the stream needs one only
		c.End()
		s.FinishAll(t)
		if _, err := c.Result(t); err != nil {
			t.Error(err)
		}
	})
}

func TestCoordinatorEndsAllItsGates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := flow.NewShutdownCoordinator(flow.ShutdownOptions{})
		one, two := flow.NewGate(nil, nil, c), flow.NewGate(nil, nil, c)
		a, b := admit(t, one, "a"), admit(t, two, "b")
		down := shutdownOf(t, c)
		a.adm.Release()
		wantWaits(t, down)
		b.adm.Release()
		wantIn(t, down)
		wantRefused(t, admit(t, one, "a"), flow.FailureShutdown)
		wantRefused(t, admit(t, two, "a"), flow.FailureShutdown)
	})
}

func TestCoordinatorOfNothingShutsDownAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := flow.NewShutdownCoordinator(flow.ShutdownOptions{GracePeriod: time.Hour})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		for range 2 {
			if err := c.Shutdown(ctx); err != nil {
				t.Error(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}
