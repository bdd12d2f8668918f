package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"example.com/flow"
	pb "example.com/flow/examples/ingest/ingestpb"
)

// What a record's text tells the handler to do. Any other is taken, and that is all.
const (
	textFail  = "fail"  // fail for good
	textLarge = "large" // once half of the records before it have been taken, fail with more than fits
	textHold  = "hold"  // stand still until the stream ends
	textGate  = "gate"  // stand still until the gate opens, and then be taken
)

// service is the example's service with what the example can't have: handlers that fail or stand still at a given record,
// and a Flow that can be looked into, since it is in this process.
type service struct {
	pb.UnimplementedIngestServer
	flow   *flow.Flow[*pb.Record]
	grpc   *grpc.Server
	served chan error
	held   chan struct{} // receives when a handler stands still
	gate   chan struct{} // closed to open it
	before int           // goroutines of this process without the service

	mu    sync.Mutex
	lines map[string]uint64 // the last that ran, by key
	ran   uint64            // handlers that took their record
	wrong error
	ends  []end
}

// end is how one Upload ended.
type end struct {
	sum flow.Summary
	err error
}

func startService(addr string, creds credentials.TransportCredentials, before int, o flow.Options) (*service, error) {
	s := &service{served: make(chan error, 1), held: make(chan struct{}, 1<<16), gate: make(chan struct{}), before: before, lines: map[string]uint64{}}
	var err error
	if s.flow, err = flow.New(s.handle, (*pb.Record).GetKey, o); err != nil {
		return nil, err
	}
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s.grpc = grpc.NewServer(grpc.Creds(creds))
	pb.RegisterIngestServer(s.grpc, s)
	reflection.Register(s.grpc)
	go func() { s.served <- s.grpc.Serve(lis) }()
	return s, nil
}

// Upload implements the service.
func (s *service) Upload(stream grpc.ClientStreamingServer[pb.Record, pb.Receipt]) error {
	sum, err := s.flow.Run(stream.Context(), stream.Recv)
	s.mu.Lock()
	s.ends = append(s.ends, end{sum, err})
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return stream.SendAndClose(&pb.Receipt{Stored: sum.Succeeded})
}

func (s *service) handle(ctx context.Context, m flow.Message[*pb.Record]) error {
	s.mu.Lock()
	if last := s.lines[m.Key]; m.Value.GetLine() <= last {
		s.wrong = fmt.Errorf("line %d of key %q ran after line %d", m.Value.GetLine(), m.Key, last)
	}
	s.lines[m.Key] = m.Value.GetLine()
	s.mu.Unlock()
	switch m.Value.GetText() {
	case textFail:
		return status.Error(codes.DataLoss, failText)
	case textLarge:
		for s.taken() < m.Value.GetLine()/2 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		return largeStatus().Err()
	case textHold:
		s.held <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	case textGate:
		s.held <- struct{}{}
		select {
		case <-s.gate:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ran++
	return nil
}

func (s *service) taken() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ran
}

const failText = "this record can't be stored: ½" // a text that HTTP/2 can't carry as it is

// largeStatus is far above what flow lets through.
func largeStatus() *status.Status {
	st, err := status.New(codes.DataLoss, strings.Repeat("½", 1000)).WithDetails(
		&errdetails.ErrorInfo{Reason: "LARGE", Domain: "interop", Metadata: map[string]string{"why": strings.Repeat("x", 1000)}},
		&errdetails.DebugInfo{Detail: strings.Repeat("y", 900)},
		&errdetails.DebugInfo{Detail: strings.Repeat("z", 9000)})
	if err != nil {
		panic(err) // well-known types
	}
	return st
}

// awaitHeld returns when n handlers stand still.
func (s *service) awaitHeld(ctx context.Context, n int) error {
	for i := range n {
		select {
		case <-s.held:
		case <-ctx.Done():
			return fmt.Errorf("only %d of %d handlers were reached", i, n)
		}
	}
	return nil
}

// quiet is how long the server may take, once its client is gone, until it has nothing left running.
const quiet = 10 * time.Second

// awaitEnd waits until nothing runs any more, and returns how the one Upload ended: a client that called twice by itself
// has replayed its messages.
func (s *service) awaitEnd() (end, error) {
	ends, err := s.awaitEnds()
	if err == nil && len(ends) != 1 {
		err = fmt.Errorf("%d Uploads reached the server, want 1", len(ends))
	}
	if err != nil {
		return end{}, err
	}
	return ends[0], nil
}

// awaitEnds waits until nothing runs any more, and returns how the Uploads ended.
func (s *service) awaitEnds() ([]end, error) {
	if err := await(s.left); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wrong != nil {
		return nil, s.wrong
	}
	for _, e := range s.ends {
		if sum := e.sum; sum.Received != sum.Succeeded+sum.Failed+sum.Rejected+sum.Dropped+sum.Duplicates {
			return nil, fmt.Errorf("the Summary doesn't add up: %+v", sum)
		}
	}
	return s.ends, nil
}

// left says what of a call still runs.
func (s *service) left() error {
	st := s.flow.Stats()
	if st.Streams+st.InFlight+st.Waiting+st.ActiveKeys > 0 {
		return fmt.Errorf("the Flow still has %d streams, %d in flight, %d waiting, %d keys",
			st.Streams, st.InFlight, st.Waiting, st.ActiveKeys)
	}
	return goroutinesAbove(s.before + 1) // Serve is there
}

func goroutinesAbove(limit int) error {
	if n := runtime.NumGoroutine(); n > limit {
		return fmt.Errorf("%d goroutines, want %d", n, limit)
	}
	return nil
}

// await waits until there is no error any more.
func await(check func() error) error {
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if err := check(); err == nil || time.Since(begin) > quiet {
			return err
		}
	}
}

// stop ends the service, and returns when nothing of it is left.
func (s *service) stop() error {
	err := s.flow.Close()
	s.grpc.Stop()
	return errors.Join(err, <-s.served, await(func() error { return goroutinesAbove(s.before) }))
}
