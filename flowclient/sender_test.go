package flowclient_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowclient"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// TestMain looks for goroutines left behind by tests that run in real time; those in bubbles look for themselves.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	second = time.Second
	ms     = time.Millisecond
)

// only plans streams by their numbers; the others behave.
func only(plans map[int]plan) func(int) plan { return func(n int) plan { return plans[n] } }

// always plans all streams alike.
func always(p plan) func(int) plan { return func(int) plan { return p } }

// begun returns when the streams began.
func begun(server *sessionServer) (all []time.Duration) {
	for _, st := range server.seen() {
		all = append(all, st.begun)
	}
	return all
}

// ended waits until the Sender has ended, and returns why.
func ended(t *testing.T, s *sender) error {
	t.Helper()
	err := s.Flush(t.Context())
	if err == nil || s.Stats().Err != err {
		t.Fatalf("Flush() = %v, and Stats().Err is %v", err, s.Stats().Err)
	}
	if again := s.Send(t.Context(), requestOf("late")); again != err {
		t.Errorf("Send() = %v after the Sender ended with %v", again, err)
	}
	return err
}

func TestSenderSettlesWhatItTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, nil)
		s := newSender(t, client, flowclient.Options{})
		values := numbered("m", 100)
		send(t, s, values...)
		mustClose(t, s)
		check(t, "ran", server.hasRun(), values)
		check(t, "time", time.Since(server.began), 0)
		check(t, "stats", s.Stats(), flowclient.Stats{Taken: 100, Settled: 100, Streams: 1, Epoch: 1})
		check(t, "start and epoch", server.seen()[0].start+server.seen()[0].epoch, "1")
	})
}

func TestSenderCancelledSendKeepsNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, always(plan{handlerTime: second}))
		s := newSender(t, client, flowclient.Options{MaxBuffered: 2})
		send(t, s, "a", "b")
		ctx, cancel := context.WithTimeout(t.Context(), 500*ms)
		defer cancel()
		if err := s.Send(ctx, requestOf("cancelled")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send() = %v into a full buffer", err)
		}
		check(t, "the wait", time.Since(server.began), 500*ms)
		cancelled, stop := context.WithCancel(t.Context())
		stop()
		if err := s.Send(cancelled, requestOf("cancelled")); !errors.Is(err, context.Canceled) {
			t.Errorf("Send() = %v", err)
		}
		send(t, s, "c", "d")
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"a", "b", "c", "d"})
		check(t, "taken", s.Stats().Taken, 4)
	})
}

func TestSenderCallsOfSendKeepTheirOrderWhileTheyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, always(plan{handlerTime: second}))
		s := newSender(t, client, flowclient.Options{MaxBuffered: 1})
		values := numbered("m", 10)
		var wg sync.WaitGroup
		for _, v := range values {
			wg.Go(func() { send(t, s, v) })
			synctest.Wait()
		}
		wg.Wait()
		mustClose(t, s)
		check(t, "ran", server.hasRun(), values)
	})
}

func TestSenderKnownSessionIsNotSwallowed(t *testing.T) {
	for _, noHeader := range []bool{false, true} {
		t.Run(fmt.Sprintf("noHeader=%v", noHeader), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, client := serve(t, always(plan{headerTime: ms}))
				server.settle("upload", 7, 3)
				s := newSender(t, client, flowclient.Options{Session: "upload", NoHeader: noHeader})
				send(t, s, "other1", "other2")
				if err := ended(t, s); !errors.Is(err, flowclient.ErrSessionKnown) {
					t.Errorf("the Sender ended with %v", err)
				}
				check(t, "unsettled", unsettled(s), []string{"1=other1", "2=other2"})
				check(t, "ran", server.hasRun(), []string(nil))
			})
		})
	}
}

func TestSenderResumeSaysWhatComesNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, nil)
		server.settle("upload", 7, 3, 5)
		s := newSender(t, client, flowclient.Options{Session: "upload"})
		for range 2 {
			if next, err := s.Resume(t.Context()); next != 4 || err != nil {
				t.Fatalf("Resume() = %d, %v", next, err)
			}
		}
		send(t, s, "four", "five", "six")
		if next, err := s.Resume(t.Context()); err == nil {
			t.Errorf("Resume() = %d after a Send", next)
		}
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"four", "six"})
		check(t, "stats", s.Stats(), flowclient.Stats{Taken: 3, Settled: 3, Streams: 2, Epoch: 8})
		check(t, "starts and epochs", server.seen()[0].start+server.seen()[0].epoch+" "+server.seen()[1].start+server.seen()[1].epoch, "1 48")
	})
}

func TestSenderResumeOfANewSession(t *testing.T) {
	for _, p := range []plan{{}, {holdHeader: true}} {
		synctest.Test(t, func(t *testing.T) {
			server, client := serve(t, only(map[int]plan{1: p}))
			s := newSender(t, client, flowclient.Options{Session: "upload"})
			if next, err := s.Resume(t.Context()); next != 1 || err != nil {
				t.Fatalf("Resume() = %d, %v", next, err)
			}
			send(t, s, "one")
			mustClose(t, s)
			check(t, "ran", server.hasRun(), []string{"one"})
		})
	}
}

