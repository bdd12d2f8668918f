package flow_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"example.com/flow"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// readings is a service whose client-streaming method stores what it is sent.
type readings struct {
	testpb.UnimplementedTestServiceServer
	flow *flow.Flow[*request]
}

func (s *readings) StreamingInputCall(stream grpc.ClientStreamingServer[request, reply]) error {
	sum, err := s.flow.Run(stream.Context(), stream.Recv)
	if err != nil {
		return err // a *Failure is a gRPC status already
	}
	return stream.SendAndClose(&reply{AggregatedPayloadSize: int32(sum.Succeeded)})
}

// A service method: one line runs the whole stream.
func ExampleFlow_Run() {
	store := func(_ context.Context, m flow.Message[*request]) error {
		fmt.Println("stored", valueOf(m.Value))
		return nil
	}
	f, err := flow.New(store, nil, flow.Options{})
	if err != nil {
		panic(err)
	}
	client, stop := exampleServer(&readings{flow: f})
	defer stop()

	stored, err := uploadAll(client, "21.5", "21.7", "21.4")
	fmt.Println(stored, err)
	// Output:
	// stored 21.5
	// stored 21.7
	// stored 21.4
	// 3 <nil>
}

// behindInterceptor is a service whose method knows nothing of the Flow but what came of it.
type behindInterceptor struct {
	testpb.UnimplementedTestServiceServer
}

func (behindInterceptor) StreamingInputCall(stream grpc.ClientStreamingServer[request, reply]) error {
	if _, err := stream.Recv(); err != io.EOF { // the first Recv runs the whole stream
		return err
	}
	sum, _ := flow.SummaryFromContext(stream.Context())
	return stream.SendAndClose(&reply{AggregatedPayloadSize: int32(sum.Succeeded)})
}

// The interceptor runs the streams of every client-streaming method with this message.
func ExampleFlow_StreamServerInterceptor() {
	store := func(_ context.Context, m flow.Message[*request]) error {
		fmt.Println("stored", valueOf(m.Value))
		return nil
	}
	f, err := flow.New(store, nil, flow.Options{})
	if err != nil {
		panic(err)
	}
	client, stop := exampleServer(behindInterceptor{}, grpc.StreamInterceptor(f.StreamServerInterceptor()))
	defer stop()

	stored, err := uploadAll(client, "21.5", "21.7")
	fmt.Println(stored, err)
	// Output:
	// stored 21.5
	// stored 21.7
	// 2 <nil>
}

// Shutdown ends the streams, then GracefulStop has nothing left to wait for. The client is told to come back.
func ExampleFlow_Shutdown() {
	started := make(chan struct{})
	store := func(_ context.Context, m flow.Message[*request]) error {
		close(started)
		time.Sleep(10 * time.Millisecond)
		fmt.Println("stored", valueOf(m.Value))
		return nil
	}
	f, err := flow.New(store, nil, flow.Options{
		Shutdown: flow.ShutdownOptions{DrainOnClose: true, GracePeriod: 30 * time.Second},
	})
	if err != nil {
		panic(err)
	}
	lis := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	testpb.RegisterTestServiceServer(server, &readings{flow: f})
	go func() { _ = server.Serve(lis) }()
	client, hangUp := exampleClient(lis)
	defer hangUp()

	stream, err := client.StreamingInputCall(context.Background()) // a stream that stays open
	if err != nil {
		panic(err)
	}
	_ = stream.Send(requestOf("21.5"))
	<-started

	fmt.Println("shutdown:", f.Shutdown(context.Background()))
	server.GracefulStop()
	_, err = stream.CloseAndRecv()
	fmt.Println("client:", status.Code(err), flow.ClassifyFailure(err))
	// Output:
	// stored 21.5
	// shutdown: <nil>
	// client: Unavailable FailureShutdown
}

