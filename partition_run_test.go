package flow

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// keysOfTwo are keys of each of two partitions, all different.
func keysOfTwo(t *testing.T, n int) (zero, one []string) {
	processors(t, 2)
	s := spreadOver(t, 2)
	return keysOf(s, 0, n), keysOf(s, 1, n)
}

// A worker that came for a partition found that nobody may have a lease, and left the rest to whoever had one; and that one
// was stuck. So what waited in the partition waited for another key's handler, while workers came and left.
func TestPartitionIsWorkedOffBesideAStuckLeaseAndMoreLanesThanALeaseMayHave(t *testing.T) {
	zero, one := keysOfTwo(t, maxFilterLanes+4)
	synctest.Test(t, func(t *testing.T) {
		ran := false
		f := mustNewInside(t, func(ctx context.Context, m Message[string]) error {
			switch m.Value {
			case one[maxFilterLanes+1]:
				ran = true
			case zero[0], one[maxFilterLanes]:
				<-ctx.Done()
				return ctx.Err()
			default:
				return errors.New("later")
			}
			return nil
		}, func(key string) string { return key }, Options{
			Ordering: OrderingOptions{Mode: OrderingKeyedFIFO}, Retry: RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
		})
		BeginSpread(f)
		ctx, cancel := context.WithCancel(t.Context())
		source, done := make(chan string), make(chan struct{})
		go func() {
			defer close(done)
			_, _ = f.Run(ctx, FromChan(ctx, source))
		}()
		for _, key := range one[:maxFilterLanes] { // they wait for their next try
			source <- key
			synctest.Wait()
		}
		for _, key := range []string{zero[0], one[maxFilterLanes], one[maxFilterLanes+1]} {
			source <- key
			synctest.Wait()
		}
		if !ran {
			t.Error("a key waits for another's handler")
		}
		cancel()
		<-done
	})
}

func TestPartitionIsRefusedBesideAStuckLeaseWhenTheResolverIsClosed(t *testing.T) {
	zero, one := keysOfTwo(t, 1)
	synctest.Test(t, func(t *testing.T) {
		order := NewKeyedFIFO(OrderingOptions{})
		r := NewReceiver(NewGate(order, nil, nil), NewEngine(func(ctx context.Context, _ Message[string]) error {
			<-ctx.Done()
			return ctx.Err()
		}, RetryOptions{}))
		r.begin = paceMedium
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		source, done := make(chan string), make(chan error, 1)
		go func() {
			_, err := r.Receive(ctx, FromChan(ctx, source), func(s string) string { return s })
			done <- err
		}()
		source <- zero[0]
		synctest.Wait()
		order.Close()
		source <- one[0]
		synctest.Wait()
		select {
		case err := <-done:
			if ClassifyFailure(err) != FailureOrdering {
				t.Errorf("the stream ended with %v, want FailureOrdering", err)
			}
		default:
			t.Error("a message is not refused while another key's handler is stuck")
		}
	})
}
