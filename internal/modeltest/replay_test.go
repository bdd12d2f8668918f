package modeltest_test

import (
	"context"
	"reflect"
	"slices"

	"example.com/flow"
)

// replay makes a Summary of a stream's events.
type replay struct {
	sum   flow.Summary
	told  map[uint64]bool
	ended bool
}

func (w *simulation) observe(_ context.Context, e flow.Event) {
	w.linger(e.Seq)
	if e.Kind == flow.EventShutdown {
		w.locked(func() { w.seen.told++ })
		if w.Hangs {
			select {
			case <-w.letGo:
			case <-w.freed:
			}
		}
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.tell[e.Stream]
	if (r == nil) != (e.Kind == flow.EventStreamStart) || r != nil && r.ended {
		w.broken("stream %d: %v where it stands", e.Stream, e.Kind)
	}
	if r == nil {
		r = &replay{told: map[uint64]bool{}}
		w.tell[e.Stream] = r
	}
	switch e.Kind {
	case flow.EventAttempt:
		if e.Attempt > 1 && !w.Batches {
			r.sum.Retried++
		}
	case flow.EventSuccess:
		r.outcome(w, e, &r.sum.Succeeded, true)
	case flow.EventFailure:
		r.outcome(w, e, &r.sum.Failed, e.Settled)
	case flow.EventReject:
		r.outcome(w, e, &r.sum.Rejected, e.Settled)
	case flow.EventDrop:
		r.outcome(w, e, &r.sum.Dropped, false)
	case flow.EventStreamEnd:
		r.ended = true
		slices.Sort(r.sum.Unsettled)
		r.sum.Last = r.sum.Received
		if r.sum.Committed = r.sum.Received; len(r.sum.Unsettled) > 0 {
			r.sum.Committed = r.sum.Unsettled[0] - 1
		}
		if !reflect.DeepEqual(r.sum, e.Summary) {
			w.broken("stream %d: its events make %+v, its end says %+v", e.Stream, r.sum, e.Summary)
		}
	}
}

func (r *replay) outcome(w *simulation, e flow.Event, n *uint64, settled bool) {
	if r.told[e.Seq] {
		w.broken("stream %d: %d has two outcomes", e.Stream, e.Seq)
	}
	r.told[e.Seq] = true
	r.sum.Received++
	if w.Batches { // what is told of an attempt may turn out not to have been one
		r.sum.Retried += uint64(max(0, e.Attempt-1))
	}
	*n++
	if !settled {
		r.sum.Unsettled = append(r.sum.Unsettled, e.Seq)
	}
}
