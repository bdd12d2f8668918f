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
)

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
			bubble(t, func(t *testing.T) {
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{
					Ordering: keyed, Shutdown: flow.ShutdownOptions{DrainOnClose: c.drain, GracePeriod: 7 * time.Second},
					Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
				})
				call := start(t, f, "a1", "a2", "b1", "b2", "c1", "d1")
				s.finish(t, "d1")
				s.fail(t, "a1", errHandler)
				wantCut(t, context.Background(), f, flow.ShutdownError{
					CutOff: c.cutOff, Seq: c.seq, Key: c.key, Err: flow.ErrGracePeriod,
				}, 7*time.Second)
				sum, err := call.result(t)
				failureOf(t, err, flow.FailureShutdown)
				if sum.Received != 6 || sum.Succeeded != 1 || sum.Failed != 3 || sum.Dropped != 2 {
					t.Errorf("Run() = %+v", sum)
				}
				conserved(t, sum)
			})
		})
	}
}

func TestCutOffNamesTheFirstMessageOfTheOldestStream(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed, Shutdown: flow.ShutdownOptions{GracePeriod: time.Second}})
		start(t, f) // has nothing that could be cut off
		start(t, f, "a1", "b1", "c1")
		start(t, f, "x1")
		s.finish(t, "a1")
		wantCut(t, context.Background(), f, flow.ShutdownError{CutOff: 3, Seq: 2, Key: "b", Err: flow.ErrGracePeriod}, time.Second)
	})
}

func TestHandlersThatAreCutOffSeeTheShutdownAsTheCause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var cause error
		f := mustNew(t, func(ctx context.Context, _ flow.Message[string]) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return cause
		}, flow.Options{Shutdown: flow.ShutdownOptions{GracePeriod: time.Second}})
		c := start(t, f, "a1")
		_ = f.Shutdown(context.Background())
		_, err := c.result(t)
		if failureOf(t, cause, flow.FailureShutdown) != failureOf(t, err, flow.FailureShutdown) {
			t.Errorf("cause %v, Run's error %v", cause, err)
		}
	})
}

func TestEndOfShutdownsContextCancelsTheRest(t *testing.T) {
	why := errors.New("the supervisor is impatient")
	for name, after := range map[string]time.Duration{"later": 3 * time.Second, "before": 0} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{Shutdown: flow.ShutdownOptions{GracePeriod: time.Hour}})
				start(t, f, "a1")
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
			bubble(t, func(t *testing.T) {
				f := mustNew(t, func(context.Context, flow.Message[string]) error {
					time.Sleep(c.runs)
					return nil
				}, flow.Options{Shutdown: flow.ShutdownOptions{GracePeriod: 5 * time.Second}})
				call := start(t, f, "a1")
				if c.takes < 5*time.Second {
					began := time.Now()
					if err := f.Shutdown(context.Background()); err != nil || time.Since(began) != c.takes {
						t.Errorf("Shutdown() = %v after %v", err, time.Since(began))
					}
					return
				}
				wantCut(t, context.Background(), f, flow.ShutdownError{CutOff: 1, Seq: 1, Key: "a", Err: flow.ErrGracePeriod}, c.takes)
				if over := call.over(); over != (c.takes == c.runs) {
					t.Errorf("Run has returned: %v; it outlives no handler", over)
				}
				time.Sleep(time.Minute)
				if sum, _ := call.result(t); sum.Succeeded != 1 {
					t.Errorf("Run() = %+v", sum)
				}
			})
		})
	}
}

func TestShutdownIsIdempotentAndCountsItsGraceFromTheFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Shutdown: flow.ShutdownOptions{GracePeriod: 10 * time.Second}})
		start(t, f, "a1")
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
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{})
		start(t, f, "a1")
		patient, impatient := shutdownOf(t, f), shutdownOf(t, f)
		wantWaits(t, patient, impatient)
		impatient.cancel(errHandler)
		synctest.Wait()
		if patient.waits() || impatient.waits() || patient.err != impatient.err || !errors.Is(patient.err, errHandler) {
			t.Errorf("%v and %v", patient.err, impatient.err)
		}
	})
}

