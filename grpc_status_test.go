package flow_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"example.com/flow"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
		{"plain error", func() error { return errHandler }, codes.Unknown, "handler failed", "HANDLER_ERROR"},
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
			bubble(t, func(t *testing.T) {
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
				info := detail[*errdetails.ErrorInfo](st)
				if c.reason != "GONE" && (info.GetDomain() != "example.com/flow" || info.GetMetadata()["seq"] != "2") {
					t.Errorf("ErrorInfo is %v, want flow's domain and seq 2", info)
				}
				if c.reason == "GONE" && detail[*errdetails.ResourceInfo](st).GetResourceName() != "d7" {
					t.Errorf("the handler's own details are lost: %v", st.Details())
				}
				if detail[*errdetails.RetryInfo](st) != nil {
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
			bubble(t, func(t *testing.T) {
				s := serve(t, runs(newRequestFlow(t, newStage().handle, c.opts)))
				u := s.open(t, "secretx1", "secrety2", "secretz3")
				st := u.status(t)
				wantStatus(t, st, c.code, c.reason)
				if got := detail[*errdetails.RetryInfo](st) != nil; got != c.passes {
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
	bubble(t, func(t *testing.T) {
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
