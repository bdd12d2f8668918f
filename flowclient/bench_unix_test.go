//go:build unix

package flowclient_test

import (
	"context"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/flowclient"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// uploadServer runs a Flow with defaults, sessions in memory and a handler that does nothing.
type uploadServer struct {
	testpb.UnimplementedTestServiceServer
	flow *flow.Flow[*request]
}

func (s *uploadServer) StreamingInputCall(stream grpc.ClientStreamingServer[request, reply]) error {
	sum, err := s.flow.Run(stream.Context(), stream.Recv)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&reply{AggregatedPayloadSize: int32(sum.Succeeded)})
}

// BenchmarkSenderBesidePlainStream uploads the same messages by a Sender and by a plain stream without a session, in turns,
// over one connection on loopback: so what the machine does meets both. It reports the medians of both, of time and of this
// process's processor time, which has both ends; and how fast the Sender is, as a share of the plain stream's speed.
func BenchmarkSenderBesidePlainStream(b *testing.B) {
	const messages = 100_000
	f, err := flow.New(func(context.Context, flow.Message[*request]) error { return nil }, nil,
		flow.Options{Sessions: &flow.SessionOptions{}})
	if err != nil {
		b.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := grpc.NewServer()
	testpb.RegisterTestServiceServer(srv, &uploadServer{flow: f})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	defer func() {
		srv.Stop()
		<-served
	}()
	conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	client := testpb.NewTestServiceClient(conn)
	ctx := context.Background()
	message := requestOf(string(make([]byte, 100)))

	plain := func() error {
		stream, err := client.StreamingInputCall(ctx)
		if err != nil {
			return err
		}
		for range messages {
			if err := stream.Send(message); err != nil {
				return err
			}
		}
		_, err = stream.CloseAndRecv()
		return err
	}
	sender := func() error {
		s, err := flowclient.New(client.StreamingInputCall, flowclient.Options{})
		if err != nil {
			return err
		}
		for range messages {
			if err := s.Send(ctx, message); err != nil {
				return err
			}
		}
		return s.Close(ctx)
	}
	var ofPlain, ofSender cost
	if err := plain(); err != nil { // gRPC's window grows to what the connection needs
		b.Fatal(err)
	}
	for b.Loop() {
		if err := ofPlain.add(plain); err != nil {
			b.Fatal(err)
		}
		if err := ofSender.add(sender); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(median(ofPlain.took))/messages, "plain-ns/msg")
	b.ReportMetric(float64(median(ofSender.took))/messages, "sender-ns/msg")
	b.ReportMetric(float64(median(ofPlain.cpu))/messages, "plain-cpu-ns/msg")
	b.ReportMetric(float64(median(ofSender.cpu))/messages, "sender-cpu-ns/msg")
	b.ReportMetric(float64(median(ofPlain.took))/float64(median(ofSender.took)), "speed-of-plain")
}

// cost is what uploads have cost, one by one.
type cost struct{ took, cpu []time.Duration }

func (c *cost) add(upload func() error) error {
	start, cpu := time.Now(), cpuTime()
	err := upload()
	c.took, c.cpu = append(c.took, time.Since(start)), append(c.cpu, cpuTime()-cpu)
	return err
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

// cpuTime is the processor time of this process so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic("bug: " + err.Error())
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
