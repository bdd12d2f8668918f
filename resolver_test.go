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
	"example.com/flow/internal/testkit"
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
func (k *keeper) receive(t testing.TB, s *testkit.ManualHandler, key flow.OrderingKeyFunc[string], o flow.Options, values ...string) *testkit.Stream {
	t.Helper()
	r := flow.NewReceiver(
		flow.NewGate(k, flow.NewPressureController(o.Backpressure), flow.NewShutdownCoordinator(o.Shutdown)),
		flow.NewEngine(s.Handle, o.Retry))
	return receive(t, r, key, values...)
}

// receive is start for a Receiver.
func receive(t testing.TB, r *flow.Receiver[string], key flow.OrderingKeyFunc[string], values ...string) *testkit.Stream {
	t.Helper()
	return testkit.StartFunc(t, func(ctx context.Context, recv func() (string, error)) (flow.Summary, error) {
		return r.Receive(ctx, recv, key)
	}, values...)
}

func TestOwnResolverIsAskedWhenTheLocalTurnHasComeAndBeforeASlotIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		c := k.receive(t, s, testkit.KeyOf, flow.Options{Backpressure: flow.BackpressureOptions{Capacity: 1}}, "a1", "a2", "b1", "c1")
		c.End()
		k.want(t, "a b c / ") // a2's local turn has not come
		s.WantRunning(t, "")
		k.grant(t, "b") // whoever waits for the resolver holds no slot
		s.WantRunning(t, "b1")
		k.grant(t, "a", "c")
		s.WantRunning(t, "b1")
		s.Finish(t, "b1")
		k.want(t, "a b c / b")
		s.WantRunning(t, "a1")
		s.Finish(t, "a1")
		k.want(t, "a a b c / b a") // a's turn was released before a2 asked
		k.grant(t, "a")
		s.FinishAll(t)
		sum, err := c.Result(t)
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
		end  func(*testing.T, *testkit.ManualHandler, *testkit.Stream)
		kind flow.FailureKind
	}{
		"failed": {func(t *testing.T, s *testkit.ManualHandler, _ *testkit.Stream) {
			s.Fail(t, "a1", flow.Permanent(testkit.ErrHandler))
		}, flow.FailureHandlerError},
		"cancelled": {func(_ *testing.T, _ *testkit.ManualHandler, c *testkit.Stream) { c.Cancel(nil) }, flow.FailureContextCancelled},
		"panicked": {func(t *testing.T, s *testkit.ManualHandler, _ *testkit.Stream) {
			s.EndWith(t, "a1", func() error { panic("handler") })
		}, flow.FailureInternal},
		"exited": {func(t *testing.T, s *testkit.ManualHandler, _ *testkit.Stream) {
			s.EndWith(t, "a1", func() error { runtime.Goexit(); return nil })
		}, flow.FailureInternal},
		"waiting for its next try": {func(t *testing.T, s *testkit.ManualHandler, c *testkit.Stream) {
			s.Fail(t, "a1", testkit.ErrHandler)
			c.Cancel(nil)
		}, flow.FailureContextCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, k := testkit.NewManualHandler(), newKeeper()
				call := k.receive(t, s, testkit.KeyOf, flow.Options{
					Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
				}, "a1", "a2")
				k.grant(t, "a")
				s.WantRunning(t, "a1")
				c.end(t, s, call)
				time.Sleep(time.Second)
				sum, err := call.Result(t)
				testkit.FailureOf(t, err, c.kind)
				testkit.CheckConserved(t, sum)
				k.want(t, "a / a")
			})
		})
	}
}

func TestOwnResolversTurnIsKeptFromTryToTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		c := k.receive(t, s, testkit.KeyOf, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}}, "a1", "a2")
		c.End()
		k.grant(t, "a")
		s.Fail(t, "a1", testkit.ErrHandler)
		k.want(t, "a / ")
		time.Sleep(time.Second)
		s.Finish(t, "a1")
		k.want(t, "a a / a")
		k.grant(t, "a")
		s.FinishAll(t)
		k.want(t, "a a / a a")
		if _, err := c.Result(t); err != nil {
			t.Error(err)
		}
	})
}

