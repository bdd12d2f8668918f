package flowdebug

import (
	"context"
	"sync"
	"time"

	"example.com/flow"
)

const (
	seconds     = 180 // of history
	maxFailures = 50
	maxText     = 512 // bytes of an error
	maxKey      = 128 // bytes of a key
)

// record is what an Observer keeps: a ring of seconds and a ring of failures. It keeps no message and no error, only
// texts cut to size.
type record struct {
	start time.Time

	mu       sync.Mutex
	slots    [seconds + 1]slot // the one under way, and the whole ones before
	failures []failure         // a ring once it is full
	failed   uint64            // failures so far
}

// slot is one second.
type slot struct {
	second                 int64 // since start: a slot of another one is empty
	finished, failed       int
	waits, tries           int
	waitSum, waitMax       time.Duration
	handlerSum, handlerMax time.Duration
}

// failure is a message that failed or was refused, or a stream that ended for no message's sake.
type failure struct {
	at      time.Time
	stream  uint64
	seq     uint64
	key     string
	attempt int
	kind    string
	text    string
	settled bool
}

func newRecord() *record { return &record{start: time.Now()} }

// see is the Observer.
func (r *record) see(_ context.Context, e flow.Event) {
	now := time.Now()
	listed := isListed(&e)
	var f failure
	if listed {
		f = failureOf(now, &e) // not under the lock: it asks the caller's error for its text
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if listed {
		r.failLocked(f)
	}
	s := r.slotLocked(now)
	switch e.Kind {
	case flow.EventAttempt:
		if e.Attempt == 1 {
			s.waits++
			s.waitSum += e.Waited
			s.waitMax = max(s.waitMax, e.Waited)
		}
	case flow.EventRetry:
		s.handled(e.Took)
	case flow.EventSuccess:
		s.finished++
		s.handled(e.Took)
	case flow.EventFailure, flow.EventReject:
		s.finished++
		s.failed++
		// A message that was cut short says nothing about how long a handler takes.
		if k := e.Failure.Kind; e.Attempt > 0 && e.Kind == flow.EventFailure &&
			k != flow.FailureContextCancelled && k != flow.FailureShutdown {
			s.handled(e.Took)
		}
	case flow.EventDrop:
		s.finished++
		s.failed++
	}
}

// isListed says whether e is a failure to list: a message's, or a stream's if no message's has been told of instead.
func isListed(e *flow.Event) bool {
	switch e.Kind {
	case flow.EventFailure, flow.EventReject:
		return true
	case flow.EventStreamEnd:
		return e.Failure != nil && e.Failure.Seq == 0
	}
	return false
}

func (s *slot) handled(took time.Duration) {
	s.tries++
	s.handlerSum += took
	s.handlerMax = max(s.handlerMax, took)
}

func (r *record) slotLocked(now time.Time) *slot {
	second := int64(now.Sub(r.start) / time.Second)
	s := &r.slots[second%int64(len(r.slots))]
	if s.second != second {
		*s = slot{second: second}
	}
	return s
}

func failureOf(now time.Time, e *flow.Event) failure {
	f := failure{
		at: now, stream: e.Stream, seq: e.Seq, key: shownText(e.Key, maxKey), attempt: e.Attempt,
		kind: e.Failure.Kind.String(), settled: e.Settled,
	}
	if e.Failure.Err != nil {
		f.text = shownText(e.Failure.Err.Error(), maxText)
	}
	return f
}

func (r *record) failLocked(f failure) {
	if len(r.failures) < maxFailures {
		r.failures = append(r.failures, f)
	} else {
		r.failures[r.failed%maxFailures] = f
	}
	r.failed++
}

// recent are the failures, the latest first.
func (r *record) recent() ([]failure, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]failure, 0, len(r.failures))
	for i := range r.failures {
		list = append(list, r.failures[(r.failed-1-uint64(i))%maxFailures])
	}
	return list, r.failed
}

// history are the whole seconds before now, the oldest first.
func (r *record) history(now time.Time) []slot {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]slot, seconds)
	last := int64(now.Sub(r.start)/time.Second) - 1
	for i := range list {
		second := last - seconds + 1 + int64(i)
		if second < 0 {
			continue
		}
		if s := r.slots[second%int64(len(r.slots))]; s.second == second {
			list[i] = s
		}
	}
	return list
}
