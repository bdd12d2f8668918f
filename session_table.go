package flow

import (
	"context"
	"sync"
	"time"
)

// sessionTable sees to it that a session has one stream at a time in this process: the next one ends it and waits until
// it is over. So a session has a holder and at most one that waits.
//
// What a newcomer finds decides about it. A lower epoch than the one that counts is refused and disturbs nobody. Else
// the newcomer waits, and whoever waited or held before ends. Which epoch a claim will have is known only when the store
// has said it; until then a claim counts as higher than any epoch that a client can have been given.
type sessionTable struct {
	mu    sync.Mutex
	slots map[SessionID]*sessionSlot
}

// sessionSlot is a session that a stream has or waits for.
type sessionSlot struct{ holder, waiter *sessionTurn }

// sessionTurn is one stream's turn at a session: it waits, holds and leaves.
type sessionTurn struct {
	id    SessionID
	epoch uint64         // that of the stream, as far as it is known: a claim's is 0 until it has begun; guarded by mu
	end   func(*Failure) // ends the stream; must not block, and may be called more than once

	came chan struct{} // closed when the turn has come
}

func newSessionTable() *sessionTable { return &sessionTable{slots: map[SessionID]*sessionSlot{}} }

// enter has turn wait for its session. A failure says that it may not.
func (t *sessionTable) enter(turn *sessionTurn) *Failure {
	t.mu.Lock()
	slot := t.slots[turn.id]
	if slot == nil {
		t.slots[turn.id] = &sessionSlot{holder: turn}
		close(turn.came)
		t.mu.Unlock()
		return nil
	}
	if counts, refused := slot.refusesLocked(turn); refused {
		t.mu.Unlock()
		return movedFailure(turn.epoch, counts)
	}
	ended := slot.displacedLocked(turn)
	slot.waiter = turn
	t.mu.Unlock()
	ended.tell()
	return nil
}

// refusesLocked reports whether turn comes with an epoch that counts no more, and which one does.
func (s *sessionSlot) refusesLocked(turn *sessionTurn) (counts uint64, refused bool) {
	switch {
	case turn.epoch == 0: // the last claim wins
		return 0, false
	case s.waiter != nil && s.waiter.epoch == 0: // it is a claim, and so above all that is known
		return max(s.holder.epoch, turn.epoch) + 1, true
	}
	counts = s.holder.epoch
	if s.waiter != nil {
		counts = max(counts, s.waiter.epoch)
	}
	return counts, turn.epoch < counts
}

// displacedLocked is whom turn, which is not refused, ends. A holder whose claim has only begun is let be: whether turn
// is above it will be seen when its epoch is known.
func (s *sessionSlot) displacedLocked(turn *sessionTurn) (ended displacedTurns) {
	if s.waiter != nil {
		ended.add(s.waiter, turn, s.holder.epoch)
	}
	if turn.epoch == 0 || s.holder.epoch != 0 {
		ended.add(s.holder, turn, s.holder.epoch)
	}
	return ended
}

// displacedTurns are ended without the lock, since that leads into the stream.
type displacedTurns struct {
	turns [2]struct {
		turn *sessionTurn
		why  *Failure
	}
	n int
}

// add has turn end for next. A claim's epoch is not known yet; it will be above known, the holder's.
func (d *displacedTurns) add(turn, next *sessionTurn, known uint64) {
	counts := next.epoch
	if counts == 0 {
		counts = max(known, turn.epoch) + 1
	}
	d.turns[d.n].turn, d.turns[d.n].why = turn, movedFailure(turn.epoch, counts)
	d.n++
}

func (d *displacedTurns) tell() {
	for _, e := range d.turns[:d.n] {
		e.turn.end(e.why)
	}
}

// wait waits until the session's earlier stream is over, at most for limit. It returns what ended ctx, if that did.
func (t *sessionTable) wait(ctx context.Context, turn *sessionTurn, limit time.Duration) *Failure {
	select {
	case <-turn.came:
		return endOfContext(ctx)
	default:
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-turn.came:
		return endOfContext(ctx)
	case <-ctx.Done():
		return endOfContext(ctx)
	case <-timer.C:
		return busyFailure()
	}
}

// endOfContext is the failure that ended ctx; nil if it has not ended.
func endOfContext(ctx context.Context) *Failure {
	if ctx.Err() == nil {
		return nil
	}
	if f, ok := context.Cause(ctx).(*Failure); ok {
		return f
	}
	return contextFailure(ctx)
}

// began sets down the epoch of turn, which holds the session, and decides about one that waited for it to be known.
func (t *sessionTable) began(turn *sessionTurn, epoch uint64) {
	t.mu.Lock()
	known := turn.epoch != 0
	turn.epoch = epoch
	next, nextEpoch := t.slots[turn.id].waiter, uint64(0)
	if next != nil {
		nextEpoch = next.epoch
	}
	t.mu.Unlock()
	switch {
	case known, nextEpoch == 0: // decided when the next one came, or there is none
	case nextEpoch < epoch:
		next.end(movedFailure(nextEpoch, epoch))
	default:
		turn.end(movedFailure(epoch, nextEpoch))
	}
}

// leave ends turn, whether it holds the session, waits for it or never came in: the next one's has come.
func (t *sessionTable) leave(turn *sessionTurn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slot := t.slots[turn.id]
	switch {
	case slot == nil:
	case slot.waiter == turn:
		slot.waiter = nil
	case slot.holder == turn && slot.waiter == nil:
		delete(t.slots, turn.id)
	case slot.holder == turn:
		slot.holder, slot.waiter = slot.waiter, nil
		close(slot.holder.came)
	}
}
