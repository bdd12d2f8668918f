package flow

import (
	"sync"
	"unsafe"
)

// mailbox joins a reader to its shard. What is received lies in chunks; the shard takes all there are at once and gives
// the empty ones back. A channel of single messages would be a lock on both sides, and often a wake-up, for each of
// them: 60 ns and more where this takes 18.
type mailbox[T any] struct {
	mu       sync.Mutex
	first    *chunk[T] // the oldest that has something
	last     *chunk[T]
	small    *chunk[T] // for a stream that has little pending; nil while it is in use
	spare    *chunk[T] // of full length, for a stream that is busy
	received uint64    // messages so far
	shut     bool      // nothing is received any more
	told     bool      // the shard is bound to look here: the reader need not tell it
}

// entry is a message as it was received.
type entry[T any] struct {
	value    T
	seq      uint64
	key      string
	hash     uint64 // of its lane
	received int64  // when, in nanoseconds since the stream's start; kept for the Observer and IdleTimeout
	size     int64  // bytes; kept for MaxPendingBytes
	crash    error  // of the key function
}

// chunk holds entries in order of receipt.
type chunk[T any] struct {
	next *chunk[T]
	list []entry[T]
}

// Lengths of chunks. A stream with one message pending pays for a small chunk only: ten thousand streams may be so.
const (
	smallChunk = 512     // bytes, about; at least one entry
	fullChunk  = 4 << 10 // bytes, about; at most 64 entries
)

func chunkLength[T any](bytes int) int {
	return max(1, min(64, bytes/int(unsafe.Sizeof(entry[T]{}))))
}

// put receives e. ok is false if nothing is received any more; tell says that the shard must be told.
func (b *mailbox[T]) put(e *entry[T], pool *sync.Pool) (ok, tell bool) {
	b.mu.Lock()
	if b.shut {
		b.mu.Unlock()
		return false, false
	}
	k := b.last
	if k == nil || len(k.list) == cap(k.list) {
		k = b.growLocked(pool)
	}
	k.list = append(k.list, *e)
	b.received++
	tell = !b.told
	b.told = true
	b.mu.Unlock()
	return true, tell
}

func (b *mailbox[T]) growLocked(pool *sync.Pool) (k *chunk[T]) {
	switch {
	case b.spare != nil:
		k, b.spare = b.spare, b.spare.next
		k.next = nil
	case b.first == nil && b.small != nil:
		k, b.small = b.small, nil
	case b.first == nil && b.received == 0:
		k = &chunk[T]{list: make([]entry[T], 0, chunkLength[T](smallChunk))}
	default:
		if k, _ = pool.Get().(*chunk[T]); k == nil {
			k = &chunk[T]{list: make([]entry[T], 0, chunkLength[T](fullChunk))}
		}
	}
	if b.last == nil {
		b.first = k
	} else {
		b.last.next = k
	}
	b.last = k
	return k
}

// take takes everything out, and gives back a chunk that has been emptied. It returns nil if there is nothing: then the
// reader will tell the shard of the next.
func (b *mailbox[T]) take(empty *chunk[T], pool *sync.Pool) (all *chunk[T]) {
	b.mu.Lock()
	all = b.first
	b.first, b.last = nil, nil
	if empty != nil {
		empty.list, empty.next = empty.list[:0], nil
		switch {
		case cap(empty.list) < chunkLength[T](fullChunk) || chunkLength[T](fullChunk) == chunkLength[T](smallChunk):
			b.small, empty = empty, nil
		case all != nil: // the stream is busy
			empty.next, b.spare, empty = b.spare, empty, nil
		}
	}
	var idle *chunk[T]
	if all == nil {
		b.told = false
		idle, b.spare = b.spare, nil
	}
	b.mu.Unlock()
	if empty != nil {
		pool.Put(empty)
	}
	for idle != nil {
		next := idle.next
		idle.next = nil
		pool.Put(idle)
		idle = next
	}
	return all
}

// close receives nothing more.
func (b *mailbox[T]) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut = true
}

// total returns how many messages have been received.
func (b *mailbox[T]) total() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.received
}

// visit calls see for what lies here, in order of receipt.
func (b *mailbox[T]) visit(see func(*entry[T])) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k := b.first; k != nil; k = k.next {
		for i := range k.list {
			see(&k.list[i])
		}
	}
}
