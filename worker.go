package flow

import (
	"math"
	"sync/atomic"
	"time"
)

// worker is a goroutine that runs what its shard gives it. All of the caller's code except recv and the key function runs
// in workers.
//
// While it is idle it is its crew's; from give until its run is back, all of it is its own. What it needs to go on after a
// crash is kept in it and in its run, not on its stack: the run's next says which message is at hand, and that message's
// step what was being done with it.
//
// One of a shard's workers leads: its goroutine is the shard's, and runs what is quick itself (see lead).
type worker[T any] struct {
	sh      *shard[T]
	runs    chan *run[T]  // nil while it leads
	run     *run[T]       // the one at hand
	claimed bool          // its message next is this worker's
	led     bool          // it has lost the lead with that run
	term    int64         // of that run, if it leads: see lead
	began   time.Duration // when its first message was claimed
	slab    contextSlab   // of its attempts' contexts
}

// work runs until the shard closes runs. A panic of the caller's code is recovered in serve. runtime.Goexit ends the
// goroutine, whose last act is to start another that goes on where this one was. The worker is the same for its shard, which
// learns of neither.
//
// To give the run back may block for as long as the channel is full, since a shard never waits for a worker. After that
// nothing of the run is touched: the shard may have filled it anew.
func (w *worker[T]) work() {
	normal := false
	defer func() {
		if !normal && w.run != nil { // otherwise it is a bug of the shard, whose panic goes on
			w.crashed(errGoexit)
			go w.work()
		}
	}()
	if w.runs == nil && w.goLead() {
		w.giveBack()
	}
	for w.run != nil {
		w.serveAll()
		w.giveBack()
	}
	normal = true
}

// giveBack gives the run at hand back and waits for the next one.
func (w *worker[T]) giveBack() {
	r := w.run
	w.run = nil
	w.sh.events <- event[T]{back: r}
	w.run = <-w.runs
}

// goLead runs the shard, and what it has for its own goroutine, until the shard has ended, or until another goroutine has
// taken over the lead because that stood still. It reports whether that is so: then the run at hand, which is done by
// now, is to be given back like any worker's.
func (w *worker[T]) goLead() (lost bool) {
	sh := w.sh
	for {
		if w.run == nil {
			if w.run = sh.next(); w.run == nil {
				return false
			}
			w.claimed, w.began = true, sh.clock()
			w.run.at.Store(0) // before others may take over, and recall it
			sh.lookAgain(w.began)
			w.term = sh.crew.lead.lend(w.began)
		}
		w.serveAll()
		if !sh.crew.lead.keep(w.term) {
			w.led, w.runs, w.run.worker = true, make(chan *run[T], 1), w
			return true
		}
		w.run = nil
		r := sh.crew.lead.take()
		sh.pace.heldUp(max(1, r.next), r.took)
		sh.runBack(r)
	}
}

// serveAll is serve until the run at hand is done, however often the caller's code panics.
func (w *worker[T]) serveAll() {
	for crash := w.serve(); crash != nil; crash = w.serve() {
		w.crashed(crash)
	}
}

// serve brings the messages of the run at hand to their end, one after the other, until there are none left, the shard has
// recalled the rest, or the rest must wait for what becomes of one. It returns what the caller's code panicked with; called
// again, it goes on. There is one deferred function for all messages, since one for each would cost 5 ns. After a panic its
// caller lets crashed move the message at hand on before it calls again. On a Goexit recover returns nil, and what serve
// returns is not used.
func (w *worker[T]) serve() (crash error) {
	normal := false
	defer func() {
		if !normal { // as in recovered
			crash = newPanicError(recover())
		}
	}()
	r := w.run
	if r.kind == runBatch {
		w.serveBatch(r)
		normal = true
		return nil
	}
	// After a crash the message at hand is claimed already. A run that is to bring messages to their end is never recalled.
	// If the claim fails, the shard has taken all of the run back, and none of its messages may be looked at.
	if !w.claimed {
		if r.kind != runFinish && !r.at.CompareAndSwap(unclaimed, 0) {
			normal = true
			return nil
		}
		// The pace counts from here: before, the worker may have waited for a processor, for which no handler is to blame.
		w.claimed, w.began = true, w.sh.clock()
	}
	if r.kind == runMail {
		w.serveMail(r)
		w.claimed = false
		r.took = w.sh.clock() - w.began
		normal = true
		return nil
	}
	// A message is claimed, brought to its end, and declared done by the claim of the next one: from then on the shard may
	// settle it, though the run is still out. So m is not touched after that. The worker stops at a message that waits for
	// its next try, since those behind it may be of its lane; and at one that has skipped its key, since those may be of
	// that key.
	for {
		m := r.list[r.next]
		// Without this the second message of a skipped key was once counted as rejected, although OnFailure had let the first
		// one end the stream.
		if r.kind == runFinish && r.next > 0 && m.step == stepAsk && m.stream.ctx.Err() != nil {
			m.abort(m.stream.abortKind()) // the one before, of the same key, has ended its stream
		}
		for m.step < stepBackoff {
			w.advance(m)
		}
		if m.step == stepBackoff {
			break
		}
		r.next++
		if r.next == r.len() || r.kind == runExecute && (m.skipKey || !r.at.CompareAndSwap(r.next-1, r.next)) {
			break
		}
	}
	w.claimed = false
	r.took = w.sh.clock() - w.began
	normal = true
	return nil
}

