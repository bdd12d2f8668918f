package flow_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/flow"
)

// tries runs one message whose handler fails with err at each attempt and says when, from the stream's start, they were.
func tries(t *testing.T, o flow.RetryOptions, err error) (at []time.Duration) {
	bubble(t, func(t *testing.T) {
		began := time.Now()
		f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
			at = append(at, time.Since(began))
			if m.Attempt != len(at) || m.Seq != 1 || m.Value != "a1" {
				t.Errorf("attempt %d is %+v", len(at), m)
			}
			return err
		}, flow.Options{Retry: o})
		sum, got := f.Run(t.Context(), given("a1"))
		if fault := failureOf(t, got, flow.FailureHandlerError); fault.Attempts != len(at) || fault.Err != err {
			t.Errorf("failure is %+v after %d attempts", fault, len(at))
		}
		if sum.Failed != 1 || sum.Retried != uint64(len(at)-1) {
			t.Errorf("summary is %+v after %d attempts", sum, len(at))
		}
	})
	return at
}

func wantTries(t *testing.T, name string, got []time.Duration, want ...time.Duration) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: tried at %v, want %v", name, got, want)
	}
}

func TestMaxAttemptsCountsTheFirstTry(t *testing.T) {
	for maxAttempts, want := range []int{1, 1, 2, 3} {
		if got := len(tries(t, flow.RetryOptions{MaxAttempts: maxAttempts}, errHandler)); got != want {
			t.Errorf("MaxAttempts %d: %d tries, want %d", maxAttempts, got, want)
		}
	}
}

func TestBackoffIsTheDelayBeforeEachTry(t *testing.T) {
	const s = time.Second
	for name, c := range map[string]struct {
		o    flow.RetryOptions
		want []time.Duration
	}{
		"none":                    {flow.RetryOptions{MaxAttempts: 3}, []time.Duration{0, 0, 0}},
		"constant":                {flow.RetryOptions{MaxAttempts: 4, Backoff: s}, []time.Duration{0, s, 2 * s, 3 * s}},
		"multiplier 1":            {flow.RetryOptions{MaxAttempts: 3, Backoff: s, Multiplier: 1}, []time.Duration{0, s, 2 * s}},
		"multiplied":              {flow.RetryOptions{MaxAttempts: 5, Backoff: s, Multiplier: 2}, []time.Duration{0, s, 3 * s, 7 * s, 15 * s}},
		"by a half more":          {flow.RetryOptions{MaxAttempts: 4, Backoff: 4 * s, Multiplier: 1.5}, []time.Duration{0, 4 * s, 10 * s, 19 * s}},
		"capped":                  {flow.RetryOptions{MaxAttempts: 5, Backoff: s, Multiplier: 2, MaxBackoff: 3 * s}, []time.Duration{0, s, 3 * s, 6 * s, 9 * s}},
		"capped at Backoff":       {flow.RetryOptions{MaxAttempts: 3, Backoff: s, Multiplier: 9, MaxBackoff: s}, []time.Duration{0, s, 2 * s}},
		"multiplied nothing":      {flow.RetryOptions{MaxAttempts: 3, Multiplier: 5}, []time.Duration{0, 0, 0}},
		"beyond what floats hold": {flow.RetryOptions{MaxAttempts: 4, Backoff: s, Multiplier: 1e300, MaxBackoff: 2 * s}, []time.Duration{0, s, 3 * s, 5 * s}},
	} {
		wantTries(t, name, tries(t, c.o, errHandler), c.want...)
	}
}

func TestUncappedDelayNeverOverflows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{Retry: flow.RetryOptions{
			MaxAttempts: 9, Backoff: time.Hour, Multiplier: 1e300}}), "a1")
		s.fail(t, "a1", errHandler)
		time.Sleep(time.Hour)
		wantNow(t, s, "a1")
		s.fail(t, "a1", errHandler)
		pass(100 * 365 * 24 * time.Hour) // else the third try would have come at once
		wantNow(t, s, "")
		c.cancel(nil)
		c.End()
	})
}

