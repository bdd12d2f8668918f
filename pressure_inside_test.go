package flow

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
)

// A stream whose worker thinks that somebody asks for a slot gives its own up after every message.
func TestCallerWhoseWaitIsOverAsksNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPressureController(BackpressureOptions{Capacity: 1, QueueCapacity: 2})
		first, err := p.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var waiters sync.WaitGroup
		for _, ctx := range []context.Context{t.Context(), ctx} {
			waiters.Go(func() {
				if a, err := p.Acquire(ctx); err == nil {
					a.Release()
				}
			})
		}
		want := func(when string, asking, queued, inUse int64) {
			t.Helper()
			synctest.Wait()
			if p.asking.Load() != asking || p.queued.Load() != queued || p.inUse.Load() != inUse {
				t.Errorf("%s: %d ask, %d lack, %d are in use; want %d, %d, %d",
					when, p.asking.Load(), p.queued.Load(), p.inUse.Load(), asking, queued, inUse)
			}
		}
		want("while two wait", 2, 2, 1)
		cancel()
		want("when one gave up", 1, 1, 1)
		first.Release()
		waiters.Wait()
		want("when the other has had its slot", 0, 0, 0)
	})
}
