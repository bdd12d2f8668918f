package flow_test

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

// skipAll is an OnFailure that skips every message.
func skipAll(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }

func TestBatchOutcomesAreEachMessagesOwn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		var log eventLog
		o := flow.Options{OnFailure: skipAll, Observer: log.observe, Ordering: keyed}
		o.Retry = flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second}
		f := mustNewBatch(t, s.handle, o)
		release := occupied(t, f, &s)
		a, b := start(t, f, "a1", "b1", "c1"), start(t, f, "a1", "a2")
		release()
		s.wantCalls(t, "a1 a1 b1 a2 c1")
		s.give(t, "a1 a1 b1 a2 c1", errHandler, nil, flow.Permanent(errHandler), nil, errHandler)
		s.wantCalls(t, "")
		time.Sleep(time.Second)
		s.wantCalls(t, "a1 c1")
		s.succeed(t, "a1 c1")
		a.End()
		b.End()
		a.wantSummary(t, flow.Summary{Succeeded: 2, Failed: 1, Retried: 2})
		b.wantSummary(t, flow.Summary{Succeeded: 2})
		if n := len(log.of(flow.EventRetry)); n != 2 {
			t.Errorf("%d times EventRetry, want 2", n)
		}
	})
}

func TestBatchSuccessIsNotRunAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2}})
		release := occupied(t, f, &s)
		c := start(t, f, "a1", "a2", "a3")
		release()
		s.give(t, "a1 a2 a3", nil, errHandler, nil)
		s.wantCalls(t, "a2")
		s.succeed(t, "a2")
		c.End()
		c.wantSummary(t, flow.Summary{Succeeded: 3, Retried: 1})
	})
}

func TestBatchLaterMessageOfFailedKeyWaitsForOnFailure(t *testing.T) {
	for _, action := range []flow.FailureAction{flow.SkipMessage, flow.SkipKey, flow.FailStream} {
		bubble(t, func(t *testing.T) {
			var s batchStage
			answer := make(chan flow.FailureAction)
			o := flow.Options{Ordering: keyed, OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
				if f.Kind == flow.FailureOrdering {
					return flow.SkipMessage
				}
				return <-answer
			}}
			o.Backpressure.Capacity = 2
			f := mustNewBatch(t, s.handle, o)
			c := start(t, f, "a1")
			c.Send("a2", "b1")
			s.wantCalls(t, "a1 | b1")
			s.give(t, "a1", errHandler)
			c.Send("a3")
			s.succeed(t, "b1")
			s.wantCalls(t, "") // although there are slots
			answer <- action
			c.End()
			switch action {
			case flow.SkipMessage:
				s.succeed(t, "a2 a3")
				c.wantSummary(t, flow.Summary{Succeeded: 3, Failed: 1})
			case flow.SkipKey:
				c.wantSummary(t, flow.Summary{Succeeded: 1, Failed: 1, Rejected: 2})
			default:
				c.wantSummary(t, flow.Summary{Succeeded: 1, Failed: 1, Dropped: 2})
			}
		})
	}
}

func TestBatchNotAttemptedComesFirstNext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{Batch: flow.BatchOptions{MaxMessages: 3}})
		release := occupied(t, f, &s)
		a, b := start(t, f, "a1", "a2"), start(t, f, "b1", "b2")
		release()
		start(t, f, "c1")
		s.wantCalls(t, "a1 b1 a2")
		s.give(t, "a1 b1 a2", nil, flow.ErrNotAttempted, flow.ErrNotAttempted)
		s.wantCalls(t, "b1 a2 c1")
		s.call(t, "b1 a2 c1")
		for _, m := range s.calls[0].batch {
			if m.Attempt != 1 {
				t.Errorf("%s has Attempt %d", m.Value, m.Attempt)
			}
		}
		s.succeed(t, "b1 a2 c1", "b2")
		a.End()
		b.End()
		a.wantSummary(t, flow.Summary{Succeeded: 2})
		b.wantSummary(t, flow.Summary{Succeeded: 2})
	})
}

func TestBatchNotAttemptedWaitsBehindWhatIsRetried(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}})
		release := occupied(t, f, &s)
		start(t, f, "a1", "a2", "a3")
		release()
		s.give(t, "a1 a2 a3", errHandler, flow.ErrNotAttempted, flow.ErrNotAttempted)
		s.wantCalls(t, "")
		time.Sleep(time.Second)
		s.wantCalls(t, "a1 a2 a3")
		s.succeed(t, "a1 a2 a3")
	})
}

func TestBatchAllNotAttemptedIsAFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		o := flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}, OnFailure: skipAll}
		o.Batch.NoIsolation = true
		var failures []*flow.Failure
		o.OnFailure = func(_ context.Context, f *flow.Failure) flow.FailureAction {
			failures = append(failures, f)
			return flow.SkipMessage
		}
		f := mustNewBatch(t, s.handle, o)
		release := occupied(t, f, &s)
		c := start(t, f, "a1", "a2")
		release()
		s.give(t, "a1 a2", flow.ErrNotAttempted, flow.ErrNotAttempted)
		s.wantNoneUntil(t, time.Second, "a1 a2")
		s.give(t, "a1 a2", flow.ErrNotAttempted, flow.ErrNotAttempted)
		c.End()
		c.wantSummary(t, flow.Summary{Failed: 2, Retried: 2})
		for _, f := range failures {
			if f.Kind != flow.FailureHandlerError || !strings.Contains(f.Error(), "nothing attempted") {
				t.Errorf("OnFailure was asked about %v", f)
			}
		}
		if len(failures) != 2 {
			t.Errorf("OnFailure was asked %d times", len(failures))
		}
	})
}

