package flow_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
)

// refusals collects what comes to OnFailure, and skips it.
type refusals struct {
	mu   sync.Mutex
	list []*flow.Failure
}

func (r *refusals) skip(_ context.Context, f *flow.Failure) flow.FailureAction {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, f)
	return flow.SkipMessage
}

// want compares the values refused so far, which must all be so with kind.
func (r *refusals) want(t testing.TB, kind flow.FailureKind, values string) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	var got []string
	for _, f := range r.list {
		failureOf(t, f, kind)
		got = append(got, f.Value.(string))
	}
	if s := strings.Join(got, " "); s != values {
		t.Fatalf("refused: %q, want %q", s, values)
	}
}

func TestCapacityCountsExecutionsOverAllStreams(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: unordered, Backpressure: flow.BackpressureOptions{Capacity: 2}})
		first := start(t, f, "a1")
		second := start(t, f, "b1", "b2")
		third := start(t, f, "c1")
		wantNow(t, s, "a1 b1")
		if st := f.Stats(); st.InFlight != 2 || st.Waiting != 2 || st.Streams != 3 {
			t.Errorf("Stats() = %+v", st)
		}
		s.finish(t, "a1")
		if now := s.now(); now != "b1 b2" && now != "b1 c1" {
			t.Errorf("running: %q", now)
		}
		for _, c := range []*call{first, second, third} {
			c.End()
		}
		s.finishAll(t)
	})
}

func TestWaitingForATurnHoldsNoSlot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 2}})
		start(t, f, "a1", "a2", "a3", "b1").End()
		wantNow(t, s, "a1 b1")
		s.finishAll(t)
	})
}

func TestWaitingForTheNextTryHoldsNoSlot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
			Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
		})
		start(t, f, "a1", "b1").End()
		s.fail(t, "a1", errHandler)
		wantNow(t, s, "b1")
		time.Sleep(5 * time.Second)
		wantNow(t, s, "b1") // a1 is due, and waits for its slot
		s.finish(t, "b1")
		wantNow(t, s, "a1")
		s.finishAll(t)
	})
}

func TestQueueWithoutQueueCapacityNeverRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := newStage(), &refusals{}
		f := mustNew(t, s.handle, flow.Options{
			Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1}, MaxPending: -1, OnFailure: r.skip,
		})
		c := start(t, f, strangers(2000)...)
		if st := f.Stats(); st.InFlight != 1 || st.Waiting != 1999 {
			t.Errorf("Stats() = %+v", st)
		}
		c.End()
		s.finishAll(t)
		if sum, err := c.result(t); err != nil || sum.Succeeded != 2000 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
		r.want(t, flow.FailureBackpressure, "")
	})
}

