package flow

import "runtime"

// The way of a message through its shard: receive lines it up; dispatch sends it out in a run when it has its turn and
// there is a slot; runBack takes the run back and settles what has finished, by which others get their turn.

// accept makes a message of what was received.
func (sh *shard[T]) accept(s *stream[T], e *entry[T]) *message[T] {
	m := sh.free.get(&sh.r.messages)
	b := &s.backlog
	m.stream, m.entry, m.home = s, *e, sh
	b.ledger.accept(e.seq)
	*e = entry[T]{}
	b.live.add(m)
	if sh.batches != nil {
		sh.batches.lineUp(m)
	}
	return m
}

// receive lines up what was received. open is the run that is being filled, which the message joins if it may; it may be
// nil.
func (sh *shard[T]) receive(s *stream[T], e *entry[T], open *run[T]) {
	m := sh.accept(s, e)
	p := sh.r.gate.pressure
	switch {
	case m.crash != nil:
		m.step = stepCause
		sh.refuse(m)
		return
	case p.rejects() && !s.backlog.isSkipped(m):
		m.refuse(FailureBackpressure, reasonNoCapacity)
		sh.refuse(m)
		return
	}
	if m.hash != 0 {
		first, why := s.order.join(m.key, m.hash, &m.turn)
		if why != "" {
			m.refuse(FailureOrdering, why)
			sh.refuse(m)
			return
		}
		if !first {
			if open != nil && sh.isIn(open, m.prev) {
				open.add(m)
			}
			if sh.batches != nil {
				sh.batches.follow(m)
			}
			return
		}
	}
	switch {
	case s.order.asks(m.hash) || s.backlog.isSkipped(m):
		sh.turnCame(m)
	case p.refuses():
		switch {
		case sh.slots.reserve():
			sh.ready(m)
		case p.opts.Policy == BackpressureHardReject:
			m.refuse(FailureBackpressure, reasonNoCapacity)
			sh.refuse(m)
		case !sh.slots.queue():
			m.refuse(FailureBackpressure, reasonQueueFull)
			sh.refuse(m)
		default:
			sh.ready(m)
		}
	case open == nil || sh.pace.isSlow(m.hash):
		sh.ready(m)
	default:
		open.add(m)
	}
}

// isIn reports whether the message of t is in r.
func (sh *shard[T]) isIn(r *run[T], t *turn) bool {
	m, ok := t.owner.(*message[T])
	return ok && m.run == r
}

// lineUpAll lines up everything that s has received.
func (sh *shard[T]) lineUpAll(s *stream[T]) {
	b := &s.backlog
	for !b.refusing && !b.swept && b.mailRun == nil {
		e := b.next(&s.box, &sh.r.chunks)
		if e == nil {
			s.verdict.give(b.ledger.received)
			return
		}
		sh.receive(s, e, nil)
	}
}

// lineUp takes up to most messages out of the mailboxes, of the streams in turn. Those that have their turn and may run
// join open, unless that is nil, until there are limit in it. It goes on beyond most while open is empty.
func (sh *shard[T]) lineUp(open *run[T], limit, most int32) {
	full := func() bool { return open != nil && open.len() >= limit }
	for (most > 0 || open != nil && open.len() == 0) && !full() && sh.hasMail() {
		s := sh.mail.first()
		b := &s.backlog
		more := true
		share := max(8, most/int32(sh.mail.len()))
		if open == nil {
			share = min(share, most)
		}
		for ; share > 0 && more && !full(); share-- {
			e := b.next(&s.box, &sh.r.chunks)
			if e == nil {
				more = false
				break
			}
			most--
			sh.receive(s, e, open)
			more = !b.refusing
		}
		sh.mail.pop()
		if b.inMail = more; more {
			sh.mail.push(s)
		} else {
			sh.touch(s)
		}
	}
}

// hasMail reports whether a stream that goes on may have something in its mailbox.
func (sh *shard[T]) hasMail() bool {
	for s := sh.mail.first(); s != nil; s = sh.mail.first() {
		if b := &s.backlog; !b.swept && !b.ended && !b.refusing && !b.direct && b.mailRun == nil {
			return true
		}
		s.backlog.inMail = false
		sh.mail.pop()
	}
	return false
}

