package flow_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// tries runs one message whose handler fails with err at each attempt and says when, from the stream's start, they were.
func tries(t *testing.T, o flow.RetryOptions, err error) (at []time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
			at = append(at, time.Since(began))
			if m.Attempt != len(at) || m.Seq != 1 || m.Value != "a1" {
				t.Errorf("attempt %d is %+v", len(at), m)
			}
			return err
		}, flow.Options{Retry: o})
		sum, got := f.Run(t.Context(), testkit.Given("a1"))
		if fault := testkit.FailureOf(t, got, flow.FailureHandlerError); fault.Attempts != len(at) || fault.Err != err {
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
		if got := len(tries(t, flow.RetryOptions{MaxAttempts: maxAttempts}, testkit.ErrHandler)); got != want {
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
		wantTries(t, name, tries(t, c.o, testkit.ErrHandler), c.want...)
	}
}

func TestUncappedDelayNeverOverflows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{Retry: flow.RetryOptions{
			MaxAttempts: 9, Backoff: time.Hour, Multiplier: 1e300}}), "a1")
		s.Fail(t, "a1", testkit.ErrHandler)
		time.Sleep(time.Hour)
		s.WantRunning(t, "a1")
		s.Fail(t, "a1", testkit.ErrHandler)
		testkit.Advance(100 * 365 * 24 * time.Hour) // else the third try would have come at once
		s.WantRunning(t, "")
		c.Cancel(nil)
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
		synctest.Test(t, func(t *testing.T) {
			p := new(testkit.EventLog)
			c.o.MaxAttempts = 1100
			f := testkit.New(t, func(context.Context, flow.Message[string]) error { return testkit.ErrHandler },
				flow.Options{Retry: c.o, Observer: p.Observe})
			began := time.Now()
			_, err := f.Run(t.Context(), testkit.Given("a1"))
			if fault := testkit.FailureOf(t, err, flow.FailureHandlerError); fault.Attempts != 1100 {
				t.Errorf("%s: tried %d times", name, fault.Attempts)
			}
			told, last := time.Duration(0), time.Duration(0)
			for _, e := range p.Of(flow.EventRetry) {
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
		at := tries(t, flow.RetryOptions{MaxAttempts: 300, Backoff: time.Second, Jitter: jitter}, testkit.ErrHandler)
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
	for _, err := range []error{flow.Permanent(testkit.ErrHandler), fmt.Errorf("wrapped: %w", flow.Permanent(testkit.ErrHandler))} {
		if !errors.Is(err, testkit.ErrHandler) {
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
	wantTries(t, "no", tries(t, o, testkit.ErrHandler), 0)
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

// The sum of it and the time by now overflowed, and the next try was due with that of any other.
func TestADelayOfCenturiesIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts := map[string]int{}
		centuries := asking(t, &durationpb.Duration{Seconds: 315_576_000_000}) // the longest that is valid
		f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
			attempts[m.Value]++
			time.Sleep(time.Second)
			if m.Value == "a1" {
				return centuries
			}
			return testkit.ErrHandler
		}, flow.Options{
			Ordering:     testkit.Keyed,
			Backpressure: flow.BackpressureOptions{Capacity: 1},
			Retry:        flow.RetryOptions{MaxAttempts: 3, Backoff: time.Hour},
			OnFailure:    func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		})
		ctx, cancel := context.WithTimeout(t.Context(), 365*24*time.Hour)
		defer cancel()
		_, got := f.Run(ctx, testkit.Given("a1", "b1"))
		testkit.FailureOf(t, got, flow.FailureContextCancelled)
		if attempts["a1"] != 1 || attempts["b1"] != 3 {
			t.Errorf("in a year there are the attempts %v", attempts)
		}
	})
}

