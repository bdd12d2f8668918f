package flowclient

import (
	"iter"
	"slices"

	"example.com/flow"
)

// maxSkips is how many numbers the header flow-skip may have.
const maxSkips = 64

// buffer holds the messages that were taken on, by their numbers, until they are committed. It is guarded by Sender.mu.
//
// Numbers on a stream follow each other, so a message that is settled while an earlier one is not stays: it has to be
// sent again to keep the place of those behind it. For the same reason what a response header commits stays until the
// stream that has begun before it has passed it.
type buffer[Req any] struct {
	maxCount uint64
	maxBytes int64

	ring  []entry[Req] // number n is at n modulo the length, a power of two
	first uint64       // the lowest number in the ring; last+1 when it is empty
	last  uint64       // the highest number given
	bytes int64        // of all in the ring

	committed uint64        // all numbers up to it are settled or skipped; above last after a claim of what others sent
	claimed   flow.Progress // what was settled when Resume claimed the session
	skips     []uint64      // ascending: the numbers above committed that are skipped

	taken     uint64 // numbers given by this Sender
	skipped   uint64 // numbers given up by it
	unsettled int    // entries that are neither settled nor skipped
	progress  uint64 // rises with each thing that is settled or skipped
}

type entry[Req any] struct {
	message *Req
	size    int
	done    bool // settled or skipped
}

func (b *buffer[Req]) at(n uint64) *entry[Req] { return &b.ring[n&uint64(len(b.ring)-1)] }

// count returns how many messages are kept.
func (b *buffer[Req]) count() uint64 { return b.last + 1 - b.first }

// pending reports whether there is something to send.
func (b *buffer[Req]) pending() bool { return b.committed < b.last }

// fits reports whether a message of this size may be taken on now.
func (b *buffer[Req]) fits(size int) bool {
	return b.count() == 0 || b.count() < b.maxCount && b.bytes+int64(size) <= b.maxBytes
}

// take gives m the next number and its place.
func (b *buffer[Req]) take(m *Req, size int) {
	b.last++
	b.taken++
	if b.last <= b.committed { // settled through whoever wrote the session before; nothing else is kept then
		b.first = b.last + 1
		return
	}
	if b.count() > uint64(len(b.ring)) {
		b.grow()
	}
	done := b.claimed.Settled(b.last)
	*b.at(b.last) = entry[Req]{m, size, done}
	b.bytes += int64(size)
	if !done {
		b.unsettled++
	}
}

func (b *buffer[Req]) grow() {
	old := *b
	b.ring = make([]entry[Req], max(64, 2*len(old.ring)))
	for n := b.first; n < b.last; n++ {
		*b.at(n) = *old.at(n)
	}
}

// resume makes next the first number.
func (b *buffer[Req]) resume(committed uint64, claimed flow.Progress) {
	b.first, b.last, b.committed, b.claimed = committed+1, committed, committed, claimed
}

// settle notes what the server says is settled.
func (b *buffer[Req]) settle(p flow.Progress) {
	before := b.committed
	b.committed = max(b.committed, p.Committed())
	for n := max(b.first, before+1); n <= b.last; n++ {
		if n <= b.committed || p.Settled(n) {
			b.finish(n)
		}
	}
	if b.committed > before {
		b.progress++
		b.skips = slices.DeleteFunc(b.skips, func(n uint64) bool { return n <= b.committed })
	}
}

func (b *buffer[Req]) finish(n uint64) {
	if e := b.at(n); !e.done {
		e.done = true
		b.unsettled--
		b.progress++
	}
}

// skip gives number n up, and reports whether there was room to say so. A number that is settled already, and that the
// server has forgotten, is only said.
func (b *buffer[Req]) skip(n uint64) bool {
	i, found := slices.BinarySearch(b.skips, n)
	switch {
	case found:
		return true
	case len(b.skips) == maxSkips:
		return false
	}
	if !b.at(n).done {
		b.skipped++
	}
	b.finish(n)
	b.skips = slices.Insert(b.skips, i, n)
	return true
}

// release lets go of what is committed, up to the number to at most.
func (b *buffer[Req]) release(to uint64) {
	for to = min(to, b.committed, b.last); b.first <= to; b.first++ {
		e := b.at(b.first)
		b.bytes -= int64(e.size)
		*e = entry[Req]{}
	}
}

// size returns the bytes of the kept messages from one number to another, inclusively.
func (b *buffer[Req]) size(from, to uint64) (bytes int64) {
	for n := max(from, b.first); n <= min(to, b.last); n++ {
		bytes += int64(b.at(n).size)
	}
	return bytes
}

// settled returns how many of the numbers given are settled.
func (b *buffer[Req]) settled() uint64 { return b.taken - b.skipped - uint64(b.unsettled) }

// open yields, in order, what is neither settled nor skipped.
func (b *buffer[Req]) open() iter.Seq2[uint64, *Req] {
	return func(yield func(uint64, *Req) bool) {
		for n := b.first; n <= b.last; n++ {
			if e := b.at(n); !e.done && !yield(n, e.message) {
				return
			}
		}
	}
}
