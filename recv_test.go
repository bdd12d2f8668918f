package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
)

func TestFirstErrorOfRecvEndsTheStreamAsItsKind(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		err  error
		kind flow.FailureKind
		code codes.Code
	}{
		{broken, flow.FailureInternal, codes.Internal},
		{io.ErrUnexpectedEOF, flow.FailureInternal, codes.Internal},
		{fmt.Errorf("wrapped: %w", io.EOF), flow.FailureInternal, codes.Internal},
		{status.Error(codes.ResourceExhausted, "too large"), flow.FailureInternal, codes.ResourceExhausted},
		{status.Error(codes.Unavailable, "gone"), flow.FailureInternal, codes.Unavailable},
		{fmt.Errorf("wrapped: %w", status.Error(codes.DataLoss, "torn")), flow.FailureInternal, codes.DataLoss},
		{status.Error(codes.Canceled, "reset"), flow.FailureContextCancelled, codes.Canceled},
		{status.Error(codes.DeadlineExceeded, "late"), flow.FailureContextCancelled, codes.DeadlineExceeded},
		{context.Canceled, flow.FailureContextCancelled, codes.Canceled},
		{context.DeadlineExceeded, flow.FailureContextCancelled, codes.DeadlineExceeded},
		{fmt.Errorf("wrapped: %w", context.Canceled), flow.FailureContextCancelled, codes.Canceled},
	} {
		bubble(t, func(t *testing.T) {
			s := newStage()
			r := start(t, mustNew(t, s.handle, flow.Options{Ordering: keyed}), "a1", "b1", "a2")
			s.finish(t, "b1")
			r.Fail(c.err) // Source reports a Recv after it
			sum, err := r.result(t)
			fault := failureOf(t, err, c.kind)
			if fault.Seq != 0 || !errors.Is(err, c.err) || status.Code(err) != c.code {
				t.Errorf("%v: Run() = %+v with code %v, want %v", c.err, fault, status.Code(err), c.code)
			}
			if sum.Received != 3 || sum.Succeeded != 1 || sum.Failed != 1 || sum.Dropped != 1 {
				t.Errorf("%v: summary is %+v", c.err, sum)
			}
			conserved(t, sum)
		})
	}
}

func TestValueThatComesWithAnErrorIsNotReceived(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, end := range []error{io.EOF, errHandler} {
			sum, _ := mustNew(t, succeed, flow.Options{}).Run(t.Context(), func() (string, error) { return "a1", end })
			if sum.Received != 0 {
				t.Errorf("%v: summary is %+v, want nothing received", end, sum)
			}
		}
	})
}

// gRPC cancels the stream's context before the Recv of an oversized message returns.
func TestStatusOfRecvReplacesTheEndOfTheContextJustBeforeIt(t *testing.T) {
	tooLarge := status.Error(codes.ResourceExhausted, "too large")
	for _, c := range []struct {
		name string
		wait time.Duration
		err  error
		kind flow.FailureKind
		code codes.Code
	}{
		{"at once", 0, tooLarge, flow.FailureInternal, codes.ResourceExhausted},
		{"a moment later", time.Millisecond, tooLarge, flow.FailureInternal, codes.ResourceExhausted},
		{"much later", time.Hour, tooLarge, flow.FailureContextCancelled, codes.Canceled},
		{"no status", 0, errors.New("broken"), flow.FailureContextCancelled, codes.Canceled},
		{"Canceled", 0, status.Error(codes.Canceled, "reset"), flow.FailureContextCancelled, codes.Canceled},
		{"EOF", 0, io.EOF, flow.FailureContextCancelled, codes.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := start(t, mustNew(t, newStage().handle, flow.Options{}), "a1", "a2")
				r.cancel(nil)
				if c.wait > 0 {
					pass(c.wait)
				}
				r.Fail(c.err)
				pass(time.Second)
				sum, err := r.result(t)
				failureOf(t, err, c.kind)
				if code := status.Code(err); code != c.code {
					t.Errorf("code is %v, want %v", code, c.code)
				}
				conserved(t, sum)
			})
		})
	}
}

func TestMessageThatComesAfterTheContextsEndIsNotReceived(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{}))
		c.cancel(nil)
		c.Send("a1")
		pass(time.Second)
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureContextCancelled)
		if sum.Received != 0 || s.history() != "" {
			t.Errorf("summary is %+v, started %q", sum, s.history())
		}
	})
}

func TestEOFAfterAFailureChangesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{}), "a1")
		c.End()
		s.fail(t, "a1", errHandler)
		_, err := c.result(t)
		failureOf(t, err, flow.FailureHandlerError)
	})
}

// What decides is whether the stream has ended when the message has its key, whichever way it goes then.
func TestMessageWhoseStreamEndsWhileItsKeyIsAskedForIsNotReceived(t *testing.T) {
	for name, c := range map[string]struct {
		scope  flow.OrderingScope
		panics bool
	}{
		"through the inbox": {}, "on receipt": {scope: flow.ScopeFlow}, "without a key": {panics: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				named, finish := make(chan struct{}), make(chan struct{})
				f, err := flow.New(func(context.Context, flow.Message[string]) error {
					<-finish
					return nil
				}, func(v string) string {
					if v == "b1" {
						<-named
						if c.panics {
							panic("key")
						}
					}
					return keyOf(v)
				}, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: c.scope}})
				if err != nil {
					t.Fatal(err)
				}
				run := start(t, f, "a1", "b1")
				_ = f.Close()
				close(named)
				synctest.Wait()
				close(finish)
				sum, err := run.result(t)
				failureOf(t, err, flow.FailureShutdown)
				if conserved(t, sum); sum.Received != 1 || sum.Succeeded != 1 {
					t.Errorf("Run() = %+v, want the first message only", sum)
				}
			})
		})
	}
}

func TestRecvIsNotCalledAgainAfterItsFirstError(t *testing.T) {
	for name, last := range map[string]error{"EOF": io.EOF, "failure": errHandler} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s, calls := newStage(), 0
				f := mustNew(t, s.handle, flow.Options{})
				ctx, cancel := context.WithCancel(context.Background())
				run := begin(t, func(context.Context, func() (string, error)) (flow.Summary, error) {
					return f.Run(ctx, func() (string, error) {
						switch calls++; calls {
						case 1:
							return "a1", nil
						case 2:
							return "", last
						}
						<-ctx.Done()
						return "", io.EOF
					})
				})
				s.finishAll(t)
				if _, err := run.result(t); (err == nil) != (last == io.EOF) {
					t.Errorf("Run() = %v after %v", err, last)
				}
				cancel()
				synctest.Wait()
				if calls != 2 {
					t.Errorf("recv was called %d times, want 2", calls)
				}
			})
		})
	}
}
