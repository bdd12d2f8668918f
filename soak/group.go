package main

import (
	"context"
	"errors"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"example.com/flow"
)

// group is a Flow with a server, connections and clients of its own. There are two at a time: the one that is loaded
// with all kinds of streams, and the control group, which has the same number of well-behaved ones and nothing else. What
// the machine does hits both, so what sets them apart is what the other streams do to the well-behaved.
type group struct {
	s      *service
	srv    *grpc.Server
	life   *health.Server
	served chan error
	conns  []*grpc.ClientConn
	c      *clients
}

// newGroup serves a Flow with o. Without others it has well-behaved streams only.
func newGroup(cfg config, w *watch, o flow.Options, others bool) (*group, error) {
	s, err := newService(cfg, w, o)
	if err != nil {
		return nil, err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	g := &group{
		s:      s,
		srv:    grpc.NewServer(grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(16*window)),
		life:   health.NewServer(),
		served: make(chan error, 1),
		c:      &clients{cfg: cfg, s: s, w: w, others: others},
	}
	testpb.RegisterTestServiceServer(g.srv, s)
	healthpb.RegisterHealthServer(g.srv, g.life)
	go func() { g.served <- g.srv.Serve(lis) }()
	for range cfg.conns {
		conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		g.conns = append(g.conns, conn)
		g.c.stubs = append(g.c.stubs, testpb.NewTestServiceClient(conn))
	}
	return g, nil
}

// end is how the life of a group's server ended under its load.
type end struct {
	shutdown, all time.Duration // all: with GracefulStop
	err           error
}

// stop ends the server, then the clients.
func (g *group) stop() (e end) {
	g.c.ending.Store(true)
	begin := time.Now()
	g.life.Shutdown()
	e.err = g.s.flow.Shutdown(context.Background())
	e.shutdown = time.Since(begin)
	g.srv.GracefulStop()
	e.all = time.Since(begin)
	g.c.workers.Wait()
	for _, conn := range g.conns {
		e.err = errors.Join(e.err, conn.Close())
	}
	e.err = errors.Join(e.err, <-g.served)
	return e
}
