package flow

import "slices"

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
