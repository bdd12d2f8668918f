package grpctest_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"
)

// told is a service method that keeps what Run returned.
type told struct {
	sum flow.Summary
	err error
}

func (o *told) runs(f *flow.Flow[*request]) func(uploading) error {
	return func(stream uploading) error {
		o.sum, o.err = f.Run(stream.Context(), stream.Recv)
		if o.err != nil {
			return o.err
		}
		return answer(stream, o.sum)
	}
}

// wantGone checks that Run has ended because its client is no longer there, and with it all that ran for it.
func (o *told) wantGone(t testing.TB, s *server, st *testkit.ManualHandler, committed uint64) {
	t.Helper()
	st.WantRunning(t, "")
	if s.active.Load() != 0 {
		t.Fatal("the service method has not returned")
	}
	testkit.CheckConserved(t, o.sum)
	if flow.ClassifyFailure(o.err) != flow.FailureContextCancelled || o.sum.Committed != committed {
		t.Errorf("Run: %+v, %v, want FailureContextCancelled and %d committed", o.sum, o.err, committed)
	}
}

// maxAge is when a connection gets its GOAWAY; gRPC varies it by a tenth. past is later than that in any case.
const (
	maxAge = 100 * time.Second
	past   = 115 * time.Second
)

// serveAged is serve with a maximum age of connections, which it counts.
func serveAged(t testing.TB, upload func(uploading) error, grace time.Duration) (s *server, dialed *atomic.Int64) {
	t.Helper()
	lis := bufconn.Listen(1 << 16)
	dialed = new(atomic.Int64)
	return serveOn(t, upload, lis, func(ctx context.Context, _ string) (net.Conn, error) {
		dialed.Add(1)
		return lis.DialContext(ctx)
	}, grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: maxAge, MaxConnectionAgeGrace: grace})), dialed
}

func TestUploadGoesOnWhenItsConnectionIsOfAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		s, dialed := serveAged(t, runs(newRequestFlow(t, st.Handle, flow.Options{})), 0)
		old := s.open(t, "a1", "a2")
		st.Finish(t, "a1")
		testkit.Advance(past)
		next := s.open(t, "b1")
		if n := dialed.Load(); n != 2 {
			t.Fatalf("%d connections, want another one for the stream after the GOAWAY", n)
		}
		st.WantRunning(t, "a2 b1")
		old.send(t, "a3")
		_, _ = old.CloseSend(), next.CloseSend()
		st.Finish(t, "a2", "a3", "b1")
		if n, status := old.end(t); n != 3 || status.Code() != codes.OK {
			t.Errorf("the old stream's answer is %d, %v, want 3, OK", n, status)
		}
		if n, status := next.end(t); n != 1 || status.Code() != codes.OK {
			t.Errorf("the next stream's answer is %d, %v, want 1, OK", n, status)
		}
	})
}

// The grace of the age is a cut like any other of a connection: the client learns nothing, Run's Summary says it all.
func TestUploadIsCutOffAtTheEndOfItsConnectionsGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, o := testkit.NewManualHandler(), new(told)
		f := newRequestFlow(t, st.Handle, flow.Options{})
		s, _ := serveAged(t, o.runs(f), 30*time.Second)
		u := s.open(t, "a1", "a2", "a3")
		st.Finish(t, "a1")
		testkit.Advance(past)
		st.WantRunning(t, "a2")
		testkit.Advance(30 * time.Second)
		if st := u.status(t); st.Code() != codes.Unavailable {
			t.Errorf("the client sees %v, want Unavailable", st)
		}
		if _, ok := flow.ProgressFromTrailer(u.Trailer()); ok {
			t.Error("a connection that was cut has brought a trailer")
		}
		o.wantGone(t, s, st, 1)
		if o.sum.Failed != 1 || o.sum.Dropped != 1 {
			t.Errorf("%+v, want a2 failed and a3 dropped", o.sum)
		}
	})
}

// deafConn loses, from some moment on, all that comes and all that goes, as when a cable is cut: nobody is told.
type deafConn struct {
	net.Conn
	deaf *atomic.Bool
}