// A client resumes a stream that failed with what is not settled yet.
func ExampleRest() {
	full := true
	store := func(_ context.Context, m flow.Message[*request]) error {
		if valueOf(m.Value) == "third" && full {
			full = false
			return status.Error(codes.Unavailable, "the disk is full")
		}
		fmt.Println("stored", valueOf(m.Value))
		return nil
	}
	f, err := flow.New(store, nil, flow.Options{})
	if err != nil {
		panic(err)
	}
	client, stop := exampleServer(&readings{flow: f})
	defer stop()

	rest := slices.Values([]string{"first", "second", "third", "fourth"})
	for {
		sent := slices.Collect(rest)
		stream, err := client.StreamingInputCall(context.Background())
		if err != nil {
			panic(err)
		}
		for _, v := range sent {
			if stream.Send(requestOf(v)) != nil {
				break // CloseAndRecv says why
			}
		}
		if _, err = stream.CloseAndRecv(); err == nil {
			break
		}
		progress, ok := flow.ProgressFromTrailer(stream.Trailer())
		if !ok {
			panic("the connection broke: ask the service how far it got")
		}
		fmt.Println(status.Convert(err).Message(), "after", progress.Committed())
		rest = flow.Rest(progress, slices.Values(sent))
	}
	// Output:
	// stored first
	// stored second
	// the disk is full after 2
	// stored third
	// stored fourth
}

// The trailer says how far the server got, also when the call failed: what is not settled is what to send again.
func ExampleProgressFromTrailer() {
	store := func(_ context.Context, m flow.Message[*request]) error {
		if valueOf(m.Value) == "poison" {
			return status.Error(codes.InvalidArgument, "no such value")
		}
		return nil
	}
	f, err := flow.New(store, nil, flow.Options{})
	if err != nil {
		panic(err)
	}
	client, stop := exampleServer(&readings{flow: f})
	defer stop()

	stream, err := client.StreamingInputCall(context.Background())
	if err != nil {
		panic(err)
	}
	for _, v := range []string{"21.5", "poison", "21.7"} {
		if stream.Send(requestOf(v)) != nil {
			break // CloseAndRecv says why
		}
	}
	_, err = stream.CloseAndRecv()
	fmt.Println(status.Convert(err).Message())
	if progress, ok := flow.ProgressFromTrailer(stream.Trailer()); ok { // false when the connection broke: nothing is known then
		fmt.Println("up to", progress.Committed(), "all is settled; message 2:", progress.Settled(2))
	}
	// Output:
	// no such value
	// up to 1 all is settled; message 2: false
}

// RetryAfter tells a client whether sending the rest again may help, and how long the server asks to wait.
func ExampleRetryAfter() {
	f, err := flow.New(func(_ context.Context, m flow.Message[*request]) error {
		return status.Error(codes.InvalidArgument, "no such value")
	}, nil, flow.Options{})
	if err != nil {
		panic(err)
	}
	client, stop := exampleServer(&readings{flow: f})
	defer stop()

	_, err = uploadAll(client, "poison")
	_, again := flow.RetryAfter(err)
	fmt.Println(status.Code(err), "- send again:", again)

	_ = f.Shutdown(context.Background()) // as at a deploy
	_, err = uploadAll(client, "21.5")
	delay, again := flow.RetryAfter(err)
	fmt.Println(status.Code(err), "- send again:", again, "after", delay)
	// Output:
	// InvalidArgument - send again: false
	// Unavailable - send again: true after 1s
}

// exampleServer serves s over a connection in memory.
func exampleServer(s testpb.TestServiceServer, opts ...grpc.ServerOption) (testpb.TestServiceClient, func()) {
	lis := bufconn.Listen(1 << 16)
	server := grpc.NewServer(opts...)
	testpb.RegisterTestServiceServer(server, s)
	go func() { _ = server.Serve(lis) }()
	client, hangUp := exampleClient(lis)
	return client, func() { hangUp(); server.Stop() }
}

func exampleClient(lis *bufconn.Listener) (testpb.TestServiceClient, func()) {
	conn, err := grpc.NewClient("passthrough:///memory",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		panic(err)
	}
	return testpb.NewTestServiceClient(conn), func() { _ = conn.Close() }
}

// uploadAll sends values in one stream and returns how many the service says it stored.
func uploadAll(client testpb.TestServiceClient, values ...string) (int, error) {
	stream, err := client.StreamingInputCall(context.Background())
	if err != nil {
		return 0, err
	}
	for _, v := range values {
		if stream.Send(requestOf(v)) != nil {
			break // CloseAndRecv says why
		}
	}
	r, err := stream.CloseAndRecv()
	return int(r.GetAggregatedPayloadSize()), err
}