func TestQueueCapacityIsCountedOverTheFlowAndRefusesOnReceipt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := newStage(), &refusals{}
		f := mustNew(t, s.handle, flow.Options{
			Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1, QueueCapacity: 2}, OnFailure: r.skip,
		})
		first := start(t, f, "a1", "b1", "a2", "a3") // b1 lacks a slot; a2 and a3 lack their turn
		second := start(t, f, "c1")
		r.want(t, flow.FailureBackpressure, "")
		second.Send("d1", "c2") // c2's turn has not come: it is not one of those that lack a slot
		r.want(t, flow.FailureBackpressure, "d1")
		first.Send("e1")
		r.want(t, flow.FailureBackpressure, "d1 e1")
		wantNow(t, s, "a1")
		s.finish(t, "a1")
		first.Send("f1") // b1 or c1 runs, but a2 has come to its turn: never refused, and counted
		r.want(t, flow.FailureBackpressure, "d1 e1 f1")
		for s.now() != "" && !strings.Contains(s.history(), "a2") {
			s.finish(t, s.now())
		}
		first.End()
		second.End()
		s.finishAll(t)
		sum, err := first.result(t)
		if err != nil || sum.Succeeded != 4 || sum.Rejected != 2 || sum.Committed != 6 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
		conserved(t, sum)
		if sum, err := second.result(t); err != nil || sum.Succeeded != 2 || sum.Rejected != 1 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestPlaceInTheQueueIsFreeAgainWhenItsMessageRunsOrItsStreamEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := newStage(), &refusals{}
		f := mustNew(t, s.handle, flow.Options{
			Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1, QueueCapacity: 1}, OnFailure: r.skip,
		})
		c := start(t, f, "a1")
		for range 3 {
			other := start(t, f, "x1", "y1")
			synctest.Wait()
			other.cancel(nil)
			time.Sleep(time.Second)
			if sum, _ := other.result(t); sum.Dropped != 1 || sum.Rejected != 1 {
				t.Fatalf("Run() = %+v, want x1 to wait and y1 to be refused", sum)
			}
		}
		c.Send("b1")
		synctest.Wait()
		s.finish(t, "a1")
		c.Send("c1")
		synctest.Wait()
		wantNow(t, s, "b1")
		c.End()
		s.finishAll(t)
		if sum, err := c.result(t); err != nil || sum.Succeeded != 3 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestRetriesAreNeverRefused(t *testing.T) {
	for name, o := range map[string]flow.BackpressureOptions{
		"queue capacity": {Capacity: 1, QueueCapacity: 1},
		"hard reject":    {Policy: flow.BackpressureHardReject, Capacity: 1},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s, r := newStage(), &refusals{}
				f := mustNew(t, s.handle, flow.Options{
					Ordering: keyed, Backpressure: o, OnFailure: r.skip,
					Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
				})
				c := start(t, f, "a1")
				s.fail(t, "a1", errHandler)
				c.Send("b1") // takes the slot
				wantNow(t, s, "b1")
				waits := o.QueueCapacity > 0
				if waits {
					c.Send("c1") // takes the queue's one place
				}
				time.Sleep(5 * time.Second)
				wantNow(t, s, "b1") // a1 is due, and waits
				c.Send("d1")        // what is received now is refused
				r.want(t, flow.FailureBackpressure, "d1")
				s.finish(t, "b1")
				c.End()
				s.finishAll(t)
				sum, err := c.result(t)
				if want := uint64(2 + o.QueueCapacity); err != nil || sum.Succeeded != want || sum.Retried != 1 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
				r.want(t, flow.FailureBackpressure, "d1")
			})
		})
	}
}

func TestHardRejectRefusesOnReceipt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := newStage(), &refusals{}
		f := mustNew(t, s.handle, flow.Options{
			Ordering: keyed, OnFailure: r.skip,
			Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 2},
		})
		first := start(t, f, "a1", "a2") // a2 is accepted: there was a slot when it came
		second := start(t, f, "b1")
		wantNow(t, s, "a1 b1")
		r.want(t, flow.FailureBackpressure, "")
		first.Send("a3", "c1") // a3 is refused although its turn is far away
		second.Send("d1")
		synctest.Wait()
		slices.SortFunc(r.list, func(a, b *flow.Failure) int { return strings.Compare(a.Value.(string), b.Value.(string)) })
		r.want(t, flow.FailureBackpressure, "a3 c1 d1")
		s.finish(t, "a1")
		wantNow(t, s, "a2 b1")
		s.finish(t, "b1")
		first.Send("e1")
		wantNow(t, s, "a2 e1")
		first.End()
		second.End()
		s.finishAll(t)
		if sum, err := first.result(t); err != nil || sum.Succeeded != 3 || sum.Rejected != 2 || sum.Committed != 5 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestRefusalForPressureFailsTheStreamByDefault(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Ordering:     keyed,
			Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1},
		})
		other := start(t, f, "a1")
		c := start(t, f, "b1", "c1")
		sum, err := c.result(t)
		if fail := failureOf(t, err, flow.FailureBackpressure); fail.Seq != 1 || status.Code(err) != codes.ResourceExhausted {
			t.Errorf("failure %+v, code %v", fail, status.Code(err))
		}
		if sum.Received != 1 || sum.Rejected != 1 || len(sum.Unsettled) != 1 {
			t.Errorf("Run() = %+v", sum)
		}
		wantNow(t, s, "a1")
		other.End()
		s.finishAll(t)
	})
}
