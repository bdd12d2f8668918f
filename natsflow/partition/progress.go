package partition

import (
	"encoding/binary"
	"errors"
	"slices"
)

// Progress says which messages of a partition are settled. It is in normal form: the first of Unsettled is Frontier+1, and
// without any Top is Frontier. The zero value says that nothing is settled.
type Progress struct {
	Frontier  uint64   // every message up to this position is settled
	Top       uint64   // no message above this position is settled
	Unsettled []uint64 // of (Frontier, Top], ascending; every other message up to Top is settled
}

// maxProgress bounds the binary form, which is written with every commit.
const maxProgress = 2048

var errMalformedProgress = errors.New("partition: malformed progress")

// newProgress returns the Progress in which of the messages up to top exactly those at the positions open, which ascend,
// are not settled.
func newProgress(top uint64, open []uint64) Progress {
	if len(open) == 0 {
		return Progress{Frontier: top, Top: top}
	}
	return Progress{Frontier: open[0] - 1, Top: max(top, open[len(open)-1]), Unsettled: open}
}

// Settled reports whether the message at this position is settled. There is no position 0.
func (p Progress) Settled(position uint64) bool {
	if position == 0 || position > p.Top {
		return false
	}
	if position <= p.Frontier {
		return true
	}
	_, open := slices.BinarySearch(p.Unsettled, position)
	return !open
}

// Equal reports whether both say the same.
func (p Progress) Equal(q Progress) bool {
	return p.Frontier == q.Frontier && p.Top == q.Top && slices.Equal(p.Unsettled, q.Unsettled)
}

// MarshalBinary writes p in at most 2 KiB: Top as a uvarint, then of each unsettled position its distance to the one before
// (of the first: to 0). What does not fit is left out from the end, and Top with it, so that a reader takes some settled
// messages for unsettled and never the other way round. The error is always nil.
func (p Progress) MarshalBinary() ([]byte, error) {
	p = p.fitting(maxProgress)
	b := binary.AppendUvarint(nil, p.Top)
	last := uint64(0)
	for _, position := range p.Unsettled {
		b = binary.AppendUvarint(b, position-last)
		last = position
	}
	return b, nil
}

// fitting returns p, or as much of it as so many bytes can hold.
func (p Progress) fitting(limit int) Progress {
	size, last := uvarintLen(p.Top), uint64(0) // a lower Top is no longer
	for i, position := range p.Unsettled {
		size += uvarintLen(position - last)
		if size > limit {
			return newProgress(position-1, p.Unsettled[:i])
		}
		last = position
	}
	return p
}

// UnmarshalBinary reads what MarshalBinary wrote. Anything that it can't have written is an error, and p is not changed
// then.
func (p *Progress) UnmarshalBinary(data []byte) error {
	if len(data) > maxProgress {
		return errMalformedProgress
	}
	top, data, ok := cutUvarint(data)
	if !ok {
		return errMalformedProgress
	}
	var open []uint64
	last := uint64(0)
	for len(data) > 0 {
		var distance uint64
		distance, data, ok = cutUvarint(data)
		if !ok || distance == 0 || distance > top-last { // last never exceeds top
			return errMalformedProgress
		}
		last += distance
		open = append(open, last)
	}
	*p = newProgress(top, open)
	return nil
}

func uvarintLen(v uint64) int {
	var b [binary.MaxVarintLen64]byte
	return binary.PutUvarint(b[:], v)
}

// cutUvarint reads a uvarint in its one shortest form from the start of b.
func cutUvarint(b []byte) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 || n != uvarintLen(v) {
		return 0, nil, false
	}
	return v, b[n:], true
}
