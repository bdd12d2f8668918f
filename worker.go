package flow

import (
	"runtime"
	"time"
)

// Workers are the carriers that hold a slot. A stream has no goroutine for a message that waits, and none at all while
// it is idle: a worker is started when something is to be done, takes one thing after the other, and ends when nothing
// comes for a moment. It takes what is ready first; then a lease on what lies in the inbox (lease.go); and where that
// would not be fast, it sorts the inbox's messages into their lanes, and takes what is ready by that.
//
// At most one is on its way at a time; having come, it starts the next if there is more to do. So a burst of short
// messages is run by one worker or two, where a goroutine for each message would cost 30% more over a loopback
// connection, and a burst of long ones by as many as there are slots.
//
// The one that is on its way looks out first (lookout.go), and it is also the only one of its stream that asks for a
// slot: streams stand in the semaphore's queue once each, however much they have waiting. While all slots in use are its
// own stream's it doesn't even ask, since they come free there: the queue is for other streams, and a worker that sees
// one of those ask gives its slot back after the message at hand.
//
// Where the controller may refuse (HardReject, QueueCapacity), slots are decided on one by one: the receiver takes the
// slot for the message at hand, and a worker comes with it.

// startWorker is the body of a worker that has yet to get its slot.
func (s *stream[T]) startWorker() error {
	c := carrier[T]{s: s}
	if s.atOnce || s.lookOut() {
		c.m = c.lineUp()
	}
	return c.run()
}

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
	s.round--
	s.pace.taken++
	p := s.r.gate.pressure
	m.pressured = p.begin() && p.opts.Policy == BackpressureSoftAllowWithSignal
	return m
}

// startLocked starts a worker if there is something to do that nobody comes for, and a slot that may come free.
//
// attended spares the receiver this lock. It is true while somebody is bound to look into the inbox after now: the worker
// on its way, the one that lingers or, all slots being taken, any that has one. It becomes false here alone, before the
// last look into the inbox, as the receiver looks at it after putting something there: one of the two sees the other.
func (s *stream[T]) startLocked() {
	if s.over.Load() || s.lingers {
		return
	}
	if !s.starting && s.slots < s.maxWorkers {
		if !s.readyLocked() && !s.leftLocked() {
			s.attended.Store(false)
			if !s.inbox.some.Load() {
				return
			}
		}
		s.starting = true
		if s.atOnce = s.atOnceLocked(); !s.atOnce {
			s.started = s.paceLocked()
		}
		s.carriers.Go(s.startFn)
	}
	s.attendedLocked()
}

func (s *stream[T]) attendedLocked() {
	if !s.attended.Load() {
		s.attended.Store(true)
	}
}

