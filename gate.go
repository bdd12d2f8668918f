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
type admission struct {
	gate      *Gate // nil: from a PressureController alone
	pressure  *PressureController
	key       string
	pressured bool
	release   ReleaseFunc // of the turn; may be nil

	mu      sync.Mutex
	cancel  context.CancelCauseFunc // ends the wait
	stopped bool                    // the wait was ended by a Shutdown without drain
	refused bool                    // the wait was ended, by that or by anything else
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
	if !g.shutdown.enter(a) {
		return Admission{}, &Failure{Kind: FailureShutdown, Key: key, Err: reasonShutdown}
	}
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
func (a *admission) run() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running = !a.refused
	return a.running
}

// pass takes a through order, then pressure.
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

// orderFailure makes a Failure of the error of a caller's own resolver.
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

// shutdownCause replaces a failure that the coordinator brought about by cancelling the wait.
func shutdownCause(ctx context.Context, err error) error {
	if f, ok := context.Cause(ctx).(*Failure); ok && f.failureKind() == FailureShutdown {
		return f
	}
	return err
}

// end gives back what the admission holds, once.
func (a *admission) end() {
	a.mu.Lock()
	over := a.over
	a.over = true
	a.mu.Unlock()
	if over {
		return
	}
	a.giveBack()
	if a.gate != nil {
		a.gate.shutdown.leave(a)
	}
}

// giveBack gives back the slot, then the turn, so that the next in turn finds the slot.
func (a *admission) giveBack() {
	a.pressure.leave()
	if a.release != nil {
		a.release()
	}
}

func (a *admission) stop(drain bool) {
	if drain {
		return
	}
	a.close()
	a.mu.Lock()
	a.stopped = !a.running
	a.mu.Unlock()
}

func (a *admission) cut() (n int, seq uint64, key string) {
	a.close()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over || a.stopped && !a.running {
		return 0, 0, ""
	}
	return 1, 0, a.key
}

// close refuses a caller that still waits. One that runs can't be cancelled: its context is its own.
func (a *admission) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.running {
		a.refused = true
		a.cancel(&Failure{Kind: FailureShutdown, Key: a.key, Err: reasonShutdown})
	}
}
