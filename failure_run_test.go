package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
)

func TestFirstFailureEndsTheStreamAndIsTheOneReturned(t *testing.T) {
	bubble(t, func(t *testing.T) {
		second := errors.New("second")
		f := mustNew(t, func(ctx context.Context, m flow.Message[string]) error {
			if m.Value == "a1" {
				time.Sleep(time.Second)
				return errHandler
			}
			<-ctx.Done()
			time.Sleep(time.Second)
			return second
		}, flow.Options{Ordering: keyed})
		c := start(t, f, "b1", "a1", "c1")
		pass(2 * time.Second)
		sum, err := c.result(t)
		if fault := failureOf(t, err, flow.FailureHandlerError); fault.Seq != 2 || fault.Err != errHandler {
			t.Errorf("failure is %+v, want that of message 2", fault)
		}
		if sum.Failed != 3 {
			t.Errorf("summary is %+v", sum)
		}
		conserved(t, sum)
	})
}

func TestFailureCancelsTheOtherHandlersAndIsTheirCause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		causes := make(chan error, 1)
		f := mustNew(t, func(ctx context.Context, m flow.Message[string]) error {
			if m.Value == "a1" {
				time.Sleep(time.Second)
				return errHandler
			}
			<-ctx.Done()
			causes <- context.Cause(ctx)
			return ctx.Err()
		}, flow.Options{Ordering: keyed})
		c := start(t, f, "a1", "b1")
		pass(time.Second)
		_, err := c.result(t)
		if cause := <-causes; cause != err {
			t.Errorf("cause is %v, want the failure that Run returned: %v", cause, err)
		}
	})
}

func TestEndOfRunsOwnContextIsTheHandlersCause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		why := errors.New("the test said so")
		causes := make(chan error, 1)
		f := mustNew(t, func(ctx context.Context, m flow.Message[string]) error {
			<-ctx.Done()
			causes <- context.Cause(ctx)
			return ctx.Err()
		}, flow.Options{})
		c := start(t, f, "a1", "b1")
		c.cancel(why)
		c.End()
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureContextCancelled)
		if !errors.Is(err, context.Canceled) || !errors.Is(err, why) || status.Code(err) != codes.Canceled {
			t.Errorf("Run() = %v, want Canceled because %v", err, why)
		}
		if cause := <-causes; cause != why {
			t.Errorf("cause is %v, want %v", cause, why)
		}
		if sum.Failed != 1 || sum.Dropped != 1 || sum.Committed != 0 {
			t.Errorf("summary is %+v", sum)
		}
	})
}

func TestRunReturnsAtOnceWhenItsMessageFailsWhileRecvIsBlocked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{Ordering: keyed}), "a1", "b1", "b2")
		began := time.Now()
		s.fail(t, "a1", errHandler) // the client is silent
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureHandlerError)
		if d := time.Since(began); d != 0 {
			t.Errorf("Run returned after %v", d)
		}
		if sum.Received != 3 || sum.Failed != 2 || sum.Dropped != 1 {
			t.Errorf("summary is %+v: what runs fails, what waits is dropped", sum)
		}
		c.Send("late1") // what recv returns now is nobody's
		if got := s.history(); got != "a1 b1" && got != "b1 a1" {
			t.Errorf("started: %q", got)
		}
	})
}

func TestRunReturnsWhenItsContextEndsWhileRecvIsBlocked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t, mustNew(t, succeed, flow.Options{}), "a1")
		c.cancel(nil)
		pass(time.Second) // briefly awaits recv
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureContextCancelled)
		if sum.Succeeded != 1 || sum.Committed != 1 {
			t.Errorf("summary is %+v", sum)
		}
	})
}

func TestNoHandlerOutlivesItsRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var running atomic.Int32
		f := mustNew(t, func(ctx context.Context, m flow.Message[string]) error {
			running.Add(1)
			defer running.Add(-1)
			if m.Value == "a1" {
				return errHandler
			}
			time.Sleep(time.Hour) // heeds no context
			return nil
		}, flow.Options{Ordering: keyed})
		c := start(t, f, "b1", "c1", "a1")
		if c.over() {
			t.Fatal("Run returned while handlers ran")
		}
		pass(time.Hour)
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureHandlerError)
		if n := running.Load(); n != 0 || sum.Succeeded != 2 || !slices.Equal(sum.Unsettled, []uint64{3}) {
			t.Errorf("%d handlers run; %+v", n, sum)
		}
	})
}

