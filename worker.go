package flow

import (
	"runtime"
	"time"
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
	if !s.startAlone {
		s.lookOut()
	}
	c.m = c.lineUp()
	return c.run()
}

// lookOut holds a worker back as long as those at work need no help: while they finish a message every few hundred
// nanoseconds, one more would only fight them for the lock and for the memory behind it, and make all of them slower.
// It yields, so that whatever else could run does, and comes when it finds that little has happened since it was started,
// or not fast: on busy cores, a moment is many milliseconds, in which slow handlers finish some messages too.
func (s *stream[T]) lookOut() {
	for before, from := s.startTaken, s.startTime; ; {
		for range lookOutYields {
			if s.clock()-from > lookOutTime {
				break
			}
			runtime.Gosched()
		}
		taken, now := s.taken.Load(), s.clock()
		if n := taken - before; n < lookOutTakes || now-from > time.Duration(n)*lookOutPace {
			return
		}
		before, from = taken, now
	}
}

const (
	lookOutYields = 4
	lookOutTime   = 10 * time.Microsecond
	lookOutTakes  = 3                    // messages
	lookOutPace   = 2 * time.Microsecond // a message
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
		if s.startAlone = s.slots == 0; !s.startAlone {
			s.startTaken, s.startTime = s.taken.Load(), s.clock()
		}
		s.carriers.Go(s.startFn)
	}
	if !s.attended.Load() {
		s.attended.Store(true)
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
	if c.slot = s.moreLocked(); c.slot {
		m = s.takeLocked()
		if !called {
			s.r.gate.pressure.lack(-1)
		}
	} else {
		s.slots--
		s.r.gate.pressure.giveBack()
	}
	s.startLocked()
	if s.roomLocked() { // this may have been the last that was ready
		s.wakeReceiver()
	}
	return m
}

// moreLocked says whether there is something for a worker to take. What is ready when the stream is over is the sweep's.
func (s *stream[T]) moreLocked() bool { return s.ready.n > s.coming && !s.over.Load() }

// followLocked is what a worker does after a message: the next one, or its slot goes back.
func (c *carrier[T]) followLocked() *message[T] {
	s, p := c.s, c.s.r.gate.pressure
	s.sortLocked()
	more := s.moreLocked()
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

// trimLocked gives all memory back when nothing is pending, to where all streams of the Flow get theirs from: ten thousand
// may be idle.
func (s *stream[T]) trimLocked() {
	if s.live != nil || s.pendingLocked() > 0 {
		return
	}
	if s.free.n > 0 {
		s.free.giveUp(&s.r.messages)
	}
	s.inbox.trimLocked(&s.r.arrivals)
	s.lanes.trim()
}
