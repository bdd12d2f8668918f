package flow

import (
	"sync"
	"time"
)

// inbox joins the receiver to the workers: it holds what was received and not yet lined up. A worker that has nothing
// ready takes all of it at once and sorts it, so that the two meet at a lock for a moment, and at the lanes hardly ever.
//
// A buffered channel would be the plain thing to join two stages by, but it is a lock on both sides for each message.
// A lock-free list in its place was measured too: with both cores busy it was no faster.
type inbox[T any] struct {
	mu       sync.Mutex // innermost: stream.mu may be held
	in       *arrivals[T]
	received uint64 // messages, through the inbox or past it
	direct   bool   // nothing passes through any more: see intake.decideLocked
	shut     bool   // nothing is received any more

	// Guarded by stream.mu: what a worker has taken.
	out  *arrivals[T]
	next int // index of the first in it that is not sorted
}

// arrivals is what an inbox holds. It is used again, by whatever stream.
type arrivals[T any] struct{ list []arrival[T] }

// arrival is a message as it is received.
type arrival[T any] struct {
	seq      uint64
	key      string // what the OrderingKeyFunc said
	hash     uint64 // of its lane's name
	ordered  bool   // it lines up in a lane
	value    T
	size     int64         // bytes, where they are counted
	received time.Duration // since the stream's start, kept for the Observer
}

// put takes *a on if nothing is to be decided about it; else it says why not. Its bytes are counted before a worker can
// take it, and so before they can be counted off.
func (b *inbox[T]) put(a *arrival[T], r *Receiver[T]) (direct, shut bool) {
	b.mu.Lock()
	if direct, shut = b.direct, b.shut; !direct && !shut {
		if b.in == nil {
			if b.in, _ = r.arrivals.Get().(*arrivals[T]); b.in == nil {
				b.in = new(arrivals[T])
			}
		}
		if a.size > 0 {
			r.bytes.add(a.size)
		}
		b.in.list = append(b.in.list, *a)
		b.received++
	}
	b.mu.Unlock()
	return direct, shut
}

// count receives one past the inbox. ok is false if it is shut.
func (b *inbox[T]) count() (ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shut {
		return false
	}
	b.received++
	return true
}

// takeLocked takes out the next one, or nil. It is the caller's until the next call.
func (b *inbox[T]) takeLocked() *arrival[T] {
	if b.sortedLocked() {
		if b.out != nil {
			clear(b.out.list) // what it held is the messages' now
			b.out.list = b.out.list[:0]
		}
		b.mu.Lock()
		b.in, b.out = b.out, b.in
		b.mu.Unlock()
		b.next = 0
		if b.sortedLocked() {
			return nil
		}
	}
	b.next++
	return &b.out.list[b.next-1]
}

// sortedLocked says whether all that was taken is sorted.
func (b *inbox[T]) sortedLocked() bool { return b.out == nil || b.next == len(b.out.list) }

// emptyLocked says whether nothing lies in the inbox.
func (b *inbox[T]) emptyLocked() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sortedLocked() && (b.in == nil || len(b.in.list) == 0)
}

// visitLocked shows what lies in the inbox.
func (b *inbox[T]) visitLocked(visit func(*arrival[T])) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := b.next; b.out != nil && i < len(b.out.list); i++ {
		visit(&b.out.list[i])
	}
	for i := 0; b.in != nil && i < len(b.in.list); i++ {
		visit(&b.in.list[i])
	}
}

// total is how many messages were received.
func (b *inbox[T]) total() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.received
}

// close receives nothing more: this is what decides between received and not.
func (b *inbox[T]) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut = true
}

// bypass lets nothing pass through any more.
func (b *inbox[T]) bypass() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.direct = true
}

// trimLocked gives empty buffers to where all streams of the Flow get theirs from.
func (b *inbox[T]) trimLocked(pool *sync.Pool) {
	give := func(a **arrivals[T]) {
		if *a != nil && len((*a).list) == 0 {
			pool.Put(*a)
			*a = nil
		}
	}
	if b.sortedLocked() && b.out != nil {
		clear(b.out.list)
		b.out.list, b.next = b.out.list[:0], 0
	}
	give(&b.out)
	b.mu.Lock()
	defer b.mu.Unlock()
	give(&b.in)
}
