package sessiontest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc/metadata"
)

func TestOldStreamEndsFirst(t *testing.T) {
	// Each case brings an earlier stream of the session into a condition in which a1 has been received.
	for _, c := range []struct {
		name     string
		options  func(*flow.Options)
		old      func(t *testing.T, r *resumed, s *testkit.ManualHandler)
		ends     func(t *testing.T, s *testkit.ManualHandler) // what it takes until the earlier stream is over; nil: nothing
		runs     string                                       // what runs then of the next stream, which sends a1 and b2
		attempts int                                          // of a1, in both
	}{
		{
			name: "running", old: func(t *testing.T, r *resumed, s *testkit.ManualHandler) { s.WantRunning(t, "a1") },
			runs: "a1 b2", attempts: 2,
		}, {
			name: "half-closed", old: func(t *testing.T, r *resumed, s *testkit.ManualHandler) { r.End(); s.WantRunning(t, "a1") },
			runs: "a1 b2", attempts: 2,
		}, {
			name:    "waiting for a slot",
			options: func(o *flow.Options) { o.Backpressure.Capacity = 1 },
			old: func(t *testing.T, r *resumed, s *testkit.ManualHandler) {
				r.Send("b2")
				s.WantRunning(t, "a1")
			},
			runs: "a1", attempts: 2,
		}, {
			name:    "in backoff",
			options: func(o *flow.Options) { o.Retry = flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour} },
			old: func(t *testing.T, r *resumed, s *testkit.ManualHandler) {
				s.Fail(t, "a1", testkit.ErrHandler)
				s.WantRunning(t, "")
			},
			runs: "a1 b2", attempts: 2,
		}, {
			name: "idle", old: func(t *testing.T, r *resumed, s *testkit.ManualHandler) { s.Finish(t, "a1") },
			runs: "b2", attempts: 1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				change := c.options
				if change == nil {
					change = func(*flow.Options) {}
				}
				f := withSessions(t, s.Handle, nil, change)
				old := resume(t, f, "", "a1")
				old.wantHeader(t, "new epoch 1 committed 0")
				c.old(t, old, s)
				next := resume(t, f, "epoch=1", "a1", "b2")
				old.wantEnd(t, "Aborted SESSION_MOVED 1", map[bool]string{
					true: "epoch 1 committed 1", false: "epoch 1 committed 0"}[c.name == "idle"])
				if _, err := old.Result(t); !errors.Is(err, flow.ErrSessionMoved) {
					t.Errorf("the earlier stream ended with %v", err)
				}
				s.WantRunning(t, c.runs)
				next.End()
				s.FinishAll(t)
				next.wantEnd(t, "OK", "epoch 1 committed 2")
				n := 0
				for _, m := range s.Attempts() {
					if m.Value == "a1" {
						n++
					}
				}
				if n != c.attempts {
					t.Errorf("a1 ran %d times, want %d", n, c.attempts)
				}
			})
		})
	}
}

// stubborn is a handler that doesn't heed its context: it ends when the test says so.
func stubborn(s *testkit.ManualHandler) flow.Handler[string] {
	return func(ctx context.Context, m flow.Message[string]) error {
		return s.Handle(context.WithoutCancel(ctx), m)
	}
}

