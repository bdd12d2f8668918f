package flow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
)

// leased is a stream that has a first lease on messages, whose keys are their values, and the worker that has it.
func leased(t *testing.T, waits []string, messages ...string) (*stream[string], *carrier[string]) {
	t.Helper()
	return leasedFor(t, chunkSize, waits, messages...)
}

// leasedFor is leased for so many messages at most.
func leasedFor(t *testing.T, run int, waits []string, messages ...string) (*stream[string], *carrier[string]) {
	t.Helper()
	f := mustNewInside(t, func(context.Context, Message[string]) error { return nil },
		func(s string) string { return s }, Options{Ordering: OrderingOptions{Mode: OrderingKeyedFIFO}})
	s := f.receiver.newStream(t.Context(), f.key)
	t.Cleanup(func() { s.cancel(nil) })
	seq := uint64(0)
	next := func(key string) *arrival[string] {
		seq++
		return &arrival[string]{seq: seq, key: key, value: key}
	}
	s.mu.Lock()
	for _, key := range waits { // with a lane, from before the lease
		s.inbox.count()
		s.openLaneLocked(s.acceptLocked(next(key), weight{}))
	}
	for _, key := range messages {
		s.put(next(key), weight{})
	}
	c := &carrier[string]{s: s, slot: true}
	s.slots++
	s.pace.run = int32(run)
	if !c.leaseLocked() {
		t.Fatal("there is no lease")
	}
	s.mu.Unlock()
	return s, c
}

func (q *messageQueue[T]) seqs() (list []uint64) {
	for m := q.head; m != nil; m = m.link {
		list = append(list, m.seq)
	}
	return list
}

