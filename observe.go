package flow

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
)

// Observer sees what happens in a Flow: for metrics and logs. It is called synchronously where the event happens, with
// no lock held (Stats and Close may be called from it), from many goroutines at once: it must be fast, and safe for
// concurrent use. The events of one message come one after the other, in order. A panic in it fails the message that it
// was told of with FailureInternal (on EventAttempt the handler does not run); in EventStreamEnd and EventShutdown it is
// discarded.
type Observer func(ctx context.Context, e Event)

// Observers returns one Observer that tells each of all, one after the other in their order. nil ones are left out; if
// none is left, it is nil, which costs nothing. A panic of one is the panic of all: those behind it are not told.
func Observers(all ...Observer) Observer {
	all = slices.DeleteFunc(slices.Clone(all), func(o Observer) bool { return o == nil })
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return func(ctx context.Context, e Event) {
		// No panic is recovered between two: it must reach the caller of the Observer, which makes of it the failure
		// of the message.
		for _, o := range all {
			o(ctx, e)
		}
	}
}

// EventKind says what happened. Kinds may be added: unknown ones are to be ignored.
type EventKind int

// Each received message gets exactly one of EventSuccess, EventFailure, EventReject, EventDrop and EventDuplicate:
// replaying the events gives every [Summary] again. Of a session they give back what its streams that were seen settled.
const (
	// EventStreamStart: a stream begins. A refused stream has a start and an end too.
	EventStreamStart EventKind = iota
	// EventAttempt: the handler is about to be called; once for each attempt, however often that comes again with
	// ErrNotAttempted. Calls of a BatchHandler are counted by what becomes of the message at Index 0.
	EventAttempt
	// EventRetry: the attempt failed with Failure and there will be another after Delay.
	EventRetry
	// EventSuccess: the handler returned nil.
	EventSuccess
	// EventFailure: the message failed for good. It comes after OnFailure.
	EventFailure
	// EventReject: the message was refused, or an earlier one of its key was skipped with SkipKey. It comes after OnFailure.
	EventReject
	// EventDrop: the message was accepted and will never run: its stream ended first.
	EventDrop
	// EventPressure: the message runs although capacity is exhausted (BackpressureSoftAllowWithSignal only).
	EventPressure
	// EventStreamEnd: a stream is over. Summary is complete; Failure is set if it failed.
	EventStreamEnd
	// EventShutdown: the end of the Flow begins; once, for the first Shutdown or Close.
	EventShutdown
	// EventDuplicate: the message was settled by an earlier stream of its session. It is not run.
	EventDuplicate
	// EventSession: the stream has taken its session, which was Found as that says; once a stream. One that is refused its
	// session, or ends before it has it, has none: its EventStreamEnd says by Found what became of that.
	EventSession
	// EventSaveFailed: the session's progress could not be saved, for the reason in Failure. It ends nothing, and the
	// next Save tries again.
	EventSaveFailed
)

// String returns the constant's name.
func (k EventKind) String() string {
	return enumName(int(k), "EventKind", "EventStreamStart", "EventAttempt", "EventRetry", "EventSuccess",
		"EventFailure", "EventReject", "EventDrop", "EventPressure", "EventStreamEnd", "EventShutdown",
		"EventDuplicate", "EventSession", "EventSaveFailed")
}

// Event is one thing that happened. Fields that say nothing about it are zero.
type Event struct {
	Kind    EventKind
	Stream  uint64 // which stream of the Flow
	Seq     uint64
	Key     string
	Attempt int
	Waited  time.Duration // from receipt to the first attempt
	Took    time.Duration // of this attempt, once for each; of the stream for EventStreamEnd
	Delay   time.Duration // before the next attempt, for EventRetry
	Failure *Failure      // what failed; not to be changed
	Settled bool          // of EventFailure and EventReject, which come after OnFailure: it skipped the message
	Stack   []byte        // of a recovered panic; not to be changed
	Batch   int           // of a BatchHandler: size of the call that Attempt is about,
	Index   int           // and the place in it, 0 for the first that was attempted. Took is the call's: add it up at 0 only
	Summary Summary       // for EventStreamEnd
	Session Session       // for EventSession, EventSaveFailed and EventStreamEnd, of a stream that asks for one
	Found   string        // "new", "known" or "lost" for EventSession; "moved" or "refused" for the end of a stream without it
}

