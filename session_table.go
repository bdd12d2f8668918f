package flow

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// sessionTable sees to it that a session has one stream at a time in this process: the next one ends it and waits until
// it is over. So a session has a holder and at most one that waits.
//
// What a newcomer finds decides about it. A lower epoch than the one that counts is refused and disturbs nobody. Else
// the newcomer waits, and whoever waited or held before ends. Which epoch a claim will have is known only when the store
// has said it; until then a claim counts as higher than any epoch that a client can have been given.
//
// The goroutines of the streams' Runs call its methods. None of them but wait blocks, and none calls into a stream while
// mu is held: to end a stream takes locks of its own and may wait for room in a shard's channel. Between processes the
// table knows nothing: there the version in the store decides.
type sessionTable struct {
	mu    sync.Mutex
	slots map[SessionID]*sessionSlot
}

// sessionSlot is a session that a stream has or waits for. It is in the table for as long as it has a holder. There is at
// most one that waits: a newcomer takes its place, since of several streams of one client only the newest has anybody at
// its other end.
type sessionSlot struct{ holder, waiter *sessionTurn }

// sessionTurn is one stream's turn at a session: it waits, holds and leaves. A turn is used once. A waiter that was
// displaced is in no slot any more, so its turn never comes: its end ends its wait. take sets end before the turn enters,
// and any goroutine that displaces the turn, or finds in the store that the session has moved, may call it.
type sessionTurn struct {
	id    SessionID
	epoch uint64         // that of the stream, as far as it is known: a claim's is 0 until it has begun; guarded by mu
	end   func(*Failure) // ends the stream; must not block, and may be called more than once

	came chan struct{} // closed when the turn has come
}

func newSessionTable() *sessionTable { return &sessionTable{slots: map[SessionID]*sessionSlot{}} }

// enter has turn wait for its session. A failure says that it may not.
//
// The streams that turn displaces are ended before enter returns, but are over only later: wait waits for that.
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

// refusesLocked reports whether turn comes with an epoch that counts no more, and which one does. A refused stream
// displaces nobody: otherwise a writer that was deposed, and tries again, would end its successor's stream each time.
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

// displacedLocked is whom turn, which is not refused, ends. A holder whose claim has only begun is let be: whether turn is
// above it will be seen when its epoch is known. Otherwise a deposed writer, which comes with an epoch that it was given
// long ago, could end the very claim that has deposed it.
func (s *sessionSlot) displacedLocked(turn *sessionTurn) (ended displacedTurns) {
	if s.waiter != nil {
		ended.add(s.waiter, turn, s.holder.epoch)
	}
	if turn.epoch == 0 || s.holder.epoch != 0 {
		ended.add(s.holder, turn, s.holder.epoch)
	}
	return ended
}

// displacedTurns are ended without the lock, since that leads into the stream. There are two at most, the waiter and the
// holder, so it needs no memory of its own.
type displacedTurns struct {
	turns [2]struct {
		turn *sessionTurn
		why  *Failure
	}
	n int
}

// add has turn end for next. A claim's epoch is not known yet; it will be above known, the holder's. The number is what a
// client is told, and need only be higher than its own for it to see that another writer has the session.
func (d *displacedTurns) add(turn, next *sessionTurn, known uint64) {
	counts := next.epoch
	if counts == 0 {
		counts = max(known, turn.epoch) + 1
	}
	d.turns[d.n].turn, d.turns[d.n].why = turn, movedFailure(turn.epoch, counts)
	d.n++
}

// tell ends the streams. One that has ended meanwhile, or has been told before, ignores it.
func (d *displacedTurns) tell() {
	for _, e := range d.turns[:d.n] {
		e.turn.end(e.why)
	}
}

