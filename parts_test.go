package flow_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

// turn is ask for a resolver. Its Admission is none; the turn ends with release.
type turn struct {
	*caller
	release flow.ReleaseFunc
}

func wait(t testing.TB, r flow.OrderingResolver, key string) *turn {
	t.Helper()
	w := &turn{}
	w.caller = ask(t, func(ctx context.Context) (a flow.Admission, err error) {
		w.release, err = r.Wait(ctx, key)
		return a, err
	})
	return w
}

func TestFIFOCalledDirectlyOrdersItsCallersByArrivalWhateverTheirKeys(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := flow.NewFIFO(flow.OrderingOptions{Mode: flow.OrderingNone}) // Mode is what the constructor says
		first, second, third := wait(t, r, "a"), wait(t, r, "b"), wait(t, r, "a")
		wantIn(t, first.caller)
		wantWaits(t, second.caller, third.caller)
		first.release()
		wantIn(t, second.caller)
		wantWaits(t, third.caller)
		first.release() // once more: not the second's turn
		wantWaits(t, third.caller)
		second.release()
		wantIn(t, third.caller)
		third.release()
		wantIn(t, wait(t, r, "c").caller)
	})
}

func TestKeyedFIFOCalledDirectlyOrdersTheCallersOfAKeyByArrival(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := flow.NewKeyedFIFO(flow.OrderingOptions{})
		a1, a2, a3, b1, empty1, empty2 := wait(t, r, "a"), wait(t, r, "a"), wait(t, r, "a"), wait(t, r, "b"), wait(t, r, ""), wait(t, r, "")
		wantIn(t, a1.caller, b1.caller, empty1.caller)
		wantWaits(t, a2.caller, a3.caller, empty2.caller)
		a1.release()
		wantIn(t, a2.caller)
		wantWaits(t, a3.caller, empty2.caller)
		a2.release()
		empty1.release()
		wantIn(t, a3.caller, empty2.caller)
	})
}

func TestKeyedFIFOCalledDirectlyMayLeaveTheEmptyKeyWithoutOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := flow.NewKeyedFIFO(flow.OrderingOptions{UnorderedEmptyKey: true})
		one, two := wait(t, r, ""), wait(t, r, "")
		wantIn(t, one.caller, two.caller)
		one.release()
		one.release()
		a1, a2 := wait(t, r, "a"), wait(t, r, "a")
		wantIn(t, a1.caller)
		wantWaits(t, a2.caller)
	})
}

func TestCancelledWaiterGivesUpItsPlaceInTheOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := flow.NewKeyedFIFO(flow.OrderingOptions{Capacity: 2})
		first, second, third := wait(t, r, "a"), wait(t, r, "a"), wait(t, r, "a")
		wantRefused(t, wait(t, r, "a").caller, flow.FailureOrdering)
		second.cancel(errHandler)
		if f := wantRefused(t, second.caller, flow.FailureContextCancelled); !errors.Is(f, errHandler) || f.Key != "a" {
			t.Errorf("failure %+v", f)
		}
		fourth := wait(t, r, "a") // there is room again
		wantWaits(t, third.caller, fourth.caller)
		first.release()
		wantIn(t, third.caller)
		wantWaits(t, fourth.caller)
	})
}

func TestPlaceAfterACancelledWaitersIsThatAfterTheOneBefore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := flow.NewFIFO(flow.OrderingOptions{})
		first, second, last := wait(t, r, ""), wait(t, r, ""), wait(t, r, "")
		last.cancel(nil)
		wantRefused(t, last.caller, flow.FailureContextCancelled)
		third := wait(t, r, "")
		first.release()
		wantIn(t, second.caller)
		wantWaits(t, third.caller)
		second.release()
		wantIn(t, third.caller)
	})
}

// The turn comes and the context ends at once: whichever the waiter sees, the turn is not lost.
func TestTurnIsNotLostWhenItsWaiterIsCancelledAsItComes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for range 200 {
			r := flow.NewFIFO(flow.OrderingOptions{})
			first, second, third := wait(t, r, ""), wait(t, r, ""), wait(t, r, "")
			go second.cancel(nil)
			go first.release()
			synctest.Wait()
			if second.err == nil {
				second.release()
			}
			wantIn(t, third.caller)
			third.release()
		}
	})
}

