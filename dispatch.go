package flow

import "runtime"

// The way of a message through its shard: receive lines it up; dispatch sends it out in a run when it has its turn and
// there is a slot; runBack takes the run back and settles what has finished, by which others get their turn.

// accept makes a message of what was received. It must be called in order of receipt, which is the order of the ledger and
// of live: the first message of live is what Committed waits for. The entry is cleared, since its chunk is used again and
// would keep the value alive until then; the home is set each time, since messages come from a pool that all shards of the
// Receiver share.
func (sh *shard[T]) accept(s *stream[T], e *entry[T]) *message[T] {
	m := sh.free.get(&sh.r.messages)
	b := &s.backlog
	m.stream, m.home = s, sh
	m.entry = *e // by itself: assigned together, they went by way of the stack, which took 35 ns
	b.ledger.accept(e.seq)
	*e = entry[T]{}
	b.live.add(m)
	if sh.batches != nil {
		sh.batches.lineUp(m)
	}
	return m
}

// receive lines up what was received. open is the run that is being filled, which the message joins if it may. It is nil if
// there is none, and always where a message may be refused for lack of a slot. The order of the decisions matters. A message
// whose key function panicked has no key, and belongs to no lane. BackpressureHardReject refuses before the message lines up,
// whether or not its turn would have come; but not a message of a skipped key, which needs no capacity and is rejected as
// skipped. Only then does it join its lane, and only a message that has its turn reserves capacity.
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
			// A run executes its messages one after the other, so a message may join the run that the one before it in its
			// lane is in. It stays in the lane all the same: should the run be recalled, its place must be known.
			if open != nil && sh.mayFollow(m) && sh.isIn(open, m.before()) {
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
		// A slow key runs alone, so as to hold up no other message of the run: fill takes it from the ready queue.
		sh.ready(m)
	default:
		// It goes straight from the mailbox into the run, without the ready queue.
		open.add(m)
	}
}

// mayFollow reports whether m needs nothing but the end of the message before it in its lane. It does need more if a caller's own
// resolver gives the turns, which each message has to itself; and one of a skipped key must not run: a FIFO lane holds messages
// of many keys.
func (sh *shard[T]) mayFollow(m *message[T]) bool {
	return m.stream.order.external == nil && !m.stream.backlog.isSkipped(m)
}

// isIn reports whether m is in r; nil is in none.
func (sh *shard[T]) isIn(r *run[T], m *message[T]) bool { return m != nil && m.run == r }

// lineUpSoon sees to it that s, which is direct and has mail, does not leave it in the mailbox for long: it is lined up by
// dispatch, which runs what it can of it, and when it can run nothing more, all that is left (see lineUpDirect). To line all
// of it up at once would be as good, and was done once; but of a thousand messages each then was out of the processor's caches
// before it ran, which made a message with an Ordering.KeyCapacity a third dearer.
//
// Where streams share their lanes, what others have received before comes first.
func (sh *shard[T]) lineUpSoon(s *stream[T]) {
	if b := &s.backlog; !b.inDirect {
		b.inDirect = true
		sh.direct.push(s)
	}
	if s.order.shared != nil && sh.direct.len() > 1 {
		sh.lineUpDirect()
	}
}

// lineUpDirect lines up all that direct streams have received: what is to be refused is refused now, and what can't run yet has
// its place in its lane, or in the queue for a slot.
func (sh *shard[T]) lineUpDirect() {
	if sh.direct.len() == 0 {
		return
	}
	sh.slots.count(sh.nready)
	for s := sh.direct.first(); s != nil; s = sh.direct.first() {
		sh.direct.pop()
		s.backlog.inDirect = false
		if !s.backlog.ended {
			sh.lineUpAll(s)
			sh.touch(s) // so that its reader sees that nothing is undecided
		}
	}
}

// lineUpAll lines up everything that s, which is direct, has received. It stops at a refusal, behind which everything waits in
// the mailbox until settle attends to the stream again. It leaves the mailbox alone while a mail run reads it: mailBack attends
// to it again.
func (sh *shard[T]) lineUpAll(s *stream[T]) {
	b := &s.backlog
	for !b.refusing && !b.swept && b.mailRun == nil {
		e := sh.nextEntry(s)
		if e == nil {
			return
		}
		sh.receive(s, e, nil)
	}
}

