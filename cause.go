package flow

import (
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// cause is what the error behind a Failure said about itself when the Failure was made. The error is not asked again:
// gRPC asks a Failure for its status after the service method has returned, where nobody recovers, and what a Failure
// says must not depend on who asked before. foreign.go says how it is asked.
type cause struct {
	of      *Failure // the Failure it was made for: a copy of that may have been given another Err
	err     error    // for Failure.Err: the error, or a guardedError in its place
	unwraps error    // for Failure.Unwrap: the same, or a guardedError

	text      string     // at most maxText bytes of valid UTF-8
	ended     codes.Code // Canceled or DeadlineExceeded if it is the end of a context, else OK
	why       reason     // flow's own reason in it
	crashed   bool       // it comes of a panic or a runtime.Goexit
	permanent bool       // Permanent marks it

	// Of its status, if it states one, wrapped or not.
	stated  bool
	kind    FailureKind   // that flow's ErrorInfo names; FailureNone without one
	code    codes.Code    // Unknown without a status
	message string        // text without a status
	details []*anypb.Any  // those that may stand in a status of flow's
	asks    bool          // a RetryInfo says when to try again
	delay   time.Duration // of that
	garbled bool          // gRPC says that it could not decode what the client sent
}

// newFailure makes a Failure of kind, which err has caused, and asks err all that the Failure will ever say about it.
func newFailure(kind FailureKind, err error) *Failure {
	f := &Failure{Kind: kind, Err: err}
	if _, own := err.(reason); own || err == nil { // under load most are refusals, whose reasons are constants
		return f
	}
	f.cause = newCause(err)
	f.cause.of = f
	f.Err = f.cause.err
	return f
}

// newCause asks err, which may be nil.
func newCause(err error) *cause {
	c := &cause{err: err, unwraps: err, code: codes.Unknown}
	if err == nil {
		return c
	}
	text, readable := textOf(err)
	st, sound := statusOf(err)
	c.text = cutText(text, maxText)
	c.message = c.text
	c.ended, c.crashed = contextCode(err, st), panicked(err)
	c.why, _ = findError[reason](err)
	_, c.permanent = findError[*permanentError](err)
	if st != nil {
		c.state(st)
		if _, itself := bare(err).(grpcStatus); itself { // else it is wrapped, and the whole text says more
			c.message = cutText(st.Message(), maxText)
		}
	}
	conduct := conductOf(err)
	if readable && sound && conduct == conductPlain {
		return c
	}
	g := &guardedError{err: err, text: c.text}
	if st != nil {
		p := st.Proto()
		p.Message = c.message
		g.status = status.FromProto(p)
	}
	c.unwraps = g
	if !readable || !sound || conduct == conductUnsafe {
		c.err = g
	}
	return c
}

// state takes over what st says.
func (c *cause) state(st *status.Status) {
	c.stated, c.code, c.kind = true, st.Code(), statedKind(st)
	c.garbled = isGarbled(st)
	for _, d := range st.Proto().GetDetails() {
		if !c.asks {
			c.delay, c.asks = retryInfoDelay(d)
		}
		if detailSize(d) <= maxDetails && !contradicts(d) {
			c.details = append(c.details, d)
		}
	}
}
