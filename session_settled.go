package flow

import (
	"slices"
)

// settledBefore says which of a session's messages were settled when its stream began. It is not changed.
//
// What is settled is three things in one: the numbers that the store has, those below the stream's first, and those that
// the client gave up. Of the numbers up to last all are settled but the holes; above it only what the client gave up
// ahead is, for a hole is kept for each number that is not, and there may be 2^62 in between. The client repeats those
// until they are committed.
type settledBefore struct {
	first uint64   // the stream's first number
	last  uint64   // the highest that the session knows of; at least first-1
	holes []uint64 // of first..last, ascending: not settled
	ahead []uint64 // above last+1, ascending: settled
}

// mergeSettled joins what the store has with what the client says. skip ascends and has nothing below first.
func mergeSettled(stored Progress, first uint64, skip []uint64) settledBefore {
	b := settledBefore{first: first, last: max(stored.received, first-1)}
	from, _ := slices.BinarySearch(stored.unsettled, first) // what is below first counts as settled
	for _, hole := range stored.unsettled[from:] {
		if _, skipped := slices.BinarySearch(skip, hole); !skipped {
			b.holes = append(b.holes, hole)
		}
	}
	above, found := slices.BinarySearch(skip, b.last)
	if found {
		above++
	}
	b.last, b.ahead = swallow(b.last, skip[above:])
	return b
}

// swallow raises last by the numbers of ahead that follow it at once.
func swallow(last uint64, ahead []uint64) (uint64, []uint64) {
	for len(ahead) > 0 && ahead[0] == last+1 {
		last, ahead = ahead[0], ahead[1:]
	}
	return last, ahead
}

// settled reports whether the message with this number was settled before: it is a duplicate.
func (b *settledBefore) settled(seq uint64) bool {
	if seq > b.last {
		if len(b.ahead) == 0 {
			return false
		}
		_, ahead := slices.BinarySearch(b.ahead, seq)
		return ahead
	}
	_, hole := slices.BinarySearch(b.holes, seq)
	return !hole
}

// progress is the session's once the stream has received all of first..highest, of which open, ascending, are not
// settled. highest is first-1 if it has received nothing.
func (b *settledBefore) progress(highest uint64, open []uint64) Progress {
	from, _ := slices.BinarySearch(b.holes, highest+1) // those the stream came by are settled or open
	holes := b.holes[from:]
	p := Progress{received: b.known(highest)}
	if n := len(open) + len(holes); n > 0 {
		p.unsettled = slices.Concat(open, holes)
	}
	return p
}

// known is the highest number that the session knows of once the stream has received highest.
func (b *settledBefore) known(highest uint64) uint64 {
	last := max(b.last, highest)
	if len(b.ahead) == 0 {
		return last
	}
	above, found := slices.BinarySearch(b.ahead, last)
	if found {
		above++
	}
	last, _ = swallow(last, b.ahead[above:])
	return last
}

// through is up to where all of the session's messages are settled, if all of the stream's are up to committed, of which
// it has received highest.
func (b *settledBefore) through(committed, highest uint64) uint64 {
	if committed < highest {
		return committed
	}
	if from, _ := slices.BinarySearch(b.holes, highest+1); from < len(b.holes) {
		return b.holes[from] - 1
	}
	return b.known(highest)
}
