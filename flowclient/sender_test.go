package flowclient_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow/flowclient"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
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

// A call of Send that has stopped waiting is no reason to half-close any more.
func TestSenderCancelledSendLeavesTheStreamOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, always(plan{headerTime: 2 * second}))
		s := newSender(t, client, flowclient.Options{MaxBuffered: 4, NoHeader: true})
		send(t, s, numbered("m", 4)...)
		ctx, cancel := context.WithTimeout(t.Context(), second)
		defer cancel()
		if err := s.Send(ctx, requestOf("cancelled")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send() = %v", err)
		}
		time.Sleep(10 * second) // all is settled
		before := len(server.seen())
		send(t, s, "n1")
		time.Sleep(3 * second)
		check(t, "half-closed", server.seen()[before].halfClosed, 0)
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
			check(t, "begun", begun(server), []time.Duration{0, second})
		})
	}
}
