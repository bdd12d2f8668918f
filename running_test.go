package flow_test

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
)

// startStream is start by Flow.Start: the test may look at the stream under way.
func startStream(t *testing.T, f *flow.Flow[string], values ...string) (*flow.Stream, *flowtest.Source[string], context.CancelCauseFunc) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	source := flowtest.NewSource(t, values...)
	s := f.Start(ctx, source.Recv)
	t.Cleanup(func() { cancel(nil); _, _ = s.Wait() })
	synctest.Wait()
	return s, source, cancel
}

// wantSettled checks that of the first n messages exactly these are settled, and Committed says how many of the first.
func wantSettled(t *testing.T, s *flow.Stream, n uint64, settled ...uint64) {
	t.Helper()
	synctest.Wait()
	p := s.Progress()
	is := map[uint64]bool{}
	for _, seq := range settled {
		is[seq] = true
	}
	committed := uint64(0)
	for is[committed+1] {
		committed++
	}
	for seq := uint64(1); seq <= n; seq++ {
		if p.Settled(seq) != is[seq] {
			t.Errorf("message %d is settled: %v", seq, p.Settled(seq))
		}
	}
	if got := s.Committed(); got != committed || p.Committed() != committed {
		t.Errorf("Committed() = %d, that of Progress() = %d, want %d", got, p.Committed(), committed)
	}
}

func TestStartDoesNotWaitAndWaitReturnsWhatRunDoesAsOftenAsOneLikes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := newStage()
		f := mustNew(t, st.handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		s, source, _ := startStream(t, f, "a1", "b1")
		wantNow(t, st, "a1 b1")
		source.End()
		st.finishAll(t)
		sum, err := s.Wait()
		if err != nil || sum.Succeeded != 2 || sum.Committed != 2 {
			t.Errorf("Wait() = %+v, %v", sum, err)
		}
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if again, err := s.Wait(); err != nil || !reflect.DeepEqual(again, sum) {
					t.Errorf("Wait() = %+v, %v", again, err)
				}
			})
		}
		all.Wait()
		wantSettled(t, s, 2, 1, 2)
	})
}

func TestStreamsProgressIsExactWhileMessagesArePending(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := newStage()
		f := mustNew(t, st.handle, flow.Options{
			Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			Backpressure: flow.BackpressureOptions{Capacity: 3},
			Retry:        flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
			OnFailure:    func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		})
		s, source, _ := startStream(t, f, "a1", "b1", "c1", "a2", "d1", "d2")
		wantSettled(t, s, 6)
		st.finish(t, "b1")
		wantSettled(t, s, 6, 2)
		st.fail(t, "c1", flow.Permanent(errHandler)) // skipped: that settles it
		wantSettled(t, s, 6, 2, 3)
		st.fail(t, "a1", errHandler) // waits for its next try
		wantSettled(t, s, 6, 2, 3)
		st.finish(t, "d1")
		wantSettled(t, s, 6, 2, 3, 5)
		time.Sleep(time.Hour)
		st.finish(t, "a1")
		wantSettled(t, s, 6, 1, 2, 3, 5)
		source.End()
		st.finishAll(t)
		wantSettled(t, s, 6, 1, 2, 3, 4, 5, 6)
		sum, err := s.Wait()
		if err != nil || sum.Succeeded != 5 || sum.Failed != 1 {
			t.Errorf("Wait() = %+v, %v", sum, err)
		}
	})
}

func TestStreamsProgressCountsWhatIsSkippedWithItsKeyAndNotWhatHasFailed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := newStage()
		f := mustNew(t, st.handle, flow.Options{
			Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
				if f.Key == "a" {
					return flow.SkipKey
				}
				return flow.FailStream
			},
		})
		s, _, _ := startStream(t, f, "a1", "b1", "a2", "c1", "a3")
		st.fail(t, "a1", flow.Permanent(errHandler))
		wantSettled(t, s, 5, 1, 3, 5)
		st.finish(t, "c1")
		wantSettled(t, s, 5, 1, 3, 4, 5)
		st.fail(t, "b1", flow.Permanent(errHandler))
		sum, err := s.Wait()
		failureOf(t, err, flow.FailureHandlerError)
		if !reflect.DeepEqual(sum.Unsettled, []uint64{2}) {
			t.Errorf("Wait() = %+v", sum)
		}
		wantSettled(t, s, 5, 1, 3, 4, 5) // as at the end
	})
}

