package flowdebug_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowdebug"
	"example.com/flow/flowtest"
)

func TestBatchOfWhichSomeIsNotAttemptedIsCountedOnce(t *testing.T) {
	for name, outcomes := range map[string][]error{
		"behind a failure": {flow.Permanent(errors.New("no")), flow.ErrNotAttempted, flow.ErrNotAttempted},
		"the first":        {flow.ErrNotAttempted, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				page := flowdebug.New()
				calls := 0
				f, err := flow.NewBatch(func(_ context.Context, _ []flow.Message[string], errs []error) error {
					time.Sleep(200 * time.Millisecond)
					if calls++; calls == 1 {
						copy(errs, outcomes)
					}
					return nil
				}, nil, flow.Options{
					Backpressure: flow.BackpressureOptions{Capacity: 1}, Observer: page.Observer("uploads"),
					OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
					Batch:     flow.BatchOptions{MaxMessages: 3, Linger: time.Hour},
				})
				if err != nil {
					t.Fatal(err)
				}
				page.Add("uploads", f)
				source := flowtest.NewSource(t, "a", "b", "c")
				source.End()
				if _, err := f.Run(t.Context(), source.Recv); err != nil && calls != 2 {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				// The first call was of three messages, the second of one or two: of the waits, one is each message's.
				h := read(t, page, "?format=json").Flows[0].History
				n := len(h.BatchMean)
				want := "[2.5] [0] [0.2]"
				if name == "the first" {
					want = "[2] [0] [0.2]"
				}
				if got := fmt.Sprint(h.BatchMean[n-1:], h.WaitMean[n-1:], h.HandlerMean[n-1:]); got != want {
					t.Errorf("the last second's sizes, waits and durations are %s, want %s", got, want)
				}
			})
		})
	}
}

func TestBatchesAreShownByCallsAndSizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page := flowdebug.New()
		f, err := flow.NewBatch(func(context.Context, []flow.Message[string], []error) error {
			time.Sleep(time.Second)
			return nil
		}, nil, flow.Options{
			Backpressure: flow.BackpressureOptions{Capacity: 4}, Observer: page.Observer("uploads"),
			Batch: flow.BatchOptions{MaxMessages: 3, Linger: time.Hour},
		})
		if err != nil {
			t.Fatal(err)
		}
		page.Add("uploads", f)
		ch := make(chan string, 3)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = f.Run(t.Context(), flow.FromChan(t.Context(), ch))
		}()
		for range 3 {
			ch <- "a"
		}
		synctest.Wait()
		d := read(t, page, "?format=json").Flows[0]
		if d.Calls != 1 || d.InFlight != 3 || d.Capacity != 4 {
			t.Errorf("%d calls of %d messages, capacity %d", d.Calls, d.InFlight, d.Capacity)
		}
		close(ch)
		<-done
		time.Sleep(time.Second)
		h := read(t, page, "?format=json").Flows[0].History
		n := len(h.BatchMean)
		if got := fmt.Sprint(h.BatchMean[n-1:], h.BatchMax[n-1:], h.HandlerMean[n-1:]); got != "[3] [3] [1]" {
			t.Errorf("the last second's batch sizes and mean duration are %s", got)
		}
	})
}
