package flow_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"example.com/flow"
)

type (
	callRequest = pb.StreamingInputCallRequest
	callStream  = grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]
)

// callService answers StreamingInputCall with a method that is given.
type callService struct {
	pb.UnimplementedTestServiceServer
	call func(callStream) error
}

func (s *callService) StreamingInputCall(stream callStream) error { return s.call(stream) }

func answerCall(stream callStream) error {
	return stream.SendAndClose(&pb.StreamingInputCallResponse{})
}

// BenchmarkGRPC is a stream over loopback TCP, 128 bytes a message, client and server on the same cores: a service method
// that only receives, beside one that runs a handler for each message, keyed, and the same through the interceptor.
func BenchmarkGRPC(b *testing.B) {
	handler := func(context.Context, flow.Message[*callRequest]) error { return nil }
	key := func(r *callRequest) string { return string(r.Payload.Body[:2]) }
	f, err := flow.New(handler, key, busyOptions(flow.OrderingKeyedFIFO))
	if err != nil {
		b.Fatal(err)
	}
	for _, streams := range []int{1, 64} {
		for _, way := range []struct {
			name string
			opts []grpc.ServerOption
			call func(callStream) error
		}{
			{"loop", nil, func(stream callStream) error {
				for {
					if _, err := stream.Recv(); err == io.EOF {
						return answerCall(stream)
					} else if err != nil {
						return err
					}
				}
			}},
			{"run", nil, func(stream callStream) error {
				if _, err := f.Run(stream.Context(), stream.Recv); err != nil {
					return err
				}
				return answerCall(stream)
			}},
			{"interceptor", []grpc.ServerOption{grpc.StreamInterceptor(f.StreamServerInterceptor())}, func(stream callStream) error {
				if _, err := stream.Recv(); err != io.EOF {
					return err
				}
				return answerCall(stream)
			}},
		} {
			b.Run(fmt.Sprintf("streams=%d/%s", streams, way.name), func(b *testing.B) {
				client := serveCalls(b, way.call, way.opts...)
				callOnce(b, client, 1) // the connection, and gRPC's estimate of its window
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for i := range streams {
					wg.Go(func() { callOnce(b, client, (b.N+i)/streams) })
				}
				wg.Wait()
			})
		}
	}
}

// serveCalls starts a server on a free port and connects to it.
func serveCalls(tb testing.TB, method func(callStream) error, opts ...grpc.ServerOption) pb.TestServiceClient {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	server := grpc.NewServer(opts...)
	pb.RegisterTestServiceServer(server, &callService{call: method})
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(lis) })
	conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		served.Wait()
	})
	return pb.NewTestServiceClient(conn)
}

// callOnce sends n messages in one stream and waits for the answer.
func callOnce(tb testing.TB, client pb.TestServiceClient, n int) {
	stream, err := client.StreamingInputCall(context.Background())
	if err != nil {
		tb.Error(err)
		return
	}
	body := make([]byte, 128)
	m := &callRequest{Payload: &pb.Payload{Body: body}}
	for i := range n {
		body[0], body[1] = byte(i), byte(i>>8)&3 // 1,024 keys
		if err := stream.Send(m); err != nil {
			break
		}
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		tb.Error(err)
	}
}
