package flow_test

import (
	"context"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strconv"
	"testing"
	"time"

	"example.com/flow"
)

// unruly is a handler, and an OnFailure, that do anything but what an Observer's panic would hide.
type unruly struct{ rnd func(n int) int }

func (u unruly) handle(ctx context.Context, m flow.Message[string]) error {
	time.Sleep(time.Duration(u.rnd(5)) * time.Second)
	switch u.rnd(20) {
	case 0, 1, 2, 3:
		return errHandler
	case 4:
		return flow.Permanent(errHandler)
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
		{}, keyed, {Mode: flow.OrderingNone}, {Scope: flow.ScopeFlow},
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
				bubble(t, func(t *testing.T) {
					p := new(tape)
					u := unruly{rnd: rand.IntN}
					f := mustNew(t, u.handle, flow.Options{
						Ordering: mode, Backpressure: pressure, Observer: p.observe, OnFailure: u.decide, MaxPending: 6,
						Retry:       flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second, Jitter: 0.5, AttemptTimeout: time.Minute},
						Shutdown:    flow.ShutdownOptions{DrainOnClose: round%2 == 0, GracePeriod: 3 * time.Second},
						IdleTimeout: time.Minute,
					})
					var values []string
					for k := range 20 {
						values = append(values, []string{"a", "b", "c", ""}[k%4]+strconv.Itoa(k))
					}
					calls := []*call{start(t, f, values...), start(t, f, values...), start(t, f, values[:3]...)}
					pass(time.Duration(u.rnd(10)) * time.Second)
					calls[0].End()
					switch round {
					case 0:
						go f.Shutdown(context.Background())
					case 1:
						_ = f.Close()
					case 2:
						calls[1].cancel(errHandler)
					case 3:
						calls[1].Fail(errHandler)
					case 4:
						go f.Shutdown(context.Background())
						pass(time.Second)
						_ = f.Close()
					}
					pass(time.Hour) // the others end by IdleTimeout
					ends := map[uint64]flow.Summary{}
					for _, e := range p.only(flow.EventStreamEnd) {
						ends[e.Stream] = e.Summary
					}
					replayed := p.replay()
					for _, c := range calls {
						if !c.over() {
							t.Fatalf("%d/%d/%d: Run has not returned", i, j, round)
						}
						conserved(t, c.sum)
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
