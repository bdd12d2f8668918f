package flow

import (
	"context"
	"runtime"
)

// Workers are the carriers that hold a slot. A stream has no goroutine for a message that waits, and none at all while
// it is idle: a worker is started when something is to be done, takes message after message from the ready queue, and
// ends when that is empty. What was received gets there through the workers themselves: one that finds nothing ready
// sorts the inbox's messages into their lanes, so that the receiver and the workers hardly ever touch the same memory.
// At most one is on its way at a time; having come, it starts the next if there is more to do.
// So a burst of short messages is run by one or two workers, where a goroutine for each message would cost 30% more over
// a loopback connection, and a burst of long ones by as many as there are slots.
//
// The one that is on its way is also the only one of its stream that asks for a slot: streams stand in the semaphore's
// queue once each, however much they have waiting. While all slots in use are its own stream's it doesn't even ask, since
// they come free there: the queue is for other streams, and a worker that sees one of those ask gives its slot back
// after the message at hand.
//
// Where the controller may refuse (HardReject, QueueCapacity), slots are decided on one by one: the receiver takes the
// slot for the message at hand, and a worker comes with it.

// startWorker is the body of a worker that has yet to get its slot.
func (s *stream[T]) startWorker() error {
	c := carrier[T]{s: s}
	s.lookOut()
	c.m = c.lineUp()
	return c.run()
}

// lookOut holds a worker back as long as those at work need no help: while they finish a message every few hundred
// nanoseconds, one more would only fight them for the lock and for the memory behind it, and make all of them slower.
// It yields, so that whatever else could run does, and comes when it finds that little has happened meanwhile.
func (s *stream[T]) lookOut() {
	for before := s.taken.Load(); ; {
		for range lookOutYields {
			runtime.Gosched()
		}
		now := s.taken.Load()
		if now-before < lookOutTakes {
			return
		}
		before = now
	}
}

var (
	lookOutYields = 4
	lookOutTakes  = uint64(3)
)

// comeWorker is the body of a worker that was given its slot on receipt of a message.
func (s *stream[T]) comeWorker() error {
	c := carrier[T]{s: s}
	c.m = c.arrive(true)
	return c.run()
}

// pushLocked queues m, whose turn has come.
func (s *stream[T]) pushLocked(m *message[T]) {
	m.state = stateQueued
	s.ready.push(m)
	s.r.gate.pressure.lack(1)
}

// takeLocked takes the first of the ready queue for a worker.
func (s *stream[T]) takeLocked() *message[T] {
	m := s.ready.pop()
	m.state = stateRunning
	s.running++
	s.round--
	s.taken.Add(1)
	p := s.r.gate.pressure
	m.pressured = p.begin() && p.opts.Policy == BackpressureSoftAllowWithSignal
	return m
}

// startLocked starts a worker if there is something to do that nobody comes for, and a slot that may come free.
//
// attended spares the receiver this lock. It is true while somebody is bound to sort after now: the worker on its way,
// or, all slots being taken, any that has one. It becomes false here alone, before the last look into the inbox, as the
// receiver looks at it after putting something there: one of the two sees the other.
func (s *stream[T]) startLocked() {
	if s.over.Load() {
		return
	}
	p := s.r.gate.pressure
	if !s.starting && (p.slots == nil || s.slots < p.opts.Capacity) {
		if s.ready.n <= s.coming && s.inbox.sortedLocked() {
			s.attended.Store(false)
			if s.inbox.emptyLocked() {
				return
			}
		}
		s.starting = true
		s.carriers.Go(s.startFn)
	}
	if !s.attended.Load() {
		s.attended.Store(true)
	}
}

// sortLocked lines up what was received if nothing is ready.
func (s *stream[T]) sortLocked() {
	if s.ready.n <= s.coming {
		s.gatherLocked()
	}
}

// roundLocked lines up what was received if all has been taken that was ready when that was last done. It is called
// before a message that a worker is done with lets the next of its key go on, or goes on itself with its next try: else
// a key with a full lane would keep its slot for as long as that lasts, while other keys' messages lie in the inbox.
func (s *stream[T]) roundLocked() {
	if s.rounds && s.round <= 0 {
		s.gatherLocked()
	}
}

// gatherLocked lines up what was received until enough is ready for a while. Not more: others wait for the lock, and
// what lies in the inbox takes a quarter of the memory.
func (s *stream[T]) gatherLocked() {
	for enough := max(s.ready.n, s.coming) + sortBatch; s.ready.n < enough && !s.over.Load(); {
		m := s.arriveLocked()
		if m == nil {
			break
		}
		s.lineUpLocked(m)
	}
	s.round = s.ready.n
}

const sortBatch = 32

// arriveLocked takes the next message out of the inbox.
func (s *stream[T]) arriveLocked() *message[T] {
	a := s.inbox.takeLocked()
	if a == nil {
		return nil
	}
	m := s.acceptLocked(a)
	*a = arrival[T]{}
	return m
}

// lineUpLocked brings a message out of the inbox to its lane, or further.
func (s *stream[T]) lineUpLocked(m *message[T]) {
	first, why := s.joinLocked(m)
	switch {
	case why != "": // the resolver was closed: what is bounded doesn't pass through the inbox
		m.refuse(FailureOrdering, why)
		s.carry(m)
	case first && s.turnLocked(m):
		s.carry(m)
	}
}

// joinLocked lines m up in its lane, if it has an order. first says that its turn has come with that.
func (s *stream[T]) joinLocked(m *message[T]) (first bool, why reason) {
	if !m.ordered {
		return true, ""
	}
	name := s.order.lane(m.key)
	if s.shared != nil {
		return s.shared.shard(m.hash).join(name, m.hash, &m.turn)
	}
	return s.lanes.join(name, m.hash, &m.turn)
}