func TestSenderResumeTriesAgainAndHeedsItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		server, client := serve(t, func(int) plan {
			if down {
				return plan{refuse: status.Error(codes.Unavailable, "down")}
			}
			return plan{}
		})
		server.settle("upload", 1, 3)
		s := newSender(t, client, flowclient.Options{Session: "upload"})
		ctx, cancel := context.WithTimeout(t.Context(), second)
		defer cancel()
		if next, err := s.Resume(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Resume() = %d, %v", next, err)
		}
		check(t, "begun", begun(server), []time.Duration{0, 100 * ms, 300 * ms, 700 * ms})
		time.Sleep(time.Hour)
		check(t, "streams after Resume's context ended", len(server.seen()), 4)
		down = false
		if next, err := s.Resume(t.Context()); next != 4 || err != nil {
			t.Fatalf("Resume() = %d, %v", next, err)
		}
		mustClose(t, s)
	})
}

func TestSenderResumeIsCutShortByItsContextInTheMiddleOfAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, only(map[int]plan{1: {silent: true}}))
		server.settle("upload", 1, 3)
		s := newSender(t, client, flowclient.Options{Session: "upload"})
		ctx, cancel := context.WithTimeout(t.Context(), second)
		defer cancel()
		if next, err := s.Resume(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Resume() = %d, %v", next, err)
		}
		synctest.Wait()
		check(t, "the end of the stream", server.seen()[0].ended, second)
		if next, err := s.Resume(t.Context()); next != 4 || err != nil {
			t.Fatalf("Resume() = %d, %v", next, err)
		}
		mustClose(t, s)
	})
}

func TestSenderSendWaitsForResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, only(map[int]plan{1: {refuse: status.Error(codes.Unavailable, "down")}}))
		server.settle("upload", 1, 3)
		s := newSender(t, client, flowclient.Options{Session: "upload"})
		go func() { _, _ = s.Resume(t.Context()) }()
		synctest.Wait()
		send(t, s, "four")
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"four"})
	})
}

func TestSenderNumbersThatWereSettledBeforeTheClaimAreNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, only(map[int]plan{2: {cut: true}}))
		server.settle("upload", 1, 3, 5, 6, 7, 8)
		s := newSender(t, client, flowclient.Options{Session: "upload"})
		if next, err := s.Resume(t.Context()); next != 4 || err != nil {
			t.Fatalf("Resume() = %d, %v", next, err)
		}
		send(t, s, "four")
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		send(t, s, "five", "six", "seven", "eight", "nine")
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"four", "nine"})
		check(t, "settled", s.Stats().Settled, 6)
		check(t, "received last", server.seen()[3].received, []string{"nine"})
	})
}

// A claim whose answer was lost is made again, and finds the session known: by itself.
func TestSenderLostClaimIsMadeAgain(t *testing.T) {
	for _, name := range []string{"", "upload"} {
		synctest.Test(t, func(t *testing.T) {
			server, client := serve(t, only(map[int]plan{1: {holdHeader: true, noAnswer: true}}))
			s := newSender(t, client, flowclient.Options{Session: name})
			send(t, s, "a", "b")
			mustClose(t, s)
			check(t, "ran", server.hasRun(), []string{"a", "b"})
			check(t, "begun", begun(server), []time.Duration{0, 10*second + 100*ms})
			check(t, "epoch", s.Stats().Epoch, 2)
		})
	}
}

func TestSenderAckLostAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, only(map[int]plan{1: {cut: true}}))
		s := newSender(t, client, flowclient.Options{})
		send(t, s, "a", "b", "c")
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"a", "b", "c"})
		seen := server.seen()
		check(t, "streams", len(seen), 2)
		check(t, "the second stream carried", seen[1].received, []string(nil))
		check(t, "begun", begun(server), []time.Duration{0, 100 * ms})
		check(t, "half-closed", seen[1].halfClosed, 100*ms)
		check(t, "resent", s.Stats().Resent, 0)
	})
}

func TestSenderResendsFromTheFirstThatIsNotCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var server *sessionServer
		server, client := serve(t, func(n int) plan {
			if n == 1 {
				return plan{endAfter: 3, end: status.Error(codes.Unavailable, "a proxy"), hole: map[uint64]bool{2: true},
					trailer: func(md metadata.MD) { // a proxy knows nothing of sessions
						for k := range md {
							delete(md, k)
						}
					}}
			}
			return plan{}
		})
		s := newSender(t, client, flowclient.Options{})
		send(t, s, "a", "b", "c", "d")
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"a", "c", "b", "d"})
		check(t, "received again", server.seen()[1].received, []string{"a", "b", "c", "d"}) // "a" was not known to be settled
		if st := s.Stats(); st.Resent < 3 || st.Resent > 4 {
			t.Errorf("%+v", st)
		}
	})
}

// What the header says is settled is sent again if it is little, since the stream's numbers follow each other.
func TestSenderSettledAheadOfALotIsNotSentAgain(t *testing.T) {
	for _, c := range []struct {
		size    int
		streams int
		again   int
	}{{10 << 10, 2, 7}, {15 << 10, 3, 0}} {
		t.Run(fmt.Sprint(c.size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, client := serve(t, only(map[int]plan{1: {endAfter: 5, end: status.Error(codes.Unavailable, "a proxy"),
					trailer: func(md metadata.MD) {
						for k := range md {
							delete(md, k)
						}
					}}}))
				s := newSender(t, client, flowclient.Options{})
				var values []string
				for i := range 7 {
					values = append(values, fmt.Sprint(i)+strings.Repeat("x", c.size-10))
				}
				send(t, s, values...)
				mustClose(t, s)
				if !slices.Equal(server.hasRun(), values) {
					t.Error("not each ran once, in order")
				}
				seen := server.seen()
				check(t, "streams", len(seen), c.streams)
				check(t, "received by the second", len(seen[1].received), c.again)
				if c.streams == 3 {
					check(t, "start of the third", seen[2].start+seen[2].epoch, "61")
					check(t, "begun", begun(server), []time.Duration{0, 100 * ms, 100 * ms})
				}
			})
		})
	}
}

