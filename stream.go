package flow

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// stream is one Run: the state that its receiver, its carriers and its ends share.
//
// Who runs: the receiver goroutine (receive.go) reads, numbers and lines up; carriers (carry.go) run messages; whoever
// ends the stream sets that down here and leaves the clearing away to one more carrier. Run itself waits for done and
// then for the group of carriers. The receiver is not in the group: it may be blocked in recv for as long as the service
// method has not returned.
//
// What ends what: the input is closed once, by the receiver or, while it is in recv, by whoever takes it from it; the
// stream is done when the input is closed and every received message is finished; a failure, the end of the context and
// a shutdown only make that come soon.
type stream[T any] struct {
	r      *Receiver[T]
	id     uint64
	parent context.Context // Run's own
	ctx    context.Context // the handlers': ends with the stream's failure as its cause
	cancel context.CancelCauseFunc
	start  time.Time
	keyOf  OrderingKeyFunc[T]
	header func() // sends the response header once; nil outside of gRPC

	lanes *laneTable // its own, or with ScopeFlow the resolver's
	order *laneResolver
	own   OrderingResolver // a caller's own resolver, asked beside the lanes; nil: none
	cells [laneShards]cell[T]

	// waits is the context of those who ask the caller's own resolver: a shutdown ends it before ctx.
	waits    context.Context
	endWaits context.CancelFunc

	carriers errgroup.Group
	comeFn   func() error // carriers' bodies as values, so that starting one allocates no closure of ours
	startFn  func() error

	ended    atomic.Bool   // Run's own context has ended
	closed   atomic.Bool   // nothing more is received
	over     atomic.Bool   // what has not begun to run will not: written under mu, read without it too
	reading  atomic.Int32  // readBusy, readBlocked or readAbandoned
	received atomic.Uint64 // written by the receiver, under the lock of the message's shard
	lastUse  atomic.Int64  // time of the last receipt or finish since start; kept for IdleTimeout
	space    chan struct{} // wakes the receiver that waits for room
	done     chan struct{} // closed when the input is closed and all is finished

	mu       sync.Mutex
	ready    messageQueue[T] // those that have their turn and lack a worker
	coming   int             // workers on their way that hold a slot already
	starting bool            // a worker is on its way that has yet to get its slot
	asking   bool            // that worker waits for its slot
	slots    int             // held by its workers
	running  int             // messages that workers have
	finished uint64
	counts   Summary // of the finished: Succeeded, Failed, Rejected, Dropped, Retried, Unsettled
	waiting  waitFor // what the receiver waits for
	free     messageQueue[T]
	givenUp  map[string]uint64 // keys that were given up, from which Seq on
	failure  *Failure          // the first that ended the stream
	grace    *time.Timer       // of a context that ended while recv was blocked
	idle     *time.Timer       // of IdleTimeout
	eof      bool              // recv said io.EOF
	input    bool              // the input is closed
	stopping bool              // by a shutdown: the stream ends when what still runs has run
	draining bool              // that is all that was accepted
	isDone   bool
}

const (
	readBusy      = iota // the receiver is at work: it will see what has changed
	readBlocked          // it is in recv
	readAbandoned        // somebody closed the input while it was in recv: what recv returns is nobody's
)

// waitFor is what a receiver that doesn't read waits for.
type waitFor uint8

const (
	waitNothing waitFor = iota
	waitRoom            // fewer pending than MaxPending
	waitBytes           // fewer bytes than MaxPendingBytes, or nothing pending
)

// fail ends the stream with f unless it has failed before: the first failure counts.
func (s *stream[T]) fail(f *Failure) {
	s.mu.Lock()
	first := s.failure == nil && !s.isDone
	if first {
		s.failure = f
		s.overLocked()
		s.abandonLocked()
	}
	s.mu.Unlock()
	if first {
		s.cancel(f) // after the decision: whoever sees the context ended can see why
		s.wakeReceiver()
	}
}

// overLocked marks the point after which nothing that has not begun will run, and sends the sweep to clear it away.
// From here on a turn that comes is dropped by whoever sees it come, and nothing is queued, parked or received.
func (s *stream[T]) overLocked() {
	s.closed.Store(true)
	if s.over.Swap(true) {
		return
	}
	if s.endWaits != nil {
		s.endWaits()
	}
	s.carriers.Go(s.sweep)
}

// abandonLocked closes the input if the receiver is in recv. If it is at work it will close it itself.
func (s *stream[T]) abandonLocked() {
	if s.reading.CompareAndSwap(readBlocked, readAbandoned) {
		s.input = true
		s.checkDoneLocked()
	}
}

// checkDoneLocked closes done when all is finished. A stream that a shutdown has stopped does not wait for its client.
func (s *stream[T]) checkDoneLocked() {
	if s.isDone || s.finished != s.received.Load() {
		return
	}
	if s.stopping && !s.input {
		s.input = s.reading.CompareAndSwap(readBlocked, readAbandoned)
	}
	// The input closed, received can't change any more; it may have before, hence the second look.
	if s.input && s.finished == s.received.Load() {
		s.isDone = true
		close(s.done)
	}
}

