package flow

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"

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
	// FailureOrdering means that order can't be kept: too many wait, or an earlier message of the key was given up.
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

var kindRows = [...]kindRow{
	FailureNone:             {code: codes.OK, text: "no failure"},
	FailureHandlerError:     {true, false, false, codes.Unknown, "HANDLER_ERROR", "the handler failed"},
	FailureContextCancelled: {false, true, true, codes.Canceled, "CONTEXT_CANCELLED", "context canceled"},
	FailureBackpressure:     {true, false, false, codes.ResourceExhausted, "BACKPRESSURE", "refused for pressure"},
	FailureOrdering:         {false, false, true, codes.Aborted, "ORDERING", "order can't be kept"},
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

// IsRetryable says whether a message that failed so may be sent again: the same message can succeed later.
func IsRetryable(kind FailureKind) bool { return kind.row().retryable }

// IsTerminal says whether a failure of this kind ends its stream, whatever Options.OnFailure says.
func IsTerminal(kind FailureKind) bool { return kind.row().terminal }

// BreakOrdering says whether order can't be relied on after such a failure: later messages may be missing.
func BreakOrdering(kind FailureKind) bool { return kind.row().breaks }

// ClassifyFailure gives the kind of any error, wrapped or not: of a *Failure its Kind, of a *ShutdownError
// FailureShutdown, of a gRPC status error with flow's ErrorInfo (as a client of a flow server gets it) the kind that
// the server named. Else Canceled and DeadlineExceeded, as context errors or as status codes, are
// FailureContextCancelled, and every other error is FailureHandlerError. Of several the outermost counts.
func ClassifyFailure(err error) FailureKind {
	if err == nil {
		return FailureNone
	}
	if k, ok := errors.AsType[kinded](err); ok {
		return k.failureKind()
	}
	if st, ok := status.FromError(err); ok {
		if k := statedKind(st); k != FailureNone {
			return k
		}
	}
	if contextCode(err) != codes.OK {
		return FailureContextCancelled
	}
	return FailureHandlerError
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
		for k := FailureHandlerError; int(k) < len(kindRows); k++ {
			if kindRows[k].reason == info.GetReason() {
				return k
			}
		}
	}
	return FailureNone
}

// contextCode is Canceled or DeadlineExceeded if err is the end of a context, as a status or as a context error; else
// OK. A status decides before what it wraps.
func contextCode(err error) codes.Code {
	if c, ok := errors.AsType[*contextError](err); ok {
		err = c.err // not the cause, which may be a deadline of something else
	}
	st, stated := status.FromError(err)
	switch {
	case stated && (st.Code() == codes.Canceled || st.Code() == codes.DeadlineExceeded):
		return st.Code()
	case stated:
		return codes.OK
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	return codes.OK
}

// Failure is what went wrong with a message, or with a stream (Seq is 0 then). errors.Is and errors.As see its cause.
// Returned from a service method it is a gRPC status. It is not changed after it was handed out, and is safe for
// concurrent use.
type Failure struct {
	Kind     FailureKind
	Seq      uint64 // 0: of no one message
	Key      string // for your eyes: never in Error's text, nor in the status
	Attempts int    // how often the handler was called
	Value    any    // the message; never in Error's text, nor in the status
	Err      error  // the cause; nil only in a Failure that flow did not make
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
	if f.shownKind() == FailureHandlerError && f.Err != nil {
		return cutText(text+f.Err.Error(), maxText)
	}
	return cutText(text+f.text(), maxText)
}

// Unwrap returns Err.
func (f *Failure) Unwrap() error {
	if f == nil {
		return nil
	}
	return f.Err
}

// reason is a cause of flow's own. Its text is constant and quotes nothing, so it may go to a client.
type reason string

func (r reason) Error() string { return string(r) }

// panicError is a recovered panic.
type panicError struct {
	value any
	stack []byte
}

// newPanicError is to be called by the function that recovered v: the stack is that of the panic only there.
func newPanicError(v any) *panicError { return &panicError{v, debug.Stack()} }

// Error has the value's text only if that was made to be read: any other value may be the message.
func (e *panicError) Error() string {
	switch v := e.value.(type) {
	case error:
		return "panic: " + v.Error()
	case string:
		return "panic: " + v
	default:
		return fmt.Sprintf("panic with a value of type %T", v)
	}
}

func (e *panicError) Unwrap() error {
	err, _ := e.value.(error)
	return err
}

type goexitError struct{}

func (goexitError) Error() string { return "runtime.Goexit was called" }

// errGoexit is the cause when a function of the caller's ended its goroutine.
var errGoexit error = goexitError{}

// panicked says whether err comes of a panic or a runtime.Goexit.
func panicked(err error) bool {
	_, ok := errors.AsType[*panicError](err)
	return ok || errors.Is(err, errGoexit)
}

// stackOf is the stack of a recovered panic in err; nil if there is none.
func stackOf(err error) []byte {
	if p, ok := errors.AsType[*panicError](err); ok {
		return p.stack
	}
	return nil
}

// contextError is the end of a context together with its cause.
type contextError struct{ err, cause error }

func (e *contextError) Error() string   { return e.err.Error() + ": " + e.cause.Error() }
func (e *contextError) Unwrap() []error { return []error{e.err, e.cause} }

// contextFailure is the failure of what ctx, which has ended, cut short.
func contextFailure(ctx context.Context) *Failure {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause != err {
		err = &contextError{err, cause}
	}
	return &Failure{Kind: FailureContextCancelled, Err: err}
}

// errIdle is the cause when a stream was idle for longer than IdleTimeout.
var errIdle = fmt.Errorf("%w: %w", reason("no message within the idle timeout"), context.DeadlineExceeded)

// recvFailure is the failure of a stream whose recv returned err, which is not io.EOF.
func recvFailure(err error) *Failure {
	if !panicked(err) && contextCode(err) != codes.OK {
		return &Failure{Kind: FailureContextCancelled, Err: err}
	}
	return &Failure{Kind: FailureInternal, Err: err}
}
