package flow

import (
	"context"
	"math/bits"
	"slices"
	"time"
)

// batchCall is what a run has that is a batch: one call of the handler with all its messages, which are of any streams. A
// batch is never recalled: its worker has all of it until it gives it back, but for what leaveOut gives back before the call.
//
// It lives for one batch: through the calls that follow a failure as a whole, and those of its halves. What is wanted again
// from one call to the next is copied where the rest is reset (see look and holdTogether).
type batchCall[T any] struct {
	// The shard's, also while the batch is out: but for ctx, which it then leaves alone, and the worker reads. parts are so,
	// too: a stream that ends while one part is out takes its messages out of the others (see closeGaps).
	bytes   int64 // of what is in it; this and the next two are kept while it forms
	full    bool
	hurried bool // it does not linger
	gaps    bool // it is one of batches.gaps
	ctx     context.Context
	cancel  context.CancelCauseFunc
	all     []*message[T]   // the memory of the run's list, and of the parts
	parts   [][]*message[T] // still to be called, once it has failed as a whole for the last time; the last is the next

	batchWork[T]
}

// batchWork is the worker's part of a batchCall. The shard reads and resets it when the batch is back. Its lists are used
// again for the next call, so that in steady state a call allocates nothing for a message: the handler may not keep them.
type batchWork[T any] struct {
	stage    batchStage
	at       int           // of the message that the Observer is being told of, in called
	called   []*message[T] // those that are in the call
	told     []*message[T] // those that are then brought to their end
	messages []Message[T]  // what the handler sees
	errs     []error       // what it says of each
	began    time.Duration // the call; this and the next are kept for the Observer
	took     time.Duration
	err      error    // with which it has failed as a whole,
	crashed  bool     // by a panic or a runtime.Goexit
	fault    *Failure // the same as a Failure; nil: it has not failed as a whole
	// moved says, where the fault is that a session has moved, of which streams that is so, as far as was asked; nil: it is not.
	moved   map[*stream[T]]bool
	verdict batchVerdict
	delay   time.Duration // before it is called again together
	charged bool          // it has taken its token from the retry budget

	isolating bool // it is a part of one that has failed for the last time
	failures  int  // of parts, in a row
	limit     int  // of those, at which it is an outage
}

// memory returns one that has nothing but the memory of c. told is not in it, since it is no list of its own: it is called,
// or the run's list.
func (c *batchWork[T]) memory() batchWork[T] {
	return batchWork[T]{called: c.called[:0], messages: c.messages[:0], errs: c.errs[:0]}
}

// batchStage says what a worker does next with a batch. Like the step of a message it is set before, or as, the caller's
// code is called: after a panic or a Goexit serveBatch is called again and goes on where batchCrashed has moved it. The
// order is that in which a call goes through them; from stageLook on again for the next part, which another worker may have.
type batchStage uint8

const (
	stageLook     batchStage = iota // drop what has ended by now
	stageAnnounce                   // tell the Observer of the attempts
	stageCall                       // call the handler
	stageDecide                     // say what becomes of the call as a whole
	stageTell                       // bring each message to its end, or to its next try
	stageOver
)

// batchVerdict says what becomes of those messages of a call that are not finished. It is the worker's to find, in decide,
// and the shard acts on it, in back: all that follows from it changes lanes, other batches and slots.
type batchVerdict uint8

const (
	verdictEach     batchVerdict = iota // each is retried by itself
	verdictTogether                     // they are called again together
	verdictHalve                        // they are called again at once, one half after the other
	verdictOutage                       // there are none, and what the batch still has of parts fails too
)

