package flow_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var drains = flow.ShutdownOptions{DrainOnClose: true}

func TestShutdownRefusesNewStreamsFromItsStart(t *testing.T) {
	for name, o := range map[string]flow.ShutdownOptions{"without drain": {}, "with drain": drains} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{Shutdown: o})
				c := testkit.Start(t, f, "a1")
				down := shutdownOf(t, f)
				late := testkit.Start(t, f, "b1")
				sum, err := late.Result(t)
				testkit.FailureOf(t, err, flow.FailureShutdown)
				if sum.Received != 0 || late.Received() != 0 || status.Code(err) != codes.Unavailable {
					t.Errorf("Run() = %+v, %v, read %d", sum, err, late.Received())
				}
				wantWaits(t, down)
				s.WantRunning(t, "a1") // it runs on
				s.Finish(t, "a1")
				wantIn(t, down)
				_, err = c.Result(t)
				testkit.FailureOf(t, err, flow.FailureShutdown)
				_, err = testkit.Start(t, f, "b1").Result(t) // for good
				testkit.FailureOf(t, err, flow.FailureShutdown)
			})
		})
	}
}

func TestShutdownReadsStreamsNoFurther(t *testing.T) {
	for name, o := range map[string]flow.ShutdownOptions{"without drain": {}, "with drain": drains} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed, Shutdown: o})
				c, silent := testkit.Start(t, f, "a1"), testkit.Start(t, f)
				down := shutdownOf(t, f)
				c.Send("b1", "c1") // one returns from the recv that was blocked: it is not received
				c.End()
				s.WantRunning(t, "a1")
				if n := c.Received(); n > 2 {
					t.Errorf("recv was called %d times", n)
				}
				s.Finish(t, "a1")
				sum, err := c.Result(t)
				testkit.FailureOf(t, err, flow.FailureShutdown) // what it didn't receive, it lost: its EOF doesn't end it well
				if sum.Received != 1 || sum.Succeeded != 1 || sum.Committed != 1 {
					t.Errorf("Run() = %+v", sum)
				}
				sum, err = silent.Result(t) // although its recv is still blocked
				testkit.FailureOf(t, err, flow.FailureShutdown)
				if sum.Received != 0 {
					t.Errorf("Run() = %+v", sum)
				}
				wantIn(t, down)
			})
		})
	}
}

func TestDrainRunsAllThatWasAcceptedRetriesIncluded(t *testing.T) {
	for name, ordering := range map[string]flow.OrderingOptions{"stream": testkit.Keyed, "flow": flowKeyed} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{
					Ordering: ordering, Shutdown: drains, Backpressure: flow.BackpressureOptions{Capacity: 2},
					Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
				})
				c := testkit.Start(t, f, "a1", "a2", "b1", "c1", "c2")
				other := testkit.Start(t, f, "x1")
				s.Fail(t, "a1", testkit.ErrHandler)
				down := shutdownOf(t, f)
				s.Fail(t, "b1", testkit.ErrHandler) // it is tried again, too
				time.Sleep(time.Second)
				s.FinishAll(t)
				wantIn(t, down)
				for call, n := range map[*testkit.Stream]uint64{c: 5, other: 1} {
					sum, err := call.Result(t)
					testkit.FailureOf(t, err, flow.FailureShutdown)
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
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{Shutdown: drains})
				c := testkit.Start(t, f, "a1", "a2")
				if before {
					c.End()
				}
				s.WantRunning(t, "a1")
				down := shutdownOf(t, f)
				s.Finish(t, "a1")
				if !before {
					c.End()
				}
				s.FinishAll(t)
				wantIn(t, down)
				if sum, err := c.Result(t); err != nil || sum.Succeeded != 2 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
			})
		})
	}
}

