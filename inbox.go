package flow

import (
	"sync"
	"sync/atomic"
	"time"
)

// inbox joins the receiver to the workers: it holds what was received and not yet lined up. A worker that has nothing
// ready takes all of it at once, so that the two meet at a lock for a moment.
//
// A buffered channel would be the plain thing to join two stages by, but it is a lock on both sides for each message.
// A lock-free list in its place was measured too: with both cores busy it was no faster.
type inbox[T any] struct {
	mu       sync.Mutex  // innermost: stream.mu may be held
	in, last *chunk[T]   // what was received and not taken, the oldest first
	some     atomic.Bool // in is not nil: written under mu, for a look without it
	free     *chunk[T]   // empty ones
	received uint64      // messages, through the inbox or past it
	direct   bool        // nothing passes through any more: see intake.decideLocked
	shut     bool        // nothing is received any more

	// Guarded by stream.mu: what was taken out. The first chunk may be on lease: see lease.go.
	out  *chunk[T]
	next int // index of the first in it that is neither lined up nor run
}

// chunkSize is how many messages change hands at once, at most. For so many a worker takes the stream's lock once, and
// so many are lined up if it must give up its lease.
const chunkSize = 32

// chunk is a part of what an inbox holds. It is used again, by whatever stream.
type chunk[T any] struct {
	next    *chunk[T]
	n       int // of list in use
	list    [chunkSize]arrival[T]
	weights []weight // of the same, where they are kept: apart, since what two cores share had better be small
	lease[T]
}

// arrival is a message as it is received.
type arrival[T any] struct {
	seq   uint64
	key   string // what the OrderingKeyFunc said
	value T
}

// weight is what is to be known of an arrival beside that.
type weight struct {
	size     int64         // bytes, where they are counted
	received time.Duration // since the stream's start, kept for the Observer
}

// weight is that of the i-th in the list.
func (k *chunk[T]) weight(i int) weight {
	if k.weights == nil {
		return weight{}
	}
	return k.weights[i]
}

// put takes *a on if nothing is to be decided about it; else it says why not. Its bytes are counted before a worker can
// take it, and so before they can be counted off.
func (b *inbox[T]) put(a *arrival[T], w weight, r *Receiver[T]) (direct, shut bool) {
	b.mu.Lock()
	if direct, shut = b.direct, b.shut; !direct && !shut {
		if b.last == nil || b.last.n == chunkSize {
			b.growLocked(&r.chunks)
		}
		k := b.last
		if w.size > 0 {
			r.bytes.add(w.size)
		}
		if k.weights == nil && w != (weight{}) {
			k.weights = make([]weight, chunkSize)
		}
		if k.weights != nil {
			k.weights[k.n] = w
		}
		k.list[k.n] = *a
		k.n++
		b.received++
	}
	b.mu.Unlock()
	return direct, shut
}

// growLocked appends an empty chunk. The pool holds lists of them.
func (b *inbox[T]) growLocked(pool *sync.Pool) {
	if b.free == nil {
		if b.free, _ = pool.Get().(*chunk[T]); b.free == nil {
			b.free = new(chunk[T])
		}
	}
	k := b.free
	b.free, k.next = k.next, nil
	if b.last == nil {
		b.in = k
		b.some.Store(true)
	} else {
		b.last.next = k
	}
	b.last = k
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

// fillLocked sees to it that there is something to take out, and says whether there is. The last look, after which
// nobody attends to the inbox any more, is empty's.
func (b *inbox[T]) fillLocked() bool {
	switch {
	case b.out == nil && !b.some.Load():
		return false
	case b.out != nil && b.next < b.out.n:
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.freeOutLocked()
	if b.out == nil {
		b.out, b.in, b.last = b.in, nil, nil
		b.some.Store(false)
	}
	return b.out != nil
}

// freeOutLocked takes back the chunk that was taken out if it is empty. None behind it is.
func (b *inbox[T]) freeOutLocked() {
	if k := b.out; k != nil && b.next == k.n {
		b.out, b.next = k.next, 0
		b.freeLocked(k)
	}
}

// freeLocked takes back an empty chunk.
func (b *inbox[T]) freeLocked(k *chunk[T]) {
	k.n, k.next = 0, b.free
	b.free = k
}

// giveBack takes back a chunk that was lent out.
func (b *inbox[T]) giveBack(k *chunk[T]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.freeLocked(k)
}

// takeLocked takes out the next one, or nil. It is the caller's until the next call.
func (b *inbox[T]) takeLocked() (*arrival[T], weight) {
	if !b.fillLocked() {
		return nil, weight{}
	}
	i := b.next
	b.next++
	return &b.out.list[i], b.out.weight(i)
}

// empty says whether nothing lies in the inbox that was not taken out.
func (b *inbox[T]) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.in == nil
}

// visitLocked shows what lies in the inbox.
func (b *inbox[T]) visitLocked(visit func(*arrival[T])) {
	b.mu.Lock()
	defer b.mu.Unlock()
	from := b.next
	for _, k := range [...]*chunk[T]{b.out, b.in} {
		for ; k != nil; k = k.next {
			for i := from; i < k.n; i++ {
				visit(&k.list[i])
			}
			from = 0
		}
		from = 0
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

// trimLocked gives empty chunks to where all streams of the Flow get theirs from.
func (b *inbox[T]) trimLocked(pool *sync.Pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.freeOutLocked()
	if b.free != nil {
		pool.Put(b.free)
		b.free = nil
	}
}
