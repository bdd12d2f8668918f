package flow

import (
	"fmt"
	"reflect"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// Errors that come from the caller (a handler's, recv's, a resolver's, a context's cause) have methods that are the
// caller's code: Error, Unwrap, Is, As and GRPCStatus. Any of them may panic, and on a typed nil most do. So flow calls
// them by the functions of this file only, in place of those of package errors and of package status, and what a method
// panics with is discarded: an error that can't say what it is, is none of the errors that it is asked for.

// guarded calls fn and reports whether it returned. What it panics with is discarded, panic(nil) included.
func guarded(fn func()) (returned bool) {
	defer func() { _ = recover() }()
	fn()
	return true
}

// maxWrapped bounds how many errors are looked at in one: an error may wrap itself.
const maxWrapped = 1_000

// walk calls visit with err and all that it wraps, in the order of errors.As, until visit returns true. It reports
// whether it got to the end of it: not if an Unwrap panicked, or if it has no end.
func walk(err error, visit func(error) (stop bool)) (complete bool) {
	left := maxWrapped
	complete = true
	var from func(err error) (stop bool)
	from = func(err error) (stop bool) {
		for err != nil {
			if g, ok := err.(*guardedError); ok {
				err = g.err
				continue
			}
			if left--; left < 0 {
				complete = false
				return true
			}
			if visit(err) {
				return true
			}
			ok, several, next := unwrap(err)
			complete = complete && ok
			for _, e := range several {
				if from(e) {
					return true
				}
			}
			err = next
		}
		return false
	}
	from(err)
	return complete
}

// unwrap returns what err wraps: several errors, or one. It is not ok if the method panicked.
func unwrap(err error) (ok bool, several []error, one error) {
	ok = guarded(func() {
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			one = e.Unwrap()
		case interface{ Unwrap() []error }:
			several = e.Unwrap()
		}
	})
	return ok, several, one
}

// findError is errors.AsType.
func findError[E any](err error) (found E, ok bool) {
	walk(err, func(e error) bool {
		if found, ok = e.(E); !ok {
			if as, has := e.(interface{ As(any) bool }); has {
				guarded(func() { ok = as.As(&found) })
			}
		}
		return ok
	})
	return found, ok
}

// isError is errors.Is.
func isError(err, target error) (is bool) {
	walk(err, func(e error) bool {
		guarded(func() { // comparing may panic too
			if is = sameError(e, target); is {
				return
			}
			if x, has := e.(interface{ Is(error) bool }); has {
				is = x.Is(target)
			}
		})
		return is
	})
	return is
}

func sameError(a, b error) bool { return reflect.TypeOf(b).Comparable() && a == b }

// textOf returns err's text, or, if that can't be read, one that says so.
func textOf(err error) (text string, readable bool) {
	if guarded(func() { text = err.Error() }) {
		return text, true
	}
	return fmt.Sprintf("an error of type %T, whose Error method panics", bare(err)), false
}

type grpcStatus interface{ GRPCStatus() *status.Status }

// statusOf returns the status that err, or the first in it that has one, states; nil if none does. It is not sound if the
// method panicked.
func statusOf(err error) (st *status.Status, sound bool) {
	e, ok := findError[grpcStatus](err)
	if !ok {
		return nil, true
	}
	sound = guarded(func() {
		if got := e.GRPCStatus(); got != nil {
			st = status.FromProto(got.Proto())
		}
	})
	return st, sound
}

// bare takes Permanent's mark off, and a guard, so that what is below counts as itself and not as wrapped.
func bare(err error) error {
	for {
		switch e := err.(type) {
		case *permanentError:
			err = e.err
		case *guardedError:
			err = e.err
		default:
			return err
		}
	}
}

// conduct is what may happen when errors.Is, errors.As and errors.Unwrap are called on an error.
type conduct int

const (
	conductPlain  conduct = iota // they call nothing of the caller's but an Unwrap that has returned before
	conductOpaque                // they call an Is or an As: what those do may depend on what they are asked for
	conductUnsafe                // they panic, or come to no end
)

func conductOf(err error) conduct {
	worst := conductPlain
	complete := walk(err, func(e error) bool {
		worst = max(worst, conductAlone(e))
		return false
	})
	if !complete {
		return conductUnsafe
	}
	return worst
}

// conductAlone is that of e without what it wraps.
func conductAlone(e error) conduct {
	v := reflect.ValueOf(e)
	is, hasIs := e.(interface{ Is(error) bool })
	as, hasAs := e.(interface{ As(any) bool })
	switch {
	case v.Type().Comparable() && !v.Comparable(): // to compare it with its like panics
		return conductUnsafe
	case !hasIs && !hasAs, v.Type() == statusErrorType && !v.IsNil(), v.Type() == errnoType:
		return conductPlain
	case v.Kind() == reflect.Pointer && v.IsNil(),
		hasIs && !guarded(func() { is.Is(errGoexit) }),
		hasAs && !guarded(func() { as.As(new(goexitError)) }):
		return conductUnsafe
	}
	return conductOpaque
}

// Errors that many wrap, and whose Is never panics.
var (
	statusErrorType = reflect.TypeOf(status.Error(codes.Unknown, ""))
	errnoType       = reflect.TypeFor[syscall.Errno]()
)

// guardedError stands for an error whose methods may panic: what errors.Is and errors.As find in that they find in this.
type guardedError struct {
	err    error
	text   string
	status *status.Status // nil: it states none
}

func (g *guardedError) Error() string { return g.text }

func (g *guardedError) GRPCStatus() *status.Status { return g.status }

func (g *guardedError) Is(target error) bool { return target != nil && isError(g.err, target) }

// As implements what errors.As does, which has seen to it that target is a pointer to an interface or to an error's type.
func (g *guardedError) As(target any) (found bool) {
	to := reflect.ValueOf(target).Elem()
	walk(g.err, func(e error) bool {
		if found = reflect.TypeOf(e).AssignableTo(to.Type()); found {
			to.Set(reflect.ValueOf(e))
			return true
		}
		if as, has := e.(interface{ As(any) bool }); has {
			guarded(func() { found = as.As(target) })
		}
		return found
	})
	return found
}

// cause is what the error behind a Failure said about itself when the Failure was made. The error is not asked again:
// gRPC asks a Failure for its status after the service method has returned, where nobody recovers, and what a Failure
// says must not depend on who asked before. See findError, textOf and statusOf for how it is asked.
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

// isolated runs fn on a goroutine of its own and waits for it, so that neither a panic nor a runtime.Goexit in it
// reaches the caller: both are its error.
func isolated(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errGoexit
		defer func() { done <- err }()
		err = recovered(fn)
	}()
	return <-done
}

// recovered calls fn and returns what it panics with as its error. Whether it returned is kept by a variable, since
// recover shows nothing of a panic(nil) under GODEBUG=panicnil=1. A runtime.Goexit goes on to the caller's caller.
func recovered(fn func() error) (err error) {
	returned := false
	defer func() {
		if !returned {
			err = newPanicError(recover())
		}
	}()
	err = fn()
	returned = true
	return err
}
