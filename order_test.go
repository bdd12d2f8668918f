package flow_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
)

// numbered returns n values of one key, from prefix1 on.
func numbered(prefix string, n int) []string {
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprint(prefix, i+1)
	}
	return values
}

// keysOf returns n values of n keys.
func keysOf(n int) []string {
	values := make([]string, n)
	for i := range values {
		values[i] = "k" + strings.Map(func(r rune) rune { return r - '0' + 'a' }, fmt.Sprint(i))
	}
	return values
}

func TestResolversOfPartsRefuseAResolverOfTheirOwn(t *testing.T) {
	own := resolverFunc(func(context.Context, string) (flow.ReleaseFunc, error) { return func() {}, nil })
	for name, newResolver := range map[string]func(flow.OrderingOptions) flow.OrderingResolver{
		"NewFIFO": flow.NewFIFO, "NewKeyedFIFO": flow.NewKeyedFIFO,
	} {
		func() {
			defer func() {
				if text, _ := recover().(string); !strings.Contains(text, "Ordering.Resolver") {
					t.Errorf("%s has panicked with %q", name, text)
				}
			}()
			newResolver(flow.OrderingOptions{Resolver: own})
		}()
	}
}

func TestFIFORunsOneMessageOfAStreamAtATimeInSeqOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{})
		c := testkit.Start(t, f, "a1", "b1", "a2", "1")
		other := testkit.Start(t, f, "x1", "x2")
		c.End()
		other.End()
		s.WantRunning(t, "a1 x1") // each stream has an order of its own
		s.Finish(t, "a1")
		s.WantRunning(t, "b1 x1")
		s.Finish(t, "b1", "a2")
		s.WantRunning(t, "1 x1")
		s.FinishAll(t)
		for seq, m := range slices.DeleteFunc(s.Attempts(), func(m flow.Message[string]) bool { return m.Key == "x" }) {
			if m.Seq != uint64(seq+1) || m.Key != testkit.KeyOf(m.Value) || m.Attempt != 1 {
				t.Errorf("message %d: %+v", seq+1, m)
			}
		}
		sum, err := c.Result(t)
		if err != nil || sum.Succeeded != 4 || sum.Committed != 4 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
		testkit.CheckConserved(t, sum)
	})
}

func TestKeyedFIFORunsOneMessageOfAKeyAtATimeInSeqOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed})
		c := testkit.Start(t, f, "a1", "b1", "a2", "a3", "b2", "c1")
		c.End()
		s.WantRunning(t, "a1 b1 c1")
		s.Finish(t, "b1")
		s.WantRunning(t, "a1 b2 c1")
		s.Finish(t, "a1")
		s.WantRunning(t, "a2 b2 c1")
		s.FinishAll(t)
		sum, err := c.Result(t)
		if err != nil || sum.Succeeded != 6 || sum.Committed != 6 {
			t.Errorf("Run() = %+v, %v, want 6 succeeded and committed", sum, err)
		}
		testkit.CheckConserved(t, sum)
	})
}

func TestOrderingNoneRunsAllSideBySideUpToCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Ordering: testkit.Unordered, Backpressure: flow.BackpressureOptions{Capacity: 3},
		})
		c := testkit.Start(t, f, "a1", "a2", "a3", "a4", "a5")
		c.End()
		s.WantRunning(t, "a1 a2 a3")
		s.Finish(t, "a2")
		s.WantRunning(t, "a1 a3 a4")
		s.FinishAll(t)
		if sum, err := c.Result(t); err != nil || sum.Succeeded != 5 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}

		unlimited := testkit.NewManualHandler()
		testkit.Start(t, testkit.New(t, unlimited.Handle, flow.Options{Ordering: testkit.Unordered}), numbered("a", 500)...).End()
		if n := len(strings.Fields(unlimited.Running())); n != 500 {
			t.Errorf("%d run without a Capacity, want all 500", n)
		}
		unlimited.FinishAll(t)
	})
}

func TestAllAttemptsOfAMessageComeBeforeTheNextOfItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Ordering: testkit.Keyed, Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second},
		})
		c := testkit.Start(t, f, "a1", "a2", "b1", "b2")
		c.End()
		s.WantRunning(t, "a1 b1")
		s.Fail(t, "a1", testkit.ErrHandler)
		s.WantRunning(t, "b1") // a1 waits for its next try and keeps its key's place
		s.Finish(t, "b1")
		s.WantRunning(t, "b2")
		time.Sleep(time.Second)
		s.WantRunning(t, "a1 b2")
		s.Fail(t, "a1", testkit.ErrHandler)
		time.Sleep(time.Second)
		s.Finish(t, "a1")
		s.WantRunning(t, "a2 b2")
		s.FinishAll(t)
		// a1 and b1 run on two goroutines, either of which may be the first.
		if got, want := strings.Replace(s.History(), "b1 a1", "a1 b1", 1), "a1 b1 b2 a1 a1 a2"; got != want {
			t.Errorf("attempts %q, want %q", got, want)
		}
		if sum, err := c.Result(t); err != nil || sum.Succeeded != 4 || sum.Retried != 2 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestSlowKeyDelaysNoOtherKey(t *testing.T) {
	for name, o := range map[string]flow.OrderingOptions{
		"stream": testkit.Keyed,
		"flow":   {Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{Ordering: o, MaxPending: -1})
				c := testkit.Start(t, f, numbered("slow", 100)...)
				c.Send(keysOf(2000)...) // on a fixed set of workers some would stand behind the slow key
				c.End()
				if n := len(strings.Fields(s.Running())); n != 2001 {
					t.Errorf("%d run, want the slow key's first and all of the 2000 others", n)
				}
				s.Finish(t, keysOf(2000)...)
				s.WantRunning(t, "slow1")
				s.FinishAll(t)
				if sum, err := c.Result(t); err != nil || sum.Succeeded != 2100 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
			})
		})
	}
}