func TestSenderEndsWhenAnAnswerCantBeTrue(t *testing.T) {
	set := func(key, value string) func(metadata.MD) { return func(md metadata.MD) { md.Set(key, value) } }
	both := func(fs ...func(metadata.MD)) func(metadata.MD) {
		return func(md metadata.MD) {
			for _, f := range fs {
				f(md)
			}
		}
	}
	for _, c := range []struct {
		name  string
		plans map[int]plan
		says  string
	}{
		{"OverAck in the trailers", map[int]plan{1: {trailer: set("flow-committed", "3")}}, "flow-committed is 3, above what was sent, which is 2"},
		{"OverAck in the header", map[int]plan{1: {header: set("flow-committed", "1")}}, "flow-committed is 1, above what was sent, which is 0"},
		{"BackwardAck in the trailers", map[int]plan{2: {trailer: set("flow-committed", "1")}}, "flow-committed is 1, below flow-start - 1, which is 2"},
		{"BackwardAck in the header", map[int]plan{2: {header: set("flow-committed", "0")}}, "flow-committed is 0, below flow-start - 1, which is 2"},
		{"another epoch in the header", map[int]plan{2: {header: set("flow-epoch", "9")}}, "flow-epoch is 9, the stream's is 1"},
		{"another epoch in the trailers", map[int]plan{1: {trailer: set("flow-epoch", "9")}}, "flow-epoch is 9, the stream's is 1"},
		{"epoch 0", map[int]plan{1: {header: set("flow-epoch", "0")}}, `flow-epoch ["0"]`},
		{"two epochs", map[int]plan{1: {header: func(md metadata.MD) { md.Append("flow-epoch", "1") }}}, `flow-epoch ["1" "1"]`},
		{"no number", map[int]plan{1: {trailer: set("flow-committed", "two")}}, "malformed flow-committed"},
		{"malformed progress", map[int]plan{1: {trailer: set("flow-progress-bin", "\xff")}}, "malformed flow-committed, or flow-progress-bin"},
		{"progress that is not its committed", map[int]plan{1: {trailer: both(set("flow-committed", "1"), set("flow-progress-bin", "\x02"))}}, "malformed flow-committed, or flow-progress-bin"},
		{"a failed message that was not sent", map[int]plan{1: {endAfter: 1, end: status.Error(codes.Aborted, "x"), trailer: set("flow-failed", "9")}}, "flow-failed is 9, which was not sent"},
		{"flow-failed is no number", map[int]plan{1: {end: status.Error(codes.Aborted, "x"), trailer: set("flow-failed", "x")}}, `flow-failed ["x"]`},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, client := serve(t, func(n int) plan {
					p := c.plans[n]
					p.headerTime = ms
					return p
				})
				s := newSender(t, client, flowclient.Options{})
				send(t, s, "a", "b")
				if c.plans[2].header != nil || c.plans[2].trailer != nil {
					if err := s.Flush(t.Context()); err != nil {
						t.Fatal(err)
					}
					send(t, s, "c")
				}
				if err := ended(t, s); !strings.HasPrefix(err.Error(), "flowclient: the server's answer makes no sense: "+c.says) {
					t.Errorf("the Sender ended with %v", err)
				}
			})
		})
	}
}

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

func TestSenderAgeIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, nil)
		s := newSender(t, client, flowclient.Options{})
		values := numbered("m", 12)
		for _, v := range values {
			send(t, s, v)
			time.Sleep(second)
		}
		mustClose(t, s)
		check(t, "ran", server.hasRun(), values)
		var halfClosed []time.Duration
		for _, st := range server.seen() {
			halfClosed = append(halfClosed, st.halfClosed)
		}
		check(t, "begun", begun(server), []time.Duration{0, 5 * second, 10 * second})
		check(t, "half-closed", halfClosed, []time.Duration{5 * second, 10 * second, 12 * second})
	})
}

