package flow

import (
	"context"
	"math/bits"
	"slices"
	"time"
)

// batchCall is what a run has that is a batch: one call of the handler with all its messages, which are of any streams. A
// batch is never recalled: its worker has all of it until it gives it back.
type batchCall[T any] struct {
	// The shard's, also while the batch is out: but for ctx, which it then leaves alone.
	bytes   int64 // of what is in it; this and the next two are kept while it forms
	full    bool
	hurried bool // it does not linger
	ctx     context.Context
	cancel  context.CancelCauseFunc
	all     []*message[T]   // the memory of the run's list, and of the parts
	parts   [][]*message[T] // still to be called, once it has failed as a whole for the last time; the last is the next

	batchWork[T]
}

// batchWork is the worker's part of a batchCall.
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
	verdict  batchVerdict
	delay    time.Duration // before it is called again together
	charged  bool          // it has taken its token from the retry budget

	isolating bool // it is a part of one that has failed for the last time
	failures  int  // of parts, in a row
	limit     int  // of those, at which it is an outage
}

// memory returns one that has nothing but the memory of c.
func (c *batchWork[T]) memory() batchWork[T] {
	return batchWork[T]{called: c.called[:0], messages: c.messages[:0], errs: c.errs[:0]}
}

// batchStage says what a worker does next with a batch.
type batchStage uint8

const (
	stageLook     batchStage = iota // drop what has ended by now
	stageAnnounce                   // tell the Observer of the attempts
	stageCall                       // call the handler
	stageDecide                     // say what becomes of the call as a whole
	stageTell                       // bring each message to its end, or to its next try
	stageOver
)

// batchVerdict says what becomes of those messages of a call that are not finished.
type batchVerdict uint8

const (
	verdictEach     batchVerdict = iota // each is retried by itself
	verdictTogether                     // they are called again together
	verdictHalve                        // they are called again at once, one half after the other
	verdictOutage                       // there are none, and what the batch still has of parts fails too
)

// serveBatch is serve for a batch.
func (w *worker[T]) serveBatch(r *run[T]) {
	c := r.batch
	for {
		switch c.stage {
		case stageLook:
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
				if m.step == stepAttempt {
					w.judge(c, m)
				}
				for m.step < stepBackoff {
					w.advance(m)
				}
			}
			clear(c.errs)
			c.stage = stageOver
		case stageOver:
			w.sh.r.calls.Add(-1)
			c.stage = stageLook
			return
		}
	}
}

// batchCrashed moves a batch on after the caller's code has panicked, or exited the goroutine. It reports whether that was
// not about one message that is being told of its outcome.
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

// look drops those whose streams have ended: the last moment to do so is when the call begins.
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

// announce tells the Observer of the attempts. It goes on where it was when the Observer has panicked.
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
		if m.attempts == 0 {
			m.waited = s.clock() - time.Duration(m.received)
		}
		s.emit(m, EventAttempt)
	}
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

// callHandler calls the handler once. It lets panics through.
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
	ctx, handler := c.ctx, w.sh.r.batching.handler
	if limit := w.sh.r.engine.retry.AttemptTimeout; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, ErrAttemptTimeout)
		defer cancel()
	}
	return handler(ctx, c.messages[:n:n], c.errs[:n:n])
}

// callEnded is told that the handler has ended, somehow.
func (w *worker[T]) callEnded(r *run[T]) {
	c := r.batch
	if w.sh.r.observer != nil {
		c.took = w.sh.clock() - c.began
		r.began.Store(0)
	}
	clear(c.messages) // a handler that has kept the slice is found by the race detector
	c.stage = stageDecide
}

