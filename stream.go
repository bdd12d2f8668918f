package flow

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/metadata"
)

// stream is one Run: what its shard, its reader, the workers and Run itself share.
//
// Its reader (receiver.go) reads, numbers and names; its shard (shard.go) lines up, hands out and counts; workers run the
// messages. Whoever ends it says so in state, cancels ctx, and tells the shard, which drops what has not begun. Run waits
// until the shard says done. It does not wait for the reader, which may be blocked in recv until the service method has
// returned.
//
// What is set up by newStream is never written again. Everything else has one writer, or is safe for concurrent use: sh, and
// what a session gives, are written by Run's goroutine under Receiver.mu; backlog, committed and the lanes of order are the
// shard's; state, box and what is in reading are shared, and say themselves how. done is closed by Run itself if the stream
// ends before it has entered a shard.
type stream[T any] struct {
	r      *Receiver[T]
	sh     atomic.Pointer[shard[T]] // nil until Run begins to read
	id     uint64
	parent context.Context // Run's own
	ctx    context.Context // the handlers': it ends with the stream's failure as its cause
	cancel context.CancelCauseFunc
	start  time.Time
	keyOf  OrderingKeyFunc[T]
	rpc    rpc
	order  streamOrder
	origin origin // what its messages have in common

	streamSession
	emitter[T]

	state     runState
	done      chan struct{} // closed by the shard when every message is finished and nothing more comes
	committed atomic.Uint64 // every message with a Seq up to this is settled

	box mailbox[T]
	reading

	backlog backlog[T] // the shard's; once done is closed anybody may read it
}

func (s *stream[T]) clock() time.Duration { return time.Since(s.start) }

// enter makes s known. It reports whether it may run. It runs before anything of the caller's is called, which it does not
// do itself: so Snapshot shows a stream whose Observer hangs, a Shutdown waits for it, and Start returns at once. To enter
// the shutdown is one step with looking whether it has begun, so that none begins without knowing of a stream that runs.
func (s *stream[T]) enter() (entered bool) {
	s.r.mu.Lock()
	s.r.streams[s] = struct{}{}
	s.r.mu.Unlock()
	return s.r.gate.shutdown.enter(s)
}

// begin tells of the stream and finds out what its client asks for, also if the stream may not run: what is malformed is
// refused as that. It runs on Run's goroutine, as all does from here up to end, and blocks in the Observer and in Owner.
func (s *stream[T]) begin() {
	s.emitStart()
	if s.r.sessions != nil {
		s.askForSession()
	}
}

// beginAndRun blocks for the lifetime of the stream. It is separate from end to keep the frame small: a larger one would
// double the goroutine's stack for every idle stream. It reports whether the stream was entered, for end.
func (s *stream[T]) beginAndRun(recv func() (T, error)) (entered bool) {
	entered = s.enter()
	if s.begin(); entered {
		s.run(recv)
	}
	return entered
}

// run reads recv and blocks until nothing of the stream runs any more. It takes a session before anything is read, since the
// numbers of the messages depend on it; that may block until the stream that has it has ended.
func (s *stream[T]) run(recv func() (T, error)) {
	if s.parent.Err() != nil {
		s.fail(contextFailure(s.parent))
	}
	if s.session != nil && s.state.phase() == phaseOpen {
		s.takeSession()
	}
	if s.state.phase() >= phaseDraining { // it has failed, or a shutdown has come, before anything was read
		s.state.finishedAll()
		close(s.done)
		return
	}
	// From here on the backlog is the shard's.
	s.r.enter(s)
	if s.state.phase() != phaseOpen { // who changed that may have found no shard to tell
		s.tell()
	}
	// The share is left when nothing of the stream is pending any more.
	if s.r.bytes != nil {
		s.window.share = s.r.bytes.join(s.window.space)
		defer s.window.share.leave()
	}
	if s.r.batching != nil {
		defer context.AfterFunc(s.parent, s.tell)() // for a call to end with it, the shard must hear of it at once
	}
	// Run does not wait for this goroutine: a recv of gRPC's is blocked until the service method returns, which is after Run
	// has.
	go (&reader[T]{s: s, recv: recv, number: s.backlog.ledger.highest, refusable: s.verdict.given != nil}).run()
	var idle <-chan time.Time
	if s.r.idle > 0 {
		t := time.NewTimer(s.r.idle)
		defer t.Stop()
		idle = t.C
		for s.awaitEnd(idle) {
			t.Reset(s.idleFor())
		}
		return
	}
	s.awaitEnd(nil)
}

