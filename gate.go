package flow

import (
	"context"
	"fmt"
	"sync"
)

// Gate is the single point of admission. It keeps order, capacity and shutdown together: a message passes when its turn
// has come and it has a slot. It executes nothing, retries nothing and interprets no failure.
//
// Its three parts don't know each other. Used with a [Receiver] they decide about the messages of its streams; used
// directly, Admit decides about its callers, and both share order (with ScopeFlow), capacity and shutdown.
type Gate struct {
	// A Gate has no state of its own and no goroutine. A shard does not call Admit: it takes the parts one by one, since a
	// message waits for its turn in a lane and for its slot in a ready queue, and neither may block the shard.
	ordering OrderingResolver
	pressure *PressureController
	shutdown *ShutdownCoordinator
}

// NewGate joins the parts. nil means: no order, unlimited, never shut down.
func NewGate(ordering OrderingResolver, pressure *PressureController, shutdown *ShutdownCoordinator) *Gate {
	if r, ok := ordering.(*laneResolver); ok && r == nil {
		ordering = nil
	}
	if pressure == nil {
		pressure = NewPressureController(BackpressureOptions{})
	}
	return &Gate{ordering: ordering, pressure: pressure, shutdown: shutdown}
}

// Admission is the permission to run, until its Release. Copies are the same Admission.
type Admission struct{ a *admission }

// Pressured says that it was given although capacity was exhausted (BackpressureSoftAllowWithSignal only).
func (a Admission) Pressured() bool { return a.a != nil && a.a.pressured }

// Release gives the slot and the turn back. More than once is harmless, and so is releasing the zero Admission.
func (a Admission) Release() {
	if a.a != nil {
		a.a.end()
	}
}

// admission is a direct caller's way through a Gate. It belongs to a ShutdownCoordinator from before its wait to its end.
//
// key, pressured and release are written by the goroutine in Admit before the Admission is handed out, and only read after
// that. What stands below mu says where it is: it waits, then either runs or is refused, and is over once. stop, cut and
// close come from the coordinator, at any time; a Release from any goroutine.
type admission struct {
	gate      *Gate // nil: from a PressureController alone
	pressure  *PressureController
	key       string
	pressured bool
	release   ReleaseFunc // of the turn; may be nil

	mu      sync.Mutex
	cancel  context.CancelCauseFunc // ends the wait
	refused bool                    // the wait was ended by a Shutdown without drain, a cut or a Close
	running bool                    // the wait is over and the caller runs
	over    bool                    // released
}

// Admit blocks until it is key's caller's turn and there is a slot. Callers of one key pass in the order of their
// coming. A refusal for order or pressure comes when Admit is called, never after its turn has come. While it waits it
// fails with FailureContextCancelled when ctx ends, and with FailureShutdown when the coordinator shuts down without
// DrainOnClose. The error is a *Failure. The caller must Release the Admission when it has run: until then it counts as
// running, for capacity, for order and for Shutdown.
func (g *Gate) Admit(ctx context.Context, key string) (Admission, error) {
	if ctx.Err() != nil {
		f := contextFailure(ctx)
		f.Key = key
		return Admission{}, f
	}
	wait, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := &admission{gate: g, pressure: g.pressure, key: key, cancel: cancel}
	// Registered before the wait begins: a Shutdown must find each call that waits, and one that has begun before must refuse it.
	if !g.shutdown.enter(a) {
		return Admission{}, &Failure{Kind: FailureShutdown, Key: key, Err: reasonShutdown}
	}
	// By a deferred function, since a caller's own resolver runs on this goroutine and may panic: an admission that stayed
	// behind would let no Shutdown end.
	passed := false
	defer func() {
		if !passed { // refused, or a caller's own resolver panicked
			g.shutdown.leave(a)
		}
	}()
	if err := g.pass(wait, a); err != nil {
		return Admission{}, err
	}
	if !a.run() {
		a.giveBack()
		return Admission{}, &Failure{Kind: FailureShutdown, Key: key, Err: reasonShutdown}
	}
	passed = true
	return Admission{a}, nil
}

// run ends a's wait. Here it is decided, in one step with close, whether a runs or was refused by the end that came
// meanwhile: once Close has returned, nobody who waited gets in.
//
// Without this step a caller could get in after Close had returned, when its turn came while its wait was being cancelled:
// both cases of a select were ready. A checker of linearizability found it.
func (a *admission) run() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running = !a.refused
	return a.running
}