func TestShutdownWithoutDrainDropsWhatWaitsAndLetsTheRunningFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		var mu sync.Mutex
		var failures []*flow.Failure
		asked := 0
		f := testkit.New(t, s.Handle, flow.Options{
			Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 2},
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
		c := testkit.Start(t, f, "retry1", "retry2", "b1", "b2", "c1", "d1")
		s.Fail(t, "retry1", testkit.ErrHandler)
		s.WantRunning(t, "b1 c1")
		down := shutdownOf(t, f)
		if st := f.Stats(); st.Waiting != 0 || st.InFlight != 2 || st.Total.Dropped != 3 || st.Total.Failed != 1 {
			t.Errorf("Stats() = %+v, want what waited dropped at once", st)
		}
		s.WantRunning(t, "b1 c1") // and nothing cancelled by it
		wantWaits(t, down)
		s.Fail(t, "c1", testkit.ErrHandler) // its next try would have to wait
		s.Finish(t, "b1")
		wantIn(t, down)
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if sum.Succeeded != 1 || sum.Failed != 2 || sum.Dropped != 3 || fmt.Sprint(sum.Unsettled) != "[1 2 4 5 6]" {
			t.Errorf("Run() = %+v", sum)
		}
		testkit.CheckConserved(t, sum)
		if len(failures) != 2 || asked != 0 {
			t.Fatalf("%d failures, OnFailure asked %d times", len(failures), asked)
		}
		for _, fail := range failures {
			if testkit.FailureOf(t, fail, flow.FailureShutdown); !errors.Is(fail, testkit.ErrHandler) || fail.Attempts != 1 {
				t.Errorf("failure %+v, want the last error as its cause", fail)
			}
		}
	})
}

func TestFailureWhileShuttingDownStillComesToOnFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := testkit.NewManualHandler(), &refusals{}
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed, OnFailure: r.skip})
		c := testkit.Start(t, f, "a1", "b1")
		down := shutdownOf(t, f)
		s.Fail(t, "a1", testkit.ErrHandler)
		r.want(t, flow.FailureHandlerError, "a1")
		s.WantRunning(t, "b1")
		s.Finish(t, "b1")
		wantIn(t, down)
		if sum, _ := c.Result(t); sum.Failed != 1 || sum.Committed != 2 {
			t.Errorf("Run() = %+v", sum)
		}
	})
}

func TestShutdownWakesAStreamThatIsNotReadForItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{MaxPending: 2, Shutdown: drains})
		c := testkit.Start(t, f, "a1", "a2", "a3", "a4")
		s.WantRunning(t, "a1")
		down := shutdownOf(t, f)
		s.FinishAll(t)
		wantIn(t, down)
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if sum.Received != 2 || sum.Succeeded != 2 || c.Received() != 2 {
			t.Errorf("Run() = %+v, read %d", sum, c.Received())
		}
	})
}

func TestShutdownWhileStreamsStartWaitsForAllThatStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testkit.New(t, func(context.Context, flow.Message[string]) error {
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

// wantCut runs Shutdown and compares what it returns, and after how long.
func wantCut(t testing.TB, ctx context.Context, f *flow.Flow[string], want flow.ShutdownError, after time.Duration) {
	t.Helper()
	began := time.Now()
	err := f.Shutdown(ctx)
	if cut, ok := errors.AsType[*flow.ShutdownError](err); !ok || *cut != want {
		t.Errorf("Shutdown() = %+v, want %+v", err, want)
	}
	if took := time.Since(began); took != after {
		t.Errorf("Shutdown took %v, want %v", took, after)
	}
}

func TestGracePeriodCancelsTheRestExactlyWhenItIsOver(t *testing.T) {
	for name, c := range map[string]struct {
		drain  bool
		cutOff int
		seq    uint64
		key    string
	}{
		"without drain": {false, 2, 3, "b"}, // b1 and c1; what waited was dropped, and the retry failed
		"with drain":    {true, 5, 1, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{
					Ordering: testkit.Keyed, Shutdown: flow.ShutdownOptions{DrainOnClose: c.drain, GracePeriod: 7 * time.Second},
					Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
				})
				call := testkit.Start(t, f, "a1", "a2", "b1", "b2", "c1", "d1")
				s.Finish(t, "d1")
				s.Fail(t, "a1", testkit.ErrHandler)
				wantCut(t, context.Background(), f, flow.ShutdownError{
					CutOff: c.cutOff, Seq: c.seq, Key: c.key, Err: flow.ErrGracePeriod,
				}, 7*time.Second)
				sum, err := call.Result(t)
				testkit.FailureOf(t, err, flow.FailureShutdown)
				if sum.Received != 6 || sum.Succeeded != 1 || sum.Failed != 3 || sum.Dropped != 2 {
					t.Errorf("Run() = %+v", sum)
				}
				testkit.CheckConserved(t, sum)
			})
		})
	}
}

