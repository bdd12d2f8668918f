package flow_test

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/flow"
)

func TestSkipKeyRunsNoLaterMessageOfTheKey(t *testing.T) {
	for _, mode := range []flow.OrderingMode{flow.OrderingFIFO, flow.OrderingKeyedFIFO} {
		t.Run(mode.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s, j := newStage(), &judge{action: flow.SkipKey}
				f := mustNew(t, s.handle, flow.Options{OnFailure: j.decide, Ordering: flow.OrderingOptions{Mode: mode}})
				c := start(t, f, "a1", "a2", "b1", "a3")
				s.fail(t, "a1", errHandler)
				c.Send("a4", "c1")
				c.End()
				s.finishAll(t)
				sum, err := c.result(t)
				if want := 3; err != nil || sum.Failed != 1 || sum.Rejected != uint64(want) || sum.Succeeded != 2 || sum.Committed != 6 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
				wantHeard(t, j, "a1:HandlerError a2:Ordering a3:Ordering a4:Ordering") // in order, for a dead-letter store
				if last := j.at(3); last.Attempts != 0 || last.Key != "a" || last.Seq != 5 {
					t.Errorf("failure is %+v", last)
				}
			})
		})
	}
}

func TestGivenUpMessageThatIsNotSkippedEndsTheStream(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed, OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
			if f.Kind == flow.FailureOrdering {
				return flow.FailStream
			}
			return flow.SkipKey
		}})
		c := start(t, f, "a1", "b1", "a2")
		s.finish(t, "b1")
		s.fail(t, "a1", errHandler)
		sum, err := c.result(t)
		if fault := failureOf(t, err, flow.FailureOrdering); fault.Seq != 3 {
			t.Errorf("failure is %+v", fault)
		}
		if sum.Committed != 2 || !slices.Equal(sum.Unsettled, []uint64{3}) || sum.Rejected != 1 {
			t.Errorf("summary is %+v", sum)
		}
	})
}

func TestSkipKeyHoldsForItsStreamOnlyAlsoWithScopeFlow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, j := newStage(), &judge{action: flow.SkipKey}
		f := mustNew(t, s.handle, flow.Options{OnFailure: j.decide, Ordering: flow.OrderingOptions{
			Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow}})
		one := start(t, f, "a1", "a2")
		two := start(t, f, "a3")
		one.Send("a4")
		one.End()
		two.End()
		s.fail(t, "a1", errHandler)
		wantNow(t, s, "a3")
		if j.heard() != "a1:HandlerError a2:Ordering" {
			t.Errorf("OnFailure was asked about %q: a4 comes after a3", j.heard())
		}
		s.finish(t, "a3")
		if sum, err := two.result(t); err != nil || sum.Succeeded != 1 {
			t.Errorf("second stream: %+v, %v", sum, err)
		}
		if sum, err := one.result(t); err != nil || sum.Rejected != 2 {
			t.Errorf("first stream: %+v, %v", sum, err)
		}
		three := start(t, f, "a5")
		wantNow(t, s, "a5")
		s.finish(t, "a5")
		three.End()
	})
}

func TestSkipKeyIsSkipMessageWhereThereIsNoOrder(t *testing.T) {
	for name, o := range map[string]flow.OrderingOptions{
		"OrderingNone":      {Mode: flow.OrderingNone},
		"UnorderedEmptyKey": {Mode: flow.OrderingKeyedFIFO, UnorderedEmptyKey: true},
	} {
		bubble(t, func(t *testing.T) {
			s, j := newStage(), &judge{action: flow.SkipKey}
			c := start(t, mustNew(t, s.handle, flow.Options{OnFailure: j.decide, Ordering: o}), "1", "2")
			s.fail(t, "1", errHandler)
			c.Send("3")
			wantNow(t, s, "2 3")
			c.End()
			s.finishAll(t)
			if sum, err := c.result(t); err != nil || sum.Succeeded != 2 || sum.Rejected != 0 {
				t.Errorf("%s: Run() = %+v, %v", name, sum, err)
			}
		})
	}
}

func TestEmptyKeyIsGivenUpLikeAnyOther(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, j := newStage(), &judge{action: flow.SkipKey}
		c := start(t, mustNew(t, s.handle, flow.Options{OnFailure: j.decide, Ordering: keyed}), "1", "2", "a1")
		s.fail(t, "1", errHandler)
		wantHeard(t, j, "1:HandlerError 2:Ordering")
		wantNow(t, s, "a1")
		c.End()
		s.finishAll(t)
	})
}

