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
	s := &server{cfg: cfg, store: st, grpc: grpc.NewServer(grpc.Creds(creds)), health: health.NewServer(), served: make(chan struct{})}
	s.flow, err = flow.New(s.handle, (*pb.Record).GetKey, cfg.flowOptions(see))
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

// handle is the handler: flow calls it for each record, in the order that -mode says.
func (s *server) handle(ctx context.Context, m flow.Message[*pb.Record]) error {
	if s.cfg.slow != "" && m.Key == s.cfg.slow {
		select {
		case <-time.After(s.cfg.slowBy):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	// Attempts fail before anything is written. One that fails after its write is safe to try again only if the write
	// is idempotent, which this one is not on purpose: a record that runs twice is to show.
	if rand.Float64() < s.cfg.fail {
		return status.Error(codes.Unavailable, "this attempt fails because of -fail")
	}
	return s.store.add(m.Value)
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