// The age of a connection is no failure either: GOAWAY is followed by the next stream at once, or after the first
// backoff if no header or answer has told of progress since the last one.
func TestSenderGoAwayIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, nil, grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: 2 * second, MaxConnectionAgeGrace: second, // of which gRPC adds or takes a tenth
		}))
		s := newSender(t, client, flowclient.Options{MaxStreamAge: time.Hour})
		values := numbered("m", 1000)
		for _, v := range values {
			send(t, s, v)
			time.Sleep(10 * ms)
		}
		mustClose(t, s)
		check(t, "ran", server.hasRun(), values)
		seen := server.seen()
		if len(seen) < 3 {
			t.Errorf("only %d streams", len(seen))
		}
		for i, st := range seen[1:] {
			if gap := st.begun - seen[i].ended; gap > 20*ms && i == 0 || gap > 120*ms {
				t.Errorf("stream %d began %v after the end of the one before", i+2, gap)
			}
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

func TestSenderPermitsComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, func(n int) plan {
			switch n % 4 {
			case 0:
				return plan{cut: true}
			case 1:
				return plan{refuse: status.Error(codes.Unauthenticated, "the token has run out")}
			case 2:
				return plan{endAfter: 2, endOK: true}
			}
			return plan{}
		})
		const bound = 10
		s := newSender(t, client, flowclient.Options{MaxBuffered: bound})
		values := numbered("m", 100)
		for _, v := range values {
			send(t, s, v)
			if st := s.Stats(); st.Buffered > bound || st.Taken-st.Settled > bound {
				t.Fatalf("%+v", st)
			}
			checkStats(t, s)
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		check(t, "ran", server.hasRun(), values)
		check(t, "buffered", s.Stats().Buffered, 0)
		before := time.Now()
		server.plan = always(plan{noAnswer: true})
		send(t, s, numbered("n", bound)...) // all places are there
		check(t, "time", time.Since(before), 0)
		ctx, cancel := context.WithTimeout(t.Context(), second)
		defer cancel()
		if err := s.Send(ctx, requestOf("one too many")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send() = %v", err)
		}
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

func TestSenderUnsettledIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := serve(t, func(n int) plan {
			if n == 1 {
				return plan{hole: map[uint64]bool{3: true, 5: true}}
			}
			return plan{silent: true}
		})
		s := newSender(t, client, flowclient.Options{})
		send(t, s, numbered("m", 7)...)
		ctx, cancel := context.WithTimeout(t.Context(), second)
		defer cancel()
		if err := s.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Flush() = %v", err)
		}
		check(t, "unsettled", unsettled(s), []string{"3=m3", "5=m5"})
		send(t, s, "m8")
		ctx, cancel = context.WithTimeout(t.Context(), second)
		defer cancel()
		err := s.Close(ctx)
		var u *flowclient.UnsettledError
		if !errors.As(err, &u) || u.Seq != 3 || u.Count != 3 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close() = %v", err)
		}
		check(t, "text", err.Error(), "flowclient: 3 messages are not known to be settled, the first is 3: flowclient: closed before all was settled: context deadline exceeded")
		check(t, "unsettled", unsettled(s), []string{"3=m3", "5=m5", "8=m8"})
		if again := s.Close(t.Context()); again.Error() != err.Error() {
			t.Errorf("Close() = %v the second time", again)
		}
		if err := s.Send(t.Context(), requestOf("x")); err != flowclient.ErrClosed {
			t.Errorf("Send() = %v", err)
		}
		if _, err := s.Resume(t.Context()); err != flowclient.ErrClosed {
			t.Errorf("Resume() = %v", err)
		}
		st := s.Stats()
		check(t, "stats", fmt.Sprint(st.Taken, st.Settled, st.Skipped, st.Err), "8 5 0 flowclient: closed before all was settled: context deadline exceeded")
		for range s.Unsettled() {
			break
		}
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

func TestSenderSkipOfAMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []string
		server, client := serve(t, always(plan{fail: map[uint64]error{3: status.Error(codes.InvalidArgument, "poison")}}))
		s := newSender(t, client, flowclient.Options{OnFailure: func(f *flow.Failure) flowclient.Action {
			seen = append(seen, fmt.Sprintln(f.Seq, valueOf(f.Value.(*request)), f.Kind, status.Code(f.Err)))
			return flowclient.Skip
		}})
		send(t, s, numbered("m", 5)...)
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"m1", "m2", "m4", "m5"})
		check(t, "failures", seen, []string{"3 m3 FailureHandlerError InvalidArgument\n"})
		check(t, "begun", begun(server), []time.Duration{0, 0})
		check(t, "start, skip", server.seen()[1].start+","+server.seen()[1].skip, "3,3")
		check(t, "unsettled", unsettled(s), []string(nil))
		st := s.Stats()
		check(t, "stats", fmt.Sprint(st.Taken, st.Settled, st.Skipped), "5 4 1")
	})
}

func TestSenderSkippedIsSentUntilItIsCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, func(n int) plan {
			p := plan{fail: map[uint64]error{4: status.Error(codes.InvalidArgument, "poison")}}
			if n <= 3 {
				p.hole = map[uint64]bool{1: true}
			}
			return p
		})
		s := newSender(t, client, flowclient.Options{OnFailure: func(*flow.Failure) flowclient.Action { return flowclient.Skip }})
		send(t, s, numbered("m", 5)...)
		mustClose(t, s)
		var skips []string
		for _, st := range server.seen() {
			skips = append(skips, st.start+"/"+st.skip)
		}
		check(t, "skips", skips, []string{"1/", "1/4", "1/4", "1/4"})
		check(t, "ran", server.hasRun(), []string{"m2", "m3", "m5", "m1"})
	})
}

func TestSenderThe65thSkipAtOnceIsStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fail := map[uint64]error{}
		for n := uint64(2); n < 100; n++ {
			fail[n] = status.Error(codes.InvalidArgument, "poison")
		}
		server, client := serve(t, always(plan{headerTime: ms, hole: map[uint64]bool{1: true}, fail: fail}))
		s := newSender(t, client, flowclient.Options{OnFailure: func(*flow.Failure) flowclient.Action { return flowclient.Skip }})
		send(t, s, numbered("m", 100)...)
		var f *flow.Failure
		if err := ended(t, s); !errors.As(err, &f) || f.Seq != 66 || status.Code(f.Err) != codes.InvalidArgument {
			t.Errorf("the Sender ended with %v", err)
		}
		check(t, "streams", len(server.seen()), 65)
		check(t, "skipped", s.Stats().Skipped, 64)
		check(t, "unsettled", len(unsettled(s)), 36)
	})
}

