package flow_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

var errSecret = errors.New("secret")

// crashes are the ways in which a caller's function may not return.
var crashes = map[string]func(){
	"panic":             func() { panic("secret") },
	"panic with error":  func() { panic(errSecret) },
	"panic with status": func() { panic(status.Error(codes.NotFound, "secret")) },
	"panic with nil":    func() { panic(nil) },
	"Goexit":            runtime.Goexit,
}

// crashSite is a Flow one of whose functions crashes once.
type crashSite struct {
	values []string
	set    func(o *flow.Options, crash func())
	hand   func(crash func()) // called by the handler
	key    func(crash func()) // called by the key function
	failed uint64             // how many messages the crash costs
	kind   flow.FailureKind   // of Run's error, if not FailureInternal
}

// on is an Observer that crashes at kind.
func on(kind flow.EventKind) func(*flow.Options, func()) {
	return func(o *flow.Options, crash func()) {
		o.Observer = func(_ context.Context, e flow.Event) {
			if e.Kind == kind {
				crash()
			}
		}
	}
}

// sites is every function of the caller's that runs on a goroutine of the Flow's. The handler fails with messages whose
// key is f after a millisecond, and takes a second for the others.
var sites = map[string]crashSite{
	"handler":      {values: []string{"a1"}, hand: func(crash func()) { crash() }, failed: 1},
	"key function": {values: []string{"a1"}, key: func(crash func()) { crash() }, failed: 1},
	"OnFailure": {values: []string{"f1"}, failed: 1, set: func(o *flow.Options, crash func()) {
		o.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { crash(); return flow.SkipMessage }
	}},
	"OnFailure on receipt": {values: []string{"a1", "b1"}, set: func(o *flow.Options, crash func()) {
		o.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { crash(); return flow.SkipMessage }
		o.Backpressure.Policy = flow.BackpressureHardReject
	}},
	"Retryable": {values: []string{"f1"}, failed: 1, set: func(o *flow.Options, crash func()) {
		o.Retry = flow.RetryOptions{MaxAttempts: 2, Retryable: func(error) bool { crash(); return true }}
	}},
	"Observer at EventStreamStart": {values: []string{"a1"}, set: on(flow.EventStreamStart)},
	"Observer at EventAttempt":     {values: []string{"a1"}, set: on(flow.EventAttempt), failed: 1},
	"Observer at EventSuccess":     {values: []string{"a1"}, set: on(flow.EventSuccess), failed: 1},
	"Observer at EventRetry": {values: []string{"f1"}, failed: 1, set: func(o *flow.Options, crash func()) {
		on(flow.EventRetry)(o, crash)
		o.Retry = flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}
	}},
	"Observer at EventFailure": {values: []string{"f1"}, set: on(flow.EventFailure), failed: 1},
	"Observer at EventReject": {values: []string{"f1", "f2"}, failed: 1, set: func(o *flow.Options, crash func()) {
		on(flow.EventReject)(o, crash)
		o.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey }
	}},
	"Observer at EventPressure": {values: []string{"a1", "b1"}, failed: 1, set: func(o *flow.Options, crash func()) {
		on(flow.EventPressure)(o, crash)
		o.Backpressure.Policy = flow.BackpressureSoftAllowWithSignal
	}},
	"Observer at EventDrop": { // the stream has failed before
		values: []string{"f1", "f2"}, set: func(o *flow.Options, crash func()) {
			on(flow.EventDrop)(o, crash)
			o.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { return flow.FailStream }
		}, failed: 1, kind: flow.FailureHandlerError,
	},
}

// make assembles the site's Flow. It crashes once, when it is armed.
func (c crashSite) make(t *testing.T, how func()) (f *flow.Flow[string], armed *atomic.Bool) {
	armed = new(atomic.Bool)
	crash := func() {
		if armed.Swap(false) {
			how()
		}
	}
	o := flow.Options{
		Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow},
		Backpressure: flow.BackpressureOptions{Capacity: 1},
		OnFailure:    func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
	}
	if c.set != nil {
		c.set(&o, crash)
	}
	f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
		if c.hand != nil {
			c.hand(crash)
		}
		if m.Key == "f" {
			time.Sleep(time.Millisecond) // what is behind it has been received
			return testkit.ErrHandler
		}
		time.Sleep(time.Second)
		return nil
	}, func(v string) string {
		if c.key != nil {
			c.key(crash)
		}
		return testkit.KeyOf(v)
	}, o)
	if err != nil {
		t.Fatal(err)
	}
	return f, armed
}

