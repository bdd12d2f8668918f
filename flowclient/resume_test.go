package flowclient_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowclient"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

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

func TestSenderUnsettledKnowsWhatWasSettledBeforeTheClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, func(n int) plan { return plan{silent: n > 1} })
		server.settle("upload", 1, 3, 5)
		s := newSender(t, client, flowclient.Options{Session: "upload"})
		if next, err := s.Resume(t.Context()); next != 4 || err != nil {
			t.Fatalf("Resume() = %d, %v", next, err)
		}
		send(t, s, "four", "five", "six")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Close(ctx); !errors.Is(err, context.Canceled) || !errors.Is(err, flowclient.ErrClosed) {
			t.Errorf("Close() = %v", err)
		}
		check(t, "unsettled", unsettled(s), []string{"4=four", "6=six"})
	})
}

// The answer to a stream that another claim has ended may say that claim's epoch.
func TestSenderDeposedInTheMiddleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := serve(t, always(plan{headerTime: ms, endAfter: 1, end: moved(codes.FailedPrecondition, "9"), trailer: set("flow-epoch", "9")}))
		s := newSender(t, client, flowclient.Options{})
		send(t, s, "a", "b")
		if err := ended(t, s); !errors.Is(err, flow.ErrSessionMoved) {
			t.Errorf("the Sender ended with %v", err)
		}
	})
}
