package flowclient_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowclient"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestSenderAnswerTimeoutGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, func(n int) plan {
			switch n {
			case 1, 2, 3, 5:
				return plan{noAnswer: true, hole: map[uint64]bool{1: true, 2: true}}
			case 4:
				return plan{answerTime: 479 * second} // below eight times AnswerTimeout
			}
			return plan{}
		})
		s := newSender(t, client, flowclient.Options{})
		for _, v := range []string{"a", "b"} {
			send(t, s, v)
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		var took, gaps []time.Duration
		seen := server.seen()
		for i, st := range seen {
			took = append(took, st.ended-st.halfClosed)
			if i > 0 {
				gaps = append(gaps, st.begun-seen[i-1].ended)
			}
		}
		check(t, "from the half-close to the end", took,
			[]time.Duration{60 * second, 120 * second, 240 * second, 479 * second, 60 * second, 0})
		check(t, "gaps", gaps, []time.Duration{0, 100 * ms, 200 * ms, 0, 100 * ms})
		check(t, "ran", server.hasRun(), []string{"a", "b"})
	})
}

// A server that reads nothing keeps the half-close from being sent: AnswerTimeout counts from when it was due.
func TestSenderAnswerTimeoutHoldsForAServerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, only(map[int]plan{1: {readsNone: true}}))
		s := newSender(t, client, flowclient.Options{})
		var values []string
		for i := range 20 {
			values = append(values, fmt.Sprint(i)+strings.Repeat("x", 1<<16))
		}
		send(t, s, values...)
		mustClose(t, s)
		check(t, "begun", begun(server), []time.Duration{0, 65 * second})
		if !slices.Equal(server.hasRun(), values) {
			t.Error("not each ran once, in order")
		}
	})
}

func TestSenderShutdownLoopBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, func(n int) plan {
			if n <= 10 {
				return plan{refuse: retryInfo(codes.Unavailable, 300*ms)}
			}
			return plan{}
		})
		s := newSender(t, client, flowclient.Options{})
		send(t, s, "a")
		mustClose(t, s)
		var gaps []time.Duration
		for i, at := range begun(server)[1:] {
			gaps = append(gaps, at-begun(server)[i])
		}
		check(t, "gaps", gaps, []time.Duration{300 * ms, 300 * ms, 300 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 10 * second, 10 * second})
	})
}

// Progress resets the backoff, and what a server asks for is waited for.
func TestSenderWaitsAsLongAsTheServerAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, func(n int) plan {
			if n <= 5 {
				return plan{endAfter: 1, end: retryInfo(codes.ResourceExhausted, 30*second)}
			}
			return plan{}
		})
		s := newSender(t, client, flowclient.Options{MaxBackoff: second})
		values := numbered("m", 8)
		send(t, s, values...)
		mustClose(t, s)
		check(t, "ran", server.hasRun(), values)
		check(t, "begun", begun(server), []time.Duration{0, 30 * second, 60 * second, 90 * second, 120 * second, 150 * second})
	})
}

func TestSenderUnauthenticatedTwiceWithoutProgressEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, always(plan{refuse: status.Error(codes.Unauthenticated, "no")}))
		s := newSender(t, client, flowclient.Options{})
		send(t, s, "a")
		if err := ended(t, s); status.Code(err) != codes.Unauthenticated {
			t.Errorf("the Sender ended with %v", err)
		}
		check(t, "begun", begun(server), []time.Duration{0, 100 * ms})
	})
}

func TestSenderOversizedAtServerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, always(plan{headerTime: ms}), grpc.MaxRecvMsgSize(1000))
		s := newSender(t, client, flowclient.Options{})
		send(t, s, "small", strings.Repeat("x", 2000))
		if err := ended(t, s); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("the Sender ended with %v", err)
		}
		check(t, "streams", len(server.seen()), 1)
	})
}

func noEpoch(md metadata.MD) { md.Delete("flow-epoch") }