func TestOwnResolversTurnThatComesTooLateIsReleasedAndDropsTheMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		released := 0
		comes := make(chan struct{})
		gate := flow.NewGate(resolverFunc(func(ctx context.Context, _ string) (flow.ReleaseFunc, error) {
			<-comes // whatever ctx says
			return func() { released++ }, nil
		}), nil, nil)
		s := testkit.NewManualHandler()
		c := receive(t, flow.NewReceiver(gate, flow.NewEngine(s.Handle, flow.RetryOptions{})), nil, "a1")
		c.Cancel(nil)
		time.Sleep(time.Second)
		close(comes)
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureContextCancelled)
		if released != 1 || sum.Dropped != 1 || s.History() != "" {
			t.Errorf("released %d times, %+v, ran %q", released, sum, s.History())
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
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		c := k.receive(t, s, testkit.KeyOf, flow.Options{}, "a1", "b1", "a2")
		k.grant(t, "b")
		lost := errors.New("lost the database")
		k.refuse(t, "a", fmt.Errorf("lock: %w", lost))
		sum, err := c.Result(t)
		if f := testkit.FailureOf(t, err, flow.FailureOrdering); f.Seq != 1 || f.Key != "a" || !errors.Is(f, lost) {
			t.Errorf("failure %+v", f)
		}
		if sum.Rejected != 1 || sum.Failed != 1 || sum.Dropped != 1 {
			t.Errorf("Run() = %+v, want a1 rejected, b1 failed and a2 dropped", sum)
		}
		k.want(t, "a b / b")
	})
}

func TestOwnResolversErrorIsTheContextsWhenThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		c := k.receive(t, s, testkit.KeyOf, flow.Options{}, "a1", "a2")
		c.Cancel(testkit.ErrHandler)
		time.Sleep(time.Second)
		sum, err := c.Result(t)
		if f := testkit.FailureOf(t, err, flow.FailureContextCancelled); !errors.Is(f, testkit.ErrHandler) {
			t.Errorf("failure %v, want the context's cause in it", f)
		}
		if sum.Rejected != 1 || sum.Dropped != 1 {
			t.Errorf("Run() = %+v, want a1, which asked, rejected, and a2 dropped", sum)
		}
	})
}

func TestOwnResolverIsAskedWithTheEmptyKeyInOneFIFOWithoutAKeyFunction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		c := k.receive(t, s, nil, flow.Options{}, "a1", "b1", "c1")
		c.End()
		for _, v := range []string{"a1", "b1", "c1"} {
			k.grant(t, "")
			s.WantRunning(t, v)
			s.Finish(t, v)
		}
		k.want(t, "   /   ") // three times "", and each released
		if sum, err := c.Result(t); err != nil || sum.Succeeded != 3 {
			t.Errorf("Receive() = %+v, %v", sum, err)
		}
	})
}

func TestOwnResolverThatPanicsFailsItsStreamAndNoOther(t *testing.T) {
	for name, how := range map[string]func() (flow.ReleaseFunc, error){
		"panic in Wait":     func() (flow.ReleaseFunc, error) { panic("resolver") },
		"Goexit in Wait":    func() (flow.ReleaseFunc, error) { runtime.Goexit(); return nil, nil },
		"panic in release":  func() (flow.ReleaseFunc, error) { return func() { panic("release") }, nil },
		"Goexit in release": func() (flow.ReleaseFunc, error) { return runtime.Goexit, nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, k := testkit.NewManualHandler(), newKeeper()
				r := flow.NewReceiver(flow.NewGate(k, nil, nil), flow.NewEngine(s.Handle, flow.RetryOptions{}))
				c, other := receive(t, r, testkit.KeyOf, "a1", "a2", "b1"), receive(t, r, testkit.KeyOf, "x1")
				k.grant(t, "x", "b")
				k.answer(t, "a", how)
				s.Finish(t, "x1")
				if s.Running() != "" { // it got its turn, and the release is to come
					s.Finish(t, "a1")
				}
				sum, err := c.Result(t)
				testkit.FailureOf(t, err, flow.FailureInternal)
				if sum.Received != 3 || sum.Dropped != 1 {
					t.Errorf("Receive() = %+v, want a2 dropped", sum)
				}
				testkit.CheckConserved(t, sum)
				other.End()
				if _, err := other.Result(t); err != nil {
					t.Errorf("the other stream: %v", err)
				}
			})
		})
	}
}