func TestCloseEndsAllAtOnceAndDoesNotWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var causes []error
		f := mustNew(t, func(ctx context.Context, m flow.Message[string]) error {
			<-ctx.Done()
			causes = append(causes, context.Cause(ctx))
			time.Sleep(time.Minute) // it takes its time to clean up
			return ctx.Err()
		}, flow.Options{Shutdown: drains})
		c, silent := start(t, f, "a1", "a2"), start(t, f)
		began := time.Now()
		for range 3 {
			if err := f.Close(); err != nil || time.Since(began) != 0 {
				t.Errorf("Close() = %v after %v", err, time.Since(began))
			}
		}
		_, err := silent.result(t)
		failureOf(t, err, flow.FailureShutdown)
		if c.over() {
			t.Error("Run has left its handler behind")
		}
		_, err = start(t, f, "b1").result(t)
		failureOf(t, err, flow.FailureShutdown)
		if err := f.Shutdown(context.Background()); err != nil { // waits, and nothing was cut off by it
			t.Errorf("Shutdown() = %v", err)
		}
		if took := time.Since(began); took != time.Minute {
			t.Errorf("Shutdown after Close took %v", took)
		}
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureShutdown)
		if sum.Failed != 1 || sum.Dropped != 1 {
			t.Errorf("Run() = %+v", sum)
		}
		if len(causes) != 1 {
			t.Fatalf("causes %v", causes)
		}
		failureOf(t, causes[0], flow.FailureShutdown)
	})
}

func TestCloseCutsTheWaitForTheNextTryShort(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour}, Shutdown: drains})
		c := start(t, f, "a1")
		s.fail(t, "a1", errHandler)
		down := shutdownOf(t, f)
		wantWaits(t, down)
		_ = f.Close()
		wantIn(t, down) // Close alone cuts nothing off in its sense
		sum, err := c.result(t)
		failureOf(t, err, flow.FailureShutdown)
		if sum.Failed != 1 || len(s.attempts()) != 1 {
			t.Errorf("Run() = %+v", sum)
		}
	})
}

func TestShutdownOfAFlowWithoutStreamsIsNilWhateverItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		f := mustNew(t, newStage().handle, flow.Options{})
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
			bubble(t, func(t *testing.T) {
				observer, release, times := hangsAt(flow.EventShutdown)
				defer release()
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{Observer: observer, Shutdown: c.shutdown})
				var busy, silent *call
				if c.streams {
					busy, silent = start(t, f, "a1", "a2"), start(t, f)
				}
				ctx, cancel := context.WithTimeoutCause(context.Background(), c.ctx, impatient)
				defer cancel()
				began := time.Now()
				if c.streams {
					go func() {
						time.Sleep(time.Second) // long before the limit
						if _, err := silent.result(t); flow.ClassifyFailure(err) != flow.FailureShutdown {
							t.Errorf("the silent stream ended with %v: it has not been told", err)
						}
					}()
				}
				wantCut(t, ctx, f, c.want, c.after)
				if c.streams && !busy.over() {
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
	bubble(t, func(t *testing.T) {
		f := mustNew(t, takes(0), flow.Options{Observer: func(_ context.Context, e flow.Event) {
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
	bubble(t, func(t *testing.T) {
		observer, release, times := hangsAt(flow.EventShutdown)
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Observer: observer})
		c := start(t, f, "a1", "a2")
		began := time.Now()
		for range 2 {
			if err := f.Close(); err != nil || time.Since(began) != 0 {
				t.Errorf("Close() = %v after %v", err, time.Since(began))
			}
		}
		_, err := c.result(t)
		failureOf(t, err, flow.FailureShutdown)
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
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		var handlers []context.Context
		told := 0
		f := mustNew(t, func(ctx context.Context, _ flow.Message[string]) error {
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
			start(t, f, "a1")
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
		"its key is skipped": {keyed, true, 2},
		"refused on receipt": {flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, KeyCapacity: 1}, false, 3},
	} {
		for after, want := range map[time.Duration]flow.ShutdownError{
			4 * time.Second:                      {}, // within the grace period
			5*time.Second + 300*time.Millisecond: {CutOff: 1, Seq: c.seq, Key: "a", Err: flow.ErrGracePeriod},
			time.Minute:                          {CutOff: 1, Seq: c.seq, Key: "a", Err: flow.ErrGracePeriod},
		} {
			t.Run(fmt.Sprint(name, " ", after), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := newStage()
					f := mustNew(t, s.handle, flow.Options{
						Ordering: c.ordering, Shutdown: flow.ShutdownOptions{GracePeriod: 5 * time.Second},
						OnFailure: func(_ context.Context, failure *flow.Failure) flow.FailureAction {
							if failure.Seq == c.seq {
								time.Sleep(after) // whatever its context says
							}
							return flow.SkipKey
						},
					})
					r := start(t, f, "a1", "a2", "a3")
					if c.fails {
						s.fail(t, "a1", errHandler)
					} else {
						s.finish(t, "a1")
					}
					if !c.fails {
						s.finish(t, "a2")
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
					if !r.over() {
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
			bubble(t, func(t *testing.T) {
				observer, release, _ := hangsAt(kind)
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{Observer: observer, Shutdown: flow.ShutdownOptions{GracePeriod: time.Second}})
				start(t, f, "a1", "a2")
				down := shutdownOf(t, f)
				s.finish(t, "a1")
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
