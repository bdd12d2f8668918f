package flow

import (
	"sync/atomic"
	"time"
)

// A lease lets one worker run the messages of a chunk without the stream's lock, one after the other as they were
// received. A serial loop keeps any order without lanes; it costs a fraction of what they cost, and while handlers take
// less than a wake-up nothing that is done side by side is faster.
//
// It is for as long as that goes fast: the worker times it, and takes no other when it was slow. It begins with a single
// message and doubles from lease to lease. And while messages are left in the chunk another worker is on its way and looks
// out (lookout.go); seeing the lease slow or stuck it comes, and calls the lease in. So does whoever needs the stream as
// it is: its end, a Snapshot, a key that is given up. To call it in is one swap under the stream's lock, and what it finds
// is the message that runs. That one becomes a message with a lane like any other, those before it have succeeded, those
// behind it are lined up; the worker sees it when its handler has returned. So everything else that looks at a stream
// calls the lease in first, and knows nothing of it.
//
// Keys that have a lane as the lease begins are left alone under it: their messages are lined up, with the lock. Lanes
// may end meanwhile, but none begins, since that takes a message out of the inbox, whose first chunk is on lease.

// lease is a chunk's. Its worker owns what is in the list from at on; what is before has been run and cleared.
type lease[T any] struct {
	// at is the index of the message that runs. The worker claims the next by moving it on, if it is as it left it;
	// whoever calls the lease in swaps in calledIn.
	at  atomic.Int64
	end atomic.Int64 // the worker runs no message from this one on before it has looked at the stream

	// Set before the lease begins.
	start int
	timed bool       // something waits behind the first that might run beside it
	keys  laneFilter // what had a lane then

	// Guarded by stream.mu.
	from int         // the first that is not counted as finished
	m    *message[T] // the one that ran when the lease was called in: the worker brings it to its end
}

const calledIn = -1

// leaseLocked leases to c what is left of the first chunk in the inbox, if that may be, and says whether it did.
func (c *carrier[T]) leaseLocked() bool {
	s := c.s
	for s.mayLeaseLocked() && s.inbox.fillLocked() {
		k, i := s.inbox.out, s.inbox.next
		if s.lanes.lanes > 0 && s.hasLaneLocked(k.list[i].key) {
			s.lineUpLocked(s.arriveLocked())
			continue
		}
		k.start, k.from = i, i
		k.keys.set(&s.lanes)
		k.at.Store(int64(i)) // the first is claimed with that
		end := k.n
		if k.timed = !s.serial && k.n-i > 1; k.timed {
			end = min(k.n, i+s.pace.run)
		}
		k.end.Store(int64(end))
		s.leased, c.leased = k, k
		s.hurryLocked()
		return true
	}
	return false
}

// mayLeaseLocked says whether a lease may begin.
func (s *stream[T]) mayLeaseLocked() bool {
	return s.fastLocked() && s.leased == nil && s.givenUp == nil && s.lanes.lanes <= maxFilterLanes &&
		(s.order == nil || !s.order.closed.Load())
}

// fastLocked says whether what is received is best run as it comes: that is likely to go fast, and somebody looks out who
// will come if it doesn't. Nobody needs to where nothing may run beside it anyway.
func (s *stream[T]) fastLocked() bool {
	return s.leases && s.pace.fast && (s.serial || !s.asking && (s.starting || s.slots < s.maxWorkers))
}

// hurryLocked has the lease's worker look at the stream as soon as enough has finished for the receiver that waits for
// room. The worker looks for end after it has moved at, this looks for at after it has moved end: one sees the other.
func (s *stream[T]) hurryLocked() {
	k := s.leased
	if k == nil || s.waiting != waitRoom {
		return
	}
	for {
		at, lack := k.at.Load(), s.lackLocked()
		if lack <= 0 { // it is being woken
			return
		}
		k.end.Store(min(k.end.Load(), at+lack))
		if k.at.Load() == at {
			return
		}
	}
}

// unclaimedLocked is how many messages of the lease nobody has begun.
func (s *stream[T]) unclaimedLocked() int {
	if k := s.leased; k != nil {
		return k.n - 1 - int(k.at.Load())
	}
	return 0
}

// progressLocked is how many messages under lease have finished and are not counted yet.
func (s *stream[T]) progressLocked() uint64 {
	if k := s.leased; k != nil {
		return uint64(int(k.at.Load()) - k.from)
	}
	return 0
}

