package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"example.com/flow/flowclient"

	pb "example.com/flow/examples/ingest/ingestpb"
)

// client uploads records and asks what became of them.
type client struct {
	conn    *grpc.ClientConn
	api     pb.IngestClient
	health  healthpb.HealthClient
	senders []*sender // each has its own keys
}

type sender = flowclient.Sender[pb.Record, pb.Receipt]

const maxBuffered = 40_000 // records of a stream that are not known to be stored

// How long the client waits for a server that serves.
const (
	firstWait  = 5 * time.Second  // one that is not there at first won't come
	serverWait = 30 * time.Second // a restart may take as long as that
	giveUp     = 5 * time.Minute  // without a record stored: a slow handler is not to be taken for a server that is gone

	pingEvery = 20 * time.Second // while a stream is open: a connection that has gone silent is noticed
)

// dial returns a client with so many Senders, each of which has its streams answered after age.
func dial(addr string, creds credentials.TransportCredentials, streams int, age time.Duration, note func(string, ...any)) (*client, error) {
	conn, err := grpc.NewClient(addr,
		grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 5 * time.Second, Backoff: backoff.Config{
			BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second,
		}}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: 5 * time.Second}))
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn, api: pb.NewIngestClient(conn), health: healthpb.NewHealthClient(conn)}
	p := newPace(note)
	for range streams {
		s, err := flowclient.New(p.open(c.api.Upload), flowclient.Options{
			// A stream is answered when all of it is stored, its slowest key's records too, and half of these at most go in
			// one: with few, all keys would soon wait for the slow one.
			MaxBuffered:  maxBuffered,
			MaxStreamAge: age,
			MaxBackoff:   time.Second,
			GiveUpAfter:  giveUp,
			Logger:       newNoteLogger(note),
		})
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		c.senders = append(c.senders, s)
	}
	return c, nil
}

// close ends the Senders too: what they have not stored by now they never will.
func (c *client) close() error {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for _, s := range c.senders {
		_ = s.Close(ended) // upload has said what is wrong
	}
	return c.conn.Close()
}

// stats are the sums over all Senders.
func (c *client) stats() (sum flowclient.Stats) {
	for _, s := range c.senders {
		st := s.Stats()
		sum.Taken += st.Taken
		sum.Settled += st.Settled
		sum.Streams += st.Streams
		sum.Resent += st.Resent
	}
	return sum
}

// progress is what the live line says of an upload to a server of which nothing else is known.
func (c *client) progress() (uint64, []string) {
	st := c.stats()
	return st.Settled, []string{fmt.Sprintf("sent %d", st.Taken), fmt.Sprintf("streams %d", st.Streams)}
}

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
func (c *client) upload(ctx, stop context.Context, in *input) error {
	inputErr := in.feed(ctx, stop, c.senders) // ends the input, not the upload of what was read before
	var g errgroup.Group
	for _, s := range c.senders {
		g.Go(func() error { return s.Close(ctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return inputErr
}

// check compares the stored state with the replay. It returns what differs first; "" means that nothing does. It asks
// again while its connection breaks.
func (c *client) check(ctx context.Context, limit time.Duration, upload string, want replay) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		stored, err := c.states(ctx, upload)
		switch {
		case err == nil:
			return want.difference(stored), nil
		case status.Code(err) != codes.Unavailable || ctx.Err() != nil:
			return "", err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// states returns the last states of an upload, by key.
func (c *client) states(ctx context.Context, upload string) (stored []keyState, err error) {
	stream, err := c.api.State(ctx, &pb.StateRequest{Upload: upload}, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	for {
		k, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stored, nil
		}
		if err != nil {
			return nil, err
		}
		got := keyState{key: k.GetKey(), state: state{records: k.GetRecords()}}
		copy(got.hash[:], k.GetHash())
		stored = append(stored, got)
	}
}
