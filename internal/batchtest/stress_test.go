package batchtest_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
)

// TestBatchStressConserves has streams of all orders meet handlers, OnFailures and Observers that do anything, and ends them
// in all ways. Whatever happened, everything ends and adds up.
func TestBatchStressConserves(t *testing.T) {
	end := time.Now().Add(time.Second)
	for round := 0; time.Now().Before(end) && !t.Failed(); round++ {
		o := flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingMode(rand.IntN(3))}, MaxPending: 1 + rand.IntN(100)}
		if o.Ordering.Mode != flow.OrderingNone {
			o.Ordering.Scope = flow.OrderingScope(rand.IntN(2))
		}
		o.Backpressure.Capacity = 1 + rand.IntN(4)
		o.Batch = flow.BatchOptions{MaxMessages: 1 + rand.IntN(20), NoIsolation: rand.IntN(3) == 0}
		if rand.IntN(2) == 0 {
			o.Batch.Linger = time.Duration(rand.IntN(1000)) * time.Microsecond
		}
		if rand.IntN(2) == 0 {
			o.Batch.MaxBytes = int64(1 + rand.IntN(50))
		}
		o.Retry = flow.RetryOptions{MaxAttempts: 1 + rand.IntN(3), Backoff: time.Duration(rand.IntN(300)) * time.Microsecond}
		o.Shutdown.DrainOnClose = rand.IntN(2) == 0
		o.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction {
			return flow.FailureAction([]int{0, 1, 1, 1, 1, 1, 2, 2}[rand.IntN(8)])
		}
		if rand.IntN(2) == 0 {
			o.Observer = func(_ context.Context, e flow.Event) {
				if rand.IntN(3000) == 0 {
					panic("the Observer panics")
				}
			}
		}
		f := testkit.NewBatch(t, func(_ context.Context, batch []flow.Message[string], errs []error) error {
			switch rand.IntN(30) {
			case 0, 1:
				return errFails
			case 2:
				panic(errFails)
			case 3:
				runtime.Goexit()
			case 4:
				time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
			}
			for i := range batch {
				switch rand.IntN(40) {
				case 0:
					errs[i] = errFails
				case 1:
					errs[i] = flow.ErrNotAttempted
				}
			}
			return nil
		}, o)
		var streams sync.WaitGroup
		for range 6 {
			streams.Go(func() {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				left, cancelAt := rand.IntN(400), rand.IntN(1000)
				sum, err := f.Run(ctx, func() (string, error) {
					if left == cancelAt {
						cancel()
					}
					if left--; left < 0 {
						return "", io.EOF
					}
					return fmt.Sprint(string(rune('a'+rand.IntN(8))), left), nil
				})
				testkit.CheckConserved(t, sum)
				if err == nil && len(sum.Unsettled) > 0 {
					t.Errorf("ended well with %+v", sum)
				}
			})
		}
		down := make(chan struct{})
		go func() {
			defer close(down)
			time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond)
			switch rand.IntN(3) {
			case 0:
				_ = f.Close()
			case 1:
				_ = f.Shutdown(context.Background())
			}
		}()
		ended := make(chan struct{})
		go func() { streams.Wait(); <-down; close(ended) }()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Fatalf("round %d does not end: %+v, with %+v", round, f.Stats(), o)
		}
		if st := f.Stats(); st.Streams != 0 || st.InFlight != 0 || st.Calls != 0 || st.Waiting != 0 || st.ActiveKeys != 0 {
			t.Errorf("Stats of what has ended: %+v", st)
		}
	}
}
