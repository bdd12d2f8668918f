package testkit

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

// ManualBatchHandler is a handler of batches that keeps every call until the test ends it, also when its context has ended. A
// call is named by its messages' values: "a1 a2 b1". It is for bubbles of testing/synctest: its methods wait until everything in
// the bubble has come to rest. The zero value is ready to use.
type ManualBatchHandler struct {
	mu      sync.Mutex
	calls   []*BatchCall // under way
	history []string     // all of them
}

// BatchCall is a call of a ManualBatchHandler.
type BatchCall struct {
	name  string
	Batch []flow.Message[string]
	Began time.Time
	cause error // why its context has ended, if it has
	how   chan func(errs []error) error
}

// Handle is the [flow.BatchHandler].
func (s *ManualBatchHandler) Handle(ctx context.Context, batch []flow.Message[string], errs []error) error {
	c := &BatchCall{name: ValuesOf(batch), Batch: slices.Clone(batch), Began: time.Now(), how: make(chan func([]error) error)}
	s.mu.Lock()
	s.calls = append(s.calls, c)
	s.history = append(s.history, c.name)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.calls = slices.DeleteFunc(s.calls, func(other *BatchCall) bool { return other == c })
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

// Calls returns the calls that are under way, joined by bars.
func (s *ManualBatchHandler) Calls() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, c := range s.calls {
		names = append(names, c.name)
	}
	return strings.Join(names, " | ")
}

// Past returns all calls so far, joined by bars.
func (s *ManualBatchHandler) Past() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.history, " | ")
}

// Call returns the call of that name, which must be under way.
func (s *ManualBatchHandler) Call(t testing.TB, name string) *BatchCall {
	t.Helper()
	now := s.Calls()
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

// EndWith has the call of that name return what how returns, or panic or exit as it does.
func (s *ManualBatchHandler) EndWith(t testing.TB, name string, how func(errs []error) error) {
	t.Helper()
	s.Call(t, name).how <- how
	synctest.Wait()
}

// Succeed has the calls of those names succeed, one after the other.
func (s *ManualBatchHandler) Succeed(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		s.EndWith(t, name, func([]error) error { return nil })
	}
}

// Fail has the call of that name fail as a whole.
func (s *ManualBatchHandler) Fail(t testing.TB, name string, err error) {
	t.Helper()
	s.EndWith(t, name, func([]error) error { return err })
}

// Return has the call of that name return nil, and outcomes as the errors of its messages.
func (s *ManualBatchHandler) Return(t testing.TB, name string, outcomes ...error) {
	t.Helper()
	s.EndWith(t, name, func(errs []error) error { copy(errs, outcomes); return nil })
}

// CauseOf returns why the context of the call has ended, or nil.
func (s *ManualBatchHandler) CauseOf(t testing.TB, name string) error {
	t.Helper()
	c := s.Call(t, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.cause
}

// WantCalls fails the test unless want is what is under way.
func (s *ManualBatchHandler) WantCalls(t testing.TB, want string) {
	t.Helper()
	if got := s.Calls(); got != want {
		t.Fatalf("calls under way: %q, want %q", got, want)
	}
}

// WantPast fails the test unless want are all calls so far.
func (s *ManualBatchHandler) WantPast(t testing.TB, want ...string) {
	t.Helper()
	if got := s.Past(); got != strings.Join(want, " | ") {
		t.Fatalf("calls so far:\n%q, want\n%q", got, strings.Join(want, " | "))
	}
}

// WantNoneUntil fails the test unless no call begins before d has passed, and want is under way then.
func (s *ManualBatchHandler) WantNoneUntil(t testing.TB, d time.Duration, want string) {
	t.Helper()
	s.WantCalls(t, "")
	time.Sleep(d - 1)
	s.WantCalls(t, "")
	time.Sleep(time.Nanosecond)
	s.WantCalls(t, want)
}

// NewBatch is [flow.NewBatch] with KeyOf, for options that are valid but for a missing Capacity, which is then 1.
func NewBatch(t testing.TB, h flow.BatchHandler[string], o flow.Options) *flow.Flow[string] {
	t.Helper()
	o.Backpressure.Capacity = max(1, o.Backpressure.Capacity)
	f, err := flow.NewBatch(h, KeyOf, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Occupy has the one slot of f taken by a call of "busy", so that what the test then sends waits until release is called.
func Occupy(t testing.TB, f *flow.Flow[string], s *ManualBatchHandler) (release func()) {
	t.Helper()
	c := Start(t, f, "busy")
	if f.Stats().Calls == 0 { // it lingers
		c.End()
	}
	s.WantCalls(t, "busy")
	return func() {
		t.Helper()
		c.End()
		s.Succeed(t, "busy")
		if _, err := c.Result(t); err != nil {
			t.Fatal(err)
		}
	}
}

// ValuesOf returns the values of batch, joined by spaces.
func ValuesOf(batch []flow.Message[string]) string {
	var values []string
	for _, m := range batch {
		values = append(values, m.Value)
	}
	return strings.Join(values, " ")
}

// SucceedAll is a handler of batches that succeeds at once.
func SucceedAll(context.Context, []flow.Message[string], []error) error { return nil }
