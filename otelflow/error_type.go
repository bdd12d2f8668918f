package otelflow

import (
	"context"
	"errors"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
)

// errorType is a value of the attribute error.type: few are possible, and all are known beforehand.
type errorType int

// First the kinds of failures, of which 0 is none, then one for a kind that is newer than this package, then gRPC's codes.
const (
	kinds      = errorType(flow.FailureInternal) + 1
	otherKind  = kinds
	firstCode  = otherKind + 1
	grpcCodes  = errorType(codes.Unauthenticated) + 1
	errorTypes = firstCode + grpcCodes
)

// String returns the attribute's value: a kind's name, the name that the conventions have for any other, or a code's.
func (t errorType) String() string {
	switch {
	case t < kinds:
		return flow.FailureKind(t).String()
	case t == otherKind:
		return "_OTHER"
	}
	return code.Code_name[int32(t-firstCode)]
}

// typeOf returns the error.type of a message's failure: its kind.
func typeOf(f *flow.Failure) errorType {
	switch {
	case f == nil:
		return errorType(flow.FailureNone)
	case f.Kind < 0 || errorType(f.Kind) >= kinds:
		return otherKind
	}
	return errorType(f.Kind)
}

// streamType returns the error.type of a failure that is no message's: of a stream that ended with e, or of a session's Save.
// Where the source broke with a gRPC status, and where flow has a code for the reason, that is the code: RESOURCE_EXHAUSTED is
// a client whose message is too large, and no bug of the service's.
func streamType(e *flow.Event) errorType {
	f := e.Failure
	if f == nil || f.Kind != flow.FailureInternal || f.Seq > 0 || len(e.Stack) > 0 {
		return typeOf(f) // a panic has a stack, and its value may be a status too
	}
	c := guarded(func() codes.Code {
		if st, ok := status.FromError(f.Err); ok {
			return st.Code()
		}
		if c := status.Code(f); c != codes.Internal { // which is that of every other
			return c
		}
		return codes.OK
	}, codes.OK)
	if c == codes.OK {
		return typeOf(f)
	}
	if c > codes.Unauthenticated {
		c = codes.Unknown // any code that gRPC does not define may be in a status
	}
	return firstCode + errorType(c)
}

// handlerKind returns the kind that a Run gives err, which a handler returned under ctx. Only the end of its stream cuts a
// message short: a deadline of a handler's own, and an AttemptTimeout, are errors like any other.
func handlerKind(ctx context.Context, err error) flow.FailureKind {
	if ctx.Err() == nil {
		return flow.FailureHandlerError
	}
	cause := context.Cause(ctx)
	isEnd := guarded(func() bool {
		return cause != flow.ErrAttemptTimeout && (errors.Is(err, cause) || flow.ClassifyFailure(err) == flow.FailureContextCancelled)
	}, false)
	switch {
	case !isEnd:
		return flow.FailureHandlerError
	case flow.ClassifyFailure(cause) == flow.FailureShutdown:
		return flow.FailureShutdown
	}
	return flow.FailureContextCancelled
}
