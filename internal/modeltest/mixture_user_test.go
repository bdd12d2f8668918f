package modeltest_test

import (
	"context"
	"io"
	"runtime"
	"slices"
	"time"

	"example.com/flow"
)

// What the Flow calls of a mixed simulation: recv, the handler and OnFailure. Each notes what it sees, and that it may.

func (w *mixedSimulation) recv(st *mixedStream) (*mixedMessage, error) {
	w.checkRead(st)
	select {
	case p, more := <-st.feed:
		w.mu.Lock()
		defer w.mu.Unlock()
		if !more {
			st.eof = true
			return nil, io.EOF
		}
		if !w.halted {
			w.receive(p)
		}
		return p, nil
	case <-st.ctx.Done():
		return nil, st.ctx.Err()
	}
}

func (w *mixedSimulation) receive(p *mixedMessage) {
	st, o := p.st, w.Options.Ordering
	st.received = append(st.received, p)
	st.pending++
	p.seq = uint64(len(st.received))
	switch o.Mode {
	case flow.OrderingFIFO:
		p.ordered = true
	case flow.OrderingKeyedFIFO:
		p.ordered, p.lane = p.Key != "" || !o.UnorderedEmptyKey, p.Key
	}
	if p.ordered {
		st.lanes[p.lane] = append(st.lanes[p.lane], p)
	}
	w.checkWindow(st)
}

// handle does what the message says.
func (w *mixedSimulation) handle(ctx context.Context, m flow.Message[*mixedMessage]) error {
	p := m.Value
	how, release := w.begin(p, m)
	defer w.order.Leave(p.place()) // as late as can be: the next may not begin before the handler has returned
	switch how {
	case slow:
		for range 2 * 64 {
			runtime.Gosched()
		}
	case looks:
		w.f.Snapshot(1)
	case cancels:
		w.cancel(p.st)
	case blocks:
		select {
		case <-release:
		case <-w.freed:
		case <-ctx.Done():
			return w.cut(p)
		}
	}
	return w.finish(p).carryOut()
}

// begin notes that p's handler starts, and checks that it may. The result is how it goes on. The order checker knows what
// has begun; that those before p in its lane have also finished, the ones that never began among them, is checked here.
func (w *mixedSimulation) begin(p *mixedMessage, m flow.Message[*mixedMessage]) (how pace, release chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	st := p.st
	if p.attempts == 0 {
		st.begun++
	}
	p.attempts++
	if err := w.order.Enter(p.place(), m.Seq, m.Attempt); err != nil {
		w.broken("stream %d: %v", st.id, err)
	}
	switch c := w.Options.Backpressure.Capacity; {
	case m.Seq != p.seq || m.Key != p.Key || m.Attempt != p.attempts:
		w.broken("attempt %d of message %d, key %q; want attempt %d of %v", m.Attempt, m.Seq, m.Key, p.attempts, p)
	case st.returned:
		w.broken("%v starts after its Run", p)
	case p.finished:
		w.broken("%v is run again", p)
	case c > 0 && len(w.running) >= c:
		w.broken("%v starts beyond the capacity", p)
	case p.ordered && st.skipped[p.Key]:
		w.broken("%v starts though its key was skipped", p)
	case p.ordered && st.lanes[p.lane][0] != p:
		w.broken("%v starts before %v has finished", p, st.lanes[p.lane][0])
	case time.Now().Before(p.due):
		w.broken("%v is tried again too early", p)
	}
	p.runs = true
	w.running = append(w.running, p)
	if how = p.First; p.attempts > 1 {
		how = p.Later
	}
	if how == blocks {
		if w.quick {
			return atOnce, nil
		}
		p.release = make(chan struct{})
	}
	return how, p.release
}

func (w *mixedSimulation) leave(p *mixedMessage) {
	p.runs, p.release = false, nil
	i := slices.Index(w.running, p)
	w.running = slices.Delete(w.running, i, i+1)
}

// cut notes that p's context has ended, and with it the handler.
func (w *mixedSimulation) cut(p *mixedMessage) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.leave(p); !p.st.over {
		w.broken("the context of %v ends while its stream lives", p)
	}
	return context.Canceled
}

// finish notes that p's handler is about to end, and says how.
func (w *mixedSimulation) finish(p *mixedMessage) ending {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leave(p)
	kind := flow.FailureHandlerError
	switch {
	case p.attempts > p.Fails:
		p.st.sum.Succeeded++
		w.settle(p)
		return endWell
	case p.How == endPanic || p.How == endGoexit:
		kind = flow.FailureInternal
	case p.How == endFailed && p.attempts < w.Options.Retry.MaxAttempts:
		p.due = time.Now().Add(w.Options.Retry.Backoff)
		return p.How
	}
	if !w.OnFailure {
		w.endStream(p.st, kind)
	}
	return p.How
}

// settle counts p as finished and lets the next of its lane go on. After one that has cancelled its stream none may.
func (w *mixedSimulation) settle(p *mixedMessage) {
	st := p.st
	p.finished = true
	st.pending--
	st.sum.Retried += uint64(max(0, p.attempts-1))
	for st.finished < len(st.received) && st.received[st.finished].finished {
		st.finished++
	}
	if p.ordered && (p.First != cancels || p.attempts == 0) {
		if st.lanes[p.lane] = st.lanes[p.lane][1:]; len(st.lanes[p.lane]) == 0 {
			delete(st.lanes, p.lane)
		}
	}
}

func (w *mixedSimulation) onFailure(_ context.Context, f *flow.Failure) flow.FailureAction {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := f.Value.(*mixedMessage)
	st := p.st
	switch {
	case st.returned || p.runs || p.finished || f.Seq != p.seq || f.Attempts != p.attempts:
		w.broken("OnFailure is asked about %v after %d attempts: %v", p, p.attempts, f)
	case p.ordered && st.lanes[p.lane][0] != p:
		w.broken("OnFailure is asked about %v before %v has finished", p, st.lanes[p.lane][0])
	case (f.Kind == flow.FailureOrdering) != (p.ordered && st.skipped[p.Key]):
		w.broken("OnFailure is asked about %v: %v", p, f)
	}
	if f.Kind == flow.FailureOrdering {
		st.sum.Rejected++
		w.settle(p)
		return flow.SkipMessage
	}
	if p.Verdict == flow.FailStream || flow.IsTerminal(f.Kind) {
		w.endStream(st, f.Kind)
	}
	if p.Verdict != flow.FailStream {
		st.sum.Failed++
		w.settle(p)
	}
	if p.Verdict == flow.SkipKey && p.ordered {
		st.skipped[p.Key] = true
	}
	return p.Verdict
}
