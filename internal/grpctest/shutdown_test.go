package grpctest_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
)

// stopping is a shutdown as a server does it: Shutdown, then GracefulStop.
type stopping struct {
	err  error // of Shutdown
	flow chan struct{}
	all  chan struct{}
}

func (s *server) shutdown(ctx context.Context, f *flow.Flow[*request]) *stopping {
	d := &stopping{flow: make(chan struct{}), all: make(chan struct{})}
	go func() {
		defer close(d.all)
		d.err = f.Shutdown(ctx)
		close(d.flow)
		s.GracefulStop()
	}()
	synctest.Wait()
	return d
}

func ended(ch <-chan struct{}) bool {
	synctest.Wait()
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestShutdownThenGracefulStopEndsALongLivedStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := newRequestFlow(t, st.Handle, flow.Options{})
		s := serve(t, runs(f))
		idle, busy := s.open(t), s.open(t, "a1", "a2", "a3")
		st.Finish(t, "a1")
		d := s.shutdown(t.Context(), f)
		wantStatus(t, idle.status(t), codes.Unavailable, "SHUTDOWN")
		if ended(d.flow) || s.active.Load() != 1 {
			t.Fatal("Shutdown doesn't wait for the message that runs")
		}
		st.Finish(t, "a2")
		st.WantRunning(t, "") // a3 waited and was dropped
		status := busy.status(t)
		wantStatus(t, status, codes.Unavailable, "SHUTDOWN")
		if testkit.Detail[*errdetails.RetryInfo](status) == nil {
			t.Error("no RetryInfo although a shutdown passes")
		}
		wantProgress(t, busy, 2, 1, 2)
		if !ended(d.all) || d.err != nil {
			t.Errorf("GracefulStop has returned: %v; Shutdown: %v", ended(d.all), d.err)
		}
	})
}

// What GracefulStop does without Shutdown: the reason for the order of the two.
func TestGracefulStopAloneWaitsForALongLivedStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRequestFlow(t, testkit.Takes(0), flow.Options{})
		s := serve(t, runs(f))
		u := s.open(t, "a1")
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			s.GracefulStop()
		}()
		time.Sleep(time.Hour)
		if ended(stopped) {
			t.Fatal("GracefulStop has returned although a stream is open")
		}
		if err := f.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		wantStatus(t, u.status(t), codes.Unavailable, "SHUTDOWN")
		if !ended(stopped) {
			t.Error("GracefulStop waits although the Flow is shut down")
		}
	})
}

func TestNewStreamsAreRefusedFromTheStartOfShutdown(t *testing.T) {
	for _, drain := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			st := testkit.NewManualHandler()
			f := newRequestFlow(t, st.Handle, flow.Options{Shutdown: flow.ShutdownOptions{DrainOnClose: drain}})
			s := serve(t, runs(f))
			old := s.open(t, "a1")
			go func() { _ = f.Shutdown(t.Context()) }()
			synctest.Wait()
			u := s.open(t, "b1")
			status := u.status(t)
			wantStatus(t, status, codes.Unavailable, "SHUTDOWN")
			if info := testkit.Detail[*errdetails.RetryInfo](status); info == nil || info.GetRetryDelay().AsDuration() <= 0 {
				t.Errorf("RetryInfo is %v, want a delay", info)
			}
			if flow.ClassifyFailure(status.Err()) != flow.FailureShutdown {
				t.Errorf("on the client the kind is %v", flow.ClassifyFailure(status.Err()))
			}
			wantProgress(t, u, 0)
			st.WantRunning(t, "a1")
			st.Finish(t, "a1")
			wantStatus(t, old.status(t), codes.Unavailable, "SHUTDOWN")
		})
	}
}

func TestDrainRunsAllThatWasAcceptedAndReadsNoFurther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := newRequestFlow(t, st.Handle, flow.Options{Shutdown: flow.ShutdownOptions{DrainOnClose: true}})
		s := serve(t, runs(f))
		u := s.open(t, "a1", "a2", "a3")
		st.WantRunning(t, "a1")
		d := s.shutdown(t.Context(), f)
		u.send(t, "a4", "a5")
		st.FinishAll(t)
		if got := st.History(); got != "a1 a2 a3" {
			t.Errorf("ran %q, want what was accepted before the shutdown", got)
		}
		wantStatus(t, u.status(t), codes.Unavailable, "SHUTDOWN")
		wantProgress(t, u, 3, 1, 2, 3)
		if !ended(d.all) || d.err != nil {
			t.Errorf("GracefulStop has returned: %v; Shutdown: %v", ended(d.all), d.err)
		}
	})
}

