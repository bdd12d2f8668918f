package main

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"example.com/flow"
	pb "example.com/flow/examples/minimal/readingspb"
)

// server is the service, on a free port of the loopback interface.
type server struct {
	pb.UnimplementedReadingsServer
	flow    *flow.Flow[*pb.Reading]
	grpc    *grpc.Server
	addr    string
	served  chan error
	letters atomic.Int64 // dead ones
}

func startServer(cfg *config, st *store) (*server, error) {
	s := &server{grpc: grpc.NewServer(), served: make(chan error, 1)}
	var err error
	s.flow, err = flow.NewBatch(st.handle, (*pb.Reading).GetDevice, flow.Options{
		// While a device is in one transaction it is in no other, whichever stream its readings come by. So their order
		// holds, and no two transactions wait for each other's rows.
		Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow},
		Backpressure: flow.BackpressureOptions{Capacity: cfg.calls},
		Batch:        flow.BatchOptions{MaxMessages: cfg.batch},
		Retry:        flow.RetryOptions{MaxAttempts: 3, Backoff: 100 * time.Millisecond, AttemptTimeout: 10 * time.Second},
		OnFailure:    s.deadLetter,
	})
	if err != nil {
		return nil, err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.addr = lis.Addr().String()
	pb.RegisterReadingsServer(s.grpc, s)
	go func() { s.served <- s.grpc.Serve(lis) }()
	return s, nil
}

// Upload implements the service.
func (s *server) Upload(stream grpc.ClientStreamingServer[pb.Reading, pb.Ack]) error {
	sum, err := s.flow.Run(stream.Context(), stream.Recv)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&pb.Ack{Stored: sum.Succeeded})
}

// deadLetter lets a stream go on after a reading that can't be stored. A service of yours would keep it somewhere.
func (s *server) deadLetter(_ context.Context, f *flow.Failure) flow.FailureAction {
	if _, again := flow.RetryAfter(f); again {
		return flow.FailStream // the database was away for too long: the client can send it again
	}
	s.letters.Add(1)
	return flow.SkipMessage
}

// stop ends what is under way, and the server.
func (s *server) stop() error {
	err := s.flow.Close()
	s.grpc.Stop()
	return errors.Join(err, <-s.served)
}