// serveMail is serve for a mail run. An entry is read only once it is claimed, and a chunk is left before that: the shard
// takes back what lies before. So k is set to the next chunk before the claim by which the shard may settle the last entry
// of this one, and use it again.
//
// It stops at the first entry that does not simply succeed: what else there is to do with that takes an ordinary message,
// which mailBack makes of it. After a crash serve calls this again, which then finds err set and does nothing.
func (w *worker[T]) serveMail(r *run[T]) {
	x := r.mail
	s := x.s
	s.sendHeader(nil)
	k, pos := x.chunk, x.pos
	for x.err == nil {
		e := &k.list[pos]
		if s.isOver() || x.leaves(e) {
			return
		}
		m := Message[T]{Seq: e.seq, Key: e.key, Value: e.value, Attempt: 1, origin: &s.origin}
		if x.err = s.r.engine.attempt(s.ctx, m, &w.slab); x.err != nil {
			return
		}
		if r.next++; r.next == x.n {
			return
		}
		if pos++; pos == len(k.list) {
			k, pos = k.next, 0
		}
		if !r.at.CompareAndSwap(r.next-1, r.next) {
			return
		}
	}
}

// advance does one step of m. All that it calls of the caller's may panic. A step is changed only after its call has
// returned: so crashed sees in which step the caller's code has ended.
func (w *worker[T]) advance(m *message[T]) {
	s := m.stream
	switch m.step {
	case stepAttempt:
		w.attempt(m)
	case stepCause:
		// Without an attempt it is the key function, or a caller's own resolver, that has failed. Otherwise the attempt was
		// made in a mail run, from which mailBack has brought its error here.
		switch {
		case m.attempts == 0:
			s.blame(m)
		case m.crashed:
			m.fail(FailureInternal, m.cause)
		default:
			w.failed(m, m.cause)
		}
	case stepRetry:
		s.emit(m, EventRetry)
		m.step = stepBackoff
	case stepSuccess:
		s.emit(m, EventSuccess)
		m.step = stepRelease
	case stepAsk:
		s.askOnFailure(m)
		m.step = stepFailure
	case stepFailure:
		// An Observer that has crashed while it was told of the success is not told of the failure that this has become.
		if !m.told {
			if m.outcome == outcomeRejected {
				s.emit(m, EventReject)
			} else {
				s.emit(m, EventFailure)
			}
		}
		s.failUnlessSkipped(m)
		m.step = stepRelease
	case stepDrop:
		s.emit(m, EventDrop)
		m.step = stepRelease
	case stepRelease:
		if m.release != nil {
			m.release()
		}
		m.step = stepFinished
	}
}

// crashed moves the message at hand on after the caller's code has panicked, or exited the goroutine, in its step. It moves
// on by at least one step, so that no code of the caller's is called again for the same thing, and each message comes to its
// end however many of its calls crash. A panic ends its stream, as FailureInternal, whatever OnFailure says of it.
func (w *worker[T]) crashed(err error) {
	// An entry of a mailbox has no steps yet: the crash is its attempt's error, and mailBack makes a message of it.
	if x := w.run.mail; w.run.kind == runMail {
		x.err, x.crashed = err, true
		return
	}
	var m *message[T]
	if c := w.run.batch; w.run.kind != runBatch {
		m = w.run.list[w.run.next]
	} else if w.batchCrashed(c, err) {
		return
	} else {
		m = c.told[w.run.next]
	}
	s := m.stream
	switch m.step {
	case stepAttempt, stepCause, stepRetry:
		// The attempt has not been measured yet: it is the handler that has crashed, and not what was called after it.
		if m.took == 0 {
			s.timed(m, w.run)
		}
		m.fail(FailureInternal, err)
	case stepSuccess: // the Observer, told of the success: it has heard the outcome
		m.fail(FailureInternal, err)
		m.told = true
	case stepAsk: // OnFailure, which is not asked again
		m.fault, m.settled, m.skipKey, m.step = m.failure(FailureInternal, err), false, false, stepFailure
	case stepFailure, stepDrop: // the Observer, told of the end: the outcome stays, and the stream ends
		s.fail(m.failure(FailureInternal, err))
		m.step = stepRelease
	case stepRelease:
		s.fail(m.failure(FailureInternal, err))
		m.step = stepFinished
	default:
		panic("bug: a message has crashed that was at its end")
	}
}

