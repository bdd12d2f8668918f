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

// spend runs values through a Flow with budget, each message in a stream of its own, and says how often each was tried.
// Messages whose key is f always fail, those whose key is s succeed.
func spend(t *testing.T, budget flow.RetryBudget, values ...string) (tries []int) {
	bubble(t, func(t *testing.T) {
		n := 0
		f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
			n++
			if m.Key == "f" {
				return errHandler
			}
			return nil
		}, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 5, Backoff: time.Second, Budget: budget}})
		for _, v := range values {
			n = 0
			_, _ = f.Run(t.Context(), given(v))
			tries = append(tries, n)
		}
	})
	return tries
}

func TestAtOrBelowHalfOfItsBudgetAFlowTriesNothingAgain(t *testing.T) {
	const f, s = "f", "s"
	for name, c := range map[string]struct {
		budget flow.RetryBudget
		values []string
		want   []int
	}{
		"none":                     {flow.RetryBudget{}, []string{f, f, f}, []int{5, 5, 5}},
		"one token, half is there": {flow.RetryBudget{MaxTokens: 1, TokenRatio: 1}, []string{f, f}, []int{1, 1}},
		"two: one is half":         {flow.RetryBudget{MaxTokens: 2, TokenRatio: 1}, []string{f, f}, []int{1, 1}},
		"three: the second is":     {flow.RetryBudget{MaxTokens: 3, TokenRatio: 1}, []string{f, f}, []int{2, 1}},
		// 10 tokens: after the fifth failed attempt 5 are left, which is half.
		"over streams": {flow.RetryBudget{MaxTokens: 10, TokenRatio: 1}, []string{f, f}, []int{5, 1}},
		"large":        {flow.RetryBudget{MaxTokens: 100, TokenRatio: 1}, []string{f, f, f}, []int{5, 5, 5}},
		// 5 left; two successes give 2 back; then 6 left after one attempt, 5 after two.
		"successes give back": {flow.RetryBudget{MaxTokens: 10, TokenRatio: 1}, []string{f, s, s, f}, []int{5, 1, 1, 2}},
		"a ratio below one":   {flow.RetryBudget{MaxTokens: 10, TokenRatio: 0.25}, []string{f, s, s, s, s, f, f}, []int{5, 1, 1, 1, 1, 1, 1}},
		"five quarters":       {flow.RetryBudget{MaxTokens: 10, TokenRatio: 0.25}, []string{f, s, s, s, s, s, f}, []int{5, 1, 1, 1, 1, 1, 2}},
		"never above the top": {flow.RetryBudget{MaxTokens: 4, TokenRatio: 100}, []string{s, s, s, f}, []int{1, 1, 1, 2}},
		// nothing is tried again, yet first attempts take tokens down to zero and not below: three successes make 3 of 4.
		"never below zero": {flow.RetryBudget{MaxTokens: 4, TokenRatio: 1}, []string{f, f, f, f, f, f, s, s, s, s, f}, []int{2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2}},
	} {
		if got := spend(t, c.budget, c.values...); !slices.Equal(got, c.want) {
			t.Errorf("%s: tried %v times, want %v", name, got, c.want)
		}
	}
}

func TestBudgetThatIsSpentFailsTheMessageAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := mustNew(t, func(context.Context, flow.Message[string]) error { return errHandler },
			flow.Options{Retry: flow.RetryOptions{MaxAttempts: 9, Backoff: time.Hour, Budget: flow.RetryBudget{MaxTokens: 2, TokenRatio: 1}}})
		began := time.Now()
		sum, err := f.Run(t.Context(), given("a1"))
		if fault := failureOf(t, err, flow.FailureHandlerError); fault.Attempts != 1 || fault.Err != errHandler {
			t.Errorf("failure is %+v", fault)
		}
		if d := time.Since(began); d != 0 || sum.Retried != 0 {
			t.Errorf("took %v; %+v", d, sum)
		}
	})
}

