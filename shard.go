package flow

import (
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// shard is a goroutine that owns, without a lock, what its streams have under way: lanes, ready queues, retries, counts
// and ends. Everything reaches it by one typed channel: a stream has mail, a run is back, or a request. (A select of a
// channel for each took 400 ns a wait.) It never waits for anybody else: the caller's code runs in workers, and a worker
// always has room for the run that it is given. So nothing that the caller's code does can stop it, and who sends to it is
// never stuck. Its goroutine is that of a worker, which runs quick messages itself between two of the shard's steps, and is
// replaced if one of them stands still: see lead.
//
// Shards belong to a Receiver and exist while streams do.
//
// All methods run in its goroutine but for startShard, rings, which runs in the timer's, and handOver. Which goroutine that
// is may change between two of them, while it runs messages. So each of them may look at all of a stream's backlog, none
// may call the caller's code, and none may send to events, since a shard whose channel is full would wait for itself.
//
// It ends with its last user: a stream, a request that counts as one, or a wait for a slot. over is set where the last user
// leaves, and is the shard's alone. No request is left without an answer: it is a user itself, or its caller waits for the
// stream's done as well.
type shard[T any] struct {
	r     *Receiver[T]
	users int // guarded by r.mu: streams, and what else needs the goroutine
	over  bool

	events     chan event[T]
	granted    grants[T]
	epoch      time.Time
	processors int // as it was started: to ask the runtime takes a lock of all its threads
	alarm      alarm

	queues[T]
	backoff backoff[T]
	free    messageCache[T]

	mailRuns[T]
	crew    crew[T]
	runs    runSet[T]
	pace    pace
	slots   slots
	batches *batches[T] // nil: each message runs by itself
	sent    int         // runs since the shard last let others run
	blind   int         // runs since it last did what it does before it sleeps
}

// queues are the streams of a shard for which there is something to do.
type queues[T any] struct {
	mail   ring[T]      // those whose mailbox may have something
	turns  ring[T]      // those that have something ready
	direct ring[T]      // those in mail that are direct, and some that were
	nready int          // messages in all ready queues
	gone   int          // streams that have ended in one of these since they were last looked through
	look   []*stream[T] // those that have changed since the last flush
	owed   []*stream[T] // those whose readers wait for less room than is worth waking them for

	owedFrom time.Duration // when the first of these was seen; unset if there is none
}

// event is what a shard is told: one of these. Readers, Run's goroutine, sessions and shutdowns send mail; workers send
// back; a caller that needs an exact view of a stream sends do, and so does a goroutine that has waited for a slot or for a
// resolver. All of them may wait for room, since the shard never waits for them. Only the timer and a goroutine that hands
// over a turn do not.
type event[T any] struct {
	mail *stream[T] // it has something in its mailbox, which was empty, or its state has changed
	back *run[T]    // its worker gives it back
	do   func()     // a request. It must not block
}

const (
	eventsLength = 64
	lookTime     = 500 * time.Microsecond // the longest time between looks at long runs; on an idle Linux 1 ms
	lookRuns     = 64                     // and the most runs between two, of a shard that does not sleep
)

// startShard is called by Receiver.enter for the first user, with r.mu held, so that no two of them take the same place.
func startShard[T any](r *Receiver[T]) *shard[T] {
	sh := &shard[T]{
		r: r, epoch: time.Now(), processors: runtime.GOMAXPROCS(0), events: make(chan event[T], eventsLength),
		pace: r.pace, slots: slots{p: r.gate.pressure},
	}
	sh.crew.sh, sh.crew.lead.sh, sh.mailRuns = sh, sh, mailRuns[T]{sh}
	sh.owedFrom = unset
	sh.batches = newBatches(sh, r.batching)
	sh.alarm.fire = sh.rings
	go (&worker[T]{sh: sh}).work()
	return sh
}

// clock is the time of all that is due, and of the workers' measurements. A stream has another, which begins with it.
func (sh *shard[T]) clock() time.Duration { return time.Since(sh.epoch) }

// after returns when d will be over. A wait for as long as there is has no end, and not one before it begins.
func (sh *shard[T]) after(d time.Duration) time.Duration {
	now := sh.clock()
	return now + min(d, math.MaxInt64-now)
}

// next does one thing after the other until there is a run for the shard's own goroutine, which it returns, or until there
// are no users any more, when it returns nil. What has come is heeded first, since it settles messages and gives turns: then
// a run is filled with all that may run by now. What can't run yet stays in the mailboxes, but for some that a run lines up for
// the next one, until there is nothing to heed and nothing to send: then some of it, or all of direct streams, is lined up, and
// only then does the shard sleep.
func (sh *shard[T]) next() *run[T] {
	for !sh.over {
		if sh.poll() {
			continue
		}
		if sh.blind >= lookRuns {
			sh.catchUp()
		}
		if sh.dispatch() {
			if r := sh.crew.lead.run; r != nil {
				return r
			}
			continue
		}
		// To yield once here spares a lone message 0.3 µs: its worker often is back before the shard would have slept, and
		// need not wake it. Where runs take long the shard sleeps at once, and is woken by the first that is back: a goroutine
		// that has yielded runs behind all others, by when all runs were back and a processor had gone to sleep for lack of
		// them.
		if sh.sent > 0 && (len(sh.runs.long) == 0 || sh.pace.each <= swiftTime) {
			sh.sent = 0
			runtime.Gosched()
			if len(sh.events) > 0 {
				continue
			}
		}
		if !sh.lineUpIdle() {
			sh.wait()
		}
	}
	// The streams are done, and yet workers may hold runs of theirs that were taken back whole. Their slots are still
	// counted, and only a worker that is back can be told to end.
	for sh.runs.out > 0 { // they were recalled before they were claimed
		sh.heed(<-sh.events)
	}
	sh.slots.trim(0)
	sh.alarm.stop()
	sh.crew.lead.stop()
	sh.free.empty(&sh.r.messages)
	sh.crew.end()
	return nil
}

// takeOver makes the calling goroutine the shard's. The one that led runs r, and gives it back when it is done, like any
// worker. If it stands still, what is behind its message is recalled, and long runs of others are looked at.
func (sh *shard[T]) takeOver(r *run[T], stands bool) {
	if stands {
		at := r.at.Load()
		sh.settleUpTo(r, at)
		sh.pace.stoodStill(sh.hashAt(r, at))
		if r.kind == runMail || len(r.list) > 1 {
			sh.runs.forget(r)
			sh.recall(r)
		}
		sh.recallStuck()
	}
	(&worker[T]{sh: sh}).work()
}

// lookAgain has the shard do, before its next dispatch, what it does before it sleeps, if it has run messages itself for so long
// that it might not have. Long runs are looked at by that.
func (sh *shard[T]) lookAgain(now time.Duration) {
	if l := &sh.crew.lead; now >= l.again {
		l.again = now + lookTime
		sh.blind = lookRuns
	}
}

// heed does what e asks for. An event that asks for nothing only wakes the shard: from a turn that was handed over, or from
// a reader that begins to wait, after which a batch may not have to linger any more.
func (sh *shard[T]) heed(e event[T]) {
	switch {
	case e.back != nil:
		sh.runBack(e.back)
	case e.mail != nil:
		sh.attend(e.mail)
	case e.do != nil:
		e.do()
	}
}

// poll heeds what has come, without waiting. It reports whether there was anything, so that the shard polls until nothing
// more has come before it fills runs. flush comes after all of it, so that a reader is woken once for many messages.
//
// Grants are looked at each time, and after the events: a handOver that has found no room for its event relies on it.
func (sh *shard[T]) poll() (some bool) {
	for {
		select {
		case e := <-sh.events:
			sh.heed(e)
			some = true
			continue
		default:
		}
		for _, m := range sh.granted.take() {
			sh.grant(m)
			some = true
		}
		sh.flush()
		return some && !sh.over
	}
}

// wait blocks until something comes. Before that it looks at the runs that are out, since what stands still now may do so
// for long, and it gives back what it holds for itself: slots that are in no run, which others may wait for, and its place
// in the semaphore's queue for one more, if it has nothing to run.
//
// The alarm is armed last. If it fires from here on, its event either finds room and ends the wait, or finds the channel
// full, in which case there is no wait.
func (sh *shard[T]) wait() {
	if sh.over || sh.recallStuck() {
		return
	}
	sh.wakeOwed()
	if !sh.r.gate.pressure.refuses() { // there each is a ready message's, once dispatch has counted them
		sh.slots.trim(0)
	}
	if !sh.wantsSlot() && !sh.hasMail() {
		sh.slots.stopAsking()
	}
	sh.arm()
	sh.heed(<-sh.events)
}

// catchUp does what a shard otherwise does before it sleeps, or when its alarm wakes it: it has been busy for long. Without
// it a busy shard once armed no alarm for next tries, and woke no reader that was owed little room.
func (sh *shard[T]) catchUp() {
	sh.recallStuck()
	sh.wakeOwed()
	sh.doDue()
	sh.arm()
}

// wakeOwed wakes the readers that wait for less room than is worth waking them for: when no long run is out, which may soon
// make more of it, and else when they have waited for lookTime. A stream is in the list once, however often it has made room
// since.
func (sh *shard[T]) wakeOwed() {
	if len(sh.owed) == 0 {
		return
	}
	if len(sh.runs.long) > 0 {
		now := sh.clock()
		if sh.owedFrom == unset {
			sh.owedFrom = now
		}
		if now-sh.owedFrom < lookTime {
			return
		}
	}
	for i, s := range sh.owed {
		s.backlog.owed = false
		s.window.wake()
		sh.owed[i] = nil
	}
	sh.owed, sh.owedFrom = sh.owed[:0], unset
}

// arm sets the alarm for what is due first. It may leave the alarm at an earlier time than that: what then is not due costs
// one more round of the loop. Its callers have just looked at the long runs, so the next look is due lookTime later.
func (sh *shard[T]) arm() {
	hoards := sh.hoards()
	settled := !hoards || sh.crew.idleFrom > 0 && sh.alarm.isSet(sh.crew.idleFrom+idleTime)
	if len(sh.runs.long) == 0 && len(sh.backoff.waits) == 0 && sh.batches == nil && settled {
		return // to look at the clock takes longer than many a message
	}
	now := sh.clock()
	first, any := time.Duration(0), false
	consider := func(at time.Duration, ok bool) {
		if ok && (!any || at < first) {
			first, any = at, true
		}
	}
	consider(now+lookTime, len(sh.runs.long) > 0)
	consider(sh.backoff.next())
	if hoards {
		consider(sh.crew.next(now), true)
	}
	if b := sh.batches; b != nil {
		consider(b.due, b.forming != nil && b.lingers) // it may be due by now, and then the alarm fires at once
	}
	if any {
		sh.alarm.set(now, first)
	}
}

// rings asks the shard, when the alarm fires, to do what is due. It runs in the timer's goroutine, which must not wait for
// the shard. Once it noted that the channel was full only after it had found it so: a shard that emptied the channel in
// between slept without a timer.
func (sh *shard[T]) rings() {
	sh.alarm.fired.Store(true) // first: if there is no room, it sees that when it sets the alarm before it sleeps
	select {
	case sh.events <- event[T]{do: sh.doDue}:
	default:
	}
}

// doDue does what is due. It is called for the alarm's event, and by catchUp. The look at long runs is not made here: the
// shard looks as soon as it is about to sleep again, and the next time is set by arm.
func (sh *shard[T]) doDue() {
	sh.alarm.rang()
	now := sh.clock()
	for m, batch, ok := sh.backoff.pop(now); ok; m, batch, ok = sh.backoff.pop(now) {
		if batch != nil {
			sh.batches.again = append(sh.batches.again, batch)
		} else {
			sh.resume(m)
		}
	}
	switch {
	case !sh.hoards():
		sh.crew.idleFrom = 0
	case now >= sh.crew.next(now):
		sh.crew.trim()
		sh.free.empty(&sh.r.messages) // a burst leaves nothing behind
		sh.runs.spare = nil
		if sh.batches != nil {
			sh.batches.spare = nil
		}
	}
}

// hoards reports whether sh keeps workers or memory for what may come.
func (sh *shard[T]) hoards() bool {
	return len(sh.crew.idle) > 0 || sh.free.some() || len(sh.runs.spare) > 0
}

// attend is told that s has mail, or that its state has changed. Whatever may let messages of s go on calls it: an event,
// the end of a refusal or of a mail run, a key that is skipped.
//
// A stream that aborts is swept first, so that nothing of it is lined up any more. While a refusal is under way, or a mail
// run reads the mailbox, nothing may be taken out of it; whatever ends that attends to the stream again.
func (sh *shard[T]) attend(s *stream[T]) {
	b := &s.backlog
	if b.ended {
		return
	}
	if s.state.phase() == phaseAborting {
		sh.sweep(s)
	}
	if sh.batches != nil {
		sh.batches.endCalls(s)
	}
	switch {
	case b.swept || b.refusing || b.mailRun != nil: // later
	case sh.batches != nil:
		sh.lineUpAll(s)
	default:
		if !b.inMail {
			b.inMail = true
			sh.mail.push(s)
		}
		if b.direct {
			sh.lineUpSoon(s)
		}
	}
	sh.touch(s)
}

// touch has flush look at s. It must be called whenever a count of s or its phase has changed: only flush tells the reader
// of room, and only flush ends a stream.
func (sh *shard[T]) touch(s *stream[T]) {
	if !s.backlog.touched {
		s.backlog.touched = true
		sh.look = append(sh.look, s)
	}
}

// flush tells readers and others what has finished, and ends the streams of which everything has. It is called once
// after many events or runs, so that what readers look at is written once for all of them. Between two calls, what others
// see of s may be behind the ledger, never ahead of it.
func (sh *shard[T]) flush() {
	for i, s := range sh.look {
		sh.look[i] = nil
		b := &s.backlog
		b.touched = false
		finished := b.ledger.finished()
		// This comes before finished is stored: Run looks at the time of the last finish if it sees that everything has
		// finished, and would otherwise take a stream that has just become idle for one that has been idle for long.
		if sh.r.idle > 0 && finished != s.window.finished.Load() {
			s.activity.noted(s.clock())
		}
		// finished is stored before makeRoom looks whether the reader waits. The reader says that it waits before it looks
		// at finished once more, so that one of the two sees the other.
		s.window.finished.Store(finished)
		s.window.linedUp.Store(b.ledger.received)
		if b.bytes > 0 && s.window.share != nil {
			s.window.share.sub(b.bytes)
		}
		b.bytes = 0
		s.committed.Store(s.through(b.ledger.committed(b.firstPending())))
		switch {
		case b.ended:
		case s.state.phase() != phaseOpen && s.box.closeAt(finished):
			// It is the mailbox's count that matters, since the ledger does not know yet of what still lies there, and that
			// runs too unless the stream aborts. To count and to close is one step: who fails a stream changes its phase
			// first, and recv may return a message before the mailbox is closed.
			sh.end(s)
		default:
			sh.makeRoom(s)
			if b.live.first == nil && b.mailRun == nil && b.chunk == nil { // otherwise it would soon grow again
				s.order.trim()
			}
		}
	}
	sh.look = sh.look[:0]
}

// makeRoom wakes s's reader if it waits for room and there is enough. For less it is woken soon: see wakeOwed. Otherwise the
// places that a stuck key leaves would not be used. It is called after finished has been stored.
func (sh *shard[T]) makeRoom(s *stream[T]) {
	w := &s.window
	if !w.waiting.Load() {
		return
	}
	if pending := s.box.total() - w.finished.Load(); pending == 0 || pending+w.batch() <= w.limit {
		w.wake()
	} else if !s.backlog.owed {
		s.backlog.owed = true
		sh.owed = append(sh.owed, s)
	}
}

// end ends s: everything has finished, and nothing more comes. flush calls it, once for each stream. From the moment that
// done is closed anybody may read the backlog, so that nothing of it is written any more but for the flags of the shard's
// own lists. A reader that waits for room is woken, and sees that there is nothing to be read. One that is blocked in recv
// is left alone: what it still gets finds the mailbox shut.
//
// To leave comes last, since with the last stream the shard ends.
func (sh *shard[T]) end(s *stream[T]) {
	s.backlog.ended = true
	s.state.finishedAll()
	s.box.close()
	s.cancel(nil)
	s.order.trim()
	s.window.signal()
	sh.forget(s)
	close(s.done)
	sh.over = sh.r.leave(sh)
}

// forget sees to it that the rings do not keep s alive, which has ended: whoever looks there may do so much later, when
// there is a slot. To look through them costs as much as there is in them, so it is done once so many streams have ended
// there that at most half of what is left may be ended ones: two steps for each stream, however many end at once.
func (q *queues[T]) forget(s *stream[T]) {
	if !s.backlog.inMail && !s.backlog.inTurns && !s.backlog.inDirect {
		return
	}
	if q.gone++; 2*q.gone < q.mail.len()+q.turns.len()+q.direct.len() {
		return
	}
	q.gone = 0
	lives := func(s *stream[T]) bool { return !s.backlog.ended }
	q.mail.keep(lives)
	q.turns.keep(lives)
	q.direct.keep(lives)
}

// sweep drops everything of s that has not begun. attend calls it as soon as the stream aborts, and it does its work once.
// First it shuts all ways in: the mailbox, the waits for a caller's own resolver, and what the runs that are out still have
// before them. What is left then has one place each: in live, or in the mailbox, which is accepted to be counted as dropped.
//
// It does not wait: what runs comes back to runBack, or to answered, which see that the stream has been swept and end it
// there.
func (sh *shard[T]) sweep(s *stream[T]) {
	b := &s.backlog
	if b.swept {
		return
	}
	b.swept = true
	s.box.close()
	s.order.end()
	s.window.signal()
	sh.recallAll(s)
	kind := s.abortKind()
	r := sh.runs.new(runFinish)
	sh.nready -= b.ready.n
	b.ready = messageQueue[T]{}
	for m := b.live.last; m != nil; {
		before := m.prevLive
		switch m.state {
		case stateOut, stateAsking: // they come back
			m = before
			continue
		case stateBackoff:
			sh.backoff.remove(m)
		case stateWaiting:
			// To see that it waits, and to take it out, must be one step. It was two once: in a lane shared with others the
			// turn came in between, and both the sweep and the goroutine that passed the turn on brought the message to its
			// end. If cancelWait finds that it has its turn by now, settle passes that on.
			s.order.cancelWait(&m.turn, m.hash)
		case stateForming, stateHeld:
			sh.batches.takeOut(m)
		}
		m.abort(kind)
		r.add(m)
		m = before
	}
	if sh.batches != nil {
		sh.batches.closeGaps()
	}
	for i, j := 0, len(r.list)-1; i < j; i, j = i+1, j-1 { // drops are told in order of receipt
		r.list[i], r.list[j] = r.list[j], r.list[i]
	}
	for e := b.next(&s.box, &sh.r.chunks); e != nil; e = b.next(&s.box, &sh.r.chunks) {
		m := sh.accept(s, e)
		m.abort(kind)
		r.add(m)
	}
	sh.finish(r)
}

// keep makes the caller a user of sh for as long as a request of its own is under way. leave ends that. The shard calls it
// for itself when a goroutine of its own begins to wait for a slot.
func (sh *shard[T]) keep() {
	sh.r.mu.Lock()
	defer sh.r.mu.Unlock()
	sh.users++
}

// alarm is a shard's one timer, for everything that is due: looks at long runs, next tries, workers without work. fire and
// fired belong to the timer's goroutine too, all else is the shard's.
//
// There is one timer for all, and it is not set again for what is due later, since its place in the runtime's heap takes
// some 70 ns each time, in a shard that may wait for each message. Only one that is about to fire for nothing is put off: its
// goroutine takes the place of the one that its processor was to run next, which may be the shard.
type alarm struct {
	fire  func() // tells the shard
	timer *time.Timer
	at    time.Duration // when it fires; 0: it does not
	fired atomic.Bool   // it has, and the shard may have been too busy to be told
}

// set has fire called at the time at, or before. That it has fired is taken back first: the shard is about to look at the
// clock anyway, and from here on only a timer that is set for at or earlier may be relied on. If the old one fires just
// after this, its event wakes the shard, or fired says next time that it did.
func (a *alarm) set(now, at time.Duration) {
	if a.fired.Swap(false) {
		a.at = 0
	}
	forNothing := a.at > now && a.at-now < lookTime/2 && at-a.at >= lookTime/2
	if a.at > 0 && a.at <= at && !forNothing {
		return
	}
	a.at = at
	if d := max(0, at-now); a.timer == nil {
		a.timer = time.AfterFunc(d, a.fire)
	} else {
		a.timer.Reset(d)
	}
}

// isSet reports whether fire will be called at the time by, or before.
func (a *alarm) isSet(by time.Duration) bool { return a.at > 0 && a.at <= by && !a.fired.Load() }

// rang is told that it has fired. The shard may call it for a timer that is still running, when it does early what is due:
// it then is set again, for what is due next.
func (a *alarm) rang() { a.at = 0 }

func (a *alarm) stop() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

// ring holds streams that take turns. It is a FIFO: a stream that has had its turn is pushed again if it has more. Whether a
// stream is in it is kept in its backlog (inMail, inTurns, inDirect), since it must not be in it twice: it would have two turns.
type ring[T any] struct {
	list []*stream[T]
	from int // of the first
}

func (q *ring[T]) len() int { return len(q.list) - q.from }

// first returns the one whose turn it is, or nil.
func (q *ring[T]) first() *stream[T] {
	if q.from == len(q.list) {
		return nil
	}
	return q.list[q.from]
}

// push puts s behind all others. Now and then it moves what is left to the front of the list, which would otherwise grow
// with each turn as long as the ring is never empty.
func (q *ring[T]) push(s *stream[T]) {
	if q.from > 32 && 2*q.from > len(q.list) {
		n := copy(q.list, q.list[q.from:])
		clear(q.list[n:])
		q.list, q.from = q.list[:n], 0
	}
	q.list = append(q.list, s)
}

// keep takes out all for which wanted is false.
func (q *ring[T]) keep(wanted func(*stream[T]) bool) {
	kept := q.list[:0]
	for _, s := range q.list[q.from:] {
		if wanted(s) {
			kept = append(kept, s)
		}
	}
	clear(q.list[len(kept):])
	q.list, q.from = kept, 0
}

// pop takes the first one out. Its place is cleared, or the list would keep a stream alive that has ended.
func (q *ring[T]) pop() {
	q.list[q.from] = nil
	if q.from++; q.from == len(q.list) {
		q.list, q.from = q.list[:0], 0
	}
}

// grants are the turns that others, who share lanes with a shard's streams, have handed to its messages. add is called from
// any goroutine, take by the shard alone. The shard looks each time that it polls, so that the flag spares it the lock:
// there are none but with ScopeFlow.
type grants[T any] struct {
	some atomic.Bool // list is not empty
	mu   sync.Mutex
	list []*message[T]
}

func (g *grants[T]) add(m *message[T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.list = append(g.list, m)
	g.some.Store(true)
}

func (g *grants[T]) take() (all []*message[T]) {
	if !g.some.Load() {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	all, g.list = g.list, nil
	g.some.Store(false)
	return all
}