// awaitEnd blocks until the stream is done. It returns true before, when idle fires and the stream goes on. Whatever ends
// the stream, it is the shard that says when nothing of it runs any more: so a handler that does not heed its context keeps
// Run from returning.
func (s *stream[T]) awaitEnd(idle <-chan time.Time) (fired bool) {
	select {
	case <-s.done:
		return false
	case <-idle:
		// Something has happened since the timer was set, which is not set again for each message.
		if s.idleFor() > 0 {
			return true
		}
		s.fail(&Failure{Kind: FailureContextCancelled, Err: errIdle})
	case <-s.parent.Done():
		s.awaitRecv()
		s.fail(contextFailure(s.parent))
	}
	<-s.done
	return false
}

// recvGrace is how long a blocked recv may take to say why the context has ended. gRPC's returns at once.
const recvGrace = 50 * time.Millisecond

// awaitRecv waits, when Run's own context has ended, for the recv that is blocked: gRPC cancels a stream's context before
// the Recv of an oversized message returns, so that end is not yet the reason. Nothing starts meanwhile, since attempts
// look at the context.
func (s *stream[T]) awaitRecv() {
	if !s.activity.inRecv.Load() {
		return
	}
	t := time.NewTimer(recvGrace)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
	}
}

// idleFor returns how long the stream may still be idle: 0 if it has been for IdleTimeout. The order of looking matters. The
// reader says that it is in the caller's code before it puts a message, and takes that back after; the shard notes the time
// of a finish before it publishes it. So a stream that seems to have nothing under way has had nothing since last.
func (s *stream[T]) idleFor() time.Duration {
	if s.activity.inCallersCode.Load() || s.box.total() != s.window.finished.Load() {
		return s.r.idle // the receipt or the finish from which the timeout runs is still to come
	}
	return max(0, s.r.idle-(s.clock()-time.Duration(s.activity.last.Load())))
}

// end is the last of s: nothing of it runs any more. It runs on Run's goroutine after done, or without it if the stream
// never entered a shard: in both cases no other goroutine changes the backlog. What has come of a session is saved before
// the client and the Observer are told. The shutdown comes last, since Shutdown returns nil only when nothing of the
// caller's runs any more, and that includes the Observer.
func (s *stream[T]) end(entered bool) (Summary, error) {
	s.cancel(nil)
	s.order.end()
	moved := s.saveSession()
	sum, f := s.summary(), s.failure(entered)
	if f == nil {
		f = moved
	}
	trailer := s.trailer(sum, f)
	crash := s.rpc.setTrailer(trailer)
	if crash != nil && f == nil {
		f = newFailure(FailureInternal, crash)
	}
	s.emitEnd(sum, f)
	// The stream leaves the list and enters the total in one step: Stats reads both under this lock, and so counts it once.
	s.r.mu.Lock()
	delete(s.r.streams, s)
	s.r.total.add(sum)
	s.r.mu.Unlock()
	if s.session != nil {
		s.session.release()
	}
	if entered {
		s.r.gate.shutdown.leave(s)
	}
	if f != nil {
		return sum, f
	}
	return sum, nil
}

// failure returns why the stream, which is done, has failed. It returns nil if it ended well. One that a shutdown has
// kept from beginning has failed by that, unless something had failed it before.
func (s *stream[T]) failure(entered bool) *Failure {
	if failure, _ := s.state.reason(); !entered && failure == nil {
		return &Failure{Kind: FailureShutdown, Err: reasonShutdown}
	}
	return s.state.result(len(s.backlog.ledger.counts.Unsettled) == 0, func() *Failure {
		if s.parent.Err() != nil {
			return contextFailure(s.parent)
		}
		return nil
	})
}

