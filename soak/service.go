package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"example.com/flow"
)

// service is the server's side: one Flow, and what is seen from outside of it.
type service struct {
	testpb.UnimplementedTestServiceServer
	flow  *flow.Flow[*request]
	watch *watch
	start time.Time

	records sync.Map // *record by the number that the client gave its stream

	delays *delays

	running peak
	pending peak // of any one stream
	bytes   peak
	handled atomic.Uint64
}

// peak is a number and the highest that it was.
type peak struct{ now, high atomic.Int64 }

func (p *peak) add(n int64) { p.saw(p.now.Add(n)) }

func (p *peak) saw(n int64) {
	for h := p.high.Load(); n > h && !p.high.CompareAndSwap(h, n); h = p.high.Load() {
	}
}

const streamHeader = "soak-stream"

type recordKey struct{}

func newService(cfg config, w *watch, o flow.Options) (*service, error) {
	s := &service{watch: w, start: w.start, delays: newDelays(cfg)}
	o.Observer = s.see
	var err error
	s.flow, err = flow.New(s.handle, keyOf, o)
	return s, err
}

// StreamingInputCall implements the service.
func (s *service) StreamingInputCall(stream grpc.ClientStreamingServer[request, reply]) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	id, err := strconv.Atoi(md.Get(streamHeader)[0])
	if err != nil {
		return err
	}
	v, ok := s.records.Load(id)
	if !ok { // the client went away before its stream came to this method
		return status.Error(codes.Canceled, "its client went away before it began")
	}
	r := v.(*record)
	r.mu.Lock()
	r.begun = true
	r.mu.Unlock()
	sum, err := s.flow.Run(context.WithValue(stream.Context(), recordKey{}, r), s.counted(r, stream.Recv))
	s.forget(r)
	if bad := r.check(sum); bad != nil {
		s.watch.wrong("stream %d: %v", id, bad)
	}
	if err != nil {
		return err
	}
	return stream.SendAndClose(&reply{AggregatedPayloadSize: int32(sum.Succeeded)})
}

// counted counts as pending what recv returns, from a moment before the Flow does to a moment before the Flow no longer
// does: what is seen never exceeds what the Flow promises.
func (s *service) counted(r *record, recv func() (*request, error)) func() (*request, error) {
	return func() (*request, error) {
		v, err := recv()
		if err != nil {
			return v, err
		}
		n := int64(proto.Size(v))
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.over {
			return v, nil
		}
		r.size = n
		r.pending++
		r.bytes += n
		s.pending.saw(int64(r.pending))
		s.bytes.add(n)
		return v, nil
	}
}

// see is the Flow's Observer. Each received message comes to one of these ends.
func (s *service) see(ctx context.Context, e flow.Event) {
	switch e.Kind {
	case flow.EventSuccess, flow.EventFailure, flow.EventReject, flow.EventDrop:
	default:
		return
	}
	r := ctx.Value(recordKey{}).(*record)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending--
	r.bytes -= r.size
	s.bytes.add(-r.size)
}

// forget uncounts what recv returned when the stream no longer took it on.
func (s *service) forget(r *record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	s.bytes.add(-r.bytes)
}

// handle is the handler.
func (s *service) handle(ctx context.Context, m flow.Message[*request]) error {
	now := time.Since(s.start)
	l := read(m.Value)
	s.running.add(1)
	defer s.running.add(-1)
	if l.timed {
		s.delays.note(l.due, now)
	}
	r := ctx.Value(recordKey{}).(*record)
	if bad := r.enter(m, l); bad != nil {
		r.leave(l, false)
		s.watch.wrong("%v", bad)
		return fmt.Errorf("soak: %w", bad)
	}
	ok := true
	if l.work > 0 {
		t := time.NewTimer(l.work)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			ok = false
		}
	}
	r.leave(l, ok)
	if !ok {
		return context.Cause(ctx)
	}
	s.handled.Add(1)
	return nil
}