// nextEntry takes the next entry out of the mailbox of s, to be lined up. If there is none, the verdict is given: the reader
// waits for it only after it has put its message there, so everything that it may have asked about is lined up by then.
func (sh *shard[T]) nextEntry(s *stream[T]) *entry[T] {
	b := &s.backlog
	e := b.next(&s.box, &sh.r.chunks)
	if e == nil {
		s.verdict.give(b.ledger.received)
	}
	return e
}

// lineUp takes up to most messages out of the mailboxes, of the streams in turn. Those that have their turn and may run join
// open, unless that is nil, until there are limit in it. It goes on beyond most while open is empty. The last rule keeps
// dispatch from giving up while there is mail: what comes first may be messages that wait behind others, or that run alone,
// and behind them lie some that could run.
//
// Each stream gives a share and then goes to the end of the ring, so that one whose client sends fast does not keep the
// others in their mailboxes. But all of a stream is lined up whose reader waits for that.
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
		if s.verdict.isAsked() {
			sh.lineUpAll(s)
			more = false
		}
		for ; share > 0 && more && !full(); share-- {
			e := sh.nextEntry(s)
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

// hasMail reports whether a stream that goes on may have something in its mailbox. It takes those out of the front of the
// ring that must not be read now. None is forgotten by that: whatever ends the reason, be it the end of a refusal or of a
// mail run, calls attend, which puts the stream into the ring again.
func (sh *shard[T]) hasMail() bool {
	for s := sh.mail.first(); s != nil; s = sh.mail.first() {
		b := &s.backlog
		linedUp := b.direct && !b.inDirect // all of it: see lineUpDirect
		if !linedUp && !b.swept && !b.ended && !b.refusing && b.mailRun == nil {
			return true
		}
		s.backlog.inMail = false
		sh.mail.pop()
	}
	return false
}

// turnCame is told that m, which was waiting, has its turn. It is called by whatever gives turns: receive, settle, resume
// and grant. A message of a skipped key is looked for first, since it must not ask a caller's own resolver, nor lie in a
// ready queue, where it would wait for capacity that it does not need.
func (sh *shard[T]) turnCame(m *message[T]) {
	s := m.stream
	switch {
	case s.backlog.isSkipped(m):
		sh.reject(m)
	case s.order.asks(m.hash) && s.ctx.Err() != nil: // of a turn that a cancelled handler has left
		sh.abortLane(m)
	case s.order.asks(m.hash):
		m.state = stateAsking
		// The answer comes on a goroutine of its own, which may wait until the shard has room for the event: m is not
		// finished before, so its stream is not done, and the shard lives.
		s.order.external.turn(s.order.resolver.lane(m.key), func(release ReleaseFunc, err error) {
			sh.events <- event[T]{do: func() { sh.answered(m, release, err) }}
		})
	default:
		sh.ready(m)
	}
}

// grant is told that others have handed their turn to m: but m may have been dropped since, and used again. A grant lies in
// a list until the shard looks, and between leave, which unlocks the lane, and handOver the shard may have swept m's stream.
// A message used again was once told of a turn that had been meant for its former life: hence all four conditions. If they
// hold, m is the head of its lane and has its turn, even if the grant was meant for its former life.
func (sh *shard[T]) grant(m *message[T]) {
	if m.stream != nil && m.state == stateWaiting && m.lane != nil && m.stream.order.isHead(&m.turn, m.hash) {
		sh.turnCame(m)
	}
}

// handOver implements turnHome: somebody else, who shares lanes with streams of this shard, has handed his turn to owner. It
// is called by that other's goroutine, with no lock held: a direct caller of a Gate, or the shard of another Receiver, which
// must not wait for this one. So the event is only sent if there is room. Nothing is lost by that: the grant is noted first,
// and a shard whose channel is full is awake and looks at the grants before it sleeps.
func (sh *shard[T]) handOver(owner turnOwner) {
	sh.granted.add(owner.(*message[T]))
	select {
	case sh.events <- event[T]{}:
	default: // it is not asleep, and looks before it is
	}
}

// answered is told what a caller's own resolver has said about m's turn. m was stateAsking all the time, which sweep leaves
// alone: if its stream has been swept meanwhile, m ends here. Its release is kept in any case, and called by the worker that
// brings it to its end.
func (sh *shard[T]) answered(m *message[T], release ReleaseFunc, err error) {
	m.release = release
	if err == nil {
		sh.readyUnlessSwept(m)
		return
	}
	m.cause, m.step = err, stepCause
	sh.finishOne(m)
}

// ready puts m, which has its turn, behind the others of its stream that have. A ready message needs nothing but a slot.
// dispatch takes it from there, in turns with the other streams.
func (sh *shard[T]) ready(m *message[T]) {
	m.state, m.run = stateReady, nil
	m.stream.backlog.ready.push(m)
	sh.hasTurn(m.stream)
}

// readyUnlessSwept is ready for a message that was in others' hands, while its stream may have been swept: then it ends
// here. Once such a message was ready all the same, and waited for a slot only to be dropped.
func (sh *shard[T]) readyUnlessSwept(m *message[T]) {
	if s := m.stream; s.backlog.swept {
		m.abort(s.abortKind())
		sh.finishOne(m)
		return
	}
	sh.ready(m)
}

// hasTurn counts one more ready message of s, which its caller has put into the ready queue, and sees to it that s takes
// turns.
func (sh *shard[T]) hasTurn(s *stream[T]) {
	sh.nready++
	if b := &s.backlog; !b.inTurns {
		b.inTurns = true
		sh.turns.push(s)
	}
}

// refuse brings m to its end, which was refused on receipt. What comes behind it waits until that is done, so that refusals
// slow their client down and come to OnFailure in order of receipt. settle, which counts m, ends that state.
func (sh *shard[T]) refuse(m *message[T]) {
	m.refused, m.stream.backlog.refusing = true, true
	sh.finishOne(m)
}

// reject brings m, whose key is skipped, to its end, and with it those that wait behind it. They go in one run, in the order
// of the lane: as each is settled, the turn of the next comes, which is in the run already.
func (sh *shard[T]) reject(m *message[T]) {
	r := sh.runs.new(runFinish)
	for ; m != nil && m.stream.backlog.isSkipped(m); m = sh.follower(m) { // which may be another stream's, in a shared lane
		m.refuse(FailureOrdering, reasonSkipped)
		r.add(m)
	}
	sh.finish(r)
}

// abortLane brings m, whose stream's context has ended and which would have to ask a caller's own resolver, to its end, and
// with it those that wait behind it. They go in one run, as in reject. When each was settled by itself where nobody is to be
// told, that gave the turn to the next, which was settled in that call: 100,000 messages took 64 MiB of stack.
func (sh *shard[T]) abortLane(m *message[T]) {
	r := sh.runs.new(runFinish)
	for t := &m.turn; t != nil; t = t.next { // all of the stream, since such a lane is its own
		m := t.owner.(*message[T])
		if m.stream.backlog.isSkipped(m) { // of another key: it is rejected when its turn comes
			break
		}
		m.abort(m.stream.abortKind())
		r.add(m)
	}
	sh.finish(r)
}

// follower returns the message that waits behind m in its lane, if it is this shard's and needs nobody else's turn. A
// caller's own resolver gives each message a turn of its own, so there no message may go together with the one before it. In
// a shared lane the next turn may be a direct caller's, or of another home. It is looked at under the lane's lock, but may
// be used after that: a turn that stands behind m is taken out of the lane by its own shard alone.
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

// finish has a worker bring the messages of r to their end, without a slot. Where there is nobody to tell they are at their
// end. To go through a worker costs two hops, and is needed only because OnFailure, the Observer and a resolver's release
// are the caller's code, which a shard never calls. A message at stepFailure has come here from message.abort only: its
// failure is the end of its stream, so that nothing is left to ask and no stream to end.
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

// give hands r to a worker. From here on r is the worker's but for at, and the fields that are marked as the shard's. It
// never blocks, since a worker that is idle has room for a run. What it counts decides when the shard lets others run (sent)
// and when it looks at long runs though it has never been idle (blind).
func (sh *shard[T]) give(r *run[T]) {
	sh.handOut(r)
	sh.crew.give(r)
}

// runOwn has the shard's own goroutine run r, as soon as the shard's loop has come to an end: see lead.
func (sh *shard[T]) runOwn(r *run[T]) {
	sh.handOut(r)
	sh.crew.lead.run = r
}

// handOut makes r one that is out, whoever runs it.
func (sh *shard[T]) handOut(r *run[T]) {
	r.end = r.len()
	sh.runs.out++
	sh.sent++
	sh.blind++
}

// dispatch sends runs out while there is something to run and it may run. It reports whether it has sent any. It is called
// by the shard's loop once all events have been heeded.
//
// What was lined up may have been refused, and have finished, though no run was sent: readers are told of it in any case.
func (sh *shard[T]) dispatch() (sent bool) {
	if sh.batches != nil {
		return sh.batches.dispatch()
	}
	sent = sh.sendAll()
	if !sent && sh.direct.len() > 0 {
		sh.lineUpDirect()
		sent = sh.sendAll() // what has come since the last look may run
	}
	sh.slots.count(sh.nready)
	sh.flush()
	return sent
}

// sendAll sends runs while there is something to run and it may run. It reports whether it has sent any.
func (sh *shard[T]) sendAll() (sent bool) {
	for more := true; more && (sh.nready > 0 || sh.hasMail()); {
		var some bool
		some, more = sh.send()
		sent = sent || some
	}
	return sent
}

// send sends one run, if any may run now: a mail run if there can be one, or else one of what is ready or may be lined up. more
// says that another may follow.
func (sh *shard[T]) send() (sent, more bool) {
	length := sh.pace.length
	swift := sh.pace.isSwift() && (sh.processors <= 2 || sh.turns.len()+sh.mail.len() <= 1)
	if swift {
		length = maxRun
	}
	// A mail run is for messages that are as quick as can be, or that the shard runs itself.
	mail := sh.mailLength()
	if sh.nready == 0 && sh.mail.len() == 0 { // the mailboxes were empty
		return false, false
	}
	own := mail > 0 && sh.pace.own(mail, sh.mail.len() > 1, sh.processors)
	straight := own || mail > 0 && length == maxRun
	// Enough long runs are out: one of them comes back soon, or is found to stand still, and either is an event or a look,
	// after which this is called again.
	if (!swift || sh.processors > 2) && !own && length > 1 && len(sh.runs.long) >= sh.pace.most(sh.processors, straight) {
		return false, false
	}
	slots := 0
	if !sh.r.gate.pressure.refuses() { // otherwise sendReady takes one for each message that has its turn
		if slots = sh.takeSlots(length); slots == 0 {
			return false, false
		}
	}
	if straight {
		if r := sh.mailRun(sh.mail.first(), mail); r != nil {
			r.slots = slots
			sh.sendMail(r, own)
			return true, !own
		}
	}
	return sh.sendReady(length, slots)
}

// takeSlots takes slots for a run of up to n messages, and asks for one if it gets none. It is called before a run is filled:
// messages of a run that waited for a slot would stay in front of whatever gets its turn meanwhile. Where messages may be
// refused, each that has its turn has a slot of its own; otherwise a run has one.
func (sh *shard[T]) takeSlots(n int32) int {
	sh.slots.cover(int(n))
	got := sh.slots.take(int(n))
	if got == 0 {
		sh.askForSlot()
	}
	return got
}

// sendMail sends r, a mail run of the stream whose turn it is. The stream leaves the ring, since only its worker may take from
// the mailbox now; mailBack attends to it again.
func (sh *shard[T]) sendMail(r *run[T], own bool) {
	sh.mail.pop()
	r.mail.s.backlog.inMail = false
	sh.runs.long = append(sh.runs.long, r)
	if own {
		sh.runOwn(r)
	} else {
		sh.give(r)
	}
}

// sendReady sends a run of up to length messages, in so many slots; where messages may be refused it takes these itself. There
// may turn out to be none: behind those that wait only some that are refused, or of slow keys, which run alone.
func (sh *shard[T]) sendReady(length int32, slots int) (sent, more bool) {
	p := sh.r.gate.pressure
	heads := length // how many may be taken from the ready queues
	if p.refuses() {
		if heads = min(length, sh.lineUpReady(length)); heads == 0 {
			return false, false
		}
		if slots = sh.takeSlots(heads); slots == 0 {
			return false, false
		}
		heads = int32(slots)
	}
	r := sh.runs.new(runExecute)
	left := int(sh.fill(r, length, heads))
	if p.refuses() { // what is left is of messages that are ready, and counts as theirs before more are received
		slots -= left
		sh.slots.back(left)
		sh.slots.count(sh.nready)
	}
	sh.lineUpBeside(r, length)
	if len(r.list) == 0 {
		sh.slots.unused(slots)
		sh.runs.reuse(r)
		return false, sh.nready > 0
	}
	r.slots = slots
	// Whether other messages were waiting tells the pace if a longer run would have been of use.
	r.first = r.list[0].stream
	r.more = sh.nready > 0 || sh.mail.len() > 0 || sh.follower(r.tail()) != nil
	if len(r.list) > 1 {
		sh.runs.long = append(sh.runs.long, r)
	}
	// A soft policy refuses nothing, it only counts executions: runBack counts this one off. There are no mail runs with it.
	if p.soft() {
		pressured := p.begin() && p.opts.Policy == BackpressureSoftAllowWithSignal
		for _, m := range r.list {
			m.pressured = pressured
		}
	}
	if !r.alone && sh.pace.own(r.len(), r.more, sh.processors) {
		sh.runOwn(r)
		return true, false
	}
	sh.give(r)
	if length == 1 { // it may be quick, and back before another worker is started
		sh.sent = 0
		runtime.Gosched()
		return true, false
	}
	return true, true
}

// lineUpReady lines up some of what is in the mailboxes while nothing is ready. It returns how many messages are. It is for
// messages that may be refused: such a one can have its slot only when it is lined up.
func (sh *shard[T]) lineUpReady(length int32) int32 {
	if sh.nready == 0 {
		sh.slots.count(0)
	}
	for sh.nready == 0 && sh.hasMail() {
		sh.lineUp(nil, 0, 2*length)
	}
	return int32(sh.nready)
}

// wantsSlot reports whether there is something that may run if there is a slot. A shard that is about to sleep stops asking
// for a slot if it does not: a slot that it then got would be taken from others for nothing.
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

// askForSlot has the shard be told when there is a slot for it. The answer comes on the goroutine that has waited in the
// semaphore. The shard must live until then, even if all its streams end meanwhile: so the asking is a user of it, from keep
// to leave.
func (sh *shard[T]) askForSlot() {
	sh.slots.ask(sh.keep, func(err error) {
		sh.events <- event[T]{do: func() {
			sh.slots.answered(err)
			sh.over = sh.r.leave(sh)
		}}
	})
}

// fill puts into r what is ready, of the streams in turn, each with some of those behind it. It takes up to so many heads of
// lanes out of the ready queues, and returns how many of these it has not used. What comes with a head needs no slot where each
// head has one: it runs when that has finished.
func (sh *shard[T]) fill(r *run[T], length, heads int32) (left int32) {
	if r.list == nil {
		r.list = make([]*message[T], 0, length)
	}
	for r.len() < length && heads > 0 && sh.turns.len() > 0 {
		s := sh.turns.first()
		b := &s.backlog
		// The streams that have something ready share what is left of the run, so that one with many ready messages does not
		// fill it alone.
		for quota := min(length, r.len()+max(1, (length-r.len())/int32(sh.turns.len()))); r.len() < quota && heads > 0 && b.ready.head != nil; {
			m := b.ready.head
			// A slow key begins the next run, which it has for itself.
			if sh.pace.isSlow(m.hash) {
				if len(r.list) > 0 {
					return heads
				}
				r.alone = true
				length, quota = 1, 1
			}
			b.ready.pop()
			sh.nready--
			heads--
			r.add(m)
			// Followers come with their head: each by itself would cost a run, and its two hops. A skipped key must be
			// looked for: followers were once put into a run although their key had just been skipped, since FIFO lanes
			// hold messages of many keys.
			for f := sh.follower(m); f != nil && r.len() < quota && !f.stream.backlog.isSkipped(f); f = sh.follower(f) {
				r.add(f)
			}
		}
		sh.turns.pop()
		if b.inTurns = b.ready.n > 0; b.inTurns {
			sh.turns.push(s)
		}
	}
	return heads
}

// lineUpBeside lines up some of what is in the mailboxes when r has been filled. If all that was ready is in r, and there is
// room, what has its turn joins it, unless it needs a slot of its own. Otherwise one is lined up for every two in r: a key with
// a long lane would keep others waiting in the mailboxes. As many as are in r would be too many: see lineUpIdle.
func (sh *shard[T]) lineUpBeside(r *run[T], length int32) {
	switch {
	case sh.nready > 0 || r.len() >= length || r.alone:
		sh.lineUp(nil, 0, (r.len()+1)/2)
	case sh.r.gate.pressure.refuses():
		sh.lineUp(nil, 0, 2*length)
	default:
		sh.lineUp(r, length, 2*length)
	}
}

// runBack takes a run back from its worker. The event has been sent by the worker as its last act with r, so all of r is the
// shard's again: the messages before r.next have finished, the one at r.next, if it was claimed, waits for its next try, and
// those behind it were never claimed.
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
		// A run that was recalled is in the list of long ones no more, and how long it took says nothing of quick messages:
		// that it stood still has been noted by then.
		if len(r.list) > 1 && !r.recalled {
			sh.runs.forget(r)
		}
		if !r.recalled {
			n := k // that have run
			if k < r.end && r.list[k].step == stepBackoff {
				n++
			}
			sh.pace.observe(max(1, n), r.took, r.list[0].hash, r.alone, r.more)
			if n <= 1 && len(r.list) > 1 {
				sh.pace.stopped(r.took)
			}
		}
		// This comes before settle, so that what stands behind a finished message is still behind it in its lane, and waits:
		// its turn comes by settle, and turnCame sees whether its key has been skipped just now. The worker has stopped at a
		// message that is retried or has skipped its key, so that what follows may be of the same lane.
		if k < r.end && !r.recalled {
			from := k
			if r.list[k].step == stepBackoff {
				from++
			}
			sh.takeBack(r, from)
		}
		sh.r.gate.pressure.end()
	}
	if sh.r.gate.pressure.refuses() {
		sh.slots.freeAtOnce(r.slots, sh.nready)
	}
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
	sh.ranIn(r.slots, int(k))
	sh.crew.back(r.worker)
	sh.runs.reuse(r)
}

