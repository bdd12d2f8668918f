package main

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"example.com/flow"
	pb "example.com/flow/examples/fleet/fleetpb"
	"example.com/flow/natsflow"
)

// lease is how long a dead worker's partitions wait for the next holder: short, so that there is something to see.
const lease = 2 * time.Second

// apply is the handler: it brings a reading into the ledger, where the sequence number keeps it from happening twice.
func apply(ledger pb.LedgerClient) flow.Handler[*pb.Reading] {
	return func(ctx context.Context, m flow.Message[*pb.Reading]) error {
		origin, ok := natsflow.FromContext(ctx)
		if !ok {
			return errors.New("not a worker's context")
		}
		_, err := ledger.Apply(ctx, &pb.Effect{Reading: m.Value, Seq: origin.Seq}, grpc.WaitForReady(true))
		return err
	}
}

// runWorker is a worker: the NATS server, the topic, and the address of the ledger.
func runWorker(ctx context.Context, args []string) error {
	js, err := connect(args[0])
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	topic, err := parseTopic(args[1])
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(args[2], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	w, err := natsflow.NewWorker(js, topic, natsflow.Proto((*pb.Reading).GetDevice), apply(pb.NewLedgerClient(conn)), natsflow.WorkerOptions{
		Flow: flow.Options{
			Backpressure: flow.BackpressureOptions{Capacity: 64},
			Retry:        flow.RetryOptions{MaxAttempts: 10, Backoff: 50 * time.Millisecond, Multiplier: 2},
		},
		DeadLetter: true,
		Lease:      lease,
	})
	if err != nil {
		return err
	}
	return w.Run(ctx)
}
