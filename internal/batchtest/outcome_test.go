package batchtest_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
)

// skipAll is an OnFailure that skips every message.
func skipAll(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }

func TestBatchOutcomesAreEachMessagesOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		var log testkit.EventLog
		o := flow.Options{OnFailure: skipAll, Observer: log.Observe, Ordering: testkit.Keyed}
		o.Retry = flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second}
		f := testkit.NewBatch(t, s.Handle, o)
		release := testkit.Occupy(t, f, &s)
		a, b := testkit.Start(t, f, "a1", "b1", "c1"), testkit.Start(t, f, "a1", "a2")
		release()
		s.WantCalls(t, "a1 a1 b1 a2 c1")
		s.Return(t, "a1 a1 b1 a2 c1", testkit.ErrHandler, nil, flow.Permanent(testkit.ErrHandler), nil, testkit.ErrHandler)
		s.WantCalls(t, "")
		time.Sleep(time.Second)
		s.WantCalls(t, "a1 c1")
		s.Succeed(t, "a1 c1")
		a.End()
		b.End()
		a.WantSummary(t, flow.Summary{Succeeded: 2, Failed: 1, Retried: 2})
		b.WantSummary(t, flow.Summary{Succeeded: 2})
		if n := len(log.Of(flow.EventRetry)); n != 2 {
			t.Errorf("%d times EventRetry, want 2", n)
		}
	})
}

func TestBatchSuccessIsNotRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2}})
		release := testkit.Occupy(t, f, &s)
		c := testkit.Start(t, f, "a1", "a2", "a3")
		release()
		s.Return(t, "a1 a2 a3", nil, testkit.ErrHandler, nil)
		s.WantCalls(t, "a2")
		s.Succeed(t, "a2")
		c.End()
		c.WantSummary(t, flow.Summary{Succeeded: 3, Retried: 1})
	})
}

func TestBatchLaterMessageOfFailedKeyWaitsForOnFailure(t *testing.T) {
	for _, action := range []flow.FailureAction{flow.SkipMessage, flow.SkipKey, flow.FailStream} {
		synctest.Test(t, func(t *testing.T) {
			var s testkit.ManualBatchHandler
			answer := make(chan flow.FailureAction)
			o := flow.Options{Ordering: testkit.Keyed, OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
				if f.Kind == flow.FailureOrdering {
					return flow.SkipMessage
				}
				return <-answer
			}}
			o.Backpressure.Capacity = 2
			f := testkit.NewBatch(t, s.Handle, o)
			c := testkit.Start(t, f, "a1")
			c.Send("a2", "b1")
			s.WantCalls(t, "a1 | b1")
			s.Return(t, "a1", testkit.ErrHandler)
			c.Send("a3")
			s.Succeed(t, "b1")
			s.WantCalls(t, "") // although there are slots
			answer <- action
			c.End()
			switch action {
			case flow.SkipMessage:
				s.Succeed(t, "a2 a3")
				c.WantSummary(t, flow.Summary{Succeeded: 3, Failed: 1})
			case flow.SkipKey:
				c.WantSummary(t, flow.Summary{Succeeded: 1, Failed: 1, Rejected: 2})
			default:
				c.WantSummary(t, flow.Summary{Succeeded: 1, Failed: 1, Dropped: 2})
			}
		})
	}
}

func TestBatchNotAttemptedComesFirstNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Batch: flow.BatchOptions{MaxMessages: 3}})
		release := testkit.Occupy(t, f, &s)
		a, b := testkit.Start(t, f, "a1", "a2"), testkit.Start(t, f, "b1", "b2")
		release()
		testkit.Start(t, f, "c1")
		s.WantCalls(t, "a1 b1 a2")
		s.Return(t, "a1 b1 a2", nil, flow.ErrNotAttempted, flow.ErrNotAttempted)
		s.WantCalls(t, "b1 a2 c1")
		for _, m := range s.Call(t, "b1 a2 c1").Batch {
			if m.Attempt != 1 {
				t.Errorf("%s has Attempt %d", m.Value, m.Attempt)
			}
		}
		s.Succeed(t, "b1 a2 c1", "b2")
		a.End()
		b.End()
		a.WantSummary(t, flow.Summary{Succeeded: 2})
		b.WantSummary(t, flow.Summary{Succeeded: 2})
	})
}

func TestBatchNotAttemptedIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		var log testkit.EventLog
		f := testkit.NewBatch(t, s.Handle, flow.Options{
			Observer: log.Observe, OnFailure: skipAll, Ordering: testkit.Keyed, Retry: flow.RetryOptions{MaxAttempts: 2},
		})
		release := testkit.Occupy(t, f, &s)
		a := testkit.Start(t, f, "a1", "b1", "c1")
		release()
		a.End()
		s.Return(t, "a1 b1 c1", flow.ErrNotAttempted, testkit.ErrHandler, nil)
		s.Return(t, "a1 b1", flow.ErrNotAttempted, nil)
		s.Succeed(t, "a1")
		a.WantSummary(t, flow.Summary{Succeeded: 3, Retried: 1})
		var told []string
		for _, e := range log.All() {
			if e.Stream == 2 && e.Seq > 0 {
				told = append(told, fmt.Sprintf("%s %s%d %d/%d",
					strings.TrimPrefix(e.Kind.String(), "Event"), e.Key, e.Attempt, e.Index, e.Batch))
			}
		}
		// Of each call, one of those that were attempted has Index 0.
		want := []string{
			"Attempt a1 0/3", "Attempt b1 1/3", "Attempt c1 2/3", "Retry b1 0/3", "Success c1 2/3",
			"Attempt b2 1/2", "Success b2 0/2", "Success a1 0/1",
		}
		if !slices.Equal(told, want) {
			t.Errorf("told of\n%q, want\n%q", told, want)
		}
	})
}

func TestBatchEndWhileNotAttemptedIsNoCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		var log testkit.EventLog
		f := testkit.NewBatch(t, s.Handle, flow.Options{
			Observer: log.Observe, Ordering: testkit.Keyed, Retry: flow.RetryOptions{MaxAttempts: 5},
		})
		release := testkit.Occupy(t, f, &s)
		a, b := testkit.Start(t, f, "a1"), testkit.Start(t, f, "b1")
		release()
		s.Return(t, "a1 b1", testkit.ErrHandler, testkit.ErrHandler)
		a.Cancel(nil)
		a.End()
		time.Sleep(time.Second)
		s.Return(t, "a1 b1", flow.ErrNotAttempted, nil)
		b.End()
		a.WantSummary(t, flow.Summary{Failed: 1})
		b.WantSummary(t, flow.Summary{Succeeded: 1, Retried: 1})
		for _, e := range log.Of(flow.EventFailure) {
			if e.Took != 0 || e.Batch != 0 {
				t.Errorf("told of a call that took %v, %d/%d", e.Took, e.Index, e.Batch)
			}
		}
		if e := log.Of(flow.EventSuccess); e[len(e)-1].Index != 0 {
			t.Errorf("nobody tells of the call: %+v", e[len(e)-1])
		}
	})
}

func TestBatchNotAttemptedWaitsBehindWhatIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}})
		release := testkit.Occupy(t, f, &s)
		testkit.Start(t, f, "a1", "a2", "a3")
		release()
		s.Return(t, "a1 a2 a3", testkit.ErrHandler, flow.ErrNotAttempted, flow.ErrNotAttempted)
		s.WantCalls(t, "")
		time.Sleep(time.Second)
		s.WantCalls(t, "a1 a2 a3")
		s.Succeed(t, "a1 a2 a3")
	})
}

func TestBatchAllNotAttemptedIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		o := flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}, OnFailure: skipAll}
		o.Batch.NoIsolation = true
		var failures []*flow.Failure
		o.OnFailure = func(_ context.Context, f *flow.Failure) flow.FailureAction {
			failures = append(failures, f)
			return flow.SkipMessage
		}
		f := testkit.NewBatch(t, s.Handle, o)
		release := testkit.Occupy(t, f, &s)
		c := testkit.Start(t, f, "a1", "a2")
		release()
		s.Return(t, "a1 a2", flow.ErrNotAttempted, flow.ErrNotAttempted)
		s.WantNoneUntil(t, time.Second, "a1 a2")
		s.Return(t, "a1 a2", flow.ErrNotAttempted, flow.ErrNotAttempted)
		c.End()
		c.WantSummary(t, flow.Summary{Failed: 2, Retried: 2})
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
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second}})
		release := testkit.Occupy(t, f, &s)
		a, b := testkit.Start(t, f, "a1", "a2"), testkit.Start(t, f, "b1")
		release()
		s.Fail(t, "a1 b1 a2", testkit.ErrHandler)
		s.WantCalls(t, "")
		testkit.Start(t, f, "c1") // does not join them, and does not wait for them
		s.Succeed(t, "c1")
		time.Sleep(time.Second - 1)
		s.WantCalls(t, "")
		time.Sleep(time.Nanosecond)
		s.Fail(t, "a1 b1 a2", testkit.ErrHandler)
		b.Cancel(nil) // less what has ended
		b.End()
		b.WantSummary(t, flow.Summary{Failed: 1, Retried: 1})
		time.Sleep(time.Second)
		s.WantCalls(t, "a1 a2")
		for _, m := range s.Call(t, "a1 a2").Batch {
			if m.Attempt != 3 {
				t.Errorf("%s has Attempt %d, want 3", m.Value, m.Attempt)
			}
		}
		s.Succeed(t, "a1 a2")
		a.End()
		a.WantSummary(t, flow.Summary{Succeeded: 2, Retried: 4})
	})
}

func TestBatchBudgetCountsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		o := flow.Options{OnFailure: skipAll, Ordering: flow.OrderingOptions{Mode: flow.OrderingNone}}
		o.Retry = flow.RetryOptions{MaxAttempts: 9, Budget: flow.RetryBudget{MaxTokens: 4, TokenRatio: 0.5}}
		o.Batch.NoIsolation = true
		f := testkit.NewBatch(t, s.Handle, o)
		release := testkit.Occupy(t, f, &s) // full stays full
		c := testkit.Start(t, f, "a1", "a2", "a3", "a4")
		release()
		s.Return(t, "a1 a2 a3 a4", testkit.ErrHandler, testkit.ErrHandler, testkit.ErrHandler) // one token: 3
		s.Return(t, "a1 a2 a3", testkit.ErrHandler, testkit.ErrHandler, testkit.ErrHandler)    // the second: 2, which is half, so nothing is retried
		c.Send("a5")                                                                           // a call without a failure: 2.5
		s.Succeed(t, "a5")
		c.Send("a6")
		s.Fail(t, "a6", testkit.ErrHandler) // as a whole: 1.5
		c.End()
		c.WantSummary(t, flow.Summary{Succeeded: 2, Failed: 4, Retried: 3})
	})
}

func TestBatchLaterMessageThatRanIsBelievedBehindSkipKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		o := flow.Options{Ordering: testkit.Keyed, OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
			if f.Kind == flow.FailureHandlerError {
				return flow.SkipKey
			}
			return flow.SkipMessage
		}}
		o.Retry = flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}
		f := testkit.NewBatch(t, s.Handle, o)
		release := testkit.Occupy(t, f, &s)
		c := testkit.Start(t, f, "a1", "a2", "a3", "a4", "a5")
		release()
		s.Return(t, "a1 a2 a3 a4 a5", flow.Permanent(testkit.ErrHandler), nil, flow.ErrNotAttempted, testkit.ErrHandler, nil)
		s.WantCalls(t, "")
		c.End()
		c.WantSummary(t, flow.Summary{Succeeded: 2, Failed: 1, Rejected: 2})
	})
}

func TestBatchRetryableIsAskedOncePerWholeFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		asked := 0
		o := flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Retryable: func(error) bool { asked++; return true }}}
		f := testkit.NewBatch(t, s.Handle, o)
		release := testkit.Occupy(t, f, &s)
		testkit.Start(t, f, "a1", "a2", "a3")
		release()
		s.Fail(t, "a1 a2 a3", testkit.ErrHandler)
		if asked != 1 {
			t.Errorf("Retryable was asked %d times, want once", asked)
		}
		s.Succeed(t, "a1 a2 a3")
	})
}

func TestBatchRetryableThatPanicsIsAFailureOfTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		o := flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Retryable: func(error) bool { panic("Retryable") }}}
		o.Batch.NoIsolation = true
		f := testkit.NewBatch(t, s.Handle, o)
		release := testkit.Occupy(t, f, &s)
		c := testkit.Start(t, f, "a1", "a2")
		release()
		s.Fail(t, "a1 a2", testkit.ErrHandler)
		_, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureInternal)
		c.WantSummary(t, flow.Summary{Failed: 2})
	})
}

var crashesOfHandlers = map[string]func(){
	"panic": func() { panic("the handler panics") }, "panic(nil)": func() { panic(nil) }, "Goexit": runtime.Goexit,
}

func TestBatchEndsOfEachKindAreTheCallsFailure(t *testing.T) {
	for name, crash := range crashesOfHandlers {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s testkit.ManualBatchHandler
				f := testkit.NewBatch(t, s.Handle, flow.Options{Batch: flow.BatchOptions{NoIsolation: true}})
				release := testkit.Occupy(t, f, &s)
				a, b := testkit.Start(t, f, "a1"), testkit.Start(t, f, "b1")
				release()
				s.EndWith(t, "a1 b1", func([]error) error { crash(); return nil })
				for _, c := range []*testkit.Stream{a, b} {
					_, err := c.Result(t)
					testkit.FailureOf(t, err, flow.FailureInternal)
					c.WantSummary(t, flow.Summary{Failed: 1})
				}
				synctest.Wait()
			})
		})
	}
}
