package grpctest_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

func TestServerOutlivesAHandlersTypedNil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRequestFlow(t, func(_ context.Context, m flow.Message[string]) error {
			if m.Key == "nil" {
				return (*testkit.NilError)(nil)
			}
			return nil
		}, flow.Options{})
		s := serve(t, runs(f))
		u := s.open(t, "a1", "nil1")
		wantStatus(t, u.status(t), codes.Unknown, "HANDLER_ERROR")
		wantProgress(t, u, 1, 1)
		if n, st := s.open(t, "a1").end(t); n != 1 || st.Code() != codes.OK { // the process has not ended
			t.Errorf("answer is %d, %v, want 1, OK", n, st)
		}
	})
}

// brittleCodec panics on a message that begins with a zero.
type brittleCodec struct{ encoding.CodecV2 }

func (c brittleCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if b := data.Materialize(); len(b) > 0 && strings.Contains(string(b), "poison") {
		panic("codec")
	}
	return c.CodecV2.Unmarshal(data, v)
}

func TestPanicOfACodecEndsTheStreamAndIsNoMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o outcome
		codec := brittleCodec{encoding.GetCodecV2("proto")}
		s := serve(t, reports(newRequestFlow(t, testkit.Succeed, flow.Options{}), &o), grpc.ForceServerCodecV2(codec))
		u := s.open(t, "a1")
		u.send(t, "poison1")
		wantStatus(t, u.status(t), codes.Internal, "INTERNAL")
		wantProgress(t, u, 1, 1)
		if f := testkit.FailureOf(t, o.err, flow.FailureInternal); f.Seq != 0 || o.sum.Received != 1 {
			t.Errorf("Run() = %+v, %+v", o.sum, f)
		}
		if n, st := s.open(t, "a1").end(t); n != 1 || st.Code() != codes.OK {
			t.Errorf("answer is %d, %v, want 1, OK", n, st)
		}
	})
}
