package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
	"example.com/flow/internal/testkit"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
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

func TestStreamWithoutMessagesIsNilAndAZeroSummary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, mode := range []flow.OrderingMode{flow.OrderingFIFO, flow.OrderingKeyedFIFO, flow.OrderingNone} {
			f := testkit.New(t, testkit.Succeed, flow.Options{Ordering: flow.OrderingOptions{Mode: mode}})
			sum, err := f.Run(t.Context(), testkit.Given())
			if err != nil || !reflect.DeepEqual(sum, flow.Summary{}) {
				t.Errorf("%v: Run() = %+v, %v, want a zero Summary and nil", mode, sum, err)
			}
		}
	})
}

func TestMessagesAreNumberedFromOneInOrderOfReceipt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []flow.Message[string]
		f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
			got = append(got, flow.Message[string]{Seq: m.Seq, Key: m.Key, Value: m.Value, Attempt: m.Attempt, Pressured: m.Pressured})
			return nil
		}, flow.Options{})
		for range 2 { // each stream counts for itself
			got = nil
			sum, err := f.Run(t.Context(), testkit.Given("a1", "b1", "1"))
			want := []flow.Message[string]{
				{Seq: 1, Key: "a", Value: "a1", Attempt: 1},
				{Seq: 2, Key: "b", Value: "b1", Attempt: 1},
				{Seq: 3, Key: "", Value: "1", Attempt: 1},
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("handler saw %+v, want %+v", got, want)
			}
			if want := (flow.Summary{Received: 3, Succeeded: 3, Committed: 3, Last: 3}); err != nil || !reflect.DeepEqual(sum, want) {
				t.Errorf("Run() = %+v, %v, want %+v, nil", sum, err, want)
			}
		}
	})
}

func TestWithoutAKeyFunctionEveryKeyIsEmpty(t *testing.T) {
	for _, mode := range []flow.OrderingMode{flow.OrderingFIFO, flow.OrderingNone} {
		f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
			if m.Key != "" {
				return fmt.Errorf("key is %q", m.Key)
			}
			return nil
		}, nil, flow.Options{Ordering: flow.OrderingOptions{Mode: mode}})
		if err != nil {
			t.Fatalf("%v: New: %v", mode, err)
		}
		if _, err := f.Run(t.Context(), testkit.Given("a1", "b1")); err != nil {
			t.Errorf("%v: Run: %v", mode, err)
		}
	}
}

func TestRunReturnsWhenAllMessagesHaveFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed})
		c := testkit.Start(t, f, "a1", "b1")
		s.Finish(t, "a1")
		s.Finish(t, "b1")
		if c.Ended() {
			t.Fatal("Run returned before io.EOF")
		}
		c.Send("c1")
		c.End()
		if c.Ended() {
			t.Fatal("Run returned while a handler ran")
		}
		s.Finish(t, "c1")
		sum, err := c.Result(t)
		if want := (flow.Summary{Received: 3, Succeeded: 3, Committed: 3, Last: 3}); err != nil || !reflect.DeepEqual(sum, want) {
			t.Errorf("Run() = %+v, %v, want %+v, nil", sum, err, want)
		}
	})
}

func TestStreamsOfAFlowRunAtOnceAndShareItsCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 3},
		})
		one := testkit.Start(t, f, "a1", "b1")
		two := testkit.Start(t, f, "c1", "d1")
		one.End()
		two.End()
		s.WantRunning(t, "a1 b1 c1")
		s.Finish(t, "a1")
		s.WantRunning(t, "b1 c1 d1")
		s.Finish(t, "b1")
		if sum, err := one.Result(t); err != nil || sum.Succeeded != 2 {
			t.Errorf("first: %+v, %v", sum, err)
		}
		s.FinishAll(t)
		if sum, err := two.Result(t); err != nil || sum.Succeeded != 2 {
			t.Errorf("second: %+v, %v", sum, err)
		}
	})
}