func TestSenderFailureOfAMessage(t *testing.T) {
	act := func(a flowclient.Action) func(*flow.Failure) flowclient.Action {
		return func(*flow.Failure) flowclient.Action { return a }
	}
	for _, c := range []struct {
		name      string
		code      codes.Code
		onFailure func(*flow.Failure) flowclient.Action
		tries     int // of which the last one succeeds; 0: it stops
	}{
		{"nil, Unavailable", codes.Unavailable, nil, 3},
		{"nil, Aborted", codes.Aborted, nil, 3},
		{"nil, DeadlineExceeded", codes.DeadlineExceeded, nil, 3},
		{"nil, InvalidArgument", codes.InvalidArgument, nil, 0},
		{"nil, Internal", codes.Internal, nil, 0},
		{"nil, Unknown", codes.Unknown, nil, 0},
		{"Retry", codes.InvalidArgument, act(flowclient.Retry), 3},
		{"Stop", codes.Unavailable, act(flowclient.Stop), 0},
		{"an unknown action", codes.Unavailable, act(77), 0},
		{"a panic", codes.Unavailable, func(*flow.Failure) flowclient.Action { panic("mine") }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, client := serve(t, func(n int) plan {
					if n == c.tries {
						return plan{}
					}
					return plan{headerTime: ms, fail: map[uint64]error{2: status.Error(c.code, "failed")}}
				})
				s := newSender(t, client, flowclient.Options{OnFailure: c.onFailure})
				send(t, s, "a", "b", "c")
				if c.tries > 0 {
					mustClose(t, s)
					check(t, "ran", server.hasRun(), []string{"a", "b", "c"})
					check(t, "begun", begun(server), []time.Duration{0, 101 * ms, 302 * ms})
					return
				}
				err := ended(t, s)
				var f *flow.Failure
				switch {
				case c.name == "a panic":
					check(t, "error", err.Error(), "flowclient: panic in Options.OnFailure: mine")
				case !errors.As(err, &f) || f.Seq != 2 || status.Code(f.Err) != c.code:
					t.Errorf("the Sender ended with %v", err)
				}
				check(t, "unsettled", unsettled(s), []string{"2=b", "3=c"})
			})
		})
	}
}

// A message that the server skipped itself, whose stream ended all the same, is not asked about.
func TestSenderFailureThatTheServerSettledIsNotAskedAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, only(map[int]plan{1: {end: status.Error(codes.Internal, "a panic"),
			trailer: func(md metadata.MD) { md.Set("flow-failed", "2") }}}))
		s := newSender(t, client, flowclient.Options{OnFailure: func(f *flow.Failure) flowclient.Action {
			t.Errorf("asked about %d", f.Seq)
			return flowclient.Stop
		}})
		send(t, s, "a", "b")
		mustClose(t, s)
		check(t, "streams", len(server.seen()), 1)
	})
}

// A server that has lost its state may fail at a message that it had settled: that one need not run again.
func TestSenderFailureOfWhatWasSettledIsSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var server *sessionServer
		server, client := serve(t, func(n int) plan {
			switch n {
			case 1:
				return plan{hole: map[uint64]bool{1: true}}
			case 2:
				server.mu.Lock()
				for _, st := range server.sessions {
					st.settled, st.last = map[uint64]bool{}, 0
				}
				server.mu.Unlock()
				return plan{fail: map[uint64]error{2: status.Error(codes.NotFound, "it was done")}, trailer: func(md metadata.MD) {
					md.Set("flow-committed", "0")
					md.Delete("flow-progress-bin")
				}}
			}
			return plan{}
		})
		s := newSender(t, client, flowclient.Options{OnFailure: func(f *flow.Failure) flowclient.Action {
			t.Errorf("asked about %d", f.Seq)
			return flowclient.Stop
		}})
		send(t, s, "a", "b")
		mustClose(t, s)
		check(t, "settled, skipped", fmt.Sprint(s.Stats().Settled, s.Stats().Skipped), "2 0")
	})
}

func TestSenderIdleHasNoTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, only(map[int]plan{1: {refuse: status.Error(codes.Unavailable, "down")}}))
		s := newSender(t, client, flowclient.Options{GiveUpAfter: time.Hour})
		check(t, "the timer runs before the first message", s.GiveUpTimerRuns(), false)
		for range 3 {
			send(t, s, "a")
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			check(t, "the timer runs while nothing is buffered", s.GiveUpTimerRuns(), false)
		}
		streams := len(server.seen())
		time.Sleep(1000 * time.Hour)
		check(t, "streams opened while nothing is buffered", len(server.seen()), streams)
		check(t, "error", s.Stats().Err, error(nil))
		send(t, s, "b")
		mustClose(t, s)
	})
}

func TestSenderTruncatedOKIsResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, func(n int) plan {
			switch {
			case n <= 3:
				return plan{endAfter: 2, endOK: true}
			case n <= 6:
				return plan{hole: map[uint64]bool{7: true, 8: true, 9: true, 10: true}} // OK, which covers nothing
			}
			return plan{}
		})
		s := newSender(t, client, flowclient.Options{})
		values := numbered("m", 10)
		send(t, s, values...)
		mustClose(t, s)
		check(t, "ran", server.hasRun(), values)
		check(t, "begun", begun(server), []time.Duration{0, 0, 0, 0, 100 * ms, 300 * ms, 700 * ms})
	})
}

func TestSenderCloseWithNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, nil)
		s := newSender(t, client, flowclient.Options{})
		if err := s.Flush(t.Context()); err != nil {
			t.Errorf("Flush() = %v", err)
		}
		mustClose(t, s)
		mustClose(t, s)
		check(t, "streams", len(server.seen()), 0)
		check(t, "stats", s.Stats(), flowclient.Stats{})
		if err := s.Send(t.Context(), requestOf("a")); err != flowclient.ErrClosed {
			t.Errorf("Send() = %v", err)
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Errorf("Flush() = %v", err)
		}
	})
}

func TestSenderEndsWithoutSessions(t *testing.T) {
	for name, p := range map[string]plan{
		"a header without flow-epoch": {header: func(md metadata.MD) { md.Delete("flow-epoch") }},
		"OK without flow-epoch":       {plain: true},
		"Unimplemented":               {refuse: status.Error(codes.Unimplemented, "no such method")},
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
					if p.plain && !noHeader { // such a server sends no header before it has read a message
						check(t, "time", time.Since(server.began), 10*second)
					}
				})
			})
		}
	}
}

func TestSenderResumeEndsWithoutSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := serve(t, always(plan{plain: true}))
		s := newSender(t, client, flowclient.Options{Session: "upload"})
		if _, err := s.Resume(t.Context()); !errors.Is(err, flowclient.ErrNoSessions) {
			t.Errorf("Resume() = %v", err)
		}
	})
}

func TestSenderDeposedByAnotherClaimEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, nil)
		first := newSender(t, client, flowclient.Options{Session: "upload"})
		if _, err := first.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		send(t, first, "a")
		if err := first.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		second := newSender(t, client, flowclient.Options{Session: "upload"})
		if next, err := second.Resume(t.Context()); next != 2 || err != nil {
			t.Fatalf("Resume() = %d, %v", next, err)
		}
		send(t, first, "deposed")
		if err := ended(t, first); !errors.Is(err, flow.ErrSessionMoved) {
			t.Errorf("the Sender ended with %v", err)
		}
		send(t, second, "b")
		mustClose(t, second)
		check(t, "ran", server.hasRun(), []string{"a", "b"})
	})
}

func TestSenderGoesOnAfterItsOwnNextStreamEndedTheEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, only(map[int]plan{1: {end: moved(codes.Aborted, "1"), endAfter: 1}}))
		s := newSender(t, client, flowclient.Options{})
		send(t, s, "a", "b")
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"a", "b"})
		check(t, "begun", begun(server), []time.Duration{0, 0})
	})
}

func TestSenderHeaderTimeoutIsFollowedByABackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, only(map[int]plan{1: {silent: true}, 2: {silent: true}}))
		s := newSender(t, client, flowclient.Options{})
		send(t, s, "a")
		mustClose(t, s)
		check(t, "begun", begun(server), []time.Duration{0, 10*second + 100*ms, 20*second + 300*ms})
		check(t, "received without a header", server.seen()[0].received, []string(nil))
	})
}

// A proxy that holds the header back costs time and nothing else.
func TestSenderHeldHeaderCostsItsTimeoutOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, always(plan{holdHeader: true}))
		s := newSender(t, client, flowclient.Options{})
		for _, v := range numbered("m", 3) {
			send(t, s, v)
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		mustClose(t, s)
		check(t, "ran", server.hasRun(), numbered("m", 3))
		check(t, "begun", begun(server), []time.Duration{0, 10 * second, 10 * second, 10 * second})
	})
}

func TestSenderNoHeaderSendsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, always(plan{holdHeader: true, handlerTime: second}))
		s := newSender(t, client, flowclient.Options{NoHeader: true})
		values := numbered("m", 20)
		send(t, s, values...)
		mustClose(t, s)
		check(t, "ran", server.hasRun(), values)
		check(t, "streams", len(server.seen()), 1)
		check(t, "time", server.seen()[0].ended, 20*second)
	})
}

// Behind a proxy that holds the header back a claim is lost with its connection; the next one finds its own messages.
func TestSenderNoHeaderSurvivesALostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, func(n int) plan { return plan{holdHeader: true, cut: n == 1} })
		s := newSender(t, client, flowclient.Options{NoHeader: true})
		values := numbered("m", 20)
		send(t, s, values...)
		mustClose(t, s)
		check(t, "ran", server.hasRun(), values)
		check(t, "epochs", server.seen()[1].epoch+fmt.Sprint(s.Stats().Epoch), "2")
		check(t, "resent", s.Stats().Resent, 20)
	})
}

func TestSenderLostIsCountedAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, nil)
		s := newSender(t, client, flowclient.Options{Session: "upload"})
		send(t, s, "a", "b")
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		server.forget("upload")
		send(t, s, "c")
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"a", "b", "c"})
		check(t, "lost", s.Stats().Lost, 1)
	})
}

func TestSenderFlushHalfClosesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, nil)
		s := newSender(t, client, flowclient.Options{MaxStreamAge: time.Hour})
		for _, v := range numbered("m", 3) {
			send(t, s, v)
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		check(t, "time", time.Since(server.began), 0)
		check(t, "streams", len(server.seen()), 3)
	})
}

func TestSenderFlushDoesNotWaitForWhatComesAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, always(plan{handlerTime: second}))
		s := newSender(t, client, flowclient.Options{})
		send(t, s, "a", "b")
		go func() {
			time.Sleep(second / 2)
			send(t, s, numbered("late", 100)...)
		}()
		time.Sleep(second / 4)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		check(t, "time", time.Since(server.began), 2*second)
	})
}

func TestSenderBoundsHoldAtEveryMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, always(plan{handlerTime: ms}))
		const count, size = 20, 10_000
		s := newSender(t, client, flowclient.Options{MaxBuffered: count, MaxBufferedBytes: size})
		stop := make(chan struct{})
		var most flowclient.Stats
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			for {
				st := s.Stats()
				most.Buffered, most.BufferedBytes = max(most.Buffered, st.Buffered), max(most.BufferedBytes, st.BufferedBytes)
				if st.Buffered > count || st.BufferedBytes > size && st.Buffered > 1 {
					t.Errorf("%+v", st)
				}
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Microsecond):
				}
			}
		}()
		var values []string
		for i := range 300 {
			n := []int{10, 700, 4_900, 12_000}[i%37%4]
			values = append(values, fmt.Sprint(i, strings.Repeat("x", n)))
		}
		send(t, s, values...)
		mustClose(t, s)
		close(stop)
		<-watched
		if !slices.Equal(server.hasRun(), values) {
			t.Error("not each ran once, in order")
		}
		if most.Buffered < 3 || most.BufferedBytes < size {
			t.Errorf("the bounds were not reached: %+v", most)
		}
	})
}

// A call of Send that waits for a place is served by the next answer, and does not wait for the stream to become old.
func TestSenderBlockedSendHalfCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, nil)
		s := newSender(t, client, flowclient.Options{MaxBufferedBytes: 1000})
		send(t, s, strings.Repeat("a", 400))
		synctest.Wait()
		send(t, s, strings.Repeat("b", 800))
		check(t, "time", time.Since(server.began), 0)
		mustClose(t, s)
	})
}

func TestSenderHalfOfABoundHalfCloses(t *testing.T) {
	for _, o := range []flowclient.Options{{MaxBuffered: 10}, {MaxBufferedBytes: 10 * 105}} {
		synctest.Test(t, func(t *testing.T) {
			server, client := serve(t, always(plan{answerTime: second}))
			s := newSender(t, client, o)
			var values []string
			for i := range 10 {
				values = append(values, fmt.Sprint(i, strings.Repeat("x", 100)))
			}
			send(t, s, values...)
			check(t, "time", time.Since(server.began), 0)
			time.Sleep(second / 2)
			check(t, "received", len(server.seen()[0].received), 5)
			check(t, "half-closed", server.seen()[0].halfClosed, 0)
			mustClose(t, s)
			check(t, "streams", len(server.seen()), 2)
		})
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

func TestSenderOnReplySeesEachAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var replies []int32
		_, client := serve(t, only(map[int]plan{2: {cut: true}}))
		s := newSender(t, client, flowclient.Options{OnReply: func(r any) {
			replies = append(replies, r.(*reply).GetAggregatedPayloadSize())
		}})
		for _, batch := range [][]string{{"a"}, {"b", "c"}, {"d", "e", "f"}} {
			send(t, s, batch...)
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		mustClose(t, s)
		check(t, "replies", replies, []int32{1, 0, 3})
	})
}

func TestSenderCloseStopsAtOnce(t *testing.T) {
	for name, p := range map[string]plan{
		"no header": {silent: true}, "no answer": {noAnswer: true}, "backoff": {refuse: status.Error(codes.Unavailable, "down")},
		"no reading": {readsNone: true}, "RetryInfo": {refuse: retryInfo(codes.Unavailable, time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, client := serve(t, always(p))
				s := newSender(t, client, flowclient.Options{})
				for range 5 {
					send(t, s, strings.Repeat("x", 1<<17))
				}
				time.Sleep(second)
				ctx, cancel := context.WithTimeout(t.Context(), 15*ms)
				defer cancel()
				var u *flowclient.UnsettledError
				if err := s.Close(ctx); !errors.As(err, &u) || u.Seq != 1 || u.Count != 5 || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Close() = %v", err)
				}
				check(t, "time", time.Since(server.began), second+15*ms)
			})
		})
	}
}

func TestSenderCloseReleasesWaitingCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := serve(t, always(plan{silent: true}))
		s := newSender(t, client, flowclient.Options{MaxBuffered: 1})
		send(t, s, "a")
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := s.Send(t.Context(), requestOf("b")); err != flowclient.ErrClosed {
					t.Errorf("Send() = %v", err)
				}
			})
		}
		synctest.Wait()
		wg.Go(func() {
			if _, err := s.Resume(t.Context()); err != flowclient.ErrClosed {
				t.Errorf("Resume() = %v", err)
			}
		})
		wg.Go(func() {
			if err := s.Flush(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Flush() = %v", err)
			}
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), second)
		defer cancel()
		for range 2 {
			wg.Go(func() {
				var u *flowclient.UnsettledError
				if err := s.Close(ctx); !errors.As(err, &u) || u.Count != 1 {
					t.Errorf("Close() = %v", err)
				}
			})
		}
		wg.Wait()
	})
}

func TestSenderSendRefusesWhatCantBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := serve(t, nil)
		s := newSender(t, client, flowclient.Options{MaxMessageBytes: 100})
		if err := s.Send(t.Context(), nil); err == nil {
			t.Error("Send(nil) = nil")
		}
		err := s.Send(t.Context(), requestOf(strings.Repeat("x", 97)))
		check(t, "error", fmt.Sprint(err), "flowclient: a message must not be larger than Options.MaxMessageBytes, which is 100 (got 101 bytes)")
		send(t, s, strings.Repeat("x", 96))
		mustClose(t, s)
		check(t, "taken", s.Stats().Taken, 1)
	})
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

