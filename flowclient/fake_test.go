package flowclient_test

import (
	"context"
	"log/slog"
	"strconv"
	"sync/atomic"

	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// fakeStream is a stream without a connection, whose server settles what it is sent. One of its methods may panic.
type fakeStream struct {
	grpc.ClientStream
	ctx        context.Context
	epoch      string
	panics     string
	sent       atomic.Int64
	halfClosed chan struct{}
}

func (f *fakeStream) panic(method string) {
	if f.panics == method {
		panic(method)
	}
}

func (f *fakeStream) Header() (metadata.MD, error) {
	f.panic("Header")
	return metadata.Pairs("flow-epoch", f.epoch, "flow-committed", "0", "flow-session", "new"), nil
}

func (f *fakeStream) Send(*request) error {
	f.panic("Send")
	if f.panics == "error of Send" {
		return (*nilError)(nil)
	}
	f.sent.Add(1)
	return nil
}

func (f *fakeStream) CloseSend() error {
	f.panic("CloseSend")
	close(f.halfClosed)
	return nil
}

func (f *fakeStream) CloseAndRecv() (*reply, error) { panic("bug: not called") }

func (f *fakeStream) RecvMsg(any) error {
	f.panic("RecvMsg")
	if f.panics == "error" {
		return (*nilError)(nil)
	}
	select {
	case <-f.halfClosed:
		return nil
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
}

func (f *fakeStream) Trailer() metadata.MD {
	return metadata.Pairs("flow-epoch", f.epoch, "flow-committed", strconv.FormatInt(f.sent.Load(), 10))
}

// openAs opens the stream for messages of another type.
func openAs[Req any](ctx context.Context, client testpb.TestServiceClient, o ...grpc.CallOption) (grpc.ClientStreamingClient[Req, reply], error) {
	stream, err := client.StreamingInputCall(ctx, o...)
	if err != nil {
		return nil, err
	}
	return &grpc.GenericClientStream[Req, reply]{ClientStream: stream}, nil
}

// nilError panics, as a nil of its type, whenever it is asked something.
type nilError struct{ st *status.Status }

func (e *nilError) Error() string              { return e.st.Message() }
func (e *nilError) GRPCStatus() *status.Status { return e.st }

// panickingHandler panics at each log.
type panickingHandler struct{}

func (panickingHandler) Enabled(context.Context, slog.Level) bool  { panic("Enabled") }
func (panickingHandler) Handle(context.Context, slog.Record) error { panic("Handle") }
func (h panickingHandler) WithAttrs([]slog.Attr) slog.Handler      { return h }
func (h panickingHandler) WithGroup(string) slog.Handler           { return h }
