package flow_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"example.com/flow"
)

var flowKeyed = flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow}

func TestScopeFlowOrdersAKeyAcrossStreamsByReceipt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: flowKeyed})
		first := start(t, f, "a1", "b1")
		second := start(t, f, "a2", "c1")
		first.Send("a3")
		wantNow(t, s, "a1 b1 c1") // what is not of the same key runs side by side
		second.Send("a4", "b2")
		wantNow(t, s, "a1 b1 c1")
		for _, v := range []string{"a1", "a2", "a3", "a4"} {
			s.finish(t, v)
		}
		wantNow(t, s, "b1 c1")
		s.finish(t, "b1")
		wantNow(t, s, "b2 c1")
		first.End()
		second.End()
		s.finishAll(t)
		for _, c := range []*call{first, second} {
			if sum, err := c.result(t); err != nil || sum.Succeeded < 3 {
				t.Errorf("Run() = %+v, %v", sum, err)
			}
		}
	})
}

func TestScopeStreamOrdersNoStreamByAnother(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed})
		start(t, f, "a1", "a2").End()
		start(t, f, "a3", "a4").End()
		wantNow(t, s, "a1 a3")
		s.finish(t, "a3")
		wantNow(t, s, "a1 a4")
		s.finishAll(t)
	})
}

func TestScopeFlowWithFIFORunsOneMessageOfTheFlowAtATime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: flow.OrderingOptions{Scope: flow.ScopeFlow}})
		start(t, f, "a1", "b1").End()
		start(t, f, "x1").End()
		start(t, f, "y1").End()
		s.finishAll(t)
		if got, want := s.history(), "a1 b1 x1 y1"; got != want {
			t.Errorf("ran %q, want %q", got, want)
		}
	})
}

func TestReconnectedDeviceStaysInOrderWhileItsOldStreamDrains(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: flowKeyed})
		old := start(t, f, "device1", "device2")
		old.End()
		again := start(t, f, "device3")
		wantNow(t, s, "device1")
		s.finish(t, "device1", "device2")
		if _, err := old.result(t); err != nil {
			t.Error(err)
		}
		wantNow(t, s, "device3")
		again.End()
		s.finishAll(t)
	})
}

func TestScopeFlowOrderSurvivesTheEndOfAStream(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *call){
		"cancelled":     func(_ *testing.T, c *call) { c.cancel(nil) },
		"source failed": func(_ *testing.T, c *call) { c.Fail(errors.New("source broke")) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{Ordering: flowKeyed})
				other := start(t, f, "z1")
				first := start(t, f, "a1")
				second := start(t, f, "a2")
				first.Send("a3", "z2", "b1")
				wantNow(t, s, "a1 b1 z1")
				second.Send("a4", "b2", "z3")
				wantNow(t, s, "a1 b1 z1")
				other.Send("a5")
				wantNow(t, s, "a1 b1 z1")
				end(t, first)
				time.Sleep(time.Second)   // a cancelled stream gives its recv a moment
				wantNow(t, s, "a2 b2 z1") // a3 and z2 were taken out from between the others
				s.finish(t, "a2")
				wantNow(t, s, "a4 b2 z1")
				s.finish(t, "a4", "z1")
				wantNow(t, s, "a5 b2 z3")
				second.End()
				other.End()
				s.finishAll(t)
				sum, err := first.result(t)
				if err == nil || sum.Received != 4 || sum.Dropped != 2 || sum.Failed != 2 {
					t.Errorf("the stream that ended: %+v, %v", sum, err)
				}
				conserved(t, sum)
				for _, c := range []*call{second, other} {
					if sum, err := c.result(t); err != nil || sum.Committed != sum.Received {
						t.Errorf("a stream that went on: %+v, %v", sum, err)
					}
				}
			})
		})
	}
}

func TestScopeFlowWaitsForAHandlerOfAStreamThatEnded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var runs []string
		f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
			runs = append(runs, m.Value+" begins")
			time.Sleep(10 * time.Second) // whatever its context says
			runs = append(runs, m.Value+" ends")
			return nil
		}, flow.Options{Ordering: flowKeyed})
		first := start(t, f, "a1")
		second := start(t, f, "a2")
		second.End()
		first.cancel(nil)
		time.Sleep(30 * time.Second)
		if _, err := second.result(t); err != nil {
			t.Error(err)
		}
		want := []string{"a1 begins", "a1 ends", "a2 begins", "a2 ends"}
		for i := range want {
			if i >= len(runs) || runs[i] != want[i] {
				t.Fatalf("%q, want %q", runs, want)
			}
		}
	})
}

func TestRetryKeepsItsPlaceAcrossStreams(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Ordering: flowKeyed, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
		})
		first, second := start(t, f, "a1"), start(t, f, "a2")
		s.fail(t, "a1", errHandler)
		wantNow(t, s, "")
		time.Sleep(time.Second)
		wantNow(t, s, "a1")
		s.fail(t, "a1", errHandler)
		time.Sleep(time.Second)
		wantNow(t, s, "a2")
		second.End()
		s.finishAll(t)
		_, err := first.result(t)
		failureOf(t, err, flow.FailureHandlerError)
		if _, err := second.result(t); err != nil {
			t.Errorf("another stream's failure is not the second's: %v", err)
		}
	})
}

func TestScopeFlowLeavesNothingBehindWhenAStreamEndsWithMessagesOfAKeyWaiting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: flow.OrderingOptions{
			Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow, Capacity: 3, KeyCapacity: 3,
		}})
		for range 5 { // places that stayed counted would be used up in the second round
			c := start(t, f, "a1", "a2", "a3", "a4")
			wantNow(t, s, "a1")
			c.cancel(nil)
			time.Sleep(time.Second)
			sum, err := c.result(t)
			failureOf(t, err, flow.FailureContextCancelled)
			if sum.Failed != 1 || sum.Dropped != 3 || sum.Rejected != 0 {
				t.Fatalf("Run() = %+v", sum)
			}
		}
		if st := f.Stats(); st.ActiveKeys != 0 || st.Waiting != 0 || st.InFlight != 0 || st.Streams != 0 {
			t.Errorf("Stats() = %+v", st)
		}
	})
}
