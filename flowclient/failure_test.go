package flowclient_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowclient"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestSenderAgeIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, nil)
		s := newSender(t, client, flowclient.Options{})
		values := numbered("m", 14)
		for _, v := range values {
			send(t, s, v)
			time.Sleep(900 * ms)
		}
		mustClose(t, s)
		check(t, "ran", server.hasRun(), values)
		var halfClosed []time.Duration
		for _, st := range server.seen() {
			halfClosed = append(halfClosed, st.halfClosed)
		}
		check(t, "begun", begun(server), []time.Duration{0, 5400 * ms, 10800 * ms})
		check(t, "half-closed", halfClosed, []time.Duration{5 * second, 10400 * ms, 12600 * ms})
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

func TestSenderSkipOfAMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []string
		server, client := serve(t, always(plan{fail: map[uint64]error{3: status.Error(codes.InvalidArgument, "poison")}}))
		s := newSender(t, client, flowclient.Options{OnFailure: func(f *flow.Failure) flowclient.Action {
			seen = append(seen, fmt.Sprintln(f.Seq, valueOf(f.Value.(*request)), f.Kind, status.Code(f.Err)))
			return flowclient.Skip
		}})
		send(t, s, numbered("m", 5)...)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		send(t, s, "m6")
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"m1", "m2", "m4", "m5", "m6"})
		check(t, "failures", seen, []string{"3 m3 FailureHandlerError InvalidArgument\n"})
		check(t, "begun", begun(server), []time.Duration{0, 0, 0})
		check(t, "start, skip", server.seen()[1].start+","+server.seen()[1].skip, "3,3")
		check(t, "start, skip, when it is committed", server.seen()[2].start+","+server.seen()[2].skip, "6,")
		check(t, "unsettled", unsettled(s), []string(nil))
		st := s.Stats()
		check(t, "stats", fmt.Sprint(st.Taken, st.Settled, st.Skipped), "6 5 1")
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