func TestErrorOfRunIsAFailureAndItsSummaryIsComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{})
		c := testkit.Start(t, f, "a1", "b1", "c1", "d1")
		s.Finish(t, "a1")
		s.Fail(t, "b1", testkit.ErrHandler)
		sum, err := c.Result(t)
		fault := testkit.FailureOf(t, err, flow.FailureHandlerError)
		if fault.Seq != 2 || fault.Key != "b" || fault.Attempts != 1 || fault.Value != "b1" || fault.Err != testkit.ErrHandler {
			t.Errorf("failure is %+v", fault)
		}
		if !errors.Is(err, testkit.ErrHandler) {
			t.Error("errors.Is does not see the handler's error")
		}
		want := flow.Summary{Received: 4, Succeeded: 1, Failed: 1, Dropped: 2, Committed: 1, Unsettled: []uint64{2, 3, 4}, Last: 4}
		if !reflect.DeepEqual(sum, want) {
			t.Errorf("summary is %+v, want %+v", sum, want)
		}
	})
}

func TestSummaryHasNoUnexportedFields(t *testing.T) {
	for f := range reflect.TypeFor[flow.Summary]().Fields() {
		if !f.IsExported() {
			t.Errorf("%s is not exported", f.Name)
		}
	}
}

func TestHandlerMayKeepItsValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept []*int
		f, err := flow.New(func(_ context.Context, m flow.Message[*int]) error {
			kept = append(kept, m.Value)
			return nil
		}, nil, flow.Options{MaxPending: 1})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		if _, err := f.Run(t.Context(), func() (*int, error) {
			if n++; n > 1000 {
				return nil, io.EOF
			}
			return new(n), nil
		}); err != nil {
			t.Fatal(err)
		}
		for i, v := range kept {
			if *v != i+1 {
				t.Fatalf("value %d is %d now", i+1, *v)
			}
		}
	})
}

func TestFromChanGivesValuesUntilTheChannelIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan string, 2)
		ch <- "a1"
		ch <- "b1"
		close(ch)
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			sum, err := f.Run(t.Context(), flow.FromChan(t.Context(), ch))
			if err != nil || sum.Succeeded != 2 {
				t.Errorf("Run() = %+v, %v, want 2 succeeded", sum, err)
			}
		}()
		s.FinishAll(t)
		<-done
		recv := flow.FromChan(t.Context(), ch)
		if v, err := recv(); v != "" || err != io.EOF {
			t.Errorf("recv of a closed channel = %q, %v, want io.EOF", v, err)
		}
	})
}

func TestFromChanEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan string, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		recv := flow.FromChan(ctx, ch)
		ch <- "a1"
		if v, err := recv(); v != "a1" || err != nil {
			t.Fatalf("recv() = %q, %v", v, err)
		}
		began := time.Now()
		if _, err := recv(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("recv() = %v, want DeadlineExceeded", err)
		}
		if d := time.Since(began); d != time.Second {
			t.Errorf("recv blocked for %v, want 1s", d)
		}
		ch <- "b1"
		for range 20 { // a context that has ended comes before a value that is there
			if _, err := recv(); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("recv() = %v, want DeadlineExceeded", err)
			}
		}
	})
}

func TestFlowKeepsNoGoroutineBetweenStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the bubble reports a goroutine that stays
		f := testkit.New(t, testkit.Succeed, flow.Options{
			Ordering: testkit.Keyed, IdleTimeout: time.Hour, Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Hour},
		})
		for range 3 {
			if _, err := f.Run(t.Context(), testkit.Given("a1", "b1", "c1")); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
	})
}

// startStream is start by Flow.Start: the test may look at the stream under way.
func startStream(t *testing.T, f *flow.Flow[string], values ...string) (*flow.Stream, *flowtest.Source[string], context.CancelCauseFunc) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	source := flowtest.NewSource(t, values...)
	s := f.Start(ctx, source.Recv)
	t.Cleanup(func() { cancel(nil); _, _ = s.Wait() })
	synctest.Wait()
	return s, source, cancel
}

// wantSettled checks that of the first n messages exactly these are settled, and Committed says how many of the first.
func wantSettled(t *testing.T, s *flow.Stream, n uint64, settled ...uint64) {
	t.Helper()
	synctest.Wait()
	p := s.Progress()
	is := map[uint64]bool{}
	for _, seq := range settled {
		is[seq] = true
	}
	committed := uint64(0)
	for is[committed+1] {
		committed++
	}
	for seq := uint64(1); seq <= n; seq++ {
		if p.Settled(seq) != is[seq] {
			t.Errorf("message %d is settled: %v", seq, p.Settled(seq))
		}
	}
	if got := s.Committed(); got != committed || p.Committed() != committed {
		t.Errorf("Committed() = %d, that of Progress() = %d, want %d", got, p.Committed(), committed)
	}
}