// serveBatch is serve for a batch. It blocks in the caller's code, and in leaveOut while the shard's channel is full. It
// returns when the call is over and every message in it is at a step from stepBackoff on; a panic leaves it in the middle.
//
// Everything that is told after the call, OnFailure included, is told here, one message after the other in the order of the
// batch, before the run goes back: only then are the slot and the keys given up, and a key's later message that is still to
// run waits for what OnFailure says of the one before.
func (w *worker[T]) serveBatch(r *run[T]) {
	c := r.batch
	for {
		switch c.stage {
		case stageLook:
			// What is counted here is under way for Stats, and at says so of each message (see message.runs).
			w.sh.r.calls.Add(1)
			r.at.Store(0)
			w.look(r)
			c.stage = stageAnnounce
		case stageAnnounce:
			w.announce(r)
			w.leaveOut(r)
		case stageCall:
			c.err = w.callHandler(r)
			w.callEnded(r)
		case stageDecide:
			w.decide(c)
			c.stage = stageTell
		case stageTell:
			for ; int(r.next) < len(c.told); r.next++ {
				m := c.told[r.next]
				// Only once: after a panic of what is told of m, its step is one behind the judgement.
				if m.step == stepAttempt {
					w.judge(c, m, int(r.next))
				}
				for m.step < stepBackoff {
					w.advance(m)
				}
			}
			// All have been judged: an error would be kept alive until the next call.
			clear(c.errs)
			c.stage = stageOver
		case stageOver:
			// Before the run is back: its next call, of the next part, counts for itself.
			w.sh.r.calls.Add(-1)
			c.stage = stageLook
			return
		}
	}
}

// batchCrashed moves a batch on after the caller's code has panicked, or exited the goroutine. It reports whether that was
// not about one message that is being told of its outcome; if it was, worker.crashed does with that message as with any
// other.
//
// A panic of the handler is a failure of the call as a whole: no message has succeeded. One of the Observer before the call,
// which has done nothing yet, concerns the message that it was told of alone. After a panic of Retryable decide is called
// once more, now with a crash, about which it asks nobody.
func (w *worker[T]) batchCrashed(c *batchCall[T], err error) bool {
	switch c.stage {
	case stageAnnounce: // the Observer: it takes that message out of the call
		c.called[c.at].fail(FailureInternal, err)
		c.at++
	case stageCall:
		c.err, c.crashed = err, true
		w.callEnded(w.run)
	case stageDecide: // Retryable
		c.err, c.crashed = err, true
	default:
		return false
	}
	return true
}

// look drops those whose streams have ended: the last moment to do so is when the call begins. A batch may have waited for
// long, lingering, in a backoff or for a worker, and no handler may start for a stream whose context has ended. From the
// list that the shard has made it makes the list of those that are called, and resets what the last call has left, but for
// the count of failures in a row, which goes through all parts of a batch.
//
// It also sends the response headers, before anything of these streams can have an effect.
func (w *worker[T]) look(r *run[T]) {
	c := r.batch
	isolating, failures, limit := c.isolating, c.failures, c.limit
	c.batchWork = c.memory()
	c.isolating, c.failures, c.limit = isolating, failures, limit
	for _, m := range r.list {
		m.stream.sendHeader(nil)
		if !m.stream.isOver() {
			m.index = len(c.called)
			c.called = append(c.called, m)
		} else {
			m.abort(m.stream.abortKind())
		}
	}
	for _, m := range c.called {
		m.batch = len(c.called)
	}
}

// announce tells the Observer of the attempts. It goes on where it was when the Observer has panicked. That message, and
// those whose streams end meanwhile, leave the call, so places and the size are counted once more: what an event says of
// them before may be more than are called in the end. An attempt that was taken back, since the handler did not make it, is
// not told of again: who counts attempts, or the wait for the first, would count it twice.
func (w *worker[T]) announce(r *run[T]) {
	c := r.batch
	if w.sh.r.observer == nil {
		return
	}
	for ; c.at < len(c.called); c.at++ {
		m := c.called[c.at]
		s := m.stream
		if s.isOver() {
			m.abort(s.abortKind())
			continue
		}
		if m.announced {
			m.announced = false
			continue
		}
		if m.attempts == 0 {
			m.waited = s.clock() - time.Duration(m.received)
		}
		s.emit(m, EventAttempt)
	}
	// Any other step means that m has failed or is aborted: it stays in the run's list, by which leaveOut finds it.
	kept := c.called[:0]
	for _, m := range c.called {
		if m.step == stepAttempt {
			m.index = len(kept)
			kept = append(kept, m)
		} else {
			m.batch, m.index = 0, 0
		}
	}
	clear(c.called[len(kept):])
	c.called = kept
	for _, m := range kept {
		m.batch = len(kept)
	}
}