// Two to the 1024th is no float64, and zero times infinity is no number.
func TestDelayIsNeverNegativeHoweverManyTries(t *testing.T) {
	for name, c := range map[string]struct {
		o    flow.RetryOptions
		last time.Duration
	}{
		"no backoff":         {flow.RetryOptions{Multiplier: 2}, 0},
		"no backoff, jitter": {flow.RetryOptions{Multiplier: 2, Jitter: 0.5}, 0},
		"large multiplier":   {flow.RetryOptions{Multiplier: 1e300}, 0},
		"capped":             {flow.RetryOptions{Backoff: 1, Multiplier: 2, MaxBackoff: time.Second}, time.Second},
	} {
		bubble(t, func(t *testing.T) {
			p := new(tape)
			c.o.MaxAttempts = 1100
			f := mustNew(t, func(context.Context, flow.Message[string]) error { return errHandler },
				flow.Options{Retry: c.o, Observer: p.observe})
			began := time.Now()
			_, err := f.Run(t.Context(), given("a1"))
			if fault := failureOf(t, err, flow.FailureHandlerError); fault.Attempts != 1100 {
				t.Errorf("%s: tried %d times", name, fault.Attempts)
			}
			told, last := time.Duration(0), time.Duration(0)
			for _, e := range p.only(flow.EventRetry) {
				if last = e.Delay; last < 0 {
					t.Fatalf("%s: the delay after attempt %d is %v", name, e.Attempt, last)
				}
				told += last
			}
			if waited := time.Since(began); last != c.last || waited != told {
				t.Errorf("%s: last delay %v, want %v; told of %v, waited for %v", name, last, c.last, told, waited)
			}
		})
	}
}

func TestJitterMakesTheDelayRandomWithinItsBounds(t *testing.T) {
	for _, jitter := range []float64{0.25, 1} {
		at := tries(t, flow.RetryOptions{MaxAttempts: 300, Backoff: time.Second, Jitter: jitter}, errHandler)
		low, high := time.Hour, time.Duration(0)
		for i := 1; i < len(at); i++ {
			d := at[i] - at[i-1]
			low, high = min(low, d), max(high, d)
		}
		span := time.Duration(jitter * float64(time.Second))
		if floor := time.Second - span; low < floor || high > time.Second {
			t.Errorf("jitter %v: delays from %v to %v, want from %v to 1s", jitter, low, high, floor)
		}
		if high-low < span*9/10 {
			t.Errorf("jitter %v: delays from %v to %v are hardly random", jitter, low, high)
		}
	}
}

func TestCodesThatWillNotChangeAreNotTriedAgain(t *testing.T) {
	final := []codes.Code{
		codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated,
		codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented, codes.DataLoss,
	}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		want := 2
		if slices.Contains(final, code) {
			want = 1
		}
		for _, err := range []error{status.Error(code, "no"), fmt.Errorf("wrapped: %w", status.Error(code, "no"))} {
			if got := len(tries(t, flow.RetryOptions{MaxAttempts: 2}, err)); got != want {
				t.Errorf("%v: %d tries, want %d", err, got, want)
			}
		}
	}
}

func TestPermanentIsNotTriedAgainAndHidesNothing(t *testing.T) {
	if flow.Permanent(nil) != nil {
		t.Error("Permanent(nil) is not nil")
	}
	always := func(error) bool { return true }
	for _, err := range []error{flow.Permanent(errHandler), fmt.Errorf("wrapped: %w", flow.Permanent(errHandler))} {
		if !errors.Is(err, errHandler) {
			t.Errorf("errors.Is does not see what %v marks", err)
		}
		for name, o := range map[string]flow.RetryOptions{
			"default": {MaxAttempts: 3}, "Retryable says yes": {MaxAttempts: 3, Retryable: always},
		} {
			wantTries(t, name, tries(t, o, err), 0)
		}
	}
}

