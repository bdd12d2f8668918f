package chain_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/selector"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"example.com/flow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	uploads = pb.TestService_StreamingInputCall_FullMethodName           // run by a Flow
	simples = pb.BenchmarkService_StreamingFromClient_FullMethodName     // of another Flow's type, and not selected
	secret  = "the panic's text, which is for logs and not for clients." // what panics say
)

// server has the whole chain, and keeps what each link of it has seen.
type server struct {
	pb.UnimplementedTestServiceServer

	handle flow.Handler[*pb.StreamingInputCallRequest]
	method func() // runs in the service method after Recv
	conn   *grpc.ClientConn
	spans  *tracetest.InMemoryExporter
	stop   func() // GracefulStop: afterwards all links have seen all

	mu       sync.Mutex
	messages []string           // log lines
	panics   []any              // what recovery recovered
	parents  []oteltrace.SpanID // the spans in handlers' contexts
	passed   int                // messages that an unselected method received itself
}

func serve(t *testing.T, s *server) *server {
	t.Helper()
	s.spans = tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(s.spans))
	readings, err := flow.New(func(ctx context.Context, m flow.Message[*pb.StreamingInputCallRequest]) error {
		s.mu.Lock()
		s.parents = append(s.parents, oteltrace.SpanFromContext(ctx).SpanContext().SpanID())
		s.mu.Unlock()
		return s.handle(ctx, m)
	}, nil, flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	others, err := flow.New(func(context.Context, flow.Message[*pb.SimpleRequest]) error {
		t.Error("a message of a method that is not selected came to a Flow")
		return nil
	}, nil, flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(
		grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(provider))),
		grpc.ChainStreamInterceptor(
			logging.StreamServerInterceptor(logging.LoggerFunc(s.log),
				logging.WithLogOnEvents(logging.StartCall, logging.PayloadReceived, logging.FinishCall)),
			selector.StreamServerInterceptor(readings.StreamServerInterceptor(), selector.MatchFunc(isUpload)),
			selector.StreamServerInterceptor(others.StreamServerInterceptor(), selector.MatchFunc(isUpload)),
			recovery.StreamServerInterceptor(recovery.WithRecoveryHandler(s.recovered)),
		))
	pb.RegisterTestServiceServer(srv, s)
	pb.RegisterBenchmarkServiceServer(srv, &unselected{seen: s})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	s.conn, err = grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	s.stop = srv.GracefulStop
	t.Cleanup(func() {
		_ = s.conn.Close()
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s
}

func isUpload(_ context.Context, c interceptors.CallMeta) bool { return c.FullMethod() == uploads }

func (s *server) log(_ context.Context, _ logging.Level, msg string, fields ...any) {
	line := msg
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i] == "grpc.code" {
			line += " " + fields[i+1].(string)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages = append(s.messages, line)
}

func (s *server) recovered(p any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.panics = append(s.panics, p)
	return status.Error(codes.Internal, "the service failed")
}

func (s *server) StreamingInputCall(stream grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]) error {
	if _, err := stream.Recv(); err != io.EOF {
		return err
	}
	sum, _ := flow.SummaryFromContext(stream.Context())
	if s.method != nil {
		s.method()
	}
	return stream.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: int32(sum.Succeeded)})
}

// unselected has a method that a Flow could serve, by its type, and must not.
type unselected struct {
	pb.UnimplementedBenchmarkServiceServer
	seen *server
}

func (s *unselected) StreamingFromClient(stream grpc.ClientStreamingServer[pb.SimpleRequest, pb.SimpleResponse]) error {
	for {
		if _, err := stream.Recv(); err == io.EOF {
			return stream.SendAndClose(&pb.SimpleResponse{})
		} else if err != nil {
			return err
		}
		s.seen.mu.Lock()
		s.seen.passed++
		s.seen.mu.Unlock()
	}
}

// upload sends n messages; unless silent, it says that these are all. Then it waits for the answer.
func (s *server) upload(t *testing.T, n int, silent bool) (stored int32, trailer bool, err error) {
	t.Helper()
	stream, err := pb.NewTestServiceClient(s.conn).StreamingInputCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := stream.Send(&pb.StreamingInputCallRequest{}); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	r := new(pb.StreamingInputCallResponse)
	if silent {
		err = stream.RecvMsg(r)
	} else {
		r, err = stream.CloseAndRecv()
	}
	p, trailer := flow.ProgressFromTrailer(stream.Trailer())
	if trailer && p.Committed() > uint64(n) {
		t.Errorf("%d are committed of %d", p.Committed(), n)
	}
	return r.GetAggregatedPayloadSize(), trailer, err
}

// span is the one RPC's.
func (s *server) span(t *testing.T) tracetest.SpanStub {
	t.Helper()
	all := s.spans.GetSpans()
	if len(all) != 1 {
		t.Fatalf("%d spans, want that of the RPC", len(all))
	}
	return all[0]
}