// leaveOut begins the call, if anything is in it. What is not does not wait for its end: the shard takes it back at once. The
// shard then changes the run's list, which from here on is not the worker's to look at.
//
// That is why told is called in this case, and a list of its own. The event is sent before the run comes back, through the
// same channel, so the shard never finds in back what it is still to be told of here. If nothing is left to call, the worker
// brings all to its end by itself, and no handler is called with an empty batch.
func (w *worker[T]) leaveOut(r *run[T]) {
	c := r.batch
	if len(c.called) == 0 {
		c.told, c.stage = r.list, stageTell
		return
	}
	c.told, c.stage = c.called, stageCall
	if len(c.called) == len(r.list) {
		return
	}
	var out []*message[T]
	for _, m := range r.list {
		if m.step != stepAttempt {
			out = append(out, m)
		}
	}
	w.sh.events <- event[T]{do: func() { w.sh.batches.leftOut(r, out) }}
}

// callHandler calls the handler once. It lets panics through. The attempts are counted before, so that a call that does not
// return has been one. The slices have no room behind their ends: a handler that appends to them gets others.
//
// began is stored for Snapshot, which may look at any time, and only with an Observer, since it costs a reading of the clock.
func (w *worker[T]) callHandler(r *run[T]) error {
	c := r.batch
	for _, m := range c.called {
		m.attempts++
		c.messages = append(c.messages, Message[T]{
			Seq: m.seq, Key: m.key, Value: m.value, Attempt: m.attempts, origin: &m.stream.origin,
		})
		c.errs = append(c.errs, nil)
	}
	if w.sh.r.observer != nil {
		c.began = w.sh.clock()
		r.began.Store(int64(c.began) + 1)
	}
	n := len(c.called)
	// AttemptTimeout is the call's, and not any message's. A real context is made, unlike for an attempt of one message: its
	// price is shared by the batch.
	ctx, handler := c.ctx, w.sh.r.batching.handler
	if limit := w.sh.r.engine.retry.AttemptTimeout; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, ErrAttemptTimeout)
		defer cancel()
	}
	return handler(ctx, c.messages[:n:n], c.errs[:n:n])
}

// callEnded is told that the handler has ended, somehow. It is called exactly once for each call, by serveBatch or
// batchCrashed.
func (w *worker[T]) callEnded(r *run[T]) {
	c := r.batch
	if w.sh.r.observer != nil {
		c.took = w.sh.clock() - c.began
		r.began.Store(0)
	}
	clear(c.messages) // a handler that has kept the slice is found by the race detector
	c.stage = stageDecide
}

// decide says what becomes of the call as a whole. It calls Retryable, by againAfterCall, which may panic; the methods of
// errors it calls guarded.
//
// If the handler has returned nil, each message has its own outcome and the verdict is each. But if nothing was attempted,
// that is a failure as a whole: called again at once, first in line, it would be called again and again without any progress.
// The first that was attempted gets the index 0, at which Observers add the call up: of the others nothing is told.
//
// If it has failed as a whole, it is called again together while its oldest member, of the streams that live, has attempts
// left and the rules of RetryOptions allow for it; then in halves. A batch that is being isolated is past that: a part of
// more than one is halved at once, takes no token and no backoff, since a call that failed as a whole had no effect and
// nothing runs twice. A message that stands alone is decided about by the usual rules again.
//
// An outage is told from a poison by failures in a row: one poison among n fails once for each halving, and each success in
// between sets the count to 0. The limit, 4 times the logarithm, is twice as many calls as one poison may cost.
func (w *worker[T]) decide(c *batchCall[T]) {
	e := w.sh.r.engine
	untouched, failed := 0, 0
	if c.err == nil {
		for i, err := range c.errs {
			switch {
			case err == nil:
			case isError(err, ErrNotAttempted):
				untouched++
				continue
			default:
				failed++
			}
			if i == untouched { // all before it are
				c.called[i].index = 0
			}
		}
		if untouched == len(c.errs) {
			c.err = errNothingAttempted
		}
	}
	if c.err == nil {
		c.failures = 0
		if failed == 0 && e.budget != nil {
			e.budget.give()
		}
		return
	}
	kind := FailureHandlerError
	if c.crashed {
		kind = FailureInternal
	}
	counted := c.fault != nil // Retryable has panicked: the call has been here before
	c.fault = newFailure(kind, c.err)
	if c.moved = nil; isError(c.err, ErrSessionMoved) {
		c.moved = map[*stream[T]]bool{}
	}
	// attempts are those of the oldest member whose stream goes on: 0 if none does, and then there is nothing to try again.
	n, attempts := len(c.called), 0
	for _, m := range c.called {
		if !m.stream.isOver() {
			attempts = max(attempts, m.attempts)
		}
	}
	if c.isolating {
		if !counted {
			c.failures++
		}
		if c.failures >= c.limit {
			c.verdict = verdictOutage
			return
		}
		if n > 1 {
			c.verdict = verdictHalve
			return
		}
	}
	if attempts > 0 && !c.crashed {
		if delay, again := e.againAfterCall(c.fault, attempts, c.charge()); again {
			c.verdict, c.delay = verdictTogether, delay
			return
		}
	}
	// It has failed for the last time. With NoIsolation, or alone, its messages fail by the zero verdict, each for itself.
	if n > 1 && !w.sh.r.batching.NoIsolation {
		c.verdict = verdictHalve
		c.isolating, c.failures, c.limit = true, 0, 4*bits.Len(uint(n-1))
	}
}

