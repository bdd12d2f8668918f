package flow_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

func TestBatchOneStreamsCancelReachesNobodyElse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{OnFailure: skipAll})
		release := occupied(t, f, &s)
		a, b, c := start(t, f, "a1", "a2"), start(t, f, "b1"), start(t, f, "c1")
		release()
		b.cancel(nil)
		b.End()
		if err := s.causeOf(t, "a1 b1 c1 a2"); err != nil {
			t.Errorf("the call has been cancelled: %v", err)
		}
		if b.over() {
			t.Error("the stream has not waited for the call")
		}
		s.give(t, "a1 b1 c1 a2", nil, errHandler, nil, nil)
		a.End()
		c.End()
		a.wantSummary(t, flow.Summary{Succeeded: 2})
		b.wantSummary(t, flow.Summary{Failed: 1})
		c.wantSummary(t, flow.Summary{Succeeded: 1})
		_, err := b.result(t)
		failureOf(t, err, flow.FailureContextCancelled)
	})
}

func TestBatchMessagesOfAnEndedStreamCountByTheirOutcome(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		var log eventLog
		o := flow.Options{Ordering: keyed, Observer: log.observe, Retry: flow.RetryOptions{MaxAttempts: 5}}
		o.OnFailure = func(_ context.Context, f *flow.Failure) flow.FailureAction {
			t.Errorf("OnFailure was asked about %v", f)
			return flow.SkipMessage
		}
		f := mustNewBatch(t, s.handle, o)
		release := occupied(t, f, &s)
		a, b := start(t, f, "a1", "b1", "c1", "d1"), start(t, f, "a1")
		release()
		s.give(t, "a1 a1 b1 c1 d1", flow.ErrNotAttempted, nil, errHandler, flow.ErrNotAttempted, flow.ErrNotAttempted)
		s.wantCalls(t, "a1 c1 d1 b1")
		a.cancel(nil)
		a.End()
		s.give(t, "a1 c1 d1 b1", nil, flow.ErrNotAttempted, errHandler, flow.ErrNotAttempted)
		a.wantSummary(t, flow.Summary{Succeeded: 1, Failed: 2, Dropped: 1})
		for _, e := range log.of(flow.EventFailure) {
			if e.Failure.Kind != flow.FailureContextCancelled {
				t.Errorf("%s: %v", e.Key, e.Failure)
			}
		}
		b.End()
		b.wantSummary(t, flow.Summary{Succeeded: 1})
	})
}

func TestBatchLastStreamsEndCancelsTheCall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{})
		release := occupied(t, f, &s)
		a, b := start(t, f, "a1"), start(t, f, "b1")
		release()
		why := errors.New("the last one's reason")
		a.cancel(errors.New("the first one's reason"))
		if err := s.causeOf(t, "a1 b1"); err != nil {
			t.Errorf("after the first one's end: %v", err)
		}
		b.cancel(why) // recv is blocked and stays so, but the call does not wait for that
		if err := s.causeOf(t, "a1 b1"); err != why {
			t.Errorf("the cause is %v, want %v", err, why)
		}
		a.End()
		b.End()
		s.fail(t, "a1 b1", context.Canceled)
		for _, c := range []*call{a, b} {
			_, err := c.result(t)
			failureOf(t, err, flow.FailureContextCancelled)
			c.wantSummary(t, flow.Summary{Failed: 1})
		}
		s.wantPast(t, "busy", "a1 b1")
	})
}

func TestBatchCloseCancelsTheCall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{})
		release := occupied(t, f, &s)
		a, b := start(t, f, "a1"), start(t, f, "b1")
		release()
		_ = f.Close()
		failureOf(t, s.causeOf(t, "a1 b1"), flow.FailureShutdown)
		s.succeed(t, "a1 b1")
		a.wantSummary(t, flow.Summary{Succeeded: 1})
		b.wantSummary(t, flow.Summary{Succeeded: 1})
	})
}

func TestBatchEndOfGraceCancelsTheCallAndCountsMessages(t *testing.T) {
	for _, drain := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			var s batchStage
			f := mustNewBatch(t, s.handle, flow.Options{
				Ordering: keyed, Shutdown: flow.ShutdownOptions{GracePeriod: time.Second, DrainOnClose: drain},
			})
			release := occupied(t, f, &s)
			start(t, f, "a1", "b1")
			c := start(t, f, "c1")
			release()
			c.Send("c2")
			synctest.Wait()
			down := make(chan error, 1)
			go func() { down <- f.Shutdown(context.Background()) }()
			time.Sleep(time.Second)
			failureOf(t, s.causeOf(t, "a1 c1 b1"), flow.FailureShutdown)
			s.fail(t, "a1 c1 b1", context.Canceled)
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
	bubble(t, func(t *testing.T) {
		var s batchStage
		var end func()
		o := flow.Options{Observer: func(_ context.Context, e flow.Event) {
			if e.Kind == flow.EventAttempt && e.Key == "a" && e.Attempt == 1 {
				end()
			}
		}}
		f := mustNewBatch(t, s.handle, o)
		release := occupied(t, f, &s)
		a, b := start(t, f, "a1"), start(t, f, "b1")
		end = func() { b.cancel(nil) } // as late as can be
		release()
		s.wantCalls(t, "a1")
		b.End()
		b.wantSummary(t, flow.Summary{Dropped: 1})
		s.succeed(t, "a1")
		a.End()
		a.wantSummary(t, flow.Summary{Succeeded: 1})
	})
}

