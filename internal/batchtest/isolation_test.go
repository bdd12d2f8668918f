package batchtest_test

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
)

var errPoison = errors.New("poison")

// poisonable is a handler that fails as a whole if a message of the batch starts with "x". It counts its calls.
type poisonable struct {
	t     testing.TB
	calls []string
	how   func() error // nil: errPoison
}

func (p *poisonable) handle(_ context.Context, batch []flow.Message[string], _ []error) error {
	p.calls = append(p.calls, testkit.ValuesOf(batch))
	for _, m := range batch {
		if strings.HasPrefix(m.Value, "x") {
			if p.how != nil {
				return p.how()
			}
			return errPoison
		}
	}
	return nil
}

// heldBack runs streams of these values, which a first call holds back until all have been received, and waits for them.
func heldBack(t testing.TB, h flow.BatchHandler[string], o flow.Options, streams ...[]string) (sums []flow.Summary, errs []error) {
	t.Helper()
	gate := make(chan struct{})
	first := true
	f := testkit.NewBatch(t, func(ctx context.Context, batch []flow.Message[string], errs []error) error {
		if first {
			first = false
			<-gate
			return nil
		}
		return h(ctx, batch, errs)
	}, o)
	hold := testkit.Start(t, f, "hold")
	hold.End()
	var calls []*testkit.Stream
	for _, values := range streams {
		c := testkit.Start(t, f, values...)
		c.End()
		calls = append(calls, c)
	}
	synctest.Wait()
	close(gate)
	time.Sleep(time.Hour)
	for _, c := range calls {
		sum, err := c.Result(t)
		testkit.CheckConserved(t, sum)
		sums, errs = append(sums, sum), append(errs, err)
	}
	return sums, errs
}

func namesFrom(prefix string, n int) (values []string) {
	for i := range n {
		values = append(values, fmt.Sprint(prefix, i+1))
	}
	return values
}

func TestBatchPoisonKeepsNoBatch(t *testing.T) {
	for name, how := range map[string]func() error{
		"error": nil, "permanent": func() error { return flow.Permanent(errPoison) },
		"panic": func() error { panic("poison") }, "Goexit": func() error { runtime.Goexit(); return nil },
	} {
		for _, n := range []int{2, 3, 8, 100, 256} {
			for _, at := range []int{0, n / 3, n - 1} {
				synctest.Test(t, func(t *testing.T) {
					p := &poisonable{t: t, how: how}
					streams := make([][]string, n)
					for i := range streams {
						streams[i] = []string{fmt.Sprint("a", i)}
					}
					streams[at] = []string{"x1"}
					sums, errs := heldBack(t, p.handle, flow.Options{}, streams...)
					for i, sum := range sums {
						if i == at {
							if sum.Failed != 1 || errs[i] == nil || sum.Retried > uint64(bits.Len(uint(n-1))) {
								t.Errorf("%s: of %d, the poison at %d: %+v, %v", name, n, at, sum, errs[i])
							}
							continue
						}
						if sum.Succeeded != 1 || errs[i] != nil {
							t.Errorf("%s: of %d, poison at %d, %d: %+v, %v", name, n, at, i, sum, errs[i])
						}
					}
					if further, most := len(p.calls)-1, 2*bits.Len(uint(n-1)); further > most {
						t.Errorf("%s: of %d, poison at %d: %d further calls, want %d at most: %q", name, n, at, further, most, p.calls)
					}
				})
			}
		}
	}
}

func TestBatchIsolationInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &poisonable{t: t}
		o := flow.Options{OnFailure: skipAll}
		sums, errs := heldBack(t, p.handle, o, []string{"a1", "a2", "x3", "a4", "a5", "a6", "a7", "a8"})
		want := "a1 a2 x3 a4 a5 a6 a7 a8 | a1 a2 x3 a4 | a1 a2 | x3 a4 | x3 | a4 | a5 a6 a7 a8"
		if got := strings.Join(p.calls, " | "); got != want {
			t.Errorf("calls: %s, want %s", got, want)
		}
		if errs[0] != nil || sums[0].Succeeded != 7 || sums[0].Failed != 1 || sums[0].Committed != 8 || sums[0].Retried != 4+2+2+1+1+4 {
			t.Errorf("%+v, %v", sums[0], errs[0])
		}
	})
}

func TestBatchIsolationComesAfterTheLastAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &poisonable{t: t}
		o := flow.Options{OnFailure: skipAll, Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second}}
		began := time.Now()
		_, _ = heldBack(t, func(ctx context.Context, batch []flow.Message[string], errs []error) error {
			if got := time.Since(began); len(p.calls) >= 2 && got != 2*time.Second {
				t.Errorf("call %d begins after %v", len(p.calls)+1, got)
			}
			return p.handle(ctx, batch, errs)
		}, o, []string{"a1", "x2"})
		if got, want := strings.Join(p.calls, " | "), "a1 x2 | a1 x2 | a1 x2 | a1 | x2"; got != want {
			t.Errorf("calls: %s, want %s", got, want)
		}
	})
}

func TestBatchPoisonThatStandsAloneIsRetriedByTheUsualRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := 2
		p := &poisonable{t: t}
		p.how = func() error {
			if left--; left < 0 {
				return errPoison
			}
			return flow.Permanent(errPoison)
		}
		o := flow.Options{OnFailure: skipAll, Retry: flow.RetryOptions{MaxAttempts: 5, Backoff: time.Second}}
		sums, _ := heldBack(t, p.handle, o, []string{"x1", "a2", "a3", "a4"})
		want := "x1 a2 a3 a4 | x1 a2 | x1 | x1 | x1 | a2 a3 a4"
		if got := strings.Join(p.calls, " | "); got != want {
			t.Errorf("calls: %s, want %s", got, want)
		}
		if sums[0].Succeeded != 3 || sums[0].Failed != 1 {
			t.Errorf("%+v", sums[0])
		}
	})
}

func TestBatchOnePoisonInTenThousandCostsSixteenCalls(t *testing.T) {
	for _, at := range []int{0, 777, 5432, 9999} {
		synctest.Test(t, func(t *testing.T) {
			p := &poisonable{t: t}
			streams := make([][]string, 10)
			for i := range streams {
				streams[i] = namesFrom("a", 1000)
			}
			streams[at/1000][at%1000] = "x"
			sums, errs := heldBack(t, p.handle, flow.Options{OnFailure: skipAll}, streams...)
			for i, sum := range sums {
				want := uint64(0)
				if i == at/1000 {
					want = 1
				}
				if errs[i] != nil || sum.Failed != want || sum.Succeeded != 1000-want || sum.Committed != 1000 {
					t.Errorf("the poison at %d, stream %d: %+v, %v", at, i, sum, errs[i])
				}
			}
			if most := (10_000+255)/256 + 2*8; len(p.calls) > most {
				t.Errorf("the poison at %d: %d calls, want %d at most", at, len(p.calls), most)
			}
		})
	}
}

func TestBatchIsolationBounded(t *testing.T) { // a poison a stream among 100, each with an action of its own
	synctest.Test(t, func(t *testing.T) {
		p := &poisonable{t: t}
		actions := []flow.FailureAction{flow.FailStream, flow.SkipMessage, flow.SkipKey}
		o := flow.Options{OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
			if f.Kind == flow.FailureOrdering {
				return flow.SkipMessage
			}
			return actions[len(f.Value.(string))%3]
		}}
		var streams [][]string
		for i := range 100 {
			values := namesFrom("a", 100)
			for j := range values {
				if j%2 == 1 {
					values[j] = strings.Replace(values[j], "a", "b", 1)
				}
			}
			values[i] = "x" + strings.Repeat("y", i%3)
			streams = append(streams, values)
		}
		sums, errs := heldBack(t, p.handle, o, streams...)
		poisons := 0
		for i, sum := range sums {
			poison := "x" + strings.Repeat("y", i%3)
			action := actions[len(poison)%3]
			switch {
			case action == flow.FailStream && (errs[i] == nil || sum.Succeeded+sum.Failed+sum.Dropped != 100),
				action != flow.FailStream && (errs[i] != nil || sum.Succeeded != 99 || sum.Failed != 1):
				t.Errorf("stream %d: %+v, %v", i, sum, errs[i])
			}
			poisons++
		}
		if most := poisons*2*8 + 10_000/256 + 100; len(p.calls) > most {
			t.Errorf("%d calls, want %d at most", len(p.calls), most)
		}
	})
}