func TestStartDoesNotWaitAndWaitReturnsWhatRunDoesAsOftenAsOneLikes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := testkit.New(t, st.Handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		s, source, _ := startStream(t, f, "a1", "b1")
		st.WantRunning(t, "a1 b1")
		source.End()
		st.FinishAll(t)
		sum, err := s.Wait()
		if err != nil || sum.Succeeded != 2 || sum.Committed != 2 {
			t.Errorf("Wait() = %+v, %v", sum, err)
		}
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if again, err := s.Wait(); err != nil || !reflect.DeepEqual(again, sum) {
					t.Errorf("Wait() = %+v, %v", again, err)
				}
			})
		}
		all.Wait()
		wantSettled(t, s, 2, 1, 2)
	})
}

func TestStreamsProgressIsExactWhileMessagesArePending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := testkit.New(t, st.Handle, flow.Options{
			Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			Backpressure: flow.BackpressureOptions{Capacity: 3},
			Retry:        flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
			OnFailure:    func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		})
		s, source, _ := startStream(t, f, "a1", "b1", "c1", "a2", "d1", "d2")
		wantSettled(t, s, 6)
		st.Finish(t, "b1")
		wantSettled(t, s, 6, 2)
		st.Fail(t, "c1", flow.Permanent(testkit.ErrHandler)) // skipped: that settles it
		wantSettled(t, s, 6, 2, 3)
		st.Fail(t, "a1", testkit.ErrHandler) // waits for its next try
		wantSettled(t, s, 6, 2, 3)
		st.Finish(t, "d1")
		wantSettled(t, s, 6, 2, 3, 5)
		time.Sleep(time.Hour)
		st.Finish(t, "a1")
		wantSettled(t, s, 6, 1, 2, 3, 5)
		source.End()
		st.FinishAll(t)
		wantSettled(t, s, 6, 1, 2, 3, 4, 5, 6)
		sum, err := s.Wait()
		if err != nil || sum.Succeeded != 5 || sum.Failed != 1 {
			t.Errorf("Wait() = %+v, %v", sum, err)
		}
	})
}

func TestStreamsProgressCountsWhatIsSkippedWithItsKeyAndNotWhatHasFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := testkit.New(t, st.Handle, flow.Options{
			Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
				if f.Key == "a" {
					return flow.SkipKey
				}
				return flow.FailStream
			},
		})
		s, _, _ := startStream(t, f, "a1", "b1", "a2", "c1", "a3")
		st.Fail(t, "a1", flow.Permanent(testkit.ErrHandler))
		wantSettled(t, s, 5, 1, 3, 5)
		st.Finish(t, "c1")
		wantSettled(t, s, 5, 1, 3, 4, 5)
		st.Fail(t, "b1", flow.Permanent(testkit.ErrHandler))
		sum, err := s.Wait()
		testkit.FailureOf(t, err, flow.FailureHandlerError)
		if !reflect.DeepEqual(sum.Unsettled, []uint64{2}) {
			t.Errorf("Wait() = %+v", sum)
		}
		wantSettled(t, s, 5, 1, 3, 4, 5) // as at the end
	})
}

// What lies in the mailbox, and what a long run has done so far, shows too.
func TestStreamsProgressIsExactAfterManyQuickMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
			if m.Key == "slow" {
				time.Sleep(time.Hour)
			}
			return nil
		}, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingFIFO}, MaxPending: 10_000})
		var values []string
		for range 5000 {
			values = append(values, "quick")
		}
		values = append(values, "slow")
		for range 100 {
			values = append(values, "quick")
		}
		s, source, _ := startStream(t, f, values...)
		time.Sleep(time.Minute)
		p := s.Progress()
		if p.Committed() != 5000 || s.Committed() != 5000 || p.Settled(5001) || p.Settled(5101) {
			t.Errorf("committed %d, and %d by Progress", s.Committed(), p.Committed())
		}
		source.End()
		time.Sleep(time.Hour)
		if sum, err := s.Wait(); err != nil || sum.Committed != 5101 || s.Committed() != 5101 {
			t.Errorf("Wait() = %+v, %v; Committed() = %d", sum, err, s.Committed())
		}
	})
}