// leaveLocked takes m out of its lane and returns whose turn comes by it.
func (s *stream[T]) leaveLocked(m *message[T]) *turn {
	if s.shared != nil {
		return s.shared.shard(m.hash).leave(&m.turn)
	}
	return s.lanes.leave(&m.turn)
}

// waitsLocked says whether m waits in its lane for an earlier message.
func (s *stream[T]) waitsLocked(m *message[T]) bool {
	if s.shared != nil {
		return s.shared.shard(m.hash).waits(&m.turn)
	}
	return m.waits()
}

// attend is called by the receiver that has put something into an inbox that nobody will look into.
func (s *stream[T]) attend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sortLocked()
	if s.ready.n > s.coming {
		s.startLocked()
	}
}

// lineUp gets the starting worker its slot, behind the other streams' that asked before, and its first message.
// nil: the stream's context has ended, or there is nothing left to do.
func (c *carrier[T]) lineUp() *message[T] {
	s, p := c.s, c.s.r.gate.pressure
	c.back = false
	if !p.try() {
		s.mu.Lock()
		s.asking = true
		p.asking.Add(1)
		s.mu.Unlock()
		err := p.ask(s.ctx)
		s.mu.Lock()
		s.asking = false
		p.asking.Add(-1)
		if err != nil {
			s.starting = false // what is ready is left to the sweep: the context's end brings it about
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
	}
	return c.arrive(false)
}

// arrive is where a worker with a new slot takes its first message. called: the slot was taken on receipt.
func (c *carrier[T]) arrive(called bool) *message[T] {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if called {
		s.coming--
	} else {
		s.starting = false
		s.slots++
	}
	var m *message[T]
	s.sortLocked()
	if c.slot = s.ready.n > s.coming; c.slot {
		m = s.takeLocked()
		if !called {
			s.r.gate.pressure.lack(-1)
		}
	} else {
		s.slots--
		s.r.gate.pressure.giveBack()
	}
	s.startLocked()
	return m
}

// followLocked is what a worker does after a message: the next one, or its slot goes back.
func (c *carrier[T]) followLocked() *message[T] {
	s, p := c.s, c.s.r.gate.pressure
	s.sortLocked()
	more := s.ready.n > s.coming
	if more && !s.yieldsLocked() {
		p.lack(-1)
		return s.takeLocked()
	}
	c.slot = false
	s.slots--
	p.giveBack()
	switch {
	case !more:
		s.trimLocked()
	case !s.starting:
		s.starting, c.back = true, true
	}
	return nil
}

// yieldsLocked says whether another stream, or a direct caller, asks for a slot.
func (s *stream[T]) yieldsLocked() bool {
	p := s.r.gate.pressure
	if p.slots == nil {
		return false
	}
	others := p.asking.Load()
	if s.asking {
		others--
	}
	return others > 0
}

// turnLocked sees to m, whose turn has come: it is queued, or, if the caller must carry it, it will not run.
func (s *stream[T]) turnLocked(m *message[T]) (carry bool) {
	switch {
	case s.over.Load():
		m.cutShort(s.cutKindLocked())
		return true
	case s.isGivenUpLocked(m):
		m.refuse(FailureOrdering, reasonGivenUp)
		return true
	case s.own != nil:
		s.carriers.Go(func() error { return s.ask(m) })
	default:
		s.pushLocked(m)
	}
	return false
}

// turnCame implements turnOwner: the lane's last turn was another stream's, or a direct caller's.
func (m *message[T]) turnCame() {
	s := m.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.turnLocked(m) {
		s.carry(m)
	}
	s.startLocked()
}

// ask gets m's turn from a caller's own resolver, as a carrier of m, and queues m with it.
func (s *stream[T]) ask(m *message[T]) error {
	c := &carrier[T]{s: s, m: m}
	if s.ctx.Err() != nil { // as in attempt: a turn that a cancelled handler left is of no use any more
		m.cutShort(s.cutKind())
		return c.run()
	}
	release, err := s.askOwn(m)
	m.release = release
	if err == nil {
		s.mu.Lock()
		over := s.over.Load()
		if over {
			m.cutShort(s.cutKindLocked())
		} else {
			s.pushLocked(m)
			s.startLocked()
		}
		s.mu.Unlock()
		if over {
			return c.run()
		}
		return nil
	}
	switch {
	case panicked(err):
		m.refuse(FailureInternal, err)
	case s.ctx.Err() != nil:
		m.refuse(FailureContextCancelled, contextFailure(s.ctx).Err)
	case s.over.Load(): // the shutdown ended the wait
		m.cutShort(s.cutKind())
	default:
		f := orderFailure(context.Background(), err, m.key)
		m.refuse(f.Kind, f.Err)
	}
	return c.run()
}

// askOwn calls the resolver.
func (s *stream[T]) askOwn(m *message[T]) (release ReleaseFunc, err error) {
	err = isolated(func() (err error) {
		release, err = s.own.Wait(s.waits, m.key)
		return err
	})
	return release, err
}

// trimLocked gives memory back when nothing is pending: ten thousand streams may be idle.
func (s *stream[T]) trimLocked() {
	if s.live != nil || s.pendingLocked() > 0 {
		return
	}
	if s.free.n > idleFree {
		s.free.giveUp(&s.r.messages)
	}
	s.inbox.trimLocked(&s.r.arrivals)
	s.lanes.trim()
}
