package sessiontest_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"example.com/flow"
	"example.com/flow/internal/testkit"
)

// batchesWithSessions is a Flow of batches, one call at a time, that has sessions.
func batchesWithSessions(t testing.TB, h flow.BatchHandler[string], store flow.SessionStore) *flow.Flow[string] {
	t.Helper()
	f, err := flow.NewBatch(h, testkit.KeyOf, flow.Options{
		Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}, Sessions: &flow.SessionOptions{Store: store},
		Backpressure: flow.BackpressureOptions{Capacity: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// inOneCall brings messages of two sessions, "upload" and "other", into one call.
func inOneCall(t testing.TB, f *flow.Flow[string], s *testkit.ManualBatchHandler, upload, other string) (u, o *resumed) {
	t.Helper()
	first := testkit.Start(t, f, "z1") // holds the slot until both are there
	s.WantCalls(t, "z1")
	u = resume(t, f, "", upload)
	o = resume(t, f, "session=other", other)
	first.End()
	s.Succeed(t, "z1")
	s.WantCalls(t, upload+" "+other)
	return u, o
}

func TestOldStreamEndsFirstInABatch(t *testing.T) {
	for _, done := range []bool{true, false} {
		t.Run(fmt.Sprint("done: ", done), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := new(testkit.ManualBatchHandler)
				f := batchesWithSessions(t, s.Handle, nil)
				old, other := inOneCall(t, f, s, "a1", "b1")
				next := resume(t, f, "epoch=1", "a1", "a2")
				if old.Ended() || next.Received() > 0 || s.CauseOf(t, "a1 b1") != nil {
					t.Fatal("the call that the earlier stream's message is in was not waited for, or was cancelled")
				}
				other.wantHeader(t, "new epoch 1 committed 0")
				if done {
					s.Succeed(t, "a1 b1")
					old.wantEnd(t, "Aborted SESSION_MOVED 1", "epoch 1 committed 1")
					s.WantCalls(t, "a2")
					s.Succeed(t, "a2")
				} else {
					s.Return(t, "a1 b1", flow.ErrNotAttempted, nil)
					old.wantEnd(t, "Aborted SESSION_MOVED 1", "epoch 1 committed 0")
					s.WantCalls(t, "a1 a2")
					s.Succeed(t, "a1 a2")
				}
				next.End()
				next.wantEnd(t, "OK", "epoch 1 committed 2")
				other.End()
				other.wantEnd(t, "OK", "epoch 1 committed 1")
			})
		})
	}
}

func TestOldStreamEndsFirstInIsolation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(testkit.ManualBatchHandler)
		f := batchesWithSessions(t, s.Handle, nil)
		old, other := inOneCall(t, f, s, "a1", "b1")
		s.Fail(t, "a1 b1", testkit.ErrHandler) // it is halved
		s.WantCalls(t, "a1")
		next := resume(t, f, "epoch=1", "a1")
		s.Fail(t, "a1", testkit.ErrHandler)
		old.wantEnd(t, "Aborted SESSION_MOVED 1", "epoch 1 committed 0")
		for _, call := range []string{"b1", "a1"} {
			s.WantCalls(t, call)
			s.Succeed(t, call)
		}
		next.End()
		next.wantEnd(t, "OK", "epoch 1 committed 1")
		other.End()
		other.wantEnd(t, "OK", "epoch 1 committed 1")
	})
}

func TestBatchThatSeesASessionMovedEndsItsStreamAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(testkit.ManualBatchHandler)
		store := flow.NewSessionMemory(0, 0)
		f := batchesWithSessions(t, s.Handle, store)
		old, other := inOneCall(t, f, s, "a1", "b1")
		if id := s.Call(t, "a1 b1").Batch[1].Session().ID; id.Name != "other" {
			t.Errorf("the session of b1 is %v", id)
		}
		if err := claim(store); err != nil {
			t.Fatal(err)
		}
		s.Return(t, "a1 b1", flow.Permanent(fmt.Errorf("the fence is another: %w", flow.ErrSessionMoved)), nil)
		old.wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "epoch 1 committed 0")
		if _, err := old.Result(t); !errors.Is(err, flow.ErrSessionMoved) {
			t.Error(err)
		}
		other.End()
		other.wantEnd(t, "OK", "epoch 1 committed 1")
	})
}

// A handler that rolls all of it back, since one session has moved, returns that error for the call.
func TestBatchThatFailsSinceASessionMovedEndsThatStreamAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(testkit.ManualBatchHandler)
		store := flow.NewSessionMemory(0, 0)
		f := batchesWithSessions(t, s.Handle, store)
		old, other := inOneCall(t, f, s, "a1", "b1")
		if err := claim(store); err != nil {
			t.Fatal(err)
		}
		s.Fail(t, "a1 b1", flow.Permanent(fmt.Errorf("the fence is another: %w", flow.ErrSessionMoved)))
		old.wantEnd(t, "FailedPrecondition SESSION_MOVED 2", "epoch 1 committed 0")
		if sum, err := old.Result(t); !errors.Is(err, flow.ErrSessionMoved) || sum.Failed != 1 {
			t.Error(sum, err)
		}
		s.WantCalls(t, "b1")
		s.Succeed(t, "b1")
		other.End()
		other.wantEnd(t, "OK", "epoch 1 committed 1")
	})
}