func TestSuccessOfATryGivesToTheBudget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
			if m.Attempt == 1 {
				return errHandler
			}
			return nil
		}, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Budget: flow.RetryBudget{MaxTokens: 3, TokenRatio: 1}}})
		sum, err := f.Run(t.Context(), given("a1", "a2", "a3", "a4", "a5")) // each takes one and gives one back
		if err != nil || sum.Retried != 5 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

// What can't be retried says nothing about whether the server is in trouble: it must not end the retries of others.
func TestAttemptThatIsNotWorthRetryingTakesNothingFromTheBudget(t *testing.T) {
	for name, end := range map[string]func() error{
		"Permanent":             func() error { return flow.Permanent(errHandler) },
		"wrapped Permanent":     func() error { return fmt.Errorf("store: %w", flow.Permanent(errHandler)) },
		"code":                  func() error { return status.Error(codes.InvalidArgument, "malformed") },
		"Retryable says no":     func() error { return errSecret },
		"panic":                 func() error { panic("here") },
		"Goexit":                func() error { runtime.Goexit(); return nil },
		"end of the stream":     func() error { return context.Canceled },
		"a typed nil Permanent": func() error { return flow.Permanent((*nilError)(nil)) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				retry := flow.RetryOptions{MaxAttempts: 3, Budget: flow.RetryBudget{MaxTokens: 4, TokenRatio: 1}}
				if name == "Retryable says no" {
					retry.Retryable = func(err error) bool { return !errors.Is(err, errSecret) }
				}
				ctx, cancel := context.WithCancel(t.Context())
				f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
					if m.Key == "c" {
						if name == "end of the stream" {
							cancel()
						}
						return end()
					}
					return errHandler
				}, flow.Options{Retry: retry})
				for range 9 {
					sum, _ := f.Run(ctx, given("c1"))
					if sum.Retried != 0 {
						t.Fatalf("was retried: %+v", sum)
					}
				}
				_, err := f.Run(t.Context(), given("a1")) // of 4 tokens it takes one, then one more, and 2 is half
				if fault := failureOf(t, err, flow.FailureHandlerError); fault.Attempts != 2 {
					t.Errorf("tried %d times, want 2", fault.Attempts)
				}
			})
		})
	}
}

func TestLastAttemptThatIsWorthRetryingTakesFromTheBudget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := mustNew(t, func(context.Context, flow.Message[string]) error { return errHandler },
			flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Budget: flow.RetryBudget{MaxTokens: 6, TokenRatio: 1}}})
		for _, want := range []int{2, 1} { // the first message takes two, the second a third, and 3 is half
			_, err := f.Run(t.Context(), given("a1"))
			if fault := failureOf(t, err, flow.FailureHandlerError); fault.Attempts != want {
				t.Errorf("tried %d times, want %d", fault.Attempts, want)
			}
		}
	})
}

func TestMalformedMessagesOfOneClientEndNobodysRetries(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
			switch {
			case m.Key == "malformed":
				return status.Error(codes.InvalidArgument, "malformed")
			case m.Attempt == 1:
				return status.Error(codes.Unavailable, "the database is restarting")
			}
			return nil
		}, flow.Options{
			Retry:     flow.RetryOptions{MaxAttempts: 2, Budget: flow.RetryBudget{MaxTokens: 10, TokenRatio: 0.1}},
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		})
		var many []string
		for range 100 {
			many = append(many, "malformed")
		}
		if sum, err := f.Run(t.Context(), given(many...)); err != nil || sum.Failed != 100 || sum.Retried != 0 {
			t.Fatalf("Run() = %+v, %v", sum, err)
		}
		if sum, err := f.Run(t.Context(), given("good1")); err != nil || sum.Succeeded != 1 || sum.Retried != 1 {
			t.Errorf("another client: Run() = %+v, %v, want one retry", sum, err)
		}
	})
}