func TestStreamWhoseLeaseIsCalledInIsAsIfThereHadBeenNone(t *testing.T) {
	s, c := leased(t, nil, "a", "b", "a", "c", "a", "b")
	k := c.leased
	for i := range int64(2) { // the third runs
		if !k.at.CompareAndSwap(i, i+1) {
			t.Fatal("the next can't be claimed")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.pendingLocked(); n != 4 {
		t.Errorf("%d pending under lease, want 4", n)
	}
	s.callInLocked()
	if k.at.CompareAndSwap(2, 3) {
		t.Error("the worker can go on as if nothing had happened")
	}
	if s.finished != 2 || s.counts.Succeeded != 2 || s.pendingLocked() != 4 {
		t.Errorf("%d finished, %d succeeded, %d pending, want 2, 2 and 4", s.finished, s.counts.Succeeded, s.pendingLocked())
	}
	if k.m == nil || k.m.seq != 3 || k.m.state != stateRunning || k.m.attempts != 1 || k.m.lane == nil || k.m.lane.head != &k.m.turn {
		t.Errorf("what runs is %+v, want the third, with the turn of its key", k.m)
	}
	if got := s.ready.seqs(); !slices.Equal(got, []uint64{4, 6}) { // 5 waits for 3
		t.Errorf("ready are %v, want 4 and 6", got)
	}
	if s.inbox.frontLocked() != nil || s.lanes.lanes != 3 {
		t.Errorf("%d lanes, want those of a, b and c, and nothing left in the inbox", s.lanes.lanes)
	}
}

// A message that the worker has claimed and must not run, since its key has a lane, is not taken for one that runs.
func TestMessageClaimedUnderLeaseWhoseKeyIsBusyWaits(t *testing.T) {
	s, c := leased(t, []string{"b"}, "a", "b", "b", "d")
	k := c.leased
	k.at.Store(1)
	if !s.mustLook(k, 1) {
		t.Error("the worker doesn't see that b has a lane")
	}
	s.mu.Lock()
	s.callInLocked()
	if k.m != nil || s.finished != 1 {
		t.Errorf("runs %+v, %d finished; want none and 1", k.m, s.finished)
	}
	if got := s.ready.seqs(); !slices.Equal(got, []uint64{5}) {
		t.Errorf("ready are %v, want d's", got)
	}
	s.mu.Unlock()
	c.checkIn(1, false, s.clock())
	if c.m == nil || c.m.seq != 5 || c.leased != nil {
		t.Errorf("the worker goes on with %+v, want d's", c.m)
	}
}

// A message that only looks as if its key had a lane is its worker's to run when the lease is called in.
func TestMessageClaimedUnderLeaseAndNotRunIsRunAfterwards(t *testing.T) {
	s, c := leased(t, nil, "a", "b")
	k := c.leased
	k.at.Store(1)
	s.mu.Lock()
	s.callInLocked()
	s.mu.Unlock()
	c.checkIn(1, false, s.clock())
	if c.m == nil || c.m.seq != 2 || c.m.attempts != 0 || c.m.step != stepAttempt || c.m.state != stateRunning {
		t.Errorf("the worker goes on with %+v, want the second, not tried yet", c.m)
	}
}

func TestNoKeyWithALaneIsRunUnderLease(t *testing.T) {
	s, c := leased(t, []string{"a", "b"}, "b", "a", "c", "b", "c")
	if k := c.leased; k.start != 2 || k.list[k.start].key != "c" || s.mustLook(k, 2) || !s.mustLook(k, 3) {
		t.Errorf("the lease begins at %d and runs on to b", k.start)
	}
}

// All that may end a lease in its midst, with the handler that does it under lease, as it is from the first message on.
func TestEveryEndOfALeaseLeavesTheCountsExact(t *testing.T) {
	const at = 20 // of 100
	skip := func(context.Context, *Failure) FailureAction { return SkipMessage }
	for name, c := range map[string]struct {
		end  func(f *Flow[int]) error
		opts Options
		want Summary
		kind FailureKind
	}{
		"error": {
			func(*Flow[int]) error { return io.ErrUnexpectedEOF }, Options{},
			Summary{Succeeded: at - 1, Failed: 1, Committed: at - 1}, FailureHandlerError,
		},
		"error, skipped": {
			func(*Flow[int]) error { return io.ErrUnexpectedEOF }, Options{OnFailure: skip},
			Summary{Received: 100, Succeeded: 99, Failed: 1, Committed: 100}, FailureNone,
		},
		"error, tried again": {
			func(*Flow[int]) error { return io.ErrUnexpectedEOF }, Options{Retry: RetryOptions{MaxAttempts: 2}},
			Summary{Received: 100, Succeeded: 100, Retried: 1, Committed: 100}, FailureNone,
		},
		"panic": {
			func(*Flow[int]) error { panic("ouch") }, Options{},
			Summary{Succeeded: at - 1, Failed: 1, Committed: at - 1}, FailureInternal,
		},
		"Goexit": {
			func(*Flow[int]) error { runtime.Goexit(); return nil }, Options{},
			Summary{Succeeded: at - 1, Failed: 1, Committed: at - 1}, FailureInternal,
		},
		"panic in Retryable": {
			func(*Flow[int]) error { return io.ErrUnexpectedEOF },
			Options{Retry: RetryOptions{MaxAttempts: 2, Retryable: func(error) bool { panic("ouch") }}},
			Summary{Succeeded: at - 1, Failed: 1, Committed: at - 1}, FailureInternal,
		},
		"Goexit in Retryable": {
			func(*Flow[int]) error { return io.ErrUnexpectedEOF },
			Options{Retry: RetryOptions{MaxAttempts: 2, Retryable: func(error) bool { runtime.Goexit(); return false }}},
			Summary{Succeeded: at - 1, Failed: 1, Committed: at - 1}, FailureInternal,
		},
		"Close": {
			func(f *Flow[int]) error { return f.Close() }, Options{},
			Summary{Succeeded: at, Committed: at}, FailureShutdown,
		},
		"Snapshot": {
			func(f *Flow[int]) error { f.Snapshot(1); return nil }, Options{},
			Summary{Received: 100, Succeeded: 100, Committed: 100}, FailureNone,
		},
	} {
		for mode, order := range map[string]OrderingOptions{
			"fifo": {}, "keyed": {Mode: OrderingKeyedFIFO}, "none": {Mode: OrderingNone},
		} {
			t.Run(name+"/"+mode, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c.opts.Ordering, c.opts.Backpressure = order, BackpressureOptions{Capacity: 8}
					var f *Flow[int]
					f = mustNewInside(t, func(_ context.Context, m Message[int]) error {
						if m.Seq == at && m.Attempt == 1 {
							return c.end(f)
						}
						return nil
					}, func(v int) string { return fmt.Sprint(v % 7) }, c.opts)
					n := 0
					sum, err := f.Run(t.Context(), func() (int, error) {
						if n++; n > 100 {
							return 0, io.EOF
						}
						return n, nil
					})
					if kind := ClassifyFailure(err); kind != c.kind {
						t.Errorf("Run returned %v: %v, want %v", kind, err, c.kind)
					}
					if sum.Received != sum.Succeeded+sum.Failed+sum.Rejected+sum.Dropped {
						t.Errorf("%+v does not add up", sum)
					}
					want := c.want
					if c.kind != FailureNone { // how much was received is a race, and without FIFO what ran beside it too
						want.Received, want.Dropped, want.Unsettled = sum.Received, sum.Dropped, sum.Unsettled
						if mode != "fifo" {
							want.Succeeded, want.Committed = sum.Succeeded, sum.Committed
						}
					}
					if fmt.Sprint(sum) != fmt.Sprint(want) {
						t.Errorf("the Summary is %+v, want %+v", sum, want)
					}
				})
			})
		}
	}
}

