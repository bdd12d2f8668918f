package flow_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"example.com/flow"
	"example.com/flow/flowtest"
)

// Messages that are quick are handed out in long runs. These tests have runs of the length they like from the start.

// inLongRuns begins a stream whose runs have up to length messages, and then sends it values.
func inLongRuns[T any](t *testing.T, f *flow.Flow[T], length int, values ...T) (*flow.Stream, *flowtest.Source[T]) {
	t.Helper()
	source := flowtest.NewSource[T](t)
	s := f.Start(context.Background(), source.Recv)
	synctest.Wait()
	flow.SetRunLength(f, length)
	synctest.Wait()
	source.Send(values...)
	return s, source
}

// Whatever the messages of a run do (stand still, fail, are tried again, skip their key), and whenever a shutdown comes:
// each key stays in order, each message runs as often as it must, and Summary says what has run.
func TestLongRunsKeepEveryPromise(t *testing.T) {
	type job struct {
		Key   string
		Takes time.Duration
		Fails int
		Final bool // a failure is for good
		Skip  bool // if it fails for good, its key is skipped
	}
	rapid.Check(t, func(rt *rapid.T) {
		length := 1 << rapid.IntRange(0, 7).Draw(rt, "length")
		capacity := rapid.IntRange(0, 3).Draw(rt, "capacity")
		mode := rapid.SampledFrom([]flow.OrderingMode{flow.OrderingKeyedFIFO, flow.OrderingFIFO}).Draw(rt, "mode")
		maxPending := rapid.SampledFrom([]int{4, 50, 1024}).Draw(rt, "maxPending")
		end := time.Duration(rapid.IntRange(-10, 10).Draw(rt, "shutdown")) * time.Millisecond / 2
		jobs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) job {
			return job{
				Key:   rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "Key"),
				Takes: time.Duration(max(0, rapid.IntRange(-20, 2).Draw(t, "Takes"))) * time.Millisecond,
				Fails: max(0, rapid.IntRange(-15, maxAttempts).Draw(t, "Fails")),
				Final: rapid.IntRange(0, 3).Draw(t, "Final") > 0,
				Skip:  rapid.Bool().Draw(t, "Skip"),
			}
		}), 0, 120).Draw(rt, "jobs")
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			tries, running := map[uint64]int{}, map[string]uint64{}
			last := map[string]uint64{}
			skipped := map[string]uint64{}
			var inFlight, most int
			handle := func(_ context.Context, m flow.Message[job]) error {
				lane := m.Key
				if mode == flow.OrderingFIFO {
					lane = ""
				}
				mu.Lock()
				if inFlight++; inFlight > most {
					most = inFlight
				}
				if running[lane] != 0 || m.Seq < last[lane] || m.Seq == last[lane] && m.Attempt == 1 || m.Attempt != tries[m.Seq]+1 {
					rt.Errorf("attempt %d of %d, which has had %d, beside %d and after %d",
						m.Attempt, m.Seq, tries[m.Seq], running[lane], last[lane])
				}
				if from, ok := skipped[m.Key]; ok && m.Seq > from {
					rt.Errorf("message %d runs, whose key was skipped at %d", m.Seq, from)
				}
				tries[m.Seq], running[lane], last[lane] = m.Attempt, m.Seq, m.Seq
				mu.Unlock()
				time.Sleep(m.Value.Takes)
				mu.Lock()
				defer mu.Unlock()
				inFlight--
				running[lane] = 0
				if m.Attempt <= m.Value.Fails {
					if m.Value.Final {
						return flow.Permanent(errHandler)
					}
					return errHandler
				}
				return nil
			}
			f, err := flow.New(handle, func(j job) string { return j.Key }, flow.Options{
				Ordering:     flow.OrderingOptions{Mode: mode},
				Backpressure: flow.BackpressureOptions{Capacity: capacity},
				Retry:        flow.RetryOptions{MaxAttempts: maxAttempts, Backoff: time.Millisecond},
				MaxPending:   maxPending,
				OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
					if j := f.Value.(job); f.Kind != flow.FailureHandlerError || !j.Skip {
						return flow.SkipMessage
					}
					mu.Lock()
					defer mu.Unlock()
					skipped[f.Key] = f.Seq
					return flow.SkipKey
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			s, source := inLongRuns(t, f, length, jobs...)
			source.End()
			if end > 0 {
				time.Sleep(end)
				if err := f.Shutdown(context.Background()); err != nil {
					rt.Errorf("Shutdown() = %v", err)
				}
			}
			sum, err := s.Wait()
			if end <= 0 && (err != nil || sum.Received != uint64(len(jobs)) || sum.Dropped > 0) {
				rt.Errorf("Wait() = %+v, %v", sum, err)
			}
			if sum.Received != sum.Succeeded+sum.Failed+sum.Rejected+sum.Dropped || sum.Succeeded+sum.Failed != uint64(len(tries)) {
				rt.Errorf("%d messages have run, and the Summary is %+v", len(tries), sum)
			}
			if capacity > 0 && most > capacity {
				rt.Errorf("%d ran at once with capacity %d", most, capacity)
			}
			var unsettled []uint64
			for i, j := range jobs[:sum.Received] {
				seq := uint64(i + 1)
				done := tries[seq] > j.Fails || tries[seq] == maxAttempts || j.Final && tries[seq] > 0
				if from, ok := skipped[j.Key]; ok && seq > from && tries[seq] == 0 && !slices.Contains(sum.Unsettled, seq) {
					done = true // rejected, and not dropped by the shutdown
				}
				if !done {
					unsettled = append(unsettled, seq)
				}
			}
			if !slices.Equal(unsettled, sum.Unsettled) {
				rt.Errorf("unsettled %v, want %v", sum.Unsettled, unsettled)
			}
			if now := f.Stats(); now.InFlight+now.Waiting+now.Streams > 0 {
				rt.Errorf("Stats() = %+v at the end", now)
			}
		})
	})
}