// fail ends the stream with f unless it has failed before. It may be called from everywhere but a method of the shard,
// since to tell itself it would wait for room in its own channel: see shard.skip. It waits for nothing else. The first
// failure is the reason; all others are lost, since they mostly follow from it.
func (s *stream[T]) fail(f *Failure) {
	if s.state.fail(f) {
		s.box.close()
		s.cancel(f) // after the decision: who sees the context ended can see why
		s.tell()
	}
}

// tell has the shard look at s. It waits while the channel is full, which ends soon: a shard never waits for anybody else, and
// one that runs a message which waits here itself is taken over. It is called after what the shard is to see has been stored.
//
// Selects of two or three channels, here and where readers waited for room, once took a quarter of what a message costs while
// the window is small.
func (s *stream[T]) tell() {
	sh := s.sh.Load()
	if sh == nil {
		return // run is yet to enter, and looks then
	}
	select { // for most, since a select of two channels takes three times as long
	case sh.events <- event[T]{mail: s}:
		return
	default:
	}
	select {
	case sh.events <- event[T]{mail: s}:
	case <-s.done: // the shard may be gone
	}
}

// isRead reports whether more may come from s while nothing of it finishes. A batch that forms asks it, in the shard: it
// lingers for more only as long as more may come. A reader that waits for room, or for its share of the bytes, gets none
// before something finishes.
func (s *stream[T]) isRead() bool {
	if s.state.phase() != phaseOpen {
		return false
	}
	pending := s.box.total() - s.window.finished.Load()
	if share := s.window.share; share != nil && share.waiting.Load() && !share.mayRead() {
		return false
	}
	return pending < s.window.limit || !s.window.waiting.Load()
}

// endLinger is told that s's reader is about to wait for room. A batch does not linger for what can't come. It only wakes
// the shard, which then asks isRead again. It is called by the reader after it has said that it waits.
func (s *stream[T]) endLinger() {
	if b := s.r.batching; b == nil || b.Linger == 0 {
		return
	}
	select {
	case s.sh.Load().events <- event[T]{}:
	case <-s.done:
	}
}

// stop implements participant. The mailbox is shut before the phase changes: a shard that sees the new phase compares what
// has finished with a count that does not grow any more. Run's goroutine may still be on its way into a shard; then there is
// no shard to tell, and Run looks at the phase itself.
func (s *stream[T]) stop(drain bool) {
	s.box.close()
	if s.state.stop(drain) {
		s.tell()
	}
	if session := s.sessionNow(); session != nil {
		session.stop()
	}
}

// close implements participant. Unlike a stop without drain it is a failure, which cancels what runs.
func (s *stream[T]) close() {
	s.fail(&Failure{Kind: FailureShutdown, Err: reasonShutdown})
	if session := s.sessionNow(); session != nil {
		session.hurry()
	}
}

// cut implements participant. It is called when a shutdown's grace period is over, and returns how many messages it cuts
// off, with the first of them. They are counted by the shard before the stream is closed, all at one moment, so that none is
// missed that ends by the closing. With drain that is all that has not finished, since all of it was to run; without, what
// had begun, also between two tries or while OnFailure was asked.
func (s *stream[T]) cut() (n int, seq uint64, key string) {
	type cutOff struct {
		n   int
		seq uint64
		key string
	}
	draining := s.state.phase() == phaseDraining
	c := ask(s, func() (c cutOff) {
		s.settleLong()
		mailed := s.backlog.inMailRun()
		s.backlog.visit(&s.box, func(m *message[T], seq uint64, e *entry[T]) {
			if draining || m.runs() || m.asks() || seq == mailed || m != nil && (m.state == stateBackoff || m.state == stateHeld) {
				if c.n++; c.n == 1 {
					c.seq, c.key = seq, e.key
				}
			}
		})
		return c
	})
	s.close()
	return c.n, c.seq, c.key
}

