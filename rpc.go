package flow

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

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