func TestBatchIsolationInAnOutage(t *testing.T) {
	for _, n := range []int{2, 3, 10, 256} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			var failures []*flow.Failure
			o := flow.Options{OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
				failures = append(failures, f)
				return flow.SkipMessage
			}}
			sums, errs := heldBack(t, func(context.Context, []flow.Message[string], []error) error {
				calls++
				return fmt.Errorf("call %d: %w", calls, testkit.ErrHandler)
			}, o, namesFrom("a", n))
			if sums[0].Failed != uint64(n) || errs[0] != nil || len(failures) != n {
				t.Errorf("of %d: %+v, %v", n, sums[0], errs[0])
			}
			limit := 4 * bits.Len(uint(n-1))
			if want := 1 + min(limit, 2*n-2); calls != want {
				t.Errorf("of %d: %d calls, want %d", n, calls, want)
			}
			for i, f := range failures {
				if f.Seq != uint64(i+1) {
					t.Errorf("of %d: OnFailure number %d is about %d", n, i+1, f.Seq)
				}
			}
			if last := failures[n-1].Err.Error(); !strings.HasPrefix(last, fmt.Sprintf("call %d:", calls)) {
				t.Errorf("of %d: the last one fails with %q", n, last)
			}
		})
	}
}

// A Retryable that panics has the call decided on once more, and once each such call counted as two towards an outage.
func TestBatchIsolationCountsACallOnceAlthoughRetryablePanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &poisonable{t: t}
		o := flow.Options{Retry: flow.RetryOptions{MaxAttempts: 10, Retryable: func(error) bool { panic("Retryable") }}}
		heldBack(t, p.handle, o, []string{"x1"}, []string{"x2"}, []string{"x3"}, []string{"x4"})
		want := "x1 x2 x3 x4 | x1 x2 | x1 | x2 | x3 x4 | x3 | x4"
		if got := strings.Join(p.calls, " | "); got != want {
			t.Errorf("calls were %s, want %s", got, want)
		}
	})
}

func TestBatchIsolationStopsAtClose(t *testing.T) {
	for _, how := range []string{"Close", "Shutdown"} {
		synctest.Test(t, func(t *testing.T) {
			var s testkit.ManualBatchHandler
			f := testkit.NewBatch(t, s.Handle, flow.Options{})
			release := testkit.Occupy(t, f, &s)
			a, b := testkit.Start(t, f, "a1", "a2"), testkit.Start(t, f, "b1", "b2")
			release()
			s.Fail(t, "a1 b1 a2 b2", errPoison)
			s.WantCalls(t, "a1 b1")
			down := make(chan error, 1)
			kind := flow.FailureShutdown
			if how == "Close" {
				_ = f.Close()
				testkit.FailureOf(t, s.CauseOf(t, "a1 b1"), kind)
			} else {
				go func() { down <- f.Shutdown(context.Background()) }()
				if err := s.CauseOf(t, "a1 b1"); err != nil {
					t.Errorf("a Shutdown has cancelled the call: %v", err)
				}
			}
			s.Succeed(t, "a1 b1")
			s.WantPast(t, "busy", "a1 b1 a2 b2", "a1 b1")
			for _, c := range []*testkit.Stream{a, b} {
				_, err := c.Result(t)
				testkit.FailureOf(t, err, kind)
				c.WantSummary(t, flow.Summary{Succeeded: 1, Failed: 1, Retried: 1})
			}
			if how == "Shutdown" {
				if err := <-down; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestBatchPoisonDelaysCloseByNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 9, Backoff: time.Hour}})
		release := testkit.Occupy(t, f, &s)
		a := testkit.Start(t, f, "x1", "a2", "a3")
		release()
		s.Fail(t, "x1 a2 a3", errPoison)
		began := time.Now()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err := f.Shutdown(context.Background()); err != nil || time.Since(began) != 0 {
			t.Errorf("after Close, Shutdown took %v: %v", time.Since(began), err)
		}
		a.WantSummary(t, flow.Summary{Failed: 3})
		_, err := a.Result(t)
		testkit.FailureOf(t, err, flow.FailureShutdown)
	})
}

