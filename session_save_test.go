package flow_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"example.com/flow"
)

func TestSaveEveryBoundsWhatAKillLoses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		store := newBrokenStore()
		f := withSessions(t, s.handle, store, func(o *flow.Options) { o.Sessions.SaveEvery = 5 * time.Second })
		r := resume(t, f, "", "a1", "b2", "c3")
		s.finish(t, "a1")
		pass(5*time.Second - 1)
		if got := stored(t, store); got != "epoch 1 fence 1 committed 0" {
			t.Errorf("before SaveEvery the store has %s", got)
		}
		pass(1)
		if got := stored(t, store); got != "epoch 1 fence 1 committed 1" {
			t.Errorf("after SaveEvery the store has %s", got)
		}
		saves := store.called("save")
		pass(time.Hour) // nothing changes
		if n := store.called("save"); n != saves {
			t.Errorf("%d Saves without a change", n-saves)
		}
		s.finishAll(t)
		r.End()
		r.wantEnd(t, "OK", "epoch 1 committed 3")
		if got := stored(t, store); got != "epoch 1 fence 1 committed 3" {
			t.Errorf("in the end the store has %s", got)
		}
	})
}

func TestSaveMovedEndsStream(t *testing.T) {
	for _, c := range []struct{ headers, end string }{
		{"epoch=1", "Aborted SESSION_MOVED 1"},
		{"", "FailedPrecondition SESSION_MOVED 2"},
	} {
		t.Run(c.end, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newStage()
				store := flow.NewSessionMemory(0, 0)
				f, other := withSessions(t, s.handle, store), withSessions(t, takes(0), store)
				r := resume(t, f, "", "a1", "b2")
				uploadOK(t, other, c.headers)
				s.finish(t, "a1")
				wantNow(t, s, "b2")
				pass(time.Second) // the next Save
				r.wantEnd(t, c.end, "epoch 1 committed 1")
				_, err := r.result(t)
				if !errors.Is(err, flow.ErrSessionMoved) || flow.ClassifyFailure(err) != flow.FailureContextCancelled {
					t.Errorf("ended with %v", err)
				}
				// At the end of a stream that went well, too.
				r = resume(t, f, "", "a1", "c3")
				uploadOK(t, other, "")
				r.End()
				s.finishAll(t)
				if _, err := r.result(t); !errors.Is(err, flow.ErrSessionMoved) {
					t.Errorf("ended with %v", err)
				}
			})
		})
	}
}

func TestHandlerThatSeesTheSessionMovedEndsStream(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		store := newBrokenStore()
		f := withSessions(t, s.handle, store)
		saw := flow.Permanent(fmt.Errorf("the fence is another: %w", flow.ErrSessionMoved))
		r := resume(t, f, "", "a1", "b2")
		if err := claim(store.SessionStore); err != nil {
			t.Fatal(err)
		}
		s.fail(t, "a1", saw)
		sum := r.wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "epoch 1 committed 0") // and not that message 1 has failed
		if sum.Failed != 2 {
			t.Errorf("%+v", sum)
		}
		// If it has not moved, the handler has failed. The same goes for what can't be known.
		for name, h := range map[string]hook{
			"not moved": nil, "not known": func(context.Context, string, int) error { return errHandler },
		} {
			r = resume(t, f, "", "a1")
			store.setBefore(h)
			s.fail(t, "a1", saw)
			if _, err := r.result(t); flow.ClassifyFailure(err) != flow.FailureHandlerError {
				t.Errorf("%s: %v", name, err)
			}
			store.setBefore(nil)
		}
	})
}

func TestSaveFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := new(tape)
		s := newStage()
		store := newBrokenStore()
		f := withSessions(t, s.handle, store, func(o *flow.Options) { o.Observer = p.observe })
		r := resume(t, f, "", "a1", "b2")
		errDown := errors.New("down")
		store.setAfter(func(_ context.Context, call string, _ int) error { // each Save is done, and its answer lost
			if call == "save" {
				return errDown
			}
			return nil
		})
		s.finish(t, "a1")
		pass(3 * time.Second)
		wantNow(t, s, "b2") // it ends nothing
		failures := p.only(flow.EventSaveFailed)
		if len(failures) != 3 {
			t.Fatalf("%d failures are told, want 3", len(failures))
		}
		if e := failures[0]; !errors.Is(e.Failure, errDown) || e.Session.ID != uploadID || e.Session.Epoch != 1 {
			t.Errorf("told of %+v", e)
		}
		store.setAfter(nil)
		pass(time.Second)
		if len(p.only(flow.EventSaveFailed)) != 3 || stored(t, store) != "epoch 1 fence 1 committed 1" {
			t.Errorf("afterwards the store has %s", stored(t, store))
		}
		store.setBefore(func(context.Context, string, int) error { return errDown })
		s.finish(t, "b2")
		r.End()
		r.wantEnd(t, "OK", "epoch 1 committed 2") // trailers are true without it
		store.setBefore(nil)
		// The client's flow-start brings it back.
		r = resume(t, f, "epoch=1 start=3")
		r.wantHeader(t, "known epoch 1 committed 2")
		r.End()
		r.wantEnd(t, "OK", "epoch 1 committed 2")
	})
}

