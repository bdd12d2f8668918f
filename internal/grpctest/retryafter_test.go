package grpctest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// detailed is a status error with details.
func detailed(t *testing.T, code codes.Code, details ...protoadapt.MessageV1) error {
	t.Helper()
	st, err := status.New(code, "text").WithDetails(details...)
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

func TestRetryAfterGoesByKindCodeAndRetryInfo(t *testing.T) {
	const s = time.Second
	of := func(reason string) *errdetails.ErrorInfo {
		return &errdetails.ErrorInfo{Reason: reason, Domain: "example.com/flow"}
	}
	in := func(d time.Duration) *errdetails.RetryInfo {
		return &errdetails.RetryInfo{RetryDelay: durationpb.New(d)}
	}
	for _, c := range []struct {
		name  string
		err   error
		ok    bool
		delay time.Duration
	}{
		{"nil", nil, false, 0},
		{"nil Failure", (*flow.Failure)(nil), false, 0},

		{"shutdown", detailed(t, codes.Unavailable, of("SHUTDOWN"), in(s)), true, s},
		{"shutdown, longer", detailed(t, codes.Unavailable, in(7*s), of("SHUTDOWN")), true, 7 * s},
		{"pressure", detailed(t, codes.ResourceExhausted, of("BACKPRESSURE"), in(s)), true, s},
		{"order", detailed(t, codes.Aborted, of("ORDERING")), true, 0},
		{"the stream's context", detailed(t, codes.Canceled, of("CONTEXT_CANCELLED")), true, 0},
		{"idle for too long", detailed(t, codes.DeadlineExceeded, of("CONTEXT_CANCELLED")), true, 0},
		{"panic", detailed(t, codes.Internal, of("INTERNAL")), false, 0},
		{"broken source", detailed(t, codes.DataLoss, of("INTERNAL")), false, 0},
		{"source whose connection broke", detailed(t, codes.Unavailable, of("INTERNAL")), true, 0},
		{"a reason of a later version", detailed(t, codes.Aborted, of("NEWER")), true, 0},

		{"handler's error", detailed(t, codes.Unknown, of("HANDLER_ERROR")), true, 0},
		{"handler's own bug", detailed(t, codes.Internal, of("HANDLER_ERROR")), true, 0},
		{"handler's quota", detailed(t, codes.ResourceExhausted, of("HANDLER_ERROR")), true, 0},
		{"handler's, with a delay", detailed(t, codes.Unavailable, of("HANDLER_ERROR"), in(3*s)), true, 3 * s},
		{"handler's, permanent", detailed(t, codes.InvalidArgument, of("HANDLER_ERROR")), false, 0},
		{"handler's, permanent with a delay", detailed(t, codes.NotFound, of("HANDLER_ERROR"), in(s)), false, 0},
		{"handler's of another domain", detailed(t, codes.NotFound, &errdetails.ErrorInfo{Reason: "GONE", Domain: "x.example"}), false, 0},

		{"broken connection", status.Error(codes.Unavailable, "error reading from server: EOF"), true, 0},
		{"broken by a proxy", status.Error(codes.Internal, "stream terminated by RST_STREAM"), true, 0},
		{"reset", status.Error(codes.Canceled, "stream terminated by RST_STREAM with error code: CANCEL"), true, 0},
		{"deadline", status.Error(codes.DeadlineExceeded, "late"), true, 0},
		{"too large a message", status.Error(codes.ResourceExhausted, "grpc: received message larger than max"), false, 0},
		{"somebody else's limit", detailed(t, codes.ResourceExhausted, in(2*s)), true, 2 * s},
		{"somebody else's limit, at once", detailed(t, codes.ResourceExhausted, in(0)), true, 0},
		{"negative delay", detailed(t, codes.Unavailable, in(-s)), true, 0},
		{"no service", status.Error(codes.Unimplemented, "unknown method"), false, 0},
		{"not allowed", status.Error(codes.PermissionDenied, "no"), false, 0},
		{"no token", status.Error(codes.Unauthenticated, "who?"), false, 0},

		{"own context", context.Canceled, false, 0},
		{"own deadline", context.DeadlineExceeded, false, 0},
		{"permanent", flow.Permanent(testkit.ErrHandler), false, 0},
		{"no status", testkit.ErrHandler, true, 0},
		{"connection without a status", &net.OpError{Op: "read", Err: io.ErrUnexpectedEOF}, true, 0},

		{"in one process: shutdown", &flow.Failure{Kind: flow.FailureShutdown}, true, s},
		{"in one process: pressure", &flow.Failure{Kind: flow.FailureBackpressure, Seq: 3}, true, s},
		{"in one process: permanent", &flow.Failure{Kind: flow.FailureHandlerError, Err: flow.Permanent(testkit.ErrHandler)}, false, 0},
		{"in one process: permanent code", &flow.Failure{Kind: flow.FailureHandlerError, Err: status.Error(codes.OutOfRange, "")}, false, 0},
		{"in one process: attempt's time", &flow.Failure{Kind: flow.FailureHandlerError, Err: context.DeadlineExceeded}, true, 0},
		{"in one process: panic", &flow.Failure{Kind: flow.FailureInternal, Err: testkit.ErrHandler}, false, 0},
		{"shutdown's own error", &flow.ShutdownError{CutOff: 1, Err: context.Canceled}, true, s},
	} {
		for how, err := range map[string]error{
			"": c.err, ", wrapped": fmt.Errorf("upload: %w", c.err), ", joined": errors.Join(c.err, io.ErrClosedPipe),
		} {
			if c.err == nil && how != "" {
				continue
			}
			if delay, ok := flow.RetryAfter(err); ok != c.ok || delay != c.delay {
				t.Errorf("%s%s: RetryAfter() = %v, %v, want %v, %v", c.name, how, delay, ok, c.delay, c.ok)
			}
		}
	}
}

// What clients used to ask in its place gives up at every deploy, and sends again what is permanent.
func TestRetryAfterSaysWhatTheKindAloneDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRequestFlow(t, func(_ context.Context, m flow.Message[string]) error {
			if m.Key == "bad" {
				return status.Error(codes.InvalidArgument, "malformed")
			}
			return nil
		}, flow.Options{})
		s := serve(t, runs(f))
		permanent := s.open(t, "bad1").status(t).Err()
		if _, ok := flow.RetryAfter(permanent); ok || !flow.IsRetryable(flow.ClassifyFailure(permanent)) {
			t.Errorf("RetryAfter(%v) is ok, or the kind says no", permanent)
		}
		u := s.open(t, "a1")
		if err := f.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		deploy := u.status(t).Err()
		if d, ok := flow.RetryAfter(deploy); !ok || d <= 0 || flow.IsRetryable(flow.ClassifyFailure(deploy)) {
			t.Errorf("RetryAfter(%v) = %v, %v, or the kind says yes", deploy, d, ok)
		}
		u = s.open(t, "a1")
		s.Stop()
		broken := u.status(t).Err()
		if _, ok := flow.RetryAfter(broken); !ok {
			t.Errorf("RetryAfter(%v) says no", broken)
		}
	})
}
