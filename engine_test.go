package flow_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
)

func TestEngineAloneRunsAMessageAndSetsItsAttempt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var got []flow.Message[string]
		e := flow.NewEngine(func(_ context.Context, m flow.Message[string]) error {
			got = append(got, m)
			if len(got) < 3 {
				return errHandler
			}
			return nil
		}, flow.RetryOptions{MaxAttempts: 5, Backoff: time.Second, Multiplier: 2})
		began := time.Now()
		m := flow.Message[string]{Seq: 7, Key: "k", Value: "v", Attempt: 42, Pressured: true}
		if err := e.Execute(t.Context(), m); err != nil {
			t.Errorf("Execute() = %v", err)
		}
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("took %v, want 1s and 2s of backoff", d)
		}
		for i, g := range got {
			if m.Attempt = i + 1; g != m {
				t.Errorf("attempt %d is %+v, want %+v", i+1, g, m)
			}
		}
	})
}

func TestEnginesErrorIsAFailureThatKnowsItsMessage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := flow.NewEngine(func(context.Context, flow.Message[string]) error { return errHandler },
			flow.RetryOptions{MaxAttempts: 2})
		err := e.Execute(t.Context(), flow.Message[string]{Seq: 7, Key: "k", Value: "v"})
		f := failureOf(t, err, flow.FailureHandlerError)
		if f.Seq != 7 || f.Key != "k" || f.Value != "v" || f.Attempts != 2 || f.Err != errHandler {
			t.Errorf("failure is %+v", f)
		}
	})
}

func TestEngineRecoversCrashes(t *testing.T) {
	for how, crash := range crashes {
		bubble(t, func(t *testing.T) {
			n := 0
			e := flow.NewEngine(func(context.Context, flow.Message[string]) error { n++; crash(); return nil },
				flow.RetryOptions{MaxAttempts: 3})
			err := e.Execute(t.Context(), flow.Message[string]{Seq: 1, Value: "v"})
			if f := failureOf(t, err, flow.FailureInternal); f.Attempts != 1 || f.Value != "v" || n != 1 {
				t.Errorf("%s: failure is %+v after %d calls: a crash is not tried again", how, f, n)
			}
		})
	}
}

func TestEnginesWaitEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		why := errors.New("why")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, why)
		defer cancel()
		e := flow.NewEngine(func(context.Context, flow.Message[string]) error { return errHandler },
			flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour})
		began := time.Now()
		err := e.Execute(ctx, flow.Message[string]{})
		f := failureOf(t, err, flow.FailureContextCancelled)
		if time.Since(began) != time.Second || f.Attempts != 1 {
			t.Errorf("after %v: %+v", time.Since(began), f)
		}
		for _, cause := range []error{context.DeadlineExceeded, why, errHandler} {
			if !errors.Is(err, cause) {
				t.Errorf("errors.Is does not see %v", cause)
			}
		}
	})
}

func TestEngineRunsNothingOnAContextThatHasEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e := flow.NewEngine(func(context.Context, flow.Message[string]) error { t.Error("the handler ran"); return nil },
		flow.RetryOptions{})
	f := failureOf(t, e.Execute(ctx, flow.Message[string]{}), flow.FailureContextCancelled)
	if f.Attempts != 0 {
		t.Errorf("failure is %+v", f)
	}
}

func TestEnginesHandlerThatLeavesOnCancelIsAContextFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		e := flow.NewEngine(newStage().handle, flow.RetryOptions{MaxAttempts: 3})
		f := failureOf(t, e.Execute(ctx, flow.Message[string]{}), flow.FailureContextCancelled)
		if f.Attempts != 1 {
			t.Errorf("failure is %+v", f)
		}
	})
}

// Only an error that tells of the context's end is that end: one of the handler's own stays what it is.
func TestErrorUnderAContextThatHasEndedIsThatEndOnlyIfItSaysSo(t *testing.T) {
	why := errors.New("why")
	for _, c := range []struct {
		err  error
		want flow.FailureKind
	}{
		{context.Canceled, flow.FailureContextCancelled},
		{context.DeadlineExceeded, flow.FailureContextCancelled},
		{fmt.Errorf("wrapped: %w", why), flow.FailureContextCancelled},
		{status.Error(codes.Canceled, "gone"), flow.FailureContextCancelled},
		{status.Error(codes.DeadlineExceeded, "late"), flow.FailureContextCancelled},
		{status.Error(codes.NotFound, "no such thing"), flow.FailureHandlerError},
		{errHandler, flow.FailureHandlerError},
	} {
		for _, ended := range []bool{true, false} {
			ctx, cancel := context.WithCancelCause(t.Context())
			e := flow.NewEngine(func(context.Context, flow.Message[string]) error {
				if ended {
					cancel(why)
				}
				return c.err
			}, flow.RetryOptions{})
			want := flow.FailureHandlerError
			if ended {
				want = c.want
			}
			if f := failureOf(t, e.Execute(ctx, flow.Message[string]{}), want); !errors.Is(f, c.err) {
				t.Errorf("%v is not seen in %v", c.err, f)
			}
			cancel(nil)
		}
	}
}

func TestEngineIsSafeForConcurrentUseAndSharesItsBudget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n = 20
		e := flow.NewEngine(func(context.Context, flow.Message[string]) error { return errHandler },
			flow.RetryOptions{MaxAttempts: 100, Backoff: time.Second, Budget: flow.RetryBudget{MaxTokens: 2 * n, TokenRatio: 1}})
		attempts := make(chan int, n)
		for range n {
			go func() {
				var f *flow.Failure
				errors.As(e.Execute(context.Background(), flow.Message[string]{}), &f)
				attempts <- f.Attempts
			}()
		}
		var got []int
		for range n {
			got = append(got, <-attempts)
		}
		slices.Sort(got)
		// Twenty attempts make half: the one that was last is not tried again, and in the next second nobody is.
		if got[0] != 1 || got[n-1] > 2 {
			t.Errorf("attempts: %v", got)
		}
	})
}

func TestGoexitInAnEnginesHandlerDoesNotEndItsCaller(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := flow.NewEngine(func(context.Context, flow.Message[string]) error { runtime.Goexit(); return nil }, flow.RetryOptions{})
		returned := false
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = e.Execute(context.Background(), flow.Message[string]{})
			returned = true
		}()
		<-done
		if !returned {
			t.Error("Goexit came through")
		}
	})
}
