package grpctest_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"
)

// headers is a middleware that adds to header and trailers, sends the header itself if nobody has when the method
// returns, and notes what it sees. Like many it believes that nothing goes past it.
type headers struct {
	grpc.ServerStream
	mu       sync.Mutex
	sent     int
	trailers []metadata.MD
}

func (h *headers) SendHeader(md metadata.MD) error {
	h.mu.Lock()
	h.sent++
	h.mu.Unlock()
	return h.ServerStream.SendHeader(metadata.Join(md, metadata.Pairs("served-by", "here")))
}

func (h *headers) SetTrailer(md metadata.MD) {
	h.mu.Lock()
	h.trailers = append(h.trailers, md)
	h.mu.Unlock()
	h.ServerStream.SetTrailer(metadata.Join(md, metadata.Pairs("cost", "7")))
}

func (h *headers) intercept(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	h.ServerStream = ss
	err := handler(srv, h)
	h.mu.Lock()
	sent := h.sent
	h.mu.Unlock()
	if sent == 0 {
		if err := h.SendHeader(nil); err != nil {
			return err
		}
	}
	return err
}

func TestInterceptorSendsHeaderAndTrailersThroughTheStreamItWasGiven(t *testing.T) {
	for name, fails := range map[string]bool{"success": false, "failure": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, st := new(headers), testkit.NewManualHandler()
				f := newRequestFlow(t, st.Handle, flow.Options{})
				s := serve(t, func(stream uploading) error {
					_, err := stream.Recv()
					if !errors.Is(err, io.EOF) {
						return err
					}
					sum, _ := flow.SummaryFromContext(stream.Context())
					return stream.SendMsg(&reply{AggregatedPayloadSize: int32(sum.Succeeded)})
				}, grpc.ChainStreamInterceptor(h.intercept, f.StreamServerInterceptor()))
				u := s.open(t, "a1", "b1")
				st.WantRunning(t, "a1")
				if h.sent != 1 {
					t.Errorf("the middleware saw %d headers before the first message ran, want one", h.sent)
				}
				if fails {
					st.Fail(t, "a1", status.Error(codes.DataLoss, "disk full"))
				} else {
					_ = u.CloseSend()
					st.FinishAll(t)
				}
				n, got := u.end(t)
				if want := map[bool]codes.Code{false: codes.OK, true: codes.DataLoss}[fails]; got.Code() != want || !fails && n != 2 {
					t.Errorf("answer is %d, %v", n, got)
				}
				if md, _ := u.Header(); !slices.Equal(md.Get("served-by"), []string{"here"}) || h.sent != 1 {
					t.Errorf("header is %v, which the middleware saw %d times", md, h.sent)
				}
				if committed := u.Trailer().Get("flow-committed"); !slices.Equal(u.Trailer().Get("cost"), []string{"7"}) || len(committed) != 1 {
					t.Errorf("trailer is %v", u.Trailer())
				}
				if len(h.trailers) != 1 || !slices.Equal(h.trailers[0].Get("flow-committed"), u.Trailer().Get("flow-committed")) {
					t.Errorf("the middleware saw the trailers %v", h.trailers)
				}
			})
		})
	}
}

// brokenStream is a middleware whose header or trailer panics.
type brokenStream struct {
	grpc.ServerStream
	header, trailer bool
}

func (b *brokenStream) SendHeader(md metadata.MD) error {
	if b.header {
		panic("the middleware's header")
	}
	return b.ServerStream.SendHeader(md)
}

func (b *brokenStream) SetTrailer(md metadata.MD) {
	if b.trailer {
		panic("the middleware's trailer")
	}
	b.ServerStream.SetTrailer(md)
}