func TestShutdownDropsWhatALongRunHasNotBegun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1}})
		stream, _ := inLongRuns(t, f, 8, "a1", "b1", "c1", "a2")
		for len(s.attempts()) == 0 {
			time.Sleep(time.Microsecond)
		}
		done := make(chan error)
		go func() { done <- f.Shutdown(context.Background()) }()
		synctest.Wait() // before anybody has looked whether the run stands still
		s.finish(t, "a1")
		if err := <-done; err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
		if sum, _ := stream.Wait(); sum.Succeeded != 1 || sum.Dropped != 3 || s.history() != "a1" {
			t.Errorf("%q has run, and Wait() = %+v", s.history(), sum)
		}
	})
}

func TestSkippedKeysMessagesNeedNoCapacityWhileRunsAreLong(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey },
		})
		stream, source := inLongRuns(t, f, 8, "a1")
		s.fail(t, "a1", flow.Permanent(errHandler))
		flow.SetRunLength(f, 8)
		source.Send("b1")
		wantNow(t, s, "b1")
		flow.SetRunLength(f, 8)
		source.Send("a2", "a3")
		synctest.Wait()
		if p := stream.Progress(); !p.Settled(3) || !p.Settled(4) {
			t.Error("messages of a key that is skipped wait for a slot")
		}
		source.End()
		s.finishAll(t)
		if sum, err := stream.Wait(); err != nil || sum.Rejected != 2 {
			t.Errorf("Wait() = %+v, %v", sum, err)
		}
	})
}

func TestKeyThatWasSlowHoldsUpNobodyWhileRunsAreLong(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		began, ended := time.Now(), map[string]time.Duration{}
		f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
			if m.Key == "slow" {
				time.Sleep(time.Minute)
			}
			mu.Lock()
			defer mu.Unlock()
			ended[m.Value] = time.Since(began)
			return nil
		}, flow.Options{Ordering: keyed})
		stream, source := inLongRuns(t, f, 1, "slow1")
		time.Sleep(time.Hour)
		for _, values := range [][]string{{"slow2", "a2", "b2"}, {"a3", "slow3", "b3"}, {"a4", "slow4", "slow5", "a5"}} {
			flow.SetRunLength(f, 8)
			synctest.Wait()
			from := time.Since(began)
			source.Send(values...)
			time.Sleep(time.Hour)
			mu.Lock()
			for _, v := range values {
				if keyOf(v) != "slow" && ended[v] != from {
					t.Errorf("%q was held up for %v", v, ended[v]-from)
				}
			}
			mu.Unlock()
		}
		source.End()
		if _, err := stream.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// The run never stands still, since each of its messages comes to its end, but it takes a hundred times as long as runs do.
func TestLongRunThatHasBecomeSlowHoldsStrangersUpForAMillisecondOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow = 300 * time.Microsecond
		start := time.Now()
		var came time.Duration
		f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
			if m.Value == "stranger" {
				came = time.Since(start)
				return nil
			}
			time.Sleep(slow)
			return nil
		}, func(s string) string { return s }, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		if err != nil {
			t.Fatal(err)
		}
		values := slices.Repeat([]string{"a"}, 100)
		s, source := inLongRuns(t, f, 128, append(values, "stranger")...)
		source.End()
		if _, err := s.Wait(); err != nil {
			t.Fatal(err)
		}
		if came > time.Millisecond {
			t.Errorf("the stranger had to wait for %v", came)
		}
	})
}
