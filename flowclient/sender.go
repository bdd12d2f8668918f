package flowclient

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	mathrand "math/rand/v2"
	"reflect"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// Sender uploads messages in one session, over as many streams as it takes. It is safe for concurrent use; concurrent
// calls of Send take on their messages in some order, which is the order in which they are sent. It has one goroutine
// from its first Send or Resume until Close, and one more while a stream is open. Close it to let go of them.
type Sender[Req, Resp any] struct {
	openStream func(context.Context, ...grpc.CallOption) (grpc.ClientStreamingClient[Req, Resp], error)
	options    Options // with defaults
	named      bool    // the session's name is the caller's
	sizeOf     func(*Req) int

	ctx      context.Context // of all streams; ends when the Sender does
	cancel   context.CancelFunc
	turn     chan struct{} // held by the call of Send that gets the next number, and by Resume
	closing  chan struct{} // closed by the first Close
	wake     chan struct{} // for the Sender's goroutine
	finished chan struct{} // closed when that has ended

	// Of the Sender's goroutine alone.
	pacing      pacing
	lateAnswers int  // streams in a row that ran into AnswerTimeout
	headerHeld  bool // no header said before the answer that there are sessions

	mu      sync.Mutex // is never held while anything blocks or the caller's code runs
	buffer  buffer[Req]
	changed chan struct{} // closed when something that calls wait for has changed; nil while none waits
	err     error         // why the Sender has ended; nil while it lives
	closed  bool          // by Close, which may still wait
	started bool          // the goroutine has been
	parked  bool          // it waits for a message, and has to be woken for one

	flushTo  uint64 // the highest number that a call waits to be settled
	blocked  bool   // a call of Send waits for a place
	resuming bool   // a call of Resume waits
	resumed  bool
	abandon  context.CancelCauseFunc // cancels the stream that is open

	epoch     uint64    // as the server gave it; 0 before the claim
	claims    int       // streams that claimed the session
	handed    uint64    // the highest number that may have been sent
	sent      uint64    // the highest number that has been sent
	limit     uint64    // the highest number that may have been settled at the claim
	notBefore time.Time // the next stream
	giveUp    *time.Timer
	advanced  time.Time // when there was progress last, or something to wait for began
	lastErr   error     // how the last stream that failed ended

	streams, resent, lost uint64
}

