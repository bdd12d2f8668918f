package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"example.com/flow"
	"example.com/flow/bench/internal/contender"
	"example.com/flow/bench/internal/load"
)

type (
	request = pb.StreamingInputCallRequest
	stream  = grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]
)

// service is a server whose method receives in one of the ways that are compared, and a client's connection to it.
// A message's first four bytes number its key, the next four its stream, and eight more the message.
type service struct {
	pb.UnimplementedTestServiceServer
	call   func(stream) error
	server *grpc.Server
	conn   *grpc.ClientConn
	served sync.WaitGroup
	drain  func()
	sent   uint64 // messages of each stream so far
}

var grpcNames = func() (list [grpcKeys]string) {
	for i := range list {
		list[i] = fmt.Sprintf("device-%04d", i)
	}
	return list
}()

func (s *service) StreamingInputCall(in stream) error {
	if err := s.call(in); err != nil {
		return err
	}
	return in.SendAndClose(&pb.StreamingInputCallResponse{})
}

func keyOf(r *request) string { return grpcNames[binary.LittleEndian.Uint32(r.Payload.Body)] }

func messageOf(r *request) load.Message {
	b := r.Payload.Body
	key, of := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	return load.Message{Seq: binary.LittleEndian.Uint64(b[8:]), Key: grpcNames[key], Slot: of*grpcKeys + key}
}

// serve starts a service that receives in the way called so, for so many streams at once.
func serve(way string, streams int, check *load.Checker) (*service, error) {
	s := &service{drain: func() {}}
	var opts []grpc.ServerOption
	note := func(r *request) { m := messageOf(r); check.Note(&m) }
	f, err := flow.New(func(_ context.Context, m flow.Message[*request]) error { note(m.Value); return nil },
		keyOf, contender.FlowOptions(flow.OrderingKeyedFIFO, workers, pending))
	if err != nil {
		return nil, err
	}
	switch way {
	case wayLoop:
		s.call = func(in stream) error { return receive(in, note) }
	case wayHash:
		undone := make([]sync.WaitGroup, streams)
		e := contender.Named(wayHash).Start(func(m *load.Message) {
			check.Note(m)
			undone[m.Slot/grpcKeys].Done()
		}, workers, pending)
		s.drain = e.Close
		s.call = func(in stream) (err error) {
			var mine *sync.WaitGroup
			e.Run(func() *load.Message {
				var r *request
				if r, err = in.Recv(); err != nil {
					return nil
				}
				m := messageOf(r)
				mine = &undone[m.Slot/grpcKeys]
				mine.Add(1)
				return &m
			})
			if mine != nil {
				mine.Wait()
			}
			if err == io.EOF {
				return nil
			}
			return err
		}
	case wayRun:
		s.call = func(in stream) error { _, err := f.Run(in.Context(), in.Recv); return err }
	case wayInterceptor:
		opts = append(opts, grpc.StreamInterceptor(f.StreamServerInterceptor()))
		s.call = func(in stream) error { return receive(in, nil) }
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.server = grpc.NewServer(opts...)
	pb.RegisterTestServiceServer(s.server, s)
	s.served.Go(func() { _ = s.server.Serve(lis) })
	s.conn, err = grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	return s, err
}

func receive(in stream, note func(*request)) error {
	for {
		r, err := in.Recv()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		note(r)
	}
}

// open starts a stream.
func (s *service) open() (grpc.ClientStreamingClient[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse], error) {
	return pb.NewTestServiceClient(s.conn).StreamingInputCall(context.Background())
}

// send has so many streams send n messages each, and waits for their answers.
func (s *service) send(streams, n int) error {
	from := s.sent
	s.sent += uint64(n)
	var wg sync.WaitGroup
	failed := make(chan error, streams)
	for i := range streams {
		wg.Go(func() {
			if err := s.sendOne(uint32(i), from, n); err != nil {
				failed <- err
			}
		})
	}
	wg.Wait()
	close(failed)
	return <-failed
}

func (s *service) sendOne(number uint32, from uint64, n int) error {
	out, err := s.open()
	if err != nil {
		return err
	}
	b := make([]byte, 128)
	m := &request{Payload: &pb.Payload{Body: b}}
	rnd := number * 7919
	for i := range n {
		rnd = rnd*1664525 + 1013904223
		binary.LittleEndian.PutUint32(b, rnd>>8%grpcKeys)
		binary.LittleEndian.PutUint32(b[4:], number)
		binary.LittleEndian.PutUint64(b[8:], from+uint64(i)+1)
		if err := out.Send(m); err != nil {
			break // the answer says why
		}
	}
	_, err = out.CloseAndRecv()
	return err
}

// trickle opens so many streams and has each send a message a second, spread over that second. It returns the processor time
// of all seconds but the first. Each stream has a key of its own.
func (s *service) trickle(streams, seconds int) (spent time.Duration, err error) {
	all := make([]grpc.ClientStreamingClient[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse], streams)
	for i := range all {
		if all[i], err = s.open(); err != nil {
			return 0, err
		}
	}
	b := make([]byte, 128)
	m := &request{Payload: &pb.Payload{Body: b}}
	const tick = 10 * time.Millisecond
	next := time.Now()
	for second := range seconds + 1 {
		if second == 1 {
			spent = cpuTime()
		}
		for i, out := range all {
			if i%(streams/100) == 0 {
				time.Sleep(time.Until(next))
				next = next.Add(tick)
			}
			binary.LittleEndian.PutUint32(b, uint32(i%grpcKeys))
			binary.LittleEndian.PutUint32(b[4:], uint32(i/grpcKeys))
			binary.LittleEndian.PutUint64(b[8:], uint64(second+1))
			if err := out.Send(m); err != nil {
				return 0, err
			}
		}
	}
	time.Sleep(time.Until(next))
	spent = cpuTime() - spent
	for _, out := range all {
		if _, err := out.CloseAndRecv(); err != nil {
			return 0, err
		}
	}
	return spent, nil
}

func (s *service) stop() {
	_ = s.conn.Close()
	s.server.Stop()
	s.served.Wait()
	s.drain()
}
