package flow

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// FailureKind says why a message or a stream failed: who has to do something about it.
type FailureKind int

const (
	// FailureNone is the kind of nil.
	FailureNone FailureKind = iota
	// FailureHandlerError means that the handler returned an error and its attempts are used up.
	FailureHandlerError
	// FailureContextCancelled means that the client is gone or a deadline has passed.
	FailureContextCancelled
	// FailureBackpressure means that capacity is exhausted and the policy refuses.
	FailureBackpressure
	// FailureOrdering means that ordering cannot be maintained: too many messages wait, or an earlier message of the key
	// was skipped with SkipKey.
	FailureOrdering
	// FailureShutdown means that the Flow is shutting down.
	FailureShutdown
	// FailureInternal is a panic in the handler or another of the caller's functions, runtime.Goexit, or a broken source.
	FailureInternal
)

// String returns the constant's name.
func (k FailureKind) String() string {
	return enumName(int(k), "FailureKind", "FailureNone", "FailureHandlerError", "FailureContextCancelled",
		"FailureBackpressure", "FailureOrdering", "FailureShutdown", "FailureInternal")
}

// kindRow is all that depends on nothing but the kind.
type kindRow struct {
	retryable, terminal, breaks bool

	code   codes.Code // of HandlerError, ContextCancelled and Internal it is the one to use where Err has none
	reason string     // of the ErrorInfo
	text   string
}

const textNoCapacity = "rejected: capacity exhausted"

var kindRows = [...]kindRow{
	FailureNone:             {code: codes.OK, text: "no failure"},
	FailureHandlerError:     {true, false, false, codes.Unknown, "HANDLER_ERROR", "the handler failed"},
	FailureContextCancelled: {false, true, true, codes.Canceled, "CONTEXT_CANCELLED", "context canceled"},
	FailureBackpressure:     {true, false, false, codes.ResourceExhausted, "BACKPRESSURE", textNoCapacity},
	FailureOrdering:         {false, false, true, codes.Aborted, "ORDERING", "ordering cannot be maintained"},
	FailureShutdown:         {false, true, true, codes.Unavailable, "SHUTDOWN", "the flow is shutting down"},
	FailureInternal:         {false, true, true, codes.Internal, "INTERNAL", "internal error"},
}

// row of a kind that doesn't exist promises nothing and shows as internal.
func (k FailureKind) row() kindRow {
	if k >= 0 && int(k) < len(kindRows) {
		return kindRows[k]
	}
	r := kindRows[FailureInternal]
	r.retryable, r.terminal, r.breaks = false, false, false
	return r
}

// IsRetryable reports whether the same message can succeed when it is sent again without anything before it: what became
// of it depends on nothing but itself and the load. It is for code that has a kind and nothing else, such as an OnFailure
// that chooses which dead letters to keep. It is not for deciding whether to send a stream again: FailureShutdown and
// FailureOrdering are not retryable in this sense, though a client should resume after both, and FailureHandlerError is,
// though the handler's code may say that the error is permanent. Clients ask [RetryAfter].
func IsRetryable(kind FailureKind) bool { return kind.row().retryable }

// IsTerminal reports whether a failure of this kind ends its stream, whatever Options.OnFailure says. It is for OnFailure
// and Observers, which learn by it whether more of the stream will follow. It does not say whether a new stream can
// succeed: after a shutdown one will, elsewhere or later. See [RetryAfter].
func IsTerminal(kind FailureKind) bool { return kind.row().terminal }

// BreakOrdering reports whether, after a failure of this kind, messages may be missing in front of those that have
// succeeded. It is for consumers that rely on having seen everything before: they start again from what is committed. It
// does not mean that messages ran in the wrong order, which never happens, and it does not end the stream: see
// [IsTerminal].
func BreakOrdering(kind FailureKind) bool { return kind.row().breaks }

// ClassifyFailure gives the kind of any error, wrapped or not: of a *Failure its Kind, of a *ShutdownError
// FailureShutdown, of a gRPC status error with flow's ErrorInfo (as a client of a flow server gets it) the kind that
// the server named. Else Canceled and DeadlineExceeded, as context errors or as status codes, are
// FailureContextCancelled, and every other error is FailureHandlerError. Of several the outermost counts.
func ClassifyFailure(err error) FailureKind {
	if err == nil {
		return FailureNone
	}
	if k, ok := findError[kinded](err); ok {
		return k.failureKind()
	}
	st, _ := statusOf(err)
	if st != nil {
		if k := statedKind(st); k != FailureNone {
			return k
		}
	}
	if contextCode(err, st) != codes.OK {
		return FailureContextCancelled
	}
	return FailureHandlerError
}