// An interceptor's header, an id of the request, say, comes with a refusal and says nothing of sessions. The refusal does: it
// passes.
func TestSenderComesAgainThoughARefusalHasAnothersHeader(t *testing.T) {
	for refused, o := range map[int]flowclient.Options{
		1: {}, 2: {}, 3: {NoHeader: true}, // which has sent messages by then: it must know from before that there are sessions
	} {
		synctest.Test(t, func(t *testing.T) {
			down := status.Error(codes.Unavailable, "shutting down")
			server, client := serve(t, func(n int) plan {
				if n == refused {
					return plan{foreign: true, refuse: down}
				}
				return plan{foreign: true}
			})
			s := newSender(t, client, o)
			values := numbered("m", 6)
			for i := 0; i < len(values); i += 2 {
				send(t, s, values[i:i+2]...)
				if err := s.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			mustClose(t, s)
			check(t, "ran", server.hasRun(), values)
			check(t, "streams", len(server.seen()), 4)
		})
	}
}

// A service that sends its own header before flow can keeps flow's from being sent: the trailers say all that it would have.
func TestSenderGoesByTheTrailersOfAServerThatSendsItsHeaderEarly(t *testing.T) {
	for noHeader, streams := range map[bool]int{false: 3, true: 2} { // without NoHeader the first one only finds that out
		synctest.Test(t, func(t *testing.T) {
			server, client := serve(t, always(plan{early: true}))
			s := newSender(t, client, flowclient.Options{NoHeader: noHeader})
			for _, v := range []string{"a", "b"} {
				send(t, s, v)
				if err := s.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			mustClose(t, s)
			check(t, "ran", server.hasRun(), []string{"a", "b"})
			seen := server.seen()
			check(t, "streams", len(seen), streams)
			if !noHeader {
				check(t, "the first stream carried", seen[0].received, []string(nil))
			}
		})
	}
}

func TestSenderAsksAboutAMessageThatIsNotImplemented(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, always(plan{fail: map[uint64]error{2: status.Error(codes.Unimplemented, "no such record")}}))
		s := newSender(t, client, flowclient.Options{OnFailure: func(*flow.Failure) flowclient.Action { return flowclient.Skip }})
		send(t, s, "a", "b", "c")
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"a", "c"})
	})
}

func TestSenderEndsWithoutSessions(t *testing.T) {
	for name, p := range map[string]plan{
		"neither header nor trailers with flow-epoch": {header: noEpoch, trailer: noEpoch},
		"OK without flow-epoch":                       {plain: true},
		"another's header, and OK without flow-epoch": {plain: true, early: true},
		"Unimplemented":                               {refuse: status.Error(codes.Unimplemented, "no such method")},
	} {
		for _, noHeader := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,noHeader=%v", name, noHeader), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					server, client := serve(t, always(p))
					s := newSender(t, client, flowclient.Options{NoHeader: noHeader})
					send(t, s, "a")
					if err := ended(t, s); !errors.Is(err, flowclient.ErrNoSessions) {
						t.Errorf("the Sender ended with %v", err)
					}
					check(t, "unsettled", unsettled(s), []string{"1=a"})
					check(t, "streams", len(server.seen()), 1)
					if p.plain && !p.early && !noHeader { // such a server sends no header before it has read a message
						check(t, "time", time.Since(server.began), 10*second)
					}
				})
			})
		}
	}
}

func TestSenderGivesUpAfterSoLongWithoutProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, func(n int) plan {
			if n == 1 {
				return plan{}
			}
			return plan{refuse: status.Error(codes.Unavailable, "down")}
		})
		s := newSender(t, client, flowclient.Options{GiveUpAfter: time.Minute})
		send(t, s, "a")
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		send(t, s, "b")
		err := ended(t, s)
		check(t, "time", time.Since(server.began), time.Hour+time.Minute)
		check(t, "error", err.Error(), "flowclient: no progress for Options.GiveUpAfter, which is 1m0s; the last stream failed: rpc error: code = Unavailable desc = down")
	})
}

