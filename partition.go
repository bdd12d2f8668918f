package flow

import "runtime"

// Messages that take a microsecond or ten are best run by as many workers as there are processors, each of which has the
// messages of some keys to itself: it then takes no lock, and waits for nobody. So while they take that long the inbox
// has a partition for each, which goes by the keys' hashes, and each is leased on its own. That is what a fixed set of
// workers would be that keys are hashed to, but only until a handler is stuck: then its lease is called in, and what waits
// behind it for no reason is run by whoever has time.
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

// maxPartitions is where the receiver, who does 50 ns of work for each message, is what limits.
const maxPartitions = 16

// partitionOf is the index of a's.
func (s *stream[T]) partitionOf(a *arrival[T]) int {
	n := uint64(s.inbox.spread)
	hash, ordered := s.place(a.key)
	if !ordered {
		return int(a.seq % n)
	}
	return int(hash >> 32 * n >> 32)
}

// partitionsLocked is how many there may be. One worker more must be possible: who looks out for them.
func (s *stream[T]) partitionsLocked() int {
	return min(runtime.GOMAXPROCS(0), s.maxWorkers-1, maxPartitions)
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
