package sessiontest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
)

func TestSaveEveryBoundsWhatAKillLoses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		store := testkit.NewHookedStore()
		f := withSessions(t, s.Handle, store, func(o *flow.Options) { o.Sessions.SaveEvery = 5 * time.Second })
		r := resume(t, f, "", "a1", "b2", "c3")
		s.Finish(t, "a1")
		testkit.Advance(5*time.Second - 1)
		if got := stored(t, store); got != "epoch 1 fence 1 committed 0" {
			t.Errorf("before SaveEvery the store has %s", got)
		}
		testkit.Advance(1)
		if got := stored(t, store); got != "epoch 1 fence 1 committed 1" {
			t.Errorf("after SaveEvery the store has %s", got)
		}
		saves := store.Called("save")
		testkit.Advance(time.Hour) // nothing changes
		if n := store.Called("save"); n != saves {
			t.Errorf("%d Saves without a change", n-saves)
		}
		s.FinishAll(t)
		r.End()
		r.wantEnd(t, "OK", "epoch 1 committed 3")
		if got := stored(t, store); got != "epoch 1 fence 1 committed 3" {
			t.Errorf("in the end the store has %s", got)
		}
	})
}

// What arms the saver comes after the message is received: a tick that came between saw no change, and what the message had
// done was saved with the next one only.
func TestSaveEveryCountsFromTheReceiptOfAMessageWhoseKeyIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, store := testkit.NewManualHandler(), testkit.NewHookedStore()
		f, err := flow.New(s.Handle, func(v string) string {
			time.Sleep(3 * time.Second)
			return v[:1]
		}, flow.Options{
			Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			Sessions: &flow.SessionOptions{Store: store, SaveEvery: time.Second},
		})
		if err != nil {
			t.Fatal(err)
		}
		r := resume(t, f, "", "a1")
		testkit.Advance(3 * time.Second)
		s.Finish(t, "a1")
		testkit.Advance(time.Second)
		if got := stored(t, store); got != "epoch 1 fence 1 committed 1" {
			t.Errorf("after SaveEvery the store has %s", got)
		}
		r.End()
		r.wantEnd(t, "OK", "epoch 1 committed 1")
	})
}

func TestSaveMovedEndsStream(t *testing.T) {
	for _, c := range []struct{ headers, end string }{
		{"epoch=1", "Aborted SESSION_MOVED 1"},
		{"", "FailedPrecondition SESSION_MOVED 2"},
	} {
		t.Run(c.end, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				store := flow.NewSessionMemory(0, 0)
				f, other := withSessions(t, s.Handle, store), withSessions(t, testkit.Takes(0), store)
				r := resume(t, f, "", "a1", "b2")
				uploadOK(t, other, c.headers)
				s.Finish(t, "a1")
				s.WantRunning(t, "b2")
				testkit.Advance(time.Second) // the next Save
				r.wantEnd(t, c.end, "epoch 1 committed 1")
				_, err := r.Result(t)
				if !errors.Is(err, flow.ErrSessionMoved) || flow.ClassifyFailure(err) != flow.FailureContextCancelled {
					t.Errorf("ended with %v", err)
				}
				// At the end of a stream that went well, too.
				r = resume(t, f, "", "a1", "c3")
				uploadOK(t, other, "")
				r.End()
				s.FinishAll(t)
				if _, err := r.Result(t); !errors.Is(err, flow.ErrSessionMoved) {
					t.Errorf("ended with %v", err)
				}
			})
		})
	}
}

