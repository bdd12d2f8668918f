package modeltest_test

import (
	"context"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
)

// unruly is a handler, and an OnFailure, that do anything but what an Observer's panic would hide.
type unruly struct{ rnd func(n int) int }

func (u unruly) handle(ctx context.Context, m flow.Message[string]) error {
	time.Sleep(time.Duration(u.rnd(5)) * time.Second)
	switch u.rnd(20) {
	case 0, 1, 2, 3:
		return testkit.ErrHandler
	case 4:
		return flow.Permanent(testkit.ErrHandler)
	case 5:
		if u.rnd(4) == 0 {
			panic("poison")
		}
	case 6:
		if u.rnd(4) == 0 {
			runtime.Goexit()
		}
	case 7:
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return nil
}

func (u unruly) decide(context.Context, *flow.Failure) flow.FailureAction {
	time.Sleep(time.Duration(u.rnd(2)) * time.Second)
	return []flow.FailureAction{flow.SkipMessage, flow.SkipMessage, flow.SkipMessage, flow.SkipKey, flow.FailStream}[u.rnd(5)]
}

// TestReplayingTheEventsGivesEverySummary runs streams into every ending there is.
func TestReplayingTheEventsGivesEverySummary(t *testing.T) {
	modes := []flow.OrderingOptions{
		{}, testkit.Keyed, {Mode: flow.OrderingNone}, {Scope: flow.ScopeFlow},
		{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow, KeyCapacity: 2},
		{Mode: flow.OrderingKeyedFIFO, UnorderedEmptyKey: true, Capacity: 3},
	}
	pressures := []flow.BackpressureOptions{
		{}, {Capacity: 2}, {Capacity: 2, QueueCapacity: 1}, {Capacity: 2, Policy: flow.BackpressureHardReject},
		{Capacity: 1, Policy: flow.BackpressureSoftAllowWithSignal},
	}
	for i, mode := range modes {
		for j, pressure := range pressures {
			for round := range 6 {
				synctest.Test(t, func(t *testing.T) {
					p := new(testkit.EventLog)
					u := unruly{rnd: rand.IntN}
					f := testkit.New(t, u.handle, flow.Options{
						Ordering: mode, Backpressure: pressure, Observer: p.Observe, OnFailure: u.decide, MaxPending: 6,
						Retry:       flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second, Jitter: 0.5, AttemptTimeout: time.Minute},
						Shutdown:    flow.ShutdownOptions{DrainOnClose: round%2 == 0, GracePeriod: 3 * time.Second},
						IdleTimeout: time.Minute,
					})
					var values []string
					for k := range 20 {
						values = append(values, []string{"a", "b", "c", ""}[k%4]+strconv.Itoa(k))
					}
					calls := []*testkit.Stream{testkit.Start(t, f, values...), testkit.Start(t, f, values...), testkit.Start(t, f, values[:3]...)}
					testkit.Advance(time.Duration(u.rnd(10)) * time.Second)
					calls[0].End()
					switch round {
					case 0:
						go f.Shutdown(context.Background())
					case 1:
						_ = f.Close()
					case 2:
						calls[1].Cancel(testkit.ErrHandler)
					case 3:
						calls[1].Fail(testkit.ErrHandler)
					case 4:
						go f.Shutdown(context.Background())
						testkit.Advance(time.Second)
						_ = f.Close()
					}
					testkit.Advance(time.Hour) // the others end by IdleTimeout
					ends := map[uint64]flow.Summary{}
					for _, e := range p.Of(flow.EventStreamEnd) {
						ends[e.Stream] = e.Summary
					}
					replayed := p.Replay()
					for _, c := range calls {
						if !c.Ended() {
							t.Fatalf("%d/%d/%d: Run has not returned", i, j, round)
						}
						testkit.CheckConserved(t, c.Sum)
					}
					if !reflect.DeepEqual(ends, replayed) || len(ends) != 3 {
						t.Errorf("%d/%d/%d: the streams' ends said\n%+v, the events make\n%+v", i, j, round, ends, replayed)
					}
					st, want := f.Stats(), flow.Summary{}
					for _, s := range ends {
						want.Received += s.Received
						want.Succeeded += s.Succeeded
						want.Failed += s.Failed
						want.Rejected += s.Rejected
						want.Dropped += s.Dropped
						want.Retried += s.Retried
					}
					if !reflect.DeepEqual(st, flow.Stats{Capacity: pressure.Capacity, Total: want}) {
						t.Errorf("%d/%d/%d: stats are %+v, want the total %+v and nothing else", i, j, round, st, want)
					}
				})
			}
		}
	}
}
