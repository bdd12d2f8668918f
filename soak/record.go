package main

import (
	"fmt"
	"slices"
	"sync"

	"example.com/flow"
	"example.com/flow/flowtest"
)

// record is what is known of one stream, by what its handler saw. It is what both ends' accounts are held against.
type record struct {
	mu      sync.Mutex
	begun   bool
	over    bool
	pending int   // returned by recv, not finished
	bytes   int64 // of the same
	size    int64 // of each of its messages
	done    []bool
	good    uint64                      // how many of done
	order   flowtest.OrderChecker[byte] // of each key
	last    [keys]uint64                // of each key: none may be missing, which no order says
}

// enter is called when the handler is, and says what is wrong with that. A leave must follow in any case.
func (r *record) enter(m flow.Message[*request], l letter) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := l.key
	wrong := r.order.Enter(k, l.keySeq, m.Attempt)
	switch {
	case wrong != nil:
	case m.Seq != l.seq:
		wrong = fmt.Errorf("the stream's message %d came as its %d", l.seq, m.Seq)
	case l.keySeq != r.last[k]+1:
		wrong = fmt.Errorf("message %d of key %d came after %d", l.keySeq, k, r.last[k])
	}
	r.last[k] = l.keySeq
	return wrong
}

// leave is called when the handler returns.
func (r *record) leave(l letter, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order.Leave(l.key)
	if !ok {
		return
	}
	for uint64(len(r.done)) < l.seq {
		r.done = append(r.done, false)
	}
	r.done[l.seq-1] = true
	r.good++
}

// check holds what Run returned against what its handlers did.
func (r *record) check(s flow.Summary) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Received != s.Succeeded+s.Failed+s.Rejected+s.Dropped {
		return fmt.Errorf("the summary does not add up: %+v", s)
	}
	var unsettled []uint64
	for seq := range s.Received {
		if !r.settledLocked(seq + 1) {
			unsettled = append(unsettled, seq+1)
		}
	}
	committed := s.Received
	if len(unsettled) > 0 {
		committed = unsettled[0] - 1
	}
	if s.Succeeded != r.good || s.Committed != committed || !slices.Equal(s.Unsettled, unsettled) {
		return fmt.Errorf("%d handlers succeeded, committed %d, unsettled %d; the summary is %+v",
			r.good, committed, unsettled, s)
	}
	return nil
}

func (r *record) settledLocked(seq uint64) bool { return seq <= uint64(len(r.done)) && r.done[seq-1] }

// checkReply holds the answer to a stream that ended well against what was sent.
func (r *record) checkReply(sent, stored uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if sent != stored || sent != r.good {
		return fmt.Errorf("%d sent, %d run, %d in the answer", sent, r.good, stored)
	}
	return nil
}

// checkProgress holds what the client was told of a stream that was cut short against what was sent and run.
func (r *record) checkProgress(p flow.Progress, sent uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Committed() > sent {
		return fmt.Errorf("%d committed of %d sent", p.Committed(), sent)
	}
	for seq := range sent {
		if p.Settled(seq+1) != r.settledLocked(seq+1) {
			return fmt.Errorf("message %d has run: %v; the client is told: %v", seq+1, r.settledLocked(seq+1), p.Settled(seq+1))
		}
	}
	return nil
}