func TestCutOffNamesTheFirstMessageOfTheOldestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed, Shutdown: flow.ShutdownOptions{GracePeriod: time.Second}})
		testkit.Start(t, f) // has nothing that could be cut off
		testkit.Start(t, f, "a1", "b1", "c1")
		testkit.Start(t, f, "x1")
		s.Finish(t, "a1")
		wantCut(t, context.Background(), f, flow.ShutdownError{CutOff: 3, Seq: 2, Key: "b", Err: flow.ErrGracePeriod}, time.Second)
	})
}

func TestHandlersThatAreCutOffSeeTheShutdownAsTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cause error
		f := testkit.New(t, func(ctx context.Context, _ flow.Message[string]) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return cause
		}, flow.Options{Shutdown: flow.ShutdownOptions{GracePeriod: time.Second}})
		c := testkit.Start(t, f, "a1")
		_ = f.Shutdown(context.Background())
		_, err := c.Result(t)
		if testkit.FailureOf(t, cause, flow.FailureShutdown) != testkit.FailureOf(t, err, flow.FailureShutdown) {
			t.Errorf("cause %v, Run's error %v", cause, err)
		}
	})
}

func TestEndOfShutdownsContextCancelsTheRest(t *testing.T) {
	why := errors.New("the supervisor is impatient")
	for name, after := range map[string]time.Duration{"later": 3 * time.Second, "before": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{Shutdown: flow.ShutdownOptions{GracePeriod: time.Hour}})
				testkit.Start(t, f, "a1")
				ctx, cancel := context.WithTimeoutCause(context.Background(), after, why)
				defer cancel()
				wantCut(t, ctx, f, flow.ShutdownError{CutOff: 1, Seq: 1, Key: "a", Err: why}, after)
			})
		})
	}
}

func TestShutdownWaitsOneSecondMoreForHandlersThatIgnoreTheirContext(t *testing.T) {
	for name, c := range map[string]struct{ runs, takes time.Duration }{
		"it returns in that second":   {5*time.Second + 400*time.Millisecond, 5*time.Second + 400*time.Millisecond},
		"it returns much later":       {time.Minute, 6 * time.Second},
		"it returned before the time": {4 * time.Second, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := testkit.New(t, func(context.Context, flow.Message[string]) error {
					time.Sleep(c.runs)
					return nil
				}, flow.Options{Shutdown: flow.ShutdownOptions{GracePeriod: 5 * time.Second}})
				call := testkit.Start(t, f, "a1")
				if c.takes < 5*time.Second {
					began := time.Now()
					if err := f.Shutdown(context.Background()); err != nil || time.Since(began) != c.takes {
						t.Errorf("Shutdown() = %v after %v", err, time.Since(began))
					}
					return
				}
				wantCut(t, context.Background(), f, flow.ShutdownError{CutOff: 1, Seq: 1, Key: "a", Err: flow.ErrGracePeriod}, c.takes)
				if over := call.Ended(); over != (c.takes == c.runs) {
					t.Errorf("Run has returned: %v; it outlives no handler", over)
				}
				time.Sleep(time.Minute)
				if sum, _ := call.Result(t); sum.Succeeded != 1 {
					t.Errorf("Run() = %+v", sum)
				}
			})
		})
	}
}

