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

// guarded calls fn and reports whether it returned. What it panics with is discarded, panic(nil) included. It recovers on
// the caller's goroutine and starts none, since it is called for each error. So a runtime.Goexit in fn goes through it:
// where that must not happen, isolated is called instead.
func guarded(fn func()) (returned bool) {
	defer func() { _ = recover() }()
	fn()
	return true
}

// maxWrapped bounds how many errors are looked at in one: an error may wrap itself. More errors than that are wrapped in
// no ordinary one; an endless walk would hold a worker, and so a slot and a key, indefinitely.
const maxWrapped = 1_000

// walk calls visit with err and all that it wraps, in the order of errors.As, until visit returns true. It reports whether
// it got to the end of it: not if an Unwrap panicked, or if it has no end.
//
// A guardedError is passed over in favour of what it stands for, so that nothing is asked of the guard, whose own methods
// call walk. visit must guard what it calls of the caller's.
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

// unwrap returns what err wraps: several errors, or one. It is not ok if the method panicked. Both kinds of Unwrap are
// looked for, as package errors does.
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

// findError is errors.AsType. An As method that panics, or sets nothing, has found nothing, and the search goes on with what
// its error wraps.
func findError[E any](err error) (found E, ok bool) {
	walk(err, func(e error) bool {
		if found, ok = e.(E); !ok {
			if as, has := e.(interface{ As(any) bool }); has {
				ok = asFinds(as, &found, reflect.Value.IsZero) // none that is looked for here is
			}
		}
		return ok
	})
	return found, ok
}

// asFinds is e.As(target), which is a pointer. That the method says it has found something is not enough: what is found is
// used, and a nil that was used would end the process where nobody recovers. It gets a target of its own, in which nothing is
// yet; empty reports whether that is still so.
func asFinds(e interface{ As(any) bool }, target any, empty func(reflect.Value) bool) (found bool) {
	to := reflect.ValueOf(target).Elem()
	own := reflect.New(to.Type())
	guarded(func() { found = e.As(own.Interface()) && !empty(own.Elem()) })
	if found {
		to.Set(own.Elem())
	}
	return found
}

// isNil reports whether v is nil, which what is no pointer of any kind never is.
func isNil(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface, reflect.Map, reflect.Slice, reflect.Func, reflect.Chan:
		return v.IsNil()
	}
	return false
}

// isError is errors.Is. A comparison that panics, since the type has a field which can't be compared, counts as unequal.
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

// sameError reports whether a is b. A target whose type can't be compared equals nothing, as in errors.Is. It may panic
// all the same: a type can be comparable while the value in one of its fields is not.
func sameError(a, b error) bool { return reflect.TypeOf(b).Comparable() && a == b }

// textOf returns err's text, or, if that can't be read, one that says so. It does not quote the panic: that may contain
// anything, and the text goes to a client.
func textOf(err error) (text string, readable bool) {
	if guarded(func() { text = err.Error() }) {
		return text, true
	}
	return fmt.Sprintf("an error of type %T, whose Error method panics", bare(err)), false
}

// grpcStatus is what status.FromError looks for, which calls the method unguarded.
type grpcStatus interface{ GRPCStatus() *status.Status }

// statusOf returns the status that err, or the first in it that has one, states; nil if none does. It is not sound if the
// method panicked. The status is a copy: details may be added to it, and the error may be shared by many goroutines.
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

// bare takes Permanent's mark off, and a guard, so that what is below counts as itself and not as wrapped. It takes off no
// other wrapping: whether an error has a status itself decides whether its message or the whole text is shown.
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
//
// It decides what a Failure hands out (see newCause): an error that is plain as it is, so that most cost nothing more; one
// that is opaque behind a guard for Unwrap only; one that is unsafe behind a guard everywhere. It is found out once, when
// the Failure is made, since gRPC's and the user's calls come later and unguarded.
type conduct int

const (
	conductPlain  conduct = iota // they call nothing of the caller's but an Unwrap that has returned before
	conductOpaque                // they call an Is or an As: what those do may depend on what they are asked for
	conductUnsafe                // they panic, or come to no end
)

// conductOf returns the worst conduct of err and of all that it wraps. An error that could not be looked through to its
// end counts as unsafe.
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

