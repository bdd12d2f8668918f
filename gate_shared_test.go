package flow_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"example.com/flow"
)

func TestGateSharesOrderAndCapacityBetweenItsReceiverAndItsCallers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := flow.NewGate(flow.NewKeyedFIFO(flow.OrderingOptions{Scope: flow.ScopeFlow}),
			flow.NewPressureController(flow.BackpressureOptions{Capacity: 2}), nil)
		s := newStage()
		c := receive(t, flow.NewReceiver(g, flow.NewEngine(s.handle, flow.RetryOptions{})), keyOf, "a1")
		a2 := admit(t, g, "a")
		c.Send("a3", "b1")
		wantNow(t, s, "a1 b1")
		wantWaits(t, a2)
		s.finish(t, "a1")
		wantIn(t, a2)
		c.Send("c1")
		wantNow(t, s, "b1") // capacity is b1's and the caller's
		a2.adm.Release()
		if now := s.now(); now != "a3 b1" && now != "b1 c1" {
			t.Errorf("running: %q", now)
		}
		c.End()
		s.finishAll(t)
		if sum, err := c.result(t); err != nil || sum.Succeeded != 4 {
			t.Errorf("Receive() = %+v, %v", sum, err)
		}
	})
}

func TestGateHandsACallersTurnToTheStreamsMessageBehindIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := flow.NewGate(flow.NewKeyedFIFO(flow.OrderingOptions{Scope: flow.ScopeFlow}), nil, nil)
		first := admit(t, g, "a")
		wantIn(t, first)
		s := newStage()
		c := receive(t, flow.NewReceiver(g, flow.NewEngine(s.handle, flow.RetryOptions{})), keyOf, "a1", "b1")
		wantNow(t, s, "b1")
		first.adm.Release() // nothing else wakes the stream
		wantNow(t, s, "a1 b1")
		c.End()
		s.finishAll(t)
		if _, err := c.result(t); err != nil {
			t.Error(err)
		}
	})
}

func TestAdmitAsksAnOwnResolver(t *testing.T) {
	bubble(t, func(t *testing.T) {
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
		d.cancel(errHandler)
		if f := wantRefused(t, d, flow.FailureContextCancelled); !errors.Is(f, errHandler) {
			t.Errorf("failure %v", f)
		}
	})
}

func TestOwnResolverThatPanicsInAdmitIsNoAdmissionForShutdown(t *testing.T) {
	bubble(t, func(t *testing.T) {
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

// shutdownOf begins a Shutdown in the background.
func shutdownOf(t testing.TB, c interface{ Shutdown(context.Context) error }) *caller {
	t.Helper()
	return ask(t, func(ctx context.Context) (a flow.Admission, err error) { return a, c.Shutdown(ctx) })
}

func TestShutdownRefusesCallersWhoWaitUnlessItDrains(t *testing.T) {
	for name, drain := range map[string]bool{"without drain": false, "with drain": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
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
			bubble(t, func(t *testing.T) {
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
	bubble(t, func(t *testing.T) {
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
	bubble(t, func(t *testing.T) {
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
	bubble(t, func(t *testing.T) {
		p := flow.NewPressureController(flow.BackpressureOptions{Capacity: 2})
		s := newStage()
		other := ask(t, p.Acquire)
		r := flow.NewReceiver(flow.NewGate(nil, p, nil), flow.NewEngine(s.handle, flow.RetryOptions{}))
		c := receive(t, r, keyOf, "1", "2")
		wantNow(t, s, "1")
		s.finish(t, "1")
		wantNow(t, s, "2")
		other.adm.Release()
		wantIn(t, ask(t, p.Acquire)) // the stream needs one only
		c.End()
		s.finishAll(t)
		if _, err := c.result(t); err != nil {
			t.Error(err)
		}
	})
}

func TestCoordinatorEndsAllItsGates(t *testing.T) {
	bubble(t, func(t *testing.T) {
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
	bubble(t, func(t *testing.T) {
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