// Backoffs are exact: doubled, from Backoff to MaxBackoff, half of it random.
func TestSenderBacksOff(t *testing.T) {
	for code := range codes.Code(17) {
		switch code {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted, codes.Internal, codes.Unknown:
		default:
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			server, client := serve(t, func(n int) plan {
				if n < 6 {
					return plan{refuse: status.Error(code, "x")}
				}
				return plan{}
			})
			s := newSender(t, client, flowclient.Options{Backoff: second, MaxBackoff: 5 * second})
			s.SetRandom(func() float64 { return 0.5 })
			send(t, s, "a")
			mustClose(t, s)
			check(t, "begun", begun(server), []time.Duration{0, 750 * ms, 2250 * ms, 5250 * ms, 9000 * ms, 12750 * ms})
		})
	}
}

func TestSenderMessageThatCantBeEncodedEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, nil)
		open := func(ctx context.Context, o ...grpc.CallOption) (grpc.ClientStreamingClient[testpb.SimpleRequest, reply], error) {
			return openAs[testpb.SimpleRequest](ctx, client, o...)
		}
		s, err := flowclient.New(open, flowclient.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(t.Context(), &testpb.SimpleRequest{ExpectCompressed: &testpb.BoolValue{}}); err != nil {
			t.Fatal(err)
		}
		if err := s.Send(t.Context(), &testpb.SimpleRequest{OrcaPerQueryReport: &testpb.TestOrcaReport{RequestCost: map[string]float64{"\xff": 1}}}); err != nil {
			t.Fatal(err)
		}
		var u *flowclient.UnsettledError
		err = s.Close(t.Context())
		if !errors.As(err, &u) || status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "a message can't be sent") {
			t.Errorf("Close() = %v", err)
		}
		check(t, "streams", len(server.seen()), 1)
	})
}

func TestSenderCallersPanicsEndNothingButTheSender(t *testing.T) {
	fake := func(panics string) func(context.Context, ...grpc.CallOption) (grpc.ClientStreamingClient[request, reply], error) {
		return func(ctx context.Context, _ ...grpc.CallOption) (grpc.ClientStreamingClient[request, reply], error) {
			return &fakeStream{ctx: ctx, epoch: "1", panics: panics, halfClosed: make(chan struct{})}, nil
		}
	}
	for _, c := range []struct {
		name, says string
		open       func(context.Context, ...grpc.CallOption) (grpc.ClientStreamingClient[request, reply], error)
		o          flowclient.Options
	}{
		{"open", "flowclient: panic in open: mine", func(context.Context, ...grpc.CallOption) (grpc.ClientStreamingClient[request, reply], error) {
			panic("mine")
		}, flowclient.Options{}},
		{"nil", "flowclient: open returned neither a stream nor an error", func(context.Context, ...grpc.CallOption) (grpc.ClientStreamingClient[request, reply], error) {
			return nil, nil
		}, flowclient.Options{}},
		{"Header", "flowclient: panic in the stream: Header", fake("Header"), flowclient.Options{}},
		{"Send", "flowclient: panic in the stream: Send", fake("Send"), flowclient.Options{}},
		{"an error", "flowclient: panic in the stream's error: runtime error: invalid memory address or nil pointer dereference", fake("error"), flowclient.Options{}},
		{"an error of Send", "flowclient: panic in the stream's error: runtime error: invalid memory address or nil pointer dereference", fake("error of Send"), flowclient.Options{}},
		{"Logger", "flowclient: panic in Options.OnReply: mine", fake(""), flowclient.Options{
			Logger: slog.New(panickingHandler{}), OnReply: func(any) { panic("mine") },
		}},
		{"CloseSend", "flowclient: panic in the stream: CloseSend", fake("CloseSend"), flowclient.Options{}},
		{"RecvMsg", "flowclient: panic in the stream: RecvMsg", fake("RecvMsg"), flowclient.Options{}},
		{"OnReply", "flowclient: panic in Options.OnReply: mine", fake(""), flowclient.Options{OnReply: func(any) { panic("mine") }}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, err := flowclient.New(c.open, c.o)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Send(t.Context(), requestOf("a")); err != nil {
					t.Fatal(err)
				}
				_ = s.Flush(t.Context())
				synctest.Wait()
				if err := s.Stats().Err; err == nil || err.Error() != c.says {
					t.Errorf("the Sender ended with %v", err)
				}
				_ = s.Close(t.Context())
			})
		})
	}
}
