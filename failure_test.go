package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestFirstFailureEndsTheStreamAndIsTheOneReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		second := errors.New("second")
		f := testkit.New(t, func(ctx context.Context, m flow.Message[string]) error {
			if m.Value == "a1" {
				time.Sleep(time.Second)
				return testkit.ErrHandler
			}
			<-ctx.Done()
			time.Sleep(time.Second)
			return second
		}, flow.Options{Ordering: testkit.Keyed})
		c := testkit.Start(t, f, "b1", "a1", "c1")
		testkit.Advance(2 * time.Second)
		sum, err := c.Result(t)
		if fault := testkit.FailureOf(t, err, flow.FailureHandlerError); fault.Seq != 2 || fault.Err != testkit.ErrHandler {
			t.Errorf("failure is %+v, want that of message 2", fault)
		}
		if sum.Failed != 3 {
			t.Errorf("summary is %+v", sum)
		}
		testkit.CheckConserved(t, sum)
	})
}

func TestFailureCancelsTheOtherHandlersAndIsTheirCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		causes := make(chan error, 1)
		f := testkit.New(t, func(ctx context.Context, m flow.Message[string]) error {
			if m.Value == "a1" {
				time.Sleep(time.Second)
				return testkit.ErrHandler
			}
			<-ctx.Done()
			causes <- context.Cause(ctx)
			return ctx.Err()
		}, flow.Options{Ordering: testkit.Keyed})
		c := testkit.Start(t, f, "a1", "b1")
		testkit.Advance(time.Second)
		_, err := c.Result(t)
		if cause := <-causes; cause != err {
			t.Errorf("cause is %v, want the failure that Run returned: %v", cause, err)
		}
	})
}

func TestEndOfRunsOwnContextIsTheHandlersCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("the test said so")
		causes := make(chan error, 1)
		f := testkit.New(t, func(ctx context.Context, m flow.Message[string]) error {
			<-ctx.Done()
			causes <- context.Cause(ctx)
			return ctx.Err()
		}, flow.Options{})
		c := testkit.Start(t, f, "a1", "b1")
		c.Cancel(why)
		c.End()
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureContextCancelled)
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
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed}), "a1", "b1", "b2")
		began := time.Now()
		s.Fail(t, "a1", testkit.ErrHandler) // the client is silent
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureHandlerError)
		if d := time.Since(began); d != 0 {
			t.Errorf("Run returned after %v", d)
		}
		if sum.Received != 3 || sum.Failed != 2 || sum.Dropped != 1 {
			t.Errorf("summary is %+v: what runs fails, what waits is dropped", sum)
		}
		c.Send("late1") // what recv returns now is nobody's
		if got := s.History(); got != "a1 b1" && got != "b1 a1" {
			t.Errorf("started: %q", got)
		}
	})
}

func TestRunReturnsWhenItsContextEndsWhileRecvIsBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testkit.Start(t, testkit.New(t, testkit.Succeed, flow.Options{}), "a1")
		c.Cancel(nil)
		testkit.Advance(time.Second) // briefly awaits recv
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureContextCancelled)
		if sum.Succeeded != 1 || sum.Committed != 1 {
			t.Errorf("summary is %+v", sum)
		}
	})
}

func TestNoHandlerOutlivesItsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running atomic.Int32
		f := testkit.New(t, func(ctx context.Context, m flow.Message[string]) error {
			running.Add(1)
			defer running.Add(-1)
			if m.Value == "a1" {
				return testkit.ErrHandler
			}
			time.Sleep(time.Hour) // heeds no context
			return nil
		}, flow.Options{Ordering: testkit.Keyed})
		c := testkit.Start(t, f, "b1", "c1")
		synctest.Wait() // both run: otherwise a1 could fail before one of them has begun
		c.Send("a1")
		synctest.Wait()
		if c.Ended() {
			t.Fatal("Run returned while handlers ran")
		}
		testkit.Advance(time.Hour)
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureHandlerError)
		if n := running.Load(); n != 0 || sum.Succeeded != 2 || !slices.Equal(sum.Unsettled, []uint64{3}) {
			t.Errorf("%d handlers run; %+v", n, sum)
		}
	})
}

