package batchtest_test

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
)

const lingerTime = 100 * time.Millisecond

func lingering(o flow.Options) flow.Options {
	o.Batch.Linger = lingerTime
	return o
}

func TestBatchLingersForMoreAndNotLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, lingering(flow.Options{}))
		c := testkit.Start(t, f, "a1")
		time.Sleep(lingerTime / 2)
		c.Send("a2")
		synctest.Wait()
		testkit.Start(t, f, "b1")
		s.WantNoneUntil(t, lingerTime/2, "a1 a2 b1")
		s.Succeed(t, "a1 a2 b1")
	})
}

func TestBatchMayLingerUntilItIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Batch: flow.BatchOptions{MaxMessages: 3, Linger: math.MaxInt64}})
		c := testkit.Start(t, f, "a1")
		time.Sleep(time.Hour)
		s.WantCalls(t, "")
		c.Send("a2")
		s.WantCalls(t, "")
		c.Send("b1")
		s.WantCalls(t, "a1 a2 b1")
		s.Succeed(t, "a1 a2 b1")
		c.Send("a3") // not in the first moment of its shard, where any sum is less than there is
		time.Sleep(time.Hour)
		c.Send("a4")
		time.Sleep(time.Hour)
		s.WantCalls(t, "")
		c.Send("a5")
		s.WantCalls(t, "a3 a4 a5")
		s.Succeed(t, "a3 a4 a5")
	})
}

func TestBatchThatIsFullDoesNotLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, lingering(flow.Options{Batch: flow.BatchOptions{MaxMessages: 2}}))
		c := testkit.Start(t, f, "a1")
		s.WantCalls(t, "")
		c.Send("a2")
		s.WantCalls(t, "a1 a2")
		s.Succeed(t, "a1 a2")
	})
}

func TestBatchOfWhatIsLeftOverDoesNotLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, lingering(flow.Options{Batch: flow.BatchOptions{MaxMessages: 2}}))
		release := testkit.Occupy(t, f, &s)
		c := testkit.Start(t, f, "a1", "a2", "a3")
		release()
		s.Succeed(t, "a1 a2")
		s.WantCalls(t, "a3")
		s.Succeed(t, "a3")
		c.Send("a4")
		s.WantNoneUntil(t, lingerTime, "a4")
		s.Succeed(t, "a4")
	})
}

func TestBatchOfWhatIsTriedAgainDoesNotLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, lingering(flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}}))
		testkit.Start(t, f, "a1")
		s.WantNoneUntil(t, lingerTime, "a1")
		s.Return(t, "a1", testkit.ErrHandler)
		s.WantNoneUntil(t, time.Second, "a1")
		s.Succeed(t, "a1")
	})
}

func TestBatchStaleLingerTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, lingering(flow.Options{Batch: flow.BatchOptions{MaxMessages: 2}}))
		c := testkit.Start(t, f, "a1")
		time.Sleep(lingerTime / 2)
		c.Send("a2") // full: its timer is still to fire
		s.Succeed(t, "a1 a2")
		c.Send("a3")
		s.WantNoneUntil(t, lingerTime, "a3")
		s.Succeed(t, "a3")

		gone := testkit.Start(t, f, "b1")
		time.Sleep(lingerTime / 2)
		gone.Cancel(nil) // nothing is left of the batch
		gone.End()
		gone.WantSummary(t, flow.Summary{Dropped: 1})
		c.Send("a4")
		s.WantNoneUntil(t, lingerTime, "a4")
		s.Succeed(t, "a4")
	})
}

func TestBatchLingerEndsAtEOF(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, lingering(flow.Options{}))
		a, b := testkit.Start(t, f, "a1"), testkit.Start(t, f, "b1")
		other := testkit.Start(t, f) // it may send, but it is none of the batch
		time.Sleep(lingerTime / 2)
		a.End()
		s.WantCalls(t, "")
		b.End()
		s.WantCalls(t, "a1 b1")
		s.Succeed(t, "a1 b1")
		a.WantSummary(t, flow.Summary{Succeeded: 1})
		other.End()
	})
}

func TestBatchLingerEndsAtMaxPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, lingering(flow.Options{MaxPending: 2}))
		a := testkit.Start(t, f, "a1")
		b := testkit.Start(t, f, "b1")
		a.Send("a2")
		s.WantCalls(t, "")
		b.Send("b2")
		s.WantCalls(t, "a1 b1 a2 b2")
		s.Succeed(t, "a1 b1 a2 b2")
		b.Send("b3")
		s.WantNoneUntil(t, lingerTime, "b3")
		s.Succeed(t, "b3")
	})
}

func TestBatchLingerEndsAtMaxPendingBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, lingering(flow.Options{MaxPendingBytes: 6}))
		a := testkit.Start(t, f, "a1", "a2")
		s.WantCalls(t, "")
		a.Send("a3")
		s.WantCalls(t, "a1 a2 a3")
		s.Succeed(t, "a1 a2 a3")
	})
}

func TestBatchLingerEndsAtDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, lingering(flow.Options{Shutdown: flow.ShutdownOptions{DrainOnClose: true}}))
		c := testkit.Start(t, f, "a1")
		s.WantCalls(t, "")
		go func() { _ = f.Shutdown(context.Background()) }()
		s.WantCalls(t, "a1")
		s.Succeed(t, "a1")
		c.WantSummary(t, flow.Summary{Succeeded: 1})
	})
}

func TestBatchLastPartBatchRunsInDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{
			Batch: flow.BatchOptions{MaxMessages: 2}, Shutdown: flow.ShutdownOptions{DrainOnClose: true},
		})
		release := testkit.Occupy(t, f, &s)
		c := testkit.Start(t, f, "a1", "a2", "a3")
		down := make(chan error, 1)
		go func() { down <- f.Shutdown(context.Background()) }()
		synctest.Wait()
		release()
		s.Succeed(t, "a1 a2", "a3")
		if err := <-down; err != nil {
			t.Error(err)
		}
		c.WantSummary(t, flow.Summary{Succeeded: 3})
	})
}

func TestBatchThatFormsIsDroppedWithoutDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, lingering(flow.Options{}))
		c := testkit.Start(t, f, "a1", "a2")
		if err := f.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		c.WantSummary(t, flow.Summary{Dropped: 2})
		s.WantPast(t, "")
	})
}

func TestBatchLingersFromWhenItCouldHaveBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, lingering(flow.Options{}))
		release := testkit.Occupy(t, f, &s)
		testkit.Start(t, f, "a1")
		time.Sleep(time.Second)
		release()
		s.WantNoneUntil(t, lingerTime, "a1")
		s.Succeed(t, "a1")
	})
}
