package testkit

import (
	"context"
	"io"
	"testing"
	"testing/synctest"

	"example.com/flow"
	"example.com/flow/flowtest"
)

// Stream is a Run in the background that reads a source of its own. It is for bubbles of testing/synctest, and ends with the
// test.
type Stream struct {
	*flowtest.Source[string]
	Cancel context.CancelCauseFunc
	Done   chan struct{} // closed when Run has returned
	Sum    flow.Summary  // valid then
	Err    error         // valid then
}

// Start runs a stream of values, which the test may send more to, or end.
func Start(t testing.TB, f *flow.Flow[string], values ...string) *Stream {
	t.Helper()
	return StartFunc(t, f.Run, values...)
}

// StartFunc is Start for anything that runs a stream as Run does.
func StartFunc(
	t testing.TB, run func(context.Context, func() (string, error)) (flow.Summary, error), values ...string,
) *Stream {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &Stream{Source: flowtest.NewSource(t, values...), Cancel: cancel, Done: make(chan struct{})}
	go func() {
		defer close(c.Done)
		c.Sum, c.Err = run(ctx, c.Recv)
	}()
	t.Cleanup(func() { cancel(nil); <-c.Done })
	synctest.Wait()
	return c
}

// Ended reports whether Run has returned, once everything has come to rest.
func (c *Stream) Ended() bool {
	synctest.Wait()
	select {
	case <-c.Done:
		return true
	default:
		return false
	}
}

// Result returns what Run has returned. It fails the test if Run has not, once everything has come to rest.
func (c *Stream) Result(t testing.TB) (flow.Summary, error) {
	t.Helper()
	if !c.Ended() {
		t.Fatal("Run has not returned")
	}
	return c.Sum, c.Err
}

// WantSummary fails the test unless the stream has ended with the counts of want. Received and Committed follow from the others,
// and need not be set.
func (c *Stream) WantSummary(t testing.TB, want flow.Summary) {
	t.Helper()
	got, _ := c.Result(t)
	CheckConserved(t, got)
	want.Received = want.Succeeded + want.Failed + want.Rejected + want.Dropped
	want.Committed, want.Unsettled = got.Committed, got.Unsettled
	if CountsDiffer(got, want) {
		t.Errorf("Summary is %+v, want %+v", got, want)
	}
}

// Given returns a recv of values and then io.EOF, for streams whose course the test need not control.
func Given(values ...string) func() (string, error) {
	return func() (string, error) {
		if len(values) == 0 {
			return "", io.EOF
		}
		v := values[0]
		values = values[1:]
		return v, nil
	}
}