func TestAttemptTimeoutCancelsTheAttemptWithItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		began := time.Now()
		f := testkit.New(t, func(ctx context.Context, m flow.Message[string]) error {
			<-ctx.Done()
			at = append(at, time.Since(began))
			if cause := context.Cause(ctx); cause != flow.ErrAttemptTimeout {
				t.Errorf("cause is %v", cause)
			}
			return ctx.Err()
		}, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Minute, AttemptTimeout: time.Second}})
		sum, err := f.Run(t.Context(), testkit.Given("a1"))
		testkit.FailureOf(t, err, flow.FailureHandlerError)
		wantTries(t, "each try has its own", at, time.Second, time.Minute+2*time.Second, 2*time.Minute+3*time.Second)
		if sum.Failed != 1 || sum.Retried != 2 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestHandlerThatIgnoresItsAttemptTimeoutKeepsSlotAndKeyAndMaySucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
			order = append(order, m.Value)
			time.Sleep(time.Hour)
			return nil
		}, flow.Options{
			Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
			Retry: flow.RetryOptions{MaxAttempts: 3, AttemptTimeout: time.Second},
		})
		began := time.Now()
		sum, err := f.Run(t.Context(), testkit.Given("a1", "a2", "b1"))
		if err != nil || sum.Succeeded != 3 || sum.Retried != 0 || len(order) != 3 {
			t.Errorf("Run() = %+v, %v; started %v", sum, err, order)
		}
		if d := time.Since(began); d != 3*time.Hour {
			t.Errorf("took %v, want 3h: one after the other", d)
		}
	})
}

// The wait between two tries: what a message keeps in it, what it gives up, and what cuts it short.

func TestMessageWaitingForItsNextTryGivesUpItsSlotAndKeepsItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
			Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Minute},
		})
		c := testkit.Start(t, f, "a1", "a2", "b1", "c1")
		s.WantRunning(t, "a1")
		s.Fail(t, "a1", testkit.ErrHandler)
		s.WantRunning(t, "b1") // not a2
		if st := f.Stats(); st.InFlight != 1 || st.Waiting != 3 || st.ActiveKeys != 3 {
			t.Errorf("stats are %+v", st)
		}
		s.Finish(t, "b1", "c1")
		testkit.Advance(time.Minute - 1)
		s.WantRunning(t, "")
		testkit.Advance(1)
		s.WantRunning(t, "a1")
		s.Finish(t, "a1")
		s.WantRunning(t, "a2")
		c.End()
		s.FinishAll(t)
		if sum, err := c.Result(t); err != nil || sum.Retried != 1 || sum.Succeeded != 4 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestInFIFOAllTriesOfAMessageComeBeforeTheNextMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second}}), "a1", "b1")
		c.End()
		s.Fail(t, "a1", testkit.ErrHandler)
		testkit.Advance(time.Second)
		s.Fail(t, "a1", testkit.ErrHandler)
		testkit.Advance(time.Second)
		s.FinishAll(t)
		if got := s.History(); got != "a1 a1 a1 b1" {
			t.Errorf("started %q", got)
		}
	})
}

func TestDueTryWaitsForASlotUnderEveryPolicyThatHasSlots(t *testing.T) {
	for name, o := range map[string]flow.BackpressureOptions{
		"Queue":         {Capacity: 1},
		"QueueCapacity": {Capacity: 1, QueueCapacity: 1},
		"HardReject":    {Capacity: 1, Policy: flow.BackpressureHardReject},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{
					Ordering: testkit.Keyed, Backpressure: o, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
				})
				c := testkit.Start(t, f, "a1")
				s.Fail(t, "a1", testkit.ErrHandler)
				c.Send("b1")
				if name == "QueueCapacity" {
					c.Send("c1")
				}
				testkit.Advance(time.Minute) // a1 is due, and never refused
				s.WantRunning(t, "b1")
				c.End()
				s.FinishAll(t)
				if sum, err := c.Result(t); err != nil || sum.Rejected != 0 || sum.Retried != 1 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
			})
		})
	}
}

func TestSoftAllowRunsADueTryBeyondCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Ordering:     testkit.Keyed,
			Backpressure: flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureSoftAllowWithSignal},
			Retry:        flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
		})
		c := testkit.Start(t, f, "a1")
		s.Fail(t, "a1", testkit.ErrHandler)
		c.Send("b1")
		testkit.Advance(time.Second)
		s.WantRunning(t, "a1 b1")
		c.End()
		s.FinishAll(t)
	})
}

// faultsHeard keeps what the Observer hears of failed messages.
type faultsHeard struct {
	mu  sync.Mutex
	got []*flow.Failure
}

