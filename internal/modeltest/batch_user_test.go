package modeltest_test

import (
	"context"
	"fmt"
	"slices"
	"time"

	"example.com/flow"
)

// handleBatch is handle for a batch: one execution of all its messages.
func (w *simulation) handleBatch(ctx context.Context, batch []flow.Message[item], errs []error) error {
	batch = slices.Clone(batch)
	e := &execution{item: batch[0].Value, how: make(chan callEnd, 1), began: time.Now()}
	w.locked(func() { w.callBegins(batch, errs, e) })
	end := w.await(ctx, e)
	w.locked(func() {
		w.checkEnd(ctx, e)
		w.callEnds(batch, &end)
	})
	if end.how != endWell {
		return end.how.returned(ctx, batch[0].Seq)
	}
	for i := range batch {
		if how := end.of(i); how == endNotAttempted {
			errs[i] = fmt.Errorf("in vain: %w", flow.ErrNotAttempted)
		} else {
			errs[i] = how.returned(ctx, batch[i].Seq)
		}
	}
	return nil
}

// of is how message i of a call ends that does not fail as a whole.
func (e *callEnd) of(i int) ending {
	if len(e.each) == 0 {
		return endWell
	}
	return e.each[i%len(e.each)]
}

// callBegins holds a call that begins against the rules that hold at any time, and notes it.
func (w *simulation) callBegins(batch []flow.Message[item], errs []error, e *execution) {
	b, bytes := w.Options.Batch, 0
	most := b.MaxMessages
	if most == 0 {
		most = 256
	}
	if w.calls++; w.calls > w.Options.Backpressure.Capacity {
		w.broken("%d calls at once", w.calls)
	}
	var seen seenCall
	for i, m := range batch {
		id := run{m.Value.Stream, m.Seq}
		if w.running[id] != nil {
			w.broken("%v is in two calls", id)
		}
		if errs[i] != nil {
			w.broken("errs[%d] is %v before the call", i, errs[i])
		}
		if before := w.lastOfLane(batch[:i], m); before != nil { // their order is that of their places
			w.leaveLanes(run{before.Value.Stream, before.Seq}, before.Value)
		}
		if before := w.lastOfLane(batch[:i], m); before != nil && before.Value.Stream == id.stream && before.Seq > m.Seq {
			w.broken("%v stands behind %d in its batch", id, before.Seq)
		}
		w.checkStart(m)
		w.running[id] = e
		e.IgnoresContext = e.IgnoresContext || m.Value.IgnoresContext
		bytes += m.Value.Bytes
		seen.starts = append(seen.starts, startOf{id, m.Attempt, m.Pressured})
	}
	if len(batch) > most || len(errs) != len(batch) || b.MaxBytes > 0 && len(batch) > 1 && int64(bytes) > b.MaxBytes {
		w.broken("a batch of %d messages with %d bytes and %d errors", len(batch), bytes, len(errs))
	}
	w.seen.calls = append(w.seen.calls, seen)
}

// callEnds notes what a handler is about to return.
func (w *simulation) callEnds(batch []flow.Message[item], end *callEnd) {
	w.calls--
	untouched := 0
	for i, m := range batch {
		id := run{m.Value.Stream, m.Seq}
		delete(w.running, id)
		if w.lastOfLane(batch[i+1:], m) == nil {
			w.leaveLanes(id, m.Value)
		}
		if end.of(i) == endNotAttempted {
			untouched++
		}
	}
	if end.how != endWell || untouched == len(batch) {
		return
	}
	for i, m := range batch {
		switch src := w.sources[m.Value.Stream]; end.of(i) {
		case endWell:
			src.succeeded++
		case endNotAttempted:
			if src.attempts--; m.Attempt == 1 {
				src.began--
			}
		}
	}
}

// lastOfLane is the last of batch that is in m's lane; nil: there is none.
func (w *simulation) lastOfLane(batch []flow.Message[item], m flow.Message[item]) *flow.Message[item] {
	laneOf := func(it item) string { return w.o.lane(&modelMessage{item: it, st: &modelStream{n: it.Stream}}) }
	lane := laneOf(m.Value)
	if lane == "" {
		return nil
	}
	for i := range slices.Backward(batch) {
		if laneOf(batch[i].Value) == lane {
			return &batch[i]
		}
	}
	return nil
}