func (c deafConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.deaf.Load() {
			return n, err
		}
	}
}

func (c deafConn) Write(b []byte) (int, error) {
	if c.deaf.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// serveCable is serve over a connection that the test can cut.
func serveCable(t testing.TB, upload func(uploading) error, opts ...grpc.ServerOption) (s *server, cut func()) {
	t.Helper()
	deaf := new(atomic.Bool)
	lis := bufconn.Listen(1 << 16)
	return serveOn(t, upload, lis, func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := lis.DialContext(ctx)
		return deafConn{conn, deaf}, err
	}, opts...), func() { deaf.Store(true) }
}

func TestKeepaliveEndsTheStreamOfAClientThatIsGoneAndKeepsASilentOnes(t *testing.T) {
	pings := keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}
	for _, c := range []struct {
		name     string
		options  []grpc.ServerOption
		at, gone time.Duration // when the stream still is there, when it no longer is
	}{
		{"pings", []grpc.ServerOption{grpc.KeepaliveParams(pings)}, 9 * time.Second, 25 * time.Second},
		{"by default", nil, 2*time.Hour - time.Minute, 2*time.Hour + time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, o := testkit.NewManualHandler(), new(told)
				s, cut := serveCable(t, o.runs(newRequestFlow(t, st.Handle, flow.Options{})), c.options...)
				u := s.open(t, "a1")
				st.Finish(t, "a1")
				testkit.Advance(10 * time.Hour) // the client has nothing to say, and answers pings
				u.send(t, "a2", "a3")
				st.WantRunning(t, "a2")
				cut()
				testkit.Advance(c.at)
				st.WantRunning(t, "a2")
				testkit.Advance(c.gone - c.at)
				o.wantGone(t, s, st, 1)
			})
		})
	}
}

// Once a connection is of age gRPC pings it no more: then only the grace of the age ends the streams of a client that is
// gone.
func TestClientThatIsGoneAfterItsConnectionsAgeIsEndedByTheGraceAlone(t *testing.T) {
	for _, grace := range []time.Duration{0, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			st, o := testkit.NewManualHandler(), new(told)
			s, cut := serveCable(t, o.runs(newRequestFlow(t, st.Handle, flow.Options{})), grpc.KeepaliveParams(
				keepalive.ServerParameters{Time: time.Second, Timeout: time.Second, MaxConnectionAge: maxAge, MaxConnectionAgeGrace: grace}))
			s.open(t, "a1")
			testkit.Advance(past)
			cut()
			testkit.Advance(30 * time.Minute)
			st.WantRunning(t, "a1")
			testkit.Advance(30 * time.Minute)
			if grace > 0 {
				o.wantGone(t, s, st, 0)
				return
			}
			testkit.Advance(1000 * time.Hour)
			st.WantRunning(t, "a1")
		})
	}
}

// A client-streaming call's server says nothing for long, so its clients' pings are what keeps a connection up, and to
// a server that doesn't expect them they are an offence.
func TestClientsPingsNeedAnEnforcementPolicy(t *testing.T) {
	pinging := grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second})
	t.Run("allowed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := serve(t, runs(newRequestFlow(t, testkit.Takes(0), flow.Options{})),
				grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}))
			u := openOn(t, t.Context(), testpb.NewTestServiceClient(s.connect(t, pinging)), "a1")
			testkit.Advance(time.Hour)
			u.send(t, "a2")
			if n, status := u.end(t); n != 2 || status.Code() != codes.OK {
				t.Errorf("the answer is %d, %v, want 2, OK", n, status)
			}
		})
	})
	t.Run("by default", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st, o := testkit.NewManualHandler(), new(told)
			s := serve(t, o.runs(newRequestFlow(t, st.Handle, flow.Options{})))
			u := openOn(t, t.Context(), testpb.NewTestServiceClient(s.connect(t, pinging)), "a1", "a2")
			st.Finish(t, "a1")
			testkit.Advance(time.Hour)
			if st := u.status(t); st.Code() != codes.Unavailable {
				t.Errorf("the client sees %v, want Unavailable", st)
			}
			o.wantGone(t, s, st, 1)
		})
	})
}