func TestUnorderedEmptyKeyLeavesOnlyTheEmptyKeyWithoutOrder(t *testing.T) {
	for _, scope := range []flow.OrderingScope{flow.ScopeStream, flow.ScopeFlow} {
		t.Run(scope.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{Ordering: flow.OrderingOptions{
					Mode: flow.OrderingKeyedFIFO, Scope: scope, UnorderedEmptyKey: true,
				}})
				testkit.Start(t, f, "1", "a1", "2", "a2", "3").End()
				s.WantRunning(t, "1 2 3 a1")
				s.Finish(t, "a1")
				s.WantRunning(t, "1 2 3 a2")
				s.FinishAll(t)
			})
		})
	}
}

func TestEmptyKeyIsAKeyLikeAnyOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		testkit.Start(t, testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed}), "1", "a1", "2", "a2").End()
		s.WantRunning(t, "1 a1")
		s.Finish(t, "1")
		s.WantRunning(t, "2 a1")
		s.FinishAll(t)
	})
}

// The messages of a come before b's is received, or with it: in the first case they stand in their lane by then.
func TestKeyWithEndlessMessagesGivesItsSlotUpWhenOtherKeysWait(t *testing.T) {
	for name, o := range map[string]flow.Options{
		"queue":          {Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1}},
		"queue capacity": {Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1, QueueCapacity: 9}},
		"scope": {
			Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow},
			Backpressure: flow.BackpressureOptions{Capacity: 1},
		},
		"retries": {
			Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
			Retry: flow.RetryOptions{MaxAttempts: 100},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				end := func(value string) {
					if o.Retry.MaxAttempts > 0 {
						s.Fail(t, value, testkit.ErrHandler) // at once to be tried again
						return
					}
					s.Finish(t, value)
				}
				c := testkit.Start(t, testkit.New(t, s.Handle, o), numbered("a", 500)...)
				c.Send("b1", "c1")
				s.WantRunning(t, "a1")
				end("a1")
				s.WantRunning(t, "b1")
				end("b1")
				s.WantRunning(t, "c1")
				end("c1")
				before := s.Running()
				if testkit.KeyOf(before) != "a" {
					t.Fatalf("%q runs, want the turn to be a's again", before)
				}
				c.Send("d1")
				turns := 0
				for s.Running() != "d1" {
					if turns++; turns > 6 { // two rounds of the others: a, b and c
						t.Fatalf("started %q, and d1, which waits for capacity, still not", s.History())
					}
					end(s.Running())
				}
				c.Cancel(nil)
			})
		})
	}
}

func TestKeysThatWaitForCapacityTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := map[string]int{}
		handle := func(_ context.Context, m flow.Message[string]) error {
			runs[m.Key]++ // Capacity 1: never two at once
			time.Sleep(time.Second)
			return nil
		}
		f := testkit.New(t, handle, flow.Options{Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1}})
		c := testkit.Start(t, f, numbered("a", 200)...)
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

var flowKeyed = flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow}

func TestScopeFlowOrdersAKeyAcrossStreamsByReceipt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: flowKeyed})
		first := testkit.Start(t, f, "a1", "b1")
		second := testkit.Start(t, f, "a2", "c1")
		first.Send("a3")
		s.WantRunning(t, "a1 b1 c1") // what is not of the same key runs side by side
		second.Send("a4", "b2")
		s.WantRunning(t, "a1 b1 c1")
		for _, v := range []string{"a1", "a2", "a3", "a4"} {
			s.Finish(t, v)
		}
		s.WantRunning(t, "b1 c1")
		s.Finish(t, "b1")
		s.WantRunning(t, "b2 c1")
		first.End()
		second.End()
		s.FinishAll(t)
		for _, c := range []*testkit.Stream{first, second} {
			if sum, err := c.Result(t); err != nil || sum.Succeeded < 3 {
				t.Errorf("Run() = %+v, %v", sum, err)
			}
		}
	})
}

func TestScopeStreamOrdersNoStreamByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed})
		testkit.Start(t, f, "a1", "a2").End()
		testkit.Start(t, f, "a3", "a4").End()
		s.WantRunning(t, "a1 a3")
		s.Finish(t, "a3")
		s.WantRunning(t, "a1 a4")
		s.FinishAll(t)
	})
}

