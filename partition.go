package flow

import "runtime"

// Messages that take a microsecond or ten are best run by as many workers as there are processors, each of which has the
// messages of some keys to itself: it then takes no lock, and waits for nobody. So while they take that long the inbox
// has partitions, which go by the keys' hashes, and each is leased on its own. That is what a fixed set of workers would
// be that keys are hashed to, but only until a handler is stuck: then its lease is called in, and what waits behind it for
// no reason is run by whoever has time.
//
// How many there are changes as the pace does. What was received before that lies in other partitions than what comes
// after, so it goes through the lanes: until all of it is out of the inbox there is no lease.

// partition is what one worker may have on lease. A key's messages are all in one.
type partition[T any] struct {
	i      int       // its index
	out    *chunk[T] // what was taken out of its pile
	next   int       // index of the first in it that is neither lined up nor run
	leased bool      // its first chunk is on lease: see lease.go
}

const (
	// maxAbreast is where the receiver, who does 50 ns of work for each message, is what limits.
	maxAbreast = 16
	// partitionsEach is how many partitions there are for each lease, so that no worker runs out of work when some keys
	// have more messages than others. With 64 keys and messages of 1 µs one for each took up to 1.3 of what a fixed set
	// of workers takes, two take 1.1 at most; four were no better. To call in a lease for a worker with nothing to do
	// was tried too: what it gains where a few keys have most messages, it loses elsewhere.
	partitionsEach = 2
)

// partitionOf is the index of a's.
func (s *stream[T]) partitionOf(a *arrival[T]) int {
	n := uint64(s.inbox.spread)
	hash, ordered := s.place(a.key)
	if !ordered {
		return int(a.seq % n)
	}
	return int(hash >> 32 * n >> 32)
}

// abreastLocked is how many leases there may be at once while messages take some microseconds. One worker more must be
// possible: who looks out for them.
func (s *stream[T]) abreastLocked() int {
	return min(runtime.GOMAXPROCS(0), s.maxWorkers-1, maxAbreast)
}

// spreadLocked has what is received from now on go to n partitions.
func (s *stream[T]) spreadLocked(n int) {
	b := &s.inbox
	if b.spread == n {
		return
	}
	s.callInLocked()
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > len(b.parts) {
		piles, parts := make([]pile[T], n), make([]partition[T], n)
		copy(piles, b.piles)
		copy(parts, b.parts)
		for i := range parts {
			parts[i].i = i
		}
		b.piles, b.parts = piles, parts
	}
	b.spread, b.old = n, b.received
}

// mixedLocked says whether something lies in the inbox that was received when there were other partitions.
func (b *inbox[T]) mixedLocked() bool {
	if b.old > 0 {
		b.frontLocked()
	}
	return b.old > 0
}

// frontLocked is the partition whose first message was received first; nil: nothing is left.
func (b *inbox[T]) frontLocked() (front *partition[T]) {
	n := b.spread
	if b.old > 0 {
		n = len(b.parts)
	}
	for i := range n {
		p := &b.parts[i]
		if b.fillLocked(p) && (front == nil || p.out.list[p.next].seq < front.out.list[front.next].seq) {
			front = p
		}
	}
	if front == nil || front.out.list[front.next].seq > b.old {
		b.old = 0
	}
	return front
}

// busyLaneLocked is the lane of p's first message, if its key has one.
func (s *stream[T]) busyLaneLocked(p *partition[T]) *lane {
	return s.laneLocked(p.out.list[p.next].key)
}

// leaseLocked leases to c what is left of the first chunk of a partition, if that may be, and says whether it did. c goes
// round the partitions; where all leases but its own are given it first goes round those that others don't, since what
// the handlers know of their keys is in its processor's cache.
func (c *carrier[T]) leaseLocked() bool {
	s := c.s
	if !s.leaseAllowedLocked() {
		return false
	}
	n := len(s.inbox.parts)
	step, steps := 1, n
	if s.leases == s.abreast-1 {
		step, steps = int(s.abreast), partitionsEach+n
	}
	at := c.part
	for i := range steps {
		if i == partitionsEach {
			step = 1
		}
		at = (at + step) % n
		if p := &s.inbox.parts[at]; !p.leased && s.clearLocked(p) {
			s.beginLeaseLocked(p)
			c.leased, c.part = p.out, at
			return true
		}
	}
	return false
}

// clearLocked says whether p has a message whose key has no lane, first. What is before that is lined up, but only if it
// has to be: a lane that is being worked off will soon be empty if it doesn't get more.
func (s *stream[T]) clearLocked(p *partition[T]) bool {
	for s.inbox.fillLocked(p) {
		l := s.busyLaneLocked(p)
		if l == nil {
			return true
		}
		// Alone, a worker that has nothing else to do won't see it end.
		if !l.stuck && s.slots > 1 && !s.strangerLocked(p) {
			return false
		}
		s.lineUpLocked(s.arriveFromLocked(p))
	}
	return false
}

// strangerLocked says whether in the first chunk of p there is a message whose key has no lane.
func (s *stream[T]) strangerLocked(p *partition[T]) bool {
	for i := p.next; i < p.out.n; i++ {
		if s.laneLocked(p.out.list[i].key) == nil {
			return true
		}
	}
	return false
}