// decide says what becomes of the call as a whole.
func (w *worker[T]) decide(c *batchCall[T]) {
	e := w.sh.r.engine
	untouched, failed := 0, 0
	if c.err == nil {
		for _, err := range c.errs {
			switch {
			case err == nil:
			case isError(err, ErrNotAttempted):
				untouched++
			default:
				failed++
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
	c.fault = newFailure(kind, c.err)
	n, attempts := len(c.called), 0
	for _, m := range c.called {
		if !m.stream.isOver() {
			attempts = max(attempts, m.attempts)
		}
	}
	if c.isolating {
		if c.failures++; c.failures >= c.limit {
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
	if n > 1 && !w.sh.r.batching.NoIsolation {
		c.verdict = verdictHalve
		c.isolating, c.failures, c.limit = true, 0, 4*bits.Len(uint(n-1))
	}
}

// charge reports whether a failure must still take a token from the retry budget, which counts calls: the first one that
// is worth retrying does, unless the call is one more of a batch that has failed before.
func (c *batchCall[T]) charge() *bool {
	if c.isolating {
		c.charged = true
	}
	return &c.charged
}

// againAfterCall is again for a call of several messages, which takes one token at most: charged says whether it has.
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

// judge says what becomes of m, which was in the call.
func (w *worker[T]) judge(c *batchCall[T], m *message[T]) {
	s := m.stream
	m.took = c.took
	if c.fault != nil {
		w.judgeWhole(c, m)
		return
	}
	switch err := c.errs[m.index]; {
	case err == nil:
		m.outcome, m.step = outcomeSucceeded, stepSuccess
	case isError(err, ErrNotAttempted):
		if m.attempts--; s.isOver() {
			m.abort(s.abortKind())
		} else {
			m.step = stepUntouched
		}
	default:
		f := m.failure(FailureHandlerError, err)
		if s.sessionMoved(err) || s.ctx.Err() != nil {
			f.Kind = s.abortKind()
			m.failWith(f)
			return
		}
		delay, again := s.r.engine.againAfterCall(f, m.attempts, c.charge())
		m.failWith(f)
		m.retryUnlessOver(again, delay)
	}
}

// judgeWhole is judge for a call that has failed as a whole.
func (w *worker[T]) judgeWhole(c *batchCall[T], m *message[T]) {
	s := m.stream
	f := c.failureOf(m)
	if s.ctx.Err() != nil {
		f.Kind = s.abortKind()
		m.failWith(f)
		return
	}
	m.failWith(f)
	m.retryUnlessOver(c.verdict == verdictTogether || c.verdict == verdictHalve, c.delay)
}

// failureOf makes a Failure of m out of the one of the call.
func (c *batchCall[T]) failureOf(m *message[T]) *Failure {
	f := c.fault.as(c.fault.Kind)
	f.Seq, f.Key, f.Attempts, f.Value = m.seq, m.key, m.attempts, m.value
	return f
}

// back takes a batch back from its worker: what has finished is settled, and the others are retried, come first next,
// or are called again, together or in parts.
func (b *batches[T]) back(r *run[T]) {
	sh, c := b.sh, r.batch
	sh.runs.out--
	c.cancel(nil)
	for i, other := range b.out {
		if other == r {
			last := len(b.out) - 1
			b.out[i], b.out[last] = b.out[last], nil
			b.out = b.out[:last]
			break
		}
	}
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
		half := (len(held) + 1) / 2
		if half < len(held) {
			c.parts = append(c.parts, held[half:])
		}
		c.parts = append(c.parts, held[:half:half])
	}
	b.callNext(r)
}

// leftOut takes back what was not in the call that r is in now.
func (b *batches[T]) leftOut(r *run[T], out []*message[T]) {
	sh := b.sh
	r.list = slices.DeleteFunc(r.list, func(m *message[T]) bool { return slices.Contains(out, m) })
	f := sh.runs.new(runFinish)
	for _, m := range out {
		f.add(m)
	}
	sh.finish(f)
	b.endCalls(r.list[0].stream)
}

// comesFirst reports whether m, which has come back untouched, is to be one of the first of the next batch. If it is not,
// it waits for its turn behind one that is retried, or is rejected.
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

// abort brings m, whose stream has ended, to its end.
func (b *batches[T]) abort(m *message[T]) {
	m.abort(m.stream.abortKind())
	b.sh.finishOne(m)
}

// holdTogether has what r holds, which has failed as a whole, wait and then be called again as it is. The parts that r may
// still have go on without it.
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
		sh.slots.free(r.slots)
		r.slots, r.worker = 0, nil
	}
	c := group.batch
	*c = batchCall[T]{all: c.all, parts: c.parts[:0], batchWork: c.memory()}
	if delay > 0 {
		sh.backoff.addBatch(group, sh.clock()+delay)
	} else {
		b.again = append(b.again, group)
	}
}

// callNext calls the next part of r, if it has any left. Otherwise r gives up its slot.
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
	sh.slots.free(r.slots)
	r.worker = nil
	b.reuse(r)
}

// screen returns those of part, which r has held, that may still run. A key that was skipped meanwhile is out, and so is
// what stands behind a message that is retried by itself.
func (b *batches[T]) screen(r *run[T], part []*message[T]) []*message[T] {
	sh := b.sh
	kept := part[:0]
	for _, m := range part {
		before := m.before()
		for before != nil && before.isLeaving() {
			before = before.before()
		}
		switch {
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

// failRest fails all that r still holds, with the error of its last call.
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
