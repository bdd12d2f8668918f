package flow

import (
	"math"
	"slices"
)

// outcome is what became of a message. Its zero value is none, so that a path that forgets to set one is found.
type outcome uint8

const (
	outcomeNone outcome = iota
	outcomeSucceeded
	outcomeFailed
	outcomeRejected
	outcomeDropped
)

// ledger is the accounting of one stream: every message is accepted once and finished once. It has one owner at a time.
//
// Its invariants: received = finished + pending; finished = Succeeded + Failed + Rejected + Dropped; a message is
// unsettled if it has finished without success and nobody has skipped it.
type ledger struct {
	received  uint64  // accepted so far
	highest   uint64  // the Seq of the last that was accepted; below the first if none was
	counts    Summary // of those that have finished; Received and Committed are not kept in it
	firstOpen uint64  // the lowest unsettled Seq; math.MaxUint64 without one
}

// newLedger returns the ledger of a stream whose first message has the Seq first.
func newLedger(first uint64) ledger { return ledger{highest: first - 1, firstOpen: math.MaxUint64} }

// accept counts the message seq, which is above all before.
func (l *ledger) accept(seq uint64) {
	l.received++
	l.highest = seq
}

// finish counts the message seq, which was tried so many times, as finished.
func (l *ledger) finish(seq uint64, attempts int, as outcome, settled bool) {
	switch as {
	case outcomeSucceeded:
		l.counts.Succeeded++
		settled = true
	case outcomeFailed:
		l.counts.Failed++
	case outcomeRejected:
		l.counts.Rejected++
	case outcomeDropped:
		l.counts.Dropped++
	default:
		panic("bug: a message has finished without an outcome")
	}
	if attempts > 1 {
		l.counts.Retried += uint64(attempts - 1)
	}
	if !settled {
		l.counts.Unsettled = append(l.counts.Unsettled, seq)
		l.firstOpen = min(l.firstOpen, seq)
	}
}

// succeed accepts the next n messages, up to the message last, and counts them as done at the first try.
func (l *ledger) succeed(n, last uint64) {
	l.received += n
	l.highest = last
	l.counts.Succeeded += n
}

func (l *ledger) finished() uint64 {
	c := &l.counts
	return c.Succeeded + c.Failed + c.Rejected + c.Dropped
}

// pending returns how many messages are accepted and not finished.
func (l *ledger) pending() uint64 { return l.received - l.finished() }

// committed returns the Seq up to which all messages are settled, given the lowest that is pending (0: none is).
func (l *ledger) committed(firstPending uint64) uint64 {
	if firstPending == 0 {
		firstPending = l.highest + 1
	}
	return min(firstPending, l.firstOpen) - 1
}

// summary is complete once nothing is pending.
func (l *ledger) summary() Summary {
	sum := l.counts
	sum.Received, sum.Last = l.received, l.highest
	sum.Unsettled = slices.Clone(sum.Unsettled)
	slices.Sort(sum.Unsettled)
	sum.Committed = l.committed(0)
	return sum
}

// unsettled returns the highest Seq received, and what is not settled of what was received, while some are pending.
func (l *ledger) unsettled(pending []uint64) (highest uint64, open []uint64) {
	open = slices.Concat(l.counts.Unsettled, pending)
	slices.Sort(open)
	highest = l.highest
	if len(pending) > 0 {
		highest = max(highest, pending[len(pending)-1]) // not all of them are lined up yet
	}
	return highest, open
}