func TestStreamsCommittedNeverGoesBack(t *testing.T) {
	f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
		if m.Seq%7 == 0 {
			return flow.Permanent(testkit.ErrHandler)
		}
		return nil
	}, flow.Options{
		Ordering:  flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
	})
	source := flowtest.NewSource[string](t)
	s := f.Start(t.Context(), source.Recv)
	go func() {
		for i := range 20_000 {
			source.Send(string(rune('a' + i%20)))
		}
		source.End()
	}()
	over := make(chan struct{})
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			var last, exact uint64
			for {
				if now := s.Committed(); now < last {
					t.Errorf("Committed() = %d after %d", now, last)
				} else {
					last = now
				}
				p := s.Progress()
				if now := p.Committed(); now < exact || now < last {
					t.Errorf("Progress() has committed %d after %d, and Committed() = %d", now, exact, last)
				} else {
					exact = now
				}
				select {
				case <-over:
					return
				default:
				}
			}
		})
	}
	sum, err := s.Wait()
	close(over)
	all.Wait()
	if err != nil || sum.Committed != 20_000 || s.Committed() != 20_000 {
		t.Errorf("Wait() = %+v, %v; Committed() = %d", sum, err, s.Committed())
	}
}

func TestStreamThatIsRefusedOrClosedMayBeAskedAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := testkit.New(t, st.Handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		s, _, _ := startStream(t, f, "a1", "b1", "a2")
		st.Finish(t, "b1")
		_ = f.Close()
		sum, err := s.Wait()
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if sum.Received != 3 || sum.Succeeded != 1 || sum.Dropped != 1 {
			t.Errorf("Wait() = %+v", sum)
		}
		wantSettled(t, s, 3, 2)

		late, _, _ := startStream(t, f, "c1")
		sum, err = late.Wait()
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if sum.Received != 0 || late.Committed() != 0 || late.Progress().Committed() != 0 {
			t.Errorf("a stream that is refused: %+v, %d committed", sum, late.Committed())
		}
	})
}

func TestStreamWhoseContextEndsReturnsFromWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := testkit.New(t, st.Handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		s, _, cancel := startStream(t, f, "a1", "a2")
		why := errors.New("gone")
		cancel(why)
		sum, err := s.Wait()
		if f := testkit.FailureOf(t, err, flow.FailureContextCancelled); !errors.Is(f, why) {
			t.Errorf("Wait() = %v", err)
		}
		if sum.Failed != 1 || sum.Dropped != 1 {
			t.Errorf("Wait() = %+v", sum)
		}
	})
}

func TestStartsProgressIsThatOfNothingBeforeAnythingIsReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testkit.New(t, testkit.NewManualHandler().Handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		source := flowtest.NewSource[string](t)
		s := f.Start(t.Context(), source.Recv)
		if s.Committed() != 0 || s.Progress().Committed() != 0 || s.Progress().Settled(1) {
			t.Error("something is settled") // though its goroutine may not have begun
		}
		source.End()
		if _, err := s.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// What a stream has made of its context must not stay registered there: Run's context may live for ever.
func TestContextThatAStreamGaveAwayEndsWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var contexts []context.Context
		keep := func(ctx context.Context) {
			mu.Lock()
			defer mu.Unlock()
			contexts = append(contexts, ctx)
		}
		f := testkit.New(t, func(ctx context.Context, _ flow.Message[string]) error { keep(ctx); return nil },
			flow.Options{Observer: func(ctx context.Context, e flow.Event) {
				if e.Kind == flow.EventStreamStart {
					keep(ctx)
				}
			}})
		if _, err := f.Run(t.Context(), testkit.Given("a1", "b1")); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		_, err := f.Run(t.Context(), testkit.Given("a1")) // refused
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if len(contexts) != 4 {
			t.Fatalf("%d contexts, want 4", len(contexts))
		}
		for i, ctx := range contexts {
			if ctx.Err() == nil {
				t.Errorf("context %d has not ended", i)
			}
		}
	})
}

type unsized struct{ panics bool }

func (u unsized) Size() int {
	if u.panics {
		panic("secret")
	}
	return 10
}