// lineUp gets the starting worker its slot, behind the other streams' that asked before, and its first message.
// nil: it has none, but may have something else to go on with.
func (c *carrier[T]) lineUp() *message[T] {
	s, p := c.s, c.s.r.gate.pressure
	c.back = false
	if !p.try() {
		s.mu.Lock()
		s.callInLocked() // nobody looks out any more
		s.asking = true
		wake := s.roomLocked()
		p.asking.Add(1)
		s.mu.Unlock()
		if wake {
			s.wakeReceiver()
		}
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

// arrive is where a worker with a new slot finds its first thing to do. called: the slot was taken on receipt.
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
	c.slot = true
	m, found := c.pickLocked()
	switch {
	case !found:
		c.slot = false
		s.slots--
		s.r.gate.pressure.giveBack()
	case m != nil && !called:
		s.r.gate.pressure.lack(-1)
	}
	s.startLocked()
	if s.roomLocked() { // this may have been the last that was ready
		s.wakeReceiver()
	}
	return m
}

// readyLocked says whether something is ready for a worker that was not called for it. What is ready when the stream is
// over is the sweep's.
func (s *stream[T]) readyLocked() bool { return s.ready.n > s.coming && !s.over.Load() }

// pickLocked finds a worker something to do: the message that it returns, or a lease. false: there is nothing.
func (c *carrier[T]) pickLocked() (m *message[T], found bool) {
	s := c.s
	switch {
	case s.over.Load() || !s.backlogLocked():
		return nil, false
	case s.readyLocked():
	case c.leaseLocked():
		return nil, true
	case s.attendedToLocked():
		return nil, false
	default:
		if s.gatherLocked(); !s.readyLocked() {
			return nil, false
		}
	}
	m = s.takeLocked()
	if s.mayLease && s.pace.mode == paceSlow && s.pace.taken%timedEach == 0 {
		c.timing = s.clock() + 1
	}
	return m, true
}

// attendedToLocked says whether all that is left has somebody who is at it, or who looks out sees that it hasn't.
func (s *stream[T]) attendedToLocked() bool {
	return s.leaseAllowedLocked() || s.leases == s.abreast && s.fastLocked()
}

// followLocked is what a worker does after a message: the next, a lease, a moment's wait, or its slot goes back.
func (c *carrier[T]) followLocked() *message[T] {
	s, p := c.s, c.s.r.gate.pressure
	more := false
	if s.yieldsLocked() {
		if !s.readyLocked() {
			s.gatherLocked()
		}
		more = s.readyLocked()
	} else {
		if m, found := c.pickLocked(); found {
			if c.waited = false; m != nil {
				p.lack(-1)
			}
			return m
		}
		if s.mayLingerLocked() && !c.waited {
			s.lingers, c.lingers, c.waited = true, true, true
			s.attendedLocked()
			return nil
		}
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

// mayLingerLocked says whether a worker may keep its slot for what comes in a moment: not when nothing will, when another
// does so, and where who finds no slot is refused.
func (s *stream[T]) mayLingerLocked() bool {
	return !s.lingers && !s.r.gate.pressure.refuses() && !s.over.Load() && !s.input && !s.stopping
}

// linger waits a moment for something to do: to end a worker and to start another costs more than most messages.
func (c *carrier[T]) linger() {
	s := c.s
	var from time.Duration
	for n := 1; ; n++ {
		runtime.Gosched()
		late := n == lingerYields
		switch { // what comes at once is to cost no clock reading
		case n == lingerUntimed:
			from = s.clock()
		case n > lingerUntimed:
			late = late || s.clock()-from > lingerTime
		}
		s.mu.Lock()
		if late || s.backlogLocked() || s.yieldsLocked() || s.input || s.stopping || s.over.Load() {
			s.lingers, c.lingers = false, false
			c.goOn(c.followLocked(), 0, nil)
			return
		}
		s.mu.Unlock()
	}
}

const (
	lingerYields  = 64 // where time stands still
	lingerUntimed = 4
	lingerTime    = 2 * time.Microsecond
)

// backlogLocked says whether something is left that nobody has begun and that isn't known to wait for its turn.
func (s *stream[T]) backlogLocked() bool {
	return s.readyLocked() || s.leftLocked() || s.inbox.some.Load()
}

// leftLocked says whether messages that were taken out of the inbox are neither lined up nor begun.
func (s *stream[T]) leftLocked() bool {
	for i := range s.inbox.parts {
		p := &s.inbox.parts[i]
		k, next := p.out, p.next
		if k == nil {
			continue
		}
		if p.leased {
			next = int(k.at.Load()) + 1
		}
		if next < k.n || k.next != nil {
			return true
		}
	}
	return false
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

// trimLocked gives all memory back when nothing is pending, to where all streams of the Flow get theirs from: ten thousand
// may be idle.
func (s *stream[T]) trimLocked() {
	if s.live != nil || s.pendingLocked() > 0 {
		return
	}
	if s.free.n > 0 {
		s.free.giveUp(&s.r.messages)
	}
	s.inbox.trimLocked(&s.r.chunks)
	s.setPaceLocked(s.r.begin)
	s.lanes.trim()
}
