package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"example.com/flow"
)

// What flow promises about order, as properties of random workloads. This is the file to read first, and the one to run:
//
//	go test -run TestOrdering
//	go test -run TestOrdering -rapid.checks=100000
//
// Each check runs one stream in a synctest bubble, where time is exact: a handler that sleeps for 3 ms takes 3 ms, and a
// message that waits for nothing starts at the instant at which it is received.

// TestMain looks for goroutines left behind by tests that run in real time; those in bubbles look for themselves.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Messages of one lane start in the order of receipt, one at a time, and all attempts of one come before the next.
func TestOrderingKeepsEachLaneInOrderAndOneAtATime(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := drawWorkload(rt, 0)
		attempts, _, _ := w.run(t)
		last := map[string]attempt{}
		for _, a := range attempts {
			before, ok := last[w.lane(a)]
			last[w.lane(a)] = a
			switch {
			case !ok && a.n == 1, ok && a.seq > before.seq && a.n == 1, ok && a.seq == before.seq && a.n == before.n+1:
			default:
				rt.Fatalf("%v comes after %v", a, before)
			}
			if ok && a.startStep < before.endStep {
				rt.Fatalf("%v starts before %v has ended", a, before)
			}
		}
	})
}

// No more handlers run at once than Capacity allows.
func TestOrderingStaysWithinCapacity(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := drawWorkload(rt, 0)
		attempts, _, _ := w.run(t)
		for _, a := range attempts {
			running := 0
			for _, b := range attempts {
				if b.startStep <= a.startStep && a.startStep < b.endStep {
					running++
				}
			}
			if w.Capacity > 0 && running > w.Capacity {
				rt.Fatalf("%d run at once with capacity %d: %v", running, w.Capacity, attempts)
			}
		}
	})
}

// Without a bound on capacity a key waits for nobody but itself: it is done when its own messages have taken their time.
func TestOrderingLetsNoKeyWaitForAnother(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := drawWorkload(rt, time.Millisecond)
		want, got := w.keysAlone(rt, t)
		for key, at := range want {
			if got[key] != at {
				rt.Fatalf("key %q is done after %v, want %v", key, got[key], at)
			}
		}
	})
}

// There is one exception: messages that are quick are handed out together, and a handler that was quick and suddenly
// stands still holds up what was handed out with it, once, for 1 ms at most.
func TestOrderingLetsAHandlerThatSuddenlyStandsStillHoldUpOthersForAMillisecondAtMost(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := drawWorkload(rt, 0)
		want, got := w.keysAlone(rt, t)
		for key, at := range want {
			sudden := 0
			quick := map[string]bool{}
			for _, j := range w.Jobs {
				was, known := quick[j.Key]
				if j.Key != key && j.Takes > 0 && (was || !known) {
					sudden++
				}
				quick[j.Key] = j.Takes == 0
			}
			if got[key] < at || got[key] > at+time.Duration(sudden)*time.Millisecond {
				rt.Fatalf("key %q is done after %v, want %v, and at most %d ms more", key, got[key], at, sudden)
			}
		}
	})
}

// Every received message has one outcome, and Committed and Unsettled say exactly which succeeded.
func TestOrderingAccountsForEveryMessage(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := drawWorkload(rt, 0)
		attempts, sum, err := w.run(t)
		if sum.Received != sum.Succeeded+sum.Failed+sum.Rejected+sum.Dropped {
			rt.Fatalf("%+v does not add up", sum)
		}
		if err == nil && sum.Received != uint64(len(w.Jobs)) {
			rt.Fatalf("%d of %d are received, and there is no error", sum.Received, len(w.Jobs))
		}
		succeeded := map[uint64]bool{}
		for _, a := range attempts {
			succeeded[a.seq] = a.n > w.Jobs[a.seq-1].Fails
		}
		var unsettled []uint64
		for seq := range sum.Received {
			if !succeeded[seq+1] {
				unsettled = append(unsettled, seq+1)
			}
		}
		if !slices.Equal(sum.Unsettled, unsettled) {
			rt.Fatalf("%v are unsettled, want %v", sum.Unsettled, unsettled)
		}
		committed := sum.Received
		if len(unsettled) > 0 {
			committed = unsettled[0] - 1
		}
		if sum.Committed != committed || sum.Progress().Committed() != committed {
			rt.Fatalf("committed %d, and %d in its Progress; want %d", sum.Committed, sum.Progress().Committed(), committed)
		}
	})
}

