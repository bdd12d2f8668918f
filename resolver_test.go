package flow_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

// keeper is a caller's own resolver: who asks it waits until the test answers.
type keeper struct {
	mu       sync.Mutex
	asked    []string
	waiting  map[string]chan func() (flow.ReleaseFunc, error)
	released []string
	closed   bool
}

func newKeeper() *keeper { return &keeper{waiting: map[string]chan func() (flow.ReleaseFunc, error){}} }

func (k *keeper) Wait(ctx context.Context, key string) (flow.ReleaseFunc, error) {
	answer := make(chan func() (flow.ReleaseFunc, error))
	k.mu.Lock()
	k.asked = append(k.asked, key)
	if k.waiting[key] != nil {
		panic("asked for " + key + " by two at once")
	}
	k.waiting[key] = answer
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.waiting, key)
		k.mu.Unlock()
	}()
	select {
	case how := <-answer:
		return how()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (k *keeper) Close() { k.closed = true }

// answer has the Wait of key return what how does.
func (k *keeper) answer(t testing.TB, key string, how func() (flow.ReleaseFunc, error)) {
	t.Helper()
	synctest.Wait()
	k.mu.Lock()
	ch := k.waiting[key]
	k.mu.Unlock()
	if ch == nil {
		t.Fatalf("nobody waits for %q; asked: %q", key, k.history())
	}
	ch <- how
	synctest.Wait()
}

func (k *keeper) turn(key string) flow.ReleaseFunc {
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.released = append(k.released, key)
	}
}

// grant gives key's turn.
func (k *keeper) grant(t testing.TB, keys ...string) {
	t.Helper()
	for _, key := range keys {
		k.answer(t, key, func() (flow.ReleaseFunc, error) { return k.turn(key), nil })
	}
}

func (k *keeper) refuse(t testing.TB, key string, err error) {
	t.Helper()
	k.answer(t, key, func() (flow.ReleaseFunc, error) { return nil, err })
}

// history returns who was asked for, sorted, as keys ask side by side, and whose turns were released, in order.
func (k *keeper) history() string {
	synctest.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.Join(slices.Sorted(slices.Values(k.asked)), " ") + " / " + strings.Join(k.released, " ")
}

func (k *keeper) want(t testing.TB, history string) {
	t.Helper()
	if got := k.history(); got != history {
		t.Fatalf("asked and released: %q, want %q", got, history)
	}
}

// receive is start for a Receiver with a resolver, and maybe a capacity.
func (k *keeper) receive(t testing.TB, s *stage, key flow.OrderingKeyFunc[string], o flow.Options, values ...string) *call {
	t.Helper()
	r := flow.NewReceiver(
		flow.NewGate(k, flow.NewPressureController(o.Backpressure), flow.NewShutdownCoordinator(o.Shutdown)),
		flow.NewEngine(s.handle, o.Retry))
	return receive(t, r, key, values...)
}

// receive is start for a Receiver.
func receive(t testing.TB, r *flow.Receiver[string], key flow.OrderingKeyFunc[string], values ...string) *call {
	t.Helper()
	return begin(t, func(ctx context.Context, recv func() (string, error)) (flow.Summary, error) {
		return r.Receive(ctx, recv, key)
	}, values...)
}

func TestOwnResolverIsAskedWhenTheLocalTurnHasComeAndBeforeASlotIsTaken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		c := k.receive(t, s, keyOf, flow.Options{Backpressure: flow.BackpressureOptions{Capacity: 1}}, "a1", "a2", "b1", "c1")
		c.End()
		k.want(t, "a b c / ") // a2's local turn has not come
		wantNow(t, s, "")
		k.grant(t, "b") // whoever waits for the resolver holds no slot
		wantNow(t, s, "b1")
		k.grant(t, "a", "c")
		wantNow(t, s, "b1")
		s.finish(t, "b1")
		k.want(t, "a b c / b")
		wantNow(t, s, "a1")
		s.finish(t, "a1")
		k.want(t, "a a b c / b a") // a's turn was released before a2 asked
		k.grant(t, "a")
		s.finishAll(t)
		sum, err := c.result(t)
		if err != nil || sum.Succeeded != 4 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
		k.want(t, "a a b c / b a c a")
		if k.closed {
			t.Error("flow closed a resolver that it did not make")
		}
	})
}

