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

// ManualHandler is a handler that keeps every message until the test ends its call, or its context ends. It is for bubbles of
// testing/synctest: its methods wait until everything in the bubble has come to rest.
type ManualHandler struct {
	mu      sync.Mutex
	started []flow.Message[string]
	running map[string]chan func() error
}

// NewManualHandler returns a handler that runs nothing yet.
func NewManualHandler() *ManualHandler {
	return &ManualHandler{running: map[string]chan func() error{}}
}

// Handle is the [flow.Handler].
func (s *ManualHandler) Handle(ctx context.Context, m flow.Message[string]) error {
	end := make(chan func() error)
	s.mu.Lock()
	s.started = append(s.started, m)
	s.running[m.Value] = end
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.running, m.Value)
		s.mu.Unlock()
	}()
	select {
	case how := <-end:
		return how()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Running returns the values that are being handled, sorted and joined by spaces.
func (s *ManualHandler) Running() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	var values []string
	for v := range s.running {
		values = append(values, v)
	}
	slices.Sort(values)
	return strings.Join(values, " ")
}

// History returns the values in the order in which their calls began, joined by spaces.
func (s *ManualHandler) History() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	var values []string
	for _, m := range s.started {
		values = append(values, m.Value)
	}
	return strings.Join(values, " ")
}

// Attempts returns the messages that the handler was called with, in order.
func (s *ManualHandler) Attempts() []flow.Message[string] {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.started)
}

// EndWith has the call with value return what how returns, or panic or exit as it does.
func (s *ManualHandler) EndWith(t testing.TB, value string, how func() error) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	ch := s.running[value]
	s.mu.Unlock()
	if ch == nil {
		t.Fatalf("%q is not running; running: %q", value, s.Running())
	}
	ch <- how
	synctest.Wait()
}

// Finish has the calls with values succeed, one after the other.
func (s *ManualHandler) Finish(t testing.TB, values ...string) {
	t.Helper()
	for _, v := range values {
		s.EndWith(t, v, func() error { return nil })
	}
}

// Fail has the call with value return err.
func (s *ManualHandler) Fail(t testing.TB, value string, err error) {
	t.Helper()
	s.EndWith(t, value, func() error { return err })
}

// FinishAll has what runs succeed, and what runs then, until nothing does.
func (s *ManualHandler) FinishAll(t testing.TB) {
	t.Helper()
	for now := s.Running(); now != ""; now = s.Running() {
		s.Finish(t, strings.Fields(now)...)
	}
}

// WantRunning fails the test unless want is what runs.
func (s *ManualHandler) WantRunning(t testing.TB, want string) {
	t.Helper()
	if got := s.Running(); got != want {
		t.Fatalf("running: %q, want %q", got, want)
	}
}

// Takes returns a handler that succeeds after d, unless its context ends first.
func Takes(d time.Duration) flow.Handler[string] {
	return func(ctx context.Context, _ flow.Message[string]) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Succeed is a handler that succeeds at once.
func Succeed(context.Context, flow.Message[string]) error { return nil }