// ranIn takes back n slots in which messages have run. Its callers have settled those, so that what has come
// behind them by now counts as waiting: a stream that has some in its ready queue and more in its mailbox is in both rings, and
// counts once. A long run is of as many streams as wait, or of one message each.
func (sh *shard[T]) ranIn(n, messages int) {
	streams := max(1, sh.turns.len(), sh.mail.len())
	ran := max(n, min(messages, streams))
	switch {
	case n == 0:
	case sh.r.gate.pressure.refuses(): // freeAtOnce has taken them back
		sh.slots.share(ran, streams)
	default:
		sh.slots.free(n, ran, streams)
	}
}

// retry has m wait for its next try. m stays the head of its lane: no later message of its key runs before its last attempt.
// The slot is not m's any more, so that what waits for its next try costs no capacity. A stream that was swept while m was
// out gets no more tries.
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
		sh.backoff.add(m, sh.after(m.delay))
	}
}

// resume makes m ready for its next try. Without batches it has its turn, since it has kept its place. It goes behind what
// is ready: a message that is retried at once takes turns with other keys.
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

// settle counts m, which is at its end, and lets the next of its lane go on. It is the only place where a message that was
// lined up is counted and freed, once, when its worker has given it back or claimed one behind it. After it m may be another
// message at once.
func (sh *shard[T]) settle(m *message[T]) {
	s := m.stream
	b := &s.backlog
	// This comes first: leave, below, gives the turn to the next message, and turnCame must find its key skipped.
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
	// What came behind the refusal has waited in the mailbox.
	if m.refused {
		b.refusing = false
		sh.attend(s)
	}
	b.live.remove(m)
	m.clear()
	sh.free.put(m, &sh.r.messages)
}