// wait waits until the session's earlier stream is over, at most for limit. It returns what ended ctx, if that did.
//
// The earlier stream is over when its Run has called leave, its last Save included, and not when it was told to end: so
// its handlers have returned. One that does not heed its context keeps the session, and the newcomer is refused after
// limit rather than run beside it.
func (t *sessionTable) wait(ctx context.Context, turn *sessionTurn, limit time.Duration) *Failure {
	select {
	case <-turn.came:
		return endOfContext(ctx)
	default:
	}
	// Most streams find their session free: they make no timer.
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

// endOfContext is the failure that ended ctx; nil if it has not ended. A Failure among the causes is flow's own decision,
// such as a shutdown or another stream that takes the session, and is what the client must see.
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
//
// It is called once a turn, by its Run, when the epoch is in the store. Only a claim has anything to decide here; for it,
// a waiter that came with an epoch was let in undecided. The waiter is ended outside the lock: it may have been displaced
// meanwhile, and then has been ended already.
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

// leave ends turn, whether it holds the session, waits for it or never came in: the next one's has come. A turn that was
// refused or displaced is in no slot, and nothing changes. The next stream's Run is woken by the close, when the session
// is its own already.
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

// sessionSaver saves the progress of a running stream's session: every so often if it has changed, and at its end.
//
// It has neither a goroutine nor a timer while nothing changes: what is received arms it, and it stays armed for as long
// as something is unsettled. So streams at which nothing happens cost no wake-ups.
//
// Three goroutines meet here: that of the timer (tick), workers (check) and Run's (start, finish). The one with the turn saves;
// the others wait. The turn is a channel and not a mutex, because it is held during calls of the store, which may sleep,
// and during an answer of the shard: a contended mutex that is held so long freezes a synctest bubble, and finish could
// not stop waiting for it. The reader only calls touch, which never waits.
//
// A Save that failed may have been done all the same, so the next one loads first: if the session still has this stream's
// epoch and fence, nobody else has it.
type sessionSaver struct {
	calls sessionCalls
	id    SessionID
	every time.Duration
	view  func() (Progress, []string) // what is settled by now, and the keys skipped by then
	// failed is told of each Save that failed; ends, why the stream must end: the session is somebody else's, or may be. Neither
	// is called after finish has returned.
	failed func(error)
	ends   func(*Failure)

	// armed means that tick will come, or is at work and has yet to look. It lets touch, which the reader calls for each
	// message, do with one load in most cases.
	ctx    context.Context // of the calls
	cancel context.CancelCauseFunc
	armed  atomic.Bool
	timer  *time.Timer
	turn   chan struct{} // has room for one: whoever puts something in it saves, and guards what follows

	saved   SessionState // what the store has
	version uint64       // of that
	unsure  bool         // a Save has failed: whether the store has saved or what came after it is not known
	lost    *Failure     // the session is somebody else's
	unknown bool         // the store could not say whose the session is, for which the stream ends
	over    bool
}

// start begins with a state that the store has in this version. It is called before the reader starts, since touch needs
// the timer.
func (s *sessionSaver) start(state SessionState, version uint64) {
	s.turn = make(chan struct{}, 1)
	s.saved, s.version = state, version
	s.armed.Store(true)  // what the client has said may be more than the store has
	s.turn <- struct{}{} // the first tick, which uses the timer too, comes after this
	s.timer = time.AfterFunc(s.every, s.tick)
	<-s.turn
}

// touch says that something will have changed. The reader calls it for each message that is not a duplicate, and tick
// calls it for what has yet to be settled. Of several callers one arms the timer. After finish it may arm it once more,
// for a reader may leave recv late: tick then sees that all is over.
func (s *sessionSaver) touch() {
	if !s.armed.Load() && s.armed.CompareAndSwap(false, true) {
		s.timer.Reset(s.every)
	}
}

// tick saves what has changed. The timer runs it, so it may block: for the turn, for the shard, which answers view, and
// for the store.
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
	// What is unsettled will be settled without anything being received, and touch is called by the reader alone. After a
	// Save there is one more tick, which finds nothing changed and lets the saver rest; after one that failed it is the
	// next attempt.
	if changed || len(progress.unsettled) > 0 {
		s.touch()
	}
}