func TestShutdownIsIdempotentAndCountsItsGraceFromTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Shutdown: flow.ShutdownOptions{GracePeriod: 10 * time.Second}})
		testkit.Start(t, f, "a1")
		began := time.Now()
		var downs []*caller
		for range 10 {
			downs = append(downs, shutdownOf(t, f))
			time.Sleep(500 * time.Millisecond)
		}
		for _, d := range downs {
			<-d.done
			if took := time.Since(began); took != 10*time.Second {
				t.Errorf("returned after %v", took)
			}
			if !errors.Is(d.err, flow.ErrGracePeriod) || d.err != downs[0].err {
				t.Errorf("Shutdown() = %v", d.err)
			}
		}
		if err := f.Shutdown(context.Background()); err != downs[0].err {
			t.Errorf("after all: Shutdown() = %v", err)
		}
	})
}

func TestAnyOfSeveralShutdownsMayCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{})
		testkit.Start(t, f, "a1")
		patient, impatient := shutdownOf(t, f), shutdownOf(t, f)
		wantWaits(t, patient, impatient)
		impatient.cancel(testkit.ErrHandler)
		synctest.Wait()
		if patient.waits() || impatient.waits() || patient.err != impatient.err || !errors.Is(patient.err, testkit.ErrHandler) {
			t.Errorf("%v and %v", patient.err, impatient.err)
		}
	})
}

func TestCloseEndsAllAtOnceAndDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var causes []error
		f := testkit.New(t, func(ctx context.Context, m flow.Message[string]) error {
			<-ctx.Done()
			causes = append(causes, context.Cause(ctx))
			time.Sleep(time.Minute) // it takes its time to clean up
			return ctx.Err()
		}, flow.Options{Shutdown: drains})
		c, silent := testkit.Start(t, f, "a1", "a2"), testkit.Start(t, f)
		began := time.Now()
		for range 3 {
			if err := f.Close(); err != nil || time.Since(began) != 0 {
				t.Errorf("Close() = %v after %v", err, time.Since(began))
			}
		}
		_, err := silent.Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if c.Ended() {
			t.Error("Run has left its handler behind")
		}
		_, err = testkit.Start(t, f, "b1").Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if err := f.Shutdown(context.Background()); err != nil { // waits, and nothing was cut off by it
			t.Errorf("Shutdown() = %v", err)
		}
		if took := time.Since(began); took != time.Minute {
			t.Errorf("Shutdown after Close took %v", took)
		}
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if sum.Failed != 1 || sum.Dropped != 1 {
			t.Errorf("Run() = %+v", sum)
		}
		if len(causes) != 1 {
			t.Fatalf("causes %v", causes)
		}
		testkit.FailureOf(t, causes[0], flow.FailureShutdown)
	})
}

func TestCloseCutsTheWaitForTheNextTryShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour}, Shutdown: drains})
		c := testkit.Start(t, f, "a1")
		s.Fail(t, "a1", testkit.ErrHandler)
		down := shutdownOf(t, f)
		wantWaits(t, down)
		_ = f.Close()
		wantIn(t, down) // Close alone cuts nothing off in its sense
		sum, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if sum.Failed != 1 || len(s.Attempts()) != 1 {
			t.Errorf("Run() = %+v", sum)
		}
	})
}

func TestShutdownOfAFlowWithoutStreamsIsNilWhateverItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		f := testkit.New(t, testkit.NewManualHandler().Handle, flow.Options{})
		if err := f.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
}

// hangsAt is an Observer that hangs at the first event of a kind until it is released, and counts those.
func hangsAt(kind flow.EventKind) (o flow.Observer, release func(), times *atomic.Int64) {
	times = new(atomic.Int64)
	gate := make(chan struct{})
	return func(_ context.Context, e flow.Event) {
		if e.Kind == kind && times.Add(1) == 1 {
			<-gate
		}
	}, func() { close(gate) }, times
}