func TestNoHandlerStartsOnceItsStreamsContextHasEnded(t *testing.T) {
	for _, ordering := range []flow.OrderingOptions{{}, testkit.Keyed, {Mode: flow.OrderingNone}} {
		for round := range 20 {
			synctest.Test(t, func(t *testing.T) {
				capacity := 1 + round/2%2
				var late atomic.Int32
				ctx, cancel := context.WithCancel(t.Context())
				f := testkit.New(t, func(own context.Context, m flow.Message[string]) error {
					if own.Err() != nil {
						late.Add(1)
					}
					if m.Seq == 3 {
						if round%2 == 0 {
							cancel()
							return nil
						}
						return testkit.ErrHandler
					}
					if m.Seq > 3 { // a slot that this leaves on cancel must not start the next
						<-own.Done()
						return own.Err()
					}
					return nil
				}, flow.Options{Ordering: ordering, Backpressure: flow.BackpressureOptions{Capacity: capacity}})
				sum, err := f.Run(ctx, testkit.Given(many(50)...))
				cancel()
				if err == nil || int(late.Load()) >= capacity { // the other of two may have been started before
					t.Errorf("%v: Run() = %+v, %v; %d started late", ordering.Mode, sum, err, late.Load())
				}
				testkit.CheckConserved(t, sum)
			})
		}
	}
}

func TestRunOnAContextThatHasEndedReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(testkit.ErrHandler)
		sum, err := testkit.New(t, testkit.Succeed, flow.Options{}).Run(ctx, func() (string, error) {
			t.Error("recv was called")
			return "", io.EOF
		})
		testkit.FailureOf(t, err, flow.FailureContextCancelled)
		if sum.Received != 0 || !errors.Is(err, testkit.ErrHandler) {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestContextsValuesAndDeadlineReachHandlersAndOnFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		ctx, cancel := context.WithDeadline(context.WithValue(t.Context(), key{}, "value"), time.Now().Add(time.Hour))
		defer cancel()
		want, _ := ctx.Deadline()
		check := func(where string, got context.Context) {
			if d, ok := got.Deadline(); !ok || d != want || got.Value(key{}) != "value" {
				t.Errorf("%s: value %v, deadline %v", where, got.Value(key{}), d)
			}
		}
		f := testkit.New(t, func(own context.Context, _ flow.Message[string]) error {
			check("handler", own)
			return testkit.ErrHandler
		}, flow.Options{OnFailure: func(own context.Context, _ *flow.Failure) flow.FailureAction {
			check("OnFailure", own)
			return flow.SkipMessage
		}})
		if sum, err := f.Run(ctx, testkit.Given("a1")); err != nil || sum.Failed != 1 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestDeadlineOfTheStreamEndsItWithDeadlineExceeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		f := testkit.New(t, testkit.NewManualHandler().Handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 9}})
		sum, err := f.Run(ctx, testkit.Given("a1", "a2"))
		testkit.FailureOf(t, err, flow.FailureContextCancelled)
		if status.Code(err) != codes.DeadlineExceeded || sum.Retried != 0 || sum.Failed != 1 || sum.Dropped != 1 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestContextErrorOfAHandlerWhoseStreamLivesIsItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, own := range []error{
			context.DeadlineExceeded, context.Canceled, fmt.Errorf("database: %w", context.Canceled),
			status.Error(codes.Canceled, "upstream"), status.Error(codes.DeadlineExceeded, "upstream"),
		} {
			f := testkit.New(t, func(context.Context, flow.Message[string]) error { return own },
				flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2}})
			sum, err := f.Run(t.Context(), testkit.Given("a1"))
			testkit.FailureOf(t, err, flow.FailureHandlerError)
			if sum.Retried != 1 || !errors.Is(err, own) {
				t.Errorf("%v: Run() = %+v, %v, want a second try", own, sum, err)
			}
		}
	})
}

func TestCommittedAndUnsettledAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed, OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
			if f.Seq == 3 {
				return flow.SkipMessage
			}
			return flow.FailStream
		}})
		c := testkit.Start(t, f, "a1", "b1", "c1", "d1", "e1", "b2", "a2")
		s.Finish(t, "a1", "d1", "a2")
		s.Fail(t, "c1", testkit.ErrHandler)
		s.Fail(t, "e1", testkit.ErrHandler)
		sum, _ := c.Result(t)
		testkit.CheckConserved(t, sum)
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

