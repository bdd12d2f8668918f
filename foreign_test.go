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
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"google.golang.org/grpc"

	"example.com/flow"
)

// Errors of the caller's whose methods panic, each another. (nilError is all of them at once.)
type (
	textPanics   struct{ name string }
	unwrapPanics struct{ name string }
	isPanics     struct{ name string }
	asPanics     struct{ name string }
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
func (e *asPanics) As(any) bool   { panic("As of " + e.name) }

func (e *statusPanics) Error() string              { return e.name }
func (e *statusPanics) GRPCStatus() *status.Status { panic("GRPCStatus of " + e.name) }

func (e *endless) Error() string { return e.name }
func (e *endless) Unwrap() error { return e }

func (e *endlessTree) Error() string   { return e.name }
func (e *endlessTree) Unwrap() []error { return []error{e, e} }

func (e incomparable) Error() string { return "incomparable" }

// foreign are errors that no call may come through of: by what they are, and their text as it is shown.
var foreign = map[string]struct {
	err  error
	text string
}{
	"typed nil":    {(*nilError)(nil), "an error of type *flow_test.nilError, whose Error method panics"},
	"Error":        {&textPanics{"e"}, "an error of type *flow_test.textPanics, whose Error method panics"},
	"Unwrap":       {&unwrapPanics{"e"}, "e"},
	"Is":           {&isPanics{"e"}, "e"},
	"As":           {&asPanics{"e"}, "e"},
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
	var nilErr *nilError
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
						bubble(t, func(t *testing.T) {
							sum, got = mustNew(t, func(context.Context, flow.Message[string]) error { return err }, flow.Options{
								Retry:    flow.RetryOptions{MaxAttempts: attempts},
								Observer: observer,
							}).Run(t.Context(), given("a1"))
						})
						if conserved(t, sum); sum.Received != 1 || sum.Failed != 1 {
							t.Errorf("%d attempts, %s: summary is %+v", attempts, observed, sum)
						}
						f := failureOf(t, got, flow.FailureHandlerError)
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

func TestHandlersErrorWhoseMethodsPanicMayBeSkipped(t *testing.T) {
	for name, c := range foreign {
		bubble(t, func(t *testing.T) {
			f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
				if m.Key == "f" {
					return c.err
				}
				return nil
			}, flow.Options{OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
				pokes(t, name, f)
				return flow.SkipMessage
			}})
			sum, err := f.Run(t.Context(), given("a1", "f1", "a2"))
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
			bubble(t, func(t *testing.T) {
				var last *fickle
				f := mustNew(t, func(context.Context, flow.Message[string]) error { last = new(fickle); return last }, flow.Options{
					Retry: flow.RetryOptions{MaxAttempts: attempts, Budget: budgetOf(attempts)}, Observer: observer,
				})
				_, err := f.Run(t.Context(), given("a1"))
				fault := failureOf(t, err, flow.FailureHandlerError)
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
	_, err := mustNew(t, func(context.Context, flow.Message[string]) error { return errHandler }, flow.Options{}).
		Run(t.Context(), given("a1"))
	changed := *failureOf(t, err, flow.FailureHandlerError)
	changed.Err = errors.New("something else")
	if want := "flow: message 1: something else"; changed.Error() != want || changed.GRPCStatus().Message() != "something else" {
		t.Errorf("a changed copy says %q and %v, want what it was changed to", changed.Error(), changed.GRPCStatus())
	}
}

// An error of recv is of no message: it must not be taken for one.
func TestErrorOfRecvWhoseMethodsPanicEndsTheStreamAndIsNoMessage(t *testing.T) {
	for name, c := range foreign {
		for mode, o := range map[string]flow.Options{
			"FIFO": {}, "keyed": {Ordering: keyed}, "on receipt": {Ordering: flow.OrderingOptions{Capacity: 5}},
			"bytes": {MaxPendingBytes: 100}, "idle": {IdleTimeout: time.Hour},
		} {
			t.Run(name+"/"+mode, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := new(tape)
					o.Observer = p.observe
					asked := 0
					o.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { asked++; return flow.SkipMessage }
					recv, keys := given("a1", "b1"), 0
					f, err := flow.New(succeed, func(v string) string { keys++; return keyOf(v) }, o)
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
					fault := failureOf(t, err, flow.FailureInternal)
					if fault.Seq != 0 || fault.Value != nil || fault.Attempts != 0 || status.Code(err) != codes.Internal {
						t.Errorf("failure is %+v, want the stream's", fault)
					}
					pokes(t, name, err)
					conserved(t, sum)
					if sum.Received != 2 || sum.Succeeded != 2 || sum.Committed != 2 || keys != 2 || asked != 0 {
						t.Errorf("Run() = %+v after %d keys, OnFailure called %d times; want two messages", sum, keys, asked)
					}
					rest := slices.Collect(flow.Rest(sum.Progress(), slices.Values([]string{"a1", "b1", "c1"})))
					if !slices.Equal(rest, []string{"c1"}) {
						t.Errorf("a client would send %q again, want what never ran", rest)
					}
					for _, e := range p.all() {
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
			bubble(t, func(t *testing.T) {
				gate := flow.NewGate(resolverFunc(func(context.Context, string) (flow.ReleaseFunc, error) { return nil, c.err }), nil, nil)
				_, err := gate.Admit(t.Context(), "a")
				pokes(t, name, failureOf(t, err, flow.FailureOrdering))
				sum, err := flow.NewReceiver(gate, flow.NewEngine(succeed, flow.RetryOptions{})).Receive(t.Context(), given("a1"), keyOf)
				f := failureOf(t, err, flow.FailureOrdering)
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
			bubble(t, func(t *testing.T) {
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{Observer: logging})
				run := start(t, f, "a1", "a2")
				run.cancel(c.err)
				run.End()
				sum, err := run.result(t)
				fault := failureOf(t, err, flow.FailureContextCancelled)
				pokes(t, name, fault)
				if st := fault.GRPCStatus(); st.Code() != codes.Canceled || st.Message() != "context canceled" || sum.Failed != 1 {
					t.Errorf("Run() = %+v, %v", sum, st)
				}

				ctx, cancel := context.WithCancelCause(t.Context())
				start(t, f, "a1")
				cancel(c.err)
				err = f.Shutdown(ctx)
				if cut, ok := errors.AsType[*flow.ShutdownError](err); !ok || cut.CutOff != 1 {
					t.Errorf("Shutdown() = %T", err)
				}
				pokes(t, name, err)
			})
		})
	}
	bubble(t, func(t *testing.T) {
		for name, c := range foreign {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(c.err)
			_, err := flow.NewGate(nil, nil, nil).Admit(ctx, "a")
			pokes(t, name, failureOf(t, err, flow.FailureContextCancelled))
			err = flow.NewEngine(succeed, flow.RetryOptions{}).Execute(ctx, flow.Message[string]{})
			pokes(t, name, failureOf(t, err, flow.FailureContextCancelled))
		}
	})
}

func TestEngineTakesAnErrorWhoseMethodsPanicForAnError(t *testing.T) {
	for name, c := range foreign {
		bubble(t, func(t *testing.T) {
			e := flow.NewEngine(func(context.Context, flow.Message[string]) error { return c.err }, flow.RetryOptions{MaxAttempts: 2})
			f := failureOf(t, e.Execute(t.Context(), flow.Message[string]{Seq: 7}), flow.FailureHandlerError)
			pokes(t, name, f)
			if f.Attempts != 2 || f.GRPCStatus().Code() != codes.Unknown {
				t.Errorf("%s: failure is %+v", name, f)
			}
		})
	}
}

func TestPanicWithAValueWhoseMethodsPanicIsAPanic(t *testing.T) {
	for name, c := range foreign {
		bubble(t, func(t *testing.T) {
			f := mustNew(t, func(context.Context, flow.Message[string]) error { panic(c.err) },
				flow.Options{Observer: logging, Retry: flow.RetryOptions{MaxAttempts: 3}})
			sum, err := f.Run(t.Context(), given("a1"))
			fault := failureOf(t, err, flow.FailureInternal)
			pokes(t, name, fault)
			if fault.Attempts != 1 || sum.Failed != 1 || fault.GRPCStatus().Message() != "internal error" {
				t.Errorf("%s: failure is %+v", name, fault)
			}
		})
	}
}

func TestServerOutlivesAHandlersTypedNil(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newRequestFlow(t, func(_ context.Context, m flow.Message[string]) error {
			if m.Key == "nil" {
				return (*nilError)(nil)
			}
			return nil
		}, flow.Options{})
		s := serve(t, runs(f))
		u := s.open(t, "a1", "nil1")
		wantStatus(t, u.status(t), codes.Unknown, "HANDLER_ERROR")
		wantProgress(t, u, 1, 1)
		if n, st := s.open(t, "a1").end(t); n != 1 || st.Code() != codes.OK { // the process has not ended
			t.Errorf("answer is %d, %v, want 1, OK", n, st)
		}
	})
}

// brittleCodec panics on a message that begins with a zero.
type brittleCodec struct{ encoding.CodecV2 }

func (c brittleCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if b := data.Materialize(); len(b) > 0 && strings.Contains(string(b), "poison") {
		panic("codec")
	}
	return c.CodecV2.Unmarshal(data, v)
}

func TestPanicOfACodecEndsTheStreamAndIsNoMessage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var o outcome
		codec := brittleCodec{encoding.GetCodecV2("proto")}
		s := serve(t, reports(newRequestFlow(t, succeed, flow.Options{}), &o), grpc.ForceServerCodecV2(codec))
		u := s.open(t, "a1")
		u.send(t, "poison1")
		wantStatus(t, u.status(t), codes.Internal, "INTERNAL")
		wantProgress(t, u, 1, 1)
		if f := failureOf(t, o.err, flow.FailureInternal); f.Seq != 0 || o.sum.Received != 1 {
			t.Errorf("Run() = %+v, %+v", o.sum, f)
		}
		if n, st := s.open(t, "a1").end(t); n != 1 || st.Code() != codes.OK {
			t.Errorf("answer is %d, %v, want 1, OK", n, st)
		}
	})
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
	t.Run("under a lease", func(t *testing.T) { // the first of three is run alone, the others as they lie there
		for _, observer := range []flow.Observer{nil, new(tape).observe} {
			bubble(t, func(t *testing.T) {
				calls := 0
				f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
					if calls++; m.Seq == 3 {
						panic(nil)
					}
					return nil
				}, flow.Options{Observer: observer})
				sum, err := f.Run(t.Context(), given("a1", "a2", "a3", "a4"))
				fault := failureOf(t, err, flow.FailureInternal)
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
		bubble(t, func(t *testing.T) {
			sum, err := mustNew(t, succeed, flow.Options{}).Run(t.Context(), func() (string, error) { panic(nil) })
			if fault := failureOf(t, err, flow.FailureInternal); fault.Seq != 0 || sum.Received != 0 {
				t.Errorf("Run() = %+v, %+v", sum, fault)
			}
		})
	})
	t.Run("engine", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			e := flow.NewEngine(func(context.Context, flow.Message[string]) error { panic(nil) }, flow.RetryOptions{MaxAttempts: 3})
			if f := failureOf(t, e.Execute(t.Context(), flow.Message[string]{}), flow.FailureInternal); f.Attempts != 1 {
				t.Errorf("failure is %+v", f)
			}
		})
	})
	t.Run("own resolver", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			gate := flow.NewGate(resolverFunc(func(context.Context, string) (flow.ReleaseFunc, error) { panic(nil) }), nil, nil)
			_, err := flow.NewReceiver(gate, flow.NewEngine(succeed, flow.RetryOptions{})).Receive(t.Context(), given("a1"), keyOf)
			failureOf(t, err, flow.FailureInternal)
			if _, ok := errors.AsType[*runtime.PanicNilError](err); !ok {
				t.Errorf("the cause is %v, want the panic", errors.Unwrap(err))
			}
		})
	})
	t.Run("an error's method", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			_, err := mustNew(t, func(context.Context, flow.Message[string]) error { return nilPanics{} }, flow.Options{
				Retry: flow.RetryOptions{MaxAttempts: 2}, Observer: logging,
			}).Run(t.Context(), given("a1"))
			pokes(t, "panic(nil)", failureOf(t, err, flow.FailureHandlerError))
		})
	})
}

// nilPanics is an error whose methods all call panic(nil).
type nilPanics struct{}

func (nilPanics) Error() string              { panic(nil) }
func (nilPanics) Unwrap() error              { panic(nil) }
func (nilPanics) Is(error) bool              { panic(nil) }
func (nilPanics) As(any) bool                { panic(nil) }
func (nilPanics) GRPCStatus() *status.Status { panic(nil) }
