package grpctest_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

func TestServiceMethodRunsEveryMessageAndAnswersOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, runs(newRequestFlow(t, testkit.Takes(time.Second), flow.Options{})))
		begun := time.Now()
		u := s.open(t, "a1", "a2", "b1", "b2", "c1")
		if n, st := u.end(t); n != 5 || st.Code() != codes.OK {
			t.Fatalf("answer is %d, %v, want 5, OK", n, st)
		}
		if took := time.Since(begun); took != 5*time.Second {
			t.Errorf("five messages of a second each, one at a time, took %v", took)
		}
		wantProgress(t, u, 5, 1, 2, 3, 4, 5)
	})
}

func TestStreamWithoutMessagesEndsWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := serve(t, runs(newRequestFlow(t, testkit.Takes(0), flow.Options{}))).open(t)
		if n, st := u.end(t); n != 0 || st.Code() != codes.OK {
			t.Errorf("answer is %d, %v, want 0, OK", n, st)
		}
		wantProgress(t, u, 0)
	})
}

func TestOversizedMessageStaysResourceExhausted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sum flow.Summary
		var err error
		st := testkit.NewManualHandler()
		f := newRequestFlow(t, st.Handle, flow.Options{})
		s := serve(t, func(stream uploading) error {
			sum, err = f.Run(stream.Context(), stream.Recv)
			return err
		}, grpc.MaxRecvMsgSize(64))
		u := s.open(t, "a1", "a2")
		st.WantRunning(t, "a1")
		u.send(t, strings.Repeat("x", 100))
		if got := u.status(t); got.Code() != codes.ResourceExhausted {
			t.Errorf("the client sees %v, want ResourceExhausted", got)
		}
		synctest.Wait()
		f2 := testkit.FailureOf(t, err, flow.FailureInternal)
		if f2.GRPCStatus().Code() != codes.ResourceExhausted || f2.Seq != 0 {
			t.Errorf("Run returned %v of message %d, want ResourceExhausted of the stream", f2.GRPCStatus(), f2.Seq)
		}
		testkit.CheckConserved(t, sum)
		if sum.Received != 2 || sum.Failed != 1 || sum.Dropped != 1 {
			t.Errorf("summary is %+v, want the first cut off and the second dropped", sum)
		}
	})
}

// outcome is what a Run in a service method returned.
type outcome struct {
	sum flow.Summary
	err error
}

// reports is runs, which also keeps what Run returned.
func reports(f *flow.Flow[*request], o *outcome) func(uploading) error {
	return func(stream uploading) (err error) {
		if o.sum, err = f.Run(stream.Context(), stream.Recv); err != nil {
			o.err = err
			return err
		}
		return answer(stream, o.sum)
	}
}

func TestClientThatGoesAwayEndsRunAtOnce(t *testing.T) {
	for _, c := range []struct {
		name  string
		leave func(*server, *upload)
		code  codes.Code // at the client
	}{
		{"cancel", func(_ *server, u *upload) { u.cancel() }, codes.Canceled},
		{"close of the connection", func(s *server, _ *upload) { _ = s.conn.Close() }, codes.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got outcome
				st := testkit.NewManualHandler()
				s := serve(t, reports(newRequestFlow(t, st.Handle, flow.Options{}), &got))
				u := s.open(t, "a1", "a2")
				st.WantRunning(t, "a1")
				c.leave(s, u)
				if code := u.status(t).Code(); code != c.code {
					t.Errorf("the client sees %v, want %v", code, c.code)
				}
				time.Sleep(100 * time.Millisecond) // Run awaits a blocked recv for a moment
				st.WantRunning(t, "")
				if s.active.Load() != 0 {
					t.Fatal("the service method has not returned")
				}
				fail := testkit.FailureOf(t, got.err, flow.FailureContextCancelled)
				if fail.GRPCStatus().Code() != codes.Canceled {
					t.Errorf("Run's status is %v, want Canceled", fail.GRPCStatus())
				}
				testkit.CheckConserved(t, got.sum)
				if got.sum.Received != 2 || got.sum.Failed != 1 || got.sum.Dropped != 1 {
					t.Errorf("summary is %+v, want the running one failed and the waiting one dropped", got.sum)
				}
			})
		})
	}
}

func TestDeadlineOfTheCallEndsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got outcome
		st := testkit.NewManualHandler()
		s := serve(t, reports(newRequestFlow(t, st.Handle, flow.Options{}), &got))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		u := openOn(t, ctx, s.client, "a1", "a2")
		begun := time.Now()
		if code := u.status(t).Code(); code != codes.DeadlineExceeded {
			t.Errorf("the client sees %v, want DeadlineExceeded", code)
		}
		if took := time.Since(begun); took != 3*time.Second {
			t.Errorf("it took %v, want 3s", took)
		}
		time.Sleep(100 * time.Millisecond)
		st.WantRunning(t, "")
		testkit.FailureOf(t, got.err, flow.FailureContextCancelled)
		testkit.CheckConserved(t, got.sum)
	})
}

func TestHandlersFailureEndsTheStreamOfASilentClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		s := serve(t, runs(newRequestFlow(t, st.Handle, flow.Options{
			Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		})))
		u := s.open(t, "a1", "b1", "a2")
		st.WantRunning(t, "a1 b1")
		begun := time.Now()
		st.Fail(t, "a1", testkit.ErrHandler)
		if s.active.Load() != 0 {
			t.Error("the service method waits for its client")
		}
		wantStatus(t, u.status(t), codes.Unknown, "HANDLER_ERROR")
		if took := time.Since(begun); took != 0 {
			t.Errorf("it took %v", took)
		}
		st.WantRunning(t, "")
	})
}