func TestFirstErrorOfRecvEndsTheStreamAsItsKind(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		err  error
		kind flow.FailureKind
		code codes.Code
	}{
		{broken, flow.FailureInternal, codes.Internal},
		{io.ErrUnexpectedEOF, flow.FailureInternal, codes.Internal},
		{fmt.Errorf("wrapped: %w", io.EOF), flow.FailureInternal, codes.Internal},
		{status.Error(codes.ResourceExhausted, "too large"), flow.FailureInternal, codes.ResourceExhausted},
		{status.Error(codes.Unavailable, "gone"), flow.FailureInternal, codes.Unavailable},
		{fmt.Errorf("wrapped: %w", status.Error(codes.DataLoss, "torn")), flow.FailureInternal, codes.DataLoss},
		{status.Error(codes.Canceled, "reset"), flow.FailureContextCancelled, codes.Canceled},
		{status.Error(codes.DeadlineExceeded, "late"), flow.FailureContextCancelled, codes.DeadlineExceeded},
		{context.Canceled, flow.FailureContextCancelled, codes.Canceled},
		{context.DeadlineExceeded, flow.FailureContextCancelled, codes.DeadlineExceeded},
		{fmt.Errorf("wrapped: %w", context.Canceled), flow.FailureContextCancelled, codes.Canceled},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := testkit.NewManualHandler()
			r := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed}), "a1", "b1", "a2")
			s.Finish(t, "b1")
			r.Fail(c.err) // Source reports a Recv after it
			sum, err := r.Result(t)
			fault := testkit.FailureOf(t, err, c.kind)
			if fault.Seq != 0 || !errors.Is(err, c.err) || status.Code(err) != c.code {
				t.Errorf("%v: Run() = %+v with code %v, want %v", c.err, fault, status.Code(err), c.code)
			}
			if sum.Received != 3 || sum.Succeeded != 1 || sum.Failed != 1 || sum.Dropped != 1 {
				t.Errorf("%v: summary is %+v", c.err, sum)
			}
			testkit.CheckConserved(t, sum)
		})
	}
}

func TestValueThatComesWithAnErrorIsNotReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, end := range []error{io.EOF, testkit.ErrHandler} {
			sum, _ := testkit.New(t, testkit.Succeed, flow.Options{}).Run(t.Context(), func() (string, error) { return "a1", end })
			if sum.Received != 0 {
				t.Errorf("%v: summary is %+v, want nothing received", end, sum)
			}
		}
	})
}

// gRPC cancels the stream's context before the Recv of an oversized message returns.
func TestStatusOfRecvReplacesTheEndOfTheContextJustBeforeIt(t *testing.T) {
	tooLarge := status.Error(codes.ResourceExhausted, "too large")
	for _, c := range []struct {
		name string
		wait time.Duration
		err  error
		kind flow.FailureKind
		code codes.Code
	}{
		{"at once", 0, tooLarge, flow.FailureInternal, codes.ResourceExhausted},
		{"a moment later", time.Millisecond, tooLarge, flow.FailureInternal, codes.ResourceExhausted},
		{"much later", time.Hour, tooLarge, flow.FailureContextCancelled, codes.Canceled},
		{"no status", 0, errors.New("broken"), flow.FailureContextCancelled, codes.Canceled},
		{"Canceled", 0, status.Error(codes.Canceled, "reset"), flow.FailureContextCancelled, codes.Canceled},
		{"EOF", 0, io.EOF, flow.FailureContextCancelled, codes.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := testkit.Start(t, testkit.New(t, testkit.NewManualHandler().Handle, flow.Options{}), "a1", "a2")
				r.Cancel(nil)
				if c.wait > 0 {
					testkit.Advance(c.wait)
				}
				r.Fail(c.err)
				testkit.Advance(time.Second)
				sum, err := r.Result(t)
				testkit.FailureOf(t, err, c.kind)
				if code := status.Code(err); code != c.code {
					t.Errorf("code is %v, want %v", code, c.code)
				}
				testkit.CheckConserved(t, sum)
			})
		})
	}
}

func TestMessageThatComesAfterTheContextsEndIsNotReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{}))
		c.Cancel(nil)
		c.Send("a1")
		testkit.Advance(time.Second)
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureContextCancelled)
		if sum.Received != 0 || s.History() != "" {
			t.Errorf("summary is %+v, started %q", sum, s.History())
		}
	})
}

func TestEOFAfterAFailureChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{}), "a1")
		c.End()
		s.Fail(t, "a1", testkit.ErrHandler)
		_, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureHandlerError)
	})
}

// What decides is whether the stream has ended when the message has its key, whichever way it goes then.
func TestMessageWhoseStreamEndsWhileItsKeyIsAskedForIsNotReceived(t *testing.T) {
	for name, c := range map[string]struct {
		scope  flow.OrderingScope
		panics bool
	}{
		"through the inbox": {}, "on receipt": {scope: flow.ScopeFlow}, "without a key": {panics: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				named, finish := make(chan struct{}), make(chan struct{})
				f, err := flow.New(func(context.Context, flow.Message[string]) error {
					<-finish
					return nil
				}, func(v string) string {
					if v == "b1" {
						<-named
						if c.panics {
							panic("key")
						}
					}
					return testkit.KeyOf(v)
				}, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: c.scope}})
				if err != nil {
					t.Fatal(err)
				}
				run := testkit.Start(t, f, "a1", "b1")
				_ = f.Close()
				close(named)
				synctest.Wait()
				close(finish)
				sum, err := run.Result(t)
				testkit.FailureOf(t, err, flow.FailureShutdown)
				if testkit.CheckConserved(t, sum); sum.Received != 1 || sum.Succeeded != 1 {
					t.Errorf("Run() = %+v, want the first message only", sum)
				}
			})
		})
	}
}

