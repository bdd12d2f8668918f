// Command minimal is a gRPC service on flow and its client, in one process. One upload brings readings: those of a device
// are stored in order, devices concurrently. What can't be stored is a dead letter, and an upload that fails goes on.
package main

import (
	"context"
	"log"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"example.com/flow"
	pb "example.com/flow/examples/minimal/readingspb"
	"example.com/flow/flowclient"
)

var outage atomic.Int32 // calls of the handler that still fail

func store(_ context.Context, m flow.Message[*pb.Reading]) error {
	if m.Value.Celsius < -273.15 {
		return status.Error(codes.InvalidArgument, "colder than absolute zero")
	}
	if m.Key == "fridge" && outage.Add(-1) >= 0 {
		return status.Error(codes.Unavailable, "the database is down")
	}
	log.Println("stored:", m.Key, m.Value.Celsius, "at attempt", m.Attempt)
	return nil
}

func deadLetter(_ context.Context, f *flow.Failure) flow.FailureAction {
	if _, ok := flow.RetryAfter(f); ok {
		return flow.FailStream // it may succeed later: the client sends it again
	}
	log.Println("dead letter:", f.Key, f.Value.(*pb.Reading).Celsius, "-", f)
	return flow.SkipMessage
}

type server struct {
	pb.UnimplementedReadingsServer
	readings *flow.Flow[*pb.Reading]
}

func (s *server) Upload(stream grpc.ClientStreamingServer[pb.Reading, pb.Ack]) error {
	sum, err := s.readings.Run(stream.Context(), stream.Recv)
	if err != nil {
		return err // a *Failure is a gRPC status already
	}
	return stream.SendAndClose(&pb.Ack{Stored: sum.Succeeded})
}

func main() {
	log.SetFlags(0)
	readings, err := flow.New(store, (*pb.Reading).GetDevice, flow.Options{
		Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}, // a device in order, devices concurrently
		Backpressure: flow.BackpressureOptions{Capacity: 64},             // handlers at once, over all calls
		Retry:        flow.RetryOptions{MaxAttempts: 3, Backoff: 50 * time.Millisecond, Multiplier: 2},
		OnFailure:    deadLetter,
		Sessions:     &flow.SessionOptions{}, // uploads that go on, remembered in memory
	})
	check(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	srv := grpc.NewServer()
	pb.RegisterReadingsServer(srv, &server{readings: readings})
	go func() { check(srv.Serve(listener)) }()

	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	outage.Store(4) // one more than a call of the server tries

	sender, err := flowclient.New(pb.NewReadingsClient(conn).Upload, flowclient.Options{})
	check(err)
	for _, r := range []*pb.Reading{
		{Device: "oven", Celsius: 180}, {Device: "oven", Celsius: -400}, {Device: "fridge", Celsius: 5},
		{Device: "oven", Celsius: 190}, {Device: "fridge", Celsius: 4}, {Device: "oven", Celsius: 200},
	} {
		check(sender.Send(context.Background(), r)) // takes it on, and sends it until it is settled
	}
	check(sender.Close(context.Background())) // all is settled
	log.Println("settled:", sender.Stats().Settled, "over", sender.Stats().Streams, "streams")

	check(readings.Shutdown(context.Background())) // then nothing is left for GracefulStop to wait for
	srv.GracefulStop()
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
