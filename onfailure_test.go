package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{}), "a1", "a2")
		s.Fail(t, "a1", testkit.ErrHandler)
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureHandlerError)
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
		synctest.Test(t, func(t *testing.T) {
			s, j := testkit.NewManualHandler(), &judge{action: c.action}
			r := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{OnFailure: j.decide}), "a1", "b1", "c1")
			r.End()
			s.Finish(t, "a1")
			s.Fail(t, "b1", testkit.ErrHandler)
			s.FinishAll(t)
			sum, err := r.Result(t)
			wantHeard(t, j, "b1:HandlerError")
			testkit.CheckConserved(t, sum)
			if c.skips && (err != nil || sum.Succeeded != 2 || sum.Failed != 1 || sum.Committed != 3) {
				t.Errorf("%v: Run() = %+v, %v, want all settled", c.action, sum, err)
			}
			if !c.skips && (!errors.Is(err, testkit.ErrHandler) || sum.Committed != 1 || !slices.Equal(sum.Unsettled, []uint64{2, 3})) {
				t.Errorf("%v: Run() = %+v, %v, want the failure", c.action, sum, err)
			}
		})
	}
}

func TestOnFailureIsToldWhatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &judge{action: flow.SkipMessage}
		f := testkit.New(t, func(context.Context, flow.Message[string]) error { return testkit.ErrHandler },
			flow.Options{OnFailure: j.decide, Retry: flow.RetryOptions{MaxAttempts: 3}})
		if _, err := f.Run(t.Context(), testkit.Given("a1", "b7")); err != nil {
			t.Fatal(err)
		}
		wantHeard(t, j, "a1:HandlerError b7:HandlerError") // once each, after all attempts
		if got := j.at(1); got.Seq != 2 || got.Key != "b" || got.Attempts != 3 || got.Err != testkit.ErrHandler {
			t.Errorf("failure is %+v", got)
		}
	})
}

func TestOnFailureRunsInTheMessagesTurnHoldingItsPlaceAndItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, j := testkit.NewManualHandler(), &judge{action: flow.SkipMessage, wait: time.Minute}
		f := testkit.New(t, s.Handle, flow.Options{
			OnFailure: j.decide, Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 2},
		})
		testkit.Start(t, f, "a1", "b1", "a2", "c1")
		s.WantRunning(t, "a1 b1")
		s.Fail(t, "a1", testkit.ErrHandler)
		s.WantRunning(t, "b1") // neither a2 nor c1
		if st := f.Stats(); st.InFlight != 2 {
			t.Errorf("%d in flight, want 2: OnFailure holds the slot", st.InFlight)
		}
		s.Finish(t, "b1")
		s.WantRunning(t, "c1") // the slot of b1
		testkit.Advance(time.Minute)
		s.WantRunning(t, "a2 c1")
		wantHeard(t, j, "a1:HandlerError")
	})
}

func TestDifferentKeysCallOnFailureConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &judge{action: flow.SkipMessage, wait: time.Minute}
		f := testkit.New(t, func(context.Context, flow.Message[string]) error { return testkit.ErrHandler },
			flow.Options{OnFailure: j.decide, Ordering: testkit.Keyed})
		began := time.Now()
		if _, err := f.Run(t.Context(), testkit.Given("a1", "b1", "c1", "a2")); err != nil {
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
		"HardReject": {flow.Options{Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{
			Policy: flow.BackpressureHardReject, Capacity: 1}}, "Backpressure"},
		"QueueCapacity": {flow.Options{Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{
			Capacity: 1, QueueCapacity: 1}}, "Backpressure"},
		"Ordering.Capacity": {flow.Options{Ordering: flow.OrderingOptions{Capacity: 1}}, "Ordering"},
		"KeyCapacity":       {flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, KeyCapacity: 1}}, "Ordering"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, j := testkit.NewManualHandler(), &judge{action: flow.SkipMessage, wait: time.Minute}
				c.o.OnFailure = j.decide
				values := []string{"a1", "a2", "a3", "b4"}
				if c.kind == "Backpressure" {
					values = []string{"a1", "b2", "c3", "d4"}
				}
				r := testkit.Start(t, testkit.New(t, s.Handle, c.o), values...)
				first := 3
				if name == "HardReject" {
					first = 2
				}
				wantRead(t, r, first) // it decides, so nothing is read, though a1 runs
				wantHeard(t, j, values[first-1]+":"+c.kind)
				if f := j.at(0); f.Attempts != 0 {
					t.Errorf("failure is %+v", f)
				}
				testkit.Advance(time.Minute)
				wantRead(t, r, first+1)
				s.WantRunning(t, map[bool]string{true: "a1 b4", false: "a1"}[name == "KeyCapacity"])
				r.End()
				testkit.Advance(time.Hour)
				s.FinishAll(t)
				sum, err := r.Result(t)
				if err != nil || sum.Committed != 4 || sum.Rejected == 0 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
				testkit.CheckConserved(t, sum)
			})
		})
	}
}

func TestRefusalThatIsNotSkippedEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{
			Policy: flow.BackpressureHardReject, Capacity: 1}}), "a1")
		s.WantRunning(t, "a1")
		c.Send("b1")
		sum, err := c.Result(t)
		if f := testkit.FailureOf(t, err, flow.FailureBackpressure); f.Seq != 2 || f.Key != "b" || f.Attempts != 0 || f.Value != "b1" {
			t.Errorf("failure is %+v", f)
		}
		if sum.Rejected != 1 || sum.Failed != 1 {
			t.Errorf("summary is %+v", sum)
		}
	})
}

func TestOnFailureIsNeverCalledForDroppedMessagesNorAfterTheStreamsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, j := testkit.NewManualHandler(), &judge{action: flow.FailStream}
		c := testkit.Start(t, testkit.New(t, func(ctx context.Context, m flow.Message[string]) error {
			if err := s.Handle(ctx, m); err != nil {
				return errors.New("not a context error")
			}
			return nil
		}, flow.Options{OnFailure: j.decide, Ordering: testkit.Keyed}), "a1", "b1", "a2")
		s.Fail(t, "a1", testkit.ErrHandler) // b1 is cancelled and fails after the end, a2 is dropped
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureHandlerError)
		if sum.Failed != 2 || sum.Dropped != 1 {
			t.Errorf("summary is %+v", sum)
		}
		wantHeard(t, j, "a1:HandlerError")
	})
}

func TestContextAndShutdownFailuresNeverComeToOnFailure(t *testing.T) {
	for name, end := range map[string]func(f *flow.Flow[string], c *testkit.Stream){
		"cancel":   func(_ *flow.Flow[string], c *testkit.Stream) { c.Cancel(nil); c.End() },
		"close":    func(f *flow.Flow[string], _ *testkit.Stream) { _ = f.Close() },
		"shutdown": func(f *flow.Flow[string], _ *testkit.Stream) { go f.Shutdown(context.Background()) },
		"recv":     func(_ *flow.Flow[string], c *testkit.Stream) { c.Fail(context.Canceled) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, j := testkit.NewManualHandler(), &judge{action: flow.SkipMessage}
				f := testkit.New(t, s.Handle, flow.Options{
					OnFailure: j.decide, Ordering: testkit.Keyed, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
				})
				c := testkit.Start(t, f, "a1", "b1", "a2")
				s.Fail(t, "b1", testkit.ErrHandler) // it waits for its next try
				end(f, c)
				s.FinishAll(t)
				sum, err := c.Result(t)
				if err == nil || len(sum.Unsettled) == 0 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
				testkit.CheckConserved(t, sum)
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
		synctest.Test(t, func(t *testing.T) {
			s, j := testkit.NewManualHandler(), &judge{action: c.action}
			r := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{OnFailure: j.decide}), "a1", "a2", "b1")
			s.Finish(t, "a1")
			s.EndWith(t, "a2", func() error { panic("poison") })
			sum, err := r.Result(t)
			testkit.FailureOf(t, err, flow.FailureInternal)
			wantHeard(t, j, "a2:Internal")
			testkit.CheckConserved(t, sum)
			want := map[bool]uint64{true: 2, false: 1}[c.settled]
			if sum.Failed != 1 || sum.Dropped != 1 || sum.Committed != want {
				t.Errorf("%v: summary is %+v, want %d committed", c.action, sum, want)
			}
		})
	}
}