func TestRecvIsNotCalledAgainAfterItsFirstError(t *testing.T) {
	for name, last := range map[string]error{"EOF": io.EOF, "failure": testkit.ErrHandler} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, calls := testkit.NewManualHandler(), 0
				f := testkit.New(t, s.Handle, flow.Options{})
				ctx, cancel := context.WithCancel(context.Background())
				run := testkit.StartFunc(t, func(context.Context, func() (string, error)) (flow.Summary, error) {
					return f.Run(ctx, func() (string, error) {
						switch calls++; calls {
						case 1:
							return "a1", nil
						case 2:
							return "", last
						}
						<-ctx.Done()
						return "", io.EOF
					})
				})
				s.FinishAll(t)
				if _, err := run.Result(t); (err == nil) != (last == io.EOF) {
					t.Errorf("Run() = %v after %v", err, last)
				}
				cancel()
				synctest.Wait()
				if calls != 2 {
					t.Errorf("recv was called %d times, want 2", calls)
				}
			})
		})
	}
}

// Errors of the caller's whose methods panic, or lie, each another. (testkit.NilError is all of them at once.)
type (
	textPanics   struct{ name string }
	unwrapPanics struct{ name string }
	isPanics     struct{ name string }
	asPanics     struct{ name string }
	asLies       struct{ name string } // it finds whatever it is asked for, and sets nothing
	statusPanics struct{ name string }
	endless      struct{ name string } // wraps itself
	endlessTree  struct{ name string } // and that twice
	incomparable struct{ what any }    // comparing it panics
)

func (e *textPanics) Error() string { panic("Error of " + e.name) }

func (e *unwrapPanics) Error() string { return e.name }

func (e *unwrapPanics) Unwrap() error { panic("Unwrap of " + e.name) }

func (e *isPanics) Error() string { return e.name }

func (e *isPanics) Is(error) bool { panic("Is of " + e.name) }

func (e *asPanics) Error() string { return e.name }

func (e *asPanics) As(any) bool { panic("As of " + e.name) }

func (e *asLies) Error() string { return e.name }

// As reports whether it has found what it is asked for, and has set nothing.
func (e *asLies) As(any) bool { return true }

func (e *statusPanics) Error() string { return e.name }

func (e *statusPanics) GRPCStatus() *status.Status { panic("GRPCStatus of " + e.name) }

func (e *endless) Error() string { return e.name }

func (e *endless) Unwrap() error { return e }

func (e *endlessTree) Error() string { return e.name }

func (e *endlessTree) Unwrap() []error { return []error{e, e} }

func (e incomparable) Error() string { return "incomparable" }

// foreign are errors that no call may come through of: by what they are, and their text as it is shown.
var foreign = map[string]struct {
	err  error
	text string
}{
	"typed nil":    {(*testkit.NilError)(nil), "an error of type *testkit.NilError, whose Error method panics"},
	"Error":        {&textPanics{"e"}, "an error of type *flow_test.textPanics, whose Error method panics"},
	"Unwrap":       {&unwrapPanics{"e"}, "e"},
	"Is":           {&isPanics{"e"}, "e"},
	"As":           {&asPanics{"e"}, "e"},
	"As lies":      {&asLies{"e"}, "e"},
	"GRPCStatus":   {&statusPanics{"e"}, "e"},
	"no end":       {&endless{"e"}, "e"},
	"no end twice": {&endlessTree{"e"}, "e"},
	"comparison":   {incomparable{[]int{1}}, "incomparable"},
	"nil Failure":  {(*flow.Failure)(nil), "<nil>"},
}

// logging is a SlogObserver whose lines nobody reads.
var logging = flow.SlogObserver(slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelDebug})))