// What lies in the mailbox, and what a long run has done so far, shows too.
func TestStreamsProgressIsExactAfterManyQuickMessages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
			if m.Key == "slow" {
				time.Sleep(time.Hour)
			}
			return nil
		}, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingFIFO}, MaxPending: 10_000})
		var values []string
		for range 5000 {
			values = append(values, "quick")
		}
		values = append(values, "slow")
		for range 100 {
			values = append(values, "quick")
		}
		s, source, _ := startStream(t, f, values...)
		time.Sleep(time.Minute)
		p := s.Progress()
		if p.Committed() != 5000 || s.Committed() != 5000 || p.Settled(5001) || p.Settled(5101) {
			t.Errorf("committed %d, and %d by Progress", s.Committed(), p.Committed())
		}
		source.End()
		time.Sleep(time.Hour)
		if sum, err := s.Wait(); err != nil || sum.Committed != 5101 || s.Committed() != 5101 {
			t.Errorf("Wait() = %+v, %v; Committed() = %d", sum, err, s.Committed())
		}
	})
}

func TestStreamsCommittedNeverGoesBack(t *testing.T) {
	f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
		if m.Seq%7 == 0 {
			return flow.Permanent(errHandler)
		}
		return nil
	}, flow.Options{
		Ordering:  flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
	})
	source := flowtest.NewSource[string](t)
	s := f.Start(t.Context(), source.Recv)
	go func() {
		for i := range 20_000 {
			source.Send(string(rune('a' + i%20)))
		}
		source.End()
	}()
	over := make(chan struct{})
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			var last, exact uint64
			for {
				if now := s.Committed(); now < last {
					t.Errorf("Committed() = %d after %d", now, last)
				} else {
					last = now
				}
				p := s.Progress()
				if now := p.Committed(); now < exact || now < last {
					t.Errorf("Progress() has committed %d after %d, and Committed() = %d", now, exact, last)
				} else {
					exact = now
				}
				select {
				case <-over:
					return
				default:
				}
			}
		})
	}
	sum, err := s.Wait()
	close(over)
	all.Wait()
	if err != nil || sum.Committed != 20_000 || s.Committed() != 20_000 {
		t.Errorf("Wait() = %+v, %v; Committed() = %d", sum, err, s.Committed())
	}
}

func TestStreamThatIsRefusedOrClosedMayBeAskedAllTheSame(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := newStage()
		f := mustNew(t, st.handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		s, _, _ := startStream(t, f, "a1", "b1", "a2")
		st.finish(t, "b1")
		_ = f.Close()
		sum, err := s.Wait()
		failureOf(t, err, flow.FailureShutdown)
		if sum.Received != 3 || sum.Succeeded != 1 || sum.Dropped != 1 {
			t.Errorf("Wait() = %+v", sum)
		}
		wantSettled(t, s, 3, 2)

		late, _, _ := startStream(t, f, "c1")
		sum, err = late.Wait()
		failureOf(t, err, flow.FailureShutdown)
		if sum.Received != 0 || late.Committed() != 0 || late.Progress().Committed() != 0 {
			t.Errorf("a stream that is refused: %+v, %d committed", sum, late.Committed())
		}
	})
}

func TestStreamWhoseContextEndsReturnsFromWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := newStage()
		f := mustNew(t, st.handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		s, _, cancel := startStream(t, f, "a1", "a2")
		why := errors.New("gone")
		cancel(why)
		sum, err := s.Wait()
		if f := failureOf(t, err, flow.FailureContextCancelled); !errors.Is(f, why) {
			t.Errorf("Wait() = %v", err)
		}
		if sum.Failed != 1 || sum.Dropped != 1 {
			t.Errorf("Wait() = %+v", sum)
		}
	})
}

func TestStartsProgressIsThatOfNothingBeforeAnythingIsReceived(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := mustNew(t, newStage().handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		source := flowtest.NewSource[string](t)
		s := f.Start(t.Context(), source.Recv)
		if s.Committed() != 0 || s.Progress().Committed() != 0 || s.Progress().Settled(1) {
			t.Error("something is settled") // though its goroutine may not have begun
		}
		source.End()
		if _, err := s.Wait(); err != nil {
			t.Error(err)
		}
	})
}