func (f *faultsHeard) observe(_ context.Context, e flow.Event) {
	if e.Kind != flow.EventFailure {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got = append(f.got, e.Failure)
}

func TestWaitForTheNextTryIsCutShort(t *testing.T) {
	shutdown := func(f *flow.Flow[string], _ *testkit.Stream) { go f.Shutdown(context.Background()) }
	for name, c := range map[string]struct {
		shutdown flow.ShutdownOptions
		end      func(f *flow.Flow[string], c *testkit.Stream)
		after    time.Duration
		kind     flow.FailureKind
	}{
		"cancel":   {end: func(_ *flow.Flow[string], c *testkit.Stream) { c.Cancel(nil) }, kind: flow.FailureContextCancelled},
		"Close":    {end: func(f *flow.Flow[string], _ *testkit.Stream) { _ = f.Close() }, kind: flow.FailureShutdown},
		"Shutdown": {end: shutdown, kind: flow.FailureShutdown},
		"the end of the grace period": {shutdown: flow.ShutdownOptions{DrainOnClose: true, GracePeriod: time.Minute},
			end: shutdown, after: time.Minute, kind: flow.FailureShutdown},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, heard := testkit.NewManualHandler(), new(faultsHeard)
				f := testkit.New(t, s.Handle, flow.Options{
					Shutdown: c.shutdown, Observer: heard.observe,
					Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
				})
				r := testkit.Start(t, f, "a1", "a2")
				s.Fail(t, "a1", testkit.ErrHandler)
				if name == "cancel" {
					r.End()
				}
				c.end(f, r)
				if c.after > 0 {
					testkit.Advance(c.after - 1)
					if r.Ended() {
						t.Fatal("cut short before the grace period was over")
					}
					testkit.Advance(1)
				}
				sum, err := r.Result(t)
				testkit.FailureOf(t, err, c.kind)
				if sum.Failed != 1 || sum.Dropped != 1 || sum.Retried != 0 || !slices.Equal(sum.Unsettled, []uint64{1, 2}) {
					t.Errorf("summary is %+v", sum)
				}
				heard.mu.Lock()
				defer heard.mu.Unlock()
				if len(heard.got) != 1 || heard.got[0].Kind != c.kind || !errors.Is(heard.got[0], testkit.ErrHandler) || heard.got[0].Attempts != 1 {
					t.Errorf("the message failed with %+v, want %v after its last error", heard.got, c.kind)
				}
			})
		})
	}
}

func TestShutdownThatCutsATrysWaitCancelsNothing(t *testing.T) {
	t.Run("observed by nobody", func(t *testing.T) { shutdownCutsATrysWait(t, nil) })
	t.Run("observed", func(t *testing.T) { shutdownCutsATrysWait(t, func(context.Context, flow.Event) {}) })
}

func shutdownCutsATrysWait(t *testing.T, observer flow.Observer) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Ordering: testkit.Keyed, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour}, Observer: observer,
		})
		c := testkit.Start(t, f, "a1", "b1")
		s.Fail(t, "a1", testkit.ErrHandler)
		ended := make(chan error, 1)
		go func() { ended <- f.Shutdown(context.Background()) }()
		s.WantRunning(t, "b1")
		testkit.Advance(time.Minute)
		s.Finish(t, "b1")
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if sum.Succeeded != 1 || sum.Failed != 1 || !slices.Equal(sum.Unsettled, []uint64{1}) {
			t.Errorf("summary is %+v", sum)
		}
		if err := <-ended; err != nil {
			t.Errorf("Shutdown() = %v: nothing was cut off", err)
		}
	})
}

func TestDrainWaitsForTheNextTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Shutdown: flow.ShutdownOptions{DrainOnClose: true}, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
		})
		c := testkit.Start(t, f, "a1", "a2")
		s.Fail(t, "a1", testkit.ErrHandler)
		ended := make(chan error, 1)
		go func() { ended <- f.Shutdown(context.Background()) }()
		testkit.Advance(time.Hour)
		s.Finish(t, "a1", "a2")
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown) // its client has not said that it had sent all
		if sum.Succeeded != 2 || sum.Retried != 1 || status.Code(err) != codes.Unavailable {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
		if err := <-ended; err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
	})
}

