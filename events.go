package flow

import "time"

// emitter tells the Observer, if there is one, what happens in a stream. Its methods are called by workers and by the
// goroutines of Run and the reader; the stream has them by embedding it.
type emitter[T any] struct{ s *stream[T] }

// emit tells the Observer what has happened to m. It costs nothing without one.
func (t emitter[T]) emit(m *message[T], kind EventKind) {
	s := t.s
	if s.r.observer == nil {
		return
	}
	e := Event{
		Kind: kind, Stream: s.id, Seq: m.seq, Key: m.key, Attempt: m.attempts, Waited: m.waited, Failure: m.fault,
		Batch: m.batch, Index: m.index,
	}
	switch kind {
	case EventAttempt, EventPressure:
		e.Attempt, e.Failure = m.attempts+1, nil // it is about to be made; the fault is that of the last one
	case EventRetry:
		e.Took, e.Delay = m.took, m.delay
		m.took = 0 // should the wait be cut short, no attempt will have ended with that failure
	case EventSuccess:
		e.Took, e.Failure = m.took, nil
	case EventFailure, EventReject:
		e.Took, e.Settled = m.took, m.settled
	}
	if e.Failure != nil {
		e.Stack = stackOf(e.Failure.Err)
	}
	s.r.observer(s.ctx, e)
}

// timed notes how long the attempt at hand, of r, has taken.
func (t emitter[T]) timed(m *message[T], r *run[T]) {
	s := t.s
	if began := r.began.Swap(0); began > 0 {
		m.took = s.clock() - time.Duration(began-1)
	}
}

// emitStart tells of the stream. A panic fails it. Run's goroutine is the caller's, so a Goexit must not come to it.
func (t emitter[T]) emitStart() {
	s := t.s
	if s.r.observer == nil {
		return
	}
	err := isolated(func() error {
		s.r.observer(s.ctx, Event{Kind: EventStreamStart, Stream: s.id})
		return nil
	})
	if err != nil {
		s.fail(newFailure(FailureInternal, err))
	}
}

// emitSession tells that the session is taken. A panic fails the stream.
func (t emitter[T]) emitSession() {
	s := t.s
	if s.r.observer == nil {
		return
	}
	err := isolated(func() error {
		s.r.observer(s.ctx, Event{
			Kind: EventSession, Stream: s.id, Session: s.origin.session, Found: string(s.session.found),
		})
		return nil
	})
	if err != nil {
		s.fail(newFailure(FailureInternal, err))
	}
}

// emitDuplicate tells of a message that was settled before. A panic fails the stream, as the reader sees to.
func (t emitter[T]) emitDuplicate(seq uint64) {
	s := t.s
	if s.r.observer != nil {
		s.r.observer(s.ctx, Event{Kind: EventDuplicate, Stream: s.id, Seq: seq})
	}
}

// emitSaveFailed tells of a Save that failed, which fails nothing else: neither does a panic.
func (t emitter[T]) emitSaveFailed(err error) {
	s := t.s
	if s.r.observer == nil {
		return
	}
	f := newFailure(FailureInternal, err)
	_ = isolated(func() error {
		s.r.observer(s.parent, Event{
			Kind: EventSaveFailed, Stream: s.id, Session: s.origin.session, Failure: f, Stack: stackOf(err),
		})
		return nil
	})
}

// emitEnd tells of the stream's end. There is nothing left for a panic to fail.
func (t emitter[T]) emitEnd(sum Summary, f *Failure) {
	s := t.s
	if s.r.observer == nil {
		return
	}
	e := Event{Kind: EventStreamEnd, Stream: s.id, Took: s.clock(), Failure: f, Summary: sum}
	if s.session != nil {
		e.Session = s.session.session
	}
	if f != nil {
		e.Stack = stackOf(f.Err)
	}
	_ = isolated(func() error {
		s.r.observer(s.parent, e)
		return nil
	})
}