func TestEveryLinkOfTheChainSeesWhatItShould(t *testing.T) {
	fine := func(context.Context, flow.Message[*pb.StreamingInputCallRequest]) error { return nil }
	third := func(how func() error) flow.Handler[*pb.StreamingInputCallRequest] {
		return func(_ context.Context, m flow.Message[*pb.StreamingInputCallRequest]) error {
			if m.Seq == 3 {
				return how()
			}
			return nil
		}
	}
	for _, c := range []struct {
		name   string
		handle flow.Handler[*pb.StreamingInputCallRequest]
		method func()
		silent bool // the client says nothing more after its messages
		ran    int  // handlers, of five messages
		code   codes.Code
		kind   flow.FailureKind
		panics []any // that recovery sees
	}{
		{name: "all is well", handle: fine, ran: 5, code: codes.OK, kind: flow.FailureNone},
		{
			name:   "a handler fails",
			handle: third(func() error { return status.Error(codes.DataLoss, "the disk is gone") }),
			silent: true, ran: 3, code: codes.DataLoss, kind: flow.FailureHandlerError,
		},
		{
			name:   "a handler panics: that is Flow's, it runs on a goroutine that recovery doesn't cover",
			handle: third(func() error { panic(secret) }),
			silent: true, ran: 3, code: codes.Internal, kind: flow.FailureInternal,
		},
		{
			name: "the service method panics: that is recovery's", handle: fine, method: func() { panic(secret) },
			ran: 5, code: codes.Internal, kind: flow.FailureHandlerError, panics: []any{secret},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, &server{handle: c.handle, method: c.method})
			stored, trailer, err := s.upload(t, 5, c.silent)
			if status.Code(err) != c.code || flow.ClassifyFailure(err) != c.kind || !trailer {
				t.Errorf("the client sees %v (%v), progress: %v; want %v (%v) and progress", err, flow.ClassifyFailure(err), trailer, c.code, c.kind)
			}
			if err == nil && stored != 5 || err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the client is told of %d messages, and %v", stored, err)
			}
			s.stop()
			before, after := s.logged(t, "finished call "+c.code.String())
			if len(before) == 0 || before[0] != "started call" {
				t.Errorf("logging has seen %q, want the start of the call first", before)
			}
			// The message that was being received when the stream failed still comes to logging, and to nobody else.
			if payloads := len(before) - 1 + len(after); payloads < c.ran || len(after) > 1 || !c.silent && payloads != 5 {
				t.Errorf("logging has seen %d messages, %d of them after the call's end, and %d ran", payloads, len(after), c.ran)
			}
			if len(s.parents) != c.ran {
				t.Errorf("%d handlers ran, want %d", len(s.parents), c.ran)
			}
			if !slices.Equal(s.panics, c.panics) {
				t.Errorf("recovery has seen %v, want %v", s.panics, c.panics)
			}
			span := s.span(t)
			if !hasCode(span, c.code) {
				t.Errorf("the span's attributes are %v, want the code %v", span.Attributes, c.code)
			}
			for _, parent := range s.parents {
				if parent != span.SpanContext.SpanID() {
					t.Error("a handler's context has not the RPC's span")
				}
			}
		})
	}
}

// logged are the lines before and after that of the call's end; apart from the first all are of messages.
func (s *server) logged(t *testing.T, end string) (before, after []string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.messages, end)
	if i < 0 {
		t.Fatalf("logged %q, want %q", s.messages, end)
	}
	before, after = slices.Clone(s.messages[:i]), slices.Clone(s.messages[i+1:])
	for _, m := range append(before[min(1, i):], after...) {
		if m != "request received" {
			t.Errorf("logged %q", m)
		}
	}
	return before, after
}

func hasCode(span tracetest.SpanStub, code codes.Code) bool {
	name := map[codes.Code]string{codes.OK: "OK", codes.DataLoss: "DATA_LOSS", codes.Internal: "INTERNAL"}[code]
	return slices.ContainsFunc(span.Attributes, func(kv attribute.KeyValue) bool {
		return string(kv.Key) == "rpc.response.status_code" && kv.Value.AsString() == name
	})
}

// By its type the Flow would take these messages; the selector keeps it off.
func TestSelectorKeepsTheFlowOffAMethod(t *testing.T) {
	s := serve(t, new(server))
	stream, err := pb.NewBenchmarkServiceClient(s.conn).StreamingFromClient(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := stream.Send(new(pb.SimpleRequest)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Error(err)
	}
	s.stop()
	if s.passed != 5 {
		t.Errorf("the method received %d messages, want 5", s.passed)
	}
	if span := s.span(t); !hasCode(span, codes.OK) || span.Name != strings.TrimPrefix(simples, "/") {
		t.Errorf("the span is %q, %v", span.Name, span.Attributes)
	}
}
