package main

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"example.com/flow"
	pb "example.com/flow/examples/ingest/ingestpb"
)

// pace slows the client down when the server refuses records because it has no capacity left (-policy hard): that is not
// for the Sender to do, which sends again what was refused.
type pace struct {
	limit *rate.Limiter
	note  func(format string, args ...any)
	mu    sync.Mutex // of decisions
}

const minPace = 20 // records/s

func newPace(note func(string, ...any)) *pace {
	return &pace{limit: rate.NewLimiter(rate.Inf, 1), note: note}
}

type (
	stream     = grpc.ClientStreamingClient[pb.Record, pb.Receipt]
	openStream = func(context.Context, ...grpc.CallOption) (stream, error)
)

// open returns what opens streams that keep the pace.
func (p *pace) open(open openStream) openStream {
	return func(ctx context.Context, o ...grpc.CallOption) (stream, error) {
		s, err := open(ctx, o...)
		if err != nil {
			return nil, err
		}
		return &pacedStream{stream: s, pace: p, began: time.Now()}, nil
	}
}

// pacedStream is a stream that keeps a pace, and says when it was too fast.
type pacedStream struct {
	stream
	*pace
	began time.Time
	mu    sync.Mutex
	sent  int
}

// Send implements grpc.ClientStreamingClient.
func (s *pacedStream) Send(r *pb.Record) error {
	if s.limit.Limit() != rate.Inf {
		_ = s.limit.Wait(s.Context())           // ends with the stream, as Send then does
		s.limit.SetLimit(s.limit.Limit() + 0.2) // a fifth more each second, as so many of them are sent in one
	}
	s.mu.Lock()
	s.sent++
	s.mu.Unlock()
	return s.stream.Send(r)
}

// RecvMsg implements grpc.ClientStream: it is how a Sender gets the answer.
func (s *pacedStream) RecvMsg(m any) error {
	err := s.stream.RecvMsg(m)
	if flow.ClassifyFailure(err) == flow.FailureBackpressure {
		s.mu.Lock()
		pace := float64(s.sent) / time.Since(s.began).Seconds()
		s.mu.Unlock()
		s.slowDown(pace)
	}
	return err
}

// slowDown halves the pace; the first time it was as fast as it could.
func (p *pace) slowDown(pace float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.limit.Limit(); l != rate.Inf {
		pace = float64(l)
	}
	p.limit.SetLimit(rate.Limit(max(pace/2, minPace)))
	p.note("the server refused a record: going on with %.0f/s", float64(p.limit.Limit()))
}