// attempt runs the handler once and decides what comes of it. Whether the stream goes on is looked at as late as possible,
// and after the header has been sent, which may end it too: between its end and the shard's recall of the run, no handler
// may start.
func (w *worker[T]) attempt(m *message[T]) {
	s := m.stream
	s.sendHeader(nil)
	if s.isOver() { // also of a slot that a cancelled handler has just left
		m.abort(s.abortKind())
		return
	}
	observer := s.r.observer
	if observer != nil {
		if m.attempts == 0 {
			m.waited = s.clock() - time.Duration(m.received)
		}
		if m.pressured {
			s.emit(m, EventPressure)
		}
		s.emit(m, EventAttempt)
		// Snapshot reads it meanwhile, in the shard; 0 means that no attempt is under way.
		w.run.began.Store(int64(s.clock()) + 1)
	}
	// Before the call: a handler that crashes has made its attempt, and its message is not one that never ran.
	m.attempts++
	err := s.r.engine.attempt(s.ctx, Message[T]{
		Seq: m.seq, Key: m.key, Value: m.value, Attempt: m.attempts, Pressured: m.pressured, origin: &s.origin,
	}, &w.slab)
	if observer != nil {
		s.timed(m, w.run)
	}
	if err != nil {
		w.failed(m, err)
		return
	}
	m.outcome, m.step = outcomeSucceeded, stepSuccess
	if observer == nil && m.release == nil { // there is nobody to tell: two steps less
		m.step = stepFinished
	}
}

// failed decides what comes of an attempt that has returned err: it is retried, shown to OnFailure, or only counted. An error
// that comes from the end of the stream, or of its session, is neither retried nor shown to OnFailure: it says nothing about
// the message.
func (w *worker[T]) failed(m *message[T], err error) {
	s := m.stream
	f := m.failure(FailureHandlerError, err)
	if f.endedBy(s.ctx) || isError(err, ErrSessionMoved) && s.sessionMoved() {
		f.Kind = s.abortKind()
		m.failWith(f)
		return
	}
	// This comes before failWith, since it calls Retryable: if that panics, the step is still the attempt's, and crashed
	// does not take it for a panic of OnFailure.
	delay, again := s.r.engine.again(f, m.attempts)
	m.failWith(f)
	m.retryUnlessOver(again, delay)
}

// lead is the right to be a shard's goroutine. The worker that has it runs the shard, and what is quick itself: a message
// then crosses no channel between the two, and stays in the caches of one processor. Windows of 2 to 32 messages took
// two thirds of the processor time by that. Leaders and followers is what the pattern is called; Go's scheduler does the same
// with the processor of a goroutine that is in a system call.
//
// While the leader runs messages it has lent the lead: a timer sees to it that another goroutine takes it if they take
// long. So a handler that was quick and suddenly blocks holds up its shard for a millisecond or two, once: the run is
// recalled, and messages must prove again that they are quick.
//
//	leader                                      timer
//	term = lend: Store(since), if !armed: set   armed = false; t = Load(since): long ago?
//	keep: CAS(since, term → 0)                  CAS(since, t → 0), then it leads
//
// No term is used twice, so that a leader that has lost the lead never takes the term of another for its own. All but since and
// armed is the leader's.
type lead[T any] struct {
	sh    *shard[T]
	run   *run[T]       // the leader's own, from runOwn until it is back or somebody else has taken over
	last  int64         // term
	again time.Duration // when the shard is to look at long runs, though it has never been idle
	since atomic.Int64  // the term for which the lead is lent, about the time at which that began; 0: it is not lent
	armed atomic.Bool   // the timer will fire, and look
	timer *time.Timer
}

// leadTime is how long the lead may be lent at least before another goroutine takes it: twice what a run takes.
const leadTime = 2 * runTime

// lend lends the lead, at the time now, until keep. Once since is stored, all else of l may be another's: term was read from
// last after that once, and two goroutines led.
func (l *lead[T]) lend(now time.Duration) (term int64) {
	term = max(l.last+1, int64(now))
	l.last = term
	if l.timer == nil {
		l.timer = time.AfterFunc(math.MaxInt64, l.look)
	}
	timer := l.timer
	l.since.Store(term)
	if !l.armed.Load() {
		l.armed.Store(true)
		timer.Reset(lookTime)
	}
	return term
}