// pokes calls all that anybody may call on err, and says what panics.
func pokes(t *testing.T, name string, err error) {
	t.Helper()
	var nilErr *testkit.NilError
	var fault *flow.Failure
	var temporary interface{ Temporary() bool }
	for what, call := range map[string]func(){
		"Error":           func() { _ = err.Error() },
		"errors.Is":       func() { _ = errors.Is(err, errSecret) },
		"errors.Is alike": func() { _ = errors.Is(err, incomparable{[]int{1}}) },
		"errors.As":       func() { _, _, _ = errors.As(err, &nilErr), errors.As(err, &fault), errors.As(err, &temporary) },
		"errors.Unwrap":   func() { _ = errors.Is(errors.Unwrap(err), errSecret) },
		"FromError":       func() { _, _ = status.FromError(err) },
		"wrapped":         func() { _ = status.Convert(fmt.Errorf("wrapped: %w", err)).Message() },
		"ClassifyFailure": func() { _ = flow.ClassifyFailure(err) },
		"RetryAfter":      func() { _, _ = flow.RetryAfter(err) },
		"print":           func() { _ = fmt.Sprintf("%v %+v %s", err, err, err) },
		"wrapping":        func() { _ = fmt.Errorf("%w", err) },
	} {
		func() {
			defer func() {
				if v := recover(); v != nil {
					t.Errorf("%s: %s panics: %v", name, what, v)
				}
			}()
			call()
		}()
	}
}

// What a handler returned is its error, whatever the methods of that do: they are called where nobody recovers, and when
// depends on who looks.
func TestHandlersErrorWhoseMethodsPanicIsAnErrorLikeAnyOther(t *testing.T) {
	type shape struct {
		kind     flow.FailureKind
		attempts int
		text     string
		code     codes.Code
		message  string
	}
	for name, c := range foreign {
		for how, err := range map[string]error{
			"as it is": c.err, "wrapped": fmt.Errorf("store: %w", c.err), "joined": errors.Join(c.err, errSecret),
			"permanent": flow.Permanent(c.err),
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				var shapes []shape
				for _, attempts := range []int{0, 1, 3} {
					for observed, observer := range map[string]flow.Observer{
						"": nil, "observed": logging, "poked": func(_ context.Context, e flow.Event) {
							if e.Failure != nil {
								pokes(t, "in an event", e.Failure)
								pokes(t, "in an event", e.Failure.Err)
							}
						},
					} {
						var sum flow.Summary
						var got error
						synctest.Test(t, func(t *testing.T) {
							sum, got = testkit.New(t, func(context.Context, flow.Message[string]) error { return err }, flow.Options{
								Retry:    flow.RetryOptions{MaxAttempts: attempts},
								Observer: observer,
							}).Run(t.Context(), testkit.Given("a1"))
						})
						if testkit.CheckConserved(t, sum); sum.Received != 1 || sum.Failed != 1 {
							t.Errorf("%d attempts, %s: summary is %+v", attempts, observed, sum)
						}
						f := testkit.FailureOf(t, got, flow.FailureHandlerError)
						pokes(t, "Run's error", f)
						pokes(t, "its cause", f.Err)
						if how == "as it is" && reflect.TypeOf(err).Comparable() && name != "comparison" && !errors.Is(f, err) {
							t.Errorf("errors.Is does not see %v", reflect.TypeOf(err))
						}
						if how == "joined" && !errors.Is(f, errSecret) && !strings.HasPrefix(name, "no end") {
							t.Error("errors.Is does not see what is joined with it")
						}
						st := f.GRPCStatus()
						s := shape{f.Kind, f.Attempts - max(1, attempts), f.Error(), st.Code(), st.Message()}
						if how == "permanent" {
							s.attempts = f.Attempts - 1
						}
						shapes = append(shapes, s)
					}
				}
				for _, s := range shapes {
					if s != shapes[0] || s.code != codes.Unknown || s.attempts != 0 {
						t.Fatalf("the failures differ, or are not those of an error: %+v", shapes)
					}
				}
				if how == "as it is" && shapes[0].message != c.text {
					t.Errorf("the client would read %q, want %q", shapes[0].message, c.text)
				}
			})
		}
	}
}

// unitCode is an error that a handler's own As finds in another: also the zero value is one.
type unitCode int

func (c unitCode) Error() string { return fmt.Sprintf("unit code %d", int(c)) }

type unitError struct{ code unitCode }

func (e *unitError) Error() string { return "unit" }

// As finds a unitCode. A target that has a value already is not looked at.
func (e *unitError) As(target any) bool {
	code, ok := target.(*unitCode)
	if ok && *code == 0 {
		*code = e.code
	}
	return ok
}

