package flow

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc/status"
)

// intake is a stream's receiver goroutine: it reads the source, numbers the messages, names their keys and lines them
// up. What is refused on receipt it carries to its end itself, so that refusals slow the client down.
//
// The messages don't cross a channel to get to a worker: a hop for each costs as much as all else that is done here.
// What crosses goroutines is woken by channels (space, done) and lies in lanes and queues meanwhile.
type intake[T any] struct {
	s      *stream[T]
	recv   func() (T, error)
	m      *message[T]     // received and not yet lined up
	free   messageQueue[T] // messages to use again, taken from the stream in batches
	credit int             // messages that may be received before the window is looked at again
}

// run receives until the source ends, or the stream does. It then closes the input, unless somebody has taken that from
// it while it was in recv: then all that recv returned is nobody's, and nothing of the stream may be touched.
func (in *intake[T]) run() {
	s := in.s
	normal := false
	defer func() {
		if s.reading.Load() == readAbandoned {
			return
		}
		if !normal {
			in.exited()
		}
		s.mu.Lock()
		s.input = true
		s.checkDoneLocked()
		s.mu.Unlock()
	}()
	for in.awaitRoom() {
		s.reading.Store(readBlocked)
		if s.closed.Load() { // closed either sees readBlocked or is seen here
			s.reading.CompareAndSwap(readBlocked, readBusy)
			break
		}
		v, err := in.read()
		if !s.reading.CompareAndSwap(readBlocked, readBusy) {
			break
		}
		if err != nil {
			in.ended(err)
			break
		}
		if s.ended.Load() {
			s.fail(contextFailure(s.parent))
			break
		}
		if s.closed.Load() || !in.take(v) {
			break
		}
	}
	normal = true
}

// read calls recv.
func (in *intake[T]) read() (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = newPanicError(p)
		}
	}()
	return in.recv()
}

// ended is told recv's first error, which is its last word.
func (in *intake[T]) ended(err error) {
	s := in.s
	f := recvFailure(err)
	if s.parent.Err() != nil {
		// Only a status that says something else than the context's end is a better reason than that.
		if _, stated := status.FromError(err); !stated || f.Kind == FailureContextCancelled {
			f = contextFailure(s.parent)
		}
	} else if err == io.EOF {
		s.mu.Lock()
		s.eof = true
		s.mu.Unlock()
		return
	}
	s.fail(f)
}

// exited is called when user code has called runtime.Goexit on this goroutine.
func (in *intake[T]) exited() {
	s, m := in.s, in.m
	if m == nil { // in recv, or in the course of a refusal, which goes on elsewhere
		s.fail(&Failure{Kind: FailureInternal, Err: errGoexit})
		return
	}
	// in the key function
	m.key, m.unkeyed = "", true
	if ok, _, _ := in.lineUp(m, true); ok {
		m.fail(FailureInternal, errGoexit)
		s.mu.Lock()
		s.carry(m)
		s.mu.Unlock()
	}
}

// take takes v on. false: the stream has ended meanwhile and v was not received.
func (in *intake[T]) take(v T) bool {
	s := in.s
	m := in.message()
	m.value = v
	m.seq = s.received.Load() + 1
	if s.r.observer != nil || s.r.idle > 0 {
		m.received = s.clock()
		s.lastUse.Store(int64(m.received))
	}
	in.m = m
	panicked := in.measure(m)
	in.m = nil
	if panicked != nil {
		m.key, m.unkeyed = "", true
	}
	refused := panicked == nil && s.r.gate.pressure.rejects() && !s.isGivenUp(m)
	ok, first, why := in.lineUp(m, refused || panicked != nil)
	if !ok {
		return false
	}
	switch {
	case panicked != nil:
		m.fail(FailureInternal, panicked)
	case refused:
		m.refuse(FailureBackpressure, reasonNoCapacity)
	case why != "":
		m.refuse(FailureOrdering, why)
	case !first:
		return true
	default:
		why = in.admit(m)
		if why == "" {
			return true
		}
		m.refuse(FailureBackpressure, why)
	}
	c := carrier[T]{s: s, m: m}
	_ = c.run()
	return true
}

// measure names m's key and counts its bytes. The error is what the caller's functions panicked with.
func (in *intake[T]) measure(m *message[T]) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = newPanicError(p)
		}
	}()
	s := in.s
	if s.r.bytes != nil {
		m.size = int64(s.r.sizeOf(m.value))
	}
	if s.keyOf != nil {
		m.key = s.keyOf(m.value)
	}
	return nil
}

// lineUp receives m: here it gets its number, becomes live and takes its place, in one step under the shard's lock.
// That is what decides between received and not: a sweep marks the stream closed before it comes to this lock, so it
// finds m or m finds the mark. aside: it has no place, for it will be refused.
func (in *intake[T]) lineUp(m *message[T], aside bool) (ok, first bool, why reason) {
	s := in.s
	name, hash, ordered := "", m.seq<<60, false // without order, messages just spread over the shards
	if s.order != nil && !aside {
		if n, h, o := s.order.place(m.key); o {
			name, hash, ordered = n, h, true
		}
	}
	m.shard = shardIndex(hash)
	sh := &s.lanes.shards[m.shard]
	sh.mu.Lock()
	if s.closed.Load() {
		sh.mu.Unlock()
		return false, false, ""
	}
	s.received.Store(m.seq)
	s.cells[m.shard].addLocked(m)
	if ordered {
		first, why = s.lanes.joinLocked(sh, name, hash, &m.turn)
	} else {
		first = true
	}
	sh.mu.Unlock()
	if m.size > 0 {
		s.r.bytes.add(m.size)
	}
	return true, first, why
}

// admit queues m, whose turn came with its receipt, or says why it is refused.
func (in *intake[T]) admit(m *message[T]) (why reason) {
	s := in.s
	p := s.r.gate.pressure
	s.mu.Lock()
	defer s.mu.Unlock()
	if !p.refuses() || s.own != nil || s.over.Load() || s.isGivenUpLocked(m) {
		if s.turnLocked(m) {
			s.carry(m)
		}
		s.startLocked()
		return ""
	}
	switch {
	case p.try():
		s.slots++
		s.coming++
		s.carriers.Go(s.comeFn)
	case p.opts.Policy == BackpressureHardReject:
		return reasonNoCapacity
	case !p.tryLack():
		return reasonQueueFull
	}
	m.state = stateQueued
	s.ready.push(m)
	s.startLocked()
	return ""
}

func (s *stream[T]) isGivenUp(m *message[T]) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isGivenUpLocked(m)
}

// message returns one to use: of those that have finished, or a new one.
func (in *intake[T]) message() *message[T] {
	s := in.s
	if in.free.n == 0 {
		s.mu.Lock()
		for range min(s.free.n, freeBatch) {
			in.free.push(s.free.pop())
		}
		s.mu.Unlock()
	}
	if m := in.free.pop(); m != nil {
		return m
	}
	m := &message[T]{s: s}
	m.owner = m
	return m
}

// checkIdle ends the stream if it has been idle for IdleTimeout, or looks again when it may have been.
func (s *stream[T]) checkIdle() {
	s.mu.Lock()
	if s.isDone {
		s.mu.Unlock()
		return
	}
	left := s.r.idle - (s.clock() - time.Duration(s.lastUse.Load()))
	if left <= 0 && s.reading.Load() == readBlocked && s.finished == s.received.Load() {
		s.mu.Unlock()
		s.fail(&Failure{Kind: FailureContextCancelled, Err: errIdle})
		return
	}
	if left <= 0 { // something is pending: its finish is still to come, and the timeout runs from then
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
