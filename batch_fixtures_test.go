package flow_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

// batchStage is a handler of batches that keeps every call until the test ends it, or its context ends. A call is called by
// its messages' values: "a1 a2 b1".
type batchStage struct {
	mu      sync.Mutex
	calls   []*stagedCall // under way
	history []string      // all of them
}

type stagedCall struct {
	name  string
	batch []flow.Message[string]
	began time.Time
	cause error // why its context has ended, if it has
	how   chan func(errs []error) error
}

func (s *batchStage) handle(ctx context.Context, batch []flow.Message[string], errs []error) error {
	c := &stagedCall{name: namesOf(batch), batch: slices.Clone(batch), began: time.Now(), how: make(chan func([]error) error)}
	s.mu.Lock()
	s.calls = append(s.calls, c)
	s.history = append(s.history, c.name)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.calls = slices.DeleteFunc(s.calls, func(other *stagedCall) bool { return other == c })
	}()
	select {
	case how := <-c.how:
		return how(errs)
	case <-ctx.Done():
		s.mu.Lock()
		c.cause = context.Cause(ctx)
		s.mu.Unlock()
	}
	return (<-c.how)(errs)
}

// namesOf returns the values of batch, joined by spaces.
func namesOf(batch []flow.Message[string]) string {
	var values []string
	for _, m := range batch {
		values = append(values, m.Value)
	}
	return strings.Join(values, " ")
}

// now returns the calls that are under way once everything has come to rest, joined by bars.
func (s *batchStage) now() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, c := range s.calls {
		names = append(names, c.name)
	}
	return strings.Join(names, " | ")
}

// past returns all calls so far, joined by bars.
func (s *batchStage) past() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.history, " | ")
}

// call returns the call of that name, which must be under way.
func (s *batchStage) call(t testing.TB, name string) *stagedCall {
	t.Helper()
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		if c.name == name {
			return c
		}
	}
	t.Fatalf("call %q is not under way; under way: %q", name, now)
	return nil
}

// end has the call of that name do what how does, and waits until all has come to rest.
func (s *batchStage) end(t testing.TB, name string, how func(errs []error) error) {
	t.Helper()
	s.call(t, name).how <- how
	synctest.Wait()
}

func (s *batchStage) succeed(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		s.end(t, name, func([]error) error { return nil })
	}
}

// fail has the call fail as a whole.
func (s *batchStage) fail(t testing.TB, name string, err error) {
	t.Helper()
	s.end(t, name, func([]error) error { return err })
}

// give has the call return nil and these errors.
func (s *batchStage) give(t testing.TB, name string, outcomes ...error) {
	t.Helper()
	s.end(t, name, func(errs []error) error { copy(errs, outcomes); return nil })
}

// causeOf returns why the context of the call has ended, or nil.
func (s *batchStage) causeOf(t testing.TB, name string) error {
	t.Helper()
	c := s.call(t, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.cause
}

// wantCalls compares what is under way with want.
func (s *batchStage) wantCalls(t testing.TB, want string) {
	t.Helper()
	if got := s.now(); got != want {
		t.Fatalf("calls under way: %q, want %q", got, want)
	}
}

// wantPast compares all calls so far with want.
func (s *batchStage) wantPast(t testing.TB, want ...string) {
	t.Helper()
	if got := s.past(); got != strings.Join(want, " | ") {
		t.Fatalf("calls so far:\n%q, want\n%q", got, strings.Join(want, " | "))
	}
}

// mustNewBatch is NewBatch for options that are good. Without a Capacity that is 1.
func mustNewBatch(t testing.TB, h flow.BatchHandler[string], o flow.Options) *flow.Flow[string] {
	t.Helper()
	o.Backpressure.Capacity = max(1, o.Backpressure.Capacity)
	f, err := flow.NewBatch(h, keyOf, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// occupied has the one slot of f taken by a call of "busy", so that what the test then sends stands in line when release is
// called.
func occupied(t testing.TB, f *flow.Flow[string], s *batchStage) (release func()) {
	t.Helper()
	c := start(t, f, "busy")
	if f.Stats().Calls == 0 { // it lingers
		c.End()
	}
	s.wantCalls(t, "busy")
	return func() {
		t.Helper()
		c.End()
		s.succeed(t, "busy")
		if _, err := c.result(t); err != nil {
			t.Fatal(err)
		}
	}
}

// eventLog is an Observer that keeps what it is told.
type eventLog struct {
	mu     sync.Mutex
	events []flow.Event
}

func (l *eventLog) observe(_ context.Context, e flow.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// of returns the events of a kind so far.
func (l *eventLog) of(kind flow.EventKind) (events []flow.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.Kind == kind {
			events = append(events, e)
		}
	}
	return events
}

// wantSummary compares what the stream has come to with want, of which Received and Committed need not be set.
func (c *call) wantSummary(t testing.TB, want flow.Summary) {
	t.Helper()
	got, _ := c.result(t)
	conserved(t, got)
	want.Received = want.Succeeded + want.Failed + want.Rejected + want.Dropped
	want.Committed, want.Unsettled = got.Committed, got.Unsettled
	if differ(got, want) {
		t.Errorf("Summary is %+v, want %+v", got, want)
	}
}
