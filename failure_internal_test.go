package flow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

func TestKindsPromiseWhatTheContractSays(t *testing.T) {
	for _, c := range []struct {
		kind                        FailureKind
		name                        string
		retryable, terminal, breaks bool
		code                        codes.Code
		reason                      string
	}{
		{FailureNone, "FailureNone", false, false, false, codes.OK, ""},
		{FailureHandlerError, "FailureHandlerError", true, false, false, codes.Unknown, "HANDLER_ERROR"},
		{FailureContextCancelled, "FailureContextCancelled", false, true, true, codes.Canceled, "CONTEXT_CANCELLED"},
		{FailureBackpressure, "FailureBackpressure", true, false, false, codes.ResourceExhausted, "BACKPRESSURE"},
		{FailureOrdering, "FailureOrdering", false, false, true, codes.Aborted, "ORDERING"},
		{FailureShutdown, "FailureShutdown", false, true, true, codes.Unavailable, "SHUTDOWN"},
		{FailureInternal, "FailureInternal", false, true, true, codes.Internal, "INTERNAL"},
		{FailureKind(7), "FailureKind(7)", false, false, false, codes.Internal, "INTERNAL"},
		{FailureKind(-1), "FailureKind(-1)", false, false, false, codes.Internal, "INTERNAL"},
	} {
		if c.kind.String() != c.name {
			t.Errorf("String of %d: %q", int(c.kind), c.kind)
		}
		if IsRetryable(c.kind) != c.retryable || IsTerminal(c.kind) != c.terminal || BreakOrdering(c.kind) != c.breaks {
			t.Errorf("%v: retryable %v, terminal %v, breaks %v", c.kind, IsRetryable(c.kind), IsTerminal(c.kind), BreakOrdering(c.kind))
		}
		f := &Failure{Kind: c.kind, Seq: 7, Err: errors.New("cause")}
		if got := f.GRPCStatus().Code(); got != c.code {
			t.Errorf("%v: code %v, want %v", c.kind, got, c.code)
		}
		info, asked := flowDetails(t, f.GRPCStatus())
		if c.kind == FailureNone {
			continue
		}
		if info.GetReason() != c.reason || info.GetDomain() != "example.com/flow" || info.GetMetadata()["seq"] != "7" {
			t.Errorf("%v: ErrorInfo %v", c.kind, info)
		}
		passes := c.kind == FailureBackpressure || c.kind == FailureShutdown
		if want := time.Second; passes && asked != want || !passes && asked != 0 {
			t.Errorf("%v: RetryInfo %v", c.kind, asked)
		}
	}
}

// flowDetails returns the last ErrorInfo and the delay of the RetryInfo, each at most once.
func flowDetails(t *testing.T, st *status.Status) (info *errdetails.ErrorInfo, delay time.Duration) {
	t.Helper()
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if info != nil {
				t.Error("two ErrorInfos")
			}
			info = d
		case *errdetails.RetryInfo:
			delay = d.GetRetryDelay().AsDuration()
		}
	}
	return info, delay
}

func wrapped(err error) error { return fmt.Errorf("wrapped: %w", err) }

func withInfo(code codes.Code, domain, reason string) error {
	st, err := status.New(code, "text").WithDetails(&errdetails.ErrorInfo{Domain: domain, Reason: reason})
	if err != nil {
		panic(err)
	}
	return st.Err()
}