// RetryAfter is for a client whose stream of a flow server has failed with err, wrapped or not: it reports whether sending
// again what is not settled (see [Rest]) may succeed, and how long the server asks to wait before that. A delay of 0 means
// that the server did not say: the client backs off as it sees fit, and gives up when it has tried often enough.
//
// Not ok are nil; an error marked by [Permanent]; a code that will not change (InvalidArgument, NotFound, AlreadyExists,
// PermissionDenied, Unauthenticated, FailedPrecondition, OutOfRange, Unimplemented, DataLoss); [FailureInternal], since the
// message that the server panicked on would be the first to be sent again; ResourceExhausted that neither is flow's nor
// comes with a RetryInfo, such as that of a message too large for the server; and a context error that is no status, since
// then it was the client's own context that ended. All else may succeed: a shutdown, pressure, order, a broken connection
// (Unavailable, and what proxies make of it), a deadline, and a handler's error that isn't known to be permanent.
//
// On the server, Options.OnFailure asks the same about its Failure: pass that, and not its Err. The Failure is what the
// client would get. Of its Err alone nobody can say whose it is: the deadline of a database that is away would be taken for
// the end of the client's own context, and an upstream's ResourceExhausted for a message that is too large, so that what an
// outage has stopped would be settled as a dead letter.
//
// The kind alone does not say that: see [IsRetryable].
func RetryAfter(err error) (delay time.Duration, ok bool) {
	c := newCause(err)
	switch kind := ClassifyFailure(err); {
	case kind == FailureNone, c.permanent, isPermanentCode(c.code):
	case kind == FailureInternal && c.code != codes.Unavailable:
	case kind == FailureContextCancelled && !c.stated:
	case c.code == codes.ResourceExhausted && c.kind == FailureNone && !c.asks:
	case kind == FailureShutdown && !c.stated: // a ShutdownError
		return retryDelay, true
	default:
		return c.delay, true
	}
	return 0, false
}

// kinded are flow's own errors that have a kind. One interface, so that errors.As finds the outermost of them: a panic
// with a *Failure as its value is a panic, and a *Failure caused by a panic has its own Kind.
type kinded interface {
	error
	failureKind() FailureKind
}

func (f *Failure) failureKind() FailureKind {
	if f == nil {
		return FailureNone
	}
	return f.Kind
}
func (*panicError) failureKind() FailureKind    { return FailureInternal }
func (goexitError) failureKind() FailureKind    { return FailureInternal }
func (*contextError) failureKind() FailureKind  { return FailureContextCancelled }
func (*ShutdownError) failureKind() FailureKind { return FailureShutdown }

// statedKind is the kind that flow's ErrorInfo in st names; FailureNone without one.
func statedKind(st *status.Status) FailureKind {
	for _, d := range st.Proto().GetDetails() {
		var info errdetails.ErrorInfo
		if !d.MessageIs(&info) || d.UnmarshalTo(&info) != nil || info.GetDomain() != errorDomain {
			continue
		}
		if info.GetReason() == reasonSessionMoved {
			return FailureContextCancelled
		}
		for k := FailureHandlerError; int(k) < len(kindRows); k++ {
			if kindRows[k].reason == info.GetReason() {
				return k
			}
		}
	}
	return FailureNone
}