// SlogObserver writes events to l; nil means slog.Default. At Info and above it writes one line for each failed or
// refused message and one for each stream that ended or was refused, and nothing for a message that succeeded: all else
// is at Debug. Levels say what to do about it:
//
//   - Error: a bug, or a fault of the server's. A panic (with its stack), or a source that broke.
//   - Warn: a handler that failed, a refused message, a stream that ended for such a reason; and a stream that ended
//     because of what its client sent, such as a message that is too large or can't be decoded.
//   - Info: what happens in good days too. Streams end, clients go away, the Flow shuts down.
//
// A message's Value is never written, and of a key at most 64 bytes.
func SlogObserver(l *slog.Logger) Observer {
	if l == nil {
		l = slog.Default()
	}
	return func(ctx context.Context, e Event) {
		level, text := e.line()
		if text == "" || !l.Enabled(ctx, level) { // before any attribute is built: most events are not written
			return
		}
		l.LogAttrs(ctx, level, text, e.attrs()...)
	}
}

// line is the level and the text to log e with; "" is a kind that is not known. The level says what an operator has to do,
// and the events that come once for each message are not above Debug unless something is lost by them: at Info a busy
// server would write nothing else.
func (e *Event) line() (slog.Level, string) {
	switch e.Kind {
	case EventStreamStart:
		return slog.LevelDebug, "flow: stream started"
	case EventAttempt:
		return slog.LevelDebug, "flow: message attempted"
	case EventRetry: // not above Debug: most end in a success, and the others get their line with the count of attempts
		return slog.LevelDebug, "flow: message will be retried"
	case EventSuccess:
		return slog.LevelDebug, "flow: message succeeded"
	case EventFailure:
		return e.Failure.level(), "flow: message failed"
	case EventReject:
		return e.Failure.level(), "flow: message refused"
	case EventDrop: // not above Debug: as many as were waiting, and the line of the stream's end has their count
		return slog.LevelDebug, "flow: message dropped"
	case EventPressure: // not above Debug: under load that is every message
		return slog.LevelDebug, "flow: message runs beyond capacity"
	case EventStreamEnd:
		if e.Failure != nil {
			return e.Failure.level(), "flow: stream failed"
		}
		return slog.LevelInfo, "flow: stream ended"
	case EventShutdown:
		return slog.LevelInfo, "flow: shutting down"
	case EventDuplicate: // not above Debug: a client that resumes may send thousands
		return slog.LevelDebug, "flow: message was settled before"
	case EventSession:
		if e.Found == string(sessionLost) { // the client knows of messages that the server has forgotten
			return slog.LevelWarn, "flow: session was lost"
		}
		return slog.LevelDebug, "flow: session taken"
	case EventSaveFailed:
		return slog.LevelWarn, "flow: session was not saved"
	}
	return 0, ""
}

// blamesClient reports whether the error, which recv returned, is about what the client has sent. Such a stream ends with
// FailureInternal, as every broken source does; logged as an Error it would let any client fill an operator's alerts. A
// panic is the server's own, whatever code its value states.
func (c *cause) blamesClient() bool {
	if !c.stated || c.crashed {
		return false
	}
	switch c.code {
	case codes.ResourceExhausted, codes.InvalidArgument, codes.OutOfRange, codes.FailedPrecondition, codes.NotFound,
		codes.AlreadyExists, codes.Aborted, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	}
	return c.garbled
}

const (
	maxLoggedKey     = 64 // bytes: clients choose keys
	maxLoggedSession = 8  // bytes: who knows the name of a session may write it
)

