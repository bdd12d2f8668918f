package flowclient_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow/flowclient"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

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

// set sets a key of a header, or of trailers.
func set(key, value string) func(metadata.MD) { return func(md metadata.MD) { md.Set(key, value) } }

// checkDisbelieved checks that a Sender that sends two messages, and a third on a second stream if that is planned, ends
// because of an answer that makes no sense.
func checkDisbelieved(t *testing.T, says string, plans map[int]plan) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		_, client := serve(t, func(n int) plan {
			p := plans[n]
			p.headerTime = ms // not before all is sent
			return p
		})
		s := newSender(t, client, flowclient.Options{})
		send(t, s, "a", "b")
		if plans[2].header != nil || plans[2].trailer != nil {
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			send(t, s, "c")
		}
		if err := ended(t, s); !strings.HasPrefix(err.Error(), "flowclient: the server's answer makes no sense: "+says) {
			t.Errorf("the Sender ended with %v, want %s", err, says)
		}
	})
}

func TestSenderOverAck(t *testing.T) {
	checkDisbelieved(t, "flow-committed is 3, above what was sent, which is 2", map[int]plan{1: {trailer: set("flow-committed", "3")}})
	checkDisbelieved(t, "flow-committed is 1, above what was sent, which is 0", map[int]plan{1: {header: set("flow-committed", "1")}})
}

func TestSenderBackwardAck(t *testing.T) {
	checkDisbelieved(t, "flow-committed is 1, below flow-start - 1, which is 2", map[int]plan{2: {trailer: set("flow-committed", "1")}})
	checkDisbelieved(t, "flow-committed is 0, below flow-start - 1, which is 2", map[int]plan{2: {header: set("flow-committed", "0")}})
}

func TestSenderAnotherEpoch(t *testing.T) {
	checkDisbelieved(t, "flow-epoch is 9, the stream's is 1", map[int]plan{2: {header: set("flow-epoch", "9")}})
	checkDisbelieved(t, "flow-epoch is 9, the stream's is 1", map[int]plan{1: {trailer: set("flow-epoch", "9")}})
}

func TestSenderMalformedAnswer(t *testing.T) {
	twice := func(md metadata.MD) { md.Append("flow-epoch", "1") }
	disagree := func(md metadata.MD) { md.Set("flow-committed", "1"); md.Set("flow-progress-bin", "\x02") }
	aborted := status.Error(codes.Aborted, "x")
	for says, p := range map[string]plan{
		`flow-epoch ["0"]`:                               {header: set("flow-epoch", "0")},
		`flow-epoch ["-1"]`:                              {header: set("flow-epoch", "-1")},
		`flow-epoch ["1" "1"]`:                           {header: twice},
		"malformed flow-committed, or":                   {trailer: set("flow-committed", "two")},
		"malformed flow-committed, or flow-progress-bin": {trailer: set("flow-progress-bin", "\xff")},
		"malformed flow-committed, or flow-progress":     {trailer: disagree},
		"flow-failed is 9, which was not sent":           {endAfter: 1, end: aborted, trailer: set("flow-failed", "9")},
		`flow-failed ["x"]`:                              {end: aborted, trailer: set("flow-failed", "x")},
	} {
		checkDisbelieved(t, says, map[int]plan{1: p})
	}
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

// A service config's retryPolicy repeats a stream by itself, with the same flow-start: the server knows it all already.
//
// This is in real time: gRPC sleeps through its backoff with the stream's mutex locked, and a bubble's time stands still
// while a goroutine waits for a mutex.
func TestSenderRetryPolicyReplayIsHarmless(t *testing.T) {
	server := startServer(func(n int) plan {
		if n == 1 { // no header has been sent, so gRPC may replay
			return plan{endAfter: 5, end: status.Error(codes.Unavailable, "again"), trailerOnly: true}
		}
		return plan{}
	})
	t.Cleanup(server.stop)
	conn := connect(t, server.dial, grpc.WithDefaultServiceConfig(`{"methodConfig": [{"name": [{}], "retryPolicy": {
		"maxAttempts": 4, "initialBackoff": "0.01s", "maxBackoff": "0.1s", "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]}`))
	s := newSender(t, testpb.NewTestServiceClient(conn), flowclient.Options{NoHeader: true})
	values := numbered("m", 10)
	send(t, s, values...)
	mustClose(t, s)
	check(t, "ran", server.hasRun(), values)
	seen := server.seen()
	check(t, "streams of the server, and of the Sender", fmt.Sprint(len(seen), s.Stats().Streams), "2 1")
	check(t, "starts", seen[0].start+seen[1].start, "11")
	check(t, "received again", seen[1].received, values)
}