// turnCame is told that m, which was waiting, has its turn.
func (sh *shard[T]) turnCame(m *message[T]) {
	s := m.stream
	switch {
	case s.backlog.isSkipped(m):
		sh.reject(m)
	case s.order.asks(m.hash) && s.ctx.Err() != nil: // of a turn that a cancelled handler has left
		m.abort(s.abortKind())
		sh.finishOne(m)
	case s.order.asks(m.hash):
		m.state = stateAsking
		s.order.external.turn(s.order.resolver.lane(m.key), func(release ReleaseFunc, err error) {
			sh.events <- event[T]{do: func() { sh.answered(m, release, err) }}
		})
	default:
		sh.ready(m)
	}
}

// grant is told that others have handed their turn to m: but m may have been dropped since, and used again.
func (sh *shard[T]) grant(m *message[T]) {
	if m.stream != nil && m.state == stateWaiting && m.lane != nil && m.stream.order.isHead(&m.turn, m.hash) {
		sh.turnCame(m)
	}
}

// handOver implements turnHome: somebody else, who shares lanes with streams of this shard, has handed his turn to owner.
func (sh *shard[T]) handOver(owner turnOwner) {
	sh.granted.add(owner.(*message[T]))
	select {
	case sh.events <- event[T]{}:
	default: // it is not asleep, and looks before it is
	}
}

// answered is told what a caller's own resolver has said about m's turn.
func (sh *shard[T]) answered(m *message[T], release ReleaseFunc, err error) {
	s := m.stream
	m.release = release
	switch {
	case err == nil && !s.backlog.swept:
		sh.ready(m)
		return
	case err == nil:
		m.abort(s.abortKind())
	default:
		m.cause, m.step = err, stepCause
	}
	sh.finishOne(m)
}

// ready puts m, which has its turn, behind the others of its stream that have.
func (sh *shard[T]) ready(m *message[T]) {
	m.state, m.run = stateReady, nil
	m.stream.backlog.ready.push(m)
	sh.hasTurn(m.stream)
}

func (sh *shard[T]) hasTurn(s *stream[T]) {
	sh.nready++
	if b := &s.backlog; !b.inTurns {
		b.inTurns = true
		sh.turns.push(s)
	}
}

// refuse brings m to its end, which was refused on receipt. What comes behind it waits until that is done, so that
// refusals slow their client down and come to OnFailure in order of receipt.
func (sh *shard[T]) refuse(m *message[T]) {
	m.refused, m.stream.backlog.refusing = true, true
	sh.finishOne(m)
}

// reject brings m, whose key is skipped, to its end, and with it those that wait behind it.
func (sh *shard[T]) reject(m *message[T]) {
	r := sh.runs.new(runFinish)
	for ; m != nil && m.stream.backlog.isSkipped(m); m = sh.follower(m) { // which may be another stream's, in a shared lane
		m.refuse(FailureOrdering, reasonSkipped)
		r.add(m)
	}
	sh.finish(r)
}

// follower returns the message that waits behind m in its lane, if it is this shard's and needs nobody else's turn.
func (sh *shard[T]) follower(m *message[T]) *message[T] {
	o := &m.stream.order
	if m.lane == nil || o.external != nil {
		return nil
	}
	var next *turn
	if o.shared == nil {
		next = m.next
	} else {
		next = o.shared.follower(&m.turn, m.hash)
	}
	if next == nil {
		return nil
	}
	if f := next.owner.(*message[T]); f.state == stateWaiting {
		return f
	}
	return nil
}

// finishOne is finish for one message.
func (sh *shard[T]) finishOne(m *message[T]) {
	r := sh.runs.new(runFinish)
	r.add(m)
	sh.finish(r)
}