// New returns a Sender that opens its streams with open, a generated client's method as it is; wrap it to add metadata
// or CallOptions. The context that open gets is not that of a call of Send: it carries the session's metadata and ends
// with the stream. Nothing is opened before there is something to send. Impossible options are an error that names the
// field, its value and the rule.
func New[Req, Resp any](
	open func(context.Context, ...grpc.CallOption) (grpc.ClientStreamingClient[Req, Resp], error), o Options,
) (*Sender[Req, Resp], error) {
	if open == nil {
		return nil, errors.New("flowclient: open must not be nil")
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	sizeOf := sizeFunc[Req]()
	if sizeOf == nil {
		rule := fmt.Sprintf("needs messages that have a size: a proto.Message, a method Size() int, a string or a []byte, not %v",
			reflect.TypeFor[*Req]())
		switch {
		case o.MaxBufferedBytes > 0:
			return nil, invalid("MaxBufferedBytes", o.MaxBufferedBytes, rule)
		case o.MaxMessageBytes > 0:
			return nil, invalid("MaxMessageBytes", o.MaxMessageBytes, rule)
		}
		sizeOf = func(*Req) int { return 0 }
	}
	s := &Sender[Req, Resp]{
		openStream: open, options: o.withDefaults(), named: o.Session != "", sizeOf: sizeOf,
		turn: make(chan struct{}, 1), closing: make(chan struct{}), wake: make(chan struct{}, 1), finished: make(chan struct{}),
	}
	if !s.named {
		s.options.Session = rand.Text()
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.pacing.backoff = backoff{first: s.options.Backoff, most: s.options.MaxBackoff, random: mathrand.Float64}
	s.buffer = buffer[Req]{maxCount: uint64(s.options.MaxBuffered), maxBytes: s.options.MaxBufferedBytes, first: 1}
	return s, nil
}

// Resume claims the session and returns the number of the message that comes next, which is 1 if the server does not know
// the session: seek there in the input, and Send from there. Whoever wrote the session before is refused from then on.
//
// It comes before the first Send, and blocks until the server has answered, trying again as streams do, until ctx ends or
// the Sender does. A call of Send meanwhile waits. After an error that is ctx's it may be called again; after success
// it returns the same number until something is sent.
func (s *Sender[Req, Resp]) Resume(ctx context.Context) (next uint64, err error) {
	if err := s.takeTurn(ctx); err != nil {
		return 0, err
	}
	defer s.leaveTurn()
	s.mu.Lock()
	if err := s.refusedLocked(); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	if s.buffer.taken > 0 {
		s.mu.Unlock()
		return 0, errors.New("flowclient: Resume comes before the first Send")
	}
	s.resuming = !s.resumed
	s.startLocked()
	s.mu.Unlock()
	s.notify()

	err = s.await(ctx, func() bool { return s.resumed }, true)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resumed {
		return s.buffer.last + 1, nil
	}
	s.resuming = false
	if s.abandon != nil {
		s.abandon(errNotWanted)
	}
	s.notify()
	return 0, err
}

// Send takes m on: nil means that m has a number and will be sent until it is settled or the Sender ends, and that it is
// not to be changed any more. Any other result means that it was not taken on: m is nil, larger than MaxMessageBytes, or
// its size can't be told; ctx ended; the Sender has ended, by Close (ErrClosed) or with the error returned.
//
// It blocks while the buffer is full, in the order of the calls, and never for the network.
func (s *Sender[Req, Resp]) Send(ctx context.Context, m *Req) error {
	size, err := s.measure(m)
	if err != nil {
		return err
	}
	if err := s.takeTurn(ctx); err != nil {
		return err
	}
	defer s.leaveTurn()
	s.mu.Lock()
	if !s.buffer.fits(size) && s.refusedLocked() == nil {
		s.blocked = true
		s.mu.Unlock()
		s.notify()
		err := s.await(ctx, func() bool { return s.buffer.fits(size) }, true)
		s.mu.Lock()
		s.blocked = false
		if err != nil {
			s.mu.Unlock()
			return err
		}
	}
	if err := s.refusedLocked(); err != nil {
		s.mu.Unlock()
		return err
	}
	idle := !s.buffer.pending()
	s.buffer.take(m, size)
	if idle {
		s.watchLocked()
	}
	s.startLocked()
	parked := s.parked
	s.parked = false
	s.mu.Unlock()
	if parked {
		s.notify()
	}
	return nil
}

func (s *Sender[Req, Resp]) measure(m *Req) (size int, err error) {
	if m == nil {
		return 0, errors.New("flowclient: the message is nil")
	}
	if err := guarded("the message's Size", func() error { size = s.sizeOf(m); return nil }); err != nil {
		return 0, err
	}
	if size > s.options.MaxMessageBytes {
		return 0, fmt.Errorf("flowclient: a message must not be larger than Options.MaxMessageBytes, which is %d (got %d bytes)",
			s.options.MaxMessageBytes, size)
	}
	return size, nil
}

// Flush blocks until all that was taken on before is settled or skipped, and the server has said so. It half-closes the
// stream at once, so that the server answers. It returns ctx's error if that ends first, and why the Sender ended if it
// did: what is not settled then is what Unsettled yields.
func (s *Sender[Req, Resp]) Flush(ctx context.Context) error {
	s.mu.Lock()
	to := s.buffer.last
	s.flushTo = max(s.flushTo, to)
	s.mu.Unlock()
	s.notify()
	return s.await(ctx, func() bool { return s.buffer.committed >= to }, false)
}

// Close flushes, and ends the Sender: no more is taken on from its beginning. nil means that all that was taken on is
// settled or skipped. If ctx ends first, the Sender stops at once. What is not known to be settled then, or because the
// Sender had ended before, is told by an *UnsettledError and by Unsettled.
//
// When it returns, no goroutine of the Sender is left. It may be called more than once, and concurrently. It must not be
// called from OnFailure or OnReply.
func (s *Sender[Req, Resp]) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	s.flushTo = s.buffer.last
	s.changeLocked()
	started := s.started
	s.mu.Unlock()
	s.notify()
	err := s.await(ctx, func() bool { return !s.buffer.pending() }, false)
	if err != nil {
		err = &closedError{err}
	} else if started { // the last stream ends in good order
		select {
		case <-s.finished:
		case <-ctx.Done():
		}
	}
	s.end(cmp.Or(err, ErrClosed))
	if started {
		<-s.finished
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.buffer.open() {
		return &UnsettledError{Seq: n, Count: s.buffer.unsettled, Err: s.err}
	}
	if s.buffer.pending() { // the server does not know yet what was skipped
		return s.err
	}
	return nil
}

// Unsettled yields, in order, the messages that are not known to be settled, with their numbers. After the Sender has
// ended these are exactly those to care for; what was skipped is not among them. Before, it is what is so when the loop
// begins.
func (s *Sender[Req, Resp]) Unsettled() iter.Seq2[uint64, *Req] {
	return func(yield func(uint64, *Req) bool) {
		type numbered struct {
			seq     uint64
			message *Req
		}
		s.mu.Lock()
		all := make([]numbered, 0, s.buffer.unsettled)
		for n, m := range s.buffer.open() {
			all = append(all, numbered{n, m})
		}
		s.mu.Unlock()
		for _, m := range all {
			if !yield(m.seq, m.message) {
				return
			}
		}
	}
}

// Stats is a snapshot of a Sender. What is not settled is Taken - Settled - Skipped.
type Stats struct {
	Taken         uint64 // messages that Send took on
	Settled       uint64 // of these, known to be settled
	Skipped       uint64 // of these, given up by Options.OnFailure
	Buffered      int    // messages kept: a settled one stays until all before it are, since numbers follow each other
	BufferedBytes int64  // their encoded size
	Streams       uint64 // opened
	Resent        uint64 // messages sent again
	Lost          uint64 // streams that found that the server had lost what it had said before
	Epoch         uint64 // of the session; 0 before the server has given one
	Err           error  // why the Sender has ended; nil while it lives, and after a Close that had all settled
}

// Stats returns a snapshot. It does not block.
func (s *Sender[Req, Resp]) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Taken: s.buffer.taken, Settled: s.buffer.settled(), Skipped: s.buffer.skipped,
		Buffered: int(s.buffer.count()), BufferedBytes: s.buffer.bytes,
		Streams: s.streams, Resent: s.resent, Lost: s.lost, Epoch: s.epoch, Err: s.err,
	}
	if st.Err == ErrClosed {
		st.Err = nil
	}
	return st
}

