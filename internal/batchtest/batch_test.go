package batchtest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
)

func TestBatchLoneMessageGoesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Backpressure: flow.BackpressureOptions{Capacity: 2}})
		testkit.Start(t, f, "a1")
		s.WantCalls(t, "a1")
		testkit.Start(t, f, "b1")
		s.WantCalls(t, "a1 | b1")
		c := testkit.Start(t, f, "c1")
		c.Send("c2")
		s.WantCalls(t, "a1 | b1")
		s.Succeed(t, "a1")
		s.WantCalls(t, "b1 | c1 c2")
		s.Succeed(t, "b1", "c1 c2")
	})
}

func TestBatchHotStreamLeavesRoom(t *testing.T) {
	for _, o := range []flow.Options{{}, {Ordering: testkit.Keyed}, {Ordering: flow.OrderingOptions{Mode: flow.OrderingNone}}} {
		synctest.Test(t, func(t *testing.T) {
			var s testkit.ManualBatchHandler
			o.Batch.MaxMessages = 5
			f := testkit.NewBatch(t, s.Handle, o)
			release := testkit.Occupy(t, f, &s)
			testkit.Start(t, f, "a1", "a2", "a3", "a4", "a5", "a6", "a7")
			testkit.Start(t, f, "b1", "b2")
			testkit.Start(t, f, "c1")
			release()
			s.WantCalls(t, "a1 b1 c1 a2 b2")
			s.Succeed(t, "a1 b1 c1 a2 b2")
			s.WantCalls(t, "a3 a4 a5 a6 a7")
			s.Succeed(t, "a3 a4 a5 a6 a7")
		})
	}
}

func TestBatchHotKeyLeavesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Ordering: testkit.Keyed, Batch: flow.BatchOptions{MaxMessages: 4}})
		release := testkit.Occupy(t, f, &s)
		testkit.Start(t, f, "a1", "a2", "a3", "a4", "a5", "b1", "c1")
		release()
		s.WantCalls(t, "a1 b1 c1 a2")
		s.Succeed(t, "a1 b1 c1 a2")
		s.WantCalls(t, "a3 a4 a5")
		s.Succeed(t, "a3 a4 a5")
	})
}

func TestBatchKeyIsInOneCallOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 3}})
		c := testkit.Start(t, f, "a1")
		c.Send("a2", "b1", "a3")
		s.WantCalls(t, "a1 | b1")
		testkit.Start(t, f, "a1") // another stream's key
		s.WantCalls(t, "a1 | b1 | a1")
		s.Succeed(t, "b1")
		s.Succeed(t, "a1") // the first of the two
		s.WantCalls(t, "a1 | a2 a3")
		s.Succeed(t, "a1", "a2 a3")
	})
}

func TestBatchKeyIsInOneCallOfTheFlowWithScopeFlow(t *testing.T) {
	for _, mode := range []flow.OrderingMode{flow.OrderingFIFO, flow.OrderingKeyedFIFO} {
		synctest.Test(t, func(t *testing.T) {
			var s testkit.ManualBatchHandler
			f := testkit.NewBatch(t, s.Handle, flow.Options{
				Ordering:     flow.OrderingOptions{Mode: mode, Scope: flow.ScopeFlow},
				Backpressure: flow.BackpressureOptions{Capacity: 3},
			})
			one := testkit.Start(t, f, "a1")
			two := testkit.Start(t, f, "a2")
			one.Send("a3")
			synctest.Wait()
			two.Send("a4")
			s.WantCalls(t, "a1")
			s.Succeed(t, "a1")
			s.WantCalls(t, "a2 a3 a4")
			s.Return(t, "a2 a3 a4", nil, flow.ErrNotAttempted, flow.ErrNotAttempted)
			s.WantCalls(t, "a3 a4")
			s.Succeed(t, "a3 a4")
		})
	}
}

func TestBatchOversizeMessageGoesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Batch: flow.BatchOptions{MaxBytes: 6}})
		release := testkit.Occupy(t, f, &s)
		testkit.Start(t, f, "a1", "a2", "aaaaaaaaa3", "a4", "a5", "a6", "a7")
		release()
		for _, want := range []string{"a1 a2", "aaaaaaaaa3", "a4 a5 a6", "a7"} {
			s.WantCalls(t, want)
			s.Succeed(t, want)
		}
	})
}

