package flow_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
)

var drains = flow.ShutdownOptions{DrainOnClose: true}

func TestShutdownRefusesNewStreamsFromItsStart(t *testing.T) {
	for name, o := range map[string]flow.ShutdownOptions{"without drain": {}, "with drain": drains} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{Shutdown: o})
				c := start(t, f, "a1")
				down := shutdownOf(t, f)
				late := start(t, f, "b1")
				sum, err := late.result(t)
				failureOf(t, err, flow.FailureShutdown)
				if sum.Received != 0 || late.Received() != 0 || status.Code(err) != codes.Unavailable {
					t.Errorf("Run() = %+v, %v, read %d", sum, err, late.Received())
				}
				wantWaits(t, down)
				wantNow(t, s, "a1") // it runs on
				s.finish(t, "a1")
				wantIn(t, down)
				_, err = c.result(t)
				failureOf(t, err, flow.FailureShutdown)
				_, err = start(t, f, "b1").result(t) // for good
				failureOf(t, err, flow.FailureShutdown)
			})
		})
	}
}

func TestShutdownReadsStreamsNoFurther(t *testing.T) {
	for name, o := range map[string]flow.ShutdownOptions{"without drain": {}, "with drain": drains} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{Ordering: keyed, Shutdown: o})
				c, silent := start(t, f, "a1"), start(t, f)
				down := shutdownOf(t, f)
				c.Send("b1", "c1") // one returns from the recv that was blocked: it is not received
				c.End()
				wantNow(t, s, "a1")
				if n := c.Received(); n > 2 {
					t.Errorf("recv was called %d times", n)
				}
				s.finish(t, "a1")
				sum, err := c.result(t)
				failureOf(t, err, flow.FailureShutdown) // what it didn't receive, it lost: its EOF doesn't end it well
				if sum.Received != 1 || sum.Succeeded != 1 || sum.Committed != 1 {
					t.Errorf("Run() = %+v", sum)
				}
				sum, err = silent.result(t) // although its recv is still blocked
				failureOf(t, err, flow.FailureShutdown)
				if sum.Received != 0 {
					t.Errorf("Run() = %+v", sum)
				}
				wantIn(t, down)
			})
		})
	}
}

func TestDrainRunsAllThatWasAcceptedRetriesIncluded(t *testing.T) {
	for name, ordering := range map[string]flow.OrderingOptions{"stream": keyed, "flow": flowKeyed} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{
					Ordering: ordering, Shutdown: drains, Backpressure: flow.BackpressureOptions{Capacity: 2},
					Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
				})
				c := start(t, f, "a1", "a2", "b1", "c1", "c2")
				other := start(t, f, "x1")
				s.fail(t, "a1", errHandler)
				down := shutdownOf(t, f)
				s.fail(t, "b1", errHandler) // it is tried again, too
				time.Sleep(time.Second)
				s.finishAll(t)
				wantIn(t, down)
				for call, n := range map[*call]uint64{c: 5, other: 1} {
					sum, err := call.result(t)
					failureOf(t, err, flow.FailureShutdown)
					if sum.Succeeded != n || sum.Committed != n {
						t.Errorf("Run() = %+v", sum)
					}
				}
			})
		})
	}
}

func TestStreamWhoseEndArrivesBeforeItsDrainIsOverEndsWell(t *testing.T) {
	for name, before := range map[string]bool{"before Shutdown": true, "during the drain": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{Shutdown: drains})
				c := start(t, f, "a1", "a2")
				if before {
					c.End()
				}
				wantNow(t, s, "a1")
				down := shutdownOf(t, f)
				s.finish(t, "a1")
				if !before {
					c.End()
				}
				s.finishAll(t)
				wantIn(t, down)
				if sum, err := c.result(t); err != nil || sum.Succeeded != 2 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
			})
		})
	}
}

