package otelflow_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"testing"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/test/bufconn"

	"example.com/flow"
	"example.com/flow/otelflow"
)

// attributes are a span's, as "name=value".
func attributes(s tracetest.SpanStub) []string {
	var all []string
	for _, kv := range s.Attributes {
		all = append(all, fmt.Sprintf("%s=%s", kv.Key, kv.Value.String()))
	}
	slices.Sort(all)
	return all
}

// spanOf calls a wrapped handler once under a recording span, with m, and returns the message's span.
func spanOf(t *testing.T, handle flow.Handler[string], m flow.Message[string], opts ...otelflow.Option) tracetest.SpanStub {
	t.Helper()
	exporter := tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(exporter))
	tel := otelflow.New(append(opts, otelflow.WithTracerProvider(provider))...)
	ctx, rpc := provider.Tracer("test").Start(t.Context(), "rpc")
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		_ = otelflow.Handler(tel, handle)(ctx, m)
	}()
	<-done
	spans := exporter.GetSpans()
	if len(spans) != 1 {
		t.Fatalf("%d spans have ended, want one", len(spans))
	}
	if spans[0].Parent.SpanID() != rpc.SpanContext().SpanID() {
		t.Error("the span is no child of the RPC's")
	}
	return spans[0]
}

func TestSpanHasTheAttemptsNumberAndOutcome(t *testing.T) {
	m := flow.Message[string]{Seq: 7, Key: "device", Attempt: 2, Pressured: true}
	for name, c := range map[string]struct {
		handle flow.Handler[string]
		want   []string
		code   codes.Code
	}{
		"success": {
			func(context.Context, flow.Message[string]) error { return nil },
			[]string{"flow.message.attempt=2", "flow.message.pressured=true", "flow.message.seq=7", "flow.outcome=succeeded"}, codes.Unset,
		},
		"failure": {
			func(context.Context, flow.Message[string]) error { return errHandler },
			[]string{"error.type=FailureHandlerError", "flow.message.attempt=2", "flow.message.pressured=true", "flow.message.seq=7", "flow.outcome=failed"}, codes.Error,
		},
		"panic": {
			func(context.Context, flow.Message[string]) error { panic("boom") },
			[]string{"error.type=FailureInternal", "flow.message.attempt=2", "flow.message.pressured=true", "flow.message.seq=7", "flow.outcome=failed"}, codes.Error,
		},
		"goexit": {
			func(context.Context, flow.Message[string]) error { runtime.Goexit(); return nil },
			[]string{"error.type=FailureInternal", "flow.message.attempt=2", "flow.message.pressured=true", "flow.message.seq=7", "flow.outcome=failed"}, codes.Error,
		},
	} {
		t.Run(name, func(t *testing.T) {
			span := spanOf(t, c.handle, m)
			if got := attributes(span); !slices.Equal(got, c.want) {
				t.Errorf("attributes are %v, want %v", got, c.want)
			}
			if span.Status.Code != c.code {
				t.Errorf("status is %v, want %v", span.Status.Code, c.code)
			}
		})
	}
}

func TestSpanTellsTheKeyOnlyWithWithKeys(t *testing.T) {
	handle := func(context.Context, flow.Message[string]) error { return nil }
	m := flow.Message[string]{Seq: 1, Key: "device", Attempt: 1}
	if got := attributes(spanOf(t, handle, m)); slices.Contains(got, "flow.message.key=device") {
		t.Errorf("without WithKeys: %v", got)
	}
	if got := attributes(spanOf(t, handle, m, otelflow.WithKeys())); !slices.Contains(got, "flow.message.key=device") {
		t.Errorf("with WithKeys: %v", got)
	}
}

func TestHandlerLetsAPanicGoOnItsWay(t *testing.T) {
	tel := otelflow.New(otelflow.WithTracerProvider(trace.NewTracerProvider()))
	ctx, _ := trace.NewTracerProvider().Tracer("test").Start(t.Context(), "rpc")
	defer func() {
		if v := recover(); v != "boom" {
			t.Errorf("recovered %v, want the handler's panic", v)
		}
	}()
	_ = otelflow.Handler(tel, func(context.Context, flow.Message[string]) error { panic("boom") })(ctx, flow.Message[string]{})
}

func TestHandlerWithoutARecordingSpanAllocatesNothingAndMakesNone(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(exporter), trace.WithSampler(trace.NeverSample()))
	sampledOut, _ := provider.Tracer("test").Start(t.Context(), "rpc")
	handle := otelflow.Handler(otelflow.New(otelflow.WithTracerProvider(provider)),
		func(context.Context, flow.Message[string]) error { return nil })
	for name, ctx := range map[string]context.Context{"not sampled": sampledOut, "no span at all": t.Context()} {
		if n := testing.AllocsPerRun(1000, func() { _ = handle(ctx, flow.Message[string]{Seq: 1}) }); n > 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
	if n := len(exporter.GetSpans()); n > 0 {
		t.Errorf("%d spans", n)
	}
}

type service struct {
	pb.UnimplementedTestServiceServer
	flow *flow.Flow[*pb.StreamingInputCallRequest]
}

func (s *service) StreamingInputCall(stream grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]) error {
	if _, err := s.flow.Run(stream.Context(), stream.Recv); err != nil {
		return err
	}
	return stream.SendAndClose(&pb.StreamingInputCallResponse{})
}

func TestSpansOfARealCallAreChildrenOfItsSpan(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(exporter))
	tel := otelflow.New(otelflow.WithTracerProvider(provider))
	f, err := flow.New(otelflow.Handler(tel, func(context.Context, flow.Message[*pb.StreamingInputCallRequest]) error { return nil }),
		nil, flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(provider))))
	pb.RegisterTestServiceServer(server, &service{flow: f})
	go func() { _ = server.Serve(listener) }()
	defer server.GracefulStop()
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	stream, err := pb.NewTestServiceClient(conn).StreamingInputCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := stream.Send(&pb.StreamingInputCallRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stream.CloseAndRecv(); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	server.GracefulStop() // the server's span ends with the method
	var rpc tracetest.SpanStub
	var messages []tracetest.SpanStub
	for _, s := range exporter.GetSpans() {
		if s.Name == "flow.process" {
			messages = append(messages, s)
		} else {
			rpc = s
		}
	}
	if len(messages) != 3 || !rpc.SpanContext.IsValid() {
		t.Fatalf("%d spans of messages and the RPC's is %q, want 3", len(messages), rpc.Name)
	}
	for _, m := range messages {
		if m.Parent.SpanID() != rpc.SpanContext.SpanID() {
			t.Errorf("%v is no child of %s", attributes(m), rpc.Name)
		}
	}
}
