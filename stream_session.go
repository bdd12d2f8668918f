package flow

import (
	"slices"
	"sync/atomic"

	"google.golang.org/grpc/metadata"
)

// streamSession is what a stream has of its session.
type streamSession struct {
	session    *sessionStream // nil: its client asks for none
	asked      bool           // its client asks for one, and may be refused
	taken      bool           // it has its session. Written under Receiver.mu
	duplicates atomic.Uint64  // messages that the session had settled before
}

// What a session adds to the life of a stream: its beginning is longer, its numbers don't begin with 1, some of its
// messages are duplicates, and its end is saved before it is told.

// askForSession reads what the client asks for. It comes before the shutdown is looked at: what is malformed is refused as
// that.
func (s *stream[T]) askForSession() {
	session, refused := s.r.sessions.ask(s.parent)
	s.asked = session != nil || refused != nil
	s.session = session
	if refused != nil {
		s.fail(refused)
	}
}

// takeSession waits for the session and takes it, before anything is read.
func (s *stream[T]) takeSession() {
	if refused := s.session.take(s.ctx, s.fail); refused != nil {
		s.fail(refused)
		return
	}
	s.r.mu.Lock() // nobody looks at the stream meanwhile
	s.origin.session, s.taken = s.session.session, true
	s.backlog.ledger = newLedger(s.session.before.first)
	s.committed.Store(s.through(s.session.before.first - 1))
	for _, key := range s.session.stored.GivenUp {
		s.backlog.skipFromTheStart(key)
	}
	s.r.mu.Unlock()
	s.session.keep(s.viewForSession, s.emitSaveFailed)
	s.emitSession()
	s.sendHeader(s.session.header())
}

// saveSession saves what has come of the stream, of which nothing runs any more. It returns how the stream ends if the
// session turns out to be somebody else's.
func (s *stream[T]) saveSession() (moved *Failure) {
	if s.session == nil {
		return nil
	}
	return s.session.finish()
}

// sessionMoved reports whether the session is somebody else's, as err, of a handler that has looked at it in the store,
// says. Then that is what ends the stream, and no failure of a message.
func (s *stream[T]) sessionMoved(err error) bool {
	return s.taken && isError(err, ErrSessionMoved) && s.session.moved()
}

// viewForSession returns what is to be saved by now.
func (s *stream[T]) viewForSession() sessionView {
	return ask(s, func() (v sessionView) {
		v.highest, v.open = s.unsettled()
		if s.backlog.skipped.len() > 0 {
			v.skipped = slices.Collect(s.backlog.skipped.all())
		}
		return v
	})
}

// through returns up to which number everything is settled, if the stream's own messages are up to committed.
func (s *stream[T]) through(committed uint64) uint64 {
	if !s.taken {
		return committed
	}
	return s.session.before.through(committed, s.backlog.ledger.highest)
}

// summary is complete once the stream is done. Counts are the stream's, and what is settled is the session's.
func (s *stream[T]) summary() Summary {
	sum := s.backlog.ledger.summary()
	if !s.taken {
		return sum
	}
	sum.Duplicates = s.duplicates.Load()
	sum.Received += sum.Duplicates
	p := s.session.before.progress(s.backlog.ledger.highest, sum.Unsettled)
	sum.Committed, sum.Unsettled, sum.Last = p.Committed(), p.unsettled, p.received
	return sum
}

// trailer says how far the stream got, or its session. One that was refused its session says nothing: what is settled is
// not known to it.
func (s *stream[T]) trailer(sum Summary, f *Failure) metadata.MD {
	switch {
	case s.taken:
		return s.session.trailer(sum.Progress(), f)
	case s.asked:
		return nil
	}
	return sum.trailer()
}