// changed reports whether there is something to save. Skipped keys only become more during a stream, so their number says
// whether there are new ones. Their order is that of a map and means nothing.
func (s *sessionSaver) changed(p Progress, keys []string) bool {
	return s.unsure || p.received != s.saved.Progress.received ||
		!slices.Equal(p.unsettled, s.saved.Progress.unsettled) || len(keys) != len(s.saved.GivenUp)
}

// maxSaves bounds how often one Save is tried while the version changes although the session stays this stream's. That is
// so only if a Save that was not waited for any more is done after all.
const maxSaves = 4

// save brings the state into the store, or sees that the session is somebody else's. The caller has the turn.
//
// ErrSessionMoved alone does not mean that another stream has it: the version also moves when a Save of this stream's was
// given up by callStore and done later. So whatever a Save has failed with, the session is loaded before the next one, and
// only epoch and fence decide.
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
		// From here on the store may have either version, until a Load or a Save has said so.
		s.unsure = true
		if !isError(err, ErrSessionMoved) {
			break
		}
	}
	if s.lost == nil {
		s.failed(err)
	}
}

// reload looks whose the session is. The caller has the turn. If it still is this stream's, what was loaded is what the
// next Save is compared with; otherwise the stream is ended, and nothing of it is saved any more.
func (s *sessionSaver) reload(ctx context.Context) error {
	found, err := s.calls.load(ctx, s.id)
	if err != nil {
		return err
	}
	if found.state.Epoch != s.saved.Epoch || found.state.Fence != s.saved.Fence {
		// One that the store has forgotten is nobody else's, but not this stream's any more: its writer may go on.
		s.lost = movedFailure(s.saved.Epoch, max(s.saved.Epoch, found.state.Epoch))
		s.ends(s.lost)
		return nil
	}
	s.saved, s.version, s.unsure = found.state, found.version, false
	return nil
}

// check reports whether the session is somebody else's by now. It is called by a worker, whose handler has seen that in
// the store, and blocks for a Save under way and for a Load. If that fails, the stream ends for the failure of the store: its
// client comes again. Once the message was taken for one that had failed instead, and OnFailure might settle what had never
// happened; and of many handlers each waited for a store that hung.
func (s *sessionSaver) check() (over bool) {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.lost == nil && !s.unknown {
		if err := s.reload(s.ctx); err != nil {
			s.unknown = true
			s.ends(storeFailure(err))
		}
	}
	return s.lost != nil || s.unknown
}

// finish saves for the last time; the stream does nothing any more. It takes at most the time of one call, and as long as
// the Observer takes that is told of a Save that failed: one that hangs there holds up the end of its stream, as it does in
// any other event, since none may run once the stream is over. It returns
// the end of a stream whose session is somebody else's, and the version that the store has; 0 if that is not known.
//
// When the store hangs, the call under way is given up after that time, so that Run returns; it may still be done, so no
// version is returned, and the next stream raises the fence. No Save follows, and failed and ends are not called again,
// once over is set under the turn.
func (s *sessionSaver) finish() (lost *Failure, version uint64) {
	s.timer.Stop()
	ctx, cancel := context.WithTimeoutCause(s.ctx, s.calls.limit, errStoreTimeout)
	defer cancel()
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done(): // a call is under way that hangs
		// This ends the wait for the store at once, and the call that has the turn gives it back.
		s.cancel(context.Cause(ctx))
		s.turn <- struct{}{}
	}
	defer func() { <-s.turn }()
	s.over = true
	s.timer.Stop() // a tick that was under way may have armed it again
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

