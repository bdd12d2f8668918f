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
)

// record is what an Observer keeps: a ring of seconds and a ring of failures. It keeps no message and no error, only texts
// cut to size.
//
// Seconds are counted from start. They are negative on a clock that is behind, as in a synctest bubble when the page was made
// outside. Several clocks share the ring: each reader finds the seconds of its own that no other clock has overwritten.
type record struct {
	start time.Time

	mu       sync.Mutex
	slots    [seconds + 1]slot // the second under way, and the whole ones before it
	failures []failure         // a ring once it is full
	failed   uint64            // failures so far
	batches  bool              // the handler is one of batches
}

// slot is one second. The zero value is second 0, in which nothing happened.
type slot struct {
	second                 int64 // which it is: a slot that has another is empty
	finished, failed       int
	waits, tries           int
	waitSum, waitMax       time.Duration
	handlerSum, handlerMax time.Duration
	batched, batchMax      int // messages in the calls, with batches
}

// failure is a message that failed or was refused, or a stream that failed by itself.
type failure struct {
	at      time.Time
	stream  uint64
	seq     uint64 // 0: the stream's
	key     string
	attempt int
	kind    string
	text    string
	settled bool
}

func newRecord(start time.Time) *record { return &record{start: start} }

// observe is the Observer.
func (r *record) observe(_ context.Context, e flow.Event) {
	now := time.Now()
	listed := isListed(&e)
	var f failure
	if listed {
		f = failureOf(now, &e) // not under the lock: it calls Error of the caller's error
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if listed {
		r.failLocked(f)
	}
	s := r.slotLocked(r.secondOf(now))
	r.batches = r.batches || e.Batch > 0
	switch e.Kind {
	case flow.EventAttempt:
		if e.Attempt == 1 {
			s.waits++
			s.waitSum += e.Waited
			s.waitMax = max(s.waitMax, e.Waited)
		}
	case flow.EventRetry:
		s.handled(&e)
	case flow.EventDuplicate:
		s.finished++
	case flow.EventSuccess:
		s.finished++
		s.handled(&e)
	case flow.EventFailure, flow.EventReject:
		s.finished++
		s.failed++
		// A message that was cut short says nothing about how long a handler takes.
		if k := e.Failure.Kind; e.Attempt > 0 && e.Kind == flow.EventFailure &&
			k != flow.FailureContextCancelled && k != flow.FailureShutdown {
			s.handled(&e)
		}
	case flow.EventDrop:
		s.finished++
		s.failed++
	}
}

// isListed reports whether e is a failure to list: that of a message, or of a stream unless a message's has ended it.
func isListed(e *flow.Event) bool {
	switch e.Kind {
	case flow.EventFailure, flow.EventReject:
		return true
	case flow.EventStreamEnd:
		return e.Failure != nil && e.Failure.Seq == 0
	}
	return false
}

// handled counts an attempt. Those of a batch have one call, which the first of them tells.
func (s *slot) handled(e *flow.Event) {
	if e.Index > 0 {
		return
	}
	s.tries++
	s.handlerSum += e.Took
	s.handlerMax = max(s.handlerMax, e.Took)
	s.batched += e.Batch
	s.batchMax = max(s.batchMax, e.Batch)
}

// hasBatches reports whether the handler is one of batches, as far as is known.
func (r *record) hasBatches() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.batches
}

// secondOf returns the number of the second that t is in.
func (r *record) secondOf(t time.Time) int64 {
	since := t.Sub(r.start)
	second := int64(since / time.Second)
	if since%time.Second < 0 {
		second--
	}
	return second
}

// slotLocked returns the slot of a second, emptied if it was another's.
func (r *record) slotLocked(second int64) *slot {
	s := &r.slots[slotIndex(second)]
	if s.second != second {
		*s = slot{second: second}
	}
	return s
}

func slotIndex(second int64) int64 {
	const n = seconds + 1
	return (second%n + n) % n
}

func failureOf(now time.Time, e *flow.Event) failure {
	return failure{
		at: now, stream: e.Stream, seq: e.Seq, key: displayText(e.Key, maxKey), attempt: e.Attempt,
		kind: e.Failure.Kind.String(), text: errorText(e.Failure.Err), settled: e.Settled,
	}
}

func (r *record) failLocked(f failure) {
	if len(r.failures) < maxFailures {
		r.failures = append(r.failures, f)
	} else {
		r.failures[r.failed%maxFailures] = f
	}
	r.failed++
}

// recent returns the failures, the latest first, and how many there have been.
func (r *record) recent() ([]failure, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]failure, 0, len(r.failures))
	for i := range r.failures {
		list = append(list, r.failures[(r.failed-1-uint64(i))%maxFailures])
	}
	return list, r.failed
}

// history returns the whole seconds before now, the oldest first.
func (r *record) history(now time.Time) []slot {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]slot, seconds)
	first := r.secondOf(now) - seconds
	for i := range list {
		second := first + int64(i)
		if s := r.slots[slotIndex(second)]; s.second == second {
			list[i] = s
		}
	}
	return list
}