func TestBatchWholeFailureStaysTogether(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second}})
		release := occupied(t, f, &s)
		a, b := start(t, f, "a1", "a2"), start(t, f, "b1")
		release()
		s.fail(t, "a1 b1 a2", errHandler)
		s.wantCalls(t, "")
		start(t, f, "c1") // does not join them, and does not wait for them
		s.succeed(t, "c1")
		time.Sleep(time.Second - 1)
		s.wantCalls(t, "")
		time.Sleep(time.Nanosecond)
		s.fail(t, "a1 b1 a2", errHandler)
		b.cancel(nil) // less what has ended
		b.End()
		b.wantSummary(t, flow.Summary{Failed: 1, Retried: 1})
		time.Sleep(time.Second)
		s.wantCalls(t, "a1 a2")
		for _, m := range s.call(t, "a1 a2").batch {
			if m.Attempt != 3 {
				t.Errorf("%s has Attempt %d, want 3", m.Value, m.Attempt)
			}
		}
		s.succeed(t, "a1 a2")
		a.End()
		a.wantSummary(t, flow.Summary{Succeeded: 2, Retried: 4})
	})
}

func TestBatchBudgetCountsCalls(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		o := flow.Options{OnFailure: skipAll, Ordering: flow.OrderingOptions{Mode: flow.OrderingNone}}
		o.Retry = flow.RetryOptions{MaxAttempts: 9, Budget: flow.RetryBudget{MaxTokens: 4, TokenRatio: 0.5}}
		o.Batch.NoIsolation = true
		f := mustNewBatch(t, s.handle, o)
		release := occupied(t, f, &s) // full stays full
		c := start(t, f, "a1", "a2", "a3", "a4")
		release()
		s.give(t, "a1 a2 a3 a4", errHandler, errHandler, errHandler) // one token: 3
		s.give(t, "a1 a2 a3", errHandler, errHandler, errHandler)    // the second: 2, which is half, so nothing is retried
		c.Send("a5")                                                 // a call without a failure: 2.5
		s.succeed(t, "a5")
		c.Send("a6")
		s.fail(t, "a6", errHandler) // as a whole: 1.5
		c.End()
		c.wantSummary(t, flow.Summary{Succeeded: 2, Failed: 4, Retried: 3})
	})
}

func TestBatchLaterMessageThatRanIsBelievedBehindSkipKey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		o := flow.Options{Ordering: keyed, OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
			if f.Kind == flow.FailureHandlerError {
				return flow.SkipKey
			}
			return flow.SkipMessage
		}}
		o.Retry = flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}
		f := mustNewBatch(t, s.handle, o)
		release := occupied(t, f, &s)
		c := start(t, f, "a1", "a2", "a3", "a4", "a5")
		release()
		s.give(t, "a1 a2 a3 a4 a5", flow.Permanent(errHandler), nil, flow.ErrNotAttempted, errHandler, nil)
		s.wantCalls(t, "")
		c.End()
		c.wantSummary(t, flow.Summary{Succeeded: 2, Failed: 1, Rejected: 2})
	})
}

func TestBatchRetryableIsAskedOncePerWholeFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		asked := 0
		o := flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Retryable: func(error) bool { asked++; return true }}}
		f := mustNewBatch(t, s.handle, o)
		release := occupied(t, f, &s)
		start(t, f, "a1", "a2", "a3")
		release()
		s.fail(t, "a1 a2 a3", errHandler)
		if asked != 1 {
			t.Errorf("Retryable was asked %d times, want once", asked)
		}
		s.succeed(t, "a1 a2 a3")
	})
}

func TestBatchRetryableThatPanicsIsAFailureOfTheCall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		o := flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Retryable: func(error) bool { panic("Retryable") }}}
		o.Batch.NoIsolation = true
		f := mustNewBatch(t, s.handle, o)
		release := occupied(t, f, &s)
		c := start(t, f, "a1", "a2")
		release()
		s.fail(t, "a1 a2", errHandler)
		_, err := c.result(t)
		failureOf(t, err, flow.FailureInternal)
		c.wantSummary(t, flow.Summary{Failed: 2})
	})
}

var crashesOfHandlers = map[string]func(){
	"panic": func() { panic("the handler panics") }, "panic(nil)": func() { panic(nil) }, "Goexit": runtime.Goexit,
}

func TestBatchEndsOfEachKindAreTheCallsFailure(t *testing.T) {
	for name, crash := range crashesOfHandlers {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var s batchStage
				f := mustNewBatch(t, s.handle, flow.Options{Batch: flow.BatchOptions{NoIsolation: true}})
				release := occupied(t, f, &s)
				a, b := start(t, f, "a1"), start(t, f, "b1")
				release()
				s.end(t, "a1 b1", func([]error) error { crash(); return nil })
				for _, c := range []*call{a, b} {
					_, err := c.result(t)
					failureOf(t, err, flow.FailureInternal)
					c.wantSummary(t, flow.Summary{Failed: 1})
				}
				synctest.Wait()
			})
		})
	}
}