// ask has the shard call f, which may look at all of s, and returns what it returns. It may be called from anywhere but the
// shard, and blocks until the shard comes to it, or the stream is done. f must not block. Once the stream is done it may be
// called here while the shard calls it too, so it then must only read: settleLong, which most of them begin with, does
// nothing by then. reply has room, so that the shard never waits for a caller that has gone on because of done.
//
// While the stream has no shard, Receiver.mu keeps it from entering one, and f is called at once. Without that lock a stream
// was once looked at while it entered.
func ask[T, R any](s *stream[T], f func() R) R {
	sh := s.sh.Load()
	if sh == nil {
		s.r.mu.Lock() // it can't enter a shard meanwhile
		if sh = s.sh.Load(); sh == nil {
			defer s.r.mu.Unlock()
			return f()
		}
		s.r.mu.Unlock()
	}
	reply := make(chan R, 1)
	select {
	case sh.events <- event[T]{do: func() { reply <- f() }}:
		sh.crew.lead.demand()
		select {
		case v := <-reply:
			return v
		case <-s.done: // the shard may be gone
		}
	case <-s.done:
	}
	<-s.done
	return f()
}

// view copies what s has under way. It is called by the shard after settleLong, or when the stream is done.
func (s *stream[T]) view() (v streamView) {
	now := s.clock()
	first, mailed := uint64(0), s.backlog.inMailRun()
	s.backlog.visit(&s.box, func(m *message[T], seq uint64, e *entry[T]) {
		if first == 0 {
			first = seq
		}
		if !m.runs() && seq != mailed {
			v.waiting = append(v.waiting, e.key)
			return
		}
		// tried, and not attempts: that is the worker's while it has the message.
		run := RunningMessage{Stream: s.id, Seq: seq, Key: e.key, Attempt: 1}
		if m != nil {
			run.Attempt = m.tried + 1
			if began := m.run.began.Load(); began > 0 {
				at := now
				if m.run.kind == runBatch { // it is of several streams
					at = m.home.(*shard[T]).clock()
				}
				run.Age = max(0, at-time.Duration(began-1))
			}
		}
		v.running = append(v.running, run)
	})
	l := &s.backlog.ledger
	v.counts = l.counts
	pending := uint64(len(v.waiting) + len(v.running)) // and not the mailbox's count, which goes on meanwhile
	v.state = StreamState{
		ID: s.id, Age: now, Received: l.finished() + pending, Pending: pending, Committed: s.through(l.committed(first)),
	}
	if s.taken {
		v.state.Session = s.origin.session
		v.counts.Duplicates = s.duplicates.Load()
		v.state.Received += v.counts.Duplicates
	}
	return v
}

// settleLong settles what has finished of runs that are out. It is called as view is. When the stream has ended there is
// nothing left to settle, and its shard belongs to others, or is gone.
func (s *stream[T]) settleLong() {
	if sh := s.sh.Load(); sh != nil && !s.backlog.ended {
		sh.settleLong()
	}
}

// progress returns which messages are settled. It is called by the shard, or when the stream is done.
func (s *stream[T]) progress() Progress {
	highest, open := s.unsettled()
	if s.taken {
		return s.session.before.progress(highest, open)
	}
	return Progress{received: highest, unsettled: open}
}

// unsettled returns the highest Seq received, and what is not settled of what was received. It is called as progress is.
func (s *stream[T]) unsettled() (highest uint64, open []uint64) {
	s.settleLong()
	var pending []uint64
	s.backlog.visit(&s.box, func(_ *message[T], seq uint64, _ *entry[T]) { pending = append(pending, seq) })
	return s.backlog.ledger.unsettled(pending)
}

// isOver reports whether nothing of the stream may start any more. A shutdown without drain does not end the context, and
// the shard takes a moment to recall what is out: a message must not run that follows one which the shutdown has cut short.
// Workers ask it before each message.
func (s *stream[T]) isOver() bool { return s.ctx.Err() != nil || s.state.phase() >= phaseAborting }

