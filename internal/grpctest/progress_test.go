package grpctest_test

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// retries is a client's service config that tries a call again when it fails with UNAVAILABLE.
const retries = `{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s",
	"maxBackoff": "1s", "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]}`

// retrying is a client of s that retries.
func (s *server) retrying(t testing.TB) testpb.TestServiceClient {
	t.Helper()
	return testpb.NewTestServiceClient(s.connect(t, grpc.WithDefaultServiceConfig(retries)))
}

func TestHeaderIsSentBeforeTheFirstMessageExecutesAndNotEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		s := serve(t, func(stream uploading) error {
			if err := stream.SetHeader(metadata.Pairs("of-the-method", "yes")); err != nil {
				return err
			}
			return runs(newRequestFlow(t, st.Handle, flow.Options{}))(stream)
		})
		u := s.open(t)
		if s.active.Load() != 1 || u.headerSent() {
			t.Fatal("a header was sent before there is a message")
		}
		u.send(t, "a1")
		st.WantRunning(t, "a1")
		if !u.headerSent() {
			t.Fatal("a message runs and no header was sent")
		}
		if md, _ := u.Header(); len(md.Get("of-the-method")) != 1 {
			t.Errorf("the method's own header is lost: %v", md)
		}
		st.Finish(t, "a1")
		if n, status := u.end(t); n != 1 {
			t.Errorf("answer is %d, %v", n, status)
		}
	})
}

func TestHeaderWaitsForASlotWithItsMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		s := serve(t, runs(newRequestFlow(t, st.Handle, flow.Options{
			Backpressure: flow.BackpressureOptions{Capacity: 1},
		})))
		u1 := s.open(t, "a1")
		u2 := s.open(t, "b1")
		st.WantRunning(t, "a1")
		if !u1.headerSent() || u2.headerSent() {
			t.Error("want a header for the stream whose message runs, and none for the one that waits for a slot")
		}
		st.Finish(t, "a1")
		if !u2.headerSent() {
			t.Error("no header although the message runs")
		}
		st.Finish(t, "b1")
	})
}

func TestClientsRetryPolicyDoesNotReplayMessagesThatRan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ran := make(chan string, 100)
		s := serve(t, runs(newRequestFlow(t, func(_ context.Context, m flow.Message[string]) error {
			ran <- m.Value
			if m.Value == "a3" {
				return status.Error(codes.Unavailable, "the store is away")
			}
			return nil
		}, flow.Options{})))
		u := openOn(t, t.Context(), s.retrying(t), "a1", "a2", "a3", "a4", "a5")
		wantStatus(t, u.status(t), codes.Unavailable, "HANDLER_ERROR")
		close(ran)
		if got := slices.Collect(drain(ran)); !slices.Equal(got, []string{"a1", "a2", "a3"}) {
			t.Errorf("handlers saw %q, want each message once", got)
		}
		if n := s.calls.Load(); n != 1 {
			t.Errorf("%d calls of the method, want 1", n)
		}
		wantProgress(t, u, 2)
	})
}

// drain yields what is in a closed channel.
func drain[T any](ch <-chan T) iter.Seq[T] {
	return func(yield func(T) bool) {
		for v := range ch {
			if !yield(v) {
				return
			}
		}
	}
}

// The same client has a stream that was refused before anything ran tried again, and nobody has to know.
func TestStreamRefusedBeforeAnyExecutionStaysRetryable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed, ran := newRequestFlow(t, testkit.Takes(0), flow.Options{}), make(chan string, 100)
		_ = closed.Close()
		open := newRequestFlow(t, func(_ context.Context, m flow.Message[string]) error {
			ran <- m.Value
			return nil
		}, flow.Options{})
		var s *server
		s = serve(t, func(stream uploading) error {
			if s.calls.Load() < 3 {
				return runs(closed)(stream)
			}
			return runs(open)(stream)
		})
		u := openOn(t, t.Context(), s.retrying(t), "a1", "a2")
		if n, status := u.end(t); n != 2 || status.Code() != codes.OK {
			t.Errorf("answer is %d, %v, want 2, OK", n, status)
		}
		close(ran)
		got := slices.Collect(drain(ran))
		if n := s.calls.Load(); !slices.Equal(got, []string{"a1", "a2"}) || n != 3 {
			t.Errorf("handlers saw %q in %d calls, want each message once, in the third", got, n)
		}
	})
}

func TestRefusedStreamIsTrailersOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRequestFlow(t, testkit.Takes(0), flow.Options{})
		_ = f.Close()
		u := serve(t, runs(f)).open(t)
		wantStatus(t, u.status(t), codes.Unavailable, "SHUTDOWN")
		if md, _ := u.Header(); md != nil {
			t.Errorf("a header was sent: %v", md)
		}
		wantProgress(t, u, 0)
	})
}