func TestWhatAnAsMethodFindsIsFoundWhateverItsValueIs(t *testing.T) {
	for _, want := range []unitCode{0, 7} {
		f := testkit.New(t, func(context.Context, flow.Message[string]) error { return &unitError{want} }, flow.Options{})
		_, err := f.Run(t.Context(), testkit.Given("a1"))
		got := unitCode(3) // which is not what was found
		if !errors.As(err, &got) || got != want {
			t.Errorf("found %d in %v, want %d", got, err, want)
		}
	}
	f := testkit.New(t, func(context.Context, flow.Message[string]) error { return &asLies{"e"} }, flow.Options{})
	_, err := f.Run(t.Context(), testkit.Given("a1"))
	if found := (*unitError)(nil); errors.As(err, &found) {
		t.Error("a lie is believed")
	}
}

func TestHandlersErrorWhoseMethodsPanicMayBeSkipped(t *testing.T) {
	for name, c := range foreign {
		synctest.Test(t, func(t *testing.T) {
			f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
				if m.Key == "f" {
					return c.err
				}
				return nil
			}, flow.Options{OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
				pokes(t, name, f)
				return flow.SkipMessage
			}})
			sum, err := f.Run(t.Context(), testkit.Given("a1", "f1", "a2"))
			if err != nil || sum.Succeeded != 2 || sum.Failed != 1 || sum.Committed != 3 {
				t.Errorf("%s: Run() = %+v, %v", name, sum, err)
			}
		})
	}
}

// fickle is an error that answers once, and panics when it is asked again.
type fickle struct{ texts, statuses int }

func (e *fickle) Error() string {
	if e.texts++; e.texts > 1 {
		panic("asked again")
	}
	return "disk full"
}

func (e *fickle) GRPCStatus() *status.Status {
	if e.statuses++; e.statuses > 1 {
		panic("asked again")
	}
	return status.New(codes.Unavailable, "try later")
}

func TestTextAndStatusOfAnErrorAreTakenOnceWhereTheFailureIsMade(t *testing.T) {
	for _, attempts := range []int{0, 1, 2} {
		for _, observer := range []flow.Observer{nil, logging} {
			synctest.Test(t, func(t *testing.T) {
				var last *fickle
				f := testkit.New(t, func(context.Context, flow.Message[string]) error { last = new(fickle); return last }, flow.Options{
					Retry: flow.RetryOptions{MaxAttempts: attempts, Budget: budgetOf(attempts)}, Observer: observer,
				})
				_, err := f.Run(t.Context(), testkit.Given("a1"))
				fault := testkit.FailureOf(t, err, flow.FailureHandlerError)
				for range 2 {
					if st := fault.GRPCStatus(); st.Code() != codes.Unavailable || st.Message() != "try later" {
						t.Errorf("status is %v", st)
					}
					if want := "flow: message 1: disk full"; fault.Error() != want {
						t.Errorf("text is %q, want %q", fault.Error(), want)
					}
				}
				if last.texts != 1 || last.statuses != 1 {
					t.Errorf("asked %d times for its text and %d times for its status, want once each", last.texts, last.statuses)
				}
			})
		}
	}
}

func budgetOf(attempts int) flow.RetryBudget {
	if attempts == 0 {
		return flow.RetryBudget{}
	}
	return flow.RetryBudget{MaxTokens: 10, TokenRatio: 1}
}

// A Failure that was copied, or made by somebody else, has not been asked before; it must not panic either.
func TestFailureOfTheCallersOwnMakingIsAskedGuardedToo(t *testing.T) {
	for name, c := range foreign {
		for kind := flow.FailureNone; kind <= flow.FailureInternal; kind++ {
			pokes(t, name, &flow.Failure{Kind: kind, Seq: 1, Err: c.err})
		}
	}
	_, err := testkit.New(t, func(context.Context, flow.Message[string]) error { return testkit.ErrHandler }, flow.Options{}).
		Run(t.Context(), testkit.Given("a1"))
	changed := *testkit.FailureOf(t, err, flow.FailureHandlerError)
	changed.Err = errors.New("something else")
	if want := "flow: message 1: something else"; changed.Error() != want || changed.GRPCStatus().Message() != "something else" {
		t.Errorf("a changed copy says %q and %v, want what it was changed to", changed.Error(), changed.GRPCStatus())
	}
}

