package grpctest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
)

// sessionFlow is newRequestFlow with sessions.
func sessionFlow(t testing.TB, h flow.Handler[string], o flow.SessionOptions) *flow.Flow[*request] {
	t.Helper()
	return newRequestFlow(t, h, flow.Options{
		Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}, Sessions: &o,
	})
}

// forSession is a client's context that asks for the session "upload", with further headers as pairs.
func forSession(pairs ...string) context.Context {
	return metadata.AppendToOutgoingContext(context.Background(), append([]string{"flow-session", "upload"}, pairs...)...)
}

// wantSaid checks what a header or the trailers say.
func wantSaid(t testing.TB, md metadata.MD, want string) {
	t.Helper()
	if got := testkit.SessionMetadata(md); got != want {
		t.Fatalf("%v says %q, want %q", md, got, want)
	}
}

func TestNumbersNeedNoHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		s := serve(t, runs(sessionFlow(t, st.Handle, flow.SessionOptions{})))
		u := openOn(t, forSession(), s.client, "a1", "b2", "c3")
		st.Finish(t, "a1", "c3")
		u.cancel() // its answer is lost, and so is its header: it never looked
		testkit.Advance(time.Second)
		u = openOn(t, forSession("flow-start", "1"), s.client, "a1", "b2", "c3", "d4")
		st.WantRunning(t, "b2 d4")
		st.FinishAll(t)
		if n, status := u.end(t); n != 2 || status.Code() != codes.OK {
			t.Errorf("answer is %d, %v", n, status)
		}
		wantSaid(t, u.Trailer(), "epoch 2 committed 4")
	})
}

func TestHeaderBefore1stRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		s := serve(t, runs(sessionFlow(t, st.Handle, flow.SessionOptions{})))
		u := openOn(t, forSession(), s.client)
		if !u.headerSent() {
			t.Fatal("no header although the session is taken")
		}
		md, err := u.Header()
		if err != nil {
			t.Fatal(err)
		}
		wantSaid(t, md, "new epoch 1 committed 0")
		u.send(t, "a1")
		st.Finish(t, "a1")
		if n, status := u.end(t); n != 1 {
			t.Errorf("answer is %d, %v", n, status)
		}
	})
}

func TestServicesOwnHeaderTakesThePlaceOfFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sessionFlow(t, testkit.Takes(0), flow.SessionOptions{})
		s := serve(t, func(stream uploading) error {
			if err := stream.SendHeader(metadata.Pairs("own", "yes")); err != nil {
				return err
			}
			return runs(f)(stream)
		})
		u := openOn(t, forSession(), s.client, "a1")
		if n, status := u.end(t); n != 1 {
			t.Fatalf("answer is %d, %v", n, status)
		}
		md, _ := u.Header()
		wantSaid(t, md, "")
		wantSaid(t, u.Trailer(), "epoch 1 committed 1")
	})
}

func TestSessionThroughTheInterceptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := sessionFlow(t, st.Handle, flow.SessionOptions{})
		s := serve(t, func(stream uploading) error {
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
				return err
			}
			sum, _ := flow.SummaryFromContext(stream.Context())
			return answer(stream, sum)
		}, grpc.StreamInterceptor(f.StreamServerInterceptor()))
		u := openOn(t, forSession(), s.client, "a1", "b2")
		st.Finish(t, "b2")
		u.cancel()
		testkit.Advance(time.Second)
		u = openOn(t, forSession("flow-epoch", "1"), s.client, "a1", "b2")
		md, err := u.Header()
		if err != nil {
			t.Fatal(err)
		}
		wantSaid(t, md, "known epoch 1 committed 0")
		st.Finish(t, "a1")
		if n, status := u.end(t); n != 1 {
			t.Errorf("answer is %d, %v", n, status)
		}
		wantSaid(t, u.Trailer(), "epoch 1 committed 2")
	})
}

func TestMalformedHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ran := false
		s := serve(t, runs(sessionFlow(t, func(context.Context, flow.Message[string]) error {
			ran = true
			return nil
		}, flow.SessionOptions{})))
		for _, pairs := range [][]string{
			{"flow-session", "twice"},
			{"flow-start", "0"},
			{"flow-start", "4611686018427387905"},
			{"flow-start", "1", "flow-start", "1"},
			{"flow-epoch", "-1"},
			{"flow-skip", "2,1"},
			{"flow-start", "5", "flow-skip", "4"},
		} {
			u := openOn(t, forSession(pairs...), s.client, "a1")
			wantStatus(t, u.status(t), codes.InvalidArgument, "INTERNAL")
			if md, _ := u.Header(); md != nil {
				t.Errorf("%v: a header was sent: %v", pairs, md)
			}
			wantSaid(t, u.Trailer(), "")
		}
		if ran {
			t.Error("a message of a refused stream ran")
		}
	})
}

func TestBlankStreamAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		s := serve(t, runs(sessionFlow(t, st.Handle, flow.SessionOptions{})))
		u := openOn(t, forSession(), s.client, "a1", "b2", "c3")
		st.Finish(t, "a1", "c3")
		u.cancel()
		testkit.Advance(time.Second)
		u = openOn(t, forSession("flow-epoch", "1"), s.client)
		if n, status := u.end(t); n != 0 || status.Code() != codes.OK {
			t.Fatalf("answer is %d, %v", n, status)
		}
		md, _ := u.Header()
		wantSaid(t, md, "known epoch 1 committed 1")
		for where, md := range map[string]metadata.MD{"header": md, "trailers": u.Trailer()} {
			p, ok := flow.ProgressFromTrailer(md)
			if !ok || p.Committed() != 1 || !p.Settled(3) || p.Settled(2) || p.Settled(4) {
				t.Errorf("the %s says %v", where, p)
			}
		}
		wantSaid(t, u.Trailer(), "epoch 1 committed 1")
	})
}

func TestRetryPolicyReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := testkit.NewHookedStore()
		down := true
		store.SetBefore(func(context.Context, string, int) error {
			if down {
				down = false
				return errors.New("down")
			}
			return nil
		})
		st := testkit.NewManualHandler()
		s := serve(t, runs(sessionFlow(t, st.Handle, flow.SessionOptions{Store: store})))
		client := testpb.NewTestServiceClient(s.connect(t, grpc.WithDefaultServiceConfig(retries)))
		u := openOn(t, forSession("flow-start", "11"), client, "a11", "b12")
		u.headerSent()                   // gRPC looks at an answer only when it is asked for something
		testkit.Advance(5 * time.Second) // for the backoff of its own retry
		st.WantRunning(t, "a11 b12")
		if s.calls.Load() != 2 {
			t.Errorf("the method was called %d times, want 2: refused, and then replayed by gRPC", s.calls.Load())
		}
		md, _ := u.Header()
		wantSaid(t, md, "lost epoch 1 committed 10")
		st.FinishAll(t)
		if n, status := u.end(t); n != 2 {
			t.Errorf("answer is %d, %v", n, status)
		}
		if got := st.History(); got != "a11 b12" && got != "b12 a11" {
			t.Errorf("ran: %s", got)
		}
		// A stream that has its session is not replayed: its header is there.
		s.calls.Store(0)
		u = openOn(t, forSession(), client)
		testkit.Advance(time.Second)
		s.Stop()
		synctest.Wait()
		if s.calls.Load() != 1 {
			t.Errorf("the method was called %d times", s.calls.Load())
		}
		u.cancel()
	})
}

func TestUploadSurvivesAConnectionThatBreaksAtEachMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ran := map[string]int{}
		s := serve(t, runs(sessionFlow(t, func(_ context.Context, m flow.Message[string]) error {
			ran[m.Value]++
			return nil
		}, flow.SessionOptions{})))
		const n = 30
		start := uint64(1)
		for cut := 1; start <= n; cut++ {
			var rest []string
			for seq := start; seq <= n && len(rest) < cut%4; seq++ {
				rest = append(rest, fmt.Sprint("a", seq))
			}
			u := openOn(t, forSession("flow-start", fmt.Sprint(start)), s.client, rest...)
			u.cancel()
			testkit.Advance(time.Second)
			u = openOn(t, forSession("flow-start", fmt.Sprint(start)), s.client) // asks how far the server is
			u.end(t)
			p, ok := flow.ProgressFromTrailer(u.Trailer())
			if !ok {
				t.Fatal("no progress in the trailers")
			}
			start = p.Committed() + 1
		}
		for seq := 1; seq <= n; seq++ {
			if got := ran[fmt.Sprint("a", seq)]; got != 1 {
				t.Errorf("message %d ran %d times", seq, got)
			}
		}
	})
}