func TestClassifyFailureKnowsAnyErrorWrappedOrNot(t *testing.T) {
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(&Failure{Kind: FailureShutdown})
	for _, c := range []struct {
		name string
		err  error
		want FailureKind
	}{
		{"plain", errors.New("x"), FailureHandlerError},
		{"EOF", io.EOF, FailureHandlerError},
		{"canceled", context.Canceled, FailureContextCancelled},
		{"deadline", context.DeadlineExceeded, FailureContextCancelled},
		{"idle", errIdle, FailureContextCancelled},
		{"cause of an ended context", contextFailure(ended).Err, FailureContextCancelled},
		{"status canceled", status.Error(codes.Canceled, "x"), FailureContextCancelled},
		{"status deadline", status.Error(codes.DeadlineExceeded, "x"), FailureContextCancelled},
		{"status other", status.Error(codes.Unavailable, "x"), FailureHandlerError},
		{"status over context", statusOver{codes.NotFound, context.Canceled}, FailureHandlerError},
		{"flow's info", withInfo(codes.Canceled, "example.com/flow", "HANDLER_ERROR"), FailureHandlerError},
		{"flow's info, other code", withInfo(codes.NotFound, "example.com/flow", "ORDERING"), FailureOrdering},
		{"other domain", withInfo(codes.NotFound, "example.com", "ORDERING"), FailureHandlerError},
		{"reason unknown", withInfo(codes.Canceled, "example.com/flow", "NEWER"), FailureContextCancelled},
		{"reason empty", withInfo(codes.NotFound, "example.com/flow", ""), FailureHandlerError},
		{"failure", &Failure{Kind: FailureBackpressure, Err: context.Canceled}, FailureBackpressure},
		{"failure in a failure", &Failure{Kind: FailureHandlerError, Err: &Failure{Kind: FailureInternal}}, FailureHandlerError},
		{"shutdown", &ShutdownError{Err: context.Canceled}, FailureShutdown},
		{"panic", newPanicError("x"), FailureInternal},
		{"panic with a failure", newPanicError(&Failure{Kind: FailureOrdering}), FailureInternal},
		{"panic with a status", newPanicError(status.Error(codes.Canceled, "")), FailureInternal},
		{"goexit", errGoexit, FailureInternal},
	} {
		if got := ClassifyFailure(c.err); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if got := ClassifyFailure(wrapped(c.err)); got != c.want {
			t.Errorf("%s, wrapped: %v, want %v", c.name, got, c.want)
		}
		if got := ClassifyFailure(errors.Join(errors.New("y"), c.err)); got != c.want {
			t.Errorf("%s, joined: %v, want %v", c.name, got, c.want)
		}
	}
	if got := ClassifyFailure(nil); got != FailureNone {
		t.Errorf("nil: %v", got)
	}
}

// statusOver is an error with a status that wraps something else.
type statusOver struct {
	code codes.Code
	err  error
}

func (e statusOver) Error() string              { return "status over " + e.err.Error() }
func (e statusOver) Unwrap() error              { return e.err }
func (e statusOver) GRPCStatus() *status.Status { return status.New(e.code, "over") }

// sent is what a client gets of an error that a service method returned.
func sent(t *testing.T, err error) error {
	t.Helper()
	st, _ := status.FromError(err)
	b, merr := proto.Marshal(st.Proto())
	if merr != nil {
		t.Fatalf("gRPC would drop the details: %v", merr)
	}
	var p spb.Status
	if merr := proto.Unmarshal(b, &p); merr != nil {
		t.Fatal(merr)
	}
	return status.ErrorProto(&p)
}

func TestClientClassifiesAsItsServer(t *testing.T) {
	for kind := FailureHandlerError; kind <= FailureInternal; kind++ {
		for _, cause := range []error{nil, errors.New("x"), context.DeadlineExceeded, status.Error(codes.Canceled, "x")} {
			f := &Failure{Kind: kind, Seq: 3, Err: cause}
			if got := ClassifyFailure(sent(t, f)); got != kind {
				t.Errorf("%v of %v arrives as %v", kind, cause, got)
			}
			if got := ClassifyFailure(sent(t, wrapped(f))); got != kind {
				t.Errorf("%v of %v, wrapped, arrives as %v", kind, cause, got)
			}
		}
	}
}

func TestFailureTextNeverContainsKeyOrValue(t *testing.T) {
	const key, value = "customer-4711", "secret reading"
	quoting := fmt.Errorf("%s: %s", key, value)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(quoting)
	causes := []error{
		nil, quoting, status.Error(codes.NotFound, quoting.Error()), newPanicError(quoting), newPanicError(value),
		contextFailure(ctx).Err, fmt.Errorf("%w: %w", reason("why"), quoting), errors.Join(context.Canceled, quoting),
	}
	for kind := FailureNone; kind <= FailureInternal+1; kind++ {
		for _, cause := range causes {
			if _, panicked := cause.(*panicError); kind == FailureHandlerError && !panicked && cause != nil {
				continue // a handler's own text is its own business
			}
			f := &Failure{Kind: kind, Seq: 7, Key: key, Value: value, Err: cause}
			p := f.GRPCStatus().Proto()
			for _, text := range []string{f.Error(), p.GetMessage(), fmt.Sprint(p), fmt.Sprintf("%+v", f)} {
				if strings.Contains(text, "4711") || strings.Contains(text, "secret") {
					t.Errorf("%v of %v: %q", kind, cause, text)
				}
			}
		}
	}
	f := &Failure{Kind: FailureHandlerError, Key: key, Value: value, Err: errors.New("disk full")}
	if got := f.Error() + f.GRPCStatus().String(); strings.Contains(got, "4711") || strings.Contains(got, "secret") {
		t.Error(got)
	}
}

