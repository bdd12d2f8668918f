package flowclient_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow/flowclient"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

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
		check(t, "text", err.Error(), "flowclient: not known to be settled: 3 of the messages, from 3 on: flowclient: closed before all was settled: context deadline exceeded")
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
		began := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := s.Send(t.Context(), requestOf("b")); err != flowclient.ErrClosed || time.Since(began) != 0 {
					t.Errorf("Send() = %v after %v", err, time.Since(began))
				}
			})
		}
		synctest.Wait()
		wg.Go(func() {
			if _, err := s.Resume(t.Context()); err != flowclient.ErrClosed || time.Since(began) != 0 {
				t.Errorf("Resume() = %v after %v", err, time.Since(began))
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
