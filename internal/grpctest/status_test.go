package grpctest_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestHandlersFailureIsTheStatusTheClientSees(t *testing.T) {
	detailed, err := status.New(codes.NotFound, "no such device").WithDetails(
		&errdetails.ErrorInfo{Reason: "GONE", Domain: "devices.example"}, &errdetails.ResourceInfo{ResourceName: "d7"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		fails  func() error
		code   codes.Code
		text   string
		reason string
	}{
		{"plain error", func() error { return testkit.ErrHandler }, codes.Unknown, "handler failed", "HANDLER_ERROR"},
		{"status", func() error { return status.Error(codes.DataLoss, "lost") }, codes.DataLoss, "lost", "HANDLER_ERROR"},
		{"wrapped status", func() error { return fmt.Errorf("store: %w", status.Error(codes.DataLoss, "lost")) },
			codes.DataLoss, "store: rpc error: code = DataLoss desc = lost", "HANDLER_ERROR"},
		{"permanent status", func() error { return flow.Permanent(status.Error(codes.Unavailable, "for good")) },
			codes.Unavailable, "for good", "HANDLER_ERROR"},
		{"its own details", detailed.Err, codes.NotFound, "no such device", "GONE"},
		{"context error while the stream lives", func() error { return context.DeadlineExceeded },
			codes.Unknown, "context deadline exceeded", "HANDLER_ERROR"},
		{"panic", func() error { panic("secret") }, codes.Internal, "internal error", "INTERNAL"},
		{"panic with a status", func() error { panic(status.Error(codes.NotFound, "secret")) },
			codes.Internal, "internal error", "INTERNAL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := func(_ context.Context, m flow.Message[string]) error {
					if m.Value == "key2" {
						return c.fails()
					}
					return nil
				}
				u := serve(t, runs(newRequestFlow(t, h, flow.Options{}))).open(t, "key1", "key2", "key3")
				st := u.status(t)
				wantStatus(t, st, c.code, c.reason)
				if st.Message() != c.text {
					t.Errorf("text is %q, want %q", st.Message(), c.text)
				}
				info := testkit.Detail[*errdetails.ErrorInfo](st)
				if c.reason != "GONE" && (info.GetDomain() != "example.com/flow" || info.GetMetadata()["seq"] != "2") {
					t.Errorf("ErrorInfo is %v, want flow's domain and seq 2", info)
				}
				if c.reason == "GONE" && testkit.Detail[*errdetails.ResourceInfo](st).GetResourceName() != "d7" {
					t.Errorf("the handler's own details are lost: %v", st.Details())
				}
				if testkit.Detail[*errdetails.RetryInfo](st) != nil {
					t.Errorf("a RetryInfo where nothing is known to pass: %v", st.Details())
				}
				wantKind := flow.FailureHandlerError
				if c.code == codes.Internal {
					wantKind = flow.FailureInternal
				}
				if got := flow.ClassifyFailure(st.Err()); c.reason != "GONE" && got != wantKind {
					t.Errorf("on the client the kind is %v, want %v", got, wantKind)
				}
				wantProgress(t, u, 1, 1)
			})
		})
	}
}

func TestRefusalsTellTheClientWhetherTheyPass(t *testing.T) {
	for _, c := range []struct {
		name   string
		opts   flow.Options
		kind   flow.FailureKind
		code   codes.Code
		reason string
		passes bool
	}{
		{"pressure", flow.Options{
			Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			Backpressure: flow.BackpressureOptions{
				Policy: flow.BackpressureHardReject, Capacity: 1,
			},
		}, flow.FailureBackpressure, codes.ResourceExhausted, "BACKPRESSURE", true},
		{"order", flow.Options{Ordering: flow.OrderingOptions{Capacity: 1}},
			flow.FailureOrdering, codes.Aborted, "ORDERING", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, runs(newRequestFlow(t, testkit.NewManualHandler().Handle, c.opts)))
				u := s.open(t, "secretx1", "secrety2", "secretz3")
				st := u.status(t)
				wantStatus(t, st, c.code, c.reason)
				if got := testkit.Detail[*errdetails.RetryInfo](st) != nil; got != c.passes {
					t.Errorf("RetryInfo: %v, want %v", got, c.passes)
				}
				if got := flow.ClassifyFailure(st.Err()); got != c.kind {
					t.Errorf("on the client the kind is %v, want %v", got, c.kind)
				}
				if strings.Contains(fmt.Sprint(st.Proto()), "secret") {
					t.Errorf("the status quotes a key: %v", st.Proto())
				}
				wantProgress(t, u, 0)
			})
		})
	}
}

func TestWrappedFailureKeepsItsStatusAndQuotesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRequestFlow(t, func(context.Context, flow.Message[string]) error { panic("secret") }, flow.Options{})
		u := serve(t, func(stream uploading) error {
			_, err := f.Run(stream.Context(), stream.Recv)
			return fmt.Errorf("upload: %w", err)
		}).open(t, "secret1")
		st := u.status(t)
		wantStatus(t, st, codes.Internal, "INTERNAL")
		if want := "upload: flow: message 1: internal error"; st.Message() != want {
			t.Errorf("text is %q, want %q", st.Message(), want)
		}
	})
}