func TestSkipKeyRunsNoLaterMessageOfTheKey(t *testing.T) {
	for _, mode := range []flow.OrderingMode{flow.OrderingFIFO, flow.OrderingKeyedFIFO} {
		t.Run(mode.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, j := testkit.NewManualHandler(), &judge{action: flow.SkipKey}
				f := testkit.New(t, s.Handle, flow.Options{OnFailure: j.decide, Ordering: flow.OrderingOptions{Mode: mode}})
				c := testkit.Start(t, f, "a1", "a2", "b1", "a3")
				s.Fail(t, "a1", testkit.ErrHandler)
				c.Send("a4", "c1")
				c.End()
				s.FinishAll(t)
				sum, err := c.Result(t)
				if want := 3; err != nil || sum.Failed != 1 || sum.Rejected != uint64(want) || sum.Succeeded != 2 || sum.Committed != 6 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
				wantHeard(t, j, "a1:HandlerError a2:Ordering a3:Ordering a4:Ordering") // in order, for a dead-letter store
				if last := j.at(3); last.Attempts != 0 || last.Key != "a" || last.Seq != 5 {
					t.Errorf("failure is %+v", last)
				}
			})
		})
	}
}

func TestGivenUpMessageThatIsNotSkippedEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed, OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
			if f.Kind == flow.FailureOrdering {
				return flow.FailStream
			}
			return flow.SkipKey
		}})
		c := testkit.Start(t, f, "a1", "b1", "a2")
		s.Finish(t, "b1")
		s.Fail(t, "a1", testkit.ErrHandler)
		sum, err := c.Result(t)
		if fault := testkit.FailureOf(t, err, flow.FailureOrdering); fault.Seq != 3 {
			t.Errorf("failure is %+v", fault)
		}
		if sum.Committed != 2 || !slices.Equal(sum.Unsettled, []uint64{3}) || sum.Rejected != 1 {
			t.Errorf("summary is %+v", sum)
		}
	})
}

func TestSkipKeyHoldsForItsStreamOnlyAlsoWithScopeFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, j := testkit.NewManualHandler(), &judge{action: flow.SkipKey}
		f := testkit.New(t, s.Handle, flow.Options{OnFailure: j.decide, Ordering: flow.OrderingOptions{
			Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow}})
		one := testkit.Start(t, f, "a1", "a2")
		two := testkit.Start(t, f, "a3")
		one.Send("a4")
		one.End()
		two.End()
		s.Fail(t, "a1", testkit.ErrHandler)
		s.WantRunning(t, "a3")
		if j.heard() != "a1:HandlerError a2:Ordering" {
			t.Errorf("OnFailure was asked about %q: a4 comes after a3", j.heard())
		}
		s.Finish(t, "a3")
		if sum, err := two.Result(t); err != nil || sum.Succeeded != 1 {
			t.Errorf("second stream: %+v, %v", sum, err)
		}
		if sum, err := one.Result(t); err != nil || sum.Rejected != 2 {
			t.Errorf("first stream: %+v, %v", sum, err)
		}
		three := testkit.Start(t, f, "a5")
		s.WantRunning(t, "a5")
		s.Finish(t, "a5")
		three.End()
	})
}