// finish has a worker bring the messages of r to their end, without a slot. Where there is nobody to tell they are at
// their end.
func (sh *shard[T]) finish(r *run[T]) {
	if len(r.list) == 0 {
		sh.runs.reuse(r)
		return
	}
	quiet := sh.r.observer == nil
	for _, m := range r.list {
		quiet = quiet && m.release == nil && (m.step == stepDrop || m.step == stepFailure)
	}
	if !quiet {
		sh.give(r)
		return
	}
	for _, m := range r.list {
		sh.settle(m)
	}
	sh.runs.reuse(r)
}

// give hands r to a worker.
func (sh *shard[T]) give(r *run[T]) {
	r.end = r.len()
	sh.runs.out++
	sh.sent++
	sh.blind++
	sh.crew.give(r)
}

// dispatch sends runs out while there is something to run and it may run. It reports whether it has sent any.
func (sh *shard[T]) dispatch() (sent bool) {
	if sh.batches != nil {
		return sh.batches.dispatch()
	}
	p := sh.r.gate.pressure
	for sh.nready > 0 || sh.hasMail() {
		length := sh.pace.length
		direct := length == maxRun && sh.nready == 0 && sh.mayMail(sh.mail.first())
		if length > 1 && len(sh.runs.long) >= sh.pace.most(sh.processors, direct) {
			break
		}
		sh.slots.cover(sh.nready)
		slots := sh.slots.take(int(length))
		if slots == 0 {
			sh.askForSlot()
			break
		}
		if direct {
			if r := sh.mailRun(sh.mail.first()); r != nil {
				sh.mail.pop()
				r.mail.s.backlog.inMail = false
				r.slots = slots
				sh.runs.long = append(sh.runs.long, r)
				sh.give(r)
				sent = true
				continue
			}
		}
		if p.refuses() {
			length = int32(slots)
		}
		r := sh.runs.new(runExecute)
		sh.fill(r, length)
		if p.refuses() {
			sh.slots.free(slots - len(r.list))
			slots = len(r.list)
		}
		if r.slots = slots; len(r.list) == 0 {
			sh.slots.free(slots)
			sh.runs.reuse(r)
			if sh.nready > 0 { // of slow keys, which run alone
				continue
			}
			break
		}
		r.first = r.list[0].stream
		r.more = sh.nready > 0 || sh.mail.len() > 0 || sh.follower(r.tail()) != nil
		if len(r.list) > 1 {
			sh.runs.long = append(sh.runs.long, r)
		}
		if p.soft() {
			pressured := p.begin() && p.opts.Policy == BackpressureSoftAllowWithSignal
			for _, m := range r.list {
				m.pressured = pressured
			}
		}
		sh.give(r)
		sent = true
		if length == 1 { // it may be quick, and back before another worker is started
			sh.sent = 0
			runtime.Gosched()
			break
		}
	}
	sh.slots.count(sh.nready)
	sh.flush()
	return sent
}

// wantsSlot reports whether there is something that may run if there is a slot.
func (sh *shard[T]) wantsSlot() bool {
	b := sh.batches
	return sh.nready > 0 || b != nil && (b.forming != nil || len(b.again) > 0)
}

// idleMail is how many messages a shard lines up at a time that has nothing else to do.
const idleMail = 64

// lineUpIdle lines up some of what waits in mailboxes for a slot, while messages are not known to be quick: so that the next
// slot goes to the key, or the stream, whose turn it is, though it lie behind a thousand others. It reports whether there
// was anything. A shard that is busy does not, since what is lined up long before it runs is out of the processor's caches
// by then: with eight streams that made a message twelve times dearer.
func (sh *shard[T]) lineUpIdle() (some bool) {
	if sh.batches != nil || sh.pace.length > 1 || !sh.hasMail() {
		return false
	}
	sh.lineUp(nil, 0, idleMail)
	sh.blind++
	return true
}

// askForSlot has the shard be told when there is a slot for it.
func (sh *shard[T]) askForSlot() {
	sh.slots.ask(sh.keep, func(err error) {
		sh.events <- event[T]{do: func() {
			sh.slots.answered(err)
			sh.over = sh.r.leave(sh)
		}}
	})
}