func TestStreamWhoseEndArrivesInItsDrainEndsWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := newRequestFlow(t, st.Handle, flow.Options{Shutdown: flow.ShutdownOptions{DrainOnClose: true}})
		s := serve(t, runs(f))
		u := s.open(t, "a1", "a2")
		d := s.shutdown(t.Context(), f)
		_ = u.CloseSend()
		synctest.Wait()
		st.Finish(t, "a1", "a2")
		if n, status := u.end(t); n != 2 || status.Code() != codes.OK {
			t.Errorf("answer is %d, %v, want 2, OK", n, status)
		}
		if !ended(d.all) || d.err != nil {
			t.Errorf("GracefulStop has returned: %v; Shutdown: %v", ended(d.all), d.err)
		}
	})
}

func TestGracePeriodCutsOffAndTheClientStillGetsItsStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := newRequestFlow(t, st.Handle, flow.Options{
			Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			Shutdown: flow.ShutdownOptions{DrainOnClose: true, GracePeriod: 5 * time.Second},
		})
		s := serve(t, runs(f))
		u := s.open(t, "a1", "b1", "a2")
		st.Finish(t, "b1")
		begun := time.Now()
		d := s.shutdown(t.Context(), f)
		status := u.status(t)
		if took := time.Since(begun); took != 5*time.Second {
			t.Errorf("the cut came after %v, want 5s", took)
		}
		wantStatus(t, status, codes.Unavailable, "SHUTDOWN")
		wantProgress(t, u, 0, 2)
		if !ended(d.all) {
			t.Fatal("GracefulStop waits")
		}
		cut, ok := errors.AsType[*flow.ShutdownError](d.err)
		if !ok || cut.CutOff != 2 || cut.Seq != 1 || cut.Key != "a" || !errors.Is(cut, flow.ErrGracePeriod) {
			t.Errorf("Shutdown: %+v, want two cut off, the first with seq 1", d.err)
		}
	})
}

func TestShutdownsContextCutsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := newRequestFlow(t, st.Handle, flow.Options{})
		s := serve(t, runs(f))
		u := s.open(t, "a1", "a2")
		why := errors.New("the machine goes down")
		ctx, cancel := context.WithCancelCause(t.Context())
		d := s.shutdown(ctx, f)
		cancel(why)
		wantStatus(t, u.status(t), codes.Unavailable, "SHUTDOWN")
		if !ended(d.all) || !errors.Is(d.err, why) {
			t.Errorf("Shutdown: %v, want %v", d.err, why)
		}
	})
}

// A client of a server that goes down resumes on the next one: nothing is lost, and nothing runs twice.
func TestClientResumesOnAnotherServerAfterShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		keyed := flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}}
		f := newRequestFlow(t, st.Handle, keyed)
		s := serve(t, runs(f))
		sent := []string{"a1", "b1", "a2", "c1", "b2"}
		u := s.open(t, sent...)
		st.WantRunning(t, "a1 b1 c1")
		st.Finish(t, "c1", "b1")
		d := s.shutdown(t.Context(), f)
		st.Finish(t, "a1", "b2")
		wantStatus(t, u.status(t), codes.Unavailable, "SHUTDOWN")
		p, _ := flow.ProgressFromTrailer(u.Trailer())
		if !ended(d.all) {
			t.Fatal("GracefulStop waits")
		}
		next := serve(t, runs(newRequestFlow(t, st.Handle, keyed)))
		again := next.open(t, slices.Collect(flow.Rest(p, slices.Values(sent)))...)
		_ = again.CloseSend()
		st.FinishAll(t)
		if _, status := again.end(t); status.Code() != codes.OK {
			t.Errorf("the rest ended with %v", status)
		}
		var ran []string
		for _, m := range st.Attempts() {
			ran = append(ran, m.Value)
		}
		checkEachOnceInOrderOfKeys(t, ran, sent)
	})
}
