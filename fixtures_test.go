package flow_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"example.com/flow"
	"example.com/flow/flowtest"
)

// The fixtures of the tests: a stage, which is a handler whose messages end when the test says so, and a call, which is
// a Run in the background. Messages are strings: what they are called, and how many, is the test's. The key of "a1" is
// "a", and so is that of "a"; that of "1" is "".

// errHandler is what a handler fails with where it doesn't matter with what.
var errHandler = errors.New("handler failed")

func keyOf(v string) string { return strings.TrimRight(v, "0123456789") }

// stage is a handler that keeps every message until the test finishes it, or its context ends.
type stage struct {
	mu      sync.Mutex
	started []flow.Message[string]
	running map[string]chan func() error
}

func newStage() *stage { return &stage{running: map[string]chan func() error{}} }

func (s *stage) handle(ctx context.Context, m flow.Message[string]) error {
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

// now returns the values that run once everything has come to rest, sorted and joined by spaces.
func (s *stage) now() string {
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

// history returns the values in the order in which they were started, joined by spaces.
func (s *stage) history() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	var values []string
	for _, m := range s.started {
		values = append(values, m.Value)
	}
	return strings.Join(values, " ")
}

// attempts returns how the handler was called, in order.
func (s *stage) attempts() []flow.Message[string] {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.started)
}

// end has the handler of value do what how does, and waits until all has come to rest.
func (s *stage) end(t testing.TB, value string, how func() error) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	ch := s.running[value]
	s.mu.Unlock()
	if ch == nil {
		t.Fatalf("%q is not running; running: %q", value, s.now())
	}
	ch <- how
	synctest.Wait()
}

// finish ends values one after the other, with success.
func (s *stage) finish(t testing.TB, values ...string) {
	t.Helper()
	for _, v := range values {
		s.end(t, v, func() error { return nil })
	}
}

func (s *stage) fail(t testing.TB, value string, err error) {
	t.Helper()
	s.end(t, value, func() error { return err })
}

// finishAll finishes what runs, and what runs then, until nothing does.
func (s *stage) finishAll(t testing.TB) {
	t.Helper()
	for now := s.now(); now != ""; now = s.now() {
		s.finish(t, strings.Fields(now)...)
	}
}

// call is a Run in the background, reading a source of its own.
type call struct {
	*flowtest.Source[string]
	cancel context.CancelCauseFunc
	done   chan struct{}
	sum    flow.Summary
	err    error
}

// start runs a stream of values, which the test may send more to, or end.
func start(t testing.TB, f *flow.Flow[string], values ...string) *call {
	t.Helper()
	return begin(t, f.Run, values...)
}

// begin is start for whatever runs a stream.
func begin(
	t testing.TB, run func(context.Context, func() (string, error)) (flow.Summary, error), values ...string,
) *call {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &call{Source: flowtest.NewSource(t, values...), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.sum, c.err = run(ctx, c.Recv)
	}()
	t.Cleanup(func() { cancel(nil); <-c.done })
	synctest.Wait()
	return c
}

// over says whether Run has returned once everything has come to rest.
func (c *call) over() bool {
	synctest.Wait()
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// result is what Run has returned. It is a failure of the test if it hasn't once everything has come to rest.
func (c *call) result(t testing.TB) (flow.Summary, error) {
	t.Helper()
	if !c.over() {
		t.Fatal("Run has not returned")
	}
	return c.sum, c.err
}

// mustNew is New for options that are good.
func mustNew(t testing.TB, h flow.Handler[string], o flow.Options) *flow.Flow[string] {
	t.Helper()
	f, err := flow.New(h, keyOf, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// failureOf returns err's Failure, and is a failure of the test if err is none or not of kind.
func failureOf(t testing.TB, err error, kind flow.FailureKind) *flow.Failure {
	t.Helper()
	f, ok := errors.AsType[*flow.Failure](err)
	if !ok || f.Kind != kind {
		t.Fatalf("error is %v (%T), want a Failure of kind %v", err, err, kind)
	}
	return f
}

// wantNow compares what runs with want.
func wantNow(t testing.TB, s *stage, want string) {
	t.Helper()
	if got := s.now(); got != want {
		t.Fatalf("running: %q, want %q", got, want)
	}
}

// conserved checks what holds of every Summary.
func conserved(t testing.TB, s flow.Summary) {
	t.Helper()
	if s.Received != s.Succeeded+s.Failed+s.Rejected+s.Dropped+s.Duplicates {
		t.Errorf("not conserved: %+v", s)
	}
	if n := uint64(len(s.Unsettled)); n == 0 && s.Committed != s.Last || n > 0 && s.Committed != s.Unsettled[0]-1 {
		t.Errorf("committed is wrong: %+v", s)
	}
	if !slices.IsSorted(s.Unsettled) {
		t.Errorf("unsettled is not ascending: %+v", s)
	}
}

// bubble is synctest.Test with the name that says what it is for: exact times, and a failure if a goroutine stays.
func bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, test)
}

// nilError is an error that panics when it is asked for anything while it is nil: what a handler returns that hands on a
// *nilError as an error.
type nilError struct{ table string }

func (e *nilError) Error() string        { return "table " + e.table }
func (e *nilError) Unwrap() error        { return errors.New(e.table) }
func (e *nilError) Is(target error) bool { return target.Error() == e.table }
func (e *nilError) As(any) bool          { return e.table == "" }

// skipIfShort skips a test that takes long, when -short asks for that.
func skipIfShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
}
