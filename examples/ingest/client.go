package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "example.com/flow/examples/ingest/ingestpb"
)

// client uploads records and asks what became of them.
type client struct {
	conn    *grpc.ClientConn
	api     pb.IngestClient
	health  healthpb.HealthClient
	note    func(format string, args ...any)
	sent    atomic.Int64 // records, each time that they are sent
	begun   atomic.Int64 // records, the first time
	resumed atomic.Int64 // streams that were taken up again
}

// How long the client waits for a server that serves.
const (
	firstWait  = 5 * time.Second  // one that is not there at first won't come
	serverWait = 30 * time.Second // a restart may take as long as that
)

func dial(addr string, creds credentials.TransportCredentials, note func(string, ...any)) (*client, error) {
	conn, err := grpc.NewClient(addr,
		grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{
			BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second,
		}}))
	if err != nil {
		return nil, err
	}
	return &client{
		conn: conn, api: pb.NewIngestClient(conn), health: healthpb.NewHealthClient(conn), note: note,
	}, nil
}

func (c *client) close() error { return c.conn.Close() }

// await returns when the server serves.
func (c *client) await(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		r, err := c.health.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		if err == nil && r.GetStatus() == healthpb.HealthCheckResponse_SERVING {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no server on %s within %v", c.conn.Target(), limit)
		case <-time.After(50 * time.Millisecond): // it is on its way out, or just gone
		}
	}
}

// upload sends the whole input, or what there is of it until stop ends. It returns when all of that is stored, or can't be.
func (c *client) upload(ctx, stop context.Context, in *input, streams int) error {
	g, ctx := errgroup.WithContext(ctx)
	to := make([]chan *pb.Record, streams)
	for i := range to {
		to[i] = make(chan *pb.Record)
		u := newUpload(c, to[i])
		g.Go(func() error { return u.run(ctx) })
	}
	var inputErr error // ends the input, not the upload of what was read before
	g.Go(func() error {
		inputErr = in.feed(ctx, stop, to)
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return inputErr
}

// check compares the stored state with the replay. It returns what differs first; "" means that nothing does.
func (c *client) check(ctx context.Context, limit time.Duration, upload string, want replay) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	stream, err := c.api.State(ctx, &pb.StateRequest{Upload: upload}, grpc.WaitForReady(true))
	if err != nil {
		return "", err
	}
	var stored []keyState
	for {
		k, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return want.difference(stored), nil
		}
		if err != nil {
			return "", err
		}
		got := keyState{key: k.GetKey(), state: state{records: k.GetRecords()}}
		copy(got.hash[:], k.GetHash())
		stored = append(stored, got)
	}
}
