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
	some     atomic.Bool // a pile is not empty: written under mu, as that changes, for a look without it
	direct   bool        // nothing passes through any more: see intake.decideLocked
	shut     bool        // nothing is received any more
	free     *chunk[T]   // empty ones, for the receiver
	received uint64      // messages, through the inbox or past it
	piles    []pile[T]   // what was received and not taken, of each partition

	// Guarded by stream.mu.
	parts  []partition[T] // what was taken
	spent  *chunk[T]      // of that, chunks that are empty now
	spents int

	// Written under stream.mu and mu.
	spread int    // among how many partitions what is received is spread
	old    uint64 // the Seq up to which it was spread otherwise; 0: there is nothing of that

	// The memory of the slices, as long as there is one partition.
	onePile [1]pile[T]
	onePart [1]partition[T]
}

// pile is a list of chunks, the oldest first.
type pile[T any] struct{ first, last *chunk[T] }

// chunkSize is how many messages change hands at once, at most. For so many a worker takes the stream's lock and reads the
// clock once, which is 0.4 µs: with chunks of 32 a message of 40 ns took 50. So many are lined up, in 10 µs, if it must
// give up its lease.
const chunkSize = 128

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
func (s *stream[T]) put(a *arrival[T], w weight) (direct, shut bool) {
	b, r := &s.inbox, s.r
	b.mu.Lock()
	if direct, shut = b.direct, b.shut; !direct && !shut {
		i := 0
		if b.spread > 1 {
			i = s.partitionOf(a)
		}
		p := &b.piles[i]
		if p.last == nil || p.last.n == chunkSize {
			b.growLocked(p, &r.chunks)
		}
		k := p.last
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
func (b *inbox[T]) growLocked(p *pile[T], pool *sync.Pool) {
	if b.free == nil {
		if b.free, _ = pool.Get().(*chunk[T]); b.free == nil {
			b.free = new(chunk[T])
		}
	}
	k := b.free
	b.free, k.next = k.next, nil
	if p.last == nil {
		p.first = k
		b.some.Store(true)
	} else {
		p.last.next = k
	}
	p.last = k
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

// fillLocked sees to it that there is something to take out of p, and says whether there is. An empty chunk stays out until
// another is there.
func (b *inbox[T]) fillLocked(p *partition[T]) bool {
	k := p.out
	switch {
	case k != nil && p.next < k.n:
		return true
	case k != nil && k.next != nil:
		p.out, p.next = k.next, 0
		b.spendLocked(k)
		return true
	case !b.some.Load():
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	pile := &b.piles[p.i]
	if pile.first == nil {
		return false
	}
	if k != nil {
		b.freeLocked(k)
	}
	b.reuseLocked()
	p.out, p.next = pile.first, 0
	pile.first, pile.last = nil, nil
	b.some.Store(b.someLocked())
	return true
}

// resetLocked makes it one partition, while nothing is pending.
func (b *inbox[T]) resetLocked() {
	b.onePile[0], b.onePart[0] = pile[T]{}, partition[T]{}
	b.piles, b.parts, b.spread, b.old = b.onePile[:], b.onePart[:], 1, 0
}

// followedLocked says whether something lies behind the first chunk of p.
func (b *inbox[T]) followedLocked(p *partition[T]) bool {
	if p.out.next != nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.piles[p.i].first != nil
}

func (b *inbox[T]) someLocked() bool {
	for i := range b.piles {
		if b.piles[i].first != nil {
			return true
		}
	}
	return false
}

// spendLocked takes back an empty chunk. The receiver gets several at a time: for each the two would meet at the lock.
func (b *inbox[T]) spendLocked(k *chunk[T]) {
	k.next = b.spent
	b.spent = k
	if b.spents++; b.spents == spentMost {
		b.mu.Lock()
		b.reuseLocked()
		b.mu.Unlock()
	}
}

const spentMost = 8

// reuseLocked leaves the empty chunks to the receiver. mu is held as well.
func (b *inbox[T]) reuseLocked() {
	for k := b.spent; k != nil; {
		next := k.next
		b.freeLocked(k)
		k = next
	}
	b.spent, b.spents = nil, 0
}

func (b *inbox[T]) freeLocked(k *chunk[T]) {
	k.n, k.next, k.seen = 0, b.free, standstill{}
	b.free = k
}

// takeLocked takes out the first of p. It is the caller's until the next call.
func (b *inbox[T]) takeLocked(p *partition[T]) (*arrival[T], weight) {
	i := p.next
	p.next++
	return &p.out.list[i], p.out.weight(i)
}

// visitLocked shows what lies in the inbox.
func (b *inbox[T]) visitLocked(visit func(*arrival[T])) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.parts {
		p := &b.parts[i]
		from := p.next
		for _, k := range [...]*chunk[T]{p.out, b.piles[i].first} {
			for ; k != nil; k = k.next {
				for i := from; i < k.n; i++ {
					visit(&k.list[i])
				}
				from = 0
			}
			from = 0
		}
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

// trimLocked gives empty chunks to where all streams of the Flow get theirs from. Nothing is pending.
func (b *inbox[T]) trimLocked(pool *sync.Pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.parts {
		if p := &b.parts[i]; p.out != nil && p.next == p.out.n {
			b.freeLocked(p.out) // none is behind it
			p.out = nil
		}
	}
	b.reuseLocked()
	if !b.someLocked() { // something may have been received since
		b.resetLocked()
	}
	if b.free != nil {
		pool.Put(b.free)
		b.free = nil
	}
}