func TestOldStreamEndsFirstHoweverLongItsHandlerTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cause error
		s := testkit.NewManualHandler()
		f := withSessions(t, func(ctx context.Context, m flow.Message[string]) error {
			defer func() { cause = context.Cause(ctx) }()
			return stubborn(s)(ctx, m)
		}, nil)
		old := resume(t, f, "", "a1", "a2")
		s.WantRunning(t, "a1")
		waits := resume(t, f, "epoch=1", "a1", "a2")
		waits.wantHeader(t, "")
		s.WantRunning(t, "a1")
		if waits.Received() > 0 {
			t.Error("a stream that waits is read")
		}
		newest := resume(t, f, "epoch=1", "a1", "a2") // what waits twice: the newest wins
		waits.wantEnd(t, "Aborted SESSION_MOVED 1", "")
		testkit.Advance(time.Second)
		newest.wantHeader(t, "")
		s.Finish(t, "a1") // it was cancelled and did it all the same: that is settled
		if !errors.Is(cause, flow.ErrSessionMoved) {
			t.Errorf("the handler's cause is %v", cause)
		}
		old.wantEnd(t, "Aborted SESSION_MOVED 1", "epoch 1 committed 1")
		newest.wantHeader(t, "known epoch 1 committed 1")
		s.WantRunning(t, "a2")
		newest.End()
		s.FinishAll(t)
		newest.wantEnd(t, "OK", "epoch 1 committed 2")
		if s.History() != "a1 a2" {
			t.Errorf("ran: %s", s.History())
		}
	})
}

func TestTakeoverTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := withSessions(t, stubborn(s), nil, func(o *flow.Options) { o.Sessions.Takeover = 3 * time.Second })
		old := resume(t, f, "", "a1")
		s.WantRunning(t, "a1")
		next := resume(t, f, "epoch=1", "a1")
		testkit.Advance(3*time.Second - 1)
		if next.Ended() {
			t.Fatal("it did not wait for Takeover")
		}
		testkit.Advance(1)
		next.wantEnd(t, "Unavailable BACKPRESSURE retry", "")
		next.wantHeader(t, "") // trailers only: it may be tried again, by gRPC itself too
		if next.Sum.Received > 0 {
			t.Errorf("it received %d", next.Sum.Received)
		}
		s.Finish(t, "a1")
		old.wantEnd(t, "Aborted SESSION_MOVED 1", "epoch 1 committed 1")
		if sum := uploadOK(t, f, "epoch=1", "a1"); sum.Duplicates != 1 {
			t.Errorf("afterwards: %+v", sum)
		}
	})
}

func TestTakeoverIsTenSecondsByDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := withSessions(t, stubborn(s), nil)
		resume(t, f, "", "a1")
		next := resume(t, f, "epoch=1", "a1")
		testkit.Advance(10*time.Second - 1)
		if next.Ended() {
			t.Fatal("it did not wait for ten seconds")
		}
		testkit.Advance(1)
		next.wantEnd(t, "Unavailable BACKPRESSURE retry", "")
		s.Finish(t, "a1")
	})
}

func TestLowerEpochDisturbsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		store := flow.NewSessionMemory(0, 0)
		f := withSessions(t, s.Handle, store)
		uploadOK(t, f, "")
		r := resume(t, f, "", "a1") // claims: epoch 2
		r.wantHeader(t, "known epoch 2 committed 0")
		resume(t, f, "epoch=1", "a1").wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "")
		s.WantRunning(t, "a1")
		s.Finish(t, "a1")
		r.End()
		r.wantEnd(t, "OK", "epoch 2 committed 1")
		// Nor is it let in when nobody writes.
		resume(t, f, "epoch=1", "a1").wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "")
		if got := stored(t, store); got != "epoch 2 fence 2 committed 1" {
			t.Errorf("the store has %s", got)
		}
	})
}

func TestLostClaimAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := withSessions(t, s.Handle, nil)
		first := resume(t, f, "", "a1") // its header does not arrive
		again := resume(t, f, "", "a1")
		first.wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "epoch 1 committed 0")
		again.wantHeader(t, "known epoch 2 committed 0")
		s.WantRunning(t, "a1")
		s.Finish(t, "a1")
		again.End()
		again.wantEnd(t, "OK", "epoch 2 committed 1")
	})
}

func TestTwoClaimsEndOneWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := withSessions(t, stubborn(s), nil)
		writer := resume(t, f, "", "a1")
		one := resume(t, f, "")
		two := resume(t, f, "")
		one.wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "")
		s.Finish(t, "a1")
		writer.wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "epoch 1 committed 1")
		two.wantHeader(t, "known epoch 2 committed 1")
		two.End()
		two.wantEnd(t, "OK", "epoch 2 committed 1")
	})
}

func TestDeposedCantComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		store := flow.NewSessionMemory(0, 0)
		f, other := withSessions(t, stubborn(s), store), withSessions(t, s.Handle, store)
		writer := resume(t, f, "", "a1")
		claim := resume(t, f, "")
		// Neither while the claim waits, nor when it has the session, nor afterwards, nor in another process.
		resume(t, f, "epoch=1").wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "")
		s.Finish(t, "a1")
		writer.wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "epoch 1 committed 1")
		claim.wantHeader(t, "known epoch 2 committed 1")
		resume(t, f, "epoch=1").wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "")
		resume(t, other, "epoch=1").wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "")
		claim.End()
		claim.wantEnd(t, "OK", "epoch 2 committed 1")
		resume(t, f, "epoch=1").wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "")
	})
}

func TestHigherEpochAfterLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := withSessions(t, testkit.Takes(0), nil) // its store is empty
		r := resume(t, f, "epoch=7 start=101", "a1")
		r.wantHeader(t, "lost epoch 7 committed 100")
		r.End()
		sum := r.wantEnd(t, "OK", "epoch 7 committed 101")
		if sum.Last != 101 || sum.Succeeded != 1 {
			t.Errorf("%+v", sum)
		}
		resume(t, f, "epoch=6").wantEnd(t, "FailedPrecondition SESSION_MOVED 7", "")
		r = resume(t, f, "")
		r.wantHeader(t, "known epoch 8 committed 101")
		r.End()
		// An epoch that no server gives is not taken on: no claim could be above it.
		resume(t, f, "epoch=18446744073709551615").wantEnd(t, "InvalidArgument INTERNAL", "")
	})
}

func TestSessionIsTakenByAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, s2 := testkit.NewManualHandler(), testkit.NewManualHandler()
		store := flow.NewSessionMemory(0, 0)
		f, other := withSessions(t, s.Handle, store), withSessions(t, s2.Handle, store)
		deposed := resume(t, f, "", "a1", "b2")
		s.Finish(t, "b2")
		next := resume(t, other, "epoch=1", "a1", "b2") // the same writer, elsewhere
		next.wantHeader(t, "known epoch 1 committed 0")
		s2.WantRunning(t, "a1 b2") // until the first process notices, both run
		s.WantRunning(t, "a1")
		testkit.Advance(time.Second)
		deposed.wantEnd(t, "Aborted SESSION_MOVED 1", "epoch 1 committed 0")
		s.WantRunning(t, "")
		s2.FinishAll(t)
		next.End()
		next.wantEnd(t, "OK", "epoch 1 committed 2")
		if got := stored(t, store); got != "epoch 1 fence 2 committed 2" {
			t.Errorf("the store has %s", got)
		}
	})
}

func TestFenceRisesUnlessTheFlowHasSavedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fences []uint64
		note := func(_ context.Context, m flow.Message[string]) error {
			fences = append(fences, m.Session().Fence)
			if m.Session().ID != uploadID {
				t.Errorf("the session is %v", m.Session())
			}
			return nil
		}
		store := flow.NewSessionMemory(0, 0)
		f, other := withSessions(t, note, store), withSessions(t, note, store)
		uploadOK(t, f, "", "a1")
		uploadOK(t, f, "epoch=1 start=2", "a2")
		uploadOK(t, other, "epoch=1 start=3", "a3") // another Flow
		uploadOK(t, f, "epoch=1 start=4", "a4")     // and back
		uploadOK(t, f, "start=5", "a5")             // another epoch
		uploadOK(t, f, "epoch=2 start=6", "a6")
		want := []uint64{1, 1, 2, 3, 4, 4}
		if len(fences) != len(want) {
			t.Fatalf("fences are %v, want %v", fences, want)
		}
		for i := range want {
			if fences[i] != want[i] {
				t.Fatalf("fences are %v, want %v", fences, want)
			}
		}
	})
}

func TestStateMovedBetweenLoadAndSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := testkit.NewHookedStore()
		f := withSessions(t, testkit.Takes(0), store)
		// Another process claims it after this one has loaded: twice.
		store.SetAfter(func(_ context.Context, call string, n int) error {
			if call == "load" && n <= 2 {
				return claim(store.SessionStore)
			}
			return nil
		})
		r := resume(t, f, "")
		r.wantHeader(t, "known epoch 3 committed 0")
		r.End()
		r.wantEnd(t, "OK", "epoch 3 committed 0")
		if got := stored(t, store); got != "epoch 3 fence 3 committed 0" {
			t.Errorf("the store has %s", got)
		}
	})
}

func TestSessionThatMovesEachTimeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := testkit.NewHookedStore()
		store.SetBefore(func(_ context.Context, call string, _ int) error {
			if call == "save" {
				return flow.ErrSessionMoved
			}
			return nil
		})
		resume(t, withSessions(t, testkit.Takes(0), store), "").wantEnd(t, "Unavailable BACKPRESSURE retry", "")
	})
}

func TestShutdownWhileWaiting(t *testing.T) {
	for name, end := range map[string]func(*flow.Flow[string]){
		"Shutdown": func(f *flow.Flow[string]) { go func() { _ = f.Shutdown(context.Background()) }() },
		"Close":    func(f *flow.Flow[string]) { _ = f.Close() },
	} {
		for _, drain := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := testkit.NewManualHandler()
					f := withSessions(t, stubborn(s), nil, func(o *flow.Options) { o.Shutdown.DrainOnClose = drain })
					old := resume(t, f, "", "a1")
					next := resume(t, f, "epoch=1", "a1")
					end(f)
					next.wantEnd(t, "Unavailable SHUTDOWN retry", "")
					next.wantHeader(t, "")
					s.Finish(t, "a1")
					old.wantEnd(t, "Aborted SESSION_MOVED 1", "epoch 1 committed 1")
					resume(t, f, "epoch=1", "a1").wantEnd(t, "Unavailable SHUTDOWN retry", "")
				})
			})
		}
	}
}

func TestShutdownRefusesAStreamWhoseStoreHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := testkit.NewHookedStore()
		store.SetBefore(func(ctx context.Context, _ string, _ int) error { <-ctx.Done(); return ctx.Err() })
		f := withSessions(t, testkit.Takes(0), store)
		r := resume(t, f, "")
		began := time.Now()
		if err := f.Shutdown(context.Background()); err != nil || time.Since(began) > 0 {
			t.Errorf("Shutdown: %v after %v", err, time.Since(began))
		}
		r.wantEnd(t, "Unavailable SHUTDOWN retry", "")
	})
}