// settledBefore says which of a session's messages were settled when its stream began. It is not changed.
//
// What is settled is three things in one: the numbers that the store has, those below the stream's first, and those that
// the client gave up. Of the numbers up to last all are settled but the holes; above it only what the client gave up
// ahead is, for a hole is kept for each number that is not, and there may be 2^62 in between. The client repeats those
// until they are committed.
//
// It is made by load and then shared: the reader asks it for each message, the shard and the saver for progress. So it
// needs no lock. Nothing is kept for each settled number: a session of a million messages without holes takes no more than
// one that is new, and a stream adds MaxPending holes at most, which is why New refuses a negative MaxPending with
// Sessions.
type settledBefore struct {
	first uint64   // the stream's first number
	last  uint64   // the highest that the session knows of; at least first-1
	holes []uint64 // of first..last, ascending: not settled
	ahead []uint64 // above last+1, ascending: settled
}

// mergeSettled joins what the store has with what the client says. skip ascends and has nothing below first. A hole is
// closed only by what the client says, never by guessing: a number that is not known to be settled runs again.
func mergeSettled(stored Progress, first uint64, skip []uint64) settledBefore {
	b := settledBefore{first: first, last: max(stored.received, first-1)}
	from, _ := slices.BinarySearch(stored.unsettled, first) // what is below first counts as settled
	for _, hole := range stored.unsettled[from:] {
		if _, skipped := slices.BinarySearch(skip, hole); !skipped {
			b.holes = append(b.holes, hole)
		}
	}
	above, found := slices.BinarySearch(skip, b.last)
	if found {
		above++
	}
	b.last, b.ahead = swallow(b.last, skip[above:])
	return b
}

// swallow raises last by the numbers of ahead that follow it at once. It keeps the invariant that ahead begins above
// last+1, without which last would not be the highest number that is known.
func swallow(last uint64, ahead []uint64) (uint64, []uint64) {
	for len(ahead) > 0 && ahead[0] == last+1 {
		last, ahead = ahead[0], ahead[1:]
	}
	return last, ahead
}

// settled reports whether the message with this number was settled before: it is a duplicate. The reader calls it for each
// message of a session. Most are above last with nothing ahead, and cost two comparisons.
func (b *settledBefore) settled(seq uint64) bool {
	if seq > b.last {
		if len(b.ahead) == 0 {
			return false
		}
		_, ahead := slices.BinarySearch(b.ahead, seq)
		return ahead
	}
	_, hole := slices.BinarySearch(b.holes, seq)
	return !hole
}

// progress is the session's once the stream has received all of first..highest, of which open, ascending, are not settled.
// highest is first-1 if it has received nothing. The holes above highest are those that the stream has yet to come by: the
// client still has to send them. Open numbers are all below these, so joining the two keeps them ascending.
func (b *settledBefore) progress(highest uint64, open []uint64) Progress {
	from, _ := slices.BinarySearch(b.holes, highest+1) // those the stream came by are settled or open
	holes := b.holes[from:]
	p := Progress{received: b.known(highest)}
	if n := len(open) + len(holes); n > 0 {
		p.unsettled = slices.Concat(open, holes)
	}
	return p
}

// known is the highest number that the session knows of once the stream has received highest. What the client gave up
// ahead counts as soon as nothing unknown lies before it.
func (b *settledBefore) known(highest uint64) uint64 {
	last := max(b.last, highest)
	if len(b.ahead) == 0 {
		return last
	}
	above, found := slices.BinarySearch(b.ahead, last)
	if found {
		above++
	}
	last, _ = swallow(last, b.ahead[above:])
	return last
}

// through is up to where all of the session's messages are settled, if all of the stream's are up to committed, of which
// it has received highest. If something that was received is unsettled, the stream's own count says all; otherwise the
// next hole ends it. It makes no list, so the shard may call it at each count.
func (b *settledBefore) through(committed, highest uint64) uint64 {
	if committed < highest {
		return committed
	}
	if from, _ := slices.BinarySearch(b.holes, highest+1); from < len(b.holes) {
		return b.holes[from] - 1
	}
	return b.known(highest)
}