// charge returns where it is kept whether the call has taken its token from the retry budget, which counts calls: the first
// failure in it that is worth retrying takes one, and sets it. A call that isolates takes none: the call of its batch that
// failed first has taken one.
func (c *batchCall[T]) charge() *bool {
	if c.isolating {
		c.charged = true
	}
	return &c.charged
}

// againAfterCall is again for a call of several messages, which takes one token at most: charged says whether it has. A
// failure that finds it taken is retried only if the budget, as it stands now, allows for retries at all.
func (e *Engine[T]) againAfterCall(f *Failure, n int, charged *bool) (time.Duration, bool) {
	last := n >= e.retry.MaxAttempts
	if last && (e.budget == nil || *charged) || !e.retry.worthRetrying(f) {
		return 0, false
	}
	if e.budget != nil {
		enough := e.budget.enough()
		if !*charged {
			*charged, enough = true, e.budget.take()
		}
		if !enough {
			return 0, false
		}
	}
	return e.retry.delay(f.said().delay, n), !last
}

// judge says what becomes of m, which was number i in the call. Retryable may panic in it, which is then the failure of m
// alone.
//
// What the handler says of m counts, also if its stream has ended meanwhile: nil is success and settled, since what it has
// done is done. An error is then put down to the end of the stream and not asked about. ErrNotAttempted takes the attempt
// back that callHandler has counted: of a stream that has ended m is dropped if there were no others before. For m there was
// no such call, so whatever it is told of later has neither the time that the call took nor a place in it.
func (w *worker[T]) judge(c *batchCall[T], m *message[T], i int) {
	s := m.stream
	m.took = c.took
	if c.fault != nil {
		w.judgeWhole(c, m)
		return
	}
	switch err := c.errs[i]; {
	case err == nil:
		m.outcome, m.step = outcomeSucceeded, stepSuccess
	case isError(err, ErrNotAttempted):
		m.attempts--
		m.took, m.batch, m.index, m.announced = 0, 0, 0, true
		if s.isOver() {
			m.abort(s.abortKind())
		} else {
			m.step = stepUntouched
		}
	default:
		f := m.failure(FailureHandlerError, err)
		// A session that is somebody else's by now is no failure of the message: the stream ends with that.
		if s.ctx.Err() != nil || isError(err, ErrSessionMoved) && s.sessionMoved() {
			f.Kind = s.abortKind()
			m.failWith(f)
			return
		}
		delay, again := s.r.engine.againAfterCall(f, m.attempts, c.charge())
		m.failWith(f)
		m.retryUnlessOver(again, delay)
	}
}

// judgeWhole is judge for a call that has failed as a whole. First m is made one that has failed for good, then one that is
// tried again if the verdict says so: the failure stays in m, as the cause that is told if its stream ends before the next
// call.
func (w *worker[T]) judgeWhole(c *batchCall[T], m *message[T]) {
	s := m.stream
	f := c.failureOf(m)
	if s.ctx.Err() != nil || c.hasMoved(s) {
		f.Kind = s.abortKind()
		m.failWith(f)
		return
	}
	m.failWith(f)
	m.retryUnlessOver(c.verdict == verdictTogether || c.verdict == verdictHalve, c.delay)
}

