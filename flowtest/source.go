// Package flowtest helps to test what is built on package flow: a source that a test controls, a checker of the order in
// which a handler is called, and a conformance suite for a caller's own OrderingResolver. All of it works in testing/synctest
// bubbles but the suite, which runs subtests and real time.
package flowtest

import (
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
)

// Source is the receiving side of a stream in a test's control: Run is given its Recv. It reports a test failure when Recv
// is used in a way that gRPC forbids: again after its first error, or from two goroutines at once. All methods are safe for
// concurrent use, and none but Recv blocks.
type Source[T any] struct {
	tb testing.TB

	mu       sync.Mutex
	changed  *sync.Cond
	values   []T
	end      error // what Recv returns after the values; nil while the stream is open
	stalled  bool
	reading  bool
	over     bool // Recv has returned an error
	received int
}

// NewSource returns a Source whose Recv returns values and then blocks until the test says how to go on. When the test ends,
// a Recv that is still blocked returns an error. In a bubble, tb must be the bubble's.
func NewSource[T any](tb testing.TB, values ...T) *Source[T] {
	s := &Source[T]{tb: tb, values: slices.Clone(values)} // Send appends to them
	s.changed = sync.NewCond(&s.mu)
	tb.Cleanup(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.values, s.stalled = nil, false
		s.finish(io.ErrClosedPipe)
	})
	return s
}

// Recv returns the next value, or the end that the test has set, and blocks until there is either.
func (s *Source[T]) Recv() (value T, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
		s.tb.Error("flowtest: Recv was called again after its error: the first error is final")
	case s.reading:
		s.tb.Error("flowtest: Recv was called by two goroutines at once: a stream has one receiver")
	}
	s.reading = true
	defer func() { s.reading = false }()
	for s.stalled || len(s.values) == 0 && s.end == nil {
		s.changed.Wait()
	}
	if len(s.values) == 0 {
		s.over = true
		return value, s.end
	}
	value, s.values = s.values[0], s.values[1:]
	s.received++
	return value, nil
}

// Send adds values to what Recv will return. It reports a test failure after End or Fail.
func (s *Source[T]) Send(values ...T) {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end != nil {
		s.tb.Error("flowtest: Send after End or Fail")
		return
	}
	s.values = append(s.values, values...)
	s.changed.Broadcast()
}

// End makes Recv return io.EOF once all that was sent has been received.
func (s *Source[T]) End() { s.Fail(io.EOF) }

// errFailNil is what Recv returns after Fail(nil): a stream that never ended would hang the test that made the mistake.
var errFailNil = errors.New("flowtest: Fail: err must not be nil: a stream ends with an error, or by End")

// Fail makes Recv return err once all that was sent has been received. Only the first End or Fail counts. It reports a test
// failure if err is nil.
func (s *Source[T]) Fail(err error) {
	s.tb.Helper()
	if err == nil {
		s.tb.Error(errFailNil)
		err = errFailNil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish(err)
}

func (s *Source[T]) finish(err error) {
	if s.end == nil {
		s.end = err
	}
	s.changed.Broadcast()
}

// Stall makes Recv block, whatever there is to receive, until Resume.
func (s *Source[T]) Stall() { s.stall(true) }

// Resume ends a Stall.
func (s *Source[T]) Resume() { s.stall(false) }

func (s *Source[T]) stall(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled = on
	s.changed.Broadcast()
}

// Received returns how many values Recv has returned.
func (s *Source[T]) Received() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received
}