func TestResolversCloseRefusesAllWhoWaitAndAllWhoCome(t *testing.T) {
	for name, construct := range map[string]func(flow.OrderingOptions) flow.OrderingResolver{
		"FIFO": flow.NewFIFO, "keyed FIFO": flow.NewKeyedFIFO,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := construct(flow.OrderingOptions{})
				first, second, third := wait(t, r, "a"), wait(t, r, "a"), wait(t, r, "a")
				r.Close()
				r.Close()
				wantIn(t, first.caller) // a turn that has come stays
				wantRefused(t, second.caller, flow.FailureShutdown)
				wantRefused(t, third.caller, flow.FailureShutdown)
				first.release()
				wantRefused(t, wait(t, r, "a").caller, flow.FailureShutdown)
				wantRefused(t, wait(t, r, "b").caller, flow.FailureShutdown)
				g := flow.NewGate(r, nil, nil)
				wantRefused(t, admit(t, g, "a"), flow.FailureShutdown)
			})
		})
	}
}

func TestResolverThatIsClosedRefusesAStreamsLaterMessages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		r := flow.NewKeyedFIFO(flow.OrderingOptions{})
		c := receive(t, flow.NewReceiver(flow.NewGate(r, nil, nil), flow.NewEngine(s.handle, flow.RetryOptions{})), keyOf, "a1")
		r.Close()
		wantNow(t, s, "a1")
		c.Send("b1")
		sum, err := c.result(t)
		if f := failureOf(t, err, flow.FailureOrdering); f.Seq != 2 || sum.Rejected != 1 {
			t.Errorf("failure %+v, %+v", f, sum)
		}
	})
}

func TestAcquireServesWaitingCallersInOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := flow.NewPressureController(flow.BackpressureOptions{Capacity: 2})
		a, b, c, d := ask(t, p.Acquire), ask(t, p.Acquire), ask(t, p.Acquire), ask(t, p.Acquire)
		wantIn(t, a, b)
		wantWaits(t, c, d)
		b.adm.Release()
		b.adm.Release() // harmless: not a second slot
		wantIn(t, c)
		wantWaits(t, d)
		a.adm.Release()
		wantIn(t, d)
	})
}

func TestAcquireDoesAsItsPolicySays(t *testing.T) {
	for name, c := range map[string]struct {
		opts          flow.BackpressureOptions
		first, second string // what a caller meets at a Capacity of 1 with one in flight, and the one after
	}{
		"unlimited":      {flow.BackpressureOptions{}, "in", "in"},
		"queue":          {flow.BackpressureOptions{Capacity: 1}, "waits", "waits"},
		"queue capacity": {flow.BackpressureOptions{Capacity: 1, QueueCapacity: 1}, "waits", "refused"},
		"hard reject":    {flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureHardReject}, "refused", "refused"},
		"soft allow":     {flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureSoftAllow}, "in", "in"},
		"signal":         {flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureSoftAllowWithSignal}, "pressured", "pressured"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := flow.NewPressureController(c.opts)
				held := ask(t, p.Acquire)
				wantIn(t, held)
				if held.adm.Pressured() {
					t.Error("the first is pressured")
				}
				for _, want := range []string{c.first, c.second} {
					a, got := ask(t, p.Acquire), "in"
					switch {
					case a.waits():
						got = "waits"
					case a.err != nil:
						wantRefused(t, a, flow.FailureBackpressure)
						got = "refused"
					case a.adm.Pressured():
						got = "pressured"
					}
					if got != want {
						t.Errorf("one more: %s, want %s", got, want)
					}
				}
			})
		})
	}
}

func TestAcquireReleasedIsNoPressureAnyMore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := flow.NewPressureController(flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureSoftAllowWithSignal})
		for range 3 {
			a, b := ask(t, p.Acquire), ask(t, p.Acquire)
			if a.adm.Pressured() || !b.adm.Pressured() {
				t.Errorf("pressured: %v and %v, want only the second", a.adm.Pressured(), b.adm.Pressured())
			}
			a.adm.Release()
			a.adm.Release()
			b.adm.Release()
		}
	})
}

func TestCancelledAcquireGivesUpItsPlace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := flow.NewPressureController(flow.BackpressureOptions{Capacity: 1, QueueCapacity: 1})
		a, b := ask(t, p.Acquire), ask(t, p.Acquire)
		b.cancel(errHandler)
		if f := wantRefused(t, b, flow.FailureContextCancelled); !errors.Is(f, errHandler) {
			t.Errorf("failure %v", f)
		}
		c := ask(t, p.Acquire)
		wantWaits(t, c)
		a.adm.Release()
		wantIn(t, c)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		time.Sleep(time.Second)
		_, err := p.Acquire(ctx)
		failureOf(t, err, flow.FailureContextCancelled)
	})
}