// skip sees to it that no message of m's key behind m runs. From now on s is direct: those of the key need no capacity, and so
// must not lie where only a run comes by. Clients choose keys, so there is a limit, and a stream that exceeds it fails. That is
// not done by stream.fail, which tells the shard by its own channel: if that is full, the shard would wait for itself. attend
// sweeps the stream instead. In a session m is not settled then: the client would go on behind it, with messages of a key that
// the next stream does not know to be skipped.
func (sh *shard[T]) skip(m *message[T]) {
	s := m.stream
	b := &s.backlog
	limit, why := streamSkips, error(reasonManySkipped)
	if s.session != nil {
		limit, why = sessionSkips, errManySkipped
	}
	if !b.skipped.add(m.key, m.seq, limit) {
		m.settled = m.settled && s.session == nil
		f := m.failure(FailureOrdering, why)
		if s.state.fail(f) {
			s.cancel(f)
		}
	}
	b.direct = true
	sh.attend(s)
}

// takeBack makes messages of r, from from on, what they were before: ready, or waiting behind others of their lane. The
// worker must be unable to claim them: it has given r back, or r has been recalled. Only heads of lanes are ready. They are
// put in front of what is ready, from the last to the first, so that they stand there in the order that they had in the run.
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

// recall takes back what r's worker has not claimed, and settles what it has done. It is called for runs that stand still,
// and for those of a stream that is swept; the caller has taken r out of the long runs. After the swap the worker can claim
// nothing: it brings the message at hand to its end and gives the run back, where runBack finds that one alone. A run that
// has not been claimed is taken back whole, and its worker gives it back without having looked at a message.
func (sh *shard[T]) recall(r *run[T]) {
	if r.kind == runMail {
		sh.recallMail(r)
		return
	}
	at := r.at.Swap(recalled)
	r.recalled = true
	sh.takeBack(r, max(0, at+1))
	// Once a run that stood still kept the slots of what was taken back from it: free slots were not used, and other
	// messages were refused for lack of them.
	if sh.r.gate.pressure.refuses() { // then each that has its turn has a slot of its own
		keep := 0
		if at >= 0 {
			keep = 1
		}
		sh.slots.freeAtOnce(r.slots-keep, sh.nready)
		r.slots = keep
	}
	sh.settleUpTo(r, at)
}