// pass takes a through order, then pressure. HardReject is asked first, so that a caller which is refused for pressure
// takes no place in the order. If there is no slot in the end, the turn is given back: otherwise the callers behind would
// never get it.
func (g *Gate) pass(ctx context.Context, a *admission) error {
	if g.pressure.rejects() {
		return &Failure{Kind: FailureBackpressure, Key: a.key, Err: reasonNoCapacity}
	}
	fresh, err := g.order(ctx, a)
	if err != nil {
		return shutdownCause(ctx, err)
	}
	a.pressured, err = g.pressure.admit(ctx, fresh)
	if err != nil {
		if a.release != nil {
			a.release()
		}
		return shutdownCause(ctx, pressureFailure(ctx, err, a.key))
	}
	return nil
}

// order waits for the turn. fresh says that there was nothing to wait for.
//
// What waited for its turn was accepted, and may not be refused for pressure any more; it may if it had not to wait. A
// caller's own resolver can't tell, so its callers count as having waited. If wait fails, it has given the place up
// itself.
func (g *Gate) order(ctx context.Context, a *admission) (fresh bool, err error) {
	if g.ordering == nil {
		return true, nil
	}
	r, ok := g.ordering.(*laneResolver)
	if !ok {
		a.release, err = g.ordering.Wait(ctx, a.key)
		if err != nil {
			return false, orderFailure(ctx, err, a.key)
		}
		return false, nil
	}
	w, err := r.join(a.key)
	if err != nil || w == nil {
		return true, err
	}
	fresh = w.first()
	a.release = w.release
	return fresh, r.wait(ctx, w, a.key)
}

// orderFailure makes a Failure of the error of a caller's own resolver. If ctx has ended, that is the reason, whatever the
// resolver makes of it: most return ctx.Err, some wrap it. For a message of a stream, ctx has not ended: stream.blame has
// looked at the stream's own before.
func orderFailure(ctx context.Context, err error, key string) *Failure {
	if ctx.Err() != nil {
		f := contextFailure(ctx)
		f.Key = key
		return f
	}
	f := newFailure(FailureOrdering, fmt.Errorf("%w: %w", reasonOrderError, err))
	f.Key = key
	return f
}

// shutdownCause replaces a failure that the coordinator brought about by cancelling the wait. The wait ends by a context
// in either case, and only the cause tells a client that has gone from a shutdown.
func shutdownCause(ctx context.Context, err error) error {
	if f, ok := context.Cause(ctx).(*Failure); ok && f.failureKind() == FailureShutdown {
		return f
	}
	return err
}

// end gives back what the admission holds, once. leave comes last: until it returns a Shutdown waits, and when that has
// returned slot and turn are free. One from a PressureController alone is not known to any coordinator.
//
// leave is deferred, since the ReleaseFunc of a caller's own resolver may panic: an admission that stayed behind would let
// no Shutdown end.
func (a *admission) end() {
	a.mu.Lock()
	over := a.over
	a.over = true
	a.mu.Unlock()
	if over {
		return
	}
	if a.gate != nil {
		defer a.gate.shutdown.leave(a)
	}
	a.giveBack()
}

// giveBack gives back the slot, then the turn, so that the next in turn finds the slot.
func (a *admission) giveBack() {
	a.pressure.leave()
	if a.release != nil {
		a.release()
	}
}

// stop implements member. Without drain what waits is dropped.
func (a *admission) stop(drain bool) {
	if !drain {
		a.close()
	}
}

// cut implements member. A caller that runs counts, though it can't be ended: the Shutdown does not wait for it any longer
// than cutWait. So does one that waits in a drain. One whose wait has been ended before does not: neither a Shutdown without
// drain nor a Close cuts off what waits, and such a caller may have yet to leave.
func (a *admission) cut() (n int, seq uint64, key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over || a.refused {
		return 0, 0, ""
	}
	a.closeLocked()
	return 1, 0, a.key
}

// close refuses a caller that still waits. One that runs can't be cancelled: its context is its own. It implements member
// too. refused is set under the lock under which run looks, and counts even if the wait's end is seen later than the turn.
func (a *admission) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closeLocked()
}

func (a *admission) closeLocked() {
	if !a.running {
		a.refused = true
		a.cancel(&Failure{Kind: FailureShutdown, Key: a.key, Err: reasonShutdown})
	}
}