// contextCode is Canceled or DeadlineExceeded if err, whose status is st if it has one, is the end of a context, as a
// status or as a context error; else OK. A status decides before what it wraps.
func contextCode(err error, st *status.Status) codes.Code {
	if c, ok := findError[*contextError](err); ok {
		err = c.err // not the cause, which may be a deadline of something else
		st, _ = statusOf(err)
	}
	switch {
	case st != nil && (st.Code() == codes.Canceled || st.Code() == codes.DeadlineExceeded):
		return st.Code()
	case st != nil:
		return codes.OK
	case isError(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case isError(err, context.Canceled):
		return codes.Canceled
	}
	return codes.OK
}

// Failure is what went wrong with a message, or with a stream (Seq is 0 then). errors.Is and errors.As see its cause.
// Returned from a service method it is a gRPC status. It is not changed after it was handed out, and is safe for
// concurrent use. What it says is settled when it is made: no method of its cause is called for Error and GRPCStatus.
type Failure struct {
	Kind     FailureKind
	Seq      uint64 // 0: of no one message
	Key      string // for your eyes: never in Error's text, nor in the status
	Attempts int    // how often the handler was called
	Value    any    // the Message's Value: of type T in a Flow[T]; nil when Seq is 0. Never in Error's text, nor in the status

	// Err is the cause; nil only in a Failure that flow did not make. It is the error as it was returned, unless its
	// Error, Unwrap or GRPCStatus method panics, as those of a typed nil do: then another error stands for it, whose text
	// says so, and in which errors.Is and errors.As find it.
	Err error

	cause *cause // nil in a Failure that flow did not make; and where Err is flow's own
}

// Error names the message by its Seq and says what happened, in 512 bytes at most. gRPC sends it to the client when the
// Failure is wrapped: so the text of a cause appears only if it is the handler's own error. Any other may quote keys,
// and a panic may quote anything.
func (f *Failure) Error() string {
	if f == nil {
		return "<nil>"
	}
	text := "flow: "
	if f.Seq > 0 {
		text += "message " + strconv.FormatUint(f.Seq, 10) + ": "
	}
	c := f.said()
	if f.shownKind(c) == FailureHandlerError && f.Err != nil {
		return cutText(text+c.text, maxText)
	}
	return cutText(text+f.constantText(c), maxText)
}

// Unwrap returns Err, or, if that has an Is or an As method of its own, an error in which errors.Is and errors.As find the
// same, and in which a panic of such a method means that nothing was found.
func (f *Failure) Unwrap() error {
	if f == nil {
		return nil
	}
	return f.said().unwraps
}

// as returns f with another kind. It asks nothing again.
func (f *Failure) as(kind FailureKind) *Failure {
	other := *f
	other.Kind = kind
	if f.cause != nil && f.cause.of == f {
		c := *f.cause
		c.of, other.cause = &other, &c
	}
	return &other
}

// said returns what f's cause has said about itself. A Failure that flow did not make, and a copy, ask it now.
func (f *Failure) said() *cause {
	if f.cause != nil && f.cause.of == f {
		return f.cause
	}
	return newCause(f.Err)
}

// endedBy reports whether f, made of an error that was returned under ctx, is ctx's end: only the stream's own context
// decides that.
func (f *Failure) endedBy(ctx context.Context) bool {
	if ctx.Err() == nil {
		return false
	}
	code := f.said().code
	return code == codes.Canceled || code == codes.DeadlineExceeded ||
		isError(f.Err, context.Canceled) || isError(f.Err, context.DeadlineExceeded) ||
		isError(f.Err, context.Cause(ctx))
}

// level is how much a failure is an operator's business.
func (f *Failure) level() slog.Level {
	if f == nil {
		return slog.LevelInfo
	}
	if sessionErrorOf(f) != nil && f.Kind != FailureContextCancelled {
		return slog.LevelWarn // the store, a session that is busy, or what a client says of its session
	}
	c := f.said()
	switch f.shownKind(c) {
	case FailureNone, FailureContextCancelled, FailureShutdown:
		return slog.LevelInfo
	case FailureInternal:
		if f.Seq == 0 && c.blamesClient() {
			return slog.LevelWarn
		}
		return slog.LevelError
	}
	return slog.LevelWarn
}

// reason is a cause of flow's own. Its text is constant and quotes nothing, so it may go to a client.
type reason string

func (r reason) Error() string { return string(r) }

// panicError is a recovered panic.
type panicError struct {
	value any
	text  string
	stack []byte
}

// newPanicError is to be called by the function that recovered v: the stack is that of the panic only there. A v of nil is
// that of a panic(nil), which recover shows as such under GODEBUG=panicnil=1: who calls this knows by other means that
// there was a panic.
func newPanicError(v any) *panicError {
	if v == nil {
		v = new(runtime.PanicNilError)
	}
	return &panicError{v, panicText(v), debug.Stack()}
}

// panicText has the value's text only if that was made to be read: any other value may be the message.
func panicText(v any) string {
	switch v := v.(type) {
	case error:
		text, _ := textOf(v)
		return "panic: " + text
	case string:
		return "panic: " + v
	default:
		return fmt.Sprintf("panic with a value of type %T", v)
	}
}

func (e *panicError) Error() string { return e.text }

func (e *panicError) Unwrap() error {
	err, _ := e.value.(error)
	return err
}

type goexitError struct{}

func (goexitError) Error() string { return "runtime.Goexit was called" }

// errGoexit is the cause when a function of the caller's ended its goroutine.
var errGoexit error = goexitError{}

// panicked reports whether err comes of a panic or a runtime.Goexit.
func panicked(err error) bool {
	if _, ok := findError[*panicError](err); ok {
		return true
	}
	_, ok := findError[goexitError](err)
	return ok
}

// stackOf is the stack of a recovered panic in err; nil if there is none.
func stackOf(err error) []byte {
	if p, ok := findError[*panicError](err); ok {
		return p.stack
	}
	return nil
}

// contextError is the end of a context together with its cause.
type contextError struct{ err, cause error }

func (e *contextError) Error() string {
	why, _ := textOf(e.cause)
	return e.err.Error() + ": " + why
}

func (e *contextError) Unwrap() []error { return []error{e.err, e.cause} }

// contextFailure is the failure of what ctx, which has ended, cut short.
func contextFailure(ctx context.Context) *Failure {
	err, cause := ctx.Err(), context.Cause(ctx)
	same := false
	guarded(func() { same = cause == err }) // of a caller's own context they may not be comparable
	if !same {
		err = &contextError{err, cause}
	}
	return newFailure(FailureContextCancelled, err)
}

// errIdle is the cause when a stream was idle for longer than IdleTimeout.
var errIdle = fmt.Errorf("%w: %w", reason("no message within the idle timeout"), context.DeadlineExceeded)

// recvFailure is the failure of a stream whose recv returned err, which is not io.EOF.
func recvFailure(err error) *Failure {
	f := newFailure(FailureInternal, err)
	if c := f.said(); !c.crashed && c.ended != codes.OK {
		f.Kind = FailureContextCancelled
	}
	return f
}
