package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"example.com/flow"
)

const keys = 512

// load is what clients send.
type load struct {
	name    string
	mode    flow.OrderingMode
	streams int           // each has its share of the keys
	pending int           // messages of a stream that are read ahead
	every   time.Duration // between messages, of all streams together; 0: as fast as they can
}

var loads = []*load{
	{"512 keys over 8 streams", flow.OrderingKeyedFIFO, 8, 256, 0},
	{"one FIFO stream", flow.OrderingFIFO, 1, 1024, 0},
	{"200 messages a second", flow.OrderingKeyedFIFO, 8, 256, 5 * time.Millisecond},
}

// service is a server whose method runs a Flow, and a client's connection to it.
type service struct {
	pb.UnimplementedTestServiceServer
	flow   *flow.Flow[*request]
	server *grpc.Server
	conn   *grpc.ClientConn
	served sync.WaitGroup
}

var keyNames = func() (list [keys]string) {
	for i := range list {
		list[i] = fmt.Sprintf("device-%03d", i)
	}
	return list
}()

// A message is 128 bytes: the first four number its key, the next eight count the messages of the stream.

func keyOf(r *request) string { return keyNames[binary.LittleEndian.Uint32(r.Payload.Body)] }

func rowOf(r *request) row {
	return row{keyOf(r), int64(binary.LittleEndian.Uint64(r.Payload.Body[4:])), r.Payload.Body}
}

func serve(f *flow.Flow[*request]) (*service, error) {
	s := &service{flow: f, server: grpc.NewServer(grpc.WaitForHandlers(true))} // so that stop waits for all runs
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	pb.RegisterTestServiceServer(s.server, s)
	s.served.Go(func() { _ = s.server.Serve(lis) })
	s.conn, err = grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	return s, err
}

// StreamingInputCall implements the service.
func (s *service) StreamingInputCall(in grpc.ClientStreamingServer[request, pb.StreamingInputCallResponse]) error {
	if _, err := s.flow.Run(in.Context(), in.Recv); err != nil {
		return err
	}
	return in.SendAndClose(&pb.StreamingInputCallResponse{})
}

// send sends l until ctx ends. The returned channel then has the first error of another reason.
func (s *service) send(ctx context.Context, l *load) <-chan error {
	failed := make(chan error, l.streams+1)
	var senders sync.WaitGroup
	for i := range l.streams {
		senders.Go(func() {
			if err := s.sendOne(ctx, l, i); err != nil && ctx.Err() == nil {
				failed <- err
			}
		})
	}
	first := make(chan error, 1)
	go func() {
		senders.Wait()
		close(failed)
		first <- <-failed
	}()
	return first
}

func (s *service) sendOne(ctx context.Context, l *load, number int) error {
	out, err := pb.NewTestServiceClient(s.conn).StreamingInputCall(ctx)
	if err != nil {
		return err
	}
	var turn <-chan time.Time
	if l.every > 0 {
		select { // so that streams don't send at one moment
		case <-time.After(l.every * time.Duration(number)):
		case <-ctx.Done():
			return nil
		}
		tick := time.NewTicker(l.every * time.Duration(l.streams))
		defer tick.Stop()
		turn = tick.C
	}
	rnd := uint32(number * 7919)
	own := uint32(keys / l.streams)
	for n := uint64(1); ctx.Err() == nil; n++ {
		rnd = rnd*1664525 + 1013904223
		b := make([]byte, 128)
		binary.LittleEndian.PutUint32(b, uint32(number)*own+rnd>>8%own)
		binary.LittleEndian.PutUint64(b[4:], n)
		if out.Send(&request{Payload: &pb.Payload{Body: b}}) != nil {
			break // the answer says why
		}
		if turn != nil {
			select {
			case <-turn:
			case <-ctx.Done():
			}
		}
	}
	_, err = out.CloseAndRecv()
	return err
}

func (s *service) stop() error {
	err := s.flow.Close()
	_ = s.conn.Close()
	s.server.Stop()
	s.served.Wait()
	return err
}
