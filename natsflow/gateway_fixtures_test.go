package natsflow

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/flowclient"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
)

type (
	request   = testpb.StreamingInputCallRequest
	reply     = testpb.StreamingInputCallResponse
	uploading = grpc.ClientStreamingServer[request, reply]
)

// requestOf is message n of an upload: its key is one of a few, and its body says both.
func requestOf(upload string, n int) *request {
	return &request{Payload: &testpb.Payload{Body: fmt.Appendf(nil, "%s-k%d/%d", upload, n%3, n)}}
}

func keyOf(r *request) string {
	key, _, _ := strings.Cut(string(r.GetPayload().GetBody()), "/")
	return key
}

// gatewayServer is a gRPC server with a Gateway behind it.
type gatewayServer struct {
	testpb.UnimplementedTestServiceServer
	gw   *Gateway[*request]
	flow *flow.Flow[*request]
	lis  *bufconn.Listener
}

func (s *gatewayServer) StreamingInputCall(stream uploading) error {
	summary, err := s.flow.Run(stream.Context(), stream.Recv)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&reply{AggregatedPayloadSize: int32(summary.Committed)})
}

// newGateway makes a Gateway whose patience fits tests.
func newGateway(t testing.TB, js jetstream.JetStream, topic Topic) *Gateway[*request] {
	t.Helper()
	gw, err := NewGateway(js, topic, Proto(keyOf))
	if err != nil {
		t.Fatal(err)
	}
	gw.pub.patience = min(gw.pub.patience, 500*time.Millisecond)
	if topic.Replicas > 1 {
		gw.pub.patience = 1500 * time.Millisecond
	}
	return gw
}

// newFlow makes a gateway's Flow.
func newFlow(t testing.TB, gw *Gateway[*request], change func(*flow.Options)) *flow.Flow[*request] {
	t.Helper()
	o := flow.Options{
		Sessions:     &flow.SessionOptions{Store: gw.Sessions(), SaveEvery: 20 * time.Millisecond, Takeover: 3 * time.Second},
		Backpressure: flow.BackpressureOptions{Capacity: 4},
		Batch:        flow.BatchOptions{MaxMessages: 5},
	}
	if change != nil {
		change(&o)
	}
	f, err := flow.NewBatch(gw.Store, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// serveGateway starts a gateway and returns it with a client of it. Both end with the test.
func serveGateway(t testing.TB, js jetstream.JetStream, topic Topic) (*gatewayServer, testpb.TestServiceClient) {
	t.Helper()
	gw := newGateway(t, js, topic)
	s := &gatewayServer{gw: gw, flow: newFlow(t, gw, nil), lis: bufconn.Listen(1 << 20)}
	server := grpc.NewServer()
	testpb.RegisterTestServiceServer(server, s)
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(s.lis) })
	conn, err := grpc.NewClient("passthrough:///gateway", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		served.Wait()
	})
	return s, testpb.NewTestServiceClient(conn)
}

// sender uploads to whichever gateway is current.
type sender struct {
	*flowclient.Sender[request, reply]
	gateways []testpb.TestServiceClient
	current  atomic.Int32
}

func newSender(t testing.TB, session string, gateways ...testpb.TestServiceClient) *sender {
	t.Helper()
	s := &sender{gateways: gateways}
	var err error
	s.Sender, err = flowclient.New(func(ctx context.Context, opts ...grpc.CallOption) (grpc.ClientStreamingClient[request, reply], error) {
		return s.gateways[s.current.Load()].StreamingInputCall(ctx, opts...)
	}, flowclient.Options{
		Session: session, MaxStreamAge: 200 * time.Millisecond, AnswerTimeout: 4 * time.Second, HeaderTimeout: 2 * time.Second,
		Backoff: 20 * time.Millisecond, MaxBackoff: 200 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// upload sends messages 1 to n, and returns when they are settled.
func (s *sender) upload(t testing.TB, name string, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if _, err := s.Resume(ctx); err != nil {
		t.Errorf("%s: resume: %v", name, err)
		return
	}
	for i := range n {
		if err := s.Send(ctx, requestOf(name, i+1)); err != nil {
			t.Errorf("%s: send %d: %v", name, i+1, err)
			break
		}
	}
	if err := s.Close(ctx); err != nil {
		t.Errorf("%s: close: %v", name, err)
	}
}

// wantUploads checks that what is stored is these uploads, of so many messages each, once and in their order.
func wantUploads(t testing.TB, list []jetstream.Msg, uploads map[string]int) {
	t.Helper()
	got := map[string]int{}
	for _, m := range list {
		id, ok := storedID(m.Headers())
		if !ok {
			t.Errorf("a message without an id: %v", m.Headers())
			continue
		}
		var r request
		c := Proto(keyOf)
		v, err := c.Unmarshal(m.Data())
		if err != nil {
			t.Error(err)
			continue
		}
		r.Payload = v.GetPayload()
		key, _ := storedKey(m.Headers())
		upload, _, _ := strings.Cut(key, "-k")
		got[upload]++
		if want := string(requestOf(upload, got[upload]).GetPayload().GetBody()); string(r.GetPayload().GetBody()) != want || int(id.number) != got[upload] {
			t.Errorf("%s: %v has %q where %q is next", upload, id, r.GetPayload().GetBody(), want)
			return
		}
	}
	for upload, n := range uploads {
		if got[upload] != n {
			t.Errorf("%s: %d of %d are stored", upload, got[upload], n)
		}
		delete(got, upload)
	}
	if len(got) > 0 {
		t.Errorf("stored, but never sent: %v", got)
	}
}

// run has a Flow take a stream: of a session, from the message with that number on, or without a session if it is "".
func run(f *flow.Flow[*request], session string, start int, list ...*request) (flow.Summary, error) {
	ctx := context.Background()
	if session != "" {
		ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("flow-session", session, "flow-start", fmt.Sprint(start)))
	}
	return f.Run(ctx, func() (*request, error) {
		if len(list) == 0 {
			return nil, io.EOF
		}
		next := list[0]
		list = list[1:]
		return next, nil
	})
}

// requests are messages first to last of an upload.
func requests(upload string, first, last int) (list []*request) {
	for n := first; n <= last; n++ {
		list = append(list, requestOf(upload, n))
	}
	return list
}
