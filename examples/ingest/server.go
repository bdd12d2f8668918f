package main

import (
	"context"
	"math/rand/v2"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"example.com/flow"
	pb "example.com/flow/examples/ingest/ingestpb"
)

// server is the service, its Flow and its store, from start to stop.
type server struct {
	pb.UnimplementedIngestServer
	cfg    *config
	store  *store
	flow   *flow.Flow[*pb.Record]
	grpc   *grpc.Server
	health *health.Server
	addr   string
	served chan struct{} // closed when grpc.Serve has returned
	err    error         // what it returned then
}

func startServer(cfg *config, addr, file string, see flow.Observer) (*server, error) {
	creds, err := cfg.serverCredentials()
	if err != nil {
		return nil, err
	}
	st, err := openStore(file)
	if err != nil {
		return nil, err
	}
	s := &server{cfg: cfg, store: st, health: health.NewServer(), served: make(chan struct{})}
	s.grpc = grpc.NewServer(grpc.Creds(creds), grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingEvery / 2}))
	opts := cfg.flowOptions(see)
	opts.Sessions = &flow.SessionOptions{Store: st.sessions}
	if cfg.batch > 1 {
		s.flow, err = flow.NewBatch(s.handleBatch, (*pb.Record).GetKey, opts)
	} else {
		s.flow, err = flow.New(s.handle, (*pb.Record).GetKey, opts)
	}
	if err != nil {
		_ = st.close()
		return nil, err
	}
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		_ = st.close()
		return nil, err
	}
	s.addr = lis.Addr().String()
	pb.RegisterIngestServer(s.grpc, s)
	healthpb.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	go func() {
		defer close(s.served)
		s.err = s.grpc.Serve(lis)
	}()
	return s, nil
}

// Upload implements the service: one call is one stream of the Flow.
func (s *server) Upload(stream grpc.ClientStreamingServer[pb.Record, pb.Receipt]) error {
	sum, err := s.flow.Run(stream.Context(), stream.Recv)
	if err != nil {
		return err // a *flow.Failure is a gRPC status already
	}
	return stream.SendAndClose(&pb.Receipt{Stored: sum.Succeeded})
}

// handle is the handler of -batch 1: flow calls it for each record, in the order that -mode says.
func (s *server) handle(ctx context.Context, m flow.Message[*pb.Record]) error {
	errs := make([]error, 1)
	if err := s.handleBatch(ctx, []flow.Message[*pb.Record]{m}, errs); err != nil {
		return err
	}
	return errs[0]
}

// handleBatch is the handler: flow calls it for records of any number of keys and streams, those of a key in order.
func (s *server) handleBatch(ctx context.Context, batch []flow.Message[*pb.Record], errs []error) error {
	waited := false
	held := map[string]bool{} // what has to stay in order, and must not go on
	for i, m := range batch {
		lane, ordered := s.lane(m)
		isSlow := s.cfg.slow != "" && m.Key == s.cfg.slow
		switch {
		case held[lane], isSlow && waited: // all records of the call wait for a slow one, so there is one in a call
			errs[i] = flow.ErrNotAttempted
		case isSlow:
			waited = true
			select {
			case <-time.After(s.cfg.slowBy):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if errs[i] == nil && rand.Float64() < s.cfg.fail {
			errs[i] = status.Error(codes.Unavailable, "this attempt fails because of -fail")
		}
		held[lane] = ordered && errs[i] != nil
	}
	return s.store.add(ctx, batch, errs)
}

// lane names what m has to stay in order with, if there is anything.
func (s *server) lane(m flow.Message[*pb.Record]) (name string, ordered bool) {
	upload := m.Value.GetUpload() + "/" + m.Session().ID.Name
	switch s.cfg.mode {
	case flow.OrderingFIFO:
		return upload, true
	case flow.OrderingKeyedFIFO:
		return upload + "/" + m.Key, true
	}
	return "", false
}

// State implements the service.
func (s *server) State(req *pb.StateRequest, stream grpc.ServerStreamingServer[pb.KeyState]) error {
	all, err := s.store.states(stream.Context(), req.GetUpload())
	if err != nil {
		return err
	}
	for _, k := range all {
		if err := stream.Send(&pb.KeyState{Key: k.key, Records: k.records, Hash: k.hash[:]}); err != nil {
			return err
		}
	}
	return nil
}

// linger is how long stop waits, after the last upload, for calls that flow knows nothing of. Those that watch the
// health service would hold it for ever.
const linger = 2 * time.Second

// stop ends the server: clients are told to go elsewhere, what was accepted is stored (for as long as the grace period
// lasts), and then no upload is left for GracefulStop to wait for. The error says whether records were cut off.
// It may be called again, as after a restart in which no other server could take over.
func (s *server) stop() error {
	s.health.Shutdown()
	err := s.flow.Shutdown(context.Background())
	defer time.AfterFunc(linger, s.grpc.Stop).Stop()
	go s.grpc.GracefulStop() // it would wait for a handler that ignores its context, whatever Stop does; Serve doesn't
	if <-s.served; err == nil {
		err = s.err
	}
	if e := s.store.close(); err == nil {
		err = e
	}
	return err
}