func TestOwnResolverMayGiveATurnWithoutARelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		c := k.receive(t, s, testkit.KeyOf, flow.Options{}, "a1", "a2")
		c.End()
		for range 2 {
			k.answer(t, "a", func() (flow.ReleaseFunc, error) { return nil, nil })
			s.FinishAll(t)
		}
		if sum, err := c.Result(t); err != nil || sum.Succeeded != 2 {
			t.Errorf("Receive() = %+v, %v", sum, err)
		}
	})
}

// Its turn comes after receipt, so what finds no slot then is not refused.
func TestOwnResolversLateTurnIsNeverRefusedForPressure(t *testing.T) {
	for name, o := range map[string]flow.BackpressureOptions{
		"hard reject":    {Policy: flow.BackpressureHardReject, Capacity: 1},
		"queue capacity": {Capacity: 1, QueueCapacity: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, k := testkit.NewManualHandler(), newKeeper()
				c := k.receive(t, s, testkit.KeyOf, flow.Options{Backpressure: o}, "a1", "b1", "c1", "d1")
				c.End()
				k.grant(t, "a", "b", "c", "d")
				s.WantRunning(t, "a1")
				s.FinishAll(t)
				if sum, err := c.Result(t); err != nil || sum.Succeeded != 4 {
					t.Errorf("Receive() = %+v, %v", sum, err)
				}
			})
		})
	}
}

func TestShutdownEndsTheWaitForAnOwnResolver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		shutdown := flow.NewShutdownCoordinator(flow.ShutdownOptions{})
		r := flow.NewReceiver(flow.NewGate(k, nil, shutdown), flow.NewEngine(s.Handle, flow.RetryOptions{}))
		c := receive(t, r, testkit.KeyOf, "a1", "a2", "b1")
		k.grant(t, "b")
		done := make(chan error, 1)
		go func() { done <- shutdown.Shutdown(context.Background()) }()
		s.WantRunning(t, "b1") // what runs is not disturbed
		s.Finish(t, "b1")
		if err := <-done; err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if sum.Succeeded != 1 || sum.Dropped != 2 {
			t.Errorf("Receive() = %+v, want b1 succeeded and the others dropped", sum)
		}
		k.want(t, "a b / b")
	})
}

func TestDrainAsksAnOwnResolverForAllThatIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		shutdown := flow.NewShutdownCoordinator(flow.ShutdownOptions{DrainOnClose: true, GracePeriod: time.Minute})
		r := flow.NewReceiver(flow.NewGate(k, nil, shutdown), flow.NewEngine(s.Handle, flow.RetryOptions{}))
		c := receive(t, r, testkit.KeyOf, "a1", "a2")
		done := make(chan error, 1)
		go func() { done <- shutdown.Shutdown(context.Background()) }()
		for range 2 {
			k.grant(t, "a")
			s.FinishAll(t)
		}
		if err := <-done; err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if sum.Succeeded != 2 {
			t.Errorf("Receive() = %+v", sum)
		}
	})
}

func TestGateOfOwnResolverOrdersReceiversOfDifferentProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lock := flow.NewKeyedFIFO(flow.OrderingOptions{}) // stands for one that both processes ask
		asks := resolverFunc(lock.Wait)
		s := testkit.NewManualHandler()
		one := flow.NewReceiver(flow.NewGate(asks, nil, nil), flow.NewEngine(s.Handle, flow.RetryOptions{}))
		two := flow.NewReceiver(flow.NewGate(asks, nil, nil), flow.NewEngine(s.Handle, flow.RetryOptions{}))
		first := receive(t, one, testkit.KeyOf, "a1", "a2")
		second := receive(t, two, testkit.KeyOf, "a3", "b1")
		first.End()
		second.End()
		s.WantRunning(t, "a1 b1")
		s.Finish(t, "a1")
		s.WantRunning(t, "a3 b1") // a2 asked when a1 had released: behind a3
		s.FinishAll(t)
		for _, c := range []*testkit.Stream{first, second} {
			if _, err := c.Result(t); err != nil {
				t.Error(err)
			}
		}
	})
}