// fill puts into r what is ready, of the streams in turn, each with some of those behind it, and then what comes out of
// the mailboxes with its turn. For every two that it takes from the ready queues it lines up one from the mailboxes:
// otherwise a key with a long lane would keep others waiting there. As many as it takes would be too many: see lineUpIdle.
func (sh *shard[T]) fill(r *run[T], length int32) {
	if r.list == nil {
		r.list = make([]*message[T], 0, length)
	}
	for r.len() < length && sh.turns.len() > 0 {
		s := sh.turns.first()
		b := &s.backlog
		for quota := min(length, r.len()+max(1, (length-r.len())/int32(sh.turns.len()))); r.len() < quota && b.ready.head != nil; {
			m := b.ready.head
			if sh.pace.isSlow(m.hash) {
				if len(r.list) > 0 {
					return
				}
				r.alone = true
				length, quota = 1, 1
			}
			b.ready.pop()
			sh.nready--
			r.add(m)
			for f := sh.follower(m); f != nil && r.len() < quota && !f.stream.backlog.isSkipped(f); f = sh.follower(f) {
				r.add(f)
			}
		}
		sh.turns.pop()
		if b.inTurns = b.ready.n > 0; b.inTurns {
			sh.turns.push(s)
		}
	}
	if r.len() < length {
		sh.lineUp(r, length, 2*length)
	} else if sh.mail.len() > 0 {
		sh.lineUp(nil, 0, (r.len()+1)/2)
	}
}

// runBack takes a run back from its worker.
func (sh *shard[T]) runBack(r *run[T]) {
	if r.kind == runBatch {
		sh.batches.back(r)
		return
	}
	sh.runs.out--
	if r.kind == runMail {
		sh.mailBack(r)
		sh.crew.back(r.worker)
		sh.runs.reuse(r)
		return
	}
	k := r.next
	if r.kind == runExecute {
		if len(r.list) > 1 && !r.recalled {
			sh.runs.forget(r)
		}
		if !r.recalled {
			sh.pace.observe(r.len(), r.took, r.list[0].hash, r.alone, r.more)
		}
		if k < r.end && !r.recalled {
			from := k
			if r.list[k].step == stepBackoff {
				from++
			}
			sh.takeBack(r, from)
		}
		sh.r.gate.pressure.end()
	}
	sh.slots.free(r.slots)
	if first := sh.turns.first(); first != nil && first == r.first {
		// It has had its turn: streams that came while its run was out are before it.
		sh.turns.pop()
		sh.turns.push(first)
	}
	for _, m := range r.list[r.settled:k] {
		sh.settle(m)
	}
	if k < r.end {
		sh.retry(r.list[k])
	}
	sh.crew.back(r.worker)
	sh.runs.reuse(r)
}

// retry has m wait for its next try.
func (sh *shard[T]) retry(m *message[T]) {
	m.run = nil
	switch s := m.stream; {
	case s.backlog.swept:
		m.abort(s.abortKind())
		sh.finishOne(m)
	case m.delay <= 0:
		sh.resume(m)
	default:
		m.state = stateBackoff
		sh.backoff.add(m, sh.clock()+m.delay)
	}
}

// resume makes m ready for its next try.
func (sh *shard[T]) resume(m *message[T]) {
	m.step = stepAttempt
	switch {
	case sh.batches == nil:
		sh.ready(m)
	case m.before() != nil: // it was in a batch with that
		m.state = stateWaiting
	default:
		sh.turnCame(m)
	}
}

// settle counts m, which is at its end, and lets the next of its lane go on.
func (sh *shard[T]) settle(m *message[T]) {
	s := m.stream
	b := &s.backlog
	if m.skipKey {
		sh.skip(m)
	}
	b.ledger.finish(m.seq, m.attempts, m.outcome, m.settled)
	b.bytes += m.size
	sh.touch(s)
	if m.lane != nil {
		if next := s.order.leave(&m.turn, m.hash, sh); next != nil {
			f := next.owner.(*message[T])
			if f.state == stateBackoff && f.stream.backlog.isSkipped(f) { // it was in a batch with m
				sh.backoff.remove(f)
				f.state = stateWaiting
			}
			if f.state == stateWaiting { // otherwise it is in a run already
				sh.turnCame(f)
			}
		}
	}
	if m.refused {
		b.refusing = false
		sh.attend(s)
	}
	b.live.remove(m)
	m.clear()
	sh.free.put(m, &sh.r.messages)
}