func TestBatchOfNoneIsNotCalled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		var end func()
		f := mustNewBatch(t, s.handle, flow.Options{Observer: func(_ context.Context, e flow.Event) {
			if e.Kind == flow.EventAttempt && e.Key == "a" {
				panic("the Observer panics")
			}
			if e.Kind == flow.EventStreamEnd && end != nil {
				end()
			}
		}})
		release := occupied(t, f, &s)
		a := start(t, f, "a1")
		release()
		s.wantPast(t, "busy")
		_, err := a.result(t)
		failureOf(t, err, flow.FailureInternal)
		a.wantSummary(t, flow.Summary{Failed: 1})
		if st := f.Stats(); st.Calls != 0 {
			t.Errorf("Stats are %+v", st)
		}
		start(t, f, "b1")
		s.succeed(t, "b1") // the slot is free again
	})
}

func TestBatchDeadlineAnsweredAfterTheCall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{})
		release := occupied(t, f, &s)
		var c *call
		began := time.Now()
		c = begin(t, func(ctx context.Context, recv func() (string, error)) (flow.Summary, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return f.Run(ctx, recv)
		}, "a1")
		other := start(t, f, "b1")
		release()
		time.Sleep(3 * time.Second)
		if c.over() || s.causeOf(t, "a1 b1") != nil {
			t.Error("the deadline has been answered, or has cancelled the call")
		}
		s.succeed(t, "a1 b1")
		_, err := c.result(t)
		failureOf(t, err, flow.FailureContextCancelled)
		c.wantSummary(t, flow.Summary{Succeeded: 1})
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("answered after %v", d)
		}
		other.End()
		other.wantSummary(t, flow.Summary{Succeeded: 1})
	})
}

func TestBatchAttemptTimeoutIsTheCalls(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		o := flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, AttemptTimeout: time.Second}}
		f := mustNewBatch(t, s.handle, o)
		release := occupied(t, f, &s)
		a, b := start(t, f, "a1"), start(t, f, "b1")
		release()
		time.Sleep(time.Second - 1)
		if err := s.causeOf(t, "a1 b1"); err != nil {
			t.Errorf("too early: %v", err)
		}
		time.Sleep(time.Nanosecond)
		if err := s.causeOf(t, "a1 b1"); err != flow.ErrAttemptTimeout {
			t.Errorf("the cause is %v", err)
		}
		s.fail(t, "a1 b1", context.DeadlineExceeded) // of the call, whose streams live: it is tried again
		s.succeed(t, "a1 b1")
		a.End()
		b.End()
		a.wantSummary(t, flow.Summary{Succeeded: 1, Retried: 1})
		b.wantSummary(t, flow.Summary{Succeeded: 1, Retried: 1})
	})
}

func TestBatchBetweenTwoCallsFailsWithShutdown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour}})
		release := occupied(t, f, &s)
		c := start(t, f, "a1", "a2")
		release()
		s.fail(t, "a1 a2", errHandler)
		if err := f.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		_, err := c.result(t)
		failureOf(t, err, flow.FailureShutdown)
		c.wantSummary(t, flow.Summary{Failed: 2})
	})
}

func TestBatchPanicAtEventAttemptTakesOneOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		var log eventLog
		f := mustNewBatch(t, s.handle, flow.Options{Observer: func(ctx context.Context, e flow.Event) {
			log.observe(ctx, e)
			if e.Kind == flow.EventAttempt && e.Key == "b" {
				panic("the Observer panics")
			}
		}})
		release := occupied(t, f, &s)
		a, b, c := start(t, f, "a1"), start(t, f, "b1"), start(t, f, "c1")
		release()
		s.wantCalls(t, "a1 c1")
		time.Sleep(time.Second)
		s.succeed(t, "a1 c1")
		a.End()
		c.End()
		a.wantSummary(t, flow.Summary{Succeeded: 1})
		b.wantSummary(t, flow.Summary{Failed: 1})
		c.wantSummary(t, flow.Summary{Succeeded: 1})
		_, err := b.result(t)
		failureOf(t, err, flow.FailureInternal)
		total, calls := time.Duration(0), 0
		for _, e := range log.of(flow.EventSuccess) {
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
	bubble(t, func(t *testing.T) {
		p := &poisonable{t: t}
		var log eventLog
		o := flow.Options{OnFailure: skipAll, Observer: log.observe}
		sums, _ := heldBack(t, p.handle, o, []string{"a1", "x2", "a3", "a4"})
		attempts := log.of(flow.EventAttempt)
		if want := 1 + 4 + 2 + 1 + 1 + 2; len(attempts) != want {
			t.Errorf("%d times EventAttempt, want %d", len(attempts), want)
		}
		for _, e := range attempts {
			if e.Batch == 0 || e.Index >= e.Batch {
				t.Errorf("%+v", e)
			}
		}
		if n := len(log.of(flow.EventSuccess)) + len(log.of(flow.EventFailure)); n != 5 {
			t.Errorf("%d outcomes, want 5", n)
		}
		retried := uint64(0)
		for _, e := range append(log.of(flow.EventSuccess), log.of(flow.EventFailure)...) {
			retried += uint64(e.Attempt - 1)
		}
		if retried != sums[0].Retried {
			t.Errorf("the events tell of %d retries, the Summary of %d", retried, sums[0].Retried)
		}
	})
}