// with are options with k as the order.
func (k *keeper) with(o flow.Options) flow.Options {
	if o.Ordering.Mode == flow.OrderingFIFO && !o.Ordering.UnorderedEmptyKey {
		o.Ordering.Mode = flow.OrderingKeyedFIFO
	}
	o.Ordering.Resolver = k
	return o
}

func TestNewRefusesAResolverThatCantMeanAnything(t *testing.T) {
	for _, c := range []struct {
		o     flow.OrderingOptions
		wants string
	}{
		{flow.OrderingOptions{Mode: flow.OrderingNone}, "OrderingNone"},
		{flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow}, "ScopeStream"},
		{flow.OrderingOptions{Mode: flow.OrderingFIFO, Scope: flow.ScopeFlow}, "ScopeStream"},
	} {
		c.o.Resolver = newKeeper()
		_, err := flow.New(testkit.NewManualHandler().Handle, testkit.KeyOf, flow.Options{Ordering: c.o})
		if err == nil || !strings.Contains(err.Error(), "Ordering.Resolver") || !strings.Contains(err.Error(), c.wants) {
			t.Errorf("New() with %+v = %v", c.o, err)
		}
	}
}

func TestResolverIsAskedInTurnWithAllThatTheOptionsOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		var mu sync.Mutex
		events := map[flow.EventKind]int{}
		f := testkit.New(t, s.Handle, k.with(flow.Options{
			Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
			OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
				if f.Key == "a" {
					return flow.SkipKey
				}
				return flow.SkipMessage
			},
			Observer: func(_ context.Context, e flow.Event) {
				mu.Lock()
				defer mu.Unlock()
				events[e.Kind]++
			},
		}))
		c := testkit.Start(t, f, "a1", "a2", "b1", "b2")
		c.End()
		k.want(t, "a b / ")
		k.grant(t, "a", "b")
		s.Fail(t, "b1", testkit.ErrHandler)
		k.want(t, "a b / ") // it keeps its turn from try to try
		s.Fail(t, "a1", flow.Permanent(testkit.ErrHandler))
		k.want(t, "a b / a") // a2 is skipped with its key, and asks nobody
		time.Sleep(time.Second)
		s.Finish(t, "b1")
		k.want(t, "a b b / a b")
		k.refuse(t, "b", errors.New("no"))
		sum, err := c.Result(t)
		if err != nil || sum.Succeeded != 1 || sum.Failed != 1 || sum.Rejected != 2 || sum.Retried != 1 || sum.Committed != 4 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
		for kind, want := range map[flow.EventKind]int{
			flow.EventAttempt: 3, flow.EventRetry: 1, flow.EventSuccess: 1, flow.EventFailure: 1, flow.EventReject: 2, flow.EventStreamEnd: 1,
		} {
			if events[kind] != want {
				t.Errorf("%v came %d times, want %d", kind, events[kind], want)
			}
		}
		if k.closed {
			t.Error("flow closed a resolver that it did not make")
		}
	})
}

func TestResolverIsAskedBeforeASlotIsTakenUnderEveryPolicy(t *testing.T) {
	for _, o := range []flow.BackpressureOptions{
		{Capacity: 1},
		{Capacity: 1, QueueCapacity: 8},
		{Capacity: 1, Policy: flow.BackpressureHardReject},
		{Capacity: 1, Policy: flow.BackpressureSoftAllow},
		{Capacity: 1, Policy: flow.BackpressureSoftAllowWithSignal},
	} {
		t.Run(o.Policy.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, k := testkit.NewManualHandler(), newKeeper()
				f := testkit.New(t, s.Handle, k.with(flow.Options{Backpressure: o}))
				c := testkit.Start(t, f, "a1", "b1") // nothing runs as they are received: none is refused
				c.End()
				k.grant(t, "b")
				s.WantRunning(t, "b1")
				k.grant(t, "a")
				if o.Policy == flow.BackpressureSoftAllow || o.Policy == flow.BackpressureSoftAllowWithSignal {
					s.WantRunning(t, "a1 b1")
				} else {
					s.WantRunning(t, "b1")
				}
				s.Finish(t, "b1", "a1")
				for _, m := range s.Attempts() {
					if want := m.Value == "a1" && o.Policy == flow.BackpressureSoftAllowWithSignal; m.Pressured != want {
						t.Errorf("%q is pressured: %v", m.Value, m.Pressured)
					}
				}
				if sum, err := c.Result(t); err != nil || sum.Succeeded != 2 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
				k.want(t, "a b / b a")
			})
		})
	}
}

func TestResolverAndMaxPendingBoundWhatIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		f := testkit.New(t, s.Handle, k.with(flow.Options{MaxPending: 2}))
		c := testkit.Start(t, f, "a1", "b1", "c1")
		c.End()
		k.want(t, "a b / ")
		k.grant(t, "b")
		s.Finish(t, "b1")
		k.want(t, "a b c / b")
		k.grant(t, "a", "c")
		s.FinishAll(t)
		if _, err := c.Result(t); err != nil {
			t.Error(err)
		}
	})
}

func TestResolverWithBoundsOfTheLanesRefusesOnReceipt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		o := k.with(flow.Options{OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }})
		o.Ordering.KeyCapacity = 1
		c := testkit.Start(t, testkit.New(t, s.Handle, o), "a1", "a2", "a3")
		c.End()
		k.grant(t, "a")
		s.FinishAll(t)
		k.grant(t, "a")
		s.FinishAll(t)
		if sum, err := c.Result(t); err != nil || sum.Succeeded != 2 || sum.Rejected != 1 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestResolverIsAskedForAllThatADrainRuns(t *testing.T) {
	for _, drain := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s, k := testkit.NewManualHandler(), newKeeper()
			f := testkit.New(t, s.Handle, k.with(flow.Options{Shutdown: flow.ShutdownOptions{DrainOnClose: drain}}))
			c := testkit.Start(t, f, "a1", "a2", "b1")
			k.grant(t, "a")
			s.WantRunning(t, "a1")
			done := make(chan error)
			go func() { done <- f.Shutdown(t.Context()) }()
			s.Finish(t, "a1")
			if drain {
				k.grant(t, "a", "b")
				s.FinishAll(t)
			}
			if err := <-done; err != nil {
				t.Errorf("Shutdown() = %v", err)
			}
			sum, err := c.Result(t)
			testkit.FailureOf(t, err, flow.FailureShutdown)
			want := flow.Summary{Received: 3, Succeeded: 3}
			if !drain { // b1, which asked, is dropped as well
				want = flow.Summary{Received: 3, Succeeded: 1, Dropped: 2}
			}
			if sum.Succeeded != want.Succeeded || sum.Dropped+sum.Rejected != want.Dropped || sum.Received != 3 {
				t.Errorf("with drain %v: Run() = %+v", drain, sum)
			}
		})
	}
}

func TestResolverBesideFIFOKeepsFIFOWithinTheStreamAndIsAskedWithoutAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingFIFO, Resolver: k}})
		c := testkit.Start(t, f, "a1", "b1", "c1")
		c.End()
		for _, v := range []string{"a1", "b1", "c1"} {
			s.WantRunning(t, "")
			k.grant(t, "")
			s.WantRunning(t, v)
			s.Finish(t, v)
		}
		if sum, err := c.Result(t); err != nil || sum.Succeeded != 3 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestResolverIsNotAskedForAnEmptyKeyThatHasNoOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := testkit.NewManualHandler(), newKeeper()
		o := k.with(flow.Options{})
		o.Ordering.UnorderedEmptyKey = true
		c := testkit.Start(t, testkit.New(t, s.Handle, o), "1", "2", "a1")
		c.End()
		k.want(t, "a / ")
		s.WantRunning(t, "1 2")
		k.grant(t, "a")
		s.FinishAll(t)
		if _, err := c.Result(t); err != nil {
			t.Error(err)
		}
	})
}