func TestNoHandlerStartsOnceItsStreamsContextHasEnded(t *testing.T) {
	for _, ordering := range []flow.OrderingOptions{{}, keyed, {Mode: flow.OrderingNone}} {
		for round := range 20 {
			bubble(t, func(t *testing.T) {
				capacity := 1 + round/2%2
				var late atomic.Int32
				ctx, cancel := context.WithCancel(t.Context())
				f := mustNew(t, func(own context.Context, m flow.Message[string]) error {
					if own.Err() != nil {
						late.Add(1)
					}
					if m.Seq == 3 {
						if round%2 == 0 {
							cancel()
							return nil
						}
						return errHandler
					}
					if m.Seq > 3 { // a slot that this leaves on cancel must not start the next
						<-own.Done()
						return own.Err()
					}
					return nil
				}, flow.Options{Ordering: ordering, Backpressure: flow.BackpressureOptions{Capacity: capacity}})
				sum, err := f.Run(ctx, given(many(50)...))
				cancel()
				if err == nil || int(late.Load()) >= capacity { // the other of two may have been started before
					t.Errorf("%v: Run() = %+v, %v; %d started late", ordering.Mode, sum, err, late.Load())
				}
				conserved(t, sum)
			})
		}
	}
}

func TestRunOnAContextThatHasEndedReadsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errHandler)
		sum, err := mustNew(t, succeed, flow.Options{}).Run(ctx, func() (string, error) {
			t.Error("recv was called")
			return "", io.EOF
		})
		failureOf(t, err, flow.FailureContextCancelled)
		if sum.Received != 0 || !errors.Is(err, errHandler) {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestContextsValuesAndDeadlineReachHandlersAndOnFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		type key struct{}
		ctx, cancel := context.WithDeadline(context.WithValue(t.Context(), key{}, "value"), time.Now().Add(time.Hour))
		defer cancel()
		want, _ := ctx.Deadline()
		check := func(where string, got context.Context) {
			if d, ok := got.Deadline(); !ok || d != want || got.Value(key{}) != "value" {
				t.Errorf("%s: value %v, deadline %v", where, got.Value(key{}), d)
			}
		}
		f := mustNew(t, func(own context.Context, _ flow.Message[string]) error {
			check("handler", own)
			return errHandler
		}, flow.Options{OnFailure: func(own context.Context, _ *flow.Failure) flow.FailureAction {
			check("OnFailure", own)
			return flow.SkipMessage
		}})
		if sum, err := f.Run(ctx, given("a1")); err != nil || sum.Failed != 1 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestDeadlineOfTheStreamEndsItWithDeadlineExceeded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		f := mustNew(t, newStage().handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 9}})
		sum, err := f.Run(ctx, given("a1", "a2"))
		failureOf(t, err, flow.FailureContextCancelled)
		if status.Code(err) != codes.DeadlineExceeded || sum.Retried != 0 || sum.Failed != 1 || sum.Dropped != 1 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestContextErrorOfAHandlerWhoseStreamLivesIsItsOwn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, own := range []error{
			context.DeadlineExceeded, context.Canceled, fmt.Errorf("database: %w", context.Canceled),
			status.Error(codes.Canceled, "upstream"), status.Error(codes.DeadlineExceeded, "upstream"),
		} {
			f := mustNew(t, func(context.Context, flow.Message[string]) error { return own },
				flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2}})
			sum, err := f.Run(t.Context(), given("a1"))
			failureOf(t, err, flow.FailureHandlerError)
			if sum.Retried != 1 || !errors.Is(err, own) {
				t.Errorf("%v: Run() = %+v, %v, want a second try", own, sum, err)
			}
		}
	})
}

func TestCommittedAndUnsettledAreExact(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed, OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
			if f.Seq == 3 {
				return flow.SkipMessage
			}
			return flow.FailStream
		}})
		c := start(t, f, "a1", "b1", "c1", "d1", "e1", "b2", "a2")
		s.finish(t, "a1", "d1", "a2")
		s.fail(t, "c1", errHandler)
		s.fail(t, "e1", errHandler)
		sum, _ := c.result(t)
		conserved(t, sum)
		if sum.Committed != 1 || !slices.Equal(sum.Unsettled, []uint64{2, 5, 6}) || sum.Succeeded != 3 || sum.Failed != 3 {
			t.Errorf("summary is %+v, want 1 committed and 2, 5, 6 unsettled", sum)
		}
		for seq, want := range []bool{1: true, 3: true, 4: true, 7: true, 8: false} {
			if got := sum.Progress().Settled(uint64(seq)); got != want {
				t.Errorf("Settled(%d) = %v", seq, got)
			}
		}
		synctest.Wait()
	})
}
