package grpctest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// The fixtures of the tests over gRPC: a server and a client of it in the test's bubble, over a connection in memory.
// The client-streaming RPC is one that grpc-go brings, so that none has to be generated; its messages carry the strings
// that the other fixtures run.

type (
	request   = testpb.StreamingInputCallRequest
	reply     = testpb.StreamingInputCallResponse
	uploading = grpc.ClientStreamingServer[request, reply]
)

func requestOf(v string) *request { return &request{Payload: &testpb.Payload{Body: []byte(v)}} }

func valueOf(r *request) string { return string(r.GetPayload().GetBody()) }

// onRequests makes a handler of requests of one of strings.
func onRequests(h flow.Handler[string]) flow.Handler[*request] {
	return func(ctx context.Context, m flow.Message[*request]) error {
		return h(ctx, flow.Message[string]{
			Seq: m.Seq, Key: m.Key, Value: valueOf(m.Value), Attempt: m.Attempt, Pressured: m.Pressured,
		})
	}
}

// newRequestFlow is testkit.New for requests.
func newRequestFlow(t testing.TB, h flow.Handler[string], o flow.Options) *flow.Flow[*request] {
	t.Helper()
	f, err := flow.New(onRequests(h), func(r *request) string { return testkit.KeyOf(valueOf(r)) }, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// server is a gRPC server in the bubble, and what its service methods have seen.
type server struct {
	*grpc.Server
	testpb.UnimplementedTestServiceServer
	upload func(uploading) error
	others otherCalls
	dial   func(context.Context, string) (net.Conn, error)
	health *health.Server
	served chan struct{} // closed when Serve has returned

	calls  atomic.Int64 // of the service method
	active atomic.Int64 // service methods that have not returned
	client testpb.TestServiceClient
	conn   *grpc.ClientConn
}

func (s *server) StreamingInputCall(stream uploading) error {
	s.calls.Add(1)
	s.active.Add(1)
	defer s.active.Add(-1)
	return s.upload(stream)
}

// serve starts a server whose client-streaming method is upload, and a client of it. Both end with the test.
func serve(t testing.TB, upload func(uploading) error, opts ...grpc.ServerOption) *server {
	t.Helper()
	lis := bufconn.Listen(1 << 16)
	return serveOn(t, upload, lis, func(ctx context.Context, _ string) (net.Conn, error) {
		return lis.DialContext(ctx)
	}, opts...)
}

func serveOn(t testing.TB, upload func(uploading) error, lis net.Listener,
	dial func(context.Context, string) (net.Conn, error), opts ...grpc.ServerOption) *server {
	t.Helper()
	s := &server{
		Server: grpc.NewServer(opts...), upload: upload, dial: dial,
		health: health.NewServer(), served: make(chan struct{}),
	}
	testpb.RegisterTestServiceServer(s.Server, s)
	testpb.RegisterBenchmarkServiceServer(s.Server, &s.others)
	healthpb.RegisterHealthServer(s.Server, s.health)
	go func() {
		defer close(s.served)
		_ = s.Serve(lis)
	}()
	s.conn = s.connect(t)
	s.client = testpb.NewTestServiceClient(s.conn)
	t.Cleanup(func() { // before this, the client's connection; a method that still runs sees its stream cancelled
		s.Stop()
		<-s.served
	})
	return s
}

// serveService starts a server of a service that is not generated, and a client of it.
func serveService(t testing.TB, service *grpc.ServiceDesc, opts ...grpc.ServerOption) *server {
	t.Helper()
	lis := bufconn.Listen(1 << 16)
	s := &server{Server: grpc.NewServer(opts...), served: make(chan struct{})}
	s.dial = func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }
	s.RegisterService(service, nil)
	go func() {
		defer close(s.served)
		_ = s.Serve(lis)
	}()
	s.conn = s.connect(t)
	s.client = testpb.NewTestServiceClient(s.conn)
	t.Cleanup(func() {
		s.Stop()
		<-s.served
	})
	return s
}

// connect makes one more client connection, which ends with the test.
func (s *server) connect(t testing.TB, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///server", append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(s.dial),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// runs is the service method that runs f and answers with how many messages succeeded.
func runs(f *flow.Flow[*request]) func(uploading) error {
	return func(stream uploading) error {
		sum, err := f.Run(stream.Context(), stream.Recv)
		if err != nil {
			return err
		}
		return answer(stream, sum)
	}
}

func answer(stream uploading, sum flow.Summary) error {
	return stream.SendAndClose(&reply{AggregatedPayloadSize: int32(sum.Succeeded)})
}

// upload is a client's stream, under way until the test ends it.
type upload struct {
	grpc.ClientStreamingClient[request, reply]
	cancel context.CancelFunc
}

// open starts a stream of values, which the test may send more to.
func (s *server) open(t testing.TB, values ...string) *upload {
	t.Helper()
	return openOn(t, context.Background(), s.client, values...)
}

func openOn(t testing.TB, ctx context.Context, client testpb.TestServiceClient, values ...string) *upload {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	t.Cleanup(cancel)
	stream, err := client.StreamingInputCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	u := &upload{ClientStreamingClient: stream, cancel: cancel}
	u.send(t, values...)
	synctest.Wait()
	return u
}

// send sends values. That the stream has ended meanwhile is for end to see.
func (u *upload) send(t testing.TB, values ...string) {
	t.Helper()
	for _, v := range values {
		if err := u.Send(requestOf(v)); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			return
		}
	}
}

// end says that all is sent and waits for the answer: how many messages succeeded, or the status.
func (u *upload) end(t testing.TB) (int, *status.Status) {
	t.Helper()
	r, err := u.CloseAndRecv()
	return int(r.GetAggregatedPayloadSize()), status.Convert(err)
}

// status waits for the server to end the stream, of which the client has not sent the end.
func (u *upload) status(t testing.TB) *status.Status {
	t.Helper()
	err := u.RecvMsg(new(reply))
	if err == nil {
		t.Fatal("the server has answered a stream that was not at its end")
	}
	return status.Convert(err)
}

// headerSent says whether the client has the response header once everything has come to rest.
func (u *upload) headerSent() bool {
	got := make(chan metadata.MD, 1)
	go func() {
		md, _ := u.Header() // blocks until there is one, or the stream is over; nil then
		got <- md
	}()
	synctest.Wait()
	select {
	case md := <-got:
		return md != nil
	default:
		return false
	}
}

// wantStatus checks the code and flow's reason in the ErrorInfo; "" is none.
func wantStatus(t testing.TB, st *status.Status, code codes.Code, reason string) {
	t.Helper()
	got := ""
	if info := testkit.Detail[*errdetails.ErrorInfo](st); info != nil {
		got = info.GetReason()
	}
	if st.Code() != code || got != reason {
		t.Fatalf("status is %v (reason %q), want %v (reason %q)", st, got, code, reason)
	}
}

// wantProgress checks what the trailers say once the stream is over.
func wantProgress(t testing.TB, u *upload, committed uint64, settled ...uint64) flow.Progress {
	t.Helper()
	p, ok := flow.ProgressFromTrailer(u.Trailer())
	if !ok {
		t.Fatalf("no progress in the trailer %v", u.Trailer())
	}
	if p.Committed() != committed {
		t.Errorf("committed is %d, want %d", p.Committed(), committed)
	}
	for _, seq := range settled {
		if !p.Settled(seq) {
			t.Errorf("%d is not settled: %v", seq, p)
		}
	}
	return p
}