func TestBatchContextHasNoStreamsValuesAndMessagesHave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type name struct{}
		f := testkit.NewBatch(t, func(ctx context.Context, batch []flow.Message[string], _ []error) error {
			if _, timed := ctx.Deadline(); timed || ctx.Value(name{}) != nil {
				t.Errorf("the call's context has a stream's value or deadline")
			}
			for _, m := range batch {
				deadline, _ := m.Context().Deadline()
				if m.Context().Value(name{}) != m.Value || time.Until(deadline) != time.Minute {
					t.Errorf("%s: its context has the value %v", m.Value, m.Context().Value(name{}))
				}
			}
			return nil
		}, flow.Options{})
		for _, v := range []string{"a1", "b1"} {
			ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), name{}, v), time.Minute)
			if _, err := f.Run(ctx, testkit.Given(v)); err != nil {
				t.Error(err)
			}
			cancel()
		}
	})
}

func TestMessageContextWithNewIsItsStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testkit.New(t, func(ctx context.Context, m flow.Message[string]) error {
			if m.Context() != ctx {
				t.Error("the message has another context than its handler")
			}
			return nil
		}, flow.Options{})
		if _, err := f.Run(t.Context(), testkit.Given("a1")); err != nil {
			t.Error(err)
		}
	})
}

func TestBatchMessageContextOutsideARun(t *testing.T) {
	m := flow.Message[string]{Seq: 1, Value: "a"}
	if m.Context() != context.Background() {
		t.Error("a literal's context is not Background")
	}
	if m != (flow.Message[string]{Seq: 1, Value: "a"}) {
		t.Error("two equal literals differ")
	}
}

func TestBatchSliceIsReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept []flow.Message[string]
		var same int
		f := testkit.NewBatch(t, func(_ context.Context, batch []flow.Message[string], errs []error) error {
			if len(errs) != len(batch) || cap(batch) != len(batch) || cap(errs) != len(errs) {
				t.Errorf("%d messages, %d errs", len(batch), len(errs))
			}
			for _, err := range errs {
				if err != nil {
					t.Errorf("errs has %v when the call begins", err)
				}
			}
			if len(kept) > 0 && &kept[0] == &batch[0] {
				same++
			}
			kept = batch
			errs[0] = flow.Permanent(testkit.ErrHandler)
			return nil
		}, flow.Options{OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }})
		c := testkit.Start(t, f)
		for range 3 {
			c.Send("a1")
			synctest.Wait()
		}
		c.End()
		if _, err := c.Result(t); err != nil {
			t.Error(err)
		}
		if same != 2 {
			t.Errorf("%d of 2 later calls have got the slice of the first", same)
		}
		if kept[0].Value != "" {
			t.Errorf("after the call the slice still has %+v", kept[0])
		}
	})
}

func TestBatchStatsCountCallsAndMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Backpressure: flow.BackpressureOptions{Capacity: 1}})
		release := testkit.Occupy(t, f, &s)
		testkit.Start(t, f, "a1", "a2", "a3")
		release()
		testkit.Start(t, f, "b1")
		st := f.Stats()
		if st.Calls != 1 || st.InFlight != 3 || st.Waiting != 1 || st.Capacity != 1 {
			t.Errorf("Stats are %+v", st)
		}
		s.Succeed(t, "a1 a2 a3", "b1")
		if st := f.Stats(); st.Calls != 0 || st.InFlight != 0 {
			t.Errorf("after that Stats are %+v", st)
		}
	})
}

func TestBatchOrderingBoundsCountWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		o := flow.Options{OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }}
		o.Ordering.Capacity = 1
		f := testkit.NewBatch(t, s.Handle, o)
		release := testkit.Occupy(t, f, &s)
		c := testkit.Start(t, f, "a1", "a2", "a3")
		release()
		s.WantCalls(t, "a1 a2")
		s.Succeed(t, "a1 a2")
		c.End()
		c.WantSummary(t, flow.Summary{Succeeded: 2, Rejected: 1})
	})
}
