package flowclient

import (
	"errors"
	"log/slog"
	"math"
	"slices"
	"time"

	"example.com/flow"
)

// settledAhead is how many bytes may be sent again although the response header has said that they are settled, before
// another stream that starts behind them is worth its round trip.
const settledAhead = 64 << 10

// run is the Sender's goroutine: one stream after the other, as long as there is something to send.
func (s *Sender[Req, Resp]) run() {
	defer close(s.finished)
	defer s.end(errors.New("flowclient: runtime.Goexit in a function of the caller's")) // unless it has ended
	for st := s.nextStream(); st != nil; st = s.nextStream() {
		s.endStream(st, st.run())
	}
	s.end(ErrClosed)
}

// nextStream blocks until a stream is to be opened, and returns nil when none will be any more.
func (s *Sender[Req, Resp]) nextStream() *stream[Req, Resp] {
	for {
		s.mu.Lock()
		work := s.buffer.pending() || s.resuming
		delay := time.Until(s.notBefore)
		s.parked = !work
		switch {
		case s.err != nil, s.closed && !work:
			s.mu.Unlock()
			return nil
		case work && delay <= 0:
			defer s.mu.Unlock()
			return s.newStreamLocked()
		}
		s.mu.Unlock()
		s.sleep(delay, work)
	}
}

// sleep returns after d, if that is timed, or earlier when there may be something else to do.
func (s *Sender[Req, Resp]) sleep(d time.Duration, timed bool) {
	var over <-chan time.Time
	if timed {
		t := time.NewTimer(d)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-over:
	case <-s.wake:
	case <-s.ctx.Done():
	}
}

func (s *Sender[Req, Resp]) newStreamLocked() *stream[Req, Resp] {
	s.streams++
	if s.epoch == 0 {
		s.claims++
	}
	st := newStream(s, request{
		session: s.options.Session, start: s.buffer.committed + 1, epoch: s.epoch, skips: slices.Clone(s.buffer.skips),
	})
	st.blank = s.resuming
	st.noHeader = s.options.NoHeader || s.headerHeld
	st.sentBefore = s.sent
	s.abandon = st.cancel
	return st
}

// move is what a stream does next.
type move int

const (
	moveSend      move = iota // what is in its batch
	moveWait                  // for something to send
	moveHalfClose             // its answer is wanted
	moveStop                  // the Sender has ended
)

// nextMove notes that st has sent so many of its batch, and decides what it does next.
func (s *Sender[Req, Resp]) nextMove(st *stream[Req, Resp], sent int) move {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteSentLocked(st, sent)
	b := &s.buffer
	count, bytes := b.maxCount-b.maxCount/2-st.carried, b.maxBytes-b.maxBytes/2-st.carriedBytes // up to half of a bound
	switch {
	case s.err != nil:
		return moveStop
	case st.blank, st.doubtful, !b.pending(), st.overdue.Load(), count == 0, bytes <= 0, s.flushTo > b.committed && st.cursor > s.flushTo:
		return moveHalfClose
	case st.cursor < b.first: // its header has settled all there was, and more came since, which is behind a gap
		return moveHalfClose
	}
	st.batch = st.batch[:0]
	for n := st.cursor; n <= b.last && uint64(len(st.batch)) < min(count, batchSize) && bytes > 0; n++ {
		e := b.at(n)
		st.batch = append(st.batch, e.message)
		bytes -= int64(e.size)
		s.handed = max(s.handed, n)
	}
	switch {
	case len(st.batch) > 0:
		return moveSend
	case s.blocked, s.closed: // there won't be more before this is answered
		return moveHalfClose
	}
	s.parked = true
	return moveWait
}

func (s *Sender[Req, Resp]) noteSent(st *stream[Req, Resp], sent int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteSentLocked(st, sent)
}

func (s *Sender[Req, Resp]) noteSentLocked(st *stream[Req, Resp], sent int) {
	if sent == 0 {
		return
	}
	from := st.cursor
	st.cursor += uint64(sent)
	st.carried += uint64(sent)
	st.carriedBytes += s.buffer.size(from, st.cursor-1)
	s.sent = max(s.sent, st.cursor-1)
	if again := min(st.cursor-1, st.sentBefore); again >= from {
		s.resent += again - from + 1
	}
	s.releaseLocked(st)
}