func TestResolverBuiltInKeepsAKeysOrderAcrossTheFlowsThatShareIt(t *testing.T) {
	for _, mode := range []flow.OrderingMode{flow.OrderingKeyedFIFO, flow.OrderingFIFO} {
		t.Run(mode.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				shared := flow.NewKeyedFIFO(flow.OrderingOptions{})
				if mode == flow.OrderingFIFO {
					shared = flow.NewFIFO(flow.OrderingOptions{})
				}
				s := testkit.NewManualHandler()
				o := flow.Options{Ordering: flow.OrderingOptions{Mode: mode, Resolver: shared}}
				one := testkit.Start(t, testkit.New(t, s.Handle, o), "a1", "a3")
				two := testkit.Start(t, testkit.New(t, s.Handle, o), "a2", "b1")
				one.End()
				two.End()
				if mode == flow.OrderingFIFO {
					for _, v := range strings.Fields("a1 a2 a3 b1") { // who asks, asks when its own stream lets it
						s.WantRunning(t, v)
						s.Finish(t, v)
					}
				} else {
					s.WantRunning(t, "a1 b1")
					s.Finish(t, "b1", "a1")
					s.WantRunning(t, "a2")
					s.Finish(t, "a2")
					s.WantRunning(t, "a3")
					s.Finish(t, "a3")
				}
				for _, c := range []*testkit.Stream{one, two} {
					if sum, err := c.Result(t); err != nil || sum.Succeeded != 2 {
						t.Errorf("Run() = %+v, %v", sum, err)
					}
				}
			})
		})
	}
}

func TestResolverThatIsClosedRefusesTheMessagesOfItsFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := flow.NewKeyedFIFO(flow.OrderingOptions{})
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Resolver: shared}})
		c := testkit.Start(t, f, "a1", "a2")
		s.WantRunning(t, "a1")
		shared.Close()
		s.Finish(t, "a1") // a turn that has come stays
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureOrdering)
		if sum.Succeeded != 1 || sum.Rejected != 1 {
			t.Errorf("Run() = %+v", sum)
		}
	})
}

func TestResolversOrderHoldsForManyStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := flow.NewKeyedFIFO(flow.OrderingOptions{})
		var mu sync.Mutex
		running := map[string]bool{}
		last := map[uint64]map[string]uint64{}
		var all []*testkit.Stream
		for id := range uint64(4) {
			last[id] = map[string]uint64{}
			f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
				mu.Lock()
				if running[m.Key] || m.Seq <= last[id][m.Key] {
					t.Errorf("message %d of key %q of stream %d runs out of turn", m.Seq, m.Key, id)
				}
				running[m.Key], last[id][m.Key] = true, m.Seq
				mu.Unlock()
				if m.Seq%3 == 0 {
					time.Sleep(time.Millisecond)
				}
				mu.Lock()
				defer mu.Unlock()
				running[m.Key] = false
				return nil
			}, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Resolver: shared}})
			values := slices.Repeat([]string{"a", "b", "c", "a"}, 100)
			c := testkit.Start(t, f, values...)
			c.End()
			all = append(all, c)
		}
		time.Sleep(time.Hour)
		for _, c := range all {
			if sum, err := c.Result(t); err != nil || sum.Succeeded != 400 {
				t.Errorf("Run() = %+v, %v", sum, err)
			}
		}
	})
}

// turn is ask for a resolver. Its Admission is none; the turn ends with release.
type turn struct {
	*caller
	release flow.ReleaseFunc
}

func wait(t testing.TB, r flow.OrderingResolver, key string) *turn {
	t.Helper()
	w := &turn{}
	w.caller = ask(t, func(ctx context.Context) (a flow.Admission, err error) {
		w.release, err = r.Wait(ctx, key)
		return a, err
	})
	return w
}

func TestFIFOCalledDirectlyOrdersItsCallersByArrivalWhateverTheirKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := flow.NewFIFO(flow.OrderingOptions{Mode: flow.OrderingNone}) // Mode is what the constructor says
		first, second, third := wait(t, r, "a"), wait(t, r, "b"), wait(t, r, "a")
		wantIn(t, first.caller)
		wantWaits(t, second.caller, third.caller)
		first.release()
		wantIn(t, second.caller)
		wantWaits(t, third.caller)
		first.release() // once more: not the second's turn
		wantWaits(t, third.caller)
		second.release()
		wantIn(t, third.caller)
		third.release()
		wantIn(t, wait(t, r, "c").caller)
	})
}