func TestPanickingSizeIsAFailedMessageWithNoAttempts(t *testing.T) {
	for how, o := range map[string]flow.Options{"Queue": {}, "HardReject": {
		Backpressure: flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureHardReject}}} {
		synctest.Test(t, func(t *testing.T) {
			o.MaxPendingBytes = 10
			f, err := flow.New(func(context.Context, flow.Message[unsized]) error { return nil }, nil, o)
			if err != nil {
				t.Fatal(err)
			}
			ch := make(chan unsized, 1)
			ch <- unsized{panics: true}
			sum, err := f.Run(t.Context(), flow.FromChan(t.Context(), ch))
			if fault := testkit.FailureOf(t, err, flow.FailureInternal); fault.Seq != 1 || fault.Attempts != 0 {
				t.Errorf("%s: failure is %+v", how, fault)
			}
			if sum.Received != 1 || sum.Failed != 1 {
				t.Errorf("%s: summary is %+v", how, sum)
			}
			close(ch) // the receiver of the failed stream may still be in it
		})
	}
}

func TestCrashOfOnFailureOnReceiptNamesItsMessage(t *testing.T) {
	for how, crash := range crashes {
		synctest.Test(t, func(t *testing.T) {
			s := testkit.NewManualHandler()
			c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{
				Ordering:  flow.OrderingOptions{Capacity: 1},
				OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { crash(); return flow.SkipMessage },
			}), "a1", "a2", "a3")
			_, err := c.Result(t)
			if f := testkit.FailureOf(t, err, flow.FailureInternal); f.Seq != 3 || f.Value != "a3" {
				t.Errorf("%s: failure is %+v, want that of message 3", how, f)
			}
		})
	}
}

// Messages that are quick are handed out in long runs. These tests have runs of the length they like from the start.

// inLongRuns begins a stream whose runs have up to length messages, and then sends it values.
func inLongRuns[T any](t *testing.T, f *flow.Flow[T], length int, values ...T) (*flow.Stream, *flowtest.Source[T]) {
	t.Helper()
	return inRuns(t, f, func() { flow.SetRunLength(f, length) }, values...)
}

// inOwnRuns begins a stream whose messages its shard runs itself, and then sends it values.
func inOwnRuns[T any](t *testing.T, f *flow.Flow[T], values ...T) (*flow.Stream, *flowtest.Source[T]) {
	t.Helper()
	return inRuns(t, f, func() { flow.SetOwnRuns(f) }, values...)
}

func inRuns[T any](t *testing.T, f *flow.Flow[T], set func(), values ...T) (*flow.Stream, *flowtest.Source[T]) {
	t.Helper()
	source := flowtest.NewSource[T](t)
	s := f.Start(context.Background(), source.Recv)
	synctest.Wait()
	set()
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
		own := rapid.Bool().Draw(rt, "own")
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
						return flow.Permanent(testkit.ErrHandler)
					}
					return testkit.ErrHandler
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
			s, source := inRuns(t, f, func() {
				flow.SetRunLength(f, length)
				if own {
					flow.SetOwnRuns(f)
				}
			}, jobs...)
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

// A shard that runs a message itself is taken over by another goroutine when that stands still: others wait for a
// millisecond at most, and however the message ends then, it counts once and its key goes on behind it.
func TestHandlerThatStandsStillOnItsShardsGoroutineHoldsUpOthersForAMillisecondAtMost(t *testing.T) {
	ends := map[string]func() error{
		"well":        func() error { return nil },
		"in an error": func() error { return testkit.ErrHandler },
		"in a panic":  func() error { panic("no") },
		"in a Goexit": func() error { runtime.Goexit(); return nil },
	}
	shapes := map[string]flow.Options{
		"plain":        {},
		"lined up":     {Observer: func(context.Context, flow.Event) {}},
		"refusing":     {Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 10}},
		"soft":         {Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureSoftAllow, Capacity: 1}},
		"over streams": {Ordering: flow.OrderingOptions{Scope: flow.ScopeFlow}},
	}
	for shape, opts := range shapes {
		for how, ends := range ends {
			t.Run(shape+", ends "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					start, release := time.Now(), make(chan struct{})
					var mu sync.Mutex
					ran := map[string]time.Duration{}
					opts := opts
					opts.Ordering.Mode = flow.OrderingKeyedFIFO
					opts.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }
					f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
						if m.Value == "a2" {
							<-release
							return ends()
						}
						mu.Lock()
						defer mu.Unlock()
						ran[m.Value] = time.Since(start)
						return nil
					}, func(s string) string { return s[:1] }, opts)
					if err != nil {
						t.Fatal(err)
					}
					s, source := inOwnRuns(t, f, "a1", "b1", "a2", "b2", "a3", "c1")
					stranger := flowtest.NewSource[string](t)
					beside := f.Start(context.Background(), stranger.Recv)
					stranger.Send("d1")
					stranger.End()
					time.Sleep(time.Millisecond)
					if _, err := beside.Wait(); err != nil || time.Since(start) > time.Millisecond {
						t.Errorf("another stream: Wait() = %v, after %v", err, time.Since(start))
					}
					if st := f.Stats(); st.InFlight != 1 {
						t.Errorf("Stats() = %+v, want one in flight", st)
					}
					synctest.Wait()
					for _, value := range []string{"a1", "b1", "b2", "c1"} {
						if at, ok := ran[value]; !ok || at > time.Millisecond {
							t.Errorf("%s ran: %v, after %v", value, ok, at)
						}
					}
					close(release)
					source.End()
					sum, err := s.Wait()
					crashes := how == "in a panic" || how == "in a Goexit"
					if _, ok := ran["a3"]; ok == crashes || (err != nil) != crashes {
						t.Errorf("a3 ran: %v; Wait() = %+v, %v", ok, sum, err)
					}
					if sum.Received != sum.Succeeded+sum.Failed+sum.Dropped || sum.Received < 6 {
						t.Errorf("Wait() = %+v", sum)
					}
				})
			})
		}
	}
}

