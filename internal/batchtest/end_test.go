package batchtest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
)

func TestBatchOneStreamsCancelReachesNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{OnFailure: skipAll})
		release := testkit.Occupy(t, f, &s)
		a, b, c := testkit.Start(t, f, "a1", "a2"), testkit.Start(t, f, "b1"), testkit.Start(t, f, "c1")
		release()
		b.Cancel(nil)
		b.End()
		if err := s.CauseOf(t, "a1 b1 c1 a2"); err != nil {
			t.Errorf("the call has been cancelled: %v", err)
		}
		if b.Ended() {
			t.Error("the stream has not waited for the call")
		}
		s.Return(t, "a1 b1 c1 a2", nil, testkit.ErrHandler, nil, nil)
		a.End()
		c.End()
		a.WantSummary(t, flow.Summary{Succeeded: 2})
		b.WantSummary(t, flow.Summary{Failed: 1})
		c.WantSummary(t, flow.Summary{Succeeded: 1})
		_, err := b.Result(t)
		testkit.FailureOf(t, err, flow.FailureContextCancelled)
	})
}

func TestBatchMessagesOfAnEndedStreamCountByTheirOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		var log testkit.EventLog
		o := flow.Options{Ordering: testkit.Keyed, Observer: log.Observe, Retry: flow.RetryOptions{MaxAttempts: 5}}
		o.OnFailure = func(_ context.Context, f *flow.Failure) flow.FailureAction {
			t.Errorf("OnFailure was asked about %v", f)
			return flow.SkipMessage
		}
		f := testkit.NewBatch(t, s.Handle, o)
		release := testkit.Occupy(t, f, &s)
		a, b := testkit.Start(t, f, "a1", "b1", "c1", "d1"), testkit.Start(t, f, "a1")
		release()
		s.Return(t, "a1 a1 b1 c1 d1", flow.ErrNotAttempted, nil, testkit.ErrHandler, flow.ErrNotAttempted, flow.ErrNotAttempted)
		s.WantCalls(t, "a1 c1 d1 b1")
		a.Cancel(nil)
		a.End()
		s.Return(t, "a1 c1 d1 b1", nil, flow.ErrNotAttempted, testkit.ErrHandler, flow.ErrNotAttempted)
		a.WantSummary(t, flow.Summary{Succeeded: 1, Failed: 2, Dropped: 1})
		for _, e := range log.Of(flow.EventFailure) {
			if e.Failure.Kind != flow.FailureContextCancelled {
				t.Errorf("%s: %v", e.Key, e.Failure)
			}
		}
		b.End()
		b.WantSummary(t, flow.Summary{Succeeded: 1})
	})
}

func TestBatchLastStreamsEndCancelsTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{})
		release := testkit.Occupy(t, f, &s)
		a, b := testkit.Start(t, f, "a1"), testkit.Start(t, f, "b1")
		release()
		why := errors.New("the last one's reason")
		a.Cancel(errors.New("the first one's reason"))
		if err := s.CauseOf(t, "a1 b1"); err != nil {
			t.Errorf("after the first one's end: %v", err)
		}
		b.Cancel(why) // recv is blocked and stays so, but the call does not wait for that
		if err := s.CauseOf(t, "a1 b1"); err != why {
			t.Errorf("the cause is %v, want %v", err, why)
		}
		a.End()
		b.End()
		s.Fail(t, "a1 b1", context.Canceled)
		for _, c := range []*testkit.Stream{a, b} {
			_, err := c.Result(t)
			testkit.FailureOf(t, err, flow.FailureContextCancelled)
			c.WantSummary(t, flow.Summary{Failed: 1})
		}
		s.WantPast(t, "busy", "a1 b1")
	})
}

func TestBatchCloseCancelsTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{})
		release := testkit.Occupy(t, f, &s)
		a, b := testkit.Start(t, f, "a1"), testkit.Start(t, f, "b1")
		release()
		_ = f.Close()
		testkit.FailureOf(t, s.CauseOf(t, "a1 b1"), flow.FailureShutdown)
		s.Succeed(t, "a1 b1")
		a.WantSummary(t, flow.Summary{Succeeded: 1})
		b.WantSummary(t, flow.Summary{Succeeded: 1})
	})
}