func TestFailureTextSaysWhatHappened(t *testing.T) {
	for _, c := range []struct {
		f           Failure
		text, state string
	}{
		{Failure{Kind: FailureHandlerError, Seq: 7, Err: errors.New("disk full")}, "flow: message 7: disk full", "disk full"},
		{Failure{Kind: FailureHandlerError, Seq: 7}, "flow: message 7: the handler failed", "the handler failed"},
		{Failure{Kind: FailureHandlerError, Seq: 7, Err: status.Error(codes.NotFound, "gone")},
			"flow: message 7: rpc error: code = NotFound desc = gone", "gone"},
		{Failure{Kind: FailureShutdown}, "flow: the flow is shutting down", "the flow is shutting down"},
		{Failure{Kind: FailureShutdown, Err: reason("the flow is shutting down")},
			"flow: the flow is shutting down", "the flow is shutting down"},
		{Failure{Kind: FailureBackpressure, Seq: 1, Err: wrapped(reason("the queue is full"))},
			"flow: message 1: rejected: capacity exhausted: the queue is full", "rejected: capacity exhausted: the queue is full"},
		{Failure{Kind: FailureContextCancelled, Err: context.Canceled}, "flow: context canceled", "context canceled"},
		{Failure{Kind: FailureContextCancelled, Err: errIdle},
			"flow: context deadline exceeded: no message within the idle timeout",
			"context deadline exceeded: no message within the idle timeout"},
		{Failure{Kind: FailureInternal, Seq: 2, Err: newPanicError("boom")}, "flow: message 2: internal error", "internal error"},
		{Failure{Kind: FailureInternal, Seq: 2, Err: reason("why")}, "flow: message 2: internal error", "internal error"},
	} {
		if got := c.f.Error(); got != c.text {
			t.Errorf("Error: %q, want %q", got, c.text)
		}
		if got := c.f.GRPCStatus().Message(); got != c.state {
			t.Errorf("status: %q, want %q", got, c.state)
		}
	}
}

func TestHandlersOwnStatusReachesTheClient(t *testing.T) {
	help := &errdetails.Help{Links: []*errdetails.Help_Link{{Url: "https://example.com"}}}
	st, _ := status.New(codes.FailedPrecondition, "text").WithDetails(help)
	for _, c := range []struct {
		err     error
		message string
	}{
		{st.Err(), "text"},
		{&permanentError{st.Err()}, "text"}, // the mark is no wrapping
		{wrapped(st.Err()), wrapped(st.Err()).Error()},
	} {
		got := (&Failure{Kind: FailureHandlerError, Seq: 9, Err: c.err}).GRPCStatus()
		if got.Code() != codes.FailedPrecondition || got.Message() != c.message {
			t.Errorf("%v: %v", c.err, got)
		}
		if d := got.Details(); len(d) != 2 || !proto.Equal(d[0].(proto.Message), help) {
			t.Errorf("%v: details %v", c.err, d)
		}
	}
}

func TestHandlersErrorInfoIsNotDoubled(t *testing.T) {
	err := withInfo(codes.NotFound, "users.example", "NO_SUCH_DEVICE")
	info, _ := flowDetails(t, (&Failure{Kind: FailureHandlerError, Err: err}).GRPCStatus())
	if info.GetReason() != "NO_SUCH_DEVICE" {
		t.Errorf("got %v", info)
	}
}

func TestErrorWithStatusOKIsStillAnError(t *testing.T) {
	ok := statusOver{codes.OK, errors.New("x")}
	if got := (&Failure{Kind: FailureHandlerError, Err: ok}).GRPCStatus().Code(); got != codes.Unknown {
		t.Errorf("handler: %v", got)
	}
	if got := recvFailure(ok).GRPCStatus().Code(); got != codes.Internal {
		t.Errorf("source: %v", got)
	}
}