// The timer that looks after a shard's goroutine is not set for each message. If it comes just after one has begun, it looks
// once more.
func TestMessageThatBeginsJustBeforeTheLookOnItsShardsGoroutineIsFoundToStandStillToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, release, ran := time.Now(), make(chan struct{}), time.Duration(0)
		f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
			switch m.Value {
			case "b":
				<-release
			case "c":
				ran = time.Since(start)
			}
			return nil
		}, func(s string) string { return s }, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		if err != nil {
			t.Fatal(err)
		}
		s, source := inOwnRuns(t, f, "a")
		time.Sleep(450 * time.Microsecond)
		source.Send("b", "c")
		source.End()
		time.Sleep(time.Second)
		synctest.Wait()
		if ran == 0 || ran > 1450*time.Microsecond {
			t.Errorf("c has run after %v", ran)
		}
		close(release)
		if _, err := s.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// The goroutine that answers is the one that runs the handler which asks.
func TestHandlerOnItsShardsGoroutineMayAskForStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var f *flow.Flow[string]
		var inFlight int
		f, err := flow.New(func(context.Context, flow.Message[string]) error {
			inFlight = f.Stats().InFlight
			return nil
		}, nil, flow.Options{})
		if err != nil {
			t.Fatal(err)
		}
		s, source := inOwnRuns(t, f, "a")
		source.End()
		if _, err := s.Wait(); err != nil || inFlight != 1 {
			t.Errorf("%d in flight; Wait() = %v", inFlight, err)
		}
		if took := time.Since(start); took > 0 { // it need not stand still first
			t.Errorf("it took %v", took)
		}
	})
}

func TestShutdownDropsWhatALongRunHasNotBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1}})
		stream, _ := inLongRuns(t, f, 8, "a1", "b1", "c1", "a2")
		for len(s.Attempts()) == 0 {
			time.Sleep(time.Microsecond)
		}
		done := make(chan error)
		go func() { done <- f.Shutdown(context.Background()) }()
		synctest.Wait() // before anybody has looked whether the run stands still
		s.Finish(t, "a1")
		if err := <-done; err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
		if sum, _ := stream.Wait(); sum.Succeeded != 1 || sum.Dropped != 3 || s.History() != "a1" {
			t.Errorf("%q has run, and Wait() = %+v", s.History(), sum)
		}
	})
}

func TestSkippedKeysMessagesNeedNoCapacityWhileRunsAreLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey },
		})
		stream, source := inLongRuns(t, f, 8, "a1")
		s.Fail(t, "a1", flow.Permanent(testkit.ErrHandler))
		flow.SetRunLength(f, 8)
		source.Send("b1")
		s.WantRunning(t, "b1")
		flow.SetRunLength(f, 8)
		source.Send("a2", "a3")
		synctest.Wait()
		if p := stream.Progress(); !p.Settled(3) || !p.Settled(4) {
			t.Error("messages of a key that is skipped wait for a slot")
		}
		source.End()
		s.FinishAll(t)
		if sum, err := stream.Wait(); err != nil || sum.Rejected != 2 {
			t.Errorf("Wait() = %+v, %v", sum, err)
		}
	})
}