// hasMoved reports whether s has lost its session, which may be why the call has failed. It blocks as sessionMoved does, once
// for each stream of the call.
func (c *batchCall[T]) hasMoved(s *stream[T]) bool {
	if c.moved == nil {
		return false
	}
	moved, asked := c.moved[s]
	if !asked {
		moved = s.sessionMoved()
		c.moved[s] = moved
	}
	return moved
}

// failureOf makes a Failure of m out of the one of the call. The error has been asked once for all of them: to ask it for
// each would call its methods, which are the caller's code, as often as there are messages, and failRest calls this on the
// shard.
func (c *batchCall[T]) failureOf(m *message[T]) *Failure {
	f := c.fault.as(c.fault.Kind)
	f.Seq, f.Key, f.Attempts, f.Value = m.seq, m.key, m.attempts, m.value
	return f
}

// back takes a batch back from its worker: what has finished is settled, and the others are retried, come first next,
// or are called again, together or in parts.
//
// What has finished comes first, in a loop of its own. To settle one that has skipped its key, or to settle the last of many,
// may change what is to become of the rest: a key is skipped, a stream is swept. The sweep leaves what is out alone, since it
// comes back; here it has, so what a swept stream still has in the batch is brought to its end in the second loop.
//
// The lists are filtered in place: rest, held and the parts are parts of the memory that batchCall.all has.
func (b *batches[T]) back(r *run[T]) {
	sh, c := b.sh, r.batch
	sh.runs.out--
	// The context has a parent that never ends, so only this frees what the handler may have derived from it.
	c.cancel(nil)
	for i, other := range b.out {
		if other == r {
			last := len(b.out) - 1
			b.out[i], b.out[last] = b.out[last], nil
			b.out = b.out[:last]
			break
		}
	}
	// Before a part is called again: the worker that has just been at work is given it.
	sh.crew.back(r.worker)

	rest := r.list[:0]
	for _, m := range r.list {
		if m.step == stepFinished {
			sh.settle(m) // by which a stream may be swept
		} else {
			rest = append(rest, m)
		}
	}
	held, first := rest[:0], c.called[:0]
	for _, m := range rest {
		switch {
		case m.stream.backlog.swept:
			b.abort(m)
		case m.step == stepUntouched:
			if b.comesFirst(m) {
				first = append(first, m)
			}
		case c.verdict == verdictEach:
			sh.retry(m)
		default:
			m.state = stateHeld
			held = append(held, m)
		}
	}
	// Before the next part is screened: what came back untouched is then in another batch, and what stands behind it is no
	// part.
	b.formFirst(first)
	r.list = held
	switch {
	case c.verdict == verdictOutage:
		b.failRest(r)
	case len(held) == 0:
	case c.verdict == verdictTogether:
		b.holdTogether(r)
		return
	case c.verdict == verdictHalve:
		// parts is a stack: the first half is on top, and is halved, if it fails, before the second is called. So the lanes'
		// order is kept. Its capacity ends with it, so that nothing that is done to its list reaches the other half.
		half := (len(held) + 1) / 2
		if half < len(held) {
			c.parts = append(c.parts, held[half:])
		}
		c.parts = append(c.parts, held[:half:half])
	}
	b.callNext(r)
}

// leftOut takes back what was not in the call that r is in now. It is an event that leaveOut sends; the call goes on
// meanwhile. Those that were left out are finished by another worker, and only what is called still decides whether the
// call's context ends: if all those streams have ended, nobody else would notice.
func (b *batches[T]) leftOut(r *run[T], out []*message[T]) {
	sh := b.sh
	f := sh.runs.new(runFinish)
	for _, m := range out {
		f.add(m)
	}
	r.list = slices.DeleteFunc(r.list, func(m *message[T]) bool { return m.run != r })
	sh.finish(f)
	b.endCalls(r.list[0].stream)
}

// comesFirst reports whether m, which has come back untouched, is to be one of the first of the next batch. If it is not,
// it waits for its turn behind one that is retried, or is rejected. The messages of the call come here in their order: one
// before m in its lane that comes first too has its state by now, and m may follow it.
func (b *batches[T]) comesFirst(m *message[T]) bool {
	sh := b.sh
	m.run, m.step, m.again, m.state = nil, stepAttempt, true, stateWaiting
	before := m.before()
	if m.stream.backlog.isSkipped(m) {
		if before == nil {
			sh.reject(m)
		}
		return false
	}
	if before != nil && before.state != stateForming {
		return false
	}
	m.state = stateForming
	return true
}

