package flow

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// Interceptor serves client-streaming RPCs whose request message is T; every other RPC passes through untouched, so that
// several can stand in one chain. (Filter methods with a selector middleware.)
//
// When the service method first calls Recv, the whole stream runs through the Receiver, and Recv returns io.EOF, or the
// failure. The method then reads [SummaryFromContext] and answers once. Recv again repeats that answer without touching
// the stream. A method that never calls Recv runs nothing; one that answers OK after a failure has the last word.
// Interceptors before this one see every message, later ones a single EOF. When a stream ends early, the message that is
// being received still comes to those before, maybe after the method has returned.
//
// Header and trailers go through the stream that the interceptor was given, so that a middleware before it that wraps the
// stream sees them and may add to them. Each message is a new one, of the protobuf message type of the one that the service
// method gave to RecvMsg (a dynamicpb.Message included), or else the zero value of its Go type.
type Interceptor[T any] struct {
	receiver *Receiver[T]
	key      OrderingKeyFunc[T]
}

// NewInterceptor returns an interceptor that runs streams through receiver. key may be nil: then all keys are "".
// It panics if receiver is nil.
func NewInterceptor[T any](receiver *Receiver[T], key OrderingKeyFunc[T]) *Interceptor[T] {
	if receiver == nil {
		panic("flow: an Interceptor needs a Receiver, got nil")
	}
	return &Interceptor[T]{receiver: receiver, key: key}
}

// StreamServerInterceptor returns what grpc.StreamInterceptor and grpc.ChainStreamInterceptor take.
func (i *Interceptor[T]) StreamServerInterceptor() grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if !info.IsClientStream || info.IsServerStream {
			return handler(srv, ss)
		}
		ctx := ss.Context()
		box, ok := ctx.Value(summaryKey{}).(*summaryBox)
		if !ok { // else another interceptor of the chain has put it there, and whichever fits the messages fills it
			box = &summaryBox{Context: ctx}
			ctx = box
		}
		return handler(srv, &flowStream[T]{ServerStream: ss, i: i, ctx: ctx, box: box})
	}
}

type summaryKey struct{}

// summaryBox carries the summary from Recv to the service method, as a context of its own: ten thousand streams may be idle.
type summaryBox struct {
	context.Context
	mu  sync.Mutex
	sum Summary
	set bool
}

// Value implements context.Context.
func (b *summaryBox) Value(key any) any {
	if key == (summaryKey{}) {
		return b
	}
	return b.Context.Value(key)
}

// String is for those who print a context.
func (b *summaryBox) String() string { return fmt.Sprint(b.Context, ".WithSummary") }

// SummaryFromContext gives a service method behind the interceptor the Summary of its stream. false: nothing has run,
// because the method has not called Recv or the interceptor does not serve its messages.
func SummaryFromContext(ctx context.Context) (Summary, bool) {
	box, ok := ctx.Value(summaryKey{}).(*summaryBox)
	if !ok {
		return Summary{}, false
	}
	box.mu.Lock()
	defer box.mu.Unlock()
	return box.sum, box.set
}

// flowStream is the stream that the service method sees.
type flowStream[T any] struct {
	grpc.ServerStream
	i      *Interceptor[T]
	ctx    context.Context
	box    *summaryBox
	answer error // of the Receiver, once it has run
}

func (s *flowStream[T]) Context() context.Context { return s.ctx }

// RecvMsg runs the stream if m is a T, the message type being known only here. gRPC allows one receiving goroutine, so
// nothing is guarded.
func (s *flowStream[T]) RecvMsg(m any) error {
	if s.answer != nil {
		return s.answer
	}
	if _, ok := m.(T); !ok || reflect.TypeOf(m).Kind() != reflect.Pointer {
		return s.ServerStream.RecvMsg(m)
	}
	s.run(makerOf[T](m))
	return s.answer
}

// run runs the whole stream, whose messages fresh makes.
func (s *flowStream[T]) run(fresh func() T) {
	r := s.i.receiver
	st := r.newStream(s.ctx, s.i.key)
	st.rpc.stream = s.ServerStream
	entered := st.beginAndRun(func() (T, error) {
		m := fresh() // a handler may keep its message
		return m, s.ServerStream.RecvMsg(m)
	})
	s.end(st, entered)
}

// makerOf returns what makes messages like m, which is a pointer and a T. A protobuf message knows its own type, which a
// dynamic one needs to be of any use; one of any other kind is the zero value of its Go type.
func makerOf[T any](m any) func() T {
	if p, ok := m.(proto.Message); ok {
		t := p.ProtoReflect().Type()
		if reflect.TypeOf(t.New().Interface()) == reflect.TypeOf(m) { // and not only of a message that is embedded in m
			return func() T { return t.New().Interface().(T) }
		}
	}
	t := reflect.TypeOf(m).Elem()
	return func() T { return reflect.New(t).Interface().(T) }
}

// end keeps what came of the stream for the service method. It is apart from run, whose place on the stack is to be small.
func (s *flowStream[T]) end(st *stream[T], entered bool) {
	sum, err := st.end(entered)
	s.box.mu.Lock()
	s.box.sum, s.box.set = sum, true
	s.box.mu.Unlock()
	s.answer = io.EOF
	if err != nil {
		s.answer = err
	}
}

// rpc is a stream's gRPC call, if it is one: where its header and its trailers go.
type rpc struct {
	stream headerStream // nil: it is none
	header sync.Once    // sends the response header
}

// headerStream is what there must be of a grpc.ServerStream. It is the one that the interceptor was given, so that a
// middleware that wraps it sees header and trailers and may add to them; for Run, which is given none, it is the context's.
type headerStream interface {
	SendHeader(metadata.MD) error
	SetTrailer(metadata.MD)
}

// contextStream is the call whose context it is.
type contextStream struct{ context.Context }

func (c contextStream) SendHeader(md metadata.MD) error { return grpc.SendHeader(c, md) }

func (c contextStream) SetTrailer(md metadata.MD) { _ = grpc.SetTrailer(c, md) }

// streamOf returns the call whose context ctx is, or nil if it is none's.
func streamOf(ctx context.Context) headerStream {
	if grpc.ServerTransportStreamFromContext(ctx) == nil {
		return nil
	}
	return contextStream{ctx}
}

// sendHeader sends the response header. It returns what the caller's own stream panics with. That the header is sent
// already, or that nobody is there to get it, is no fault.
func (r *rpc) sendHeader(md metadata.MD) (crash error) {
	return recovered(func() error {
		_ = r.stream.SendHeader(md)
		return nil
	})
}

// setTrailer adds to the trailers. It returns what the caller's own stream panics with.
func (r *rpc) setTrailer(md metadata.MD) (crash error) {
	if r.stream == nil {
		return nil
	}
	return recovered(func() error {
		r.stream.SetTrailer(md)
		return nil
	})
}
