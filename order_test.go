package flow_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

// keyed and unordered are the two modes that are not the zero value.
var (
	keyed     = flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}
	unordered = flow.OrderingOptions{Mode: flow.OrderingNone}
)

// numbered returns n values of one key, from prefix1 on.
func numbered(prefix string, n int) []string {
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprint(prefix, i+1)
	}
	return values
}

// strangers returns n values of n keys.
func strangers(n int) []string {
	values := make([]string, n)
	for i := range values {
		values[i] = "k" + strings.Map(func(r rune) rune { return r - '0' + 'a' }, fmt.Sprint(i))
	}
	return values
}

func TestFIFORunsOneMessageOfAStreamAtATimeInSeqOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{})
		c := start(t, f, "a1", "b1", "a2", "1")
		other := start(t, f, "x1", "x2")
		c.End()
		other.End()
		wantNow(t, s, "a1 x1") // each stream has an order of its own
		s.finish(t, "a1")
		wantNow(t, s, "b1 x1")
		s.finish(t, "b1", "a2")
		wantNow(t, s, "1 x1")
		s.finishAll(t)
		for seq, m := range slices.DeleteFunc(s.attempts(), func(m flow.Message[string]) bool { return m.Key == "x" }) {
			if m.Seq != uint64(seq+1) || m.Key != keyOf(m.Value) || m.Attempt != 1 {
				t.Errorf("message %d: %+v", seq+1, m)
			}
		}
		sum, err := c.result(t)
		if err != nil || sum.Succeeded != 4 || sum.Committed != 4 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
		conserved(t, sum)
	})
}

func TestKeyedFIFORunsOneMessageOfAKeyAtATimeInSeqOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed})
		c := start(t, f, "a1", "b1", "a2", "a3", "b2", "c1")
		c.End()
		wantNow(t, s, "a1 b1 c1")
		s.finish(t, "b1")
		wantNow(t, s, "a1 b2 c1")
		s.finish(t, "a1")
		wantNow(t, s, "a2 b2 c1")
		s.finishAll(t)
		sum, err := c.result(t)
		if err != nil || sum.Succeeded != 6 || sum.Committed != 6 {
			t.Errorf("Run() = %+v, %v, want 6 succeeded and committed", sum, err)
		}
		conserved(t, sum)
	})
}

func TestOrderingNoneRunsAllSideBySideUpToCapacity(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Ordering: unordered, Backpressure: flow.BackpressureOptions{Capacity: 3},
		})
		c := start(t, f, "a1", "a2", "a3", "a4", "a5")
		c.End()
		wantNow(t, s, "a1 a2 a3")
		s.finish(t, "a2")
		wantNow(t, s, "a1 a3 a4")
		s.finishAll(t)
		if sum, err := c.result(t); err != nil || sum.Succeeded != 5 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}

		unlimited := newStage()
		start(t, mustNew(t, unlimited.handle, flow.Options{Ordering: unordered}), numbered("a", 500)...).End()
		if n := len(strings.Fields(unlimited.now())); n != 500 {
			t.Errorf("%d run without a Capacity, want all 500", n)
		}
		unlimited.finishAll(t)
	})
}

func TestAllAttemptsOfAMessageComeBeforeTheNextOfItsKey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Ordering: keyed, Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second},
		})
		c := start(t, f, "a1", "a2", "b1", "b2")
		c.End()
		wantNow(t, s, "a1 b1")
		s.fail(t, "a1", errHandler)
		wantNow(t, s, "b1") // a1 waits for its next try and keeps its key's place
		s.finish(t, "b1")
		wantNow(t, s, "b2")
		time.Sleep(time.Second)
		wantNow(t, s, "a1 b2")
		s.fail(t, "a1", errHandler)
		time.Sleep(time.Second)
		s.finish(t, "a1")
		wantNow(t, s, "a2 b2")
		s.finishAll(t)
		if got, want := s.history(), "a1 b1 b2 a1 a1 a2"; got != want {
			t.Errorf("attempts %q, want %q", got, want)
		}
		if sum, err := c.result(t); err != nil || sum.Succeeded != 4 || sum.Retried != 2 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestSlowKeyDelaysNoOtherKey(t *testing.T) {
	for name, o := range map[string]flow.OrderingOptions{
		"stream": keyed,
		"flow":   {Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{Ordering: o, MaxPending: -1})
				c := start(t, f, numbered("slow", 100)...)
				c.Send(strangers(2000)...) // on a fixed set of workers some would stand behind the slow key
				c.End()
				if n := len(strings.Fields(s.now())); n != 2001 {
					t.Errorf("%d run, want the slow key's first and all of the 2000 others", n)
				}
				s.finish(t, strangers(2000)...)
				wantNow(t, s, "slow1")
				s.finishAll(t)
				if sum, err := c.result(t); err != nil || sum.Succeeded != 2100 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
			})
		})
	}
}

