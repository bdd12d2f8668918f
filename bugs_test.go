package flow

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Each test here is a bug that was. Those that need to see inside are here; the others are beside their promise, and the
// model's are scripts.

func mustNewInside[T any](t testing.TB, h Handler[T], key OrderingKeyFunc[T], o Options) *Flow[T] {
	t.Helper()
	f, err := New(h, key, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A key that came later waited until an earlier one's lane was empty: the inbox was sorted only when nothing was ready.
func TestAKeyThatComesLaterDoesNotWaitForAnEarlierOnesLane(t *testing.T) {
	for keys := range 3 {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			var waited time.Duration
			f := mustNewInside(t, func(_ context.Context, m Message[string]) error {
				if m.Key == "late" {
					waited = time.Since(start)
				}
				time.Sleep(time.Millisecond)
				return nil
			}, func(s string) string { return s }, Options{
				Ordering:     OrderingOptions{Mode: OrderingKeyedFIFO},
				Backpressure: BackpressureOptions{Capacity: 1},
			})
			n := 0
			_, err := f.Run(t.Context(), func() (string, error) {
				n++
				switch {
				case n <= 500:
					return string(rune('a' + n%(keys+1))), nil
				case n == 501:
					time.Sleep(5 * time.Millisecond)
					return "late", nil
				}
				return "", io.EOF
			})
			if err != nil {
				t.Fatal(err)
			}
			// Two rounds of the keys that there are.
			if limit := 5*time.Millisecond + time.Duration(2*keys+3)*time.Millisecond; waited > limit {
				t.Errorf("with %d keys, a late one, received after 5ms, ran after %v, want at most %v", keys+1, waited, limit)
			}
		})
	}
}

// A worker that took the last ready message, and then was stuck, did not wake the receiver for the room there was.
func TestTheReceiverReadsOnWhenTheLastReadyMessageIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		p := NewPressureController(BackpressureOptions{Capacity: 2})
		r := NewReceiver(NewGate(NewKeyedFIFO(OrderingOptions{}), p, nil),
			NewEngine(func(_ context.Context, m Message[string]) error {
				switch m.Key {
				case "a":
					time.Sleep(time.Second)
				case "b":
					<-gate
				}
				return nil
			}, RetryOptions{}))
		r.maxPending = 16
		first, err := p.Acquire(t.Context()) // one slot is a direct caller's
		if err != nil {
			t.Fatal(err)
		}
		go func() { // and another asks, behind the stream
			time.Sleep(500 * time.Millisecond)
			second, _ := p.Acquire(t.Context())
			<-gate
			second.Release()
		}()
		n, done := 0, make(chan error, 1)
		go func() {
			_, err := r.Receive(t.Context(), func() (string, error) {
				n++
				switch {
				case n == 1:
					return "a", nil
				case n <= 16:
					return "b", nil
				case n == 17:
					return "c", nil
				}
				return "", io.EOF
			}, func(s string) string { return s })
			done <- err
		}()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n < 17 {
			t.Errorf("recv was called %d times: 15 of 16 are pending and the stream is not read", n)
		}
		close(gate)
		first.Release()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// hasty is a member that leaves while it is being cut.
type hasty struct{ c *ShutdownCoordinator }

func (*hasty) stop(bool) {}
func (*hasty) close()    {}
func (m *hasty) cut() (int, uint64, string) {
	m.c.leave(m)
	time.Sleep(time.Second)
	return 1, 1, "k"
}

// Of two Shutdowns one could return nil while the other was still counting what it had cut off.
func TestAllShutdownsReturnTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewShutdownCoordinator(ShutdownOptions{GracePeriod: time.Minute})
		c.enter(&hasty{c})
		var all sync.WaitGroup
		var errs [2]error
		for i := range errs {
			all.Go(func() { errs[i] = c.Shutdown(context.Background()) })
		}
		all.Wait()
		if errs[0] == nil || errs[0] != errs[1] {
			t.Errorf("two Shutdowns returned %v and %v, want the same error", errs[0], errs[1])
		}
	})
}