func TestFailureOfAnotherMessageCutsTheWaitShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour}})
		c := testkit.Start(t, f, "a1", "b1", "a2")
		s.Fail(t, "a1", testkit.ErrHandler)
		s.Fail(t, "b1", flow.Permanent(testkit.ErrHandler))
		sum, err := c.Result(t)
		if fault := testkit.FailureOf(t, err, flow.FailureHandlerError); fault.Seq != 2 {
			t.Errorf("failure is %+v", fault)
		}
		if sum.Failed != 2 || sum.Dropped != 1 || sum.Retried != 0 {
			t.Errorf("summary is %+v", sum)
		}
	})
}

// spend runs values through a Flow with budget, each message in a stream of its own, and says how often each was tried.
// Messages whose key is f always fail, those whose key is s succeed.
func spend(t *testing.T, budget flow.RetryBudget, values ...string) (tries []int) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
			n++
			if m.Key == "f" {
				return testkit.ErrHandler
			}
			return nil
		}, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 5, Backoff: time.Second, Budget: budget}})
		for _, v := range values {
			n = 0
			_, _ = f.Run(t.Context(), testkit.Given(v))
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
	synctest.Test(t, func(t *testing.T) {
		f := testkit.New(t, func(context.Context, flow.Message[string]) error { return testkit.ErrHandler },
			flow.Options{Retry: flow.RetryOptions{MaxAttempts: 9, Backoff: time.Hour, Budget: flow.RetryBudget{MaxTokens: 2, TokenRatio: 1}}})
		began := time.Now()
		sum, err := f.Run(t.Context(), testkit.Given("a1"))
		if fault := testkit.FailureOf(t, err, flow.FailureHandlerError); fault.Attempts != 1 || fault.Err != testkit.ErrHandler {
			t.Errorf("failure is %+v", fault)
		}
		if d := time.Since(began); d != 0 || sum.Retried != 0 {
			t.Errorf("took %v; %+v", d, sum)
		}
	})
}

func TestSuccessOfATryGivesToTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
			if m.Attempt == 1 {
				return testkit.ErrHandler
			}
			return nil
		}, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Budget: flow.RetryBudget{MaxTokens: 3, TokenRatio: 1}}})
		sum, err := f.Run(t.Context(), testkit.Given("a1", "a2", "a3", "a4", "a5")) // each takes one and gives one back
		if err != nil || sum.Retried != 5 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

// What can't be retried says nothing about whether the server is in trouble: it must not end the retries of others.
func TestAttemptThatIsNotWorthRetryingTakesNothingFromTheBudget(t *testing.T) {
	for name, end := range map[string]func() error{
		"Permanent":             func() error { return flow.Permanent(testkit.ErrHandler) },
		"wrapped Permanent":     func() error { return fmt.Errorf("store: %w", flow.Permanent(testkit.ErrHandler)) },
		"code":                  func() error { return status.Error(codes.InvalidArgument, "malformed") },
		"Retryable says no":     func() error { return errSecret },
		"panic":                 func() error { panic("here") },
		"Goexit":                func() error { runtime.Goexit(); return nil },
		"end of the stream":     func() error { return context.Canceled },
		"a typed nil Permanent": func() error { return flow.Permanent((*testkit.NilError)(nil)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				retry := flow.RetryOptions{MaxAttempts: 3, Budget: flow.RetryBudget{MaxTokens: 4, TokenRatio: 1}}
				if name == "Retryable says no" {
					retry.Retryable = func(err error) bool { return !errors.Is(err, errSecret) }
				}
				ctx, cancel := context.WithCancel(t.Context())
				f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
					if m.Key == "c" {
						if name == "end of the stream" {
							cancel()
						}
						return end()
					}
					return testkit.ErrHandler
				}, flow.Options{Retry: retry})
				for range 9 {
					sum, _ := f.Run(ctx, testkit.Given("c1"))
					if sum.Retried != 0 {
						t.Fatalf("was retried: %+v", sum)
					}
				}
				_, err := f.Run(t.Context(), testkit.Given("a1")) // of 4 tokens it takes one, then one more, and 2 is half
				if fault := testkit.FailureOf(t, err, flow.FailureHandlerError); fault.Attempts != 2 {
					t.Errorf("tried %d times, want 2", fault.Attempts)
				}
			})
		})
	}
}