// An error of recv is of no message: it must not be taken for one.
func TestErrorOfRecvWhoseMethodsPanicEndsTheStreamAndIsNoMessage(t *testing.T) {
	for name, c := range foreign {
		for mode, o := range map[string]flow.Options{
			"FIFO": {}, "keyed": {Ordering: testkit.Keyed}, "on receipt": {Ordering: flow.OrderingOptions{Capacity: 5}},
			"bytes": {MaxPendingBytes: 100}, "idle": {IdleTimeout: time.Hour},
		} {
			t.Run(name+"/"+mode, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := new(testkit.EventLog)
					o.Observer = p.Observe
					asked := 0
					o.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { asked++; return flow.SkipMessage }
					recv, keys := testkit.Given("a1", "b1"), 0
					f, err := flow.New(testkit.Succeed, func(v string) string { keys++; return testkit.KeyOf(v) }, o)
					if err != nil {
						t.Fatal(err)
					}
					sum, err := f.Run(t.Context(), func() (string, error) {
						v, err := recv()
						if err == io.EOF {
							time.Sleep(time.Second) // both have run
							return "c1", c.err
						}
						return v, err
					})
					fault := testkit.FailureOf(t, err, flow.FailureInternal)
					if fault.Seq != 0 || fault.Value != nil || fault.Attempts != 0 || status.Code(err) != codes.Internal {
						t.Errorf("failure is %+v, want the stream's", fault)
					}
					pokes(t, name, err)
					testkit.CheckConserved(t, sum)
					if sum.Received != 2 || sum.Succeeded != 2 || sum.Committed != 2 || keys != 2 || asked != 0 {
						t.Errorf("Run() = %+v after %d keys, OnFailure called %d times; want two messages", sum, keys, asked)
					}
					rest := slices.Collect(flow.Rest(sum.Progress(), slices.Values([]string{"a1", "b1", "c1"})))
					if !slices.Equal(rest, []string{"c1"}) {
						t.Errorf("a client would send %q again, want what never ran", rest)
					}
					for _, e := range p.All() {
						if e.Seq > 2 {
							t.Errorf("told of message %d: %v", e.Seq, e.Kind)
						}
					}
				})
			})
		}
	}
}

func TestErrorOfAResolverWhoseMethodsPanicIsARefusal(t *testing.T) {
	for name, c := range foreign {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate := flow.NewGate(resolverFunc(func(context.Context, string) (flow.ReleaseFunc, error) { return nil, c.err }), nil, nil)
				_, err := gate.Admit(t.Context(), "a")
				pokes(t, name, testkit.FailureOf(t, err, flow.FailureOrdering))
				sum, err := flow.NewReceiver(gate, flow.NewEngine(testkit.Succeed, flow.RetryOptions{})).Receive(t.Context(), testkit.Given("a1"), testkit.KeyOf)
				f := testkit.FailureOf(t, err, flow.FailureOrdering)
				pokes(t, name, f)
				if st := f.GRPCStatus(); sum.Rejected != 1 || f.Seq != 1 || st.Code() != codes.Aborted {
					t.Errorf("Receive() = %+v with %v", sum, st)
				}
			})
		})
	}
}

func TestCauseOfAContextWhoseMethodsPanicIsHarmless(t *testing.T) {
	for name, c := range foreign {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{Observer: logging})
				run := testkit.Start(t, f, "a1", "a2")
				run.Cancel(c.err)
				run.End()
				sum, err := run.Result(t)
				fault := testkit.FailureOf(t, err, flow.FailureContextCancelled)
				pokes(t, name, fault)
				if st := fault.GRPCStatus(); st.Code() != codes.Canceled || st.Message() != "context canceled" || sum.Failed != 1 {
					t.Errorf("Run() = %+v, %v", sum, st)
				}

				ctx, cancel := context.WithCancelCause(t.Context())
				testkit.Start(t, f, "a1")
				cancel(c.err)
				err = f.Shutdown(ctx)
				if cut, ok := errors.AsType[*flow.ShutdownError](err); !ok || cut.CutOff != 1 {
					t.Errorf("Shutdown() = %T", err)
				}
				pokes(t, name, err)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		for name, c := range foreign {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(c.err)
			_, err := flow.NewGate(nil, nil, nil).Admit(ctx, "a")
			pokes(t, name, testkit.FailureOf(t, err, flow.FailureContextCancelled))
			err = flow.NewEngine(testkit.Succeed, flow.RetryOptions{}).Execute(ctx, flow.Message[string]{})
			pokes(t, name, testkit.FailureOf(t, err, flow.FailureContextCancelled))
		}
	})
}

func TestEngineTakesAnErrorWhoseMethodsPanicForAnError(t *testing.T) {
	for name, c := range foreign {
		synctest.Test(t, func(t *testing.T) {
			e := flow.NewEngine(func(context.Context, flow.Message[string]) error { return c.err }, flow.RetryOptions{MaxAttempts: 2})
			f := testkit.FailureOf(t, e.Execute(t.Context(), flow.Message[string]{Seq: 7}), flow.FailureHandlerError)
			pokes(t, name, f)
			if f.Attempts != 2 || f.GRPCStatus().Code() != codes.Unknown {
				t.Errorf("%s: failure is %+v", name, f)
			}
		})
	}
}