func TestInterceptorSurvivesAMiddlewareWhoseHeaderOrTrailerPanics(t *testing.T) {
	for _, b := range []brokenStream{{header: true}, {trailer: true}} {
		synctest.Test(t, func(t *testing.T) {
			ran := 0
			f := newRequestFlow(t, func(context.Context, flow.Message[string]) error { ran++; return nil }, flow.Options{})
			s := serve(t, behind, grpc.ChainStreamInterceptor(
				func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
					return handler(srv, &brokenStream{ss, b.header, b.trailer})
				}, f.StreamServerInterceptor()))
			u := s.open(t, "a1")
			_ = u.CloseSend()
			wantStatus(t, u.status(t), codes.Internal, "INTERNAL")
			if b.header && ran > 0 {
				t.Error("a message ran although the header was not sent")
			}
		})
	}
}

// dynamicService is the service without generated code, as a proxy that validates has it.
func dynamicService(f *flow.Flow[*dynamicpb.Message]) *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: testpb.TestService_ServiceDesc.ServiceName,
		Streams: []grpc.StreamDesc{{StreamName: "StreamingInputCall", ClientStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
			in := dynamicpb.NewMessage((&request{}).ProtoReflect().Descriptor())
			if err := ss.RecvMsg(in); !errors.Is(err, io.EOF) {
				return err
			}
			sum, _ := flow.SummaryFromContext(ss.Context())
			return ss.SendMsg(&reply{AggregatedPayloadSize: int32(sum.Succeeded)})
		}}},
	}
}

func TestInterceptorMakesDynamicMessagesEachOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept []*dynamicpb.Message
		f, err := flow.New(func(_ context.Context, m flow.Message[*dynamicpb.Message]) error {
			kept = append(kept, m.Value) // one at a time: FIFO
			return nil
		}, nil, flow.Options{})
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		s := serveService(t, dynamicService(f), grpc.ChainStreamInterceptor(counting(&seen), f.StreamServerInterceptor()))
		values := []string{"a1", "a2", "a3"}
		if n, status := s.open(t, values...).end(t); n != 3 || status.Code() != codes.OK {
			t.Fatalf("answer is %d, %v", n, status)
		}
		for i, want := range values {
			wire, err := proto.Marshal(kept[i])
			got := new(request)
			if err == nil {
				err = proto.Unmarshal(wire, got)
			}
			if err != nil || valueOf(got) != want {
				t.Errorf("message %d is %q now (%v), want %q", i+1, valueOf(got), err, want)
			}
		}
		if seen != 4 {
			t.Errorf("the middleware saw %d reads, want three messages and the EOF", seen)
		}
	})
}

// frame is a message that is no protobuf message, and jsonCodec what brings it over the wire.
type frame struct{ Value string }

type jsonCodec struct{}

func (jsonCodec) Marshal(v any) ([]byte, error) { return json.Marshal(v) }

func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

func (jsonCodec) Name() string { return "json-of-a-test" }

func TestInterceptorMakesMessagesOfAnotherCodecEachOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept []*frame
		f, err := flow.New(func(_ context.Context, m flow.Message[*frame]) error {
			kept = append(kept, m.Value)
			return nil
		}, nil, flow.Options{})
		if err != nil {
			t.Fatal(err)
		}
		s := serveService(t, &grpc.ServiceDesc{ServiceName: "readings", Streams: []grpc.StreamDesc{{
			StreamName: "Upload", ClientStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
				if err := ss.RecvMsg(new(frame)); !errors.Is(err, io.EOF) {
					return err
				}
				return ss.SendMsg(&frame{Value: "done"})
			},
		}}}, grpc.ForceServerCodec(jsonCodec{}), grpc.StreamInterceptor(f.StreamServerInterceptor()))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		stream, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, "/readings/Upload", grpc.ForceCodec(encoding.Codec(jsonCodec{})))
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []string{"a", "", "c"} {
			if err := stream.SendMsg(&frame{Value: v}); err != nil {
				t.Fatal(err)
			}
		}
		_ = stream.CloseSend()
		answer := new(frame)
		if err := stream.RecvMsg(answer); err != nil || answer.Value != "done" {
			t.Fatalf("answer is %+v, %v", answer, err)
		}
		if len(kept) != 3 || kept[0].Value != "a" || kept[1].Value != "" || kept[2].Value != "c" {
			t.Errorf("kept %v", kept)
		}
	})
}
