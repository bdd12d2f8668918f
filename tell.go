package flow

import (
	"context"
	"sync/atomic"
	"time"
)

// tell tells the Observer what happened to m. It costs nothing without one.
func (s *stream[T]) tell(m *message[T], kind EventKind) {
	if s.r.observer == nil {
		return
	}
	e := Event{
		Kind: kind, Stream: s.id, Seq: m.seq, Key: m.key, Attempt: m.attempts, Waited: m.waited, Failure: m.fault,
	}
	switch kind {
	case EventAttempt, EventPressure:
		e.Attempt, e.Failure = m.attempts+1, nil // it is about to be made; the fault is the last one's
	case EventRetry:
		e.Took, e.Delay = m.took, m.delay
		m.took = 0 // should the wait be cut short, no attempt will have ended with the failure
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

// call makes an attempt of m. For an Observer it notes when it began, as journey.began says, and what it took: also if it
// panicked or exited its goroutine.
func (s *stream[T]) call(m Message[T], began *atomic.Int64, took *time.Duration) error {
	if s.r.observer != nil {
		from := s.clock()
		began.Store(int64(from) + 1)
		defer func() { *took = s.clock() - from }()
	}
	return s.r.engine.attempt(s.ctx, m)
}

// observed is what came of a message under lease so far: it is no message[T] yet, of which the rest could be told.
type observed struct {
	waited, took time.Duration
	tried        bool // the handler was called
	step         step // stepSuccess: it has returned nil, and that is told
}

// attemptObserved is the attempt of a message under lease, for an Observer.
func (c *carrier[T]) attemptObserved(a *arrival[T], w weight) error {
	s, o := c.s, &c.observed
	*o = observed{waited: s.clock() - w.received}
	e := Event{Kind: EventAttempt, Stream: s.id, Seq: a.seq, Key: a.key, Attempt: 1, Waited: o.waited}
	s.r.observer(s.ctx, e)
	o.tried = true
	err := s.call(Message[T]{Seq: a.seq, Key: a.key, Value: a.value, Attempt: 1}, &c.leased.began, &o.took)
	if err == nil {
		o.step = stepSuccess
		e.Kind, e.Took = EventSuccess, o.took
		s.r.observer(s.ctx, e)
		*o = observed{}
	}
	return err
}

// wasObserved has m, which ran under lease, be as if it had been a message[T] all the while.
func (m *message[T]) wasObserved(o *observed) {
	m.waited, m.took, m.step = o.waited, o.took, o.step
	if !o.tried {
		m.attempts = 0
	}
	*o = observed{}
}

// tellStart tells of the stream. A panic fails it. Run's goroutine is the caller's, so a Goexit must not come to it.
func (s *stream[T]) tellStart() {
	if s.r.observer == nil {
		return
	}
	err := isolated(func() error {
		s.r.observer(s.ctx, Event{Kind: EventStreamStart, Stream: s.id})
		return nil
	})
	if err != nil {
		s.mu.Lock()
		s.failure = newFailure(FailureInternal, err)
		s.mu.Unlock()
	}
}

// tellEnd tells of the stream's end. There is nothing left for a panic to fail.
func (s *stream[T]) tellEnd(sum Summary, f *Failure) {
	if s.r.observer == nil {
		return
	}
	e := Event{Kind: EventStreamEnd, Stream: s.id, Took: s.clock(), Failure: f, Summary: sum}
	if f != nil {
		e.Stack = stackOf(f.Err)
	}
	_ = isolated(func() error {
		s.r.observer(s.parent, e)
		return nil
	})
}

// tellShutdown tells of the beginning of the end.
func (r *Receiver[T]) tellShutdown(ctx context.Context) {
	if r.observer == nil {
		return
	}
	_ = isolated(func() error {
		r.observer(ctx, Event{Kind: EventShutdown})
		return nil
	})
}
