package flow

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// stream is one Run: the state that its receiver, its carriers and its ends share.
//
// Who runs: the receiver goroutine (receive.go) reads, numbers and lines up; carriers (carry.go) run messages; whoever
// ends the stream sets that down here and leaves the clearing away to one more carrier. Run itself waits for done, sets down
// the end of its context if that comes first, and then waits for the group of carriers. The receiver is not in the group: it
// may be blocked in recv for as long as the service method has not returned.
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
	header sync.Once // sends the response header

	order  *laneResolver // nil: no order
	shared *sharedLanes  // with ScopeFlow: the resolver's
	own    *ownOrder     // nil: none

	maxWorkers int  // how many can be of use
	inCall     bool // it is a gRPC stream
	serial     bool // one message runs at a time, whatever the capacity
	rounds     bool // who waits in the inbox takes turns with who is ready
	mayLease   bool // chunks may be leased

	carriers errgroup.Group
	comeFn   func() error // carriers' bodies as values, so that starting one allocates no closure of ours
	startFn  func() error

	closed   atomic.Bool   // nothing more is received: a quick look at what the inbox decides
	over     atomic.Bool   // what has not begun to run will not: written under mu, read without it too
	attended atomic.Bool   // a worker will look into the inbox without being started: written under mu
	busy     atomic.Bool   // the receiver is in the caller's functions; kept for IdleTimeout
	lastUse  atomic.Int64  // time of the last receipt or finish since start; kept for IdleTimeout
	space    chan struct{} // wakes the receiver that waits for room
	done     chan struct{} // closed when the input is closed and all is finished

	inbox inbox[T]

	// mu comes after Receiver.mu, and before the inbox's and a lane shard's.
	mu       sync.Mutex
	lanes    laneTable   // unless they are shared
	live     *message[T] // all that are accepted and not finished, the latest first
	leases   int32       // partitions of the inbox whose first chunk is on lease: see lease.go
	abreast  int32       // how many there may be
	pace     pace
	ready    messageQueue[T] // those that have their turn and lack a worker
	round    int             // messages to take before the inbox is sorted again, if rounds
	coming   int             // workers on their way that hold a slot already
	slots    int             // held by its workers
	starting bool            // a worker is on its way that has yet to get its slot
	atOnce   bool            // that one does not look out first: set as it is started, its own to read
	started  paceSight       // what there was to see as that one was started, its own to read as well
	lingers  bool            // a worker with nothing to do waits a moment for something
	asking   bool            // that worker waits for its slot
	waiting  waitFor         // what the receiver waits for
	eof      bool            // recv said io.EOF
	input    bool            // the input is closed
	stopping bool            // by a shutdown: the stream ends when what still runs has run
	draining bool            // that is all that was accepted
	isDone   bool
	finished uint64
	counts   Summary // of the finished: Succeeded, Failed, Rejected, Dropped, Retried, Unsettled
	seen     uint64  // received when it began to wait
	free     messageQueue[T]
	givenUp  map[string]uint64 // keys that were given up, from which Seq on
	failure  *Failure          // the first that ended the stream
	grace    *time.Timer       // of a context that ended while recv was blocked
	idle     *time.Timer       // of IdleTimeout
}

// waitFor is what a receiver that doesn't read waits for.
type waitFor uint8

const (
	waitNothing waitFor = iota
	waitRoom            // fewer pending than MaxPending
	waitBytes           // fewer bytes than MaxPendingBytes, or nothing pending
)

// sendHeader sends the response header before the first message executes. That fails if it is sent already, or if nobody is
// there to get it.
func (s *stream[T]) sendHeader() {
	if s.inCall && s.ctx.Err() == nil {
		s.header.Do(func() {
			crash := recovered(func() error { _ = grpc.SendHeader(s.parent, nil); return nil })
			if crash != nil { // it is the stream's and not that of the message that is about to run
				s.fail(newFailure(FailureInternal, crash))
			}
		})
	}
}

// fail ends the stream with f unless it has failed before: the first failure counts.
func (s *stream[T]) fail(f *Failure) {
	s.mu.Lock()
	first := s.failure == nil && !s.isDone
	if first {
		s.failure = f
		s.overLocked()
		s.checkDoneLocked()
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
	s.inbox.close()
	if s.over.Load() {
		return
	}
	s.callInLocked()
	s.over.Store(true)
	if s.own != nil {
		s.own.end()
	}
	s.carriers.Go(s.sweep)
}

// checkDoneLocked closes done when all is finished that was received, and nothing more will be. The receiver may be
// blocked in recv even so: a stream that is over, or stopped by a shutdown, doesn't wait for its client. What recv
// returns then finds the inbox closed.
func (s *stream[T]) checkDoneLocked() {
	if (s.input || s.stopping || s.over.Load()) && !s.isDone && s.pendingLocked() == 0 {
		s.input = true
		s.isDone = true
		close(s.done)
	}
}

// pendingLocked is how many messages are received and not finished.
func (s *stream[T]) pendingLocked() uint64 { return s.inbox.total() - s.finishedLocked() }

// finishedLocked is how many messages are finished.
func (s *stream[T]) finishedLocked() uint64 { return s.finished + s.progressLocked() }

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
	s.mu.Lock()
	if !s.input && s.waiting == waitNothing && !s.isDone && s.failure == nil {
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
	s.inbox.close()
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
	count := func(m *arrival[T]) {
		if n++; seq == 0 || m.seq < seq {
			seq, key = m.seq, m.key
		}
	}
	s.mu.Lock()
	s.callInLocked()
	for m := s.live; m != nil; m = m.nextLive {
		if s.draining || m.state == stateRunning || m.state == stateParked {
			count(&m.arrival)
		}
	}
	if s.draining {
		s.inbox.visitLocked(count)
	}
	s.mu.Unlock()
	s.close()
	return n, seq, key
}

// summary is complete once the stream is done.
func (s *stream[T]) summary() Summary {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.counts
	sum.Received = s.inbox.total()
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

// sweep clears away, as a carrier, what has not begun to run when the stream is over. It does so under the lock that
// guards whose a message is, so that each is either taken here or carried by the one who has it.
func (s *stream[T]) sweep() error {
	c := carrier[T]{s: s}
	s.mu.Lock()
	kind := s.cutKindLocked()
	s.r.gate.pressure.lack(-max(0, s.ready.n-s.coming))
	for m := s.ready.pop(); m != nil; m = s.ready.pop() {
		m.state = stateHeld
		m.cutShort(kind)
		c.rest.push(m)
	}
	for m := s.live; m != nil; m = m.nextLive {
		switch {
		case s.giveUpPlaceLocked(m):
		case m.state == stateParked:
			m.state = stateHeld
			m.parking.timer.Stop()
			m.parking.m, m.parking = nil, nil
		default:
			continue
		}
		m.cutShort(kind)
		c.rest.push(m)
	}
	for m := s.arriveLocked(); m != nil; m = s.arriveLocked() {
		m.cutShort(kind)
		c.rest.push(m)
	}
	s.mu.Unlock()
	c.m = c.rest.pop()
	return c.run()
}