func TestKeyedFIFOCalledDirectlyOrdersTheCallersOfAKeyByArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := flow.NewKeyedFIFO(flow.OrderingOptions{})
		a1, a2, a3, b1, empty1, empty2 := wait(t, r, "a"), wait(t, r, "a"), wait(t, r, "a"), wait(t, r, "b"), wait(t, r, ""), wait(t, r, "")
		wantIn(t, a1.caller, b1.caller, empty1.caller)
		wantWaits(t, a2.caller, a3.caller, empty2.caller)
		a1.release()
		wantIn(t, a2.caller)
		wantWaits(t, a3.caller, empty2.caller)
		a2.release()
		empty1.release()
		wantIn(t, a3.caller, empty2.caller)
	})
}

func TestKeyedFIFOCalledDirectlyMayLeaveTheEmptyKeyWithoutOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := flow.NewKeyedFIFO(flow.OrderingOptions{UnorderedEmptyKey: true})
		one, two := wait(t, r, ""), wait(t, r, "")
		wantIn(t, one.caller, two.caller)
		one.release()
		one.release()
		a1, a2 := wait(t, r, "a"), wait(t, r, "a")
		wantIn(t, a1.caller)
		wantWaits(t, a2.caller)
	})
}

func TestCancelledWaiterGivesUpItsPlaceInTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := flow.NewKeyedFIFO(flow.OrderingOptions{Capacity: 2})
		first, second, third := wait(t, r, "a"), wait(t, r, "a"), wait(t, r, "a")
		wantRefused(t, wait(t, r, "a").caller, flow.FailureOrdering)
		second.cancel(testkit.ErrHandler)
		if f := wantRefused(t, second.caller, flow.FailureContextCancelled); !errors.Is(f, testkit.ErrHandler) || f.Key != "a" {
			t.Errorf("failure %+v", f)
		}
		fourth := wait(t, r, "a") // there is room again
		wantWaits(t, third.caller, fourth.caller)
		first.release()
		wantIn(t, third.caller)
		wantWaits(t, fourth.caller)
	})
}

func TestPlaceAfterACancelledWaitersIsThatAfterTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := flow.NewFIFO(flow.OrderingOptions{})
		first, second, last := wait(t, r, ""), wait(t, r, ""), wait(t, r, "")
		last.cancel(nil)
		wantRefused(t, last.caller, flow.FailureContextCancelled)
		third := wait(t, r, "")
		first.release()
		wantIn(t, second.caller)
		wantWaits(t, third.caller)
		second.release()
		wantIn(t, third.caller)
	})
}

// The turn comes and the context ends at once: whichever the waiter sees, the turn is not lost.
func TestTurnIsNotLostWhenItsWaiterIsCancelledAsItComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 200 {
			r := flow.NewFIFO(flow.OrderingOptions{})
			first, second, third := wait(t, r, ""), wait(t, r, ""), wait(t, r, "")
			go second.cancel(nil)
			go first.release()
			synctest.Wait()
			if second.err == nil {
				second.release()
			}
			wantIn(t, third.caller)
			third.release()
		}
	})
}

func TestResolversCloseRefusesAllWhoWaitAndAllWhoCome(t *testing.T) {
	for name, construct := range map[string]func(flow.OrderingOptions) flow.OrderingResolver{
		"FIFO": flow.NewFIFO, "keyed FIFO": flow.NewKeyedFIFO,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := construct(flow.OrderingOptions{})
				first, second, third := wait(t, r, "a"), wait(t, r, "a"), wait(t, r, "a")
				r.Close()
				r.Close()
				wantIn(t, first.caller) // a turn that has come stays
				wantRefused(t, second.caller, flow.FailureShutdown)
				wantRefused(t, third.caller, flow.FailureShutdown)
				first.release()
				wantRefused(t, wait(t, r, "a").caller, flow.FailureShutdown)
				wantRefused(t, wait(t, r, "b").caller, flow.FailureShutdown)
				g := flow.NewGate(r, nil, nil)
				wantRefused(t, admit(t, g, "a"), flow.FailureShutdown)
			})
		})
	}
}

