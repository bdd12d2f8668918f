package batchtest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
)

// batchItem is the n-th message of a key of a stream.
type batchItem struct{ stream, key, n int }

// batchKeeper is a handler of batches that does what it likes with them, and holds what it sees against the order: a
// message comes when all earlier ones of its key have ended, or stand before it in the same call.
type batchKeeper struct {
	t    *testing.T
	keys [][]keptKey // of each stream
	seen atomic.Int64
}

// keptKey is written by the call that has the key, and by OnFailure before the key is skipped.
type keptKey struct {
	ended  int // messages
	inCall atomic.Bool
	_      [40]byte
}

func (k *batchKeeper) of(it batchItem) *keptKey { return &k.keys[it.stream][it.key] }

var errFails = errors.New("the call fails")

func (k *batchKeeper) handle(_ context.Context, batch []flow.Message[batchItem], errs []error) error {
	k.seen.Add(int64(len(batch)))
	next := map[*keptKey]int{}
	for _, m := range batch {
		key := k.of(m.Value)
		if _, in := next[key]; !in {
			if key.inCall.Swap(true) {
				k.t.Errorf("%+v is in two calls", m.Value)
			}
			next[key] = key.ended + 1
		}
		if m.Value.n != next[key] {
			k.t.Errorf("%+v comes where %d is due", m.Value, next[key])
		}
		next[key] = m.Value.n + 1
	}
	defer func() {
		for key := range next {
			key.inCall.Store(false)
		}
	}()
	switch rand.IntN(24) {
	case 0:
		return errFails
	case 1:
		return flow.Permanent(errFails)
	case 2:
		panic(errFails)
	case 3:
		runtime.Goexit()
	case 4:
		runtime.Gosched()
	}
	stopped := map[*keptKey]bool{}
	for i, m := range batch {
		key := k.of(m.Value)
		switch r := rand.IntN(100); {
		case stopped[key]:
			errs[i] = flow.ErrNotAttempted
		case r == 0:
			errs[i], stopped[key] = errFails, true
		case r == 1:
			errs[i], stopped[key] = flow.Permanent(errFails), true
		case r == 2:
			errs[i], stopped[key] = flow.ErrNotAttempted, true
		default:
			key.ended++
		}
	}
	return nil
}

func (k *batchKeeper) onFailure(_ context.Context, f *flow.Failure) flow.FailureAction {
	k.of(f.Value.(batchItem)).ended++
	return flow.SkipMessage
}

// TestBatchOrderOfKeysHoldsWhateverFails is over a million messages. A call that crashes, and is then isolated, ends streams
// as it should.
func TestBatchOrderOfKeysHoldsWhateverFails(t *testing.T) {
	const keys = 40
	total := 1_000_000
	if testing.Short() || testkit.RaceEnabled {
		total = 200_000
	}
	k := &batchKeeper{t: t}
	options := flow.Options{OnFailure: k.onFailure, Ordering: testkit.Keyed}
	options.Backpressure.Capacity = 3
	options.Batch.MaxMessages = 50
	options.Retry = flow.RetryOptions{MaxAttempts: 3}
	options.MaxPending = 300
	f, err := flow.NewBatch(k.handle, func(it batchItem) string { return fmt.Sprint(it.key) }, options)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	for k.seen.Load() < int64(total) && !t.Failed() {
		var streams sync.WaitGroup
		first := len(k.keys)
		for range 8 {
			k.keys = append(k.keys, make([]keptKey, keys))
		}
		for id := first; id < first+8; id++ {
			streams.Go(func() {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				end := 1 + rand.IntN(5_000)
				cancelAt := rand.IntN(3 * end)
				sent, counts := 0, make([]int, keys)
				sum, err := f.Run(ctx, func() (batchItem, error) {
					if sent == cancelAt {
						cancel()
					}
					if sent == end {
						return batchItem{}, io.EOF
					}
					sent++
					key := rand.IntN(1 + rand.IntN(keys))
					counts[key]++
					return batchItem{id, key, counts[key]}, nil
				})
				mu.Lock()
				defer mu.Unlock()
				testkit.CheckConserved(t, sum)
				if err == nil && sum.Succeeded+sum.Failed != uint64(end) {
					t.Errorf("stream %d of %d messages ended well: %+v", id, end, sum)
				}
			})
		}
		done := make(chan struct{})
		go func() { streams.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatalf("streams do not end: %+v", f.Stats())
		}
	}
	if st := f.Stats(); st.Streams != 0 || st.InFlight != 0 || st.Calls != 0 || st.Waiting != 0 || st.ActiveKeys != 0 {
		t.Errorf("Stats of what has ended: %+v", st)
	}
}

// TestBatchSliceThatIsKeptIsFoundByTheRaceDetector runs only where there is no race detector to find it: it shows that the
// slice is written to after the call, which is what the detector then sees.
func TestBatchSliceThatIsKeptIsWrittenTo(t *testing.T) {
	if testkit.RaceEnabled {
		t.Skip("the race detector finds it")
	}
	var kept []flow.Message[string]
	f := testkit.NewBatch(t, func(_ context.Context, batch []flow.Message[string], _ []error) error {
		kept = batch
		return nil
	}, flow.Options{})
	if _, err := f.Run(t.Context(), testkit.Given("a1")); err != nil {
		t.Fatal(err)
	}
	if kept[0] != (flow.Message[string]{}) {
		t.Errorf("the slice still has %+v", kept[0])
	}
}
