package flow

import (
	"sync/atomic"
	"time"
)

// A lease lets one worker run the messages of a chunk without the stream's lock, one after the other as they were
// received. A serial loop keeps any order without lanes, and it costs a fraction of what they cost. While handlers take
// less than a wake-up nothing that is done side by side is faster, so there is one lease at a time then; while they take
// some microseconds there is one for each partition of the inbox (partition.go). pace.go decides which it is.
//
// It is for as long as that goes well: the worker times it, and the mode changes when it was slow. It begins with a single
// message and doubles from lease to lease, up to what takes a tenth of a millisecond. And while messages are left in the
// inbox another worker is on its way and looks out (lookout.go); seeing the lease stuck it comes, and calls the lease in. So
// does whoever needs the stream as it is: its end, a Snapshot, a key that is given up. To call it in is one swap under the
// stream's lock, and what it finds is the message that runs. That one becomes a message with a lane like any other, those
// before it have succeeded, those behind it are lined up; the worker (serve.go) sees it when its handler has returned. So
// everything else that looks at a stream calls its leases in first, and knows nothing of them.
//
// Keys that have a lane as the lease begins are left alone under it: their messages are lined up, with the lock. Lanes
// may end meanwhile, but of the partition's keys none begins, since that takes a message out of a partition whose first
// chunk is on lease. What comes in others' lanes is no concern of the lease.

// lease is a chunk's. Its worker owns what is in the list from at on; what is before has been run and cleared.
type lease[T any] struct {
	// at is the index of the message that runs. The worker claims the next by moving it on, if it is as it left it;
	// whoever calls the lease in swaps in calledIn.
	at    atomic.Int64
	end   atomic.Int64 // the worker runs no message from this one on before it has looked at the stream
	began atomic.Int64 // as in journey; just after a claim it may be that of the message before

	// Set before the lease begins.
	start int
	timed bool // something waits behind the first that might run beside it

	// Guarded by stream.mu.
	seen standstill
	held bool        // it is on lease: neither called in nor over
	part int         // the partition it is the first of
	from int         // the first that is not counted as finished
	m    *message[T] // the one that ran when the lease was called in: the worker brings it to its end
}

// standstill is how far those who look out have seen the work on a chunk to be, again and again.
type standstill struct {
	at    int
	lane  int           // turns in the lane of its first message's key
	since time.Duration // of the first look that showed this; kept where there is a lane
	looks int           // that showed the same; 0: there was none
}

const calledIn = -1

// beginLeaseLocked leases the first chunk of p.
func (s *stream[T]) beginLeaseLocked(p *partition[T]) {
	k, i := p.out, p.next
	k.start, k.from = i, i
	k.at.Store(int64(i)) // the first is claimed with that
	k.began.Store(0)
	end := k.n
	if k.timed = !s.serial && k.n-i > 1; k.timed {
		end = min(k.n, i+int(s.pace.run))
	}
	k.end.Store(int64(s.untilBusyLocked(k, i+1, end)))
	k.held, k.part, p.leased = true, p.i, true
	s.leases++
	s.hurryLocked()
}

// untilBusyLocked is the index of the first message in k from i on whose key has a lane, or end.
func (s *stream[T]) untilBusyLocked(k *chunk[T], i, end int) int {
	if s.lanes.lanes == 0 {
		return end
	}
	var lanes laneFilter
	lanes.set(&s.lanes)
	for ; i < end; i++ {
		if key := k.list[i].key; lanes.mayHave(s.order.lane(key)) && s.laneLocked(key) != nil {
			break
		}
	}
	return i
}

// leaseAllowedLocked says whether a lease may begin.
func (s *stream[T]) leaseAllowedLocked() bool {
	return s.fastLocked() && s.leases < s.abreast && s.givenUp == nil && s.lanes.lanes <= maxFilterLanes &&
		(s.order == nil || !s.order.closed.Load()) && !s.inbox.mixedLocked()
}

// fastLocked says whether what is received is best run as it comes: that is likely to go fast, and somebody looks out who
// will come if it doesn't. Nobody needs to where nothing may run beside it anyway.
func (s *stream[T]) fastLocked() bool {
	return s.mayLease && s.pace.mode != paceSlow && (s.serial || !s.asking && (s.starting || s.slots < s.maxWorkers))
}

// hurryLocked has the workers under lease look at the stream as soon as enough has finished for the receiver that waits
// for room. A worker looks for end after it has moved at, this looks for at after it has moved end: one sees the other.
// It says whether enough has finished already: who has begun the message at hand may not look before the next.
func (s *stream[T]) hurryLocked() (room bool) {
	if s.leases == 0 || s.waiting != waitRoom {
		return false
	}
	for k := range s.leasedLocked {
		for {
			at, lack := k.at.Load(), s.lackLocked()
			if lack <= 0 {
				return true
			}
			k.end.Store(min(k.end.Load(), at+max(1, lack/int64(s.leases))))
			if k.at.Load() == at {
				break
			}
		}
	}
	return false
}

// leasedLocked shows the chunks on lease.
func (s *stream[T]) leasedLocked(yield func(*chunk[T]) bool) {
	if s.leases == 0 {
		return
	}
	for i := range s.inbox.parts {
		if p := &s.inbox.parts[i]; p.leased && !yield(p.out) {
			return
		}
	}
}

// progressLocked is how many messages under lease have finished and are not counted yet.
func (s *stream[T]) progressLocked() (n uint64) {
	for k := range s.leasedLocked {
		n += uint64(int(k.at.Load()) - k.from)
	}
	return n
}

// countLeaseLocked counts the messages of the lease before index to as finished.
func (s *stream[T]) countLeaseLocked(k *chunk[T], to int) {
	n := uint64(to - k.from)
	k.from = to
	s.counts.Succeeded += n
	s.finished += n
	s.pace.taken += n
	if s.r.idle > 0 {
		s.lastUse.Store(int64(s.clock()))
	}
}

// endLeaseLocked is the end of k's lease.
func (s *stream[T]) endLeaseLocked(k *chunk[T]) {
	k.held = false
	s.inbox.parts[k.part].leased = false
	s.leases--
}

// callInLocked ends all leases, so that the stream is as if there had never been one.
func (s *stream[T]) callInLocked() {
	for k := range s.leasedLocked {
		s.callInOneLocked(k)
	}
}

// callInOneLocked ends the lease of k.
func (s *stream[T]) callInOneLocked(k *chunk[T]) {
	p := &s.inbox.parts[k.part]
	i := int(k.at.Swap(calledIn)) // here it is decided what runs
	s.countLeaseLocked(k, i)
	s.endLeaseLocked(k)
	p.out, p.next = k.next, 0                    // the chunk is its worker's until that comes
	m := s.acceptLocked(&k.list[i], k.weight(i)) // which may read it still
	if s.laneLocked(m.key) != nil {
		s.lineUpLocked(m) // its worker has claimed it, and sees that it must not run it
	} else {
		m.attempts, m.state = 1, stateRunning
		m.began.Store(k.began.Load())
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