func TestSkipKeyIsSkipMessageWhereThereIsNoOrder(t *testing.T) {
	for name, o := range map[string]flow.OrderingOptions{
		"OrderingNone":      {Mode: flow.OrderingNone},
		"UnorderedEmptyKey": {Mode: flow.OrderingKeyedFIFO, UnorderedEmptyKey: true},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, j := testkit.NewManualHandler(), &judge{action: flow.SkipKey}
			c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{OnFailure: j.decide, Ordering: o}), "1", "2")
			s.Fail(t, "1", testkit.ErrHandler)
			c.Send("3")
			s.WantRunning(t, "2 3")
			c.End()
			s.FinishAll(t)
			if sum, err := c.Result(t); err != nil || sum.Succeeded != 2 || sum.Rejected != 0 {
				t.Errorf("%s: Run() = %+v, %v", name, sum, err)
			}
		})
	}
}

func TestEmptyKeyIsGivenUpLikeAnyOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, j := testkit.NewManualHandler(), &judge{action: flow.SkipKey}
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{OnFailure: j.decide, Ordering: testkit.Keyed}), "1", "2", "a1")
		s.Fail(t, "1", testkit.ErrHandler)
		wantHeard(t, j, "1:HandlerError 2:Ordering")
		s.WantRunning(t, "a1")
		c.End()
		s.FinishAll(t)
	})
}

func TestGivenUpMessageNeedsNoCapacity(t *testing.T) {
	for name, o := range map[string]flow.BackpressureOptions{
		"Queue":         {Capacity: 1},
		"QueueCapacity": {Capacity: 1, QueueCapacity: 1},
		"HardReject":    {Capacity: 1, Policy: flow.BackpressureHardReject},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, j := testkit.NewManualHandler(), &judge{action: flow.SkipKey}
				c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{OnFailure: j.decide, Ordering: testkit.Keyed, Backpressure: o}), "a1")
				s.Fail(t, "a1", testkit.ErrHandler)
				c.Send("b1")
				s.WantRunning(t, "b1") // has the only slot
				c.Send("a2")
				if name == "QueueCapacity" {
					c.Send("c1", "a3") // the queue is full too
				}
				s.WantRunning(t, "b1")
				want := "a1:HandlerError a2:Ordering"
				if name == "QueueCapacity" {
					want += " a3:Ordering"
				}
				wantHeard(t, j, want)
				c.End()
				s.FinishAll(t)
				if _, err := c.Result(t); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What waited for its turn behind the failed one is handled when that turn comes, without a slot.
func TestWaitingMessagesOfAGivenUpKeyNeedNoCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, j := testkit.NewManualHandler(), &judge{action: flow.SkipKey}
		f := testkit.New(t, s.Handle, flow.Options{
			OnFailure: j.decide, Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
		})
		c := testkit.Start(t, f, "a1", "b1", "a2", "a3", "a4")
		s.Fail(t, "a1", testkit.ErrHandler)
		s.WantRunning(t, "b1")
		wantHeard(t, j, "a1:HandlerError a2:Ordering a3:Ordering a4:Ordering")
		s.Finish(t, "b1")
		c.End()
		if sum, err := c.Result(t); err != nil || sum.Rejected != 3 || sum.Committed != 5 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestSkipKeyOnARefusalLetsEarlierMessagesOfTheKeyRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, j := testkit.NewManualHandler(), &judge{action: flow.SkipKey}
		f := testkit.New(t, s.Handle, flow.Options{OnFailure: j.decide, Ordering: flow.OrderingOptions{
			Mode: flow.OrderingKeyedFIFO, KeyCapacity: 1}})
		c := testkit.Start(t, f, "a1", "a2", "a3") // a3 is refused on receipt, and with it the key skipped
		wantHeard(t, j, "a3:Ordering")
		s.Finish(t, "a1")
		c.Send("a4")
		s.WantRunning(t, "a2")
		c.End()
		s.FinishAll(t)
		sum, err := c.Result(t)
		if err != nil || sum.Succeeded != 2 || sum.Rejected != 2 || s.History() != "a1 a2" {
			t.Errorf("Run() = %+v, %v; started %q", sum, err, s.History())
		}
		wantHeard(t, j, "a3:Ordering a4:Ordering")
	})
}

func TestSkipMessageGivesNoKeyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, j := testkit.NewManualHandler(), &judge{action: flow.SkipMessage}
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{OnFailure: j.decide, Ordering: testkit.Keyed}), "a1", "a2")
		s.Fail(t, "a1", testkit.ErrHandler)
		s.WantRunning(t, "a2")
		c.End()
		s.FinishAll(t)
	})
}

// A dead-letter store gets a key's messages one after the other: OnFailure of one ends before that of the next begins.
func TestOnFailureOfGivenUpMessagesRunsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &judge{action: flow.SkipKey, wait: time.Second}
		f := testkit.New(t, func(context.Context, flow.Message[string]) error { return testkit.ErrHandler },
			flow.Options{OnFailure: j.decide, Ordering: testkit.Keyed})
		began := time.Now()
		if _, err := f.Run(t.Context(), testkit.Given("a1", "a2", "a3", "b1", "a4")); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != 4*time.Second {
			t.Errorf("took %v, want 4s", d)
		}
	})
}

func TestMoreThan65536GivenUpKeysEndTheStream(t *testing.T) {
	const limit = 65536
	for _, n := range []int{limit, limit + 1} {
		f, err := flow.New(func(context.Context, flow.Message[int]) error { return testkit.ErrHandler }, strconv.Itoa, flow.Options{
			Ordering:  testkit.Keyed,
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey },
		})
		if err != nil {
			t.Fatal(err)
		}
		next := 0
		sum, err := f.Run(t.Context(), func() (int, error) {
			if next == n {
				return 0, io.EOF
			}
			next++
			return next, nil
		})
		if n == limit {
			if err != nil || sum.Failed != limit || sum.Committed != limit {
				t.Errorf("at the limit: %+v, %v", sum, err)
			}
			continue
		}
		testkit.FailureOf(t, err, flow.FailureOrdering)
		testkit.CheckConserved(t, sum)
		if sum.Failed != limit+1 || sum.Committed != limit+1 { // each was skipped all the same
			t.Errorf("above the limit: %+v", sum)
		}
	}
}

// Clients choose how long keys are, too.
func TestSkippedKeysOfMoreThan16MiBEndTheStream(t *testing.T) {
	const limit = 16 << 20
	for more, want := range map[string]flow.FailureKind{"": flow.FailureNone, "x": flow.FailureOrdering} {
		keys := []string{strings.Repeat("a", limit/2), strings.Repeat("b", limit/2) + more, strings.Repeat("a", limit/2)}
		synctest.Test(t, func(t *testing.T) {
			f, err := flow.New(func(context.Context, flow.Message[string]) error { return testkit.ErrHandler },
				func(v string) string { return v }, flow.Options{
					Ordering: testkit.Keyed, MaxPendingBytes: -1,
					OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey },
				})
			if err != nil {
				t.Fatal(err)
			}
			sum, err := f.Run(t.Context(), testkit.Given(keys...))
			if kind := flow.ClassifyFailure(err); kind != want {
				t.Errorf("with %d bytes of keys Run() = %v", limit+len(more), kind)
			}
			if want == flow.FailureNone && (sum.Failed != 2 || sum.Rejected != 1 || sum.Committed != 3) {
				t.Errorf("at the limit: %+v", sum)
			}
			testkit.CheckConserved(t, sum)
		})
	}
}