// settleUpTo settles what r's worker has done: everything before at, which it has claimed. The worker is done with a message
// before it claims the next by a CAS, and at was loaded or swapped here after that, so all that it wrote to the messages
// before at is seen. By this a long run makes room for the reader, and gives turns, while it is out.
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

// settleLong settles what the workers of long runs have done so far, and lines up what direct streams have received: who has
// seen that a message was received, and then calls Gate.Admit for its key, comes after it. Whatever needs an exact view of a
// stream has it called first: Stats, Snapshot, Progress, a shutdown's count.
func (sh *shard[T]) settleLong() {
	for _, r := range sh.runs.long {
		sh.settleUpTo(r, r.at.Load())
	}
	sh.lineUpDirect()
}

// recallStuck recalls the runs that have stood still since the last look, or are out for far too long, and settles what the
// others have done. It reports whether there is something else to do than to wait. It is called when the shard is about to
// sleep, and by catchUp when it has not been for lookRuns runs. Without it a handler that was quick and suddenly blocks
// would hold up the keys and streams behind it in its run for as long as it blocks.
//
// What has been settled may have given turns to messages, which once waited for the next look before they ran: so this
// counts as something to do.
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

// hashAt returns the hash of the lane of the message that the worker of r has claimed. There is one,
// and what lies before it has been settled: so the next entry of the mailbox is the one that a mail run has claimed.
func (sh *shard[T]) hashAt(r *run[T], at int32) uint64 {
	if r.kind != runMail {
		return r.list[at].hash
	}
	b := &r.mail.s.backlog
	b.skipEmpty(&r.mail.s.box, &sh.r.chunks)
	return b.chunk.list[b.pos].hash
}

// recallAll recalls the runs that have messages of s. It is called by sweep, so that their workers start nothing more of s.
// A run of one message need not be recalled: there is nothing behind it. Messages of other streams that are in such a run
// become ready again.
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
