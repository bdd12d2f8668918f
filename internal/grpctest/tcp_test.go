package grpctest_test

import (
	"context"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What depends on a real connection is seen on one: over TCP, on the loopback interface, in real time.

// serveTCP is serve over loopback TCP.
func serveTCP(t testing.TB, upload func(uploading) error, opts ...grpc.ServerOption) *server {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, upload, lis, func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", lis.Addr().String())
	}, opts...)
}

// await waits until ok, for as long as a busy machine may take.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A client with a retry policy keeps what it has sent and sends it again when the call fails with UNAVAILABLE: that is
// what the plain loop sees. With a Flow, messages that have had effects are not replayed.
func TestRetryingClientOverTCPHasNoMessageRunTwice(t *testing.T) {
	testkit.SkipIfShort(t)
	var ran atomic.Pointer[[]string]
	handle := func(_ context.Context, m flow.Message[string]) error {
		seen := append(slices.Clone(*ran.Load()), m.Value)
		ran.Store(&seen)
		if m.Value == "a3" {
			return status.Error(codes.Unavailable, "the store is away")
		}
		return nil
	}
	f := newRequestFlow(t, handle, flow.Options{})
	once := []string{"a1", "a2", "a3"}
	for _, c := range []struct {
		name   string
		upload func(uploading) error
		opts   []grpc.ServerOption
		want   []string
		calls  int64
	}{
		{"a plain loop", func(stream uploading) error {
			for seq := uint64(1); ; seq++ {
				r, err := stream.Recv()
				if err == io.EOF {
					return stream.SendAndClose(&reply{})
				}
				if err != nil {
					return err
				}
				if err := handle(stream.Context(), flow.Message[string]{Seq: seq, Value: valueOf(r)}); err != nil {
					return err
				}
			}
		}, nil, slices.Repeat(once, 4), 4},
		{"Run", runs(f), nil, once, 1},
		{"the interceptor", behind, []grpc.ServerOption{grpc.StreamInterceptor(f.StreamServerInterceptor())}, once, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			ran.Store(new([]string))
			s := serveTCP(t, c.upload, c.opts...)
			stream, err := s.retrying(t).StreamingInputCall(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			(&upload{ClientStreamingClient: stream}).send(t, "a1", "a2", "a3", "a4", "a5")
			if _, err := stream.CloseAndRecv(); status.Code(err) != codes.Unavailable {
				t.Errorf("the call ended with %v, want Unavailable", err)
			}
			if got := *ran.Load(); !slices.Equal(got, c.want) || s.calls.Load() != c.calls {
				t.Errorf("handlers saw %q in %d calls, want %q in %d", got, s.calls.Load(), c.want, c.calls)
			}
		})
	}
}