// The worker looks at the stream under lease as soon as the receiver has to be woken.
func TestReceiverIsWokenFromUnderALease(t *testing.T) {
	for _, mode := range []OrderingMode{OrderingFIFO, OrderingKeyedFIFO, OrderingNone} {
		t.Run(mode.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				received, stuck := 0, make(chan struct{})
				f := mustNewInside(t, func(_ context.Context, m Message[int]) error {
					if m.Seq == 2 {
						<-stuck
					}
					return nil
				}, func(int) string { return "a" }, Options{
					Ordering: OrderingOptions{Mode: mode}, MaxPending: 3, Backpressure: BackpressureOptions{Capacity: 1},
				})
				all := make(chan error)
				go func() {
					_, err := f.Run(context.Background(), func() (int, error) {
						if received == 10 {
							return 0, io.EOF
						}
						received++
						return received, nil
					})
					all <- err
				}()
				synctest.Wait()
				if received != 4 { // the first is finished, three are pending
					t.Errorf("%d received, want 4", received)
				}
				close(stuck)
				if err := <-all; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestBytesAreCountedOffUnderLease(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[string]) error { return nil }, nil, Options{MaxPendingBytes: 50})
	n := 0
	sum, err := f.Run(t.Context(), func() (string, error) {
		if n++; n > 10_000 {
			return "", io.EOF
		}
		return "abc", nil
	})
	if err != nil || sum.Succeeded != 10_000 {
		t.Errorf("%+v, %v", sum, err)
	}
	if left := f.receiver.bytes.bytes.Load(); left != 0 {
		t.Errorf("%d bytes are counted of nothing pending", left)
	}
}

// A lane that ends under a lease leaves it alone: its worker is not disturbed by those who bring slow messages to an end.
func TestEndOfALaneLeavesALeaseAlone(t *testing.T) {
	s, c := leased(t, []string{"b"}, "a", "c")
	other := &carrier[string]{s: s, m: s.live, slot: true}
	s.mu.Lock()
	s.slots++
	other.m.state, other.m.outcome, other.m.step = stateRunning, succeeded, stepFinish
	s.starting = true // so that nobody else comes
	s.mu.Unlock()
	other.next()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.leased.held || s.lanes.lanes != 0 || s.finished != 1 {
		t.Errorf("on lease: %v; %d lanes; %d finished", c.leased.held, s.lanes.lanes, s.finished)
	}
	if other.m != nil || other.leased != nil {
		t.Error("the other worker has something to do")
	}
}

func TestClosingAResolverIsSeenUnderLease(t *testing.T) {
	s, c := leased(t, nil, "a", "b")
	c.leased.at.Store(1)
	if s.mustLook(c.leased, 1) {
		t.Error("the worker looks at the stream for nothing")
	}
	s.order.Close()
	if !s.mustLook(c.leased, 1) {
		t.Error("the worker runs what is to be refused")
	}
}

func TestSnapshotCallsALeaseIn(t *testing.T) {
	s, c := leased(t, nil, "a", "b", "a", "c")
	s.r.streams[s] = struct{}{}
	c.leased.at.Store(1)
	snap := s.r.snapshot(9)
	if st := snap.Stats; st.InFlight != 1 || st.Waiting != 2 || st.ActiveKeys != 3 || st.Total.Succeeded != 1 {
		t.Errorf("%+v, want one that has succeeded, one that runs and two that wait", st)
	}
	if len(snap.Running) != 1 || snap.Running[0].Seq != 2 || snap.Running[0].Attempt != 1 {
		t.Errorf("what runs is %+v, want the second", snap.Running)
	}
}

func TestCallingInWhereNothingIsLeasedIsHarmless(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, nil, Options{})
	s := f.receiver.newStream(t.Context(), nil)
	defer s.cancel(errors.New("over"))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.callInLocked()
	if s.pendingLocked() != 0 || s.backlogLocked() {
		t.Error("a stream that has received nothing has something pending")
	}
}
