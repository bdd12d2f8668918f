package flow_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
)

// The wait between two tries: what a message keeps in it, what it gives up, and what cuts it short.

func TestMessageWaitingForItsNextTryGivesUpItsSlotAndKeepsItsKey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
			Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Minute},
		})
		c := start(t, f, "a1", "a2", "b1", "c1")
		wantNow(t, s, "a1")
		s.fail(t, "a1", errHandler)
		wantNow(t, s, "b1") // not a2
		if st := f.Stats(); st.InFlight != 1 || st.Waiting != 3 || st.ActiveKeys != 3 {
			t.Errorf("stats are %+v", st)
		}
		s.finish(t, "b1", "c1")
		pass(time.Minute - 1)
		wantNow(t, s, "")
		pass(1)
		wantNow(t, s, "a1")
		s.finish(t, "a1")
		wantNow(t, s, "a2")
		c.End()
		s.finishAll(t)
		if sum, err := c.result(t); err != nil || sum.Retried != 1 || sum.Succeeded != 4 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestInFIFOAllTriesOfAMessageComeBeforeTheNextMessage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second}}), "a1", "b1")
		c.End()
		s.fail(t, "a1", errHandler)
		pass(time.Second)
		s.fail(t, "a1", errHandler)
		pass(time.Second)
		s.finishAll(t)
		if got := s.history(); got != "a1 a1 a1 b1" {
			t.Errorf("started %q", got)
		}
	})
}

func TestDueTryWaitsForASlotUnderEveryPolicyThatHasSlots(t *testing.T) {
	for name, o := range map[string]flow.BackpressureOptions{
		"Queue":         {Capacity: 1},
		"QueueCapacity": {Capacity: 1, QueueCapacity: 1},
		"HardReject":    {Capacity: 1, Policy: flow.BackpressureHardReject},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{
					Ordering: keyed, Backpressure: o, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
				})
				c := start(t, f, "a1")
				s.fail(t, "a1", errHandler)
				c.Send("b1")
				if name == "QueueCapacity" {
					c.Send("c1")
				}
				pass(time.Minute) // a1 is due, and never refused
				wantNow(t, s, "b1")
				c.End()
				s.finishAll(t)
				if sum, err := c.result(t); err != nil || sum.Rejected != 0 || sum.Retried != 1 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
			})
		})
	}
}

func TestSoftAllowRunsADueTryBeyondCapacity(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Ordering:     keyed,
			Backpressure: flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureSoftAllowWithSignal},
			Retry:        flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
		})
		c := start(t, f, "a1")
		s.fail(t, "a1", errHandler)
		c.Send("b1")
		pass(time.Second)
		wantNow(t, s, "a1 b1")
		c.End()
		s.finishAll(t)
	})
}

// faultsHeard keeps what the Observer hears of failed messages.
type faultsHeard struct {
	mu  sync.Mutex
	got []*flow.Failure
}

func (f *faultsHeard) observe(_ context.Context, e flow.Event) {
	if e.Kind != flow.EventFailure {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got = append(f.got, e.Failure)
}

func TestWaitForTheNextTryIsCutShort(t *testing.T) {
	shutdown := func(f *flow.Flow[string], _ *call) { go f.Shutdown(context.Background()) }
	for name, c := range map[string]struct {
		shutdown flow.ShutdownOptions
		end      func(f *flow.Flow[string], c *call)
		after    time.Duration
		kind     flow.FailureKind
	}{
		"cancel":   {end: func(_ *flow.Flow[string], c *call) { c.cancel(nil) }, kind: flow.FailureContextCancelled},
		"Close":    {end: func(f *flow.Flow[string], _ *call) { _ = f.Close() }, kind: flow.FailureShutdown},
		"Shutdown": {end: shutdown, kind: flow.FailureShutdown},
		"the end of the grace period": {shutdown: flow.ShutdownOptions{DrainOnClose: true, GracePeriod: time.Minute},
			end: shutdown, after: time.Minute, kind: flow.FailureShutdown},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s, heard := newStage(), new(faultsHeard)
				f := mustNew(t, s.handle, flow.Options{
					Shutdown: c.shutdown, Observer: heard.observe,
					Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
				})
				r := start(t, f, "a1", "a2")
				s.fail(t, "a1", errHandler)
				if name == "cancel" {
					r.End()
				}
				c.end(f, r)
				if c.after > 0 {
					pass(c.after - 1)
					if r.over() {
						t.Fatal("cut short before the grace period was over")
					}
					pass(1)
				}
				sum, err := r.result(t)
				failureOf(t, err, c.kind)
				if sum.Failed != 1 || sum.Dropped != 1 || sum.Retried != 0 || !slices.Equal(sum.Unsettled, []uint64{1, 2}) {
					t.Errorf("summary is %+v", sum)
				}
				heard.mu.Lock()
				defer heard.mu.Unlock()
				if len(heard.got) != 1 || heard.got[0].Kind != c.kind || !errors.Is(heard.got[0], errHandler) || heard.got[0].Attempts != 1 {
					t.Errorf("the message failed with %+v, want %v after its last error", heard.got, c.kind)
				}
			})
		})
	}
}

func TestShutdownThatCutsATrysWaitCancelsNothing(t *testing.T) {
	t.Run("observed by nobody", func(t *testing.T) { shutdownCutsATrysWait(t, nil) })
	t.Run("observed", func(t *testing.T) { shutdownCutsATrysWait(t, func(context.Context, flow.Event) {}) })
}

func shutdownCutsATrysWait(t *testing.T, observer flow.Observer) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Ordering: keyed, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour}, Observer: observer,
		})
		c := start(t, f, "a1", "b1")
		s.fail(t, "a1", errHandler)
		ended := make(chan error, 1)
		go func() { ended <- f.Shutdown(context.Background()) }()
		wantNow(t, s, "b1")
		pass(time.Minute)
		s.finish(t, "b1")
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureShutdown)
		if sum.Succeeded != 1 || sum.Failed != 1 || !slices.Equal(sum.Unsettled, []uint64{1}) {
			t.Errorf("summary is %+v", sum)
		}
		if err := <-ended; err != nil {
			t.Errorf("Shutdown() = %v: nothing was cut off", err)
		}
	})
}

func TestDrainWaitsForTheNextTry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Shutdown: flow.ShutdownOptions{DrainOnClose: true}, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
		})
		c := start(t, f, "a1", "a2")
		s.fail(t, "a1", errHandler)
		ended := make(chan error, 1)
		go func() { ended <- f.Shutdown(context.Background()) }()
		pass(time.Hour)
		s.finish(t, "a1", "a2")
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureShutdown) // its client has not said that it had sent all
		if sum.Succeeded != 2 || sum.Retried != 1 || status.Code(err) != codes.Unavailable {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
		if err := <-ended; err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
	})
}

func TestFailureOfAnotherMessageCutsTheWaitShort(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour}})
		c := start(t, f, "a1", "b1", "a2")
		s.fail(t, "a1", errHandler)
		s.fail(t, "b1", flow.Permanent(errHandler))
		sum, err := c.result(t)
		if fault := failureOf(t, err, flow.FailureHandlerError); fault.Seq != 2 {
			t.Errorf("failure is %+v", fault)
		}
		if sum.Failed != 2 || sum.Dropped != 1 || sum.Retried != 0 {
			t.Errorf("summary is %+v", sum)
		}
	})
}