// takeTurn waits until the calls of Send before this one have their numbers.
func (s *Sender[Req, Resp]) takeTurn(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case s.turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
	case <-s.ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusedLocked()
}

func (s *Sender[Req, Resp]) leaveTurn() { <-s.turn }

// refusedLocked returns why nothing more is taken on; nil if it is.
func (s *Sender[Req, Resp]) refusedLocked() error {
	if s.closed {
		return ErrClosed
	}
	return s.err
}

// await blocks until reached, which is called under mu, or returns why it can't be: ctx's end, or the Sender's; with
// open also that of Close.
func (s *Sender[Req, Resp]) await(ctx context.Context, reached func() bool, open bool) error {
	for {
		s.mu.Lock()
		done, err := reached(), s.err
		if open && s.closed {
			err = ErrClosed
		}
		changed := s.changedLocked()
		s.mu.Unlock()
		switch {
		case done:
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// changedLocked returns what is closed with the next change.
func (s *Sender[Req, Resp]) changedLocked() <-chan struct{} {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

func (s *Sender[Req, Resp]) changeLocked() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// notify has the Sender's goroutine look at what there is to do.
func (s *Sender[Req, Resp]) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Sender[Req, Resp]) startLocked() {
	if !s.started {
		s.started = true
		go s.run()
	}
}

// end ends the Sender with err, unless it has ended already. From then on nothing changes in the buffer.
func (s *Sender[Req, Resp]) end(err error) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
		s.cancel()
		s.watchLocked()
		s.changeLocked()
	}
	s.mu.Unlock()
	if first && err != ErrClosed {
		s.log(slog.LevelError, "flowclient: the Sender has ended", "error", err)
	}
}

// log logs with the first bytes of the session's name, the rest of which may be all that guards it. A handler that panics
// ends nothing.
func (s *Sender[Req, Resp]) log(level slog.Level, text string, args ...any) {
	name := s.options.Session[:min(8, len(s.options.Session))]
	_ = guarded("Options.Logger", func() error {
		s.options.Logger.Log(context.Background(), level, text, append([]any{"session", name}, args...)...)
		return nil
	})
}

// watchLocked notes that there was progress, or that there is something to wait for, and has the Sender end if that
// stays the last for GiveUpAfter. No timer runs while nothing is buffered.
func (s *Sender[Req, Resp]) watchLocked() {
	if s.options.GiveUpAfter == 0 {
		return
	}
	if !s.buffer.pending() || s.err != nil {
		if s.giveUp != nil {
			s.giveUp.Stop()
		}
		return
	}
	s.advanced = time.Now()
	if s.giveUp == nil {
		s.giveUp = time.AfterFunc(s.options.GiveUpAfter, s.giveUpIfStalled)
		return
	}
	s.giveUp.Reset(s.options.GiveUpAfter)
}

// giveUpIfStalled ends the Sender unless there was progress while its timer fired.
func (s *Sender[Req, Resp]) giveUpIfStalled() {
	s.mu.Lock()
	stalled := s.buffer.pending() && time.Since(s.advanced) >= s.options.GiveUpAfter
	err := fmt.Errorf("flowclient: no progress for Options.GiveUpAfter, which is %v", s.options.GiveUpAfter)
	if s.lastErr != nil {
		err = fmt.Errorf("%w; the last stream failed: %w", err, s.lastErr)
	}
	s.mu.Unlock()
	if stalled {
		s.end(err)
	}
}