// releaseLocked lets go of what is committed and not needed to go on with st.
func (s *Sender[Req, Resp]) releaseLocked(st *stream[Req, Resp]) {
	if s.err != nil {
		return
	}
	before := s.buffer.first
	if s.buffer.pending() {
		s.buffer.release(st.cursor - 1)
	} else {
		s.buffer.release(s.buffer.last)
	}
	if s.buffer.first != before {
		s.changeLocked()
	}
}

// believe takes over what the server says in a header or in trailers, if it can be true. An error is why st can't go on;
// all but errSettledAhead end the Sender.
func (s *Sender[Req, Resp]) believe(st *stream[Req, Resp], a answer) error {
	lost, err := s.takeAnswer(st, a)
	if lost {
		s.log(slog.LevelWarn, "flowclient: the server has lost what it had said before of the session", "from", st.start)
	}
	return err
}

func (s *Sender[Req, Resp]) takeAnswer(st *stream[Req, Resp], a answer) (lost bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.buffer
	if s.err != nil || st.blank && !s.resuming {
		return false, nil
	}
	if a.epoch > 0 {
		if st.epoch > 0 && a.epoch != st.epoch {
			return false, senseless("%s is %d, the stream's is %d", keyEpoch, a.epoch, st.epoch)
		}
		st.epoch = a.epoch
	}
	if st.claim && s.named && !s.resumed && !st.blank && a.found == foundKnown && (s.claims <= 1 || a.top != 0) {
		return false, ErrSessionKnown // an earlier claim of this Sender has settled nothing
	}
	committed, limit := a.progress.Committed(), max(s.handed, s.limit)
	switch {
	case a.told && committed < st.start-1:
		return false, senseless("%s is %d, below %s - 1, which is %d", keyCommitted, committed, keyStart, st.start-1)
	case a.told && !st.blank && committed > limit:
		return false, senseless("%s is %d, above what was sent, which is %d", keyCommitted, committed, limit)
	}
	s.epoch = st.epoch
	if a.found == foundLost {
		lost = true
		s.lost++
	}
	if st.blank {
		if !a.told { // the trailers may
			return lost, nil
		}
		s.resuming, s.resumed = false, true
		s.limit = max(a.top, committed)
		b.resume(committed, a.progress)
		s.changeLocked()
		return lost, nil
	}
	if !a.told {
		return lost, nil
	}
	before := b.progress
	b.settle(a.progress)
	if b.progress != before {
		s.watchLocked()
		s.changeLocked()
	}
	s.releaseLocked(st)
	if !st.halfClosed && b.pending() && b.size(st.cursor, committed) > settledAhead {
		return lost, errSettledAhead
	}
	return lost, nil
}

// endStream takes over what st was answered with, and decides when the next stream is opened, or ends the Sender.
func (s *Sender[Req, Resp]) endStream(st *stream[Req, Resp], e ending[Resp]) {
	s.mu.Lock()
	over := s.err != nil
	s.abandon = nil
	s.mu.Unlock()
	if over {
		return
	}
	if e.fatal != nil {
		s.end(e.fatal)
		return
	}
	v, a, err := s.judge(st, e)
	if err != nil {
		s.end(err)
		return
	}
	if e.err == nil && s.options.OnReply != nil {
		if err := guarded("Options.OnReply", func() error { s.options.OnReply(e.reply); return nil }); err != nil {
			s.end(err)
			return
		}
	}
	if e.own == errAnswerTimeout {
		s.lateAnswers++
	} else if e.err == nil {
		s.lateAnswers = 0
	}
	if v.step == stepAsk {
		v = s.ask(st, e, a)
	}
	s.pause(st, e, v)
}