// skip sees to it that no message of m's key behind m runs. From now on they are lined up as they come: those of the key
// need no capacity, and so must not lie where only a run comes by.
func (sh *shard[T]) skip(m *message[T]) {
	s := m.stream
	b := &s.backlog
	limit := streamSkips
	if s.session != nil {
		limit = sessionSkips
	}
	if !b.skipped.add(m.key, m.seq, limit) {
		f := m.failure(FailureOrdering, reasonManySkipped)
		if s.state.fail(f) {
			s.cancel(f)
		}
	}
	b.direct = true
	sh.attend(s)
}

// takeBack makes messages of r, from from on, what they were before: ready, or waiting behind others of their lane.
func (sh *shard[T]) takeBack(r *run[T], from int32) {
	for i := r.end - 1; i >= from; i-- {
		m := r.list[i]
		m.run = nil
		if m.lane != nil && !m.stream.order.isHead(&m.turn, m.hash) {
			m.state = stateWaiting
			continue
		}
		m.state = stateReady
		m.stream.backlog.ready.pushFront(m)
		sh.hasTurn(m.stream)
	}
	r.end = from
}

// recall takes back what r's worker has not claimed, and settles what it has done.
func (sh *shard[T]) recall(r *run[T]) {
	if r.kind == runMail {
		sh.recallMail(r)
		return
	}
	at := r.at.Swap(recalled)
	r.recalled = true
	if sh.r.gate.pressure.refuses() { // then each message has a slot of its own
		keep := 0
		if at >= 0 {
			keep = 1
		}
		sh.slots.free(r.slots - keep)
		r.slots = keep
	}
	sh.takeBack(r, max(0, at+1))
	sh.settleUpTo(r, at)
}

// settleUpTo settles what r's worker has done: everything before at, which it has claimed.
func (sh *shard[T]) settleUpTo(r *run[T], at int32) {
	if at < r.settled {
		return
	}
	if r.kind == runMail {
		sh.settleMail(r, at)
		return
	}
	from := r.settled
	r.settled = at
	for _, m := range r.list[from:at] {
		sh.settle(m)
	}
}

// settleLong settles what the workers of long runs have done so far.
func (sh *shard[T]) settleLong() {
	for _, r := range sh.runs.long {
		sh.settleUpTo(r, r.at.Load())
	}
}

// recallStuck recalls the runs that have stood still since the last look, or are out for far too long, and settles what the
// others have done. It reports whether there is something else to do than to wait.
func (sh *shard[T]) recallStuck() (some bool) {
	sh.blind = 0
	if len(sh.runs.long) == 0 {
		return false
	}
	now, before := sh.clock(), sh.nready
	for i := 0; i < len(sh.runs.long); {
		r := sh.runs.long[i]
		at := r.at.Load()
		sh.settleUpTo(r, at)
		if r.stands(at, now) {
			sh.pace.stoodStill(sh.hashAt(r, at))
			sh.runs.forget(r)
			sh.recall(r)
			some = true
			continue
		}
		i++
	}
	sh.flush()
	return some || sh.nready > before // by what has been settled
}

// hashAt returns the hash of the lane of the message that the worker of r has claimed.
func (sh *shard[T]) hashAt(r *run[T], at int32) uint64 {
	if r.kind != runMail {
		return r.list[at].hash
	}
	b := &r.mail.s.backlog
	b.skipEmpty(&sh.r.chunks)
	return b.chunk.list[b.pos].hash
}

// recallAll recalls the runs that have messages of s.
func (sh *shard[T]) recallAll(s *stream[T]) {
	for i := 0; i < len(sh.runs.long); {
		r := sh.runs.long[i]
		found := r.kind == runMail && r.mail.s == s
		for _, m := range r.list[min(r.settled, r.end):r.end] {
			found = found || m.stream == s
		}
		if !found {
			i++
			continue
		}
		sh.runs.forget(r)
		sh.recall(r)
	}
}
