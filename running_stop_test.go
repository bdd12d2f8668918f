package flow_test

import (
	"context"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
)

func TestStopDropsWhatWaitsAndLetsWhatRunsFinishWithItsContextUnharmed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := newStage()
		ended := make(chan error, 4)
		f := mustNew(t, func(ctx context.Context, m flow.Message[string]) error {
			err := st.handle(ctx, m)
			ended <- ctx.Err()
			return err
		}, flow.Options{
			Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			Backpressure: flow.BackpressureOptions{Capacity: 2},
			Retry:        flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
		})
		s, _, _ := startStream(t, f, "a1", "b1", "a2", "c1", "d1")
		st.fail(t, "b1", errHandler) // b1 waits for its next try, c1 runs
		wantNow(t, st, "a1 c1")
		other, end, _ := startStream(t, f, "x1")
		s.Stop()
		s.Stop()
		wantSettled(t, s, 5)
		st.finish(t, "a1") // a2 and d1 do not start
		st.finish(t, "c1")
		sum, err := s.Wait()
		failureOf(t, err, flow.FailureShutdown)
		if sum.Received != 5 || sum.Succeeded != 2 || sum.Dropped != 2 || sum.Failed != 1 {
			t.Errorf("Wait() = %+v", sum)
		}
		wantSettled(t, s, 5, 1, 4)
		for range 3 {
			if err := <-ended; err != nil {
				t.Errorf("a handler's context has ended: %v", err)
			}
		}
		wantNow(t, st, "x1") // another stream of the Flow goes on
		end.End()
		st.finishAll(t)
		if _, err := other.Wait(); err != nil {
			t.Errorf("the other stream: %v", err)
		}
	})
}

func TestStopReadsNoFurtherAndDoesNotWakeRecv(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := newStage()
		f := mustNew(t, st.handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		s, source, _ := startStream(t, f, "a1")
		st.finish(t, "a1")
		s.Stop()
		sum, err := s.Wait() // though recv is blocked
		failureOf(t, err, flow.FailureShutdown)
		source.Send("a2")
		wantNow(t, st, "")
		if sum.Received != 1 || sum.Succeeded != 1 {
			t.Errorf("Wait() = %+v", sum)
		}
		wantSettled(t, s, 2, 1)
	})
}

func TestStopAfterTheEndChangesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := newStage()
		f := mustNew(t, st.handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		s, source, _ := startStream(t, f, "a1")
		source.End()
		st.finishAll(t)
		if _, err := s.Wait(); err != nil {
			t.Fatal(err)
		}
		s.Stop()
		if sum, err := s.Wait(); err != nil || sum.Succeeded != 1 {
			t.Errorf("Wait() = %+v, %v", sum, err)
		}
		never := f.Start(t.Context(), flowtest.NewSource(t, "b1").Recv) // stopped at once, wherever it is
		never.Stop()
		st.finishAll(t)
		if sum, err := never.Wait(); err == nil && sum.Succeeded != 1 || err != nil && flow.ClassifyFailure(err) != flow.FailureShutdown {
			t.Errorf("Wait() = %+v, %v", sum, err)
		}
	})
}