// A service behind this one may use flow too: what its ErrorInfo says is of a stream that this one's client has not sent.
func TestErrorInfoOfAFlowBehindThisOneIsReplaced(t *testing.T) {
	behind := func(domain string) error {
		st, err := status.New(codes.Unavailable, "the flow is shutting down").WithDetails(
			&errdetails.ErrorInfo{Reason: "SHUTDOWN", Domain: domain, Metadata: map[string]string{"seq": "99"}},
			&errdetails.RetryInfo{RetryDelay: durationpb.New(7 * time.Second)}, &errdetails.ResourceInfo{ResourceName: "d7"})
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	for name, c := range map[string]struct {
		err    error
		code   codes.Code
		reason string
		seq    string
		kind   flow.FailureKind
	}{
		"as it is":       {behind("example.com/flow"), codes.Unavailable, "HANDLER_ERROR", "2", flow.FailureHandlerError},
		"wrapped":        {fmt.Errorf("store: %w", behind("example.com/flow")), codes.Unavailable, "HANDLER_ERROR", "2", flow.FailureHandlerError},
		"permanent":      {flow.Permanent(behind("example.com/flow")), codes.Unavailable, "HANDLER_ERROR", "2", flow.FailureHandlerError},
		"other domain":   {behind("store.example"), codes.Unavailable, "SHUTDOWN", "99", flow.FailureHandlerError},
		"in one process": {&flow.Failure{Kind: flow.FailureBackpressure, Seq: 99}, codes.ResourceExhausted, "HANDLER_ERROR", "2", flow.FailureHandlerError},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := func(_ context.Context, m flow.Message[string]) error {
					if m.Seq == 2 {
						return c.err
					}
					return nil
				}
				u := serve(t, runs(newRequestFlow(t, h, flow.Options{}))).open(t, "a1", "a2")
				st := u.status(t)
				wantStatus(t, st, c.code, c.reason)
				infos := 0
				for _, d := range st.Details() {
					if info, ok := d.(*errdetails.ErrorInfo); ok {
						if infos++; info.GetMetadata()["seq"] != c.seq {
							t.Errorf("ErrorInfo is %v, want seq %s", info, c.seq)
						}
					}
				}
				if got := flow.ClassifyFailure(st.Err()); infos != 1 || got != c.kind {
					t.Errorf("%d ErrorInfos, and the kind is %v; want one, and %v", infos, got, c.kind)
				}
				if testkit.Detail[*errdetails.RetryInfo](st) == nil {
					t.Error("what the service behind says about when to come again is lost")
				}
				if c.code == codes.Unavailable && testkit.Detail[*errdetails.ResourceInfo](st) == nil {
					t.Error("the other details are lost")
				}
			})
		})
	}
}

// garbage sends bytes that are no message.
type garbage struct{ encoding.CodecV2 }

func (garbage) Marshal(any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer("\xff\xff\xff")}, nil
}

// Who operates a service is to be woken for its own faults, and not for what a client sends.
func TestSlogObserverWarnsOfWhatAClientCausesAndReportsWhatIsOurs(t *testing.T) {
	for name, c := range map[string]struct {
		level  string
		client func(t *testing.T, s *server) *upload
		recv   func() error // in place of the client's message
		code   codes.Code
	}{
		"too large a message": {"WARN", func(t *testing.T, s *server) *upload {
			return s.open(t, strings.Repeat("x", 100))
		}, nil, codes.ResourceExhausted},
		"an undecodable message": {"WARN", func(t *testing.T, s *server) *upload {
			conn := s.connect(t, grpc.WithDefaultCallOptions(grpc.ForceCodecV2(garbage{encoding.GetCodecV2("proto")})))
			return openOn(t, t.Context(), testpb.NewTestServiceClient(conn), "a1")
		}, nil, codes.Internal},
		"a middleware's validation": {"WARN", nil, func() error { return status.Error(codes.InvalidArgument, "no name") }, codes.InvalidArgument},
		"a middleware's limit":      {"WARN", nil, func() error { return fmt.Errorf("limit: %w", status.Error(codes.ResourceExhausted, "slow down")) }, codes.ResourceExhausted},
		"a source that is torn":     {"ERROR", nil, func() error { return status.Error(codes.DataLoss, "torn") }, codes.DataLoss},
		"a source that is gone":     {"ERROR", nil, func() error { return status.Error(codes.Unavailable, "gone") }, codes.Unavailable},
		"a bug as a status":         {"ERROR", nil, func() error { return status.Error(codes.Internal, "index out of range") }, codes.Internal},
		"a source's plain error":    {"ERROR", nil, func() error { return testkit.ErrHandler }, codes.Internal},
		"a panic with a status":     {"ERROR", nil, func() error { panic(status.Error(codes.InvalidArgument, "x")) }, codes.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lines bytes.Buffer
				var err error
				f := newRequestFlow(t, testkit.Succeed, flow.Options{
					Observer: flow.SlogObserver(slog.New(slog.NewTextHandler(&lines, nil))),
				})
				s := serve(t, func(stream uploading) error {
					recv := stream.Recv
					if c.recv != nil {
						recv = func() (*request, error) { return nil, c.recv() }
					}
					_, err = f.Run(stream.Context(), recv)
					return err
				}, grpc.MaxRecvMsgSize(64))
				if c.client == nil {
					s.open(t, "a1").status(t)
				} else {
					c.client(t, s).status(t)
				}
				synctest.Wait()
				testkit.FailureOf(t, err, flow.FailureInternal)
				if got := status.Code(err); got != c.code {
					t.Errorf("Run's error has the code %v, want %v", got, c.code)
				}
				if log := lines.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "level="+c.level+" ") {
					t.Errorf("log is %q, want one line at %s", log, c.level)
				}
			})
		})
	}
}