func TestSenderOptionsThatMeanNothingAreRefused(t *testing.T) {
	open := func(context.Context, ...grpc.CallOption) (grpc.ClientStreamingClient[request, reply], error) {
		return nil, nil
	}
	for _, c := range []struct {
		o    flowclient.Options
		says string
	}{
		{flowclient.Options{Session: "a b"}, `flowclient: Options.Session must consist of bytes from '!' to '~' (got "a b")`},
		{flowclient.Options{Session: "é"}, `flowclient: Options.Session must consist of bytes from '!' to '~' (got "é")`},
		{flowclient.Options{Session: strings.Repeat("x", 129)}, "flowclient: Options.Session must be at most 128 bytes long (got 129 bytes)"},
		{flowclient.Options{MaxBuffered: -1}, "flowclient: Options.MaxBuffered must not be negative (got -1)"},
		{flowclient.Options{MaxBufferedBytes: -1}, "flowclient: Options.MaxBufferedBytes must not be negative (got -1)"},
		{flowclient.Options{MaxMessageBytes: -1}, "flowclient: Options.MaxMessageBytes must not be negative (got -1)"},
		{flowclient.Options{MaxStreamAge: -1}, "flowclient: Options.MaxStreamAge must not be negative (got -1ns)"},
		{flowclient.Options{AnswerTimeout: -1}, "flowclient: Options.AnswerTimeout must not be negative (got -1ns)"},
		{flowclient.Options{HeaderTimeout: -1}, "flowclient: Options.HeaderTimeout must not be negative (got -1ns)"},
		{flowclient.Options{Backoff: -1}, "flowclient: Options.Backoff must not be negative (got -1ns)"},
		{flowclient.Options{MaxBackoff: -1}, "flowclient: Options.MaxBackoff must not be negative (got -1ns)"},
		{flowclient.Options{GiveUpAfter: -1}, "flowclient: Options.GiveUpAfter must not be negative (got -1ns)"},
		{flowclient.Options{Backoff: second, MaxBackoff: ms}, "flowclient: Options.MaxBackoff must not be below Backoff, which is 1s (got 1ms)"},
		{flowclient.Options{MaxBackoff: ms}, "flowclient: Options.MaxBackoff must not be below Backoff, which is 100ms (got 1ms)"},
	} {
		if s, err := flowclient.New(open, c.o); s != nil || err == nil || err.Error() != c.says {
			t.Errorf("New() = %v, want %s", err, c.says)
		}
	}
	if _, err := flowclient.New[request, reply](nil, flowclient.Options{}); err == nil || err.Error() != "flowclient: open must not be nil" {
		t.Errorf("New(nil) = %v", err)
	}
	sizeless := func(context.Context, ...grpc.CallOption) (grpc.ClientStreamingClient[struct{}, reply], error) {
		return nil, nil
	}
	for _, o := range []flowclient.Options{{MaxBufferedBytes: 1}, {MaxMessageBytes: 1}} {
		if _, err := flowclient.New(sizeless, o); err == nil || !strings.Contains(err.Error(), "needs messages that have a size") {
			t.Errorf("New() = %v", err)
		}
	}
	if s, err := flowclient.New(open, flowclient.Options{Backoff: time.Minute, Session: strings.Repeat("~", 128)}); err != nil {
		t.Errorf("New() = %v", err)
	} else if err := s.Close(t.Context()); err != nil {
		t.Errorf("Close() = %v", err)
	}
}

// The largest options there are overflow nowhere.
func TestSenderLargestOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, only(map[int]plan{1: {refuse: retryInfo(codes.Unavailable, second)}, 2: {endAfter: 1, endOK: true}}))
		s := newSender(t, client, flowclient.Options{MaxBuffered: math.MaxInt, MaxBufferedBytes: math.MaxInt64, MaxMessageBytes: math.MaxInt,
			MaxStreamAge: math.MaxInt64, AnswerTimeout: math.MaxInt64, HeaderTimeout: math.MaxInt64, MaxBackoff: math.MaxInt64, GiveUpAfter: math.MaxInt64})
		send(t, s, "a", "b", "c")
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"a", "b", "c"})
	})
}

// Many callers, and a server that does all that it may: each message is settled once, and those of a caller in order.
func TestSenderUnderManyCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, func(n int) plan {
			switch n % 5 {
			case 0:
				return plan{cut: true}
			case 1:
				return plan{endAfter: 7, endOK: true}
			case 2:
				return plan{endAfter: 3, end: status.Error(codes.Unavailable, "x")}
			case 3:
				return plan{refuse: retryInfo(codes.Unavailable, ms)}
			}
			return plan{}
		})
		s := newSender(t, client, flowclient.Options{MaxBuffered: 50})
		var wg sync.WaitGroup
		var count atomic.Int64
		for c := range 8 {
			wg.Go(func() {
				for i := range 200 {
					if err := s.Send(t.Context(), requestOf(fmt.Sprintf("%c%d", 'a'+c, i))); err != nil {
						t.Error(err)
						return
					}
					count.Add(1)
					if i%50 == 0 {
						if err := s.Flush(t.Context()); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		mustClose(t, s)
		next := map[byte]int{}
		for _, v := range server.hasRun() {
			if want := fmt.Sprintf("%c%d", v[0], next[v[0]]); v != want {
				t.Fatalf("%s ran, want %s", v, want)
			}
			next[v[0]]++
		}
		check(t, "count", len(server.hasRun()), int(count.Load()))
		check(t, "settled", s.Stats().Settled, uint64(count.Load()))
	})
}
