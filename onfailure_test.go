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

// judge is an OnFailure that keeps what it was asked, and says what the test wants.
type judge struct {
	action flow.FailureAction
	wait   time.Duration

	mu    sync.Mutex
	asked []*flow.Failure
}

func (j *judge) decide(_ context.Context, f *flow.Failure) flow.FailureAction {
	j.mu.Lock()
	j.asked = append(j.asked, f)
	j.mu.Unlock()
	time.Sleep(j.wait)
	return j.action
}

// heard is what it was asked about, in order: value, kind.
func (j *judge) heard() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var words []string
	for _, f := range j.asked {
		words = append(words, f.Value.(string)+":"+strings.TrimPrefix(f.Kind.String(), "Failure"))
	}
	return strings.Join(words, " ")
}

// at is the i-th that it was asked about.
func (j *judge) at(i int) *flow.Failure {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.asked[i]
}

func wantHeard(t testing.TB, j *judge, want string) {
	t.Helper()
	if got := j.heard(); got != want {
		t.Errorf("OnFailure was asked about %q, want %q", got, want)
	}
}

func TestWithoutOnFailureTheFirstFailureEndsTheStream(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{}), "a1", "a2")
		s.fail(t, "a1", errHandler)
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureHandlerError)
		if sum.Failed != 1 || sum.Dropped != 1 || sum.Committed != 0 {
			t.Errorf("summary is %+v", sum)
		}
	})
}

func TestOnFailureDecidesWhetherTheStreamGoesOn(t *testing.T) {
	for _, c := range []struct {
		action flow.FailureAction
		skips  bool
	}{
		{flow.FailStream, false}, {flow.SkipMessage, true}, {flow.SkipKey, true},
		{flow.FailureAction(3), false}, {flow.FailureAction(-1), false},
	} {
		bubble(t, func(t *testing.T) {
			s, j := newStage(), &judge{action: c.action}
			r := start(t, mustNew(t, s.handle, flow.Options{OnFailure: j.decide}), "a1", "b1", "c1")
			r.End()
			s.finish(t, "a1")
			s.fail(t, "b1", errHandler)
			s.finishAll(t)
			sum, err := r.result(t)
			wantHeard(t, j, "b1:HandlerError")
			conserved(t, sum)
			if c.skips && (err != nil || sum.Succeeded != 2 || sum.Failed != 1 || sum.Committed != 3) {
				t.Errorf("%v: Run() = %+v, %v, want all settled", c.action, sum, err)
			}
			if !c.skips && (!errors.Is(err, errHandler) || sum.Committed != 1 || !slices.Equal(sum.Unsettled, []uint64{2, 3})) {
				t.Errorf("%v: Run() = %+v, %v, want the failure", c.action, sum, err)
			}
		})
	}
}

func TestOnFailureIsToldWhatFailed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := &judge{action: flow.SkipMessage}
		f := mustNew(t, func(context.Context, flow.Message[string]) error { return errHandler },
			flow.Options{OnFailure: j.decide, Retry: flow.RetryOptions{MaxAttempts: 3}})
		if _, err := f.Run(t.Context(), given("a1", "b7")); err != nil {
			t.Fatal(err)
		}
		wantHeard(t, j, "a1:HandlerError b7:HandlerError") // once each, after all attempts
		if got := j.at(1); got.Seq != 2 || got.Key != "b" || got.Attempts != 3 || got.Err != errHandler {
			t.Errorf("failure is %+v", got)
		}
	})
}

func TestOnFailureRunsInTheMessagesTurnHoldingItsPlaceAndItsSlot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, j := newStage(), &judge{action: flow.SkipMessage, wait: time.Minute}
		f := mustNew(t, s.handle, flow.Options{
			OnFailure: j.decide, Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 2},
		})
		start(t, f, "a1", "b1", "a2", "c1")
		wantNow(t, s, "a1 b1")
		s.fail(t, "a1", errHandler)
		wantNow(t, s, "b1") // neither a2 nor c1
		if st := f.Stats(); st.InFlight != 2 {
			t.Errorf("%d in flight, want 2: OnFailure holds the slot", st.InFlight)
		}
		s.finish(t, "b1")
		wantNow(t, s, "c1") // the slot of b1
		pass(time.Minute)
		wantNow(t, s, "a2 c1")
		wantHeard(t, j, "a1:HandlerError")
	})
}

func TestDifferentKeysCallOnFailureConcurrently(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := &judge{action: flow.SkipMessage, wait: time.Minute}
		f := mustNew(t, func(context.Context, flow.Message[string]) error { return errHandler },
			flow.Options{OnFailure: j.decide, Ordering: keyed})
		began := time.Now()
		if _, err := f.Run(t.Context(), given("a1", "b1", "c1", "a2")); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != 2*time.Minute {
			t.Errorf("took %v, want 2m: three keys at once, one of them twice", d)
		}
	})
}