func TestPanicIsInternalWhateverItsValue(t *testing.T) {
	for _, value := range []any{
		status.Error(codes.NotFound, "x"), &Failure{Kind: FailureOrdering}, context.Canceled, "text", 42, struct{}{},
	} {
		pe := newPanicError(value)
		for _, f := range []*Failure{
			{Kind: FailureInternal, Err: pe}, {Kind: FailureInternal, Err: wrapped(pe)},
			{Kind: FailureHandlerError, Err: wrapped(pe)}, recvFailure(pe),
		} {
			if st := f.GRPCStatus(); st.Code() != codes.Internal || st.Message() != "internal error" {
				t.Errorf("panic(%v): %v", value, st)
			}
			if !strings.HasSuffix(f.Error(), ": internal error") {
				t.Errorf("panic(%v): %v", value, f)
			}
		}
		if err, ok := value.(error); ok && !errors.Is(pe, err) {
			t.Errorf("panic(%v) hides its value", value)
		}
		if len(pe.stack) == 0 {
			t.Error("no stack")
		}
	}
	if f := (&Failure{Kind: FailureInternal, Err: errGoexit}); f.GRPCStatus().Code() != codes.Internal {
		t.Error("Goexit:", f.GRPCStatus())
	}
}

func TestPanicTextShowsNoValueThatWasNotMadeToBeRead(t *testing.T) {
	type reading struct{ Secret string }
	if got := newPanicError(reading{"secret"}).Error(); strings.Contains(got, "secret") || !strings.Contains(got, "reading") {
		t.Error(got)
	}
	if got := newPanicError(&errdetails.ErrorInfo{Reason: "secret"}).Error(); strings.Contains(got, "secret") {
		t.Error(got)
	}
}

func TestTextsAreCutAtARune(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       int // bytes of the status text
	}{
		{"fits", strings.Repeat("x", 512), 512},
		{"ASCII", strings.Repeat("x", 9999), 512},
		{"three bytes a rune", strings.Repeat("€", 400), 510},
		{"four bytes a rune", "x" + strings.Repeat("😀", 400), 509},
		{"invalid", "\xff" + strings.Repeat("x", 9999), 512},
		{"nothing but tails", strings.Repeat("\x80", 9999), 3},
	} {
		f := &Failure{Kind: FailureHandlerError, Seq: 1, Err: errors.New(c.text)}
		got := f.GRPCStatus().Message()
		if len(got) != c.want || !utf8.ValidString(got) {
			t.Errorf("%s: %d bytes, valid %v", c.name, len(got), utf8.ValidString(got))
		}
		if e := f.Error(); len(e) > 512 || !utf8.ValidString(e) {
			t.Errorf("%s: Error has %d bytes", c.name, len(e))
		}
		if kind := ClassifyFailure(sent(t, f)); kind != FailureHandlerError {
			t.Errorf("%s: arrives as %v", c.name, kind)
		}
	}
}

func TestDetailsAboveTwoKiBAreLeftOut(t *testing.T) {
	debug := func(n int) *errdetails.DebugInfo { return &errdetails.DebugInfo{Detail: strings.Repeat("x", n)} }
	info := func(n int) *errdetails.ErrorInfo {
		return &errdetails.ErrorInfo{Reason: "MINE", Metadata: map[string]string{"x": strings.Repeat("x", n)}}
	}
	for _, c := range []struct {
		name    string
		details []protoadapt.MessageV1
		want    int
		reason  string
	}{
		{"none", nil, 1, "HANDLER_ERROR"},
		{"fits", []protoadapt.MessageV1{debug(1800)}, 2, "HANDLER_ERROR"},
		{"too large", []protoadapt.MessageV1{debug(2048)}, 1, "HANDLER_ERROR"},
		{"the small ones stay", []protoadapt.MessageV1{debug(1), debug(5000), debug(1)}, 3, "HANDLER_ERROR"},
		{"too many", []protoadapt.MessageV1{debug(900), debug(900), debug(900)}, 3, "HANDLER_ERROR"},
		{"own info before others", []protoadapt.MessageV1{debug(900), debug(900), info(800)}, 2, "MINE"},
		{"own info just fits", []protoadapt.MessageV1{info(1900)}, 1, "MINE"},
		{"own info too large", []protoadapt.MessageV1{info(3000)}, 1, "HANDLER_ERROR"},
	} {
		st, err := status.New(codes.DataLoss, "text").WithDetails(c.details...)
		if err != nil {
			t.Fatal(err)
		}
		got := (&Failure{Kind: FailureHandlerError, Seq: 1<<64 - 1, Err: st.Err()}).GRPCStatus()
		if n := proto.Size(&spb.Status{Details: got.Proto().GetDetails()}); n > 2048 {
			t.Errorf("%s: %d bytes", c.name, n)
		}
		if got.Code() != codes.DataLoss || len(got.Details()) != c.want {
			t.Errorf("%s: %v with %d details", c.name, got.Code(), len(got.Details()))
		}
		if i, _ := flowDetails(t, got); i.GetReason() != c.reason {
			t.Errorf("%s: %v", c.name, i)
		}
	}
}