// attrs returns what is known of e. What is zero is left out, but for a stream's counts, so that each line can be searched
// by them. Clients choose keys, names and their length, so both are cut.
func (e *Event) attrs() []slog.Attr {
	attrs := make([]slog.Attr, 0, 16)
	add := func(a slog.Attr) { attrs = append(attrs, a) }
	if e.Stream > 0 {
		add(slog.Uint64("stream", e.Stream))
	}
	if e.Seq > 0 {
		add(slog.Uint64("seq", e.Seq))
		add(slog.String("key", cutText(e.Key, maxLoggedKey)))
	}
	if e.Attempt > 0 {
		add(slog.Int("attempt", e.Attempt))
		add(slog.Duration("waited", e.Waited))
	}
	if e.Batch > 0 {
		add(slog.Int("batch", e.Batch))
	}
	if e.Took > 0 {
		add(slog.Duration("took", e.Took))
	}
	if e.Kind == EventRetry {
		add(slog.Duration("delay", e.Delay))
	}
	if f := e.Failure; f != nil {
		add(slog.String("kind", f.Kind.String()))
		add(slog.String("error", f.Error()))
		if c := f.said(); f.shownKind(c) == FailureInternal && f.Err != nil { // Error keeps it from the client
			add(slog.String("cause", c.text))
		}
	}
	switch e.Kind {
	case EventFailure, EventReject:
		add(slog.Bool("settled", e.Settled))
	case EventStreamEnd:
		s := &e.Summary
		add(slog.Uint64("received", s.Received))
		add(slog.Uint64("succeeded", s.Succeeded))
		add(slog.Uint64("failed", s.Failed))
		add(slog.Uint64("rejected", s.Rejected))
		add(slog.Uint64("dropped", s.Dropped))
		add(slog.Uint64("retried", s.Retried))
		add(slog.Uint64("committed", s.Committed))
		add(slog.Int("unsettled", len(s.Unsettled)))
		if e.Session.ID.Name != "" {
			add(slog.Uint64("duplicates", s.Duplicates))
		}
	}
	if id := e.Session.ID; id.Name != "" {
		add(slog.String("session", cutText(id.Name, maxLoggedSession)))
		add(slog.Uint64("epoch", e.Session.Epoch))
	}
	if e.Found != "" {
		add(slog.String("found", e.Found))
	}
	if len(e.Stack) > 0 {
		add(slog.String("stack", string(e.Stack)))
	}
	return attrs
}

// emitter tells the Observer, if there is one, what happens in a stream. Its methods are called by workers and by the
// goroutines of Run and the reader; the stream has them by embedding it.
//
// None is called by a method of a shard, and none with a lock held: the Observer is the caller's code, which may be slow,
// panic, and ask for Stats or Close the Flow. Of one message the events come in order, since it is at any moment in the
// hands of one worker, and the channels between them hand it on.
type emitter[T any] struct{ s *stream[T] }

// emit tells the Observer what has happened to m. It costs nothing without one.
//
// A worker calls it, and lets a panic through: what it makes of the message is decided by the step at which it came (see
// worker.crashed). The event is built from what the message has at that moment, for the fields are used again for the next
// attempt.
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

// timed notes how long the attempt at hand, of r, has taken. The time at which it began is in the run, where a Snapshot
// reads it while the attempt is under way. Taking it out marks the attempt as over, and an attempt that has crashed and
// been timed before is not timed again. 0 means that none is under way, so a beginning is kept one higher.
func (t emitter[T]) timed(m *message[T], r *run[T]) {
	s := t.s
	if began := r.began.Swap(0); began > 0 {
		m.took = s.clock() - time.Duration(began-1)
	}
}

// emitStart tells of the stream. A panic fails it. Run's goroutine is the caller's, so a Goexit must not come to it. It
// comes first in begin, before the stream is refused or not: a refused stream has a start and an end too.
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

// emitSession tells that the session is taken. A panic fails the stream. It is called by takeSession, on the goroutine of
// Run, when nothing has been read: no event of a message comes before it.
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

// emitDuplicate tells of a message that was settled before. The reader calls it, in place of all other events of the
// message. It has no goroutine of its own, since a client that resumes may send thousands: a panic comes to the reader,
// which makes it the stream's failure, as it belongs to no message.
func (t emitter[T]) emitDuplicate(seq uint64) {
	s := t.s
	if s.r.observer != nil {
		s.r.observer(s.ctx, Event{Kind: EventDuplicate, Stream: s.id, Seq: seq})
	}
}

// emitSaveFailed tells of a Save that failed, which fails nothing else: neither does a panic. The saver calls it while it
// has the turn, from a timer's goroutine or from Run's: an Observer that hangs here holds up the end of the stream. The
// context is Run's own and not the handlers', which may have ended long before the last Save.
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

// emitEnd tells of the stream's end. There is nothing left for a panic to fail. It is called by end, with the Summary that
// Run will return, when nothing of the stream runs any more; but before the stream leaves the coordinator, so that a
// Shutdown which has returned nil leaves no Observer running. The context is Run's own, for the handlers' has been
// cancelled.
func (t emitter[T]) emitEnd(sum Summary, f *Failure) {
	s := t.s
	if s.r.observer == nil {
		return
	}
	e := Event{Kind: EventStreamEnd, Stream: s.id, Took: s.clock(), Failure: f, Summary: sum}
	if s.session != nil {
		e.Session = s.session.session
	}
	e.Found = s.lostSession(f)
	if f != nil {
		e.Stack = stackOf(f.Err)
	}
	_ = isolated(func() error {
		s.r.observer(s.parent, e)
		return nil
	})
}
