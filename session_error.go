package flow

import (
	"google.golang.org/grpc/codes"
)

// reasonSessionMoved is the Reason in the ErrorInfo of a stream whose session is somebody else's.
const reasonSessionMoved = "SESSION_MOVED"

// sessionError is the cause of a stream that was refused or ended for its session's sake. It decides what the client sees:
// a client that resumes by itself must be able to tell these cases apart.
type sessionError struct {
	code  codes.Code
	text  string // for the client; it quotes no name
	epoch uint64 // of a session that moved: the one that counts now; 0: it did not move
	cause error  // for errors.Is; nil if text says it all
	why   string // the text of the cause, for the Observer
}

func (e *sessionError) Error() string {
	if e.why == "" {
		return e.text
	}
	return e.text + ": " + e.why
}

func (e *sessionError) Unwrap() error { return e.cause }

// sessionErrorOf is the session's error that f is the failure of; nil if it is another.
func sessionErrorOf(f *Failure) *sessionError {
	if f == nil {
		return nil
	}
	e, _ := f.Err.(*sessionError) // it never needs guarding: what it wraps is guarded
	return e
}

// movedFailure ends a stream that has, or waits for, epoch own of a session that another one takes in epoch next.
// A writer's own next stream ends it as one that goes on; a claim ends the writer.
func movedFailure(own, next uint64) *Failure {
	code := codes.FailedPrecondition
	if next == own {
		code = codes.Aborted
	}
	return newFailure(FailureContextCancelled, &sessionError{
		code: code, text: "the session has moved to another stream", epoch: next, cause: ErrSessionMoved,
	})
}

// malformedFailure refuses what a client's headers say.
func malformedFailure(err error) *Failure {
	return newFailure(FailureInternal, &sessionError{code: codes.InvalidArgument, text: err.Error()})
}

// ownerFailure refuses a stream whose Owner returned err.
func ownerFailure(err error) *Failure {
	c := newCause(err)
	if c.crashed {
		return newFailure(FailureInternal, err)
	}
	e := &sessionError{
		code: codes.PermissionDenied, text: "it can't be told whose session it is", cause: c.unwraps, why: c.text,
	}
	if c.stated && c.code != codes.OK {
		e.code, e.text, e.why = c.code, c.message, ""
	}
	return newFailure(FailureInternal, e)
}

// busyFailure refuses a stream whose session's earlier stream has not ended in time.
func busyFailure() *Failure {
	return newFailure(FailureBackpressure, &sessionError{
		code: codes.Unavailable, text: "the session's earlier stream is still busy",
	})
}

// storeFailure refuses a stream for a store that failed.
func storeFailure(err error) *Failure {
	c := newCause(err)
	return newFailure(FailureBackpressure, &sessionError{
		code: codes.Unavailable, text: "the session store failed", cause: c.unwraps, why: c.text,
	})
}