func TestShutdownIsHeldByAnObserverThatHangsNoLongerThanItsLimit(t *testing.T) {
	impatient := errors.New("the supervisor is impatient")
	for name, c := range map[string]struct {
		shutdown flow.ShutdownOptions
		ctx      time.Duration
		streams  bool
		want     flow.ShutdownError
		after    time.Duration
	}{
		"of ctx": {flow.ShutdownOptions{}, 3 * time.Second, true,
			flow.ShutdownError{CutOff: 1, Seq: 1, Key: "a", Err: impatient}, 4 * time.Second},
		"of the grace period": {flow.ShutdownOptions{GracePeriod: 2 * time.Second}, time.Hour, true,
			flow.ShutdownError{CutOff: 1, Seq: 1, Key: "a", Err: flow.ErrGracePeriod}, 3 * time.Second},
		"in a drain": {flow.ShutdownOptions{DrainOnClose: true, GracePeriod: 2 * time.Second}, time.Hour, true,
			flow.ShutdownError{CutOff: 2, Seq: 1, Key: "a", Err: flow.ErrGracePeriod}, 3 * time.Second},
		"although nothing else runs": {flow.ShutdownOptions{}, 3 * time.Second, false,
			flow.ShutdownError{Err: impatient}, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				observer, release, times := hangsAt(flow.EventShutdown)
				defer release()
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{Observer: observer, Shutdown: c.shutdown})
				var busy, silent *testkit.Stream
				if c.streams {
					busy, silent = testkit.Start(t, f, "a1", "a2"), testkit.Start(t, f)
				}
				ctx, cancel := context.WithTimeoutCause(context.Background(), c.ctx, impatient)
				defer cancel()
				began := time.Now()
				if c.streams {
					go func() {
						time.Sleep(time.Second) // long before the limit
						if _, err := silent.Result(t); flow.ClassifyFailure(err) != flow.FailureShutdown {
							t.Errorf("the silent stream ended with %v: it has not been told", err)
						}
					}()
				}
				wantCut(t, ctx, f, c.want, c.after)
				if c.streams && !busy.Ended() {
					t.Error("the stream that was cut off has not ended")
				}
				if err := f.Shutdown(context.Background()); err == nil || time.Since(began) != c.after {
					t.Errorf("Shutdown() once more = %v after %v, want the same, at once", err, time.Since(began))
				}
				if n := times.Load(); n != 1 {
					t.Errorf("EventShutdown came %d times", n)
				}
			})
		})
	}
}

func TestShutdownWaitsForAnObserverThatIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testkit.New(t, testkit.Takes(0), flow.Options{Observer: func(_ context.Context, e flow.Event) {
			if e.Kind == flow.EventShutdown {
				time.Sleep(5 * time.Second)
			}
		}, Shutdown: flow.ShutdownOptions{GracePeriod: 6 * time.Second}})
		began := time.Now()
		if err := f.Shutdown(context.Background()); err != nil || time.Since(began) != 5*time.Second {
			t.Errorf("Shutdown() = %v after %v, want nil when the Observer has returned", err, time.Since(began))
		}
	})
}

func TestCloseIsNotHeldByAnObserverThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		observer, release, times := hangsAt(flow.EventShutdown)
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Observer: observer})
		c := testkit.Start(t, f, "a1", "a2")
		began := time.Now()
		for range 2 {
			if err := f.Close(); err != nil || time.Since(began) != 0 {
				t.Errorf("Close() = %v after %v", err, time.Since(began))
			}
		}
		_, err := c.Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown)
		down := shutdownOf(t, f)
		wantWaits(t, down)
		release()
		wantIn(t, down)
		if n := times.Load(); n != 1 {
			t.Errorf("EventShutdown came %d times", n)
		}
	})
}

func TestShutdownIsToldToTheObserverAfterAllStreams(t *testing.T) {
	const streams = 10
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var handlers []context.Context
		told := 0
		f := testkit.New(t, func(ctx context.Context, _ flow.Message[string]) error {
			mu.Lock()
			handlers = append(handlers, ctx)
			mu.Unlock()
			<-ctx.Done()
			return ctx.Err()
		}, flow.Options{Observer: func(_ context.Context, e flow.Event) {
			if e.Kind != flow.EventShutdown {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			told++
			for i, ctx := range handlers {
				if ctx.Err() == nil {
					t.Errorf("handler %d has not been told yet", i)
				}
			}
		}})
		for range streams {
			testkit.Start(t, f, "a1")
		}
		_ = f.Close()
		synctest.Wait()
		if len(handlers) != streams || told != 1 {
			t.Errorf("%d handlers, EventShutdown came %d times", len(handlers), told)
		}
	})
}