func TestHandlerThatSeesTheSessionMovedEndsStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		store := testkit.NewHookedStore()
		f := withSessions(t, s.Handle, store)
		saw := flow.Permanent(fmt.Errorf("the fence is another: %w", flow.ErrSessionMoved))
		r := resume(t, f, "", "a1", "b2")
		if err := claim(store.SessionStore); err != nil {
			t.Fatal(err)
		}
		s.Fail(t, "a1", saw)
		sum := r.wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "epoch 1 committed 0") // and not that message 1 has failed
		if sum.Failed != 2 {
			t.Errorf("%+v", sum)
		}
		// If it has not moved, the handler has failed.
		r = resume(t, f, "", "a1")
		s.Fail(t, "a1", saw)
		if _, err := r.Result(t); flow.ClassifyFailure(err) != flow.FailureHandlerError {
			t.Errorf("not moved: %v", err)
		}
		// If nobody can say, the store has: the message may be somebody else's to do.
		r = resume(t, f, "", "a1")
		store.SetBefore(func(context.Context, string, int) error { return testkit.ErrHandler })
		s.Fail(t, "a1", saw)
		r.wantEnd(t, "Unavailable BACKPRESSURE retry", "epoch 4 committed 0")
		store.SetBefore(nil)
	})
}

// One of them waits for the store, and not each in turn.
func TestHandlersThatSeeTheSessionMovedWaitOnceForAStoreThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := testkit.NewHookedStore()
		saw := flow.Permanent(fmt.Errorf("the fence is another: %w", flow.ErrSessionMoved))
		release := make(chan struct{})
		f := withSessions(t, func(context.Context, flow.Message[string]) error { <-release; return saw }, store)
		r := resume(t, f, "", "a1", "b2", "c3", "d4", "e5", "f6")
		synctest.Wait()
		store.SetBefore(func(ctx context.Context, _ string, _ int) error { <-ctx.Done(); return ctx.Err() })
		began := time.Now()
		close(release)
		<-r.Done
		if took := time.Since(began); took > 20*time.Second { // one look and the last Save
			t.Errorf("the stream took %v to end", took)
		}
		r.wantEnd(t, "Unavailable BACKPRESSURE retry", "epoch 1 committed 0")
	})
}

func TestSaveFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(testkit.EventLog)
		s := testkit.NewManualHandler()
		store := testkit.NewHookedStore()
		f := withSessions(t, s.Handle, store, func(o *flow.Options) { o.Observer = p.Observe })
		r := resume(t, f, "", "a1", "b2")
		errDown := errors.New("down")
		store.SetAfter(func(_ context.Context, call string, _ int) error { // each Save is done, and its answer lost
			if call == "save" {
				return errDown
			}
			return nil
		})
		s.Finish(t, "a1")
		testkit.Advance(3 * time.Second)
		s.WantRunning(t, "b2") // it ends nothing
		failures := p.Of(flow.EventSaveFailed)
		if len(failures) != 3 {
			t.Fatalf("%d failures are told, want 3", len(failures))
		}
		if e := failures[0]; !errors.Is(e.Failure, errDown) || e.Session.ID != uploadID || e.Session.Epoch != 1 {
			t.Errorf("told of %+v", e)
		}
		store.SetAfter(nil)
		testkit.Advance(time.Second)
		if len(p.Of(flow.EventSaveFailed)) != 3 || stored(t, store) != "epoch 1 fence 1 committed 1" {
			t.Errorf("afterwards the store has %s", stored(t, store))
		}
		store.SetBefore(func(context.Context, string, int) error { return errDown })
		s.Finish(t, "b2")
		r.End()
		r.wantEnd(t, "OK", "epoch 1 committed 2") // trailers are true without it
		store.SetBefore(nil)
		// The client's flow-start brings it back.
		r = resume(t, f, "epoch=1 start=3")
		r.wantHeader(t, "known epoch 1 committed 2")
		r.End()
		r.wantEnd(t, "OK", "epoch 1 committed 2")
	})
}

func TestSaveHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(testkit.EventLog)
		store := testkit.NewHookedStore()
		f := withSessions(t, testkit.Takes(0), store, func(o *flow.Options) {
			o.Observer, o.Sessions.Takeover = p.Observe, 4*time.Second
		})
		r := resume(t, f, "", "a1")
		store.SetBefore(func(ctx context.Context, _ string, _ int) error { time.Sleep(time.Hour); return nil }) // not even heeding ctx
		began := time.Now()
		r.End()
		<-r.Done
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("the answer took %v", took)
		}
		r.wantEnd(t, "OK", "epoch 1 committed 1")
		if p.Count(flow.EventSaveFailed) != 1 {
			t.Errorf("%d failures are told", p.Count(flow.EventSaveFailed))
		}
		next := resume(t, f, "epoch=1 start=2")
		testkit.Advance(4 * time.Second)
		next.wantEnd(t, "Unavailable BACKPRESSURE retry", "")
		testkit.Advance(3 * time.Hour)
	})
}

