package main

import (
	"context"
	"errors"
	"net"
	"runtime"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// soak runs the load for as long as cfg says, shuts the server down under it, and reports.
func soak(cfg config) (*report, error) {
	rep := &report{cfg: cfg, goroutinesBefore: runtime.NumGoroutine(), heapBefore: settledHeap()}
	w := newWatch(cfg)
	s, err := newService(cfg, w)
	if err != nil {
		return nil, err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	srv := grpc.NewServer(grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(16*window))
	testpb.RegisterTestServiceServer(srv, s)
	life := health.NewServer()
	healthpb.RegisterHealthServer(srv, life)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()

	c := &clients{cfg: cfg, s: s, w: w}
	var conns []*grpc.ClientConn
	for range cfg.conns {
		conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		conns = append(conns, conn)
		c.stubs = append(c.stubs, testpb.NewTestServiceClient(conn))
	}
	stop := make(chan struct{})
	sampled := make(chan struct{})
	go func() {
		defer close(sampled)
		w.sample(s, stop)
	}()
	c.run()
	time.Sleep(cfg.length)

	c.ending.Store(true)
	begin := time.Now()
	life.Shutdown()
	rep.shutdownErr = s.flow.Shutdown(context.Background())
	rep.shutdown = time.Since(begin)
	srv.GracefulStop()
	rep.stop = time.Since(begin)
	c.workers.Wait()
	for _, conn := range conns {
		err = errors.Join(err, conn.Close())
	}
	close(stop)
	<-sampled
	if err = errors.Join(err, <-served); err != nil {
		return nil, err
	}
	rep.w, rep.s = w, s
	rep.goroutinesAfter = goroutinesDownTo(rep.goroutinesBefore)
	rep.heapAfter = settledHeap()
	return rep, nil
}

// goroutinesDownTo is how many goroutines there are once they are as few as n, or ten seconds have passed: connections
// that were closed take a moment to go.
func goroutinesDownTo(n int) int {
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > n && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	return runtime.NumGoroutine()
}
