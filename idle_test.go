package flow_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
)

const idle = 10 * time.Second

// pass lets fake time pass, and everything come to rest.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// wantIdleEnd says that c lives until d from now and not longer, and ends by the idle timeout.
func wantIdleEnd(t *testing.T, c *call, d time.Duration) {
	t.Helper()
	pass(d - 1)
	if c.over() {
		t.Fatal("the stream has ended too early")
	}
	pass(1)
	_, err := c.result(t)
	failureOf(t, err, flow.FailureContextCancelled)
	if code := status.Code(err); code != codes.DeadlineExceeded {
		t.Errorf("code is %v, want DeadlineExceeded", code)
	}
}

func TestStreamFromWhichNothingComesEndsAfterIdleTimeout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		wantIdleEnd(t, start(t, mustNew(t, succeed, flow.Options{IdleTimeout: idle})), idle)
	})
}

func TestIdleTimeoutRunsFromTheLastReceipt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t, mustNew(t, succeed, flow.Options{IdleTimeout: idle}))
		for range 5 {
			pass(idle - 1)
			c.Send("a1")
		}
		wantIdleEnd(t, c, idle)
		if sum, _ := c.result(t); sum.Succeeded != 5 || sum.Committed != 5 {
			t.Errorf("summary is %+v, want 5 succeeded", sum)
		}
	})
}

func TestIdleTimeoutRunsFromTheLastFinish(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{IdleTimeout: idle, Ordering: keyed}), "a1", "b1")
		pass(3 * idle) // something is pending
		s.finish(t, "a1")
		pass(3*idle + 7)
		s.finish(t, "b1")
		wantIdleEnd(t, c, idle)
	})
}

func TestIdleTimeoutDoesNotRunWhileAMessageWaitsForItsNextTry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			IdleTimeout: idle, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: 5 * idle},
		})
		c := start(t, f, "a1")
		s.fail(t, "a1", errHandler)
		pass(5 * idle)
		wantNow(t, s, "a1")
		s.finish(t, "a1")
		wantIdleEnd(t, c, idle)
	})
}

func TestIdleTimeoutDoesNotRunWhileTheStreamIsNotRead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{IdleTimeout: idle, MaxPending: 1}), "a1", "a2")
		pass(5 * idle)
		s.finish(t, "a1")
		pass(5 * idle)
		s.finish(t, "a2")
		wantIdleEnd(t, c, idle)
	})
}

func TestIdleTimeoutDoesNotRunWhileTheReceiverIsInTheCallersFunctions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, err := flow.New(succeed, func(string) string { time.Sleep(3 * idle); return "" }, flow.Options{IdleTimeout: idle})
		if err != nil {
			t.Fatal(err)
		}
		c := start(t, f, "a1")
		pass(3 * idle) // the key function; the message finishes at once
		wantIdleEnd(t, c, idle)
	})
}

func TestIdleTimeoutDoesNotRunWhileOnFailureDecidesOnReceipt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			IdleTimeout:  idle,
			Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1},
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction {
				time.Sleep(3 * idle)
				return flow.SkipMessage
			},
		})
		c := start(t, f, "a1", "b1")
		s.finish(t, "a1")
		pass(3 * idle)
		wantIdleEnd(t, c, idle)
	})
}

func TestWithoutIdleTimeoutAStreamWaitsForEver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t, mustNew(t, succeed, flow.Options{}))
		pass(10000 * time.Hour)
		if c.over() {
			t.Error("the stream has ended")
		}
	})
}

func TestIdleTimeoutIsEachStreamsOwn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := mustNew(t, succeed, flow.Options{IdleTimeout: idle})
		one := start(t, f)
		pass(idle / 2)
		two := start(t, f)
		wantIdleEnd(t, one, idle/2)
		wantIdleEnd(t, two, idle/2)
	})
}

func TestStreamThatEndsInTimeIsNotTouchedByItsIdleTimeout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{IdleTimeout: idle}), "a1")
		c.End()
		pass(2 * idle)
		s.finish(t, "a1")
		if sum, err := c.result(t); err != nil || sum.Succeeded != 1 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
		pass(2 * idle)
	})
}