func TestRetryableDecidesInPlaceOfTheCodes(t *testing.T) {
	notFound := status.Error(codes.NotFound, "not yet")
	o := flow.RetryOptions{MaxAttempts: 3, Retryable: func(err error) bool { return errors.Is(err, notFound) }}
	wantTries(t, "yes", tries(t, o, notFound), 0, 0, 0)
	wantTries(t, "no", tries(t, o, errHandler), 0)
}

// asking is an error whose status asks for a delay.
func asking(t *testing.T, d *durationpb.Duration) error {
	st, err := status.New(codes.ResourceExhausted, "slow down").WithDetails(&errdetails.RetryInfo{RetryDelay: d})
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

func TestRetryInfoLengthensTheDelayUpToMaxBackoff(t *testing.T) {
	const s = time.Second
	ask := func(d time.Duration) error { return asking(t, durationpb.New(d)) }
	base := flow.RetryOptions{MaxAttempts: 2, Backoff: s}
	capped := flow.RetryOptions{MaxAttempts: 2, Backoff: s, MaxBackoff: 3 * s}
	wantTries(t, "longer", tries(t, base, ask(5*s)), 0, 5*s)
	wantTries(t, "longer than the cap", tries(t, capped, ask(5*s)), 0, 3*s)
	wantTries(t, "below the cap", tries(t, capped, ask(2*s)), 0, 2*s)
	wantTries(t, "shorter", tries(t, base, ask(s/2)), 0, s)
	wantTries(t, "negative", tries(t, base, ask(-s)), 0, s)
	wantTries(t, "invalid", tries(t, base, asking(t, &durationpb.Duration{Seconds: math.MaxInt64})), 0, s)
	wantTries(t, "empty", tries(t, base, asking(t, nil)), 0, s)
	wantTries(t, "without backoff", tries(t, flow.RetryOptions{MaxAttempts: 2}, ask(5*s)), 0, 5*s)
	wantTries(t, "wrapped", tries(t, base, fmt.Errorf("wrapped: %w", ask(5*s))), 0, 5*s)
	wantTries(t, "with jitter", tries(t, flow.RetryOptions{MaxAttempts: 2, Backoff: s, Jitter: 1}, ask(5*s)), 0, 5*s)
}

func TestAttemptTimeoutCancelsTheAttemptWithItsCause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var at []time.Duration
		began := time.Now()
		f := mustNew(t, func(ctx context.Context, m flow.Message[string]) error {
			<-ctx.Done()
			at = append(at, time.Since(began))
			if cause := context.Cause(ctx); cause != flow.ErrAttemptTimeout {
				t.Errorf("cause is %v", cause)
			}
			return ctx.Err()
		}, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Minute, AttemptTimeout: time.Second}})
		sum, err := f.Run(t.Context(), given("a1"))
		failureOf(t, err, flow.FailureHandlerError)
		wantTries(t, "each try has its own", at, time.Second, time.Minute+2*time.Second, 2*time.Minute+3*time.Second)
		if sum.Failed != 1 || sum.Retried != 2 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestHandlerThatIgnoresItsAttemptTimeoutKeepsSlotAndKeyAndMaySucceed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var order []string
		f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
			order = append(order, m.Value)
			time.Sleep(time.Hour)
			return nil
		}, flow.Options{
			Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
			Retry: flow.RetryOptions{MaxAttempts: 3, AttemptTimeout: time.Second},
		})
		began := time.Now()
		sum, err := f.Run(t.Context(), given("a1", "a2", "b1"))
		if err != nil || sum.Succeeded != 3 || sum.Retried != 0 || len(order) != 3 {
			t.Errorf("Run() = %+v, %v; started %v", sum, err, order)
		}
		if d := time.Since(began); d != 3*time.Hour {
			t.Errorf("took %v, want 3h: one after the other", d)
		}
	})
}