// serve runs what c has on lease, until it comes to the end, is called in, or has to look at the stream. If a message is
// to be gone on with, it is c.m then.
func (c *carrier[T]) serve() {
	s, k := c.s, c.leased
	normal := false
	defer func() {
		v := recover()
		if normal {
			return
		}
		if c.leased != nil {
			c.m = c.callIn()
		}
		if v != nil { // else it is a Goexit, which run's own deferred function sees to
			s.crashed(c.m, newPanicError(v))
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
		if err := s.r.engine.attempt(s.ctx, Message[T]{Seq: a.seq, Key: a.key, Value: a.value, Attempt: 1}); err != nil {
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
}

// mustLook says whether the worker must look at the stream before it runs what it has just claimed.
func (s *stream[T]) mustLook(k *chunk[T], i int) bool {
	if int64(i) >= k.end.Load() || s.r.gate.pressure.asking.Load() > 0 {
		return true
	}
	if s.order == nil {
		return false
	}
	if s.order.closed.Load() {
		return true
	}
	if k.keys.empty {
		return false
	}
	hash, ordered := s.order.place(k.list[i].key)
	return ordered && k.keys.has(hash)
}

// checkIn ends c's lease when i has succeeded or, if it wasn't run, when the one before has, and finds the worker
// something to go on with. If the lease was called in meanwhile, that is i itself.
func (c *carrier[T]) checkIn(i int, ran bool, began time.Duration) {
	s, k := c.s, c.leased
	var took time.Duration
	if k.timed {
		took = s.clock() - began
	}
	s.mu.Lock()
	if s.leased != k {
		c.m = c.endLeaseLocked()
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
	if k.timed {
		s.leaseTookLocked(i-k.start, took)
	}
	s.countLeaseLocked(i)
	s.inbox.next = i
	s.leased, c.leased = nil, nil
	c.goOn(c.followLocked(), size, nil)
}

// leaseTookLocked is told how long the messages of a lease took. A long one may have been slow because its core was taken
// away: the next, of a single message, shows.
func (s *stream[T]) leaseTookLocked(n int, took time.Duration) {
	switch {
	case took <= time.Duration(n)*leasePace:
		s.pace.run = min(2*s.pace.run, chunkSize)
	case s.pace.run > 1:
		s.pace.run = 1
	default:
		s.pace.slow(s.paceLocked())
	}
}

// countLeaseLocked counts the messages of the lease before index to as finished.
func (s *stream[T]) countLeaseLocked(to int) {
	n := uint64(to - s.leased.from)
	s.leased.from = to
	s.counts.Succeeded += n
	s.finished += n
	s.pace.taken += n
	if s.r.idle > 0 {
		s.lastUse.Store(int64(s.clock()))
	}
}

// callInLocked ends the lease, if there is one, so that the stream is as if it had never been.
func (s *stream[T]) callInLocked() {
	k := s.leased
	if k == nil {
		return
	}
	i := int(k.at.Swap(calledIn)) // here it is decided what runs
	s.countLeaseLocked(i)
	s.leased = nil
	s.inbox.out, s.inbox.next = k.next, 0        // the chunk is its worker's until that comes
	m := s.acceptLocked(&k.list[i], k.weight(i)) // which may read it still
	if s.lanes.lanes > 0 && s.hasLaneLocked(m.key) {
		s.lineUpLocked(m) // its worker has claimed it, and sees that it must not run it
	} else {
		m.attempts, m.state = 1, stateRunning
		s.pace.taken++
		s.openLaneLocked(m)
		k.m = m
	}
	for i++; i < k.n; i++ {
		m := s.acceptLocked(&k.list[i], k.weight(i))
		k.list[i] = arrival[T]{}
		s.lineUpLocked(m)
	}
}

// callIn is the worker's own calling in. It returns the message that runs.
func (c *carrier[T]) callIn() *message[T] {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.leased == c.leased {
		c.s.callInLocked()
	}
	return c.endLeaseLocked()
}

// endLeaseLocked gives back the chunk of a lease that was called in, and returns what ran then; nil: it waits.
func (c *carrier[T]) endLeaseLocked() *message[T] {
	k := c.leased
	m := k.m
	k.m, c.leased = nil, nil
	clear(k.list[:k.n])
	c.s.inbox.giveBack(k)
	return m
}