func TestBatchEndOfGraceCancelsTheCallAndCountsMessages(t *testing.T) {
	for _, drain := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var s testkit.ManualBatchHandler
			f := testkit.NewBatch(t, s.Handle, flow.Options{
				Ordering: testkit.Keyed, Shutdown: flow.ShutdownOptions{GracePeriod: time.Second, DrainOnClose: drain},
			})
			release := testkit.Occupy(t, f, &s)
			testkit.Start(t, f, "a1", "b1")
			c := testkit.Start(t, f, "c1")
			release()
			c.Send("c2")
			synctest.Wait()
			down := make(chan error, 1)
			go func() { down <- f.Shutdown(context.Background()) }()
			time.Sleep(time.Second)
			testkit.FailureOf(t, s.CauseOf(t, "a1 c1 b1"), flow.FailureShutdown)
			s.Fail(t, "a1 c1 b1", context.Canceled)
			want := 3
			if drain {
				want = 4
			}
			off, ok := errors.AsType[*flow.ShutdownError](<-down)
			if !ok || off.CutOff != want || off.Seq != 1 || off.Key != "a" {
				t.Errorf("drain %v: Shutdown says %+v, want %d cut off", drain, off, want)
			}
		})
	}
}

func TestBatchEndedBeforeTheCallIsNotInIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		var end func()
		o := flow.Options{Observer: func(_ context.Context, e flow.Event) {
			if e.Kind == flow.EventAttempt && e.Key == "a" && e.Attempt == 1 {
				end()
			}
		}}
		f := testkit.NewBatch(t, s.Handle, o)
		release := testkit.Occupy(t, f, &s)
		a, b := testkit.Start(t, f, "a1"), testkit.Start(t, f, "b1")
		end = func() { b.Cancel(nil) } // as late as can be
		release()
		s.WantCalls(t, "a1")
		b.End()
		b.WantSummary(t, flow.Summary{Dropped: 1})
		s.Succeed(t, "a1")
		a.End()
		a.WantSummary(t, flow.Summary{Succeeded: 1})
	})
}

func TestBatchOfNoneIsNotCalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		var end func()
		f := testkit.NewBatch(t, s.Handle, flow.Options{Observer: func(_ context.Context, e flow.Event) {
			if e.Kind == flow.EventAttempt && e.Key == "a" {
				panic("the Observer panics")
			}
			if e.Kind == flow.EventStreamEnd && end != nil {
				end()
			}
		}})
		release := testkit.Occupy(t, f, &s)
		a := testkit.Start(t, f, "a1")
		release()
		s.WantPast(t, "busy")
		_, err := a.Result(t)
		testkit.FailureOf(t, err, flow.FailureInternal)
		a.WantSummary(t, flow.Summary{Failed: 1})
		if st := f.Stats(); st.Calls != 0 {
			t.Errorf("Stats are %+v", st)
		}
		testkit.Start(t, f, "b1")
		s.Succeed(t, "b1") // the slot is free again
	})
}

func TestBatchDeadlineAnsweredAfterTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{})
		release := testkit.Occupy(t, f, &s)
		var c *testkit.Stream
		began := time.Now()
		c = testkit.StartFunc(t, func(ctx context.Context, recv func() (string, error)) (flow.Summary, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return f.Run(ctx, recv)
		}, "a1")
		other := testkit.Start(t, f, "b1")
		release()
		time.Sleep(3 * time.Second)
		if c.Ended() || s.CauseOf(t, "a1 b1") != nil {
			t.Error("the deadline has been answered, or has cancelled the call")
		}
		s.Succeed(t, "a1 b1")
		_, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureContextCancelled)
		c.WantSummary(t, flow.Summary{Succeeded: 1})
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("answered after %v", d)
		}
		other.End()
		other.WantSummary(t, flow.Summary{Succeeded: 1})
	})
}

func TestBatchAttemptTimeoutIsTheCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		o := flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, AttemptTimeout: time.Second}}
		f := testkit.NewBatch(t, s.Handle, o)
		release := testkit.Occupy(t, f, &s)
		a, b := testkit.Start(t, f, "a1"), testkit.Start(t, f, "b1")
		release()
		time.Sleep(time.Second - 1)
		if err := s.CauseOf(t, "a1 b1"); err != nil {
			t.Errorf("too early: %v", err)
		}
		time.Sleep(time.Nanosecond)
		if err := s.CauseOf(t, "a1 b1"); err != flow.ErrAttemptTimeout {
			t.Errorf("the cause is %v", err)
		}
		s.Fail(t, "a1 b1", context.DeadlineExceeded) // of the call, whose streams live: it is tried again
		s.Succeed(t, "a1 b1")
		a.End()
		b.End()
		a.WantSummary(t, flow.Summary{Succeeded: 1, Retried: 1})
		b.WantSummary(t, flow.Summary{Succeeded: 1, Retried: 1})
	})
}

func TestBatchBetweenTwoCallsFailsWithShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour}})
		release := testkit.Occupy(t, f, &s)
		c := testkit.Start(t, f, "a1", "a2")
		release()
		s.Fail(t, "a1 a2", testkit.ErrHandler)
		if err := f.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		_, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown)
		c.WantSummary(t, flow.Summary{Failed: 2})
	})
}

func TestBatchPanicAtEventAttemptTakesOneOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		var log testkit.EventLog
		f := testkit.NewBatch(t, s.Handle, flow.Options{Observer: func(ctx context.Context, e flow.Event) {
			log.Observe(ctx, e)
			if e.Kind == flow.EventAttempt && e.Key == "b" {
				panic("the Observer panics")
			}
		}})
		release := testkit.Occupy(t, f, &s)
		a, b, c := testkit.Start(t, f, "a1"), testkit.Start(t, f, "b1"), testkit.Start(t, f, "c1")
		release()
		s.WantCalls(t, "a1 c1")
		time.Sleep(time.Second)
		s.Succeed(t, "a1 c1")
		a.End()
		c.End()
		a.WantSummary(t, flow.Summary{Succeeded: 1})
		b.WantSummary(t, flow.Summary{Failed: 1})
		c.WantSummary(t, flow.Summary{Succeeded: 1})
		_, err := b.Result(t)
		testkit.FailureOf(t, err, flow.FailureInternal)
		total, calls := time.Duration(0), 0
		for _, e := range log.Of(flow.EventSuccess) {
			if e.Batch > 0 && e.Index == 0 {
				total += e.Took
				calls++
			}
			if e.Key == "c" && (e.Batch != 2 || e.Index != 1 || e.Took != time.Second) {
				t.Errorf("%+v", e)
			}
		}
		if calls != 2 || total != time.Second {
			t.Errorf("the events tell of %d calls that took %v", calls, total)
		}
	})
}

func TestBatchEventsTellOneAttemptAndOneOutcomeEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &poisonable{t: t}
		var log testkit.EventLog
		o := flow.Options{OnFailure: skipAll, Observer: log.Observe}
		sums, _ := heldBack(t, p.handle, o, []string{"a1", "x2", "a3", "a4"})
		attempts := log.Of(flow.EventAttempt)
		if want := 1 + 4 + 2 + 1 + 1 + 2; len(attempts) != want {
			t.Errorf("%d times EventAttempt, want %d", len(attempts), want)
		}
		for _, e := range attempts {
			if e.Batch == 0 || e.Index >= e.Batch {
				t.Errorf("%+v", e)
			}
		}
		if n := len(log.Of(flow.EventSuccess)) + len(log.Of(flow.EventFailure)); n != 5 {
			t.Errorf("%d outcomes, want 5", n)
		}
		retried := uint64(0)
		for _, e := range append(log.Of(flow.EventSuccess), log.Of(flow.EventFailure)...) {
			retried += uint64(e.Attempt - 1)
		}
		if retried != sums[0].Retried {
			t.Errorf("the events tell of %d retries, the Summary of %d", retried, sums[0].Retried)
		}
	})
}

// A batch is as large as its options allow, and a stream may have all of it. To look through the batch for each message would
// take more than half a minute; a pass over it takes some 50 ms, and the limit is that of something that hangs.
func TestBatchThatFormsIsLeftInATimeThatGrowsWithItsSize(t *testing.T) {
	const n = 300_000
	f := testkit.NewBatch(t, testkit.SucceedAll, flow.Options{
		MaxPending: -1, Batch: flow.BatchOptions{MaxMessages: 2 * n, Linger: time.Hour},
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sent, began := 0, time.Time{}
	sum, err := f.Run(ctx, func() (string, error) {
		if sent++; sent <= n {
			return "a", nil
		}
		for f.Stats().Waiting < n {
			time.Sleep(time.Millisecond)
		}
		began = time.Now()
		cancel()
		return "", ctx.Err()
	})
	testkit.FailureOf(t, err, flow.FailureContextCancelled)
	if sum.Dropped != n {
		t.Errorf("%d were dropped, want %d", sum.Dropped, n)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the stream has ended after %v", took)
	}
}