func TestStoreFailsAtTheBeginning(t *testing.T) {
	for name, broken := range map[string]func(call string) error{
		"Load":          func(call string) error { return map[string]error{"load": testkit.ErrHandler}[call] },
		"Save":          func(call string) error { return map[string]error{"save": testkit.ErrHandler}[call] },
		"Load panics":   func(string) error { panic("store") },
		"a wrapped end": func(string) error { return context.Canceled },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := testkit.NewHookedStore()
				store.SetBefore(func(_ context.Context, call string, _ int) error { return broken(call) })
				f := withSessions(t, testkit.Takes(0), store)
				r := resume(t, f, "", "a1")
				r.wantEnd(t, "Unavailable BACKPRESSURE retry", "")
				r.wantHeader(t, "")
				store.SetBefore(nil)
				if sum := uploadOK(t, f, "", "a1"); sum.Succeeded != 1 {
					t.Errorf("%+v", sum)
				}
			})
		})
	}
}

func TestCloseBoundsTheLastSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		store := testkit.NewHookedStore()
		f := withSessions(t, s.Handle, store)
		r := resume(t, f, "", "a1", "b2")
		s.Finish(t, "a1")
		store.SetBefore(func(ctx context.Context, _ string, _ int) error { <-ctx.Done(); return ctx.Err() })
		began := time.Now()
		_ = f.Close()
		<-r.Done
		if took := time.Since(began); took > time.Second || took < 900*time.Millisecond {
			t.Errorf("after Close the stream took %v, want all of a second but for what it takes to leave", took)
		}
		r.wantEnd(t, "Unavailable SHUTDOWN retry", "epoch 1 committed 1")
	})
}

func TestShutdownBoundsTheLastSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		store := testkit.NewHookedStore()
		f := withSessions(t, s.Handle, store, func(o *flow.Options) { o.Shutdown.GracePeriod = 2 * time.Second })
		r := resume(t, f, "", "a1")
		store.SetBefore(func(ctx context.Context, _ string, _ int) error { <-ctx.Done(); return ctx.Err() })
		began := time.Now()
		time.AfterFunc(time.Second, func() { s.Finish(t, "a1") })
		if err := f.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		<-r.Done
		if took := time.Since(began); took > 3*time.Second || took < 2900*time.Millisecond {
			t.Errorf("Shutdown took %v, want all of the grace period and a second but for what it takes to leave", took)
		}
		r.wantEnd(t, "Unavailable SHUTDOWN retry", "epoch 1 committed 1")
	})
}

func TestDrainKeepsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, s2 := testkit.NewManualHandler(), testkit.NewManualHandler()
		store := flow.NewSessionMemory(0, 0)
		f := withSessions(t, s.Handle, store, func(o *flow.Options) { o.Shutdown.DrainOnClose = true })
		r := resume(t, f, "", "a1", "a2", "a3")
		down := make(chan error, 1)
		go func() { down <- f.Shutdown(context.Background()) }()
		s.WantRunning(t, "a1")
		s.FinishAll(t)
		if err := <-down; err != nil {
			t.Error(err)
		}
		r.wantEnd(t, "Unavailable SHUTDOWN retry", "epoch 1 committed 3")
		other := withSessions(t, s2.Handle, store)
		next := resume(t, other, "epoch=1", "a1", "a2", "a3", "a4")
		next.wantHeader(t, "known epoch 1 committed 3")
		s2.WantRunning(t, "a4")
		s2.FinishAll(t)
		next.End()
		next.wantEnd(t, "OK", "epoch 1 committed 4")
	})
}
