package flow

import (
	"sync"
	"sync/atomic"
)

// Lanes are the keyed FIFO: one queue for each key that has something in it, found through a sharded hash table.
// No two keys share a queue, so a slow key delays nobody; hashing keys onto a fixed set of workers, the usual way,
// makes strangers wait for each other.
//
// A lane is a list of turns, and its head is the one whose turn has come. It exists only while it has a head: a key
// that is idle costs nothing. It is a list and not a channel because an element of it must be removable from the middle
// (its stream ended), because a channel per key needs a goroutine per key to serve it, and because a list costs a tenth:
// with 1,024 keys a channel and a goroutine per active key took 434 ns a message where a list in a table took 75.
// The list is intrusive: the turns are part of what waits, so that to wait allocates nothing.
//
// Lock order: laneShard.mu before stream.mu; no shard's lock is ever held together with another shard's.

// laneShards is the number of shards: enough that the receiver and the workers rarely meet at one lock.
const laneShards = 16

// turn is a place in a lane. All fields but owner are guarded by the shard's mu.
type turn struct {
	lane       *lane // nil: in none
	prev, next *turn
	owner      turnOwner
}

// turnOwner is told, once and with no lock held, that a turn which had to wait has come.
type turnOwner interface{ turnCame() }

// lane is the queue of one key.
type lane struct {
	name       string
	hash       uint64
	chain      *lane // the next lane of the hash bucket, or of the free list
	head, tail *turn
	n          int
}

// laneTable finds lanes by name.
type laneTable struct {
	of      *laneResolver // whose options and end hold
	waiting atomic.Int64  // turns behind a head; kept only when Ordering.Capacity bounds it
	shards  [laneShards]laneShard
}

type laneShard struct {
	mu      sync.Mutex
	buckets []*lane // a power of two of them
	lanes   int
	free    *lane // lanes to be used again, so that a key's coming and going allocates nothing
	frees   int
	_       [64]byte // keeps neighbouring shards' locks off one cache line
}

const (
	minBuckets = 16
	maxFree    = 64
)

func newLaneTable(of *laneResolver) *laneTable { return &laneTable{of: of} }

// shardIndex spreads by the high bits, buckets by the low ones.
func shardIndex(hash uint64) int { return int(hash >> 60 % laneShards) }

func (tb *laneTable) shard(hash uint64) *laneShard { return &tb.shards[shardIndex(hash)] }

// joinLocked appends t to the lane called name. first says that its turn has come with that; if not, owner.turnCame
// will be called. A reason that is not "" says why t was refused: it then is in no lane.
func (tb *laneTable) joinLocked(sh *laneShard, name string, hash uint64, t *turn) (first bool, why reason) {
	if tb.of.closed.Load() {
		return false, reasonOrderShut
	}
	l := sh.find(name, hash)
	if l == nil {
		l = sh.add(name, hash)
		l.head, l.tail, l.n = t, t, 1
		t.lane = l
		return true, ""
	}
	if kc := tb.of.opts.KeyCapacity; kc > 0 && l.n-1 >= kc {
		return false, reasonKeyFull
	}
	if !tb.reserve() {
		return false, reasonOrderFull
	}
	t.lane, t.prev = l, l.tail
	l.tail.next = t
	l.tail = t
	l.n++
	return false, ""
}

// reserve counts one more waiting turn, unless Capacity of them wait: shards share the count, hence the loop.
func (tb *laneTable) reserve() bool {
	limit := int64(tb.of.opts.Capacity)
	if limit == 0 {
		return true
	}
	for {
		n := tb.waiting.Load()
		if n >= limit {
			return false
		}
		if tb.waiting.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (tb *laneTable) unreserve() {
	if tb.of.opts.Capacity > 0 {
		tb.waiting.Add(-1)
	}
}

// waitsLocked says whether t is in a lane, behind its head.
func (t *turn) waitsLocked() bool { return t.lane != nil && t.lane.head != t }

// leaveLocked takes t out of its lane, wherever it stands. If it was the head, the turn of the one behind it has come:
// that one is returned, and the caller, having unlocked, must see to it. The lane of a last turn ceases to exist.
func (tb *laneTable) leaveLocked(sh *laneShard, t *turn) (next *turn) {
	l := t.lane
	l.n--
	switch {
	case l.head != t:
		tb.unreserve()
		t.prev.next = t.next
		if t.next != nil {
			t.next.prev = t.prev
		} else {
			l.tail = t.prev
		}
	case t.next != nil:
		tb.unreserve()
		next = t.next
		next.prev, l.head = nil, next
	default:
		sh.remove(l)
	}
	t.lane, t.prev, t.next = nil, nil, nil
	return next
}

func (sh *laneShard) bucket(hash uint64) **lane { return &sh.buckets[hash&uint64(len(sh.buckets)-1)] }

func (sh *laneShard) find(name string, hash uint64) *lane {
	if sh.lanes == 0 {
		return nil
	}
	l := *sh.bucket(hash)
	for l != nil && (l.hash != hash || l.name != name) {
		l = l.chain
	}
	return l
}

func (sh *laneShard) add(name string, hash uint64) *lane {
	if sh.lanes == len(sh.buckets) {
		sh.resize(max(minBuckets, 2*len(sh.buckets)))
	}
	l := sh.free
	if l != nil {
		sh.free = l.chain
		sh.frees--
	} else {
		l = new(lane)
	}
	b := sh.bucket(hash)
	l.name, l.hash, l.chain = name, hash, *b
	*b = l
	sh.lanes++
	return l
}

func (sh *laneShard) remove(l *lane) {
	b := sh.bucket(l.hash)
	for *b != l {
		b = &(*b).chain
	}
	*b = l.chain
	sh.lanes--
	*l = lane{}
	if sh.frees < maxFree {
		l.chain, sh.free = sh.free, l
		sh.frees++
	}
	// A quarter of what would make it grow again: a table that swings around one size is not resized each time.
	if len(sh.buckets) > minBuckets && sh.lanes < len(sh.buckets)/8 {
		sh.resize(len(sh.buckets) / 4)
	}
}

func (sh *laneShard) resize(n int) {
	old := sh.buckets
	sh.buckets = make([]*lane, max(n, minBuckets))
	for _, l := range old {
		for l != nil {
			rest := l.chain
			b := sh.bucket(l.hash)
			l.chain, *b = *b, l
			l = rest
		}
	}
}
