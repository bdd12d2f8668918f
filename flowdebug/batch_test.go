package flowdebug_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowdebug"
)

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
