package grpctest_test

import (
	"context"
	"io"
	"testing"
	"testing/synctest"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

func newSimpleFlow(t *testing.T, handled *int) *flow.Flow[*simple] {
	t.Helper()
	f, err := flow.New(func(context.Context, flow.Message[*simple]) error {
		*handled++ // one at a time: FIFO
		return nil
	}, nil, flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The interceptor's message type fits here: what keeps it off is the kind of the RPC.
func TestOtherKindsOfRPCPassUntouched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handled, same := 0, 0
		f := newSimpleFlow(t, &handled)
		var outer grpc.ServerStream
		s := serve(t, behind, grpc.ChainStreamInterceptor(
			func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
				outer = ss
				return handler(srv, ss)
			},
			f.StreamServerInterceptor(),
			func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
				if ss == outer {
					same++
				}
				return handler(srv, ss)
			}))
		client := testpb.NewBenchmarkServiceClient(s.conn)
		payload := &testpb.Payload{Body: []byte("back")}
		down, err := client.StreamingFromServer(t.Context(), &simple{Payload: payload})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := down.Recv(); string(r.GetPayload().GetBody()) != "back" || err != nil {
			t.Errorf("server streaming: Recv() = %v, %v", r, err)
		}
		if _, err := down.Recv(); err != io.EOF {
			t.Errorf("server streaming ended with %v", err)
		}
		both, err := client.StreamingCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := both.Send(&simple{Payload: payload}); err != nil {
				t.Fatal(err)
			}
			if r, err := both.Recv(); string(r.GetPayload().GetBody()) != "back" || err != nil {
				t.Errorf("both ways: Recv() = %v, %v", r, err)
			}
		}
		_ = both.CloseSend()
		if _, err := both.Recv(); err != io.EOF {
			t.Errorf("both ways ended with %v", err)
		}
		if handled != 0 || same != 2 {
			t.Errorf("%d messages handled, %d of 2 streams passed as they were", handled, same)
		}
	})
}

func TestClientStreamsOfOtherMessagesPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRequestFlow(t, func(context.Context, flow.Message[string]) error {
			t.Error("a message of another type was handled")
			return nil
		}, flow.Options{})
		s := serve(t, behind, grpc.StreamInterceptor(f.StreamServerInterceptor()))
		if got := sendSimple(t, s, 2); got != "no summary" {
			t.Errorf("the method saw %q, want no summary", got)
		}
		if n := f.Stats().Total.Received; n != 0 {
			t.Errorf("%d messages received", n)
		}
	})
}

// sendSimple sends n messages to the client-streaming method of otherCalls.
func sendSimple(t *testing.T, s *server, n int) string {
	t.Helper()
	stream, err := testpb.NewBenchmarkServiceClient(s.conn).StreamingFromClient(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := stream.Send(&simple{}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := stream.CloseAndRecv()
	if err != nil {
		t.Fatal(err)
	}
	return r.GetUsername()
}

func TestInterceptorsOfSeveralMessageTypesStandInOneChain(t *testing.T) {
	for _, c := range []struct {
		name  string
		chain func(a, b grpc.StreamServerInterceptor) grpc.ServerOption
	}{
		{"one before the other", func(a, b grpc.StreamServerInterceptor) grpc.ServerOption {
			return grpc.ChainStreamInterceptor(a, b)
		}},
		{"the other way round", func(a, b grpc.StreamServerInterceptor) grpc.ServerOption {
			return grpc.ChainStreamInterceptor(b, a)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				simples := 0
				uploads := newRequestFlow(t, testkit.Takes(0), flow.Options{})
				others := newSimpleFlow(t, &simples)
				s := serve(t, behind, c.chain(uploads.StreamServerInterceptor(), others.StreamServerInterceptor()))
				if n, status := s.open(t, "a1", "a2").end(t); n != 2 || status.Code() != codes.OK {
					t.Errorf("uploads: answer is %d, %v, want 2, OK", n, status)
				}
				if got := sendSimple(t, s, 3); got != "summary of 3" {
					t.Errorf("others: the method saw %q, want the summary of 3", got)
				}
				if got := uploads.Stats().Total.Received; simples != 3 || got != 2 {
					t.Errorf("handled %d and %d messages, want 3 and 2", simples, got)
				}
			})
		})
	}
}

// What an interceptor's stream handles is its own: a handler may keep it.
func TestEachMessageBehindTheInterceptorIsFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept []*request
		f, err := flow.New(func(_ context.Context, m flow.Message[*request]) error {
			kept = append(kept, m.Value)
			return nil
		}, nil, flow.Options{})
		if err != nil {
			t.Fatal(err)
		}
		s := serve(t, behind, grpc.StreamInterceptor(f.StreamServerInterceptor()))
		if n, status := s.open(t, "a1", "a2", "a3").end(t); n != 3 {
			t.Fatalf("answer is %d, %v", n, status)
		}
		for i, want := range []string{"a1", "a2", "a3"} {
			if got := valueOf(kept[i]); got != want {
				t.Errorf("message %d is %q now, want %q", i+1, got, want)
			}
		}
	})
}

func TestShutdownReachesStreamsBehindTheInterceptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := newRequestFlow(t, st.Handle, flow.Options{})
		s := serve(t, behind, grpc.StreamInterceptor(f.StreamServerInterceptor()))
		u := s.open(t, "a1")
		st.WantRunning(t, "a1")
		down := make(chan error, 1)
		go func() { down <- f.Shutdown(t.Context()) }()
		st.Finish(t, "a1")
		wantStatus(t, u.status(t), codes.Unavailable, "SHUTDOWN")
		if err := <-down; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		wantStatus(t, s.open(t).status(t), codes.Unavailable, "SHUTDOWN")
	})
}
