package partition

import (
	"context"
	"sync"
)

// Ledger knows what the holder of a partition has received, and what of it the durable record calls settled. It joins two
// ways to count: flow numbers the messages of one run from 1, the log gives positions. And it holds back the reader while
// a whole window of messages is received that the record does not call settled: so many a crash repeats at most. It is
// safe for concurrent use.
type Ledger struct {
	window int

	mu       sync.Mutex
	open     []entry       // read, and not settled by the record, by ascending position
	unread   []uint64      // unsettled when the partition was taken over, and not read since: all beyond open
	received uint64        // how many messages were given to flow
	before   uint64        // the Top when the partition was taken over
	top      uint64        // the highest position that is known of
	room     chan struct{} // closed and replaced when messages have left open
}

// entry is a message that was read and that the record does not call settled.
type entry struct {
	position uint64
	seq      uint64 // flow's number
}

// NewLedger returns a Ledger of a partition of which p is settled, to be read from p.Frontier+1 on.
func NewLedger(p Progress, window int) *Ledger {
	return &Ledger{
		window: window, unread: p.Unsettled, before: p.Top, top: p.Top, room: make(chan struct{}),
	}
}

// Wait blocks until the window has room for a message. It returns ctx's error if that ends before.
func (l *Ledger) Wait(ctx context.Context) error {
	for {
		l.mu.Lock()
		room, full := l.room, len(l.open) >= l.window
		l.mu.Unlock()
		if !full {
			return nil
		}
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Read notes that the next message of the partition is at position. It reports whether the message is to run, rather than
// settled by an earlier holder. The positions in lost were unsettled and should have come before this one: the log has
// them no more, and they count as settled from now on.
func (l *Ledger) Read(position uint64) (run bool, lost []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for n < len(l.unread) && l.unread[n] < position {
		n++
	}
	lost, l.unread = l.unread[:n], l.unread[n:]
	switch {
	case position > l.before:
		l.top = max(l.top, position)
	case len(l.unread) > 0 && l.unread[0] == position:
		l.unread = l.unread[1:]
	default:
		return false, lost
	}
	l.received++
	l.open = append(l.open, entry{position, l.received})
	return true, lost
}

// Missing notes that the log begins at position first. What was unsettled before that is lost, as Read says of it.
func (l *Ledger) Missing(first uint64) (lost []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for n < len(l.unread) && l.unread[n] < first {
		n++
	}
	lost, l.unread = l.unread[:n], l.unread[n:]
	return lost
}

// Received is how many messages Read has said are to run: flow's number of the last of them.
func (l *Ledger) Received() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.received
}

// Progress returns what is settled, given which of flow's numbers are. It may be a moment old and never says too much, if
// settled was taken from the run before the call.
func (l *Ledger) Progress(settled func(seq uint64) bool) Progress {
	l.mu.Lock()
	defer l.mu.Unlock()
	var open []uint64
	for _, e := range l.open {
		if !settled(e.seq) {
			open = append(open, e.position)
		}
	}
	return newProgress(l.top, append(open, l.unread...))
}

// Committed notes that the record says p, and makes room for what is settled in it.
func (l *Ledger) Committed(p Progress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.open[:0]
	for _, e := range l.open {
		if !p.Settled(e.position) {
			kept = append(kept, e)
		}
	}
	if len(kept) < len(l.open) {
		l.open = kept
		close(l.room)
		l.room = make(chan struct{})
	}
}