func TestGivenUpMessageNeedsNoCapacity(t *testing.T) {
	for name, o := range map[string]flow.BackpressureOptions{
		"Queue":         {Capacity: 1},
		"QueueCapacity": {Capacity: 1, QueueCapacity: 1},
		"HardReject":    {Capacity: 1, Policy: flow.BackpressureHardReject},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s, j := newStage(), &judge{action: flow.SkipKey}
				c := start(t, mustNew(t, s.handle, flow.Options{OnFailure: j.decide, Ordering: keyed, Backpressure: o}), "a1")
				s.fail(t, "a1", errHandler)
				c.Send("b1")
				wantNow(t, s, "b1") // has the only slot
				c.Send("a2")
				if name == "QueueCapacity" {
					c.Send("c1", "a3") // the queue is full too
				}
				wantNow(t, s, "b1")
				want := "a1:HandlerError a2:Ordering"
				if name == "QueueCapacity" {
					want += " a3:Ordering"
				}
				wantHeard(t, j, want)
				c.End()
				s.finishAll(t)
				if _, err := c.result(t); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What waited for its turn behind the failed one is handled when that turn comes, without a slot.
func TestWaitingMessagesOfAGivenUpKeyNeedNoCapacity(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, j := newStage(), &judge{action: flow.SkipKey}
		f := mustNew(t, s.handle, flow.Options{
			OnFailure: j.decide, Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
		})
		c := start(t, f, "a1", "b1", "a2", "a3", "a4")
		s.fail(t, "a1", errHandler)
		wantNow(t, s, "b1")
		wantHeard(t, j, "a1:HandlerError a2:Ordering a3:Ordering a4:Ordering")
		s.finish(t, "b1")
		c.End()
		if sum, err := c.result(t); err != nil || sum.Rejected != 3 || sum.Committed != 5 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestSkipKeyOnARefusalLetsEarlierMessagesOfTheKeyRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, j := newStage(), &judge{action: flow.SkipKey}
		f := mustNew(t, s.handle, flow.Options{OnFailure: j.decide, Ordering: flow.OrderingOptions{
			Mode: flow.OrderingKeyedFIFO, KeyCapacity: 1}})
		c := start(t, f, "a1", "a2", "a3") // a3 is refused on receipt, and with it the key given up
		wantHeard(t, j, "a3:Ordering")
		s.finish(t, "a1")
		c.Send("a4")
		wantNow(t, s, "a2")
		c.End()
		s.finishAll(t)
		sum, err := c.result(t)
		if err != nil || sum.Succeeded != 2 || sum.Rejected != 2 || s.history() != "a1 a2" {
			t.Errorf("Run() = %+v, %v; started %q", sum, err, s.history())
		}
		wantHeard(t, j, "a3:Ordering a4:Ordering")
	})
}

func TestSkipMessageGivesNoKeyUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, j := newStage(), &judge{action: flow.SkipMessage}
		c := start(t, mustNew(t, s.handle, flow.Options{OnFailure: j.decide, Ordering: keyed}), "a1", "a2")
		s.fail(t, "a1", errHandler)
		wantNow(t, s, "a2")
		c.End()
		s.finishAll(t)
	})
}

// A dead-letter store gets a key's messages one after the other: OnFailure of one ends before that of the next begins.
func TestOnFailureOfGivenUpMessagesRunsInTurn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := &judge{action: flow.SkipKey, wait: time.Second}
		f := mustNew(t, func(context.Context, flow.Message[string]) error { return errHandler },
			flow.Options{OnFailure: j.decide, Ordering: keyed})
		began := time.Now()
		if _, err := f.Run(t.Context(), given("a1", "a2", "a3", "b1", "a4")); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != 4*time.Second {
			t.Errorf("took %v, want 4s", d)
		}
	})
}

func TestMoreThan65536GivenUpKeysEndTheStream(t *testing.T) {
	const limit = 65536
	for _, n := range []int{limit, limit + 1} {
		f, err := flow.New(func(context.Context, flow.Message[int]) error { return errHandler }, strconv.Itoa, flow.Options{
			Ordering:  keyed,
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey },
		})
		if err != nil {
			t.Fatal(err)
		}
		next := 0
		sum, err := f.Run(t.Context(), func() (int, error) {
			if next == n {
				return 0, io.EOF
			}
			next++
			return next, nil
		})
		if n == limit {
			if err != nil || sum.Failed != limit || sum.Committed != limit {
				t.Errorf("at the limit: %+v, %v", sum, err)
			}
			continue
		}
		failureOf(t, err, flow.FailureOrdering)
		conserved(t, sum)
		if sum.Failed != limit+1 || sum.Committed != limit+1 { // each was skipped all the same
			t.Errorf("above the limit: %+v", sum)
		}
	}
}

// Clients choose how long keys are, too.
func TestSkippedKeysOfMoreThan16MiBEndTheStream(t *testing.T) {
	const limit = 16 << 20
	for more, want := range map[string]flow.FailureKind{"": flow.FailureNone, "x": flow.FailureOrdering} {
		keys := []string{strings.Repeat("a", limit/2), strings.Repeat("b", limit/2) + more, strings.Repeat("a", limit/2)}
		bubble(t, func(t *testing.T) {
			f, err := flow.New(func(context.Context, flow.Message[string]) error { return errHandler },
				func(v string) string { return v }, flow.Options{
					Ordering: keyed, MaxPendingBytes: -1,
					OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey },
				})
			if err != nil {
				t.Fatal(err)
			}
			sum, err := f.Run(t.Context(), given(keys...))
			if kind := flow.ClassifyFailure(err); kind != want {
				t.Errorf("with %d bytes of keys Run() = %v", limit+len(more), kind)
			}
			if want == flow.FailureNone && (sum.Failed != 2 || sum.Rejected != 1 || sum.Committed != 3) {
				t.Errorf("at the limit: %+v", sum)
			}
			conserved(t, sum)
		})
	}
}

// With nothing pending, what is left of messages of a mebibyte whose keys are skipped is their keys.
func TestSkippedKeysKeepNoMessages(t *testing.T) {
	const messages = 64
	heap := func() int64 {
		for range 3 {
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	f, err := flow.New(func(context.Context, flow.Message[string]) error { return errHandler },
		func(v string) string { return v[:2] }, flow.Options{
			Ordering:  keyed,
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey },
		})
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	var before int64
	_, err = f.Run(t.Context(), func() (string, error) {
		switch sent++; {
		case sent == 1:
			before = heap()
		case sent > messages:
			for f.Stats().Total.Failed < messages { // of each the key is skipped, once it is counted
				time.Sleep(time.Millisecond)
			}
			if grown := heap() - before; grown > messages<<20/4 {
				t.Errorf("%d skipped keys of two bytes keep %d bytes", messages, grown)
			}
			return "", io.EOF
		}
		return fmt.Sprintf("%02d", sent%100) + strings.Repeat("x", 1<<20), nil
	})
	if err != nil {
		t.Error(err)
	}
}