func TestShutdownWithoutDrainDropsWhatWaitsAndLetsTheRunningFinish(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		var mu sync.Mutex
		var failures []*flow.Failure
		asked := 0
		f := mustNew(t, s.handle, flow.Options{
			Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 2},
			Retry:     flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { asked++; return flow.SkipMessage },
			Observer: func(_ context.Context, e flow.Event) {
				if e.Kind == flow.EventFailure {
					mu.Lock()
					defer mu.Unlock()
					failures = append(failures, e.Failure)
				}
			},
		})
		c := start(t, f, "retry1", "retry2", "b1", "b2", "c1", "d1")
		s.fail(t, "retry1", errHandler)
		wantNow(t, s, "b1 c1")
		down := shutdownOf(t, f)
		if st := f.Stats(); st.Waiting != 0 || st.InFlight != 2 || st.Total.Dropped != 3 || st.Total.Failed != 1 {
			t.Errorf("Stats() = %+v, want what waited dropped at once", st)
		}
		wantNow(t, s, "b1 c1") // and nothing cancelled by it
		wantWaits(t, down)
		s.fail(t, "c1", errHandler) // its next try would have to wait
		s.finish(t, "b1")
		wantIn(t, down)
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureShutdown)
		if sum.Succeeded != 1 || sum.Failed != 2 || sum.Dropped != 3 || fmt.Sprint(sum.Unsettled) != "[1 2 4 5 6]" {
			t.Errorf("Run() = %+v", sum)
		}
		conserved(t, sum)
		if len(failures) != 2 || asked != 0 {
			t.Fatalf("%d failures, OnFailure asked %d times", len(failures), asked)
		}
		for _, fail := range failures {
			if failureOf(t, fail, flow.FailureShutdown); !errors.Is(fail, errHandler) || fail.Attempts != 1 {
				t.Errorf("failure %+v, want the last error as its cause", fail)
			}
		}
	})
}

func TestFailureWhileShuttingDownStillComesToOnFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, r := newStage(), &refusals{}
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed, OnFailure: r.skip})
		c := start(t, f, "a1", "b1")
		down := shutdownOf(t, f)
		s.fail(t, "a1", errHandler)
		r.want(t, flow.FailureHandlerError, "a1")
		wantNow(t, s, "b1")
		s.finish(t, "b1")
		wantIn(t, down)
		if sum, _ := c.result(t); sum.Failed != 1 || sum.Committed != 2 {
			t.Errorf("Run() = %+v", sum)
		}
	})
}

func TestShutdownWakesAStreamThatIsNotReadForItsBound(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{MaxPending: 2, Shutdown: drains})
		c := start(t, f, "a1", "a2", "a3", "a4")
		wantNow(t, s, "a1")
		down := shutdownOf(t, f)
		s.finishAll(t)
		wantIn(t, down)
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureShutdown)
		if sum.Received != 2 || sum.Succeeded != 2 || c.Received() != 2 {
			t.Errorf("Run() = %+v, read %d", sum, c.Received())
		}
	})
}

func TestShutdownWhileStreamsStartWaitsForAllThatStarted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := mustNew(t, func(context.Context, flow.Message[string]) error {
			time.Sleep(time.Second)
			return nil
		}, flow.Options{Shutdown: drains})
		var mu sync.Mutex
		var wg sync.WaitGroup
		outcomes := map[string]int{}
		for range 100 {
			wg.Go(func() {
				ch := make(chan string, 1)
				ch <- "a1"
				close(ch)
				sum, err := f.Run(context.Background(), flow.FromChan(context.Background(), ch))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil && sum.Succeeded == 1:
					outcomes["ran"]++
				case flow.ClassifyFailure(err) == flow.FailureShutdown && sum.Received == sum.Succeeded:
					outcomes["refused"]++
				default:
					outcomes[fmt.Sprint(sum, err)]++
				}
			})
			wg.Go(func() {
				if err := f.Shutdown(context.Background()); err != nil {
					t.Error(err)
				}
				if st := f.Stats(); st.InFlight != 0 || st.Waiting != 0 {
					t.Errorf("after Shutdown: %+v", st)
				}
			})
		}
		wg.Wait()
		if outcomes["ran"]+outcomes["refused"] != 100 {
			t.Errorf("%v", outcomes)
		}
	})
}