func TestCrashOfAnyOfTheCallersFunctionsIsFailureInternalAndWedgesNothing(t *testing.T) {
	for where, site := range sites {
		for how, crash := range crashes {
			t.Run(where+"/"+how, func(t *testing.T) { site.crash(t, how, crash) })
		}
	}
}

// crash has the site crash, and checks what comes of it.
func (c crashSite) crash(t *testing.T, how string, crash func()) {
	synctest.Test(t, func(t *testing.T) {
		f, armed := c.make(t, crash)
		armed.Store(true)
		sum, err := f.Run(t.Context(), testkit.Given(c.values...))
		testkit.CheckConserved(t, sum)
		kind := flow.FailureInternal
		if c.kind != 0 {
			kind = c.kind
		}
		testkit.FailureOf(t, err, kind)
		if armed.Load() {
			t.Fatal("the test is wrong: nothing has crashed")
		}
		if sum.Failed != c.failed {
			t.Errorf("summary is %+v, want %d failed", sum, c.failed)
		}
		if kind == flow.FailureInternal {
			st := status.Convert(err)
			if st.Code() != codes.Internal || st.Message() != "internal error" || strings.Contains(err.Error(), "secret") {
				t.Errorf("the client would see %v; Error() is %q", st, err)
			}
			if how == "panic with error" && !errors.Is(err, errSecret) {
				t.Error("errors.Is does not see what was panicked with")
			}
		}
		// Slot, key and stream came back.
		sum, err = f.Run(t.Context(), testkit.Given("a1", "a2"))
		if err != nil || sum.Succeeded+sum.Rejected != 2 {
			t.Errorf("then: Run() = %+v, %v", sum, err)
		}
		st := f.Stats()
		if st.Streams != 0 || st.InFlight != 0 || st.Waiting != 0 || st.ActiveKeys != 0 {
			t.Errorf("left behind: %+v", st)
		}
	})
}

func TestCrashOfRecvIsABrokenSource(t *testing.T) {
	for how, crash := range crashes {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := testkit.New(t, testkit.NewManualHandler().Handle, flow.Options{Backpressure: flow.BackpressureOptions{Capacity: 1}})
				recv, n := testkit.Given("a1", "a2"), 0
				sum, err := f.Run(t.Context(), func() (string, error) {
					if n++; n > 2 {
						time.Sleep(time.Second) // a1 runs
						crash()
					}
					return recv()
				})
				if fault := testkit.FailureOf(t, err, flow.FailureInternal); fault.Seq != 0 || status.Code(err) != codes.Internal {
					t.Errorf("failure is %+v", fault)
				}
				if sum.Failed != 1 || sum.Dropped != 1 || n != 3 {
					t.Errorf("summary is %+v after %d calls of recv", sum, n)
				}
				testkit.CheckConserved(t, sum)
			})
		})
	}
}

func TestObserverThatCrashesAtAStreamsEndOrAShutdownIsForgiven(t *testing.T) {
	for how, crash := range crashes {
		synctest.Test(t, func(t *testing.T) {
			f := testkit.New(t, testkit.Succeed, flow.Options{Observer: func(_ context.Context, e flow.Event) {
				if e.Kind == flow.EventStreamEnd || e.Kind == flow.EventShutdown {
					crash()
				}
			}})
			if sum, err := f.Run(t.Context(), testkit.Given("a1")); err != nil || sum.Succeeded != 1 {
				t.Errorf("%s: Run() = %+v, %v", how, sum, err)
			}
			if err := f.Shutdown(t.Context()); err != nil {
				t.Errorf("%s: Shutdown() = %v", how, err)
			}
		})
	}
}

func TestHandlerDoesNotRunAfterACrashAtItsEventAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Observer: func(_ context.Context, e flow.Event) {
			if e.Kind == flow.EventAttempt {
				panic("secret")
			}
		}})
		_, err := f.Run(t.Context(), testkit.Given("a1"))
		if fault := testkit.FailureOf(t, err, flow.FailureInternal); fault.Attempts != 0 || fault.Seq != 1 || s.History() != "" {
			t.Errorf("failure is %+v; started %q", fault, s.History())
		}
	})
}

func TestPanickingKeyFunctionIsAFailedMessageWithNoAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &judge{action: flow.SkipMessage}
		f, err := flow.New(testkit.Succeed, func(v string) string {
			if v == "bad" {
				panic("secret")
			}
			return v
		}, flow.Options{OnFailure: j.decide})
		if err != nil {
			t.Fatal(err)
		}
		sum, err := f.Run(t.Context(), testkit.Given("bad", "a1"))
		if fault := testkit.FailureOf(t, err, flow.FailureInternal); fault.Seq != 1 || fault.Attempts != 0 || fault.Key != "" {
			t.Errorf("failure is %+v", fault)
		}
		wantHeard(t, j, "bad:Internal")
		if sum.Received != 1 || sum.Failed != 1 || sum.Committed != 1 {
			t.Errorf("summary is %+v, want the poison settled", sum)
		}
	})
}