// conductAlone is that of e without what it wraps. Its Is and As are tried with a target that they can't know. That they
// return proves little, since they may panic on another one: so the best that such an error gets is opaque. One whose As
// says that it has found that is as bad as a panic: whoever asks for something else gets a nil for it.
func conductAlone(e error) conduct {
	v := reflect.ValueOf(e)
	is, hasIs := e.(interface{ Is(error) bool })
	as, hasAs := e.(interface{ As(any) bool })
	switch {
	case v.Type().Comparable() && !v.Comparable(): // to compare it with its like panics
		return conductUnsafe
	case !hasIs && !hasAs, v.Type() == statusErrorType && !v.IsNil(), v.Type() == errnoType:
		return conductPlain
	// Of a typed nil most methods panic, and one that does not for this target may for the next.
	case v.Kind() == reflect.Pointer && v.IsNil(),
		hasIs && !guarded(func() { is.Is(errGoexit) }),
		hasAs && !honest(as):
		return conductUnsafe
	}
	return conductOpaque
}

// strangeError is what no error is.
type strangeError struct{ error }

// honest reports whether the As method, asked for what it can't have, says so.
func honest(e interface{ As(any) bool }) (says bool) {
	guarded(func() { says = !e.As(new(strangeError)) })
	return says
}

// Errors that many wrap, and whose Is never panics. They are named so that the commonest errors of handlers, a gRPC status
// and a system call's, need no guard.
var (
	statusErrorType = reflect.TypeOf(status.Error(codes.Unknown, ""))
	errnoType       = reflect.TypeFor[syscall.Errno]()
)

// guardedError stands for an error whose methods may panic: what errors.Is and errors.As find in that they find in this.
// It has no Unwrap method, or those functions would get at the error itself and call its methods unguarded. It is not
// changed once it is made.
type guardedError struct {
	err    error
	text   string
	status *status.Status // nil: it states none
}

func (g *guardedError) Error() string { return g.text }

// GRPCStatus returns nil if the error states no status: gRPC then takes the code Unknown, as for an error without the
// method.
func (g *guardedError) GRPCStatus() *status.Status { return g.status }

// Is implements what errors.Is does. A nil target is answered here, since reflect knows no type of it.
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
			found = asFinds(as, target, isNil) // a caller's may be an error code of 0
		}
		return found
	})
	return found
}

// cause is what the error behind a Failure said about itself when the Failure was made. The error is not asked again:
// gRPC asks a Failure for its status after the service method has returned, where nobody recovers, and what a Failure
// says must not depend on who asked before. See findError, textOf and statusOf for how it is asked.
//
// It is complete when newCause returns and is not changed after that, except for of, which newFailure and as set before
// the Failure is handed out. So any goroutine may read it.
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

// newFailure makes a Failure of kind, which err has caused, and asks err all that the Failure will ever say about it. It
// is called where the error is received, which is mostly a worker, and calls the error's methods there: it may panic for
// none of them, but blocks for as long as they do.
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
//
// Whether it crashed is asked apart from its status: a panic(status.Error(…)) wraps that status, and must not be shown as
// an error that the handler has chosen to return.
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
	// Err stays the error as it was returned, if that can be helped: users compare it and print it. Only Unwrap, by which
	// errors.Is and errors.As get at it, must be safe.
	c.unwraps = g
	if !readable || !sound || conduct == conductUnsafe {
		c.err = g
	}
	return c
}

// state takes over what st says. A single detail beyond maxDetails is left out at once, so that a Failure keeps no large
// one alive; whether the rest fit together is decided by Failure.details.
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

// isolated runs fn on a goroutine of its own and waits for it, so that neither a panic nor a runtime.Goexit in it reaches
// the caller: both are its error. It is for goroutines that are not flow's own, above all Run's: a Goexit there would end
// the service method, whose client gRPC then leaves without an answer (grpc-go #5567). Workers do without, since a
// goroutine for each message costs 30 % more; see worker.work. It blocks for as long as fn does.
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
// recover shows nothing of a panic(nil) under GODEBUG=panicnil=1. A runtime.Goexit goes on to the caller's caller. The
// deferred function must call recover itself: one level deeper it would find nothing, and the stack would not be that of
// the panic.
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
