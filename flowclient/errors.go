package flowclient

import (
	"errors"
	"fmt"
)

var (
	// ErrNoSessions ends a Sender whose server keeps no sessions: it answered without a flow-epoch, in the header or the
	// trailers, or does not know the method.
	ErrNoSessions = errors.New("flowclient: the server keeps no sessions")
	// ErrSessionKnown ends a Sender with an Options.Session that called Send without Resume, while the server knows the
	// session: the numbers of its messages stand for others already, which it must not count as its own.
	ErrSessionKnown = errors.New("flowclient: the server knows the session already: call Resume before the first Send")
	// ErrClosed is returned by calls after Close.
	ErrClosed = errors.New("flowclient: the Sender is closed")
)

// UnsettledError is returned by Close when some of what was taken on is not known to be settled. [Sender.Unsettled]
// yields those messages.
type UnsettledError struct {
	Seq   uint64 // the number of the first one
	Count int    // how many
	Err   error  // why: what ended the Sender, or the end of Close's context
}

// Error names the first message and says how many are not settled, and why.
func (e *UnsettledError) Error() string {
	return fmt.Sprintf("flowclient: not known to be settled: %d of the messages, from %d on: %v", e.Count, e.Seq, e.Err)
}

// Unwrap returns Err.
func (e *UnsettledError) Unwrap() error { return e.Err }

// closedError ends a Sender whose Close was stopped by its context.
type closedError struct{ err error }

func (e *closedError) Error() string {
	return "flowclient: closed before all was settled: " + e.err.Error()
}
func (e *closedError) Unwrap() []error { return []error{ErrClosed, e.err} }

// answerError ends a Sender to which the server says what can't be true: nothing that it says is believed then.
type answerError struct{ what string }

func (e *answerError) Error() string {
	return "flowclient: the server's answer makes no sense: " + e.what
}

func senseless(format string, args ...any) error { return &answerError{fmt.Sprintf(format, args...)} }

// Why the Sender itself cancels a stream.
var (
	errHeaderTimeout = errors.New("flowclient: no response header within Options.HeaderTimeout")
	errAnswerTimeout = errors.New("flowclient: no answer within Options.AnswerTimeout")
	errSettledAhead  = errors.New("flowclient: the server has settled so much that another stream starts behind it")
	errNotWanted     = errors.New("flowclient: Resume was cancelled")
)

// guarded calls f, which is the caller's code or calls it, and makes an error of a panic in it.
func guarded(name string, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{name, v}
		}
	}()
	return f()
}

// panicError ends a Sender when a function of the caller's panicked.
type panicError struct {
	name  string
	value any
}

func (e *panicError) Error() string {
	return fmt.Sprintf("flowclient: panic in %s: %v", e.name, e.value)
}
