package flow_test

import (
	"context"
	"runtime"
	"testing"
	"time"

	"example.com/flow"
)

func TestOwnResolverIsAskedWithTheEmptyKeyInOneFIFOWithoutAKeyFunction(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		c := k.receive(t, s, nil, flow.Options{}, "a1", "b1", "c1")
		c.End()
		for _, v := range []string{"a1", "b1", "c1"} {
			k.grant(t, "")
			wantNow(t, s, v)
			s.finish(t, v)
		}
		k.want(t, "   /   ") // three times "", and each released
		if sum, err := c.result(t); err != nil || sum.Succeeded != 3 {
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
			bubble(t, func(t *testing.T) {
				s, k := newStage(), newKeeper()
				r := flow.NewReceiver(flow.NewGate(k, nil, nil), flow.NewEngine(s.handle, flow.RetryOptions{}))
				c, other := receive(t, r, keyOf, "a1", "a2", "b1"), receive(t, r, keyOf, "x1")
				k.grant(t, "x", "b")
				k.answer(t, "a", how)
				s.finish(t, "x1")
				if s.now() != "" { // it got its turn, and the release is to come
					s.finish(t, "a1")
				}
				sum, err := c.result(t)
				failureOf(t, err, flow.FailureInternal)
				if sum.Received != 3 || sum.Dropped != 1 {
					t.Errorf("Receive() = %+v, want a2 dropped", sum)
				}
				conserved(t, sum)
				other.End()
				if _, err := other.result(t); err != nil {
					t.Errorf("the other stream: %v", err)
				}
			})
		})
	}
}

func TestOwnResolverMayGiveATurnWithoutARelease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		c := k.receive(t, s, keyOf, flow.Options{}, "a1", "a2")
		c.End()
		for range 2 {
			k.answer(t, "a", func() (flow.ReleaseFunc, error) { return nil, nil })
			s.finishAll(t)
		}
		if sum, err := c.result(t); err != nil || sum.Succeeded != 2 {
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
			bubble(t, func(t *testing.T) {
				s, k := newStage(), newKeeper()
				c := k.receive(t, s, keyOf, flow.Options{Backpressure: o}, "a1", "b1", "c1", "d1")
				c.End()
				k.grant(t, "a", "b", "c", "d")
				wantNow(t, s, "a1")
				s.finishAll(t)
				if sum, err := c.result(t); err != nil || sum.Succeeded != 4 {
					t.Errorf("Receive() = %+v, %v", sum, err)
				}
			})
		})
	}
}

func TestShutdownEndsTheWaitForAnOwnResolver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		shutdown := flow.NewShutdownCoordinator(flow.ShutdownOptions{})
		r := flow.NewReceiver(flow.NewGate(k, nil, shutdown), flow.NewEngine(s.handle, flow.RetryOptions{}))
		c := receive(t, r, keyOf, "a1", "a2", "b1")
		k.grant(t, "b")
		done := make(chan error, 1)
		go func() { done <- shutdown.Shutdown(context.Background()) }()
		wantNow(t, s, "b1") // what runs is not disturbed
		s.finish(t, "b1")
		if err := <-done; err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureShutdown)
		if sum.Succeeded != 1 || sum.Dropped != 2 {
			t.Errorf("Receive() = %+v, want b1 succeeded and the others dropped", sum)
		}
		k.want(t, "a b / b")
	})
}

func TestDrainAsksAnOwnResolverForAllThatIsAccepted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, k := newStage(), newKeeper()
		shutdown := flow.NewShutdownCoordinator(flow.ShutdownOptions{DrainOnClose: true, GracePeriod: time.Minute})
		r := flow.NewReceiver(flow.NewGate(k, nil, shutdown), flow.NewEngine(s.handle, flow.RetryOptions{}))
		c := receive(t, r, keyOf, "a1", "a2")
		done := make(chan error, 1)
		go func() { done <- shutdown.Shutdown(context.Background()) }()
		for range 2 {
			k.grant(t, "a")
			s.finishAll(t)
		}
		if err := <-done; err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureShutdown)
		if sum.Succeeded != 2 {
			t.Errorf("Receive() = %+v", sum)
		}
	})
}

func TestGateOfOwnResolverOrdersReceiversOfDifferentProcesses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		lock := flow.NewKeyedFIFO(flow.OrderingOptions{}) // stands for one that both processes ask
		asks := resolverFunc(lock.Wait)
		s := newStage()
		one := flow.NewReceiver(flow.NewGate(asks, nil, nil), flow.NewEngine(s.handle, flow.RetryOptions{}))
		two := flow.NewReceiver(flow.NewGate(asks, nil, nil), flow.NewEngine(s.handle, flow.RetryOptions{}))
		first := receive(t, one, keyOf, "a1", "a2")
		second := receive(t, two, keyOf, "a3", "b1")
		first.End()
		second.End()
		wantNow(t, s, "a1 b1")
		s.finish(t, "a1")
		wantNow(t, s, "a3 b1") // a2 asked when a1 had released: behind a3
		s.finishAll(t)
		for _, c := range []*call{first, second} {
			if _, err := c.result(t); err != nil {
				t.Error(err)
			}
		}
	})
}
