package main

import (
	"context"
	"net"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/grpc"

	"example.com/flow"
	pb "example.com/flow/examples/fleet/fleetpb"
	"example.com/flow/natsflow"
)

// gateway is the gRPC server that devices send to.
type gateway struct {
	pb.UnimplementedReadingsServer
	readings *flow.Flow[*pb.Reading]
}

func (g *gateway) Upload(stream grpc.ClientStreamingServer[pb.Reading, pb.Ack]) error {
	sum, err := g.readings.Run(stream.Context(), stream.Recv)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&pb.Ack{Stored: sum.Committed})
}

// newGateway is all that there is to it.
func newGateway(js jetstream.JetStream, topic natsflow.Topic) (*gateway, error) {
	gw, err := natsflow.NewGateway(js, topic, natsflow.Proto((*pb.Reading).GetDevice))
	if err != nil {
		return nil, err
	}
	readings, err := flow.NewBatch(gw.Store, nil, flow.Options{
		Sessions:     &flow.SessionOptions{Store: gw.Sessions()},
		Backpressure: flow.BackpressureOptions{Capacity: 16},
		Batch:        flow.BatchOptions{MaxMessages: 1024},
		Retry:        flow.RetryOptions{MaxAttempts: 4, Backoff: 100 * time.Millisecond, Multiplier: 2},
	})
	return &gateway{readings: readings}, err
}

// runGateway is a gateway: the NATS server, the topic, and the address that it listens on.
func runGateway(ctx context.Context, args []string) error {
	js, err := connect(args[0])
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	topic, err := parseTopic(args[1])
	if err != nil {
		return err
	}
	g, err := newGateway(js, topic)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", args[2])
	if err != nil {
		return err
	}
	srv := grpc.NewServer()
	pb.RegisterReadingsServer(srv, g)
	context.AfterFunc(ctx, func() {
		hurry, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = g.readings.Shutdown(hurry) // what it cut off, clients send again
		srv.GracefulStop()
	})
	return srv.Serve(listener)
}

// connect connects to a NATS server, and comes back to it for ever. What is published without a connection fails at once.
func connect(url string) (jetstream.JetStream, error) {
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1),
		nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		return nil, err
	}
	return jetstream.New(nc)
}