func TestOnFailuresOwnPanicIsNotReportedToItAgain(t *testing.T) {
	for how, crash := range crashes {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int32
			f := testkit.New(t, func(context.Context, flow.Message[string]) error { return testkit.ErrHandler }, flow.Options{
				OnFailure: func(context.Context, *flow.Failure) flow.FailureAction {
					calls.Add(1)
					crash()
					return flow.SkipMessage
				},
			})
			sum, err := f.Run(t.Context(), testkit.Given("a1"))
			testkit.FailureOf(t, err, flow.FailureInternal)
			if calls.Load() != 1 || sum.Failed != 1 || sum.Committed != 0 {
				t.Errorf("%s: %d calls; %+v, want one call and nothing settled", how, calls.Load(), sum)
			}
		})
	}
}

func TestEverythingMayExitItsGoroutineAndRunReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, policy := range []flow.BackpressurePolicy{flow.BackpressureQueue, flow.BackpressureHardReject} {
			f := testkit.New(t, func(context.Context, flow.Message[string]) error { runtime.Goexit(); return nil }, flow.Options{
				Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1, Policy: policy},
				OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { runtime.Goexit(); return 0 },
				Observer: func(_ context.Context, e flow.Event) {
					if e.Kind != flow.EventStreamStart && e.Kind != flow.EventAttempt {
						runtime.Goexit()
					}
				},
			})
			sum, err := f.Run(t.Context(), testkit.Given("a1", "b1", "a2"))
			testkit.FailureOf(t, err, flow.FailureInternal)
			testkit.CheckConserved(t, sum)
			_ = f.Close()
		}
	})
}

// brittleTransport is a caller's own transport stream, one of whose methods panics.
type brittleTransport struct{ panics string }

func (b brittleTransport) may(what string) {
	if b.panics == what {
		panic("secret")
	}
}

func (b brittleTransport) Method() string { b.may("Method"); return "/service/Method" }

func (b brittleTransport) SetHeader(metadata.MD) error { return nil }

func (b brittleTransport) SendHeader(metadata.MD) error {
	b.may("SendHeader")
	return nil
}

func (b brittleTransport) SetTrailer(metadata.MD) error { b.may("SetTrailer"); return nil }

func TestCrashOfATransportStreamEndsItsStreamAndWedgesNothing(t *testing.T) {
	for _, what := range []string{"Method", "SendHeader", "SetTrailer"} {
		for observed, observer := range map[string]flow.Observer{"": nil, ", observed": logging} {
			t.Run(what+observed, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := testkit.NewManualHandler()
					f := testkit.New(t, s.Handle, flow.Options{Observer: observer})
					ctx := grpc.NewContextWithServerTransportStream(t.Context(), brittleTransport{what})
					run := testkit.StartFunc(t, func(_ context.Context, recv func() (string, error)) (flow.Summary, error) {
						return f.Run(ctx, recv)
					}, "a1", "a2")
					if snap := f.Snapshot(1); len(snap.Streams) > 1 {
						t.Errorf("snapshot %+v", snap)
					}
					s.FinishAll(t)
					run.End()
					sum, err := run.Result(t)
					switch what {
					case "Method":
						if err != nil || sum.Succeeded != 2 {
							t.Errorf("Run() = %+v, %v", sum, err)
						}
					case "SendHeader":
						if f := testkit.FailureOf(t, err, flow.FailureInternal); f.Seq != 0 || sum.Dropped != sum.Received || s.History() != "" {
							t.Errorf("Run() = %+v, %+v, want the stream's failure before anything ran", sum, *f)
						}
					case "SetTrailer":
						if f := testkit.FailureOf(t, err, flow.FailureInternal); f.Seq != 0 || sum.Succeeded != 2 {
							t.Errorf("Run() = %+v, %+v, want the stream's failure after all had run", sum, *f)
						}
					}
					testkit.CheckConserved(t, sum)
					if st := f.Stats(); st.Streams != 0 {
						t.Errorf("left behind: %+v", st)
					}
					if err := f.Shutdown(t.Context()); err != nil {
						t.Errorf("Shutdown() = %v", err)
					}
				})
			})
		}
	}
}