// abortKind returns the kind of failure of a message that the stream's end cuts short. A handler that a shutdown has
// cancelled, and messages that it has dropped, have failed by the shutdown, also if the context is what they have seen of
// it.
func (s *stream[T]) abortKind() FailureKind {
	failure, stopping := s.state.reason()
	if failure == nil && stopping && s.ctx.Err() == nil || failure != nil && failure.Kind == FailureShutdown {
		return FailureShutdown
	}
	return FailureContextCancelled
}

// sendHeader sends the response header, once, before the first message executes, so that no client replays what has had
// effects. That of a session is sent before the first read. Workers call it before each message or run. The first one sends
// it and others wait until it is sent, so that none of them starts a handler before. It may block in gRPC, as a handler may.
func (s *stream[T]) sendHeader(md metadata.MD) {
	if s.rpc.stream == nil || s.ctx.Err() != nil {
		return
	}
	s.rpc.header.Do(func() {
		if crash := s.rpc.sendHeader(md); crash != nil { // it is the stream's, and not that of the message that is about to run
			s.fail(newFailure(FailureInternal, crash))
		}
	})
}

// blame makes a failure of a key function's panic, or of the error of a caller's own resolver. It runs in a worker, at
// stepCause. A message whose key function panicked has been received without a key; any other has waited for a resolver, and
// not run: so it is refused, and if it is the stream's end that has ended the wait, not by the resolver's fault.
func (s *stream[T]) blame(m *message[T]) {
	switch {
	case m.crash != nil:
		m.fail(FailureInternal, m.crash)
	case panicked(m.cause):
		m.refuse(FailureInternal, m.cause)
	case s.ctx.Err() != nil:
		m.refuse(FailureContextCancelled, contextFailure(s.ctx).Err)
	case s.state.phase() >= phaseAborting: // the shutdown has ended the wait
		m.abort(s.abortKind())
	default:
		f := orderFailure(context.Background(), m.cause, m.key)
		m.refuse(f.Kind, f.Err)
	}
}

// askOnFailure asks OnFailure what m's failure means. A stream that has failed, and a failure that is only its end, come to
// nobody. It runs in a worker. Before the caller's code is called, the run notes for which message: a shutdown that cuts the
// stream off meanwhile counts that message. To skip the key means nothing for a message that has none, since the key
// function panicked, or for one whose key has no order.
func (s *stream[T]) askOnFailure(m *message[T]) {
	kind := m.fault.Kind
	if kind == FailureContextCancelled || kind == FailureShutdown || s.r.onFailure == nil || s.ctx.Err() != nil {
		return
	}
	m.run.asking.Store(m)
	switch s.r.onFailure(s.ctx, m.fault) {
	case SkipMessage:
		m.settled = true
	case SkipKey:
		m.settled = true
		m.skipKey = m.crash == nil && s.order.ordered(m.key)
	}
}

// failUnlessSkipped ends the stream with m's failure unless OnFailure has skipped it. A panic ends it all the same. A
// message that its stream's end has cut short is not what ended it: that reason is known already. When Run's own context has
// ended, Run says why: recv may know more than the context does, see awaitRecv.
func (s *stream[T]) failUnlessSkipped(m *message[T]) {
	kind := m.fault.Kind
	if kind == FailureContextCancelled || kind == FailureShutdown || m.settled && !IsTerminal(kind) {
		return
	}
	if s.parent.Err() == nil {
		s.fail(m.fault)
	}
}

// activity is what IdleTimeout and the end of the context need to know of a reader. The reader writes all of it, and the
// shard writes last too, when something has finished. Only Run's goroutine looks at it.
type activity struct {
	inRecv        atomic.Bool  // recv is blocked, or about to be: the reader does not wait for room
	inCallersCode atomic.Bool  // the reader has a message and is in the caller's functions
	last          atomic.Int64 // time of the last receipt or finish since the stream's start; kept for IdleTimeout
}