func TestUnorderedEmptyKeyLeavesOnlyTheEmptyKeyWithoutOrder(t *testing.T) {
	for _, scope := range []flow.OrderingScope{flow.ScopeStream, flow.ScopeFlow} {
		t.Run(scope.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newStage()
				f := mustNew(t, s.handle, flow.Options{Ordering: flow.OrderingOptions{
					Mode: flow.OrderingKeyedFIFO, Scope: scope, UnorderedEmptyKey: true,
				}})
				start(t, f, "1", "a1", "2", "a2", "3").End()
				wantNow(t, s, "1 2 3 a1")
				s.finish(t, "a1")
				wantNow(t, s, "1 2 3 a2")
				s.finishAll(t)
			})
		})
	}
}

func TestEmptyKeyIsAKeyLikeAnyOther(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		start(t, mustNew(t, s.handle, flow.Options{Ordering: keyed}), "1", "a1", "2", "a2").End()
		wantNow(t, s, "1 a1")
		s.finish(t, "1")
		wantNow(t, s, "2 a1")
		s.finishAll(t)
	})
}

// The messages of a come before b's is received, or with it: in the first case they stand in their lane by then.
func TestKeyWithEndlessMessagesGivesItsSlotUpWhenOtherKeysWait(t *testing.T) {
	for name, o := range map[string]flow.Options{
		"queue":          {Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1}},
		"queue capacity": {Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1, QueueCapacity: 9}},
		"scope": {
			Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow},
			Backpressure: flow.BackpressureOptions{Capacity: 1},
		},
		"retries": {
			Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
			Retry: flow.RetryOptions{MaxAttempts: 100},
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newStage()
				end := func(value string) {
					if o.Retry.MaxAttempts > 0 {
						s.fail(t, value, errHandler) // at once to be tried again
						return
					}
					s.finish(t, value)
				}
				c := start(t, mustNew(t, s.handle, o), numbered("a", 500)...)
				c.Send("b1", "c1")
				wantNow(t, s, "a1")
				end("a1")
				wantNow(t, s, "b1")
				end("b1")
				wantNow(t, s, "c1")
				end("c1")
				before := s.now()
				if keyOf(before) != "a" {
					t.Fatalf("%q runs, want the turn to be a's again", before)
				}
				c.Send("d1")
				turns := 0
				for s.now() != "d1" {
					if turns++; turns > 6 { // two rounds of the others: a, b and c
						t.Fatalf("started %q, and d1, which waits for capacity, still not", s.history())
					}
					end(s.now())
				}
				c.cancel(nil)
			})
		})
	}
}

func TestKeysThatWaitForCapacityTakeTurns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		runs := map[string]int{}
		handle := func(_ context.Context, m flow.Message[string]) error {
			runs[m.Key]++ // Capacity 1: never two at once
			time.Sleep(time.Second)
			return nil
		}
		f := mustNew(t, handle, flow.Options{Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1}})
		c := start(t, f, numbered("a", 200)...)
		c.Send(numbered("b", 200)...)
		c.Send(numbered("c", 200)...)
		time.Sleep(90*time.Second + time.Millisecond)
		synctest.Wait()
		for _, key := range []string{"a", "b", "c"} {
			if n := runs[key]; n < 30 || n > 31 {
				t.Errorf("%d of 91 executions were %s's: %v", n, key, runs)
			}
		}
	})
}