func TestKeyThatWasSlowHoldsUpNobodyWhileRunsAreLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		began, ended := time.Now(), map[string]time.Duration{}
		f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
			if m.Key == "slow" {
				time.Sleep(time.Minute)
			}
			mu.Lock()
			defer mu.Unlock()
			ended[m.Value] = time.Since(began)
			return nil
		}, flow.Options{Ordering: testkit.Keyed})
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
				if testkit.KeyOf(v) != "slow" && ended[v] != from {
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
			if m.Value == "other" {
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
		s, source := inLongRuns(t, f, 128, append(values, "other")...)
		source.End()
		if _, err := s.Wait(); err != nil {
			t.Fatal(err)
		}
		if came > time.Millisecond {
			t.Errorf("the other key had to wait for %v", came)
		}
	})
}

func TestStopDropsWhatWaitsAndLetsWhatRunsFinishWithItsContextUnharmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		ended := make(chan error, 4)
		f := testkit.New(t, func(ctx context.Context, m flow.Message[string]) error {
			err := st.Handle(ctx, m)
			ended <- ctx.Err()
			return err
		}, flow.Options{
			Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			Backpressure: flow.BackpressureOptions{Capacity: 2},
			Retry:        flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
		})
		s, _, _ := startStream(t, f, "a1", "b1", "a2", "c1", "d1")
		st.Fail(t, "b1", testkit.ErrHandler) // b1 waits for its next try, c1 runs
		st.WantRunning(t, "a1 c1")
		other, end, _ := startStream(t, f, "x1")
		s.Stop()
		s.Stop()
		wantSettled(t, s, 5)
		st.Finish(t, "a1") // a2 and d1 do not start
		st.Finish(t, "c1")
		sum, err := s.Wait()
		testkit.FailureOf(t, err, flow.FailureShutdown)
		if sum.Received != 5 || sum.Succeeded != 2 || sum.Dropped != 2 || sum.Failed != 1 {
			t.Errorf("Wait() = %+v", sum)
		}
		wantSettled(t, s, 5, 1, 4)
		for range 3 {
			if err := <-ended; err != nil {
				t.Errorf("a handler's context has ended: %v", err)
			}
		}
		st.WantRunning(t, "x1") // another stream of the Flow goes on
		end.End()
		st.FinishAll(t)
		if _, err := other.Wait(); err != nil {
			t.Errorf("the other stream: %v", err)
		}
	})
}

func TestStopReadsNoFurtherAndDoesNotWakeRecv(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := testkit.New(t, st.Handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		s, source, _ := startStream(t, f, "a1")
		st.Finish(t, "a1")
		s.Stop()
		sum, err := s.Wait() // though recv is blocked
		testkit.FailureOf(t, err, flow.FailureShutdown)
		source.Send("a2")
		st.WantRunning(t, "")
		if sum.Received != 1 || sum.Succeeded != 1 {
			t.Errorf("Wait() = %+v", sum)
		}
		wantSettled(t, s, 2, 1)
	})
}

func TestStopAfterTheEndChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := testkit.New(t, st.Handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		s, source, _ := startStream(t, f, "a1")
		source.End()
		st.FinishAll(t)
		if _, err := s.Wait(); err != nil {
			t.Fatal(err)
		}
		s.Stop()
		if sum, err := s.Wait(); err != nil || sum.Succeeded != 1 {
			t.Errorf("Wait() = %+v, %v", sum, err)
		}
		never := f.Start(t.Context(), flowtest.NewSource(t, "b1").Recv) // stopped at once, wherever it is
		never.Stop()
		st.FinishAll(t)
		if sum, err := never.Wait(); err == nil && sum.Succeeded != 1 || err != nil && flow.ClassifyFailure(err) != flow.FailureShutdown {
			t.Errorf("Wait() = %+v, %v", sum, err)
		}
	})
}