func TestScopeFlowWithFIFORunsOneMessageOfTheFlowAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: flow.OrderingOptions{Scope: flow.ScopeFlow}})
		testkit.Start(t, f, "a1", "b1").End()
		testkit.Start(t, f, "x1").End()
		testkit.Start(t, f, "y1").End()
		s.FinishAll(t)
		if got, want := s.History(), "a1 b1 x1 y1"; got != want {
			t.Errorf("ran %q, want %q", got, want)
		}
	})
}

func TestReconnectedDeviceStaysInOrderWhileItsOldStreamDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: flowKeyed})
		old := testkit.Start(t, f, "device1", "device2")
		old.End()
		again := testkit.Start(t, f, "device3")
		s.WantRunning(t, "device1")
		s.Finish(t, "device1", "device2")
		if _, err := old.Result(t); err != nil {
			t.Error(err)
		}
		s.WantRunning(t, "device3")
		again.End()
		s.FinishAll(t)
	})
}

func TestScopeFlowOrderSurvivesTheEndOfAStream(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *testkit.Stream){
		"cancelled":     func(_ *testing.T, c *testkit.Stream) { c.Cancel(nil) },
		"source failed": func(_ *testing.T, c *testkit.Stream) { c.Fail(errors.New("source broke")) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{Ordering: flowKeyed})
				other := testkit.Start(t, f, "z1")
				first := testkit.Start(t, f, "a1")
				second := testkit.Start(t, f, "a2")
				first.Send("a3", "z2", "b1")
				s.WantRunning(t, "a1 b1 z1")
				second.Send("a4", "b2", "z3")
				s.WantRunning(t, "a1 b1 z1")
				other.Send("a5")
				s.WantRunning(t, "a1 b1 z1")
				end(t, first)
				time.Sleep(time.Second)      // a cancelled stream gives its recv a moment
				s.WantRunning(t, "a2 b2 z1") // a3 and z2 were taken out from between the others
				s.Finish(t, "a2")
				s.WantRunning(t, "a4 b2 z1")
				s.Finish(t, "a4", "z1")
				s.WantRunning(t, "a5 b2 z3")
				second.End()
				other.End()
				s.FinishAll(t)
				sum, err := first.Result(t)
				if err == nil || sum.Received != 4 || sum.Dropped != 2 || sum.Failed != 2 {
					t.Errorf("the stream that ended: %+v, %v", sum, err)
				}
				testkit.CheckConserved(t, sum)
				for _, c := range []*testkit.Stream{second, other} {
					if sum, err := c.Result(t); err != nil || sum.Committed != sum.Received {
						t.Errorf("a stream that went on: %+v, %v", sum, err)
					}
				}
			})
		})
	}
}

func TestScopeFlowWaitsForAHandlerOfAStreamThatEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs []string
		f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
			runs = append(runs, m.Value+" begins")
			time.Sleep(10 * time.Second) // whatever its context says
			runs = append(runs, m.Value+" ends")
			return nil
		}, flow.Options{Ordering: flowKeyed})
		first := testkit.Start(t, f, "a1")
		second := testkit.Start(t, f, "a2")
		second.End()
		first.Cancel(nil)
		time.Sleep(30 * time.Second)
		if _, err := second.Result(t); err != nil {
			t.Error(err)
		}
		want := []string{"a1 begins", "a1 ends", "a2 begins", "a2 ends"}
		for i := range want {
			if i >= len(runs) || runs[i] != want[i] {
				t.Fatalf("%q, want %q", runs, want)
			}
		}
	})
}

func TestRetryKeepsItsPlaceAcrossStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Ordering: flowKeyed, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
		})
		first, second := testkit.Start(t, f, "a1"), testkit.Start(t, f, "a2")
		s.Fail(t, "a1", testkit.ErrHandler)
		s.WantRunning(t, "")
		time.Sleep(time.Second)
		s.WantRunning(t, "a1")
		s.Fail(t, "a1", testkit.ErrHandler)
		time.Sleep(time.Second)
		s.WantRunning(t, "a2")
		second.End()
		s.FinishAll(t)
		_, err := first.Result(t)
		testkit.FailureOf(t, err, flow.FailureHandlerError)
		if _, err := second.Result(t); err != nil {
			t.Errorf("another stream's failure is not the second's: %v", err)
		}
	})
}

func TestScopeFlowLeavesNothingBehindWhenAStreamEndsWithMessagesOfAKeyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: flow.OrderingOptions{
			Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow, Capacity: 3, KeyCapacity: 3,
		}})
		for range 5 { // places that stayed counted would be used up in the second round
			c := testkit.Start(t, f, "a1", "a2", "a3", "a4")
			s.WantRunning(t, "a1")
			c.Cancel(nil)
			time.Sleep(time.Second)
			sum, err := c.Result(t)
			testkit.FailureOf(t, err, flow.FailureContextCancelled)
			if sum.Failed != 1 || sum.Dropped != 3 || sum.Rejected != 0 {
				t.Fatalf("Run() = %+v", sum)
			}
		}
		if st := f.Stats(); st.ActiveKeys != 0 || st.Waiting != 0 || st.InFlight != 0 || st.Streams != 0 {
			t.Errorf("Stats() = %+v", st)
		}
	})
}
