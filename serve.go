package flow

import "time"

// What the worker does that has a lease: it claims one message after the other, and runs it, until it comes to the end of
// the lease, must look at its stream, or finds that somebody has called the lease in.

// yieldTime is how long what a handler under lease has woken may have to wait for the worker to yield. Each 20 µs would
// double the time of a message of 55 ns.
const yieldTime = 200 * time.Microsecond

// serve runs what c has on lease, until it comes to the end, is called in, or has to look at the stream. If a message is
// to be gone on with, it is c.m then. It returns what that one panicked with.
func (c *carrier[T]) serve() (crash error) {
	s, k := c.s, c.leased
	normal := false
	defer func() {
		if normal {
			return
		}
		crash = newPanicError(recover()) // as in recovered; of a Goexit nothing is returned, and run sees to it
		if c.leased != nil {
			c.m = c.callIn()
		}
	}()
	s.sendHeader()
	var began time.Duration
	if k.timed {
		began = s.clock()
	}
	for i := k.start; ; {
		a := &k.list[i]
		if s.ctx.Err() != nil { // as in attempt
			c.m = c.callIn()
			c.m.attempts = 0
			c.m.cutShort(s.cutKind())
			break
		}
		var err error
		if s.r.observer == nil {
			err = s.r.engine.attempt(s.ctx, Message[T]{Seq: a.seq, Key: a.key, Value: a.value, Attempt: 1})
		} else {
			err = c.attemptObserved(a, k.weight(i))
		}
		if err != nil {
			c.m = c.callIn()
			s.judge(c.m, err)
			break
		}
		if i+1 == k.n || !k.at.CompareAndSwap(int64(i), int64(i+1)) {
			c.checkIn(i, true, began)
			break
		}
		size := k.weight(i).size
		*a = arrival[T]{} // nobody looks at what is before at
		if size > 0 {
			s.r.bytes.sub(size)
		}
		i++
		if s.mustLook(k, i) {
			c.checkIn(i, false, began)
			break
		}
	}
	normal = true
	return nil
}

// mustLook says whether the worker must look at the stream before it runs what it has just claimed.
func (s *stream[T]) mustLook(k *chunk[T], i int) bool {
	return int64(i) >= k.end.Load() || s.r.gate.pressure.asking.Load() > 0 || s.order != nil && s.order.closed.Load()
}

// checkIn ends c's lease when i has succeeded or, if it wasn't run, when the one before has, and finds the worker
// something to go on with. If the lease was called in meanwhile, that is i itself.
func (c *carrier[T]) checkIn(i int, ran bool, began time.Duration) {
	s, k := c.s, c.leased
	var took time.Duration
	if k.timed {
		now := s.clock()
		took = now - began
		c.yields = now-c.yielded > yieldTime
	}
	s.mu.Lock()
	if !k.held {
		c.m = c.giveBackLocked()
		if c.m == nil { // it has been lined up
			c.goOn(c.followLocked(), 0, nil)
			return
		}
		s.mu.Unlock()
		if ran {
			c.m.outcome, c.m.step = succeeded, stepFinish
		} else {
			c.m.attempts = 0
		}
		return
	}
	var size int64
	if ran {
		size = k.weight(i).size
		k.list[i] = arrival[T]{}
		i++
	}
	s.countLeaseLocked(k, i)
	s.inbox.parts[k.part].next = i
	s.endLeaseLocked(k)
	c.leased = nil
	if k.timed {
		s.leaseTookLocked(i-k.start, took)
	}
	c.goOn(c.followLocked(), size, nil)
}

// callIn is the worker's own calling in. It returns the message that runs.
func (c *carrier[T]) callIn() *message[T] {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.leased.held {
		c.s.callInOneLocked(c.leased)
	}
	m := c.giveBackLocked()
	if c.s.r.observer != nil {
		m.wasObserved(&c.observed)
	}
	return m
}

// giveBackLocked gives back the chunk of a lease that was called in, and returns what ran then; nil: it waits.
func (c *carrier[T]) giveBackLocked() *message[T] {
	k := c.leased
	m := k.m
	k.m, c.leased = nil, nil
	clear(k.list[:k.n])
	c.s.inbox.spendLocked(k)
	return m
}