// abort brings m, whose stream has ended, to its end. m has just come back, so that it is in no queue from which it would
// have to be taken.
func (b *batches[T]) abort(m *message[T]) {
	m.abort(m.stream.abortKind())
	b.sh.finishOne(m)
}

// holdTogether has what r holds, which has failed as a whole, wait and then be called again as it is. The parts that r may
// still have go on without it: then what waits is a part that stands alone, is retried by the usual rules, and becomes a
// batch of its own, without r's slot and without its count of failures.
//
// Otherwise r itself waits, without its slot. Its messages keep their lanes, so that nothing overtakes them. worker is unset:
// by that closeGaps knows that the list is the shard's again.
func (b *batches[T]) holdTogether(r *run[T]) {
	sh := b.sh
	group, delay := r, r.batch.delay
	if len(r.batch.parts) > 0 {
		group = b.new()
		group.list = append(group.list, r.list...)
		for _, m := range group.list {
			m.run = group
		}
		r.list = nil
		defer b.callNext(r)
	} else {
		sh.slots.free(r.slots, 1, 1)
		r.slots, r.worker = 0, nil
	}
	// What is kept of the last call is nothing to the next; the messages have their failures themselves.
	c := group.batch
	*c = batchCall[T]{all: c.all, parts: c.parts[:0], batchWork: c.memory()}
	if delay > 0 {
		sh.backoff.addBatch(group, sh.after(delay))
	} else {
		b.again = append(b.again, group)
	}
}

// callNext calls the next part of r, if it has any left. Otherwise r gives up its slot. Between two parts it keeps that: they
// follow at once. A part of which nothing may run any more is passed over.
func (b *batches[T]) callNext(r *run[T]) {
	sh := b.sh
	c := r.batch
	for len(c.parts) > 0 {
		last := len(c.parts) - 1
		part := c.parts[last]
		c.parts = c.parts[:last]
		if r.list = b.screen(r, part); len(r.list) > 0 {
			b.call(r)
			return
		}
	}
	sh.slots.free(r.slots, 1, 1)
	r.worker = nil
	b.reuse(r)
}

// screen returns those of part, which r has held, that may still run. A key that was skipped meanwhile is out, and so is
// what stands behind a message that is retried by itself. That is decided just before the part is called, since the parts
// before it decide it: OnFailure has been asked about a poison before what stands behind it may run.
//
// Once a message behind one that was leaving was out too: it went into an ordinary batch, among others that had nothing to
// do with the poison. So what is leaving does not count as standing before it.
func (b *batches[T]) screen(r *run[T], part []*message[T]) []*message[T] {
	sh := b.sh
	kept := part[:0]
	for _, m := range part {
		before := m.before()
		for before != nil && before.isLeaving() {
			before = before.before()
		}
		switch {
		// It is no part any more, and goes on when its turn comes, as one that is tried again.
		case before != nil && before.run != r:
			m.run, m.step, m.state = nil, stepAttempt, stateWaiting
		case m.stream.backlog.isSkipped(m):
			m.refuse(FailureOrdering, reasonSkipped)
			f := sh.runs.new(runFinish)
			f.add(m)
			sh.finish(f)
		default:
			kept = append(kept, m)
		}
	}
	return kept
}

// isLeaving reports whether m, whose stream has ended, leaves its lane as soon as a worker has told the Observer: it will not
// run any more, so what stands behind it in a shared lane need not wait for that.
func (m *message[T]) isLeaving() bool {
	return m.stream.backlog.swept && m.state == stateOut && m.run.kind == runFinish
}

// failRest fails all that r still holds, with the error of its last call. It is an outage: these parts have not been called
// by themselves, but each would cost as much as those that were, and the contract bounds that. Their failures come to
// OnFailure, on a worker and without a slot, in the order of the batch: the part that would have been called next comes
// first.
func (b *batches[T]) failRest(r *run[T]) {
	sh := b.sh
	c := r.batch
	f := sh.runs.new(runFinish)
	for i := len(c.parts) - 1; i >= 0; i-- {
		for _, m := range c.parts[i] {
			m.failWith(c.failureOf(m))
			f.add(m)
		}
		c.parts[i] = nil
	}
	c.parts = c.parts[:0]
	sh.finish(f)
}