// A message that was refused, or whose key was skipped, needs no handler, but its OnFailure is the caller's code too.
func TestShutdownIsNilOnlyWhenOnFailureOfARefusedMessageHasReturned(t *testing.T) {
	for name, c := range map[string]struct {
		ordering flow.OrderingOptions
		fails    bool
		seq      uint64 // which one's OnFailure takes long
	}{
		"its key is skipped": {testkit.Keyed, true, 2},
		"refused on receipt": {flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, KeyCapacity: 1}, false, 3},
	} {
		for after, want := range map[time.Duration]flow.ShutdownError{
			4 * time.Second:                      {}, // within the grace period
			5*time.Second + 300*time.Millisecond: {CutOff: 1, Seq: c.seq, Key: "a", Err: flow.ErrGracePeriod},
			time.Minute:                          {CutOff: 1, Seq: c.seq, Key: "a", Err: flow.ErrGracePeriod},
		} {
			t.Run(fmt.Sprint(name, " ", after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := testkit.NewManualHandler()
					f := testkit.New(t, s.Handle, flow.Options{
						Ordering: c.ordering, Shutdown: flow.ShutdownOptions{GracePeriod: 5 * time.Second},
						OnFailure: func(_ context.Context, failure *flow.Failure) flow.FailureAction {
							if failure.Seq == c.seq {
								time.Sleep(after) // whatever its context says
							}
							return flow.SkipKey
						},
					})
					r := testkit.Start(t, f, "a1", "a2", "a3")
					if c.fails {
						s.Fail(t, "a1", testkit.ErrHandler)
					} else {
						s.Finish(t, "a1")
					}
					if !c.fails {
						s.Finish(t, "a2")
					}
					if want.Err == nil {
						began := time.Now()
						if err := f.Shutdown(context.Background()); err != nil || time.Since(began) != after {
							t.Errorf("Shutdown() = %v after %v, want nil after %v", err, time.Since(began), after)
						}
					} else {
						wantCut(t, context.Background(), f, want, min(after, 6*time.Second))
						time.Sleep(time.Minute)
					}
					if !r.Ended() {
						t.Error("Run has not returned")
					}
				})
			})
		}
	}
}

func TestShutdownIsNotNilWhileAnObserverRunsThatWasToldOfAStream(t *testing.T) {
	for _, kind := range []flow.EventKind{flow.EventDrop, flow.EventStreamEnd} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				observer, release, _ := hangsAt(kind)
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{Observer: observer, Shutdown: flow.ShutdownOptions{GracePeriod: time.Second}})
				testkit.Start(t, f, "a1", "a2")
				down := shutdownOf(t, f)
				s.Finish(t, "a1")
				<-down.done
				var late *flow.ShutdownError
				if !errors.As(down.err, &late) || late.CutOff != 0 || !errors.Is(late, flow.ErrGracePeriod) {
					t.Errorf("Shutdown() = %v while the Observer still runs", down.err)
				}
				release()
			})
		})
	}
}

// A run's messages may be of many streams, and what has not begun is dropped whatever the one that runs does.
func TestShutdownDropsWhatIsBehindAHandlerThatStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn, dropped := make(chan string), 0
		f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
			for v := range goOn {
				if v == m.Value {
					break
				}
				t.Errorf("%s runs", m.Value)
			}
			return nil
		}, flow.Options{Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1}, Observer: func(_ context.Context, e flow.Event) {
			if e.Kind == flow.EventDrop {
				dropped++
			}
		}})
		s, source := inLongRuns(t, f, 8, "a1", "b1", "c1", "d1")
		synctest.Wait() // a1 runs
		goOn <- "a1"
		synctest.Wait() // b1 runs, and c1 and d1 are behind it in its run
		down := shutdownOf(t, f)
		if dropped != 2 {
			t.Errorf("%d of 2 messages have been dropped beside the one that runs", dropped)
		}
		goOn <- "b1"
		source.End()
		if sum, err := s.Wait(); sum.Succeeded != 2 {
			t.Errorf("Wait() = %+v, %v", sum, err)
		}
		wantIn(t, down)
	})
}