func TestOwnResolversTurnIsReleasedOnceHoweverTheMessageEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*testing.T, *stage, *call)
		kind flow.FailureKind
	}{
		"failed":    {func(t *testing.T, s *stage, _ *call) { s.fail(t, "a1", flow.Permanent(errHandler)) }, flow.FailureHandlerError},
		"cancelled": {func(_ *testing.T, _ *stage, c *call) { c.cancel(nil) }, flow.FailureContextCancelled},
		"panicked":  {func(t *testing.T, s *stage, _ *call) { s.end(t, "a1", func() error { panic("handler") }) }, flow.FailureInternal},
		"exited": {func(t *testing.T, s *stage, _ *call) {
			s.end(t, "a1", func() error { runtime.Goexit(); return nil })
		}, flow.FailureInternal},
		"waiting for its next try": {func(t *testing.T, s *stage, c *call) {
			s.fail(t, "a1", errHandler)
			c.cancel(nil)
		}, flow.FailureContextCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s, k := newStage(), newKeeper()
				call := k.receive(t, s, keyOf, flow.Options{
					Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
				}, "a1", "a2")
				k.grant(t, "a")
				wantNow(t, s, "a1")
				c.end(t, s, call)
				time.Sleep(time.Second)
				sum, err := call.result(t)
				failureOf(t, err, c.kind)
				conserved(t, sum)
				k.want(t, "a / a")
			})
		})
	}
}

func TestOwnResolversTurnIsKeptFromTryToTry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		c := k.receive(t, s, keyOf, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}}, "a1", "a2")
		c.End()
		k.grant(t, "a")
		s.fail(t, "a1", errHandler)
		k.want(t, "a / ")
		time.Sleep(time.Second)
		s.finish(t, "a1")
		k.want(t, "a a / a")
		k.grant(t, "a")
		s.finishAll(t)
		k.want(t, "a a / a a")
		if _, err := c.result(t); err != nil {
			t.Error(err)
		}
	})
}

func TestOwnResolversTurnThatComesTooLateIsReleasedAndDropsTheMessage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		released := 0
		comes := make(chan struct{})
		gate := flow.NewGate(resolverFunc(func(ctx context.Context, _ string) (flow.ReleaseFunc, error) {
			<-comes // whatever ctx says
			return func() { released++ }, nil
		}), nil, nil)
		s := newStage()
		c := receive(t, flow.NewReceiver(gate, flow.NewEngine(s.handle, flow.RetryOptions{})), nil, "a1")
		c.cancel(nil)
		time.Sleep(time.Second)
		close(comes)
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureContextCancelled)
		if released != 1 || sum.Dropped != 1 || s.history() != "" {
			t.Errorf("released %d times, %+v, ran %q", released, sum, s.history())
		}
	})
}

// resolverFunc is a Wait that is a whole resolver.
type resolverFunc func(context.Context, string) (flow.ReleaseFunc, error)

func (f resolverFunc) Wait(ctx context.Context, key string) (flow.ReleaseFunc, error) {
	return f(ctx, key)
}
func (resolverFunc) Close() {}

func TestOwnResolversErrorRejectsTheMessage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		c := k.receive(t, s, keyOf, flow.Options{}, "a1", "b1", "a2")
		k.grant(t, "b")
		lost := errors.New("lost the database")
		k.refuse(t, "a", fmt.Errorf("lock: %w", lost))
		sum, err := c.result(t)
		if f := failureOf(t, err, flow.FailureOrdering); f.Seq != 1 || f.Key != "a" || !errors.Is(f, lost) {
			t.Errorf("failure %+v", f)
		}
		if sum.Rejected != 1 || sum.Failed != 1 || sum.Dropped != 1 {
			t.Errorf("Run() = %+v, want a1 rejected, b1 failed and a2 dropped", sum)
		}
		k.want(t, "a b / b")
	})
}

func TestOwnResolversErrorIsTheContextsWhenThatHasEnded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		c := k.receive(t, s, keyOf, flow.Options{}, "a1", "a2")
		c.cancel(errHandler)
		time.Sleep(time.Second)
		sum, err := c.result(t)
		if f := failureOf(t, err, flow.FailureContextCancelled); !errors.Is(f, errHandler) {
			t.Errorf("failure %v, want the context's cause in it", f)
		}
		if sum.Rejected != 1 || sum.Dropped != 1 {
			t.Errorf("Run() = %+v, want a1, which asked, rejected, and a2 dropped", sum)
		}
	})
}
