package flow

import (
	"sync"
	"sync/atomic"
	"time"
)

// message is a Message on its way through its stream. It has one owner at a time, who alone may touch what is not said
// to be guarded: its lane or the ready queue, then the carrier that runs it. Messages are used again: a million of them
// cost as much memory as are pending at once.
type message[T any] struct {
	turn // its place in a lane; guarded by stream.mu, and in shared lanes by the shard's mu

	s                  *stream[T]
	prevLive, nextLive *message[T] // the stream's live list; guarded by stream.mu
	link               *message[T] // the next in the one queue it is in: ready, to be carried, or free
	place              lane        // the memory of its first spare lane

	journey[T]
}

// journey is what of a message is cleared when it has finished.
type journey[T any] struct {
	arrival[T]
	weight
	hash     uint64        // of its lane's name; kept when it has one
	waited   time.Duration // until the first attempt; this and the next are kept for the Observer
	took     time.Duration // the last attempt
	attempts int

	step      step
	outcome   outcome
	settled   bool // OnFailure skipped it
	told      bool // the Observer was told its outcome already
	unkeyed   bool // its key function panicked
	pressured bool
	state     state // guarded by stream.mu

	// For a Snapshot, which looks at a message while a worker has it.
	tried int          // attempts before the one it is queued for or in; guarded by stream.mu
	began atomic.Int64 // when the attempt began, since the stream's start, plus 1; 0: not known. Kept for the Observer

	fault   *Failure      // what failed; kept from the attempt to the telling
	delay   time.Duration // before the next attempt
	release ReleaseFunc   // of a caller's own resolver
	parking *parking[T]   // of stateParked; guarded by stream.mu
}

// state says who has a message. Its changes, under stream.mu, decide what becomes of it when its stream ends: the sweep
// takes what is queued or parked; what a carrier has, it carries to its end.
type state uint8

const (
	stateHeld    state = iota // by the receiver, a lane or a carrier without a slot
	stateQueued               // in the ready queue: it has its turn and lacks a worker
	stateRunning              // by a worker
	stateParked               // waits for its next try
)

// step is what happens to a carried message next. A panic or a Goexit in a step moves it on as stream.crashed says.
type step uint8

const (
	stepAttempt step = iota // run the handler
	stepRetry               // tell of the coming retry
	stepPark                // wait for the next try: the carrier lets go of it
	stepSuccess             // tell of the success
	stepFailed              // ask OnFailure
	stepFailure             // tell of the failure or the refusal, and end the stream if it must end
	stepDrop                // tell of the drop
	stepRelease             // give back the turn of a caller's own resolver
	stepFinish              // it is done: the carrier counts it and lets the next of its lane go
)

// outcome is what became of a message.
type outcome uint8

const (
	succeeded outcome = iota
	failed
	rejected
	dropped
)

// failure makes the Failure of m.
func (m *message[T]) failure(kind FailureKind, err error) *Failure {
	f := newFailure(kind, err)
	f.Seq, f.Key, f.Attempts, f.Value = m.seq, m.key, m.attempts, m.value
	return f
}

func (m *message[T]) fail(kind FailureKind, err error) { m.failWith(m.failure(kind, err)) }

func (m *message[T]) failWith(f *Failure) { m.fault, m.outcome, m.step = f, failed, stepFailed }

// refuse makes m one that will not run.
func (m *message[T]) refuse(kind FailureKind, err error) {
	m.fault, m.outcome, m.step = m.failure(kind, err), rejected, stepFailed
}

// cutShort makes m one whose stream ended before it was done: dropped if it never ran, else failed, with the error of
// its last try as the cause. Neither comes to OnFailure, and neither is what ends the stream.
func (m *message[T]) cutShort(kind FailureKind) {
	if m.attempts == 0 {
		m.outcome, m.step = dropped, stepDrop
		return
	}
	var last error
	if m.fault != nil {
		last = m.fault.Err
	}
	m.fault, m.outcome, m.step = m.failure(kind, last), failed, stepFailure
}

// messageQueue is a FIFO of messages through their links.
type messageQueue[T any] struct {
	head, tail *message[T]
	n          int
}

func (q *messageQueue[T]) push(m *message[T]) {
	m.link = nil
	if q.head == nil {
		q.head = m
	} else {
		q.tail.link = m
	}
	q.tail = m
	q.n++
}

func (q *messageQueue[T]) pushFront(m *message[T]) {
	m.link = q.head
	q.head = m
	if m.link == nil {
		q.tail = m
	}
	q.n++
}

func (q *messageQueue[T]) pop() *message[T] {
	m := q.head
	if m != nil {
		q.head, m.link = m.link, nil
		q.n--
	}
	return m
}

// acceptLocked makes a live message of what was received.
func (s *stream[T]) acceptLocked(a *arrival[T], w weight) *message[T] {
	m := s.free.pop()
	if m == nil {
		s.free.refill(&s.r.messages)
		if m = s.free.pop(); m == nil {
			m = new(message[T])
			m.owner, m.spare = m, &m.place
		}
	}
	m.s = s
	m.arrival, m.weight = *a, w
	if m.nextLive = s.live; s.live != nil {
		s.live.prevLive = m
	}
	s.live = m
	return m
}

// retireLocked takes back a message that is finished, for use by a later one.
func (s *stream[T]) retireLocked(m *message[T]) {
	if m.prevLive != nil {
		m.prevLive.nextLive = m.nextLive
	} else {
		s.live = m.nextLive
	}
	if m.nextLive != nil {
		m.nextLive.prevLive = m.prevLive
	}
	m.prevLive, m.nextLive = nil, nil
	m.journey = journey[T]{}
	s.free.pushFront(m) // the one that is still in the cache
}

// refill takes over what another stream has given up. The pool holds queues by their heads.
func (q *messageQueue[T]) refill(pool *sync.Pool) {
	m, _ := pool.Get().(*message[T])
	for m != nil {
		next := m.link
		q.push(m)
		m = next
	}
}

// giveUp leaves all that is in q to other streams.
func (q *messageQueue[T]) giveUp(pool *sync.Pool) {
	for m := q.head; m != nil; m = m.link {
		m.s = nil
	}
	pool.Put(q.head)
	*q = messageQueue[T]{}
}