// A message that may be refused has a slot from the moment that it is accepted. The run that it is in holds it, and must not
// hold it any longer once the message has been taken back.
func TestLongRunThatStandsStillKeepsNoSlotOfTheMessagesBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ran := map[string]time.Duration{}
		var mu sync.Mutex
		f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
			mu.Lock()
			ran[m.Value] = time.Since(start)
			mu.Unlock()
			if m.Value == "a" {
				time.Sleep(time.Minute)
			}
			return nil
		}, func(s string) string { return s }, flow.Options{
			Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 4},
		})
		if err != nil {
			t.Fatal(err)
		}
		s, source := inLongRuns(t, f, 4, "a", "b", "c", "d")
		time.Sleep(2 * time.Millisecond)
		source.Send("e", "f", "g") // there is room for three
		source.End()
		if _, err := s.Wait(); err != nil {
			t.Fatal(err)
		}
		for _, value := range []string{"b", "c", "d", "e", "f", "g"} {
			if at, ok := ran[value]; !ok || at > 4*time.Millisecond {
				t.Errorf("%s ran at %v (%v)", value, at, ok)
			}
		}
	})
}

// What recv returns after the stream has ended is discarded: none of the caller's functions is called for it, since Run, and
// Shutdown too, may have returned.
func TestNothingOfTheCallersIsCalledForWhatComesAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := 0
		f, err := flow.New(func(context.Context, flow.Message[string]) error { return errors.New("no") },
			func(s string) string { keys++; return s }, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		if err != nil {
			t.Fatal(err)
		}
		source := make(chan string)
		s := f.Start(t.Context(), flow.FromChan(t.Context(), source))
		source <- "a"
		if _, err := s.Wait(); err == nil {
			t.Error("the stream has not failed")
		}
		if err := f.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		source <- "late"
		synctest.Wait()
		if keys != 1 {
			t.Errorf("the key function was called %d times", keys)
		}
	})
}

// The shard settles what a long run has done before it sleeps, and what gets its turn by that need not wait for the next look.
func TestMessageThatGetsItsTurnByALongRunStartsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var second time.Duration
		goOn := make(chan struct{})
		f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
			switch m.Value {
			case "a1":
				<-goOn
			case "a2":
				second = time.Since(start)
			case "b1":
				time.Sleep(100 * time.Microsecond)
			}
			return nil
		}, func(s string) string { return s[:1] }, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		if err != nil {
			t.Fatal(err)
		}
		s, source := inLongRuns(t, f, 2, "a1", "b1")
		synctest.Wait() // the shard sleeps
		close(goOn)
		synctest.Wait() // a1 is over, and b1 runs
		source.Send("a2")
		source.End()
		if _, err := s.Wait(); err != nil {
			t.Fatal(err)
		}
		if second > 0 {
			t.Errorf("a2 started after %v", second)
		}
	})
}

// The shard of a stream that always has something to do need not sleep, and must still see what is due, and whom a stuck key
// leaves little room.
func TestBusyStreamKeepsNobodyFromItsNextTryNorUnread(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	type job struct {
		key string
		do  func(attempt int) error
	}
	f, err := flow.New(func(_ context.Context, m flow.Message[job]) error {
		if m.Value.do == nil {
			return nil
		}
		return m.Value.do(m.Attempt)
	}, func(j job) string { return j.key }, flow.Options{
		Ordering:   flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		Retry:      flow.RetryOptions{MaxAttempts: 2, Backoff: time.Millisecond},
		MaxPending: 64,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	busy := f.Start(ctx, func() (job, error) { return job{key: "busy"}, ctx.Err() })
	for busy.Committed() < 10_000 {
		time.Sleep(time.Millisecond)
	}

	stuck, read := make(chan struct{}), make(chan struct{})
	source := flowtest.NewSource[job](t)
	s := f.Start(context.Background(), source.Recv)
	source.Send(job{key: "stuck", do: func(int) error { <-stuck; return nil }})
	for range 58 { // with it and the one behind them there is room for 4, which is not worth waking the reader for
		source.Send(job{key: "stuck"})
	}
	for range 5 {
		source.Send(job{key: "quick"})
	}
	source.Send(job{key: "quick", do: func(attempt int) error {
		if attempt == 1 {
			return testkit.ErrHandler
		}
		close(read)
		return nil
	}})
	select {
	case <-read:
	case <-time.After(20 * time.Second):
		t.Errorf("%d messages of the busy stream later it was not read, or not tried again", busy.Committed())
	}
	close(stuck)
	source.End()
	if _, err := s.Wait(); err != nil {
		t.Error(err)
	}
	cancel()
	if _, err := busy.Wait(); flow.ClassifyFailure(err) != flow.FailureContextCancelled {
		t.Error(err)
	}
}