func TestBatchIsolationDropsWhatThePoisonEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &poisonable{t: t}
		o := flow.Options{Ordering: testkit.Keyed, OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
			switch f.Value.(string) {
			case "x1":
				return flow.FailStream
			case "xx1":
				return flow.SkipKey
			}
			return flow.SkipMessage
		}}
		sums, errs := heldBack(t, p.handle, o, []string{"x1", "x2", "b1"}, []string{"xx1", "xx2", "b1"}, []string{"a1", "a2"})
		if sums[0].Failed != 3 || sums[0].Succeeded != 0 || errs[0] == nil {
			t.Errorf("the stream that the poison ends: %+v, %v", sums[0], errs[0])
		}
		if want := (flow.Summary{Received: 3, Succeeded: 1, Failed: 1, Rejected: 1}); sums[1].Succeeded != 1 || sums[1].Rejected != 1 || errs[1] != nil {
			t.Errorf("the key that is skipped: %+v, %v, want %+v", sums[1], errs[1], want)
		}
		if sums[2].Succeeded != 2 || errs[2] != nil {
			t.Errorf("the other stream: %+v, %v", sums[2], errs[2])
		}
		for i, name := range p.calls {
			if i > 0 && strings.Contains(name, "x2") && len(strings.Fields(name)) == 1 {
				t.Errorf("called alone: %q", name)
			}
		}
		p.calls = nil
		_, _ = heldBack(t, p.handle, o, []string{"x1", "x2"}, []string{"xx1", "xx2"})
		if got, want := strings.Join(p.calls, " | "), "x1 xx1 x2 xx2 | x1 xx1 | x1 | xx1"; got != want {
			t.Errorf("calls: %s, want %s", got, want)
		}
	})
}

func TestBatchNoIsolationFailsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &poisonable{t: t}
		o := flow.Options{Batch: flow.BatchOptions{NoIsolation: true}, Retry: flow.RetryOptions{MaxAttempts: 2}}
		sums, errs := heldBack(t, p.handle, o, []string{"x1"}, []string{"a1"}, []string{"b1"})
		for i, sum := range sums {
			testkit.FailureOf(t, errs[i], flow.FailureHandlerError)
			if sum.Failed != 1 || sum.Retried != 1 {
				t.Errorf("stream %d: %+v", i, sum)
			}
		}
		if len(p.calls) != 2 {
			t.Errorf("calls: %q", p.calls)
		}
	})
}

func TestBatchIsolationKeepsLaterPartsBehindWhatIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		f := testkit.NewBatch(t, s.Handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 4, Backoff: time.Second}})
		release := testkit.Occupy(t, f, &s)
		a := testkit.Start(t, f, "a1", "a2", "a3")
		b := testkit.Start(t, f, "b1")
		release()
		s.Fail(t, "a1 b1 a2 a3", flow.Permanent(errPoison))
		s.Return(t, "a1 b1", testkit.ErrHandler) // a1 waits for its next try, so a2 and a3 wait for a1
		s.WantCalls(t, "")
		b.End()
		b.WantSummary(t, flow.Summary{Succeeded: 1, Retried: 1})
		time.Sleep(time.Second)
		s.WantCalls(t, "a1 a2 a3")
		s.Succeed(t, "a1 a2 a3")
		a.End()
		a.WantSummary(t, flow.Summary{Succeeded: 3, Retried: 2 + 1 + 1})
	})
}

// Observers are told of drops by a worker, while the shard goes on.
func TestBatchIsolationGoesOnInOrderBehindWhatThePoisonEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s testkit.ManualBatchHandler
		var log testkit.EventLog
		f := testkit.NewBatch(t, s.Handle, flow.Options{
			Ordering: flow.OrderingOptions{Scope: flow.ScopeFlow},
			Observer: log.Observe, Batch: flow.BatchOptions{MaxMessages: 3},
		})
		release := testkit.Occupy(t, f, &s)
		x, y := testkit.Start(t, f, "x1", "x2"), testkit.Start(t, f, "y1", "y2")
		release()
		y.End()
		for _, call := range []string{"x1 x2 y1", "x1 x2", "x1"} {
			s.Fail(t, call, testkit.ErrHandler)
		}
		s.WantCalls(t, "y1") // and not with y2, which has nothing to do with the poison
		s.Succeed(t, "y1", "y2")
		x.WantSummary(t, flow.Summary{Failed: 2, Retried: 3})
		y.WantSummary(t, flow.Summary{Succeeded: 2, Retried: 1})
	})
}
