package grpctest_test

import (
	"context"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// otherCalls are RPCs of all kinds whose requests are no uploads.
type otherCalls struct {
	testpb.UnimplementedBenchmarkServiceServer
}

type simple = testpb.SimpleRequest

func (*otherCalls) StreamingFromServer(r *simple, stream testpb.BenchmarkService_StreamingFromServerServer) error {
	return stream.Send(&testpb.SimpleResponse{Payload: r.GetPayload()})
}

func (*otherCalls) StreamingCall(stream testpb.BenchmarkService_StreamingCallServer) error {
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&testpb.SimpleResponse{Payload: r.GetPayload()}); err != nil {
			return err
		}
	}
}

// StreamingFromClient answers with the user name "true" if a Summary came through its context.
func (*otherCalls) StreamingFromClient(stream testpb.BenchmarkService_StreamingFromClientServer) error {
	for {
		if _, err := stream.Recv(); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
	}
	name := "no summary"
	if sum, ok := flow.SummaryFromContext(stream.Context()); ok {
		name = "summary of " + string(rune('0'+sum.Succeeded))
	}
	return stream.SendAndClose(&testpb.SimpleResponse{Username: name})
}

// behind is the usual service method behind the interceptor.
func behind(stream uploading) error {
	if _, err := stream.Recv(); err != io.EOF {
		return err
	}
	sum, _ := flow.SummaryFromContext(stream.Context())
	return answer(stream, sum)
}

func TestFirstRecvBehindTheInterceptorRunsTheWholeStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := newRequestFlow(t, st.Handle, flow.Options{})
		var got flow.Summary
		var before, after bool
		s := serve(t, func(stream uploading) error {
			_, before = flow.SummaryFromContext(stream.Context())
			if r, err := stream.Recv(); r != nil && len(valueOf(r)) > 0 || err != io.EOF {
				t.Errorf("Recv() = %v, %v, want a single EOF", r, err)
			}
			got, after = flow.SummaryFromContext(stream.Context())
			return answer(stream, got)
		}, grpc.StreamInterceptor(f.StreamServerInterceptor()))
		u := s.open(t, "a1", "b1", "a2")
		st.Finish(t, "a1", "b1")
		_ = u.CloseSend()
		st.WantRunning(t, "a2")
		if after || s.active.Load() != 1 {
			t.Fatal("Recv returned while a message runs")
		}
		st.Finish(t, "a2")
		if n, status := u.end(t); n != 3 || status.Code() != codes.OK {
			t.Errorf("answer is %d, %v, want 3, OK", n, status)
		}
		testkit.CheckConserved(t, got)
		if before || !after || got.Succeeded != 3 {
			t.Errorf("summary before Recv: %v, after: %v, %+v", before, after, got)
		}
		wantProgress(t, u, 3)
	})
}

func TestRecvBehindTheInterceptorReturnsTheFailureAndRepeatsIt(t *testing.T) {
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newRequestFlow(t, func(context.Context, flow.Message[string]) error {
				if fails {
					return testkit.ErrHandler
				}
				return nil
			}, flow.Options{})
			var sum flow.Summary
			reads := 0
			s := serve(t, func(stream uploading) error {
				_, err := stream.Recv()
				sum, _ = flow.SummaryFromContext(stream.Context())
				untouched := reads
				for range 3 {
					if _, again := stream.Recv(); again != err {
						t.Errorf("Recv again returned %v, first it was %v", again, err)
					}
				}
				if reads != untouched {
					t.Error("Recv again has touched the stream")
				}
				if again, _ := flow.SummaryFromContext(stream.Context()); again.Received != sum.Received {
					t.Errorf("Recv again has changed the summary to %+v", again)
				}
				if err != io.EOF {
					testkit.FailureOf(t, err, flow.FailureHandlerError)
					return err
				}
				return answer(stream, sum)
			}, grpc.ChainStreamInterceptor(counting(&reads), f.StreamServerInterceptor()))
			u := s.open(t, "a1")
			if fails { // of a silent client: a read is under way and ends with the method
				wantStatus(t, u.status(t), codes.Unknown, "HANDLER_ERROR")
				wantProgress(t, u, 0)
			} else if n, status := u.end(t); n != 1 || status.Code() != codes.OK {
				t.Errorf("answer is %d, %v", n, status)
			}
			testkit.CheckConserved(t, sum)
		})
	}
}

func TestMethodThatNeverCallsRecvRunsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRequestFlow(t, func(context.Context, flow.Message[string]) error {
			t.Error("a message ran")
			return nil
		}, flow.Options{})
		u := serve(t, func(stream uploading) error {
			time.Sleep(time.Second)
			if _, ok := flow.SummaryFromContext(stream.Context()); ok {
				t.Error("a summary of nothing")
			}
			return answer(stream, flow.Summary{})
		}, grpc.StreamInterceptor(f.StreamServerInterceptor())).open(t, "a1", "a2")
		if n, status := u.end(t); n != 0 || status.Code() != codes.OK {
			t.Errorf("answer is %d, %v, want 0, OK", n, status)
		}
		if n := f.Stats().Total.Received; n != 0 {
			t.Errorf("%d messages received", n)
		}
	})
}

func TestMethodThatAnswersAfterAFailureHasTheLastWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRequestFlow(t, func(_ context.Context, m flow.Message[string]) error {
			if m.Value == "a2" {
				return testkit.ErrHandler
			}
			return nil
		}, flow.Options{})
		u := serve(t, func(stream uploading) error {
			_, err := stream.Recv()
			testkit.FailureOf(t, err, flow.FailureHandlerError)
			sum, _ := flow.SummaryFromContext(stream.Context())
			return answer(stream, sum)
		}, grpc.StreamInterceptor(f.StreamServerInterceptor())).open(t, "a1", "a2", "a3")
		if n, status := u.end(t); n != 1 || status.Code() != codes.OK {
			t.Errorf("answer is %d, %v, want 1, OK", n, status)
		}
		wantProgress(t, u, 1)
	})
}

// counting is an interceptor that counts the calls of RecvMsg that come to it from those after it.
func counting(n *int) grpc.StreamServerInterceptor {
	return watching(func(any, error) { *n++ })
}

func watching(saw func(m any, err error)) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		return handler(srv, &watched{ss, saw})
	}
}

type watched struct {
	grpc.ServerStream
	saw func(m any, err error)
}

func (w *watched) RecvMsg(m any) error {
	err := w.ServerStream.RecvMsg(m)
	w.saw(m, err)
	return err
}

func TestInterceptorsBeforeSeeEveryMessageAndLaterOnesASingleEOF(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		note := func(list *[]string) grpc.StreamServerInterceptor {
			return watching(func(m any, err error) {
				if err != nil {
					*list = append(*list, err.Error())
					return
				}
				*list = append(*list, valueOf(m.(*request)))
			})
		}
		var first, last []string
		f := newRequestFlow(t, testkit.Takes(time.Second), flow.Options{})
		u := serve(t, behind, grpc.ChainStreamInterceptor(note(&first), f.StreamServerInterceptor(), note(&last))).
			open(t, "a1", "a2", "a3")
		if n, status := u.end(t); n != 3 {
			t.Errorf("answer is %d, %v", n, status)
		}
		if want := []string{"a1", "a2", "a3", "EOF"}; !slices.Equal(first, want) {
			t.Errorf("the one before saw %q, want %q", first, want)
		}
		if want := []string{"EOF"}; !slices.Equal(last, want) {
			t.Errorf("the later one saw %q, want %q", last, want)
		}
	})
}

func TestNewInterceptorWorksWithAReceiverOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		r := flow.NewReceiver(
			flow.NewGate(nil, flow.NewPressureController(flow.BackpressureOptions{Capacity: 2}), nil),
			flow.NewEngine(onRequests(st.Handle), flow.RetryOptions{}))
		s := serve(t, behind, grpc.StreamInterceptor(flow.NewInterceptor(r, nil).StreamServerInterceptor()))
		u := s.open(t, "a1", "a2", "a3")
		st.WantRunning(t, "a1 a2")
		_ = u.CloseSend()
		st.FinishAll(t)
		if n, status := u.end(t); n != 3 || status.Code() != codes.OK {
			t.Errorf("answer is %d, %v, want 3, OK", n, status)
		}
		for _, m := range st.Attempts() {
			if m.Key != "" {
				t.Errorf("key is %q without a key function", m.Key)
			}
		}
	})
}