func TestResolverThatIsClosedRefusesAStreamsLaterMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		r := flow.NewKeyedFIFO(flow.OrderingOptions{})
		c := receive(t, flow.NewReceiver(flow.NewGate(r, nil, nil), flow.NewEngine(s.Handle, flow.RetryOptions{})), testkit.KeyOf, "a1")
		r.Close()
		s.WantRunning(t, "a1")
		c.Send("b1")
		sum, err := c.Result(t)
		if f := testkit.FailureOf(t, err, flow.FailureOrdering); f.Seq != 2 || sum.Rejected != 1 {
			t.Errorf("failure %+v, %+v", f, sum)
		}
	})
}

func TestAcquireServesWaitingCallersInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := flow.NewPressureController(flow.BackpressureOptions{Capacity: 2})
		a, b, c, d := ask(t, p.Acquire), ask(t, p.Acquire), ask(t, p.Acquire), ask(t, p.Acquire)
		wantIn(t, a, b)
		wantWaits(t, c, d)
		b.adm.Release()
		b.adm.Release() // harmless: not a second slot
		wantIn(t, c)
		wantWaits(t, d)
		a.adm.Release()
		wantIn(t, d)
	})
}

func TestAcquireDoesAsItsPolicySays(t *testing.T) {
	for name, c := range map[string]struct {
		opts          flow.BackpressureOptions
		first, second string // what a caller meets at a Capacity of 1 with one in flight, and the one after
	}{
		"unlimited":      {flow.BackpressureOptions{}, "in", "in"},
		"queue":          {flow.BackpressureOptions{Capacity: 1}, "waits", "waits"},
		"queue capacity": {flow.BackpressureOptions{Capacity: 1, QueueCapacity: 1}, "waits", "refused"},
		"hard reject":    {flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureHardReject}, "refused", "refused"},
		"soft allow":     {flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureSoftAllow}, "in", "in"},
		"signal":         {flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureSoftAllowWithSignal}, "pressured", "pressured"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := flow.NewPressureController(c.opts)
				held := ask(t, p.Acquire)
				wantIn(t, held)
				if held.adm.Pressured() {
					t.Error("the first is pressured")
				}
				for _, want := range []string{c.first, c.second} {
					a, got := ask(t, p.Acquire), "in"
					switch {
					case a.waits():
						got = "waits"
					case a.err != nil:
						wantRefused(t, a, flow.FailureBackpressure)
						got = "refused"
					case a.adm.Pressured():
						got = "pressured"
					}
					if got != want {
						t.Errorf("one more: %s, want %s", got, want)
					}
				}
			})
		})
	}
}

func TestAcquireReleasedIsNoPressureAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := flow.NewPressureController(flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureSoftAllowWithSignal})
		for range 3 {
			a, b := ask(t, p.Acquire), ask(t, p.Acquire)
			if a.adm.Pressured() || !b.adm.Pressured() {
				t.Errorf("pressured: %v and %v, want only the second", a.adm.Pressured(), b.adm.Pressured())
			}
			a.adm.Release()
			a.adm.Release()
			b.adm.Release()
		}
	})
}

func TestCancelledAcquireGivesUpItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := flow.NewPressureController(flow.BackpressureOptions{Capacity: 1, QueueCapacity: 1})
		a, b := ask(t, p.Acquire), ask(t, p.Acquire)
		b.cancel(testkit.ErrHandler)
		if f := wantRefused(t, b, flow.FailureContextCancelled); !errors.Is(f, testkit.ErrHandler) {
			t.Errorf("failure %v", f)
		}
		c := ask(t, p.Acquire)
		wantWaits(t, c)
		a.adm.Release()
		wantIn(t, c)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		time.Sleep(time.Second)
		_, err := p.Acquire(ctx)
		testkit.FailureOf(t, err, flow.FailureContextCancelled)
	})
}