func (s *stream[T]) wakeReceiver() {
	select {
	case s.space <- struct{}{}:
	default:
	}
}

// lives says whether OnFailure may still decide anything.
func (s *stream[T]) lives() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure == nil && s.ctx.Err() == nil
}

// cutKind is the kind of failure of a message that its stream's end cut short.
func (s *stream[T]) cutKind() FailureKind {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cutKindLocked()
}

func (s *stream[T]) cutKindLocked() FailureKind {
	if s.failure == nil && s.stopping && s.ctx.Err() == nil || s.failure != nil && s.failure.Kind == FailureShutdown {
		return FailureShutdown
	}
	return FailureContextCancelled
}

// contextEnded is called when Run's own context has ended. gRPC cancels a stream's context before the Recv of an
// oversized message returns, so while recv is blocked that end is not yet the reason: recv gets a moment to say.
// Nothing starts meanwhile, since attempts look at the context.
func (s *stream[T]) contextEnded() {
	s.ended.Store(true) // before the look at reading: the receiver looks here after it has changed that
	s.mu.Lock()
	if s.reading.Load() == readBlocked && !s.isDone && s.failure == nil {
		s.grace = time.AfterFunc(recvGrace, func() { s.fail(contextFailure(s.parent)) })
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	s.fail(contextFailure(s.parent))
}

// recvGrace is how long a blocked recv may take to say why the context ended. gRPC's returns at once.
const recvGrace = 50 * time.Millisecond

// stop implements member.
func (s *stream[T]) stop(drain bool) {
	s.mu.Lock()
	s.closed.Store(true)
	s.stopping, s.draining = true, drain
	if !drain && !s.isDone {
		s.overLocked()
	}
	s.checkDoneLocked()
	s.mu.Unlock()
	s.wakeReceiver()
}

// close implements member.
func (s *stream[T]) close() { s.fail(&Failure{Kind: FailureShutdown, Err: reasonShutdown}) }

// cut implements member.
func (s *stream[T]) cut() (n int, seq uint64, key string) {
	for i := range s.cells {
		sh := &s.lanes.shards[i]
		sh.mu.Lock()
		for m := s.cells[i].live; m != nil; m = m.nextLive {
			s.mu.Lock()
			counts := s.draining || m.state == stateRunning || m.state == stateParked
			s.mu.Unlock()
			if counts {
				if n++; seq == 0 || m.seq < seq {
					seq, key = m.seq, m.key
				}
			}
		}
		sh.mu.Unlock()
	}
	s.close()
	return n, seq, key
}


// summary is complete once the stream is done.
func (s *stream[T]) summary() Summary {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.counts
	sum.Received = s.received.Load()
	slices.Sort(sum.Unsettled)
	sum.Committed = sum.Received
	if len(sum.Unsettled) > 0 {
		sum.Committed = sum.Unsettled[0] - 1
	}
	return sum
}

// result is what Run returns. A stream that was not ended by a failure ended well only if its client said that it had
// sent all, and all of it is settled. Else its context ended while the last message failed by that, or a shutdown did it.
func (s *stream[T]) result() *Failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failure != nil:
		return s.failure
	case s.eof && len(s.counts.Unsettled) == 0:
		return nil
	case s.parent.Err() != nil:
		return contextFailure(s.parent)
	}
	return &Failure{Kind: FailureShutdown, Err: reasonShutdown}
}

// sweep clears away, as a carrier, what has not begun to run when the stream is over. It touches each message under the
// locks that guard its state, so that a message is either taken here or carried by the one who has it.
func (s *stream[T]) sweep() error {
	var c carrier[T]
	c.s = s
	s.mu.Lock()
	kind := s.cutKindLocked()
	s.r.gate.pressure.lack(-max(0, s.ready.n-s.coming))
	for m := s.ready.pop(); m != nil; m = s.ready.pop() {
		m.state = stateHeld
		m.cutShort(kind)
		c.rest.push(m)
	}
	s.mu.Unlock()
	for i := range s.cells {
		sh := &s.lanes.shards[i]
		sh.mu.Lock()
		for m := s.cells[i].live; m != nil; m = m.nextLive {
			if m.waitsLocked() {
				s.lanes.leaveLocked(sh, &m.turn) // not the head: nobody's turn comes by it
				m.cutShort(kind)
				c.rest.push(m)
				continue
			}
			s.mu.Lock()
			if m.state == stateParked {
				m.state = stateHeld
				m.timer.Stop()
				m.cutShort(kind)
				c.rest.push(m)
			}
			s.mu.Unlock()
		}
		sh.mu.Unlock()
	}
	c.m = c.rest.pop()
	return c.run()
}