func TestSaveHangs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := new(tape)
		store := newBrokenStore()
		f := withSessions(t, takes(0), store, func(o *flow.Options) {
			o.Observer, o.Sessions.Takeover = p.observe, 4*time.Second
		})
		r := resume(t, f, "", "a1")
		store.setBefore(func(ctx context.Context, _ string, _ int) error { time.Sleep(time.Hour); return nil }) // not even heeding ctx
		began := time.Now()
		r.End()
		<-r.done
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("the answer took %v", took)
		}
		r.wantEnd(t, "OK", "epoch 1 committed 1")
		if p.has(flow.EventSaveFailed) != 1 {
			t.Errorf("%d failures are told", p.has(flow.EventSaveFailed))
		}
		next := resume(t, f, "epoch=1 start=2")
		pass(4 * time.Second)
		next.wantEnd(t, "Unavailable BACKPRESSURE retry", "")
		pass(3 * time.Hour)
	})
}

func TestStoreFailsAtTheBeginning(t *testing.T) {
	for name, broken := range map[string]func(call string) error{
		"Load":          func(call string) error { return map[string]error{"load": errHandler}[call] },
		"Save":          func(call string) error { return map[string]error{"save": errHandler}[call] },
		"Load panics":   func(string) error { panic("store") },
		"a wrapped end": func(string) error { return context.Canceled },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				store := newBrokenStore()
				store.setBefore(func(_ context.Context, call string, _ int) error { return broken(call) })
				f := withSessions(t, takes(0), store)
				r := resume(t, f, "", "a1")
				r.wantEnd(t, "Unavailable BACKPRESSURE retry", "")
				r.wantHeader(t, "")
				store.setBefore(nil)
				if sum := uploadOK(t, f, "", "a1"); sum.Succeeded != 1 {
					t.Errorf("%+v", sum)
				}
			})
		})
	}
}

func TestCloseBoundsTheLastSave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		store := newBrokenStore()
		f := withSessions(t, s.handle, store)
		r := resume(t, f, "", "a1", "b2")
		s.finish(t, "a1")
		store.setBefore(func(ctx context.Context, _ string, _ int) error { <-ctx.Done(); return ctx.Err() })
		began := time.Now()
		_ = f.Close()
		<-r.done
		if took := time.Since(began); took > time.Second || took < 900*time.Millisecond {
			t.Errorf("after Close the stream took %v, want all of a second but for what it takes to leave", took)
		}
		r.wantEnd(t, "Unavailable SHUTDOWN retry", "epoch 1 committed 1")
	})
}

func TestShutdownBoundsTheLastSave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		store := newBrokenStore()
		f := withSessions(t, s.handle, store, func(o *flow.Options) { o.Shutdown.GracePeriod = 2 * time.Second })
		r := resume(t, f, "", "a1")
		store.setBefore(func(ctx context.Context, _ string, _ int) error { <-ctx.Done(); return ctx.Err() })
		began := time.Now()
		time.AfterFunc(time.Second, func() { s.finish(t, "a1") })
		if err := f.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		<-r.done
		if took := time.Since(began); took > 3*time.Second || took < 2900*time.Millisecond {
			t.Errorf("Shutdown took %v, want all of the grace period and a second but for what it takes to leave", took)
		}
		r.wantEnd(t, "Unavailable SHUTDOWN retry", "epoch 1 committed 1")
	})
}

func TestDrainKeepsSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, s2 := newStage(), newStage()
		store := flow.NewSessionMemory(0, 0)
		f := withSessions(t, s.handle, store, func(o *flow.Options) { o.Shutdown.DrainOnClose = true })
		r := resume(t, f, "", "a1", "a2", "a3")
		down := make(chan error, 1)
		go func() { down <- f.Shutdown(context.Background()) }()
		wantNow(t, s, "a1")
		s.finishAll(t)
		if err := <-down; err != nil {
			t.Error(err)
		}
		r.wantEnd(t, "Unavailable SHUTDOWN retry", "epoch 1 committed 3")
		other := withSessions(t, s2.handle, store)
		next := resume(t, other, "epoch=1", "a1", "a2", "a3", "a4")
		next.wantHeader(t, "known epoch 1 committed 3")
		wantNow(t, s2, "a4")
		s2.finishAll(t)
		next.End()
		next.wantEnd(t, "OK", "epoch 1 committed 4")
	})
}
