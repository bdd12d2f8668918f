package flow

import (
	"context"
	"slices"
	"sync/atomic"
	"time"
)

// sessionSaver saves the progress of a running stream's session: every so often if it has changed, and at its end.
//
// It has neither a goroutine nor a timer while nothing changes: what is received arms it, and it stays armed for as long
// as something is unsettled. Who has the turn saves; the other waits. A Save that failed may have been done all the same,
// so the next one loads first: if the session still has this stream's epoch and fence, nobody else has it.
type sessionSaver struct {
	calls sessionCalls
	id    SessionID
	every time.Duration
	view  func() (Progress, []string) // what is settled by now, and the keys skipped by then
	// failed is told of each Save that failed; moved, once, that the session is somebody else's. Neither is called after
	// finish has returned.
	failed func(error)
	moved  func(*Failure)

	ctx    context.Context // of the calls
	cancel context.CancelCauseFunc
	armed  atomic.Bool
	timer  *time.Timer
	turn   chan struct{} // has room for one: whoever puts something in it saves, and guards what follows

	saved   SessionState // what the store has
	version uint64       // of that
	unsure  bool         // a Save has failed: whether the store has saved or what came after it is not known
	lost    *Failure     // the session is somebody else's
	over    bool
}

// start begins with a state that the store has in this version.
func (s *sessionSaver) start(state SessionState, version uint64) {
	s.turn = make(chan struct{}, 1)
	s.saved, s.version = state, version
	s.armed.Store(true) // what the client has said may be more than the store has
	s.timer = time.AfterFunc(s.every, s.tick)
}

// touch says that something will have changed.
func (s *sessionSaver) touch() {
	if !s.armed.Load() && s.armed.CompareAndSwap(false, true) {
		s.timer.Reset(s.every)
	}
}

// tick saves what has changed.
func (s *sessionSaver) tick() {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.over || s.lost != nil {
		return
	}
	s.armed.Store(false) // before looking: what comes after it arms again
	progress, keys := s.view()
	changed := s.changed(progress, keys)
	if changed {
		s.save(s.ctx, progress, keys)
	}
	if changed || len(progress.unsettled) > 0 {
		s.touch()
	}
}

// changed reports whether there is something to save.
func (s *sessionSaver) changed(p Progress, keys []string) bool {
	return s.unsure || p.received != s.saved.Progress.received ||
		!slices.Equal(p.unsettled, s.saved.Progress.unsettled) || len(keys) != len(s.saved.GivenUp)
}

// maxSaves bounds how often one Save is tried while the version changes although the session stays this stream's. That is
// so only if a Save that was not waited for any more is done after all.
const maxSaves = 4

// save brings the state into the store, or sees that the session is somebody else's.
func (s *sessionSaver) save(ctx context.Context, p Progress, keys []string) {
	next := SessionState{Epoch: s.saved.Epoch, Fence: s.saved.Fence, Progress: p, GivenUp: keys}
	var err error
	for range maxSaves {
		if s.unsure {
			if err = s.reload(ctx); err != nil || s.lost != nil {
				break
			}
		}
		var version uint64
		version, err = s.calls.save(ctx, s.id, next, s.version)
		if err == nil {
			s.saved, s.version, s.unsure = next, version, false
			return
		}
		s.unsure = true
		if !isError(err, ErrSessionMoved) {
			break
		}
	}
	if s.lost == nil {
		s.failed(err)
	}
}

// reload looks whose the session is.
func (s *sessionSaver) reload(ctx context.Context) error {
	found, err := s.calls.load(ctx, s.id)
	if err != nil {
		return err
	}
	if found.state.Epoch != s.saved.Epoch || found.state.Fence != s.saved.Fence {
		// One that the store has forgotten is nobody else's, but not this stream's any more: its writer may go on.
		s.lost = movedFailure(s.saved.Epoch, max(s.saved.Epoch, found.state.Epoch))
		s.moved(s.lost)
		return nil
	}
	s.saved, s.version, s.unsure = found.state, found.version, false
	return nil
}

// check looks whether the session is somebody else's by now.
func (s *sessionSaver) check() (lost bool) {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.lost == nil && s.reload(s.ctx) != nil {
		return false // it is not known, and the next Save will see
	}
	return s.lost != nil
}

// finish saves for the last time; the stream does nothing any more. It takes at most the time of one call. It returns
// the end of a stream whose session is somebody else's, and the version that the store has; 0 if that is not known.
func (s *sessionSaver) finish() (lost *Failure, version uint64) {
	s.timer.Stop()
	ctx, cancel := context.WithTimeoutCause(s.ctx, s.calls.limit, errStoreTimeout)
	defer cancel()
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done(): // a call is under way that hangs
		s.cancel(context.Cause(ctx))
		s.turn <- struct{}{}
	}
	defer func() { <-s.turn }()
	s.over = true
	if s.lost == nil {
		if progress, keys := s.view(); s.changed(progress, keys) {
			s.save(ctx, progress, keys)
		}
	}
	if s.unsure || s.lost != nil {
		return s.lost, 0
	}
	return nil, s.version
}