func TestOnFailureOfARefusalRunsAtOnceOnTheReceivingSide(t *testing.T) {
	for name, c := range map[string]struct {
		o    flow.Options
		kind string
	}{
		"HardReject": {flow.Options{Ordering: keyed, Backpressure: flow.BackpressureOptions{
			Policy: flow.BackpressureHardReject, Capacity: 1}}, "Backpressure"},
		"QueueCapacity": {flow.Options{Ordering: keyed, Backpressure: flow.BackpressureOptions{
			Capacity: 1, QueueCapacity: 1}}, "Backpressure"},
		"Ordering.Capacity": {flow.Options{Ordering: flow.OrderingOptions{Capacity: 1}}, "Ordering"},
		"KeyCapacity":       {flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, KeyCapacity: 1}}, "Ordering"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s, j := newStage(), &judge{action: flow.SkipMessage, wait: time.Minute}
				c.o.OnFailure = j.decide
				values := []string{"a1", "a2", "a3", "b4"}
				if c.kind == "Backpressure" {
					values = []string{"a1", "b2", "c3", "d4"}
				}
				r := start(t, mustNew(t, s.handle, c.o), values...)
				first := 3
				if name == "HardReject" {
					first = 2
				}
				wantRead(t, r, first) // it decides, so nothing is read, though a1 runs
				wantHeard(t, j, values[first-1]+":"+c.kind)
				if f := j.at(0); f.Attempts != 0 {
					t.Errorf("failure is %+v", f)
				}
				pass(time.Minute)
				wantRead(t, r, first+1)
				wantNow(t, s, map[bool]string{true: "a1 b4", false: "a1"}[name == "KeyCapacity"])
				r.End()
				pass(time.Hour)
				s.finishAll(t)
				sum, err := r.result(t)
				if err != nil || sum.Committed != 4 || sum.Rejected == 0 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
				conserved(t, sum)
			})
		})
	}
}

func TestRefusalThatIsNotSkippedEndsTheStream(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{Ordering: keyed, Backpressure: flow.BackpressureOptions{
			Policy: flow.BackpressureHardReject, Capacity: 1}}), "a1")
		wantNow(t, s, "a1")
		c.Send("b1")
		sum, err := c.result(t)
		if f := failureOf(t, err, flow.FailureBackpressure); f.Seq != 2 || f.Key != "b" || f.Attempts != 0 || f.Value != "b1" {
			t.Errorf("failure is %+v", f)
		}
		if sum.Rejected != 1 || sum.Failed != 1 {
			t.Errorf("summary is %+v", sum)
		}
	})
}

func TestOnFailureIsNeverCalledForDroppedMessagesNorAfterTheStreamsEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, j := newStage(), &judge{action: flow.FailStream}
		c := start(t, mustNew(t, func(ctx context.Context, m flow.Message[string]) error {
			if err := s.handle(ctx, m); err != nil {
				return errors.New("not a context error")
			}
			return nil
		}, flow.Options{OnFailure: j.decide, Ordering: keyed}), "a1", "b1", "a2")
		s.fail(t, "a1", errHandler) // b1 is cancelled and fails after the end, a2 is dropped
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureHandlerError)
		if sum.Failed != 2 || sum.Dropped != 1 {
			t.Errorf("summary is %+v", sum)
		}
		wantHeard(t, j, "a1:HandlerError")
	})
}

func TestContextAndShutdownFailuresNeverComeToOnFailure(t *testing.T) {
	for name, end := range map[string]func(f *flow.Flow[string], c *call){
		"cancel":   func(_ *flow.Flow[string], c *call) { c.cancel(nil); c.End() },
		"close":    func(f *flow.Flow[string], _ *call) { _ = f.Close() },
		"shutdown": func(f *flow.Flow[string], _ *call) { go f.Shutdown(context.Background()) },
		"recv":     func(_ *flow.Flow[string], c *call) { c.Fail(context.Canceled) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s, j := newStage(), &judge{action: flow.SkipMessage}
				f := mustNew(t, s.handle, flow.Options{
					OnFailure: j.decide, Ordering: keyed, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
				})
				c := start(t, f, "a1", "b1", "a2")
				s.fail(t, "b1", errHandler) // it waits for its next try
				end(f, c)
				s.finishAll(t)
				sum, err := c.result(t)
				if err == nil || len(sum.Unsettled) == 0 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
				conserved(t, sum)
				wantHeard(t, j, "")
			})
		})
	}
}

func TestTerminalKindEndsItsStreamWhateverOnFailureSaysButIsSettled(t *testing.T) {
	for _, c := range []struct {
		action  flow.FailureAction
		settled bool
	}{{flow.FailStream, false}, {flow.SkipMessage, true}, {flow.SkipKey, true}} {
		bubble(t, func(t *testing.T) {
			s, j := newStage(), &judge{action: c.action}
			r := start(t, mustNew(t, s.handle, flow.Options{OnFailure: j.decide}), "a1", "a2", "b1")
			s.finish(t, "a1")
			s.end(t, "a2", func() error { panic("poison") })
			sum, err := r.result(t)
			failureOf(t, err, flow.FailureInternal)
			wantHeard(t, j, "a2:Internal")
			conserved(t, sum)
			want := map[bool]uint64{true: 2, false: 1}[c.settled]
			if sum.Failed != 1 || sum.Dropped != 1 || sum.Committed != want {
				t.Errorf("%v: summary is %+v, want %d committed", c.action, sum, want)
			}
		})
	}
}