// keep ends what lend began. It reports whether the caller still leads.
func (l *lead[T]) keep(term int64) bool { return l.since.CompareAndSwap(term, 0) }

func (l *lead[T]) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
}

// take returns the leader's own run, which it has no more.
func (l *lead[T]) take() *run[T] {
	r := l.run
	l.run = nil
	return r
}

// look takes the lead over if it has been lent for long. It is the timer's. The timer goes on for as long as it finds the
// lead lent, and is set again when it is lent the next time: an idle shard has none.
func (l *lead[T]) look() {
	l.armed.Store(false) // before it looks: a term that begins after that sets it again
	term := l.since.Load()
	switch {
	case term == 0:
	case int64(l.sh.clock())-term < int64(leadTime):
		l.armed.Store(true)
		l.timer.Reset(lookTime)
	case l.since.CompareAndSwap(term, 0):
		l.sh.takeOver(l.take(), true)
	}
}

// demand has another goroutine take the lead over if it is lent. It is called by those who have asked the shard for something
// and wait for the answer: one of them may be the handler that the leader runs.
func (l *lead[T]) demand() {
	if term := l.since.Load(); term != 0 && l.since.CompareAndSwap(term, 0) {
		go l.sh.takeOver(l.take(), int64(l.sh.clock())-term >= int64(leadTime))
	}
}

// idleTime is how long a worker that has nothing to do stays. To end it at once would start a goroutine for each message
// that comes alone; to keep it for good would leave the stacks of all that a burst of slow messages has taken.
const idleTime = 100 * time.Millisecond

// crew is the workers of a shard. They are started as they are needed; the one that was last at work is the next to be given
// some, and those that were not needed for a while end. It is the shard's alone. The last one at work comes first since its
// stack and its memory are still in the processor's caches; and so the workers at the front of the list are those that are
// not needed.
type crew[T any] struct {
	sh       *shard[T]
	lead     lead[T]
	idle     []*worker[T] // the last is the next to work
	unneeded int          // the fewest that were idle since idleFrom
	idleFrom time.Duration
}

// give hands r to a worker. It never blocks: the channel of a worker has room for one run, and is used only while the worker
// is in idle, from which it is taken here.
func (c *crew[T]) give(r *run[T]) {
	n := len(c.idle)
	if n == 0 {
		// There is no limit: how many runs may be out is bounded by the slots, and while messages are quick by the pace.
		w := &worker[T]{sh: c.sh, runs: make(chan *run[T], 1)}
		r.worker, w.run = w, r
		go w.work()
		return
	}
	w := c.idle[n-1]
	c.idle[n-1] = nil
	c.idle = c.idle[:n-1]
	c.unneeded = min(c.unneeded, n-1)
	r.worker = w
	w.runs <- r // has room: w is idle
}

// back takes back a worker that has nothing to do. Its goroutine may still be on its way from the send of the event to the
// receive of the next run. One that has led ends if there is another that is idle: each time that the lead is taken over there
// is one worker more, and a handler that asks for Stats has it taken over with each message.
func (c *crew[T]) back(w *worker[T]) {
	switch {
	case w == nil: // it is the leader
	case w.led && len(c.idle) > 0:
		close(w.runs)
	default:
		w.led = false
		c.idle = append(c.idle, w)
	}
}

// next returns when to trim next. The shard asks whenever it arms its alarm, and the time that a worker may be idle counts
// from the first time it asks after a trim. From then on give keeps the fewest that were idle, so that a crew that is busy now
// and then keeps as many workers as it needs.
func (c *crew[T]) next(now time.Duration) (at time.Duration) {
	if c.idleFrom == 0 {
		c.idleFrom, c.unneeded = now, len(c.idle)
	}
	return c.idleFrom + idleTime
}

// trim ends the workers that were idle all the time since the last trim. Their goroutines end when they receive nil from the
// closed channel, which may be a moment after this.
func (c *crew[T]) trim() {
	n := min(c.unneeded, len(c.idle))
	for _, w := range c.idle[:n] { // those in front have been idle for longest
		close(w.runs)
	}
	kept := copy(c.idle, c.idle[n:])
	clear(c.idle[kept:])
	c.idle = c.idle[:kept]
	c.idleFrom = 0
}

// end ends all workers. No run may be out: a worker that is not idle is not in the list, and would wait for ever.
func (c *crew[T]) end() {
	c.unneeded = len(c.idle)
	c.trim()
}
