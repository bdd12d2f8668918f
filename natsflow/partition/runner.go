package partition

import (
	"context"
	"errors"
	"fmt"

	"example.com/flow"
)

// DefaultWindow is the window of a partition where none is given.
const DefaultWindow = 1024

// errSkipKey ends the partition in which OnFailure asks for what can't be had.
var errSkipKey = errors.New("OnFailure returned SkipKey, which a partition does not have: its memory would end with the holder")

// Options configure a Runner.
type Options struct {
	// Flow are the options of the one Flow that runs all partitions of the process.
	Flow flow.Options
	// Quarantine is after how many deaths messages in doubt run alone.
	Quarantine int
	// Poison is after how many deaths in quarantine a message is not run any more.
	Poison int
	// Isolation is the process's.
	Isolation *Isolation
}

// Runner runs partitions through one Flow, so that Backpressure.Capacity is that of the process. It is safe for concurrent
// use.
type Runner[T any] struct {
	options Options
	handler flow.Handler[T]
	flow    *flow.Flow[*delivery[T]]
	window  int
}

// delivery is a message on its way through flow.
type delivery[T any] struct {
	Message[T]
	run     *Run[T]
	refusal error // why it is not run at all: it can't be decoded, or is poison
	inDoubt bool
	suspect bool
	skipped bool // OnFailure has skipped it: written before the run that it is of is over
}

// Size is what flow counts for MaxPendingBytes.
func (d *delivery[T]) Size() int { return len(d.Raw) + len(d.Key) }

// Validate returns an error that names the field of o, the options of a worker's flow, that can't mean anything when a
// partition is run.
func Validate(o flow.Options) error {
	refuse := func(field string, value any, rule string) error {
		return fmt.Errorf("%s is %v: it %s", "Flow."+field, value, rule)
	}
	switch {
	case o.Ordering.Mode == flow.OrderingNone:
		return refuse("Ordering.Mode", o.Ordering.Mode, "must be OrderingKeyedFIFO or the zero value, which means that here")
	case o.Ordering.Scope != flow.ScopeStream:
		return refuse("Ordering.Scope", o.Ordering.Scope, "must be ScopeStream: a key lives in one partition")
	case o.Ordering.Capacity != 0:
		return refuse("Ordering.Capacity", o.Ordering.Capacity, "must be 0: what is stored is not refused, it waits")
	case o.Ordering.KeyCapacity != 0:
		return refuse("Ordering.KeyCapacity", o.Ordering.KeyCapacity, "must be 0: what is stored is not refused, it waits")
	case o.Backpressure.Policy == flow.BackpressureHardReject:
		return refuse("Backpressure.Policy", o.Backpressure.Policy, "must not refuse: what is stored waits")
	case o.Backpressure.QueueCapacity != 0:
		return refuse("Backpressure.QueueCapacity", o.Backpressure.QueueCapacity, "must be 0: what is stored is not refused, it waits")
	case o.MaxPending < 0:
		return refuse("MaxPending", o.MaxPending, "must not be negative: it bounds what a crash repeats")
	case o.IdleTimeout != 0:
		return refuse("IdleTimeout", o.IdleTimeout, "must be 0: a partition may be idle")
	case o.Sessions != nil:
		return refuse("Sessions", "set", "must be nil: they are the gateway's")
	}
	return nil
}

// NewRunner returns a Runner that calls handler. The error of impossible options names field, value and rule.
func NewRunner[T any](handler flow.Handler[T], o Options) (*Runner[T], error) {
	if handler == nil {
		return nil, errors.New("the handler must not be nil")
	}
	if err := Validate(o.Flow); err != nil {
		return nil, err
	}
	r := &Runner[T]{options: o, handler: handler, window: o.Flow.MaxPending}
	if r.window == 0 {
		r.window = DefaultWindow
	}
	f := o.Flow
	f.Ordering.Mode = flow.OrderingKeyedFIFO
	f.MaxPending = r.window
	f.OnFailure = r.onFailure
	if observer := o.Flow.Observer; observer != nil {
		f.Observer = func(ctx context.Context, e flow.Event) {
			if e.Failure != nil {
				e.Failure = unwrap[T](e.Failure)
			}
			observer(ctx, e)
		}
	}
	var err error
	r.flow, err = flow.New(r.handle, func(d *delivery[T]) string { return d.Key }, f)
	return r, err
}

// Window is how many messages of a partition may be received that the record does not call settled.
func (r *Runner[T]) Window() int { return r.window }

// Stats is that of the Flow.
func (r *Runner[T]) Stats() flow.Stats { return r.flow.Stats() }

// unwrap returns f with the caller's value in place of a delivery: the bytes, where they could not be decoded.
func unwrap[T any](f *flow.Failure) *flow.Failure {
	d, ok := f.Value.(*delivery[T])
	if !ok {
		return f
	}
	own := *f
	if d.Err != nil {
		own.Value = d.Raw
	} else {
		own.Value = d.Value
	}
	return &own
}

// handle is the handler of the Flow: it is called for each attempt.
func (r *Runner[T]) handle(ctx context.Context, m flow.Message[*delivery[T]]) error {
	d := m.Value
	run := d.run
	if d.refusal != nil {
		return flow.Permanent(d.refusal)
	}
	if d.suspect {
		if err := r.options.Isolation.Alone(ctx); err != nil {
			return err
		}
		defer r.options.Isolation.LeaveAlone()
		if err := run.tenure.Suspect(ctx, d.Position); err != nil {
			return run.stale(err)
		}
		run.observe(Event{Kind: EventSuspect, Position: d.Position, Key: d.Key})
		// Before another message runs beside: else this one would be blamed for what that does.
		defer func() { _ = run.tenure.Suspect(context.WithoutCancel(ctx), 0) }() // its only error is that the partition is lost
	} else {
		if err := r.options.Isolation.Shared(ctx); err != nil {
			return err
		}
		defer r.options.Isolation.Leave()
	}
	if err := run.check(d); err != nil { // after all that may have taken time
		return flow.Permanent(err)
	}
	err := r.handler(run.contextOf(ctx, d), flow.Message[T]{
		Seq: m.Seq, Key: m.Key, Value: d.Value, Attempt: m.Attempt, Pressured: m.Pressured,
	})
	if err == nil {
		run.settled()
	}
	return err
}

// onFailure is the OnFailure of the Flow.
func (r *Runner[T]) onFailure(ctx context.Context, f *flow.Failure) flow.FailureAction {
	d, ok := f.Value.(*delivery[T])
	if !ok {
		return flow.FailStream
	}
	run := d.run
	if err := run.check(d); err != nil {
		run.end(err)
		return flow.FailStream
	}
	action := flow.FailStream
	ctx = run.contextOf(ctx, d)
	poison, isPoison := errors.AsType[*PoisonError](f.Err)
	if isPoison {
		run.observe(Event{Kind: EventPoison, Position: d.Position, Key: d.Key, Err: poison})
	}
	switch {
	case r.options.Flow.OnFailure != nil:
		action = r.options.Flow.OnFailure(ctx, unwrap[T](f))
	case isPoison && run.DeadLetters != nil:
		action = flow.SkipMessage
	}
	switch action {
	case flow.SkipMessage:
	case flow.SkipKey:
		run.end(errSkipKey)
		return flow.FailStream
	default:
		return flow.FailStream
	}
	if run.DeadLetters != nil {
		if err := run.bury(ctx, d, f); err != nil {
			run.end(err)
			return flow.FailStream
		}
	}
	d.skipped = true
	run.settled()
	return flow.SkipMessage
}