func TestPanicWithAValueWhoseMethodsPanicIsAPanic(t *testing.T) {
	for name, c := range foreign {
		synctest.Test(t, func(t *testing.T) {
			f := testkit.New(t, func(context.Context, flow.Message[string]) error { panic(c.err) },
				flow.Options{Observer: logging, Retry: flow.RetryOptions{MaxAttempts: 3}})
			sum, err := f.Run(t.Context(), testkit.Given("a1"))
			fault := testkit.FailureOf(t, err, flow.FailureInternal)
			pokes(t, name, fault)
			if fault.Attempts != 1 || sum.Failed != 1 || fault.GRPCStatus().Message() != "internal error" {
				t.Errorf("%s: failure is %+v", name, fault)
			}
		})
	}
}

// panicNil has panic(nil) be what it was before Go 1.21: recover does not show it.
func panicNil(t *testing.T) {
	t.Setenv("GODEBUG", strings.Trim(os.Getenv("GODEBUG")+",panicnil=1", ","))
	func() {
		defer func() {
			if recover() != nil {
				t.Fatal("the setting has no effect")
			}
		}()
		panic(nil)
	}()
}

func TestPanicWithNilIsAPanicAlsoWhereRecoverDoesNotShowIt(t *testing.T) {
	panicNil(t)
	for where, site := range sites {
		t.Run(where, func(t *testing.T) { site.crash(t, "panic with nil", crashes["panic with nil"]) })
	}
	t.Run("in one run", func(t *testing.T) { // the first of three is run alone, the others as they lie there
		for _, observer := range []flow.Observer{nil, new(testkit.EventLog).Observe} {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
					if calls++; m.Seq == 3 {
						panic(nil)
					}
					return nil
				}, flow.Options{Observer: observer})
				sum, err := f.Run(t.Context(), testkit.Given("a1", "a2", "a3", "a4"))
				fault := testkit.FailureOf(t, err, flow.FailureInternal)
				if nilPanic := new(runtime.PanicNilError); !errors.As(err, &nilPanic) || fault.Seq != 3 || fault.Attempts != 1 {
					t.Errorf("failure is %+v", fault)
				}
				if sum.Succeeded != 2 || sum.Failed != 1 || calls != 3 {
					t.Errorf("Run() = %+v after %d calls", sum, calls)
				}
			})
		}
	})
	t.Run("recv", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sum, err := testkit.New(t, testkit.Succeed, flow.Options{}).Run(t.Context(), func() (string, error) { panic(nil) })
			if fault := testkit.FailureOf(t, err, flow.FailureInternal); fault.Seq != 0 || sum.Received != 0 {
				t.Errorf("Run() = %+v, %+v", sum, fault)
			}
		})
	})
	t.Run("engine", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := flow.NewEngine(func(context.Context, flow.Message[string]) error { panic(nil) }, flow.RetryOptions{MaxAttempts: 3})
			if f := testkit.FailureOf(t, e.Execute(t.Context(), flow.Message[string]{}), flow.FailureInternal); f.Attempts != 1 {
				t.Errorf("failure is %+v", f)
			}
		})
	})
	t.Run("own resolver", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			gate := flow.NewGate(resolverFunc(func(context.Context, string) (flow.ReleaseFunc, error) { panic(nil) }), nil, nil)
			_, err := flow.NewReceiver(gate, flow.NewEngine(testkit.Succeed, flow.RetryOptions{})).Receive(t.Context(), testkit.Given("a1"), testkit.KeyOf)
			testkit.FailureOf(t, err, flow.FailureInternal)
			if _, ok := errors.AsType[*runtime.PanicNilError](err); !ok {
				t.Errorf("the cause is %v, want the panic", errors.Unwrap(err))
			}
		})
	})
	t.Run("an error's method", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, err := testkit.New(t, func(context.Context, flow.Message[string]) error { return nilPanics{} }, flow.Options{
				Retry: flow.RetryOptions{MaxAttempts: 2}, Observer: logging,
			}).Run(t.Context(), testkit.Given("a1"))
			pokes(t, "panic(nil)", testkit.FailureOf(t, err, flow.FailureHandlerError))
		})
	})
}

// nilPanics is an error whose methods all call panic(nil).
type nilPanics struct{}

func (nilPanics) Error() string { panic(nil) }

func (nilPanics) Unwrap() error { panic(nil) }

func (nilPanics) Is(error) bool { panic(nil) }

func (nilPanics) As(any) bool { panic(nil) }

func (nilPanics) GRPCStatus() *status.Status { panic(nil) }