// Whatever keeps a stream from its session, and whenever: the end says so, and has no Fence.
func TestEndSaysHowAStreamLostItsSession(t *testing.T) {
	for name, c := range map[string]struct {
		headers string
		hangs   string // the call of the store during which the stream ends; "": none
		end     func(t *testing.T, f *flow.Flow[string], r *resumed)
		want    string
	}{
		"malformed":        {"epoch=x", "", nil, "refused"},
		"owner":            {"who=nobody", "", nil, "refused"},
		"deposed":          {"epoch=1", "", nil, "moved"},
		"gone during Load": {"", "load", func(_ *testing.T, _ *flow.Flow[string], r *resumed) { r.Cancel(nil) }, "refused"},
		"gone during Save": {"", "save", func(_ *testing.T, _ *flow.Flow[string], r *resumed) { r.Cancel(nil) }, "refused"},
		"shutdown during Save": {"", "save", func(_ *testing.T, f *flow.Flow[string], _ *resumed) {
			go func() { _ = f.Shutdown(context.Background()) }()
		}, "refused"},
		"displaced during Save": {"", "save", func(t *testing.T, f *flow.Flow[string], _ *resumed) {
			resume(t, f, "")
		}, "moved"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, log := testkit.NewHookedStore(), new(testkit.EventLog)
				f := withSessions(t, testkit.Takes(0), store, func(o *flow.Options) {
					o.Observer = log.Observe
					o.Sessions.Owner = func(ctx context.Context) (string, error) {
						if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("flow-who")) > 0 {
							return "", errors.New("who is it?")
						}
						return "", nil
					}
				})
				for range 2 { // two claims: epoch 1 is another's by now
					uploadOK(t, f, "", "a1")
				}
				held, hung := make(chan struct{}), false
				store.SetAfter(func(_ context.Context, call string, _ int) error {
					if call == c.hangs && !hung {
						hung = true
						<-held
					}
					return nil
				})
				r := resume(t, f, c.headers)
				if c.end != nil {
					c.end(t, f, r)
				}
				synctest.Wait()
				close(held)
				if !r.Ended() {
					t.Fatal("Run has not returned")
				}
				for _, e := range log.All() {
					switch {
					case e.Stream != 3:
					case e.Kind == flow.EventSession:
						t.Errorf("told of a session that was %s", e.Found)
					case e.Kind == flow.EventStreamEnd && (e.Found != c.want || e.Session.Fence != 0):
						t.Errorf("the end says %q, of %+v: want %q", e.Found, e.Session, c.want)
					}
				}
			})
		})
	}
}

func TestEndOfAStreamThatHadItsSessionSaysNothingOfHowItWasFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(testkit.EventLog)
		f := withSessions(t, testkit.Takes(0), nil, func(o *flow.Options) { o.Observer = log.Observe })
		uploadOK(t, f, "", "a1")
		for _, e := range log.Of(flow.EventStreamEnd) {
			if e.Found != "" || e.Session.Fence != 1 {
				t.Errorf("the end says %q, of %+v", e.Found, e.Session)
			}
		}
	})
}

func TestIdleTimeoutBeginsWithReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := withSessions(t, stubborn(s), nil, func(o *flow.Options) { o.IdleTimeout = 5 * time.Second })
		resume(t, f, "", "a1")
		next := resume(t, f, "epoch=1", "a1")
		testkit.Advance(8 * time.Second) // longer than IdleTimeout, and it has nothing to read
		if next.Ended() {
			t.Fatal("it was idle while it waited")
		}
		s.Finish(t, "a1")
		next.wantHeader(t, "known epoch 1 committed 1")
		testkit.Advance(5*time.Second - 1)
		if next.Ended() {
			t.Fatal("it was idle before its reading had begun")
		}
		testkit.Advance(1)
		next.wantEnd(t, "DeadlineExceeded CONTEXT_CANCELLED", "epoch 1 committed 1")
	})
}

func TestStartedStreamSpeaksOfItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := withSessions(t, s.Handle, nil)
		source := flowtest.NewSource(t, "a11", "b12", "c13")
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("flow-session", "upload", "flow-start", "11", "flow-skip", "14"))
		st := f.Start(ctx, source.Recv)
		s.Finish(t, "a11", "c13")
		if got := st.Committed(); got != 11 {
			t.Errorf("committed is %d", got)
		}
		if p := st.Progress(); p.Committed() != 11 || p.Settled(12) || !p.Settled(13) || !p.Settled(14) || p.Settled(15) {
			t.Errorf("progress is %v", p)
		}
		s.Finish(t, "b12")
		if got := st.Committed(); got != 14 {
			t.Errorf("committed is %d", got)
		}
		source.End()
		if sum, err := st.Wait(); err != nil || sum.Committed != 14 || sum.Last != 14 {
			t.Errorf("%+v, %v", sum, err)
		}
	})
}