func TestLastAttemptThatIsWorthRetryingTakesFromTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testkit.New(t, func(context.Context, flow.Message[string]) error { return testkit.ErrHandler },
			flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Budget: flow.RetryBudget{MaxTokens: 6, TokenRatio: 1}}})
		for _, want := range []int{2, 1} { // the first message takes two, the second a third, and 3 is half
			_, err := f.Run(t.Context(), testkit.Given("a1"))
			if fault := testkit.FailureOf(t, err, flow.FailureHandlerError); fault.Attempts != want {
				t.Errorf("tried %d times, want %d", fault.Attempts, want)
			}
		}
	})
}

func TestMalformedMessagesOfOneClientEndNobodysRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
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
		if sum, err := f.Run(t.Context(), testkit.Given(many...)); err != nil || sum.Failed != 100 || sum.Retried != 0 {
			t.Fatalf("Run() = %+v, %v", sum, err)
		}
		if sum, err := f.Run(t.Context(), testkit.Given("good1")); err != nil || sum.Succeeded != 1 || sum.Retried != 1 {
			t.Errorf("another client: Run() = %+v, %v, want one retry", sum, err)
		}
	})
}

func TestEngineAloneRunsAMessageAndSetsItsAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []flow.Message[string]
		e := flow.NewEngine(func(_ context.Context, m flow.Message[string]) error {
			got = append(got, m)
			if len(got) < 3 {
				return testkit.ErrHandler
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
	synctest.Test(t, func(t *testing.T) {
		e := flow.NewEngine(func(context.Context, flow.Message[string]) error { return testkit.ErrHandler },
			flow.RetryOptions{MaxAttempts: 2})
		err := e.Execute(t.Context(), flow.Message[string]{Seq: 7, Key: "k", Value: "v"})
		f := testkit.FailureOf(t, err, flow.FailureHandlerError)
		if f.Seq != 7 || f.Key != "k" || f.Value != "v" || f.Attempts != 2 || f.Err != testkit.ErrHandler {
			t.Errorf("failure is %+v", f)
		}
	})
}

func TestEngineRecoversCrashes(t *testing.T) {
	for how, crash := range crashes {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			e := flow.NewEngine(func(context.Context, flow.Message[string]) error { n++; crash(); return nil },
				flow.RetryOptions{MaxAttempts: 3})
			err := e.Execute(t.Context(), flow.Message[string]{Seq: 1, Value: "v"})
			if f := testkit.FailureOf(t, err, flow.FailureInternal); f.Attempts != 1 || f.Value != "v" || n != 1 {
				t.Errorf("%s: failure is %+v after %d calls: a crash is not tried again", how, f, n)
			}
		})
	}
}

func TestEnginesWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("why")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, why)
		defer cancel()
		e := flow.NewEngine(func(context.Context, flow.Message[string]) error { return testkit.ErrHandler },
			flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour})
		began := time.Now()
		err := e.Execute(ctx, flow.Message[string]{})
		f := testkit.FailureOf(t, err, flow.FailureContextCancelled)
		if time.Since(began) != time.Second || f.Attempts != 1 {
			t.Errorf("after %v: %+v", time.Since(began), f)
		}
		for _, cause := range []error{context.DeadlineExceeded, why, testkit.ErrHandler} {
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
	f := testkit.FailureOf(t, e.Execute(ctx, flow.Message[string]{}), flow.FailureContextCancelled)
	if f.Attempts != 0 {
		t.Errorf("failure is %+v", f)
	}
}

func TestEnginesHandlerThatLeavesOnCancelIsAContextFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		e := flow.NewEngine(testkit.NewManualHandler().Handle, flow.RetryOptions{MaxAttempts: 3})
		f := testkit.FailureOf(t, e.Execute(ctx, flow.Message[string]{}), flow.FailureContextCancelled)
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
		{testkit.ErrHandler, flow.FailureHandlerError},
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
			if f := testkit.FailureOf(t, e.Execute(ctx, flow.Message[string]{}), want); !errors.Is(f, c.err) {
				t.Errorf("%v is not seen in %v", c.err, f)
			}
			cancel(nil)
		}
	}
}

func TestEngineIsSafeForConcurrentUseAndSharesItsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 20
		e := flow.NewEngine(func(context.Context, flow.Message[string]) error { return testkit.ErrHandler },
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
	synctest.Test(t, func(t *testing.T) {
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
