package flow

import (
	"context"
	"io"
	"time"
)

// intake is a stream's receiver goroutine: it reads the source, numbers the messages, names their keys and passes them
// on, through the inbox or, where something is to be decided on receipt, into their lanes. What is refused on receipt it
// carries to its end itself, so that refusals slow the client down.
type intake[T any] struct {
	s      *stream[T]
	recv   func() (T, error)
	seq    uint64     // of the last that was received
	at     arrival[T] // the one at hand
	weight weight     // and its
	in     place      // whose code it is in
	credit int32      // messages that may be received before the window is looked at again
}

// place is where a panic or a Goexit comes from.
type place uint8

const (
	placeOwn  place = iota // or that of a refusal's carrier, which sees to it itself
	placeRecv              // recv
	placeAsk               // the key function, or what measures a message
)

// run receives until the source ends, or the stream does: then all that recv still returns is nobody's.
func (in *intake[T]) run() {
	s := in.s
	normal := false
	defer func() {
		if !normal {
			in.exited()
		}
		s.mu.Lock()
		s.input = true
		s.checkDoneLocked()
		s.mu.Unlock()
	}()
	for {
		crash := in.receive()
		if crash == nil {
			break
		}
		if in.in == placeRecv {
			in.ended(crash)
			break
		}
		if in.in == placeOwn { // a panic between two messages belongs to none
			s.fail(newFailure(FailureInternal, crash))
			break
		}
		in.in = placeOwn
		if !in.decide(crash) {
			break
		}
	}
	normal = true
}

// receive is the loop. It returns what the caller's functions panicked with, or nil when nothing more is to be received.
// One deferred function for all messages, since one for each would cost a fifth of the loop.
func (in *intake[T]) receive() (crash error) {
	returned := false
	defer func() { // as in recovered
		if !returned {
			crash = newPanicError(recover())
		}
	}()
	s, r := in.s, in.s.r
	for in.awaitRoom() {
		in.in = placeRecv
		v, err := in.recv()
		if err != nil {
			in.ended(err)
			break
		}
		in.in = placeOwn
		if s.parent.Err() != nil {
			s.fail(contextFailure(s.parent))
			break
		}
		if s.closed.Load() {
			break
		}
		in.at, in.weight = arrival[T]{value: v, seq: in.seq + 1}, weight{}
		if r.observer != nil || r.idle > 0 {
			in.weight.received = s.clock()
			s.busy.Store(r.idle > 0)
			s.lastUse.Store(int64(in.weight.received))
		}
		in.in = placeAsk
		if r.bytes != nil {
			in.weight.size = int64(r.sizeOf(v))
		}
		if s.keyOf != nil {
			in.at.key = s.keyOf(v)
		}
		in.in = placeOwn
		direct, shut := s.put(&in.at, in.weight)
		switch {
		case shut, direct && !in.decide(nil):
			returned = true
			return nil
		case direct:
		default:
			in.seq++
			if !s.attended.Load() {
				s.attend()
			}
		}
		in.at = arrival[T]{} // for as long as recv is blocked it would keep the message alive
		if r.idle > 0 {
			s.busy.Store(false)
		}
	}
	returned = true
	return nil
}

// ended is told recv's first error, which is its last word.
func (in *intake[T]) ended(err error) {
	s := in.s
	ended := s.parent.Err() != nil
	if err == io.EOF && !ended {
		s.mu.Lock()
		s.eof = true
		s.mu.Unlock()
		return
	}
	f := recvFailure(err)
	// Only a status that says something else than the context's end is a better reason than that.
	if ended && (!f.said().stated || f.Kind == FailureContextCancelled) {
		f = contextFailure(s.parent)
	}
	s.fail(f)
}

// exited is called when user code has called runtime.Goexit on this goroutine: what is left to do is done elsewhere.
func (in *intake[T]) exited() {
	s := in.s
	switch in.in {
	case placeRecv:
		s.fail(&Failure{Kind: FailureInternal, Err: errGoexit})
		return
	case placeOwn: // in the course of a refusal: its carrier goes on elsewhere and ends the stream with that message
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, refused := in.decideLocked(errGoexit); refused {
		s.carry(m)
	}
}

// decide receives the message at hand, whose key function panicked with crash if that is not nil, past the inbox. false:
// the stream has ended meanwhile and the message was not received.
func (in *intake[T]) decide(crash error) bool {
	s := in.s
	s.mu.Lock()
	m, refused := in.decideLocked(crash)
	s.mu.Unlock()
	if refused {
		c := carrier[T]{s: s, m: m}
		_ = c.run()
	}
	s.busy.Store(false)
	return in.seq == in.at.seq
}

// decideLocked receives the message at hand and decides on it here and now: it is lined up, queued, or refused and to be
// carried to its end by the caller. In one step under mu, so that nothing is refused that has its turn and a slot.
func (in *intake[T]) decideLocked(crash error) (m *message[T], refused bool) {
	s, p := in.s, in.s.r.gate.pressure
	if !s.inbox.count() {
		return nil, false
	}
	in.seq++
	if in.weight.size > 0 {
		s.r.bytes.add(in.weight.size)
	}
	m = s.acceptLocked(&in.at, in.weight)
	if crash != nil {
		m.unkeyed = true
		m.fail(FailureInternal, crash)
		return m, true
	}
	if p.rejects() && !s.isGivenUpLocked(m) {
		m.refuse(FailureBackpressure, reasonNoCapacity)
		return m, true
	}
	first, why := s.joinLocked(m)
	switch {
	case why != "":
		m.refuse(FailureOrdering, why)
		return m, true
	case !first:
		return m, false
	case !p.refuses() || s.own != nil || s.isGivenUpLocked(m):
		if s.turnLocked(m) {
			s.carry(m)
		}
	case p.try():
		s.slots++
		s.coming++
		s.carriers.Go(s.comeFn)
		m.state = stateQueued
		s.ready.push(m)
	case p.opts.Policy == BackpressureHardReject:
		m.refuse(FailureBackpressure, reasonNoCapacity)
		return m, true
	case !p.tryLack():
		m.refuse(FailureBackpressure, reasonQueueFull)
		return m, true
	default:
		m.state = stateQueued
		s.ready.push(m)
	}
	s.startLocked()
	return m, false
}

// checkIdle ends the stream if it has been idle for IdleTimeout, or looks again when it may have been.
func (s *stream[T]) checkIdle() {
	s.mu.Lock()
	if s.isDone {
		s.mu.Unlock()
		return
	}
	left := s.r.idle - (s.clock() - time.Duration(s.lastUse.Load()))
	if left <= 0 && !s.busy.Load() && s.pendingLocked() == 0 {
		s.mu.Unlock()
		s.fail(&Failure{Kind: FailureContextCancelled, Err: errIdle})
		return
	}
	if left <= 0 { // the receipt or the finish from which the timeout runs is still to come
		left = s.r.idle
	}
	s.idle.Reset(left)
	s.mu.Unlock()
}

// FromChan makes a recv of a channel: a source other than gRPC. It blocks until there is a value; it returns io.EOF when
// ch is closed and empty, and ctx.Err() when ctx has ended. Like every recv it is for one Run. When that ends early, the
// goroutine blocked in it ends with ctx or with the next value, which is lost: give it a ctx that ends.
func FromChan[T any](ctx context.Context, ch <-chan T) func() (T, error) {
	return func() (v T, err error) {
		if err := ctx.Err(); err != nil {
			return v, err
		}
		select {
		case v, ok := <-ch:
			if !ok {
				return v, io.EOF
			}
			return v, nil
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}