func TestContextFailureSaysWhy(t *testing.T) {
	why := errors.New("why")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	caused, cancelCause := context.WithCancelCause(t.Context())
	cancelCause(why)
	otherDeadline, cancelDeadline := context.WithCancelCause(t.Context())
	cancelDeadline(fmt.Errorf("%w: %w", why, context.DeadlineExceeded))
	late, cancelLate := context.WithDeadlineCause(t.Context(), time.Unix(0, 0), fmt.Errorf("%w: %w", why, context.Canceled))
	defer cancelLate()
	for _, c := range []struct {
		name string
		ctx  context.Context
		is   []error
		code codes.Code
	}{
		{"canceled", canceled, []error{context.Canceled}, codes.Canceled},
		{"with a cause", caused, []error{context.Canceled, why}, codes.Canceled},
		{"by another deadline", otherDeadline, []error{context.Canceled, context.DeadlineExceeded, why}, codes.Canceled},
		{"deadline", late, []error{context.DeadlineExceeded, why}, codes.DeadlineExceeded},
	} {
		f := contextFailure(c.ctx)
		if f.Kind != FailureContextCancelled || f.GRPCStatus().Code() != c.code {
			t.Errorf("%s: %v, %v", c.name, f.Kind, f.GRPCStatus())
		}
		for _, err := range c.is {
			if !errors.Is(f, err) {
				t.Errorf("%s: is not %v", c.name, err)
			}
		}
	}
	if f := contextFailure(canceled); f.Err != context.Canceled {
		t.Errorf("without a cause of its own: %#v", f.Err)
	}
	if f := (&Failure{Kind: FailureContextCancelled, Err: errIdle}); f.GRPCStatus().Code() != codes.DeadlineExceeded {
		t.Errorf("idle: %v", f.GRPCStatus())
	}
	f := &Failure{Kind: FailureContextCancelled, Err: status.Error(codes.DeadlineExceeded, "")}
	if f.GRPCStatus().Code() != codes.DeadlineExceeded {
		t.Errorf("status: %v", f.GRPCStatus())
	}
}

func TestFirstErrorOfRecvKeepsItsCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		kind FailureKind
		code codes.Code
	}{
		{status.Error(codes.ResourceExhausted, "too large"), FailureInternal, codes.ResourceExhausted},
		{wrapped(status.Error(codes.DataLoss, "x")), FailureInternal, codes.DataLoss},
		{status.Error(codes.Canceled, "x"), FailureContextCancelled, codes.Canceled},
		{status.Error(codes.DeadlineExceeded, "x"), FailureContextCancelled, codes.DeadlineExceeded},
		{wrapped(context.Canceled), FailureContextCancelled, codes.Canceled},
		{context.DeadlineExceeded, FailureContextCancelled, codes.DeadlineExceeded},
		{io.ErrUnexpectedEOF, FailureInternal, codes.Internal},
		{newPanicError(context.Canceled), FailureInternal, codes.Internal},
		{&Failure{Kind: FailureShutdown}, FailureInternal, codes.Unavailable}, // another flow in front
		{&Failure{Kind: FailureContextCancelled, Err: errIdle}, FailureContextCancelled, codes.DeadlineExceeded},
	} {
		f := recvFailure(c.err)
		if f.Kind != c.kind || f.GRPCStatus().Code() != c.code || !errors.Is(f, c.err) {
			t.Errorf("%v: %v %v", c.err, f.Kind, f.GRPCStatus().Code())
		}
	}
}

func TestNilFailureIsHarmless(t *testing.T) {
	var f *Failure
	if f.Unwrap() != nil || f.GRPCStatus().Code() != codes.OK || f.Error() == "" || ClassifyFailure(f) != FailureNone {
		t.Error("a nil *Failure is not FailureNone")
	}
}