// job is one message: which key it has, how long each attempt takes, and how many attempts fail first.
type job struct {
	Key   string
	Takes time.Duration
	Fails int
}

// workload is a stream and the options it runs under.
type workload struct {
	Mode                 flow.OrderingMode
	Capacity, MaxPending int
	Jobs                 []job
}

const maxAttempts = 3

// drawWorkload draws a stream in which each attempt takes at least shortest.
func drawWorkload(t *rapid.T, shortest time.Duration) workload {
	modes := []flow.OrderingMode{flow.OrderingKeyedFIFO, flow.OrderingFIFO, flow.OrderingNone}
	return workload{
		Mode:       rapid.SampledFrom(modes).Draw(t, "Mode"),
		Capacity:   rapid.IntRange(0, 4).Draw(t, "Capacity"),
		MaxPending: rapid.IntRange(0, 8).Draw(t, "MaxPending"), // 0: 1024
		Jobs: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) job {
			return job{
				Key:   rapid.SampledFrom([]string{"a", "b", "c", ""}).Draw(t, "Key"),
				Takes: max(shortest, time.Duration(rapid.IntRange(-6, 3).Draw(t, "Takes"))*time.Millisecond),
				Fails: max(0, rapid.IntRange(-12, maxAttempts).Draw(t, "Fails")),
			}
		}), 0, 80).Draw(t, "Jobs"),
	}
}

// attempt is one call of the handler.
type attempt struct {
	seq                uint64
	key                string
	n                  int
	startStep, endStep int           // of all starts and ends, counted
	end                time.Duration // since the stream began
}

func (a attempt) String() string {
	return fmt.Sprintf("attempt %d of message %d (key %q)", a.n, a.seq, a.key)
}

// run runs w in a bubble and returns every attempt, in the order in which they started.
func (w workload) run(t *testing.T) (attempts []attempt, sum flow.Summary, err error) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		step := 0
		began := time.Now()
		handle := func(_ context.Context, m flow.Message[job]) error {
			mu.Lock()
			step++
			i := len(attempts)
			attempts = append(attempts, attempt{seq: m.Seq, key: m.Key, n: m.Attempt, startStep: step})
			mu.Unlock()
			time.Sleep(m.Value.Takes)
			mu.Lock()
			defer mu.Unlock()
			step++
			attempts[i].endStep, attempts[i].end = step, time.Since(began)
			if m.Attempt <= m.Value.Fails {
				return errors.New("not yet")
			}
			return nil
		}
		f, newErr := flow.New(handle, func(j job) string { return j.Key }, flow.Options{
			Ordering:     flow.OrderingOptions{Mode: w.Mode},
			Backpressure: flow.BackpressureOptions{Capacity: w.Capacity},
			Retry:        flow.RetryOptions{MaxAttempts: maxAttempts, Backoff: time.Millisecond},
			MaxPending:   w.MaxPending,
		})
		if newErr != nil {
			t.Fatal(newErr)
		}
		rest := w.Jobs
		sum, err = f.Run(t.Context(), func() (job, error) {
			if len(rest) == 0 {
				return job{}, io.EOF
			}
			j := rest[0]
			rest = rest[1:]
			return j, nil
		})
	})
	return attempts, sum, err
}

// lane is what a's message is ordered with: its key, the whole stream, or nothing.
func (w workload) lane(a attempt) string {
	switch w.Mode {
	case flow.OrderingFIFO:
		return "stream"
	case flow.OrderingKeyedFIFO:
		return "key " + a.key
	}
	return fmt.Sprint("message ", a.seq)
}

// keysAlone runs w where only its key may hold a message up. It returns when each key would be done if it were alone, and
// when it was.
func (w workload) keysAlone(rt *rapid.T, t *testing.T) (want, got map[string]time.Duration) {
	w.Mode, w.Capacity, w.MaxPending = flow.OrderingKeyedFIFO, 0, 0
	for i := range w.Jobs { // a failure for good would end the stream early
		w.Jobs[i].Fails = min(w.Jobs[i].Fails, maxAttempts-1)
	}
	attempts, _, err := w.run(t)
	if err != nil {
		rt.Fatal(err)
	}
	want, got = map[string]time.Duration{}, map[string]time.Duration{}
	for _, j := range w.Jobs {
		want[j.Key] += time.Duration(j.Fails+1)*j.Takes + time.Duration(j.Fails)*time.Millisecond
	}
	for _, a := range attempts {
		got[a.key] = max(got[a.key], a.end)
	}
	return want, got
}