// judge takes over what the trailers say, and returns what the end of st means. An error ends the Sender.
func (s *Sender[Req, Resp]) judge(st *stream[Req, Resp], e ending[Resp]) (verdict, answer, error) {
	a, malformed := readAnswer(e.trailer)
	st.epochTold = st.epochTold || a.epoch > 0
	if st.unheard && st.epochTold {
		s.headerHeld = true
	}
	v := judge(outcome{
		own: e.own, status: statusOf(e.err), unsent: e.unsent,
		epoch: st.epochTold, doubtful: st.doubtful, held: st.epoch, failed: a.failed,
	})
	if errors.Is(v.err, ErrNoSessions) {
		return v, a, v.err
	}
	if malformed != nil {
		return v, a, malformed
	}
	if foreign := a.epoch > 0 && st.epoch > 0 && a.epoch != st.epoch; st.epochTold && (!foreign || !movedBy(e.err)) {
		if err := s.believe(st, a); err != nil && err != errSettledAhead {
			return v, a, err
		}
	}
	s.mu.Lock()
	if s.err == nil {
		s.buffer.release(math.MaxUint64)
		s.changeLocked()
	}
	s.mu.Unlock()
	return v, a, nil
}

// movedBy reports whether err is SESSION_MOVED, which may come with another's epoch.
func movedBy(err error) bool { return readDetails(statusOf(err)).moved }

// ask decides what becomes of a message that the server could not do.
func (s *Sender[Req, Resp]) ask(st *stream[Req, Resp], e ending[Resp], a answer) verdict {
	n := a.failed
	s.mu.Lock()
	if n < st.start || n > s.handed {
		s.mu.Unlock()
		return verdict{err: senseless("%s is %d, which was not sent", keyFailed, n)}
	}
	if n <= s.buffer.committed || a.progress.Settled(n) { // the server has skipped it, or has no need of it any more
		s.mu.Unlock()
		return verdict{step: stepRestart}
	}
	entry := *s.buffer.at(n)
	s.mu.Unlock()

	f := &flow.Failure{Kind: flow.ClassifyFailure(e.err), Seq: n, Value: entry.message, Err: e.err}
	action := failedActionOf(statusOf(e.err).Code())
	if entry.done { // it was settled, but the server has forgotten that
		action = Skip
	} else if s.options.OnFailure != nil {
		err := guarded("Options.OnFailure", func() error { action = s.options.OnFailure(f); return nil })
		if err != nil {
			return verdict{err: err}
		}
	}
	switch action {
	case Retry:
		return verdict{step: stepBackOff}
	case Skip:
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil || s.buffer.skip(n) {
			s.watchLocked()
			return verdict{step: stepRestart}
		}
	}
	return verdict{err: f}
}

// pause sets when the next stream is opened, or ends the Sender.
func (s *Sender[Req, Resp]) pause(st *stream[Req, Resp], e ending[Resp], v verdict) {
	s.mu.Lock()
	s.pacing.look(s.buffer.progress)
	s.mu.Unlock()
	var delay time.Duration
	switch v.step {
	case stepEnd:
		s.end(v.err)
		return
	case stepRestart:
		delay = s.pacing.restart()
	case stepWait:
		delay = s.pacing.wait(v.delay)
	case stepBackOff:
		if !e.backedOff {
			delay = s.pacing.backoff.next()
		}
	case stepUnauthenticated:
		var again bool
		if delay, again = s.pacing.unauthenticated(); !again {
			s.end(v.err)
			return
		}
	}
	err := e.err
	if e.own != nil {
		err = e.own
	}
	s.mu.Lock()
	s.notBefore = time.Now().Add(delay)
	s.lastErr = err
	s.mu.Unlock()
	level := slog.LevelDebug
	if v.step != stepRestart {
		level = slog.LevelInfo
	}
	s.log(level, "flowclient: a stream has ended", "carried", st.String(), "error", err, "delay", delay)
	if s.headerHeld && !st.noHeader {
		s.log(slog.LevelWarn, "flowclient: no response header said before the answer that there are sessions, and none is waited for any more: set Options.NoHeader")
	}
}

// answerTimeout is AnswerTimeout, doubled for each one in a row that was not enough.
func (s *Sender[Req, Resp]) answerTimeout() time.Duration {
	d := s.options.AnswerTimeout
	for range s.lateAnswers {
		if d > math.MaxInt64/4 {
			break
		}
		d *= 2
	}
	return d
}
