package flow_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

const lingerTime = 100 * time.Millisecond

func lingering(o flow.Options) flow.Options {
	o.Batch.Linger = lingerTime
	return o
}

// wantNoneUntil says that no call begins before d has passed, and that then those of want are under way.
func (s *batchStage) wantNoneUntil(t testing.TB, d time.Duration, want string) {
	t.Helper()
	s.wantCalls(t, "")
	time.Sleep(d - 1)
	s.wantCalls(t, "")
	time.Sleep(time.Nanosecond)
	s.wantCalls(t, want)
}

func TestBatchLingersForMoreAndNotLonger(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, lingering(flow.Options{}))
		c := start(t, f, "a1")
		time.Sleep(lingerTime / 2)
		c.Send("a2")
		synctest.Wait()
		start(t, f, "b1")
		s.wantNoneUntil(t, lingerTime/2, "a1 a2 b1")
		s.succeed(t, "a1 a2 b1")
	})
}

func TestBatchThatIsFullDoesNotLinger(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, lingering(flow.Options{Batch: flow.BatchOptions{MaxMessages: 2}}))
		c := start(t, f, "a1")
		s.wantCalls(t, "")
		c.Send("a2")
		s.wantCalls(t, "a1 a2")
		s.succeed(t, "a1 a2")
	})
}

func TestBatchOfWhatIsLeftOverDoesNotLinger(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, lingering(flow.Options{Batch: flow.BatchOptions{MaxMessages: 2}}))
		release := occupied(t, f, &s)
		c := start(t, f, "a1", "a2", "a3")
		release()
		s.succeed(t, "a1 a2")
		s.wantCalls(t, "a3")
		s.succeed(t, "a3")
		c.Send("a4")
		s.wantNoneUntil(t, lingerTime, "a4")
		s.succeed(t, "a4")
	})
}

func TestBatchOfWhatIsTriedAgainDoesNotLinger(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, lingering(flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}}))
		start(t, f, "a1")
		s.wantNoneUntil(t, lingerTime, "a1")
		s.give(t, "a1", errHandler)
		s.wantNoneUntil(t, time.Second, "a1")
		s.succeed(t, "a1")
	})
}

func TestBatchStaleLingerTimer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, lingering(flow.Options{Batch: flow.BatchOptions{MaxMessages: 2}}))
		c := start(t, f, "a1")
		time.Sleep(lingerTime / 2)
		c.Send("a2") // full: its timer is still to fire
		s.succeed(t, "a1 a2")
		c.Send("a3")
		s.wantNoneUntil(t, lingerTime, "a3")
		s.succeed(t, "a3")

		gone := start(t, f, "b1")
		time.Sleep(lingerTime / 2)
		gone.cancel(nil) // nothing is left of the batch
		gone.End()
		gone.wantSummary(t, flow.Summary{Dropped: 1})
		c.Send("a4")
		s.wantNoneUntil(t, lingerTime, "a4")
		s.succeed(t, "a4")
	})
}

func TestBatchLingerEndsAtEOF(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, lingering(flow.Options{}))
		a, b := start(t, f, "a1"), start(t, f, "b1")
		other := start(t, f) // it may send, but it is none of the batch
		time.Sleep(lingerTime / 2)
		a.End()
		s.wantCalls(t, "")
		b.End()
		s.wantCalls(t, "a1 b1")
		s.succeed(t, "a1 b1")
		a.wantSummary(t, flow.Summary{Succeeded: 1})
		other.End()
	})
}

func TestBatchLingerEndsAtMaxPending(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, lingering(flow.Options{MaxPending: 2}))
		a := start(t, f, "a1")
		b := start(t, f, "b1")
		a.Send("a2")
		s.wantCalls(t, "")
		b.Send("b2")
		s.wantCalls(t, "a1 b1 a2 b2")
		s.succeed(t, "a1 b1 a2 b2")
		b.Send("b3")
		s.wantNoneUntil(t, lingerTime, "b3")
		s.succeed(t, "b3")
	})
}

func TestBatchLingerEndsAtMaxPendingBytes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, lingering(flow.Options{MaxPendingBytes: 6}))
		a := start(t, f, "a1", "a2")
		s.wantCalls(t, "")
		a.Send("a3")
		s.wantCalls(t, "a1 a2 a3")
		s.succeed(t, "a1 a2 a3")
	})
}

func TestBatchLingerEndsAtDrain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, lingering(flow.Options{Shutdown: flow.ShutdownOptions{DrainOnClose: true}}))
		c := start(t, f, "a1")
		s.wantCalls(t, "")
		go func() { _ = f.Shutdown(context.Background()) }()
		s.wantCalls(t, "a1")
		s.succeed(t, "a1")
		c.wantSummary(t, flow.Summary{Succeeded: 1})
	})
}

func TestBatchLastPartBatchRunsInDrain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{
			Batch: flow.BatchOptions{MaxMessages: 2}, Shutdown: flow.ShutdownOptions{DrainOnClose: true},
		})
		release := occupied(t, f, &s)
		c := start(t, f, "a1", "a2", "a3")
		down := make(chan error, 1)
		go func() { down <- f.Shutdown(context.Background()) }()
		synctest.Wait()
		release()
		s.succeed(t, "a1 a2", "a3")
		if err := <-down; err != nil {
			t.Error(err)
		}
		c.wantSummary(t, flow.Summary{Succeeded: 3})
	})
}

func TestBatchThatFormsIsDroppedWithoutDrain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, lingering(flow.Options{}))
		c := start(t, f, "a1", "a2")
		if err := f.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		c.wantSummary(t, flow.Summary{Dropped: 2})
		s.wantPast(t, "")
	})
}

func TestBatchLingersFromWhenItCouldHaveBegun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, lingering(flow.Options{}))
		release := occupied(t, f, &s)
		start(t, f, "a1")
		time.Sleep(time.Second)
		release()
		s.wantNoneUntil(t, lingerTime, "a1")
		s.succeed(t, "a1")
	})
}