func TestTrailersSayHowFarAStreamGotAtEveryEnd(t *testing.T) {
	keyed := flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}
	for _, c := range []struct {
		name      string
		opts      flow.Options
		end       func(*testing.T, *testkit.ManualHandler, *flow.Flow[*request], *upload)
		code      codes.Code
		committed uint64
		settled   []uint64 // of three: a1, b1, c1
	}{
		{"answer", flow.Options{}, func(t *testing.T, st *testkit.ManualHandler, _ *flow.Flow[*request], u *upload) {
			_ = u.CloseSend()
			st.Finish(t, "c1", "b1", "a1")
		}, codes.OK, 3, []uint64{1, 2, 3}},
		{"failure", flow.Options{}, func(t *testing.T, st *testkit.ManualHandler, _ *flow.Flow[*request], _ *upload) {
			st.Finish(t, "b1")
			st.Fail(t, "a1", testkit.ErrHandler)
		}, codes.Unknown, 0, []uint64{2}},
		{"panic that is skipped", flow.Options{
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		}, func(t *testing.T, st *testkit.ManualHandler, _ *flow.Flow[*request], _ *upload) {
			st.Finish(t, "c1")
			st.EndWith(t, "a1", func() error { panic("poison") })
		}, codes.Internal, 1, []uint64{1, 3}},
		{"shutdown", flow.Options{}, func(t *testing.T, st *testkit.ManualHandler, f *flow.Flow[*request], _ *upload) {
			go func() { _ = f.Shutdown(t.Context()) }()
			st.Finish(t, "a1", "c1", "b1")
		}, codes.Unavailable, 3, []uint64{1, 2, 3}},
		{"close", flow.Options{}, func(t *testing.T, st *testkit.ManualHandler, f *flow.Flow[*request], _ *upload) {
			st.Finish(t, "a1", "c1")
			_ = f.Close()
		}, codes.Unavailable, 1, []uint64{1, 3}},
		{"idle timeout", flow.Options{IdleTimeout: time.Second}, func(t *testing.T, st *testkit.ManualHandler, _ *flow.Flow[*request], _ *upload) {
			st.Finish(t, "a1", "c1", "b1")
			time.Sleep(2 * time.Second)
		}, codes.DeadlineExceeded, 3, []uint64{1, 2, 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := testkit.NewManualHandler()
				c.opts.Ordering = keyed
				f := newRequestFlow(t, st.Handle, c.opts)
				u := serve(t, runs(f)).open(t, "a1", "b1", "c1")
				st.WantRunning(t, "a1 b1 c1")
				c.end(t, st, f, u)
				if got := status.Convert(u.RecvMsg(new(reply))); got.Code() != c.code {
					t.Errorf("the client sees %v, want %v", got, c.code)
				}
				if c.code == codes.OK {
					_ = u.RecvMsg(new(reply)) // the trailer comes with the stream's end
				}
				p := wantProgress(t, u, c.committed)
				for seq := uint64(1); seq <= 4; seq++ {
					if p.Settled(seq) != slices.Contains(c.settled, seq) {
						t.Errorf("Settled(%d) is %v; want %v settled", seq, p.Settled(seq), c.settled)
					}
				}
				if has := len(u.Trailer().Get("flow-progress-bin")) > 0; has != (len(c.settled) < 3) {
					t.Errorf("flow-progress-bin: %v, want it only when there are unsettled messages", has)
				}
			})
		})
	}
}

// A client that is told which messages are settled sends the others, until nothing is left.
func TestClientThatResumesWithRestLosesNothingAndRunsNoSettledMessageTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		for i := range 40 {
			sent = append(sent, fmt.Sprintf("%c%d", 'a'+i%5, i))
		}
		ran := make(chan string, 1000)
		fails := map[string]bool{"b6": true, "d13": true, "a30": true}
		h := func(ctx context.Context, m flow.Message[string]) error {
			if err := testkit.Takes(time.Duration(len(m.Key)+int(m.Seq)%3)*time.Millisecond)(ctx, m); err != nil {
				return err
			}
			if fails[m.Value] {
				fails[m.Value] = false
				return testkit.ErrHandler
			}
			ran <- m.Value
			return nil
		}
		f := newRequestFlow(t, h, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			Backpressure: flow.BackpressureOptions{Capacity: 1}})
		s := serve(t, runs(f))
		rest, streams := slices.Values(sent), 0
		for left := slices.Collect(rest); len(left) > 0; left = slices.Collect(rest) {
			if streams++; streams > 4 {
				t.Fatalf("still left after %d streams: %v", streams, left)
			}
			u := s.open(t, left...)
			_, _ = u.end(t)
			p, ok := flow.ProgressFromTrailer(u.Trailer())
			if !ok {
				t.Fatalf("no progress in the trailer %v", u.Trailer())
			}
			rest = flow.Rest(p, slices.Values(left))
		}
		close(ran)
		checkEachOnceInOrderOfKeys(t, slices.Collect(drain(ran)), sent)
		if streams != 4 {
			t.Errorf("%d streams, want one for each of three failures and the last", streams)
		}
	})
}

func checkEachOnceInOrderOfKeys(t testing.TB, got, sent []string) {
	t.Helper()
	byKey := func(values []string) []string {
		values = slices.Clone(values)
		slices.SortStableFunc(values, func(a, b string) int { return strings.Compare(testkit.KeyOf(a), testkit.KeyOf(b)) })
		return values
	}
	if !slices.Equal(byKey(got), byKey(sent)) {
		t.Errorf("by key there ran  %v\nby key there was sent %v", byKey(got), byKey(sent))
	}
}