// With nothing pending, what is left of messages of a mebibyte whose keys are skipped is their keys.
func TestSkippedKeysKeepNoMessages(t *testing.T) {
	const messages = 64
	heap := func() int64 {
		for range 3 {
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	f, err := flow.New(func(context.Context, flow.Message[string]) error { return testkit.ErrHandler },
		func(v string) string { return v[:2] }, flow.Options{
			Ordering:  testkit.Keyed,
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey },
		})
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	var before int64
	_, err = f.Run(t.Context(), func() (string, error) {
		switch sent++; {
		case sent == 1:
			before = heap()
		case sent > messages:
			for f.Stats().Total.Failed < messages { // of each the key is skipped, once it is counted
				time.Sleep(time.Millisecond)
			}
			if grown := heap() - before; grown > messages<<20/4 {
				t.Errorf("%d skipped keys of two bytes keep %d bytes", messages, grown)
			}
			return "", io.EOF
		}
		return fmt.Sprintf("%02d", sent%100) + strings.Repeat("x", 1<<20), nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestSkipKeyWithScopeFlowSkipsNoOtherStreamsMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Ordering:  flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow},
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey },
		})
		skips := testkit.Start(t, f, "a1", "a2")
		other := testkit.Start(t, f, "b1", "a3") // behind the others in the lane of "a", with a Seq behind the skipped one's
		skips.End()
		other.End()
		s.Finish(t, "b1")
		s.Fail(t, "a1", testkit.ErrHandler) // a2 is rejected
		s.WantRunning(t, "a3")
		s.Finish(t, "a3")
		skips.WantSummary(t, flow.Summary{Failed: 1, Rejected: 1})
		other.WantSummary(t, flow.Summary{Succeeded: 2})
	})
}

// RetryAfter is asked about the Failure, and not about its Err, which does not say that it was the handler's.
func TestRetryAfterTellsOnFailureWhatIsWorthAnotherTry(t *testing.T) {
	rule := func(_ context.Context, f *flow.Failure) flow.FailureAction {
		if _, ok := flow.RetryAfter(f); ok {
			return flow.FailStream
		}
		return flow.SkipMessage
	}
	fails := func(err error) func() error { return func() error { return err } }
	for _, c := range []struct {
		name    string
		handler func() error
		want    flow.FailureAction
	}{
		{"a database's deadline", fails(fmt.Errorf("db: %w", context.DeadlineExceeded)), flow.FailStream},
		{"a call that was cancelled", fails(fmt.Errorf("db: %w", context.Canceled)), flow.FailStream},
		{"an upstream's quota", fails(status.Error(codes.ResourceExhausted, "quota")), flow.FailStream},
		{"an upstream that is away", fails(status.Error(codes.Unavailable, "away")), flow.FailStream},
		{"no status", fails(testkit.ErrHandler), flow.FailStream},
		{"an invalid message", fails(status.Error(codes.InvalidArgument, "malformed")), flow.SkipMessage},
		{"a permanent error", fails(flow.Permanent(fmt.Errorf("db: %w", context.DeadlineExceeded))), flow.SkipMessage},
		{"a panic", func() error { panic("poison") }, flow.SkipMessage},
		{"a panic with an error", func() error { panic(status.Error(codes.Unavailable, "away")) }, flow.SkipMessage},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got []flow.FailureAction
				f := testkit.New(t, func(context.Context, flow.Message[string]) error { return c.handler() }, flow.Options{
					OnFailure: func(ctx context.Context, f *flow.Failure) flow.FailureAction {
						if ctx.Err() != nil {
							t.Error("the stream is over")
						}
						got = append(got, rule(ctx, f))
						return got[len(got)-1]
					},
				})
				sum, _ := f.Run(t.Context(), testkit.Given("a1"))
				if !slices.Equal(got, []flow.FailureAction{c.want}) {
					t.Errorf("OnFailure has said %v, want %v", got, c.want)
				}
				if settled := sum.Committed == 1; settled != (c.want == flow.SkipMessage) {
					t.Errorf("settled is %v: %+v", settled, sum)
				}
			})
		})
	}
}
