package flow_test

import (
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

func wantStats(t testing.TB, f *flow.Flow[string], want flow.Stats) {
	t.Helper()
	synctest.Wait()
	if got := f.Stats(); !reflect.DeepEqual(got, want) {
		t.Fatalf("stats are %+v, want %+v", got, want)
	}
}

func TestStatsOfAFlowThatHasDoneNothingAreZero(t *testing.T) {
	bubble(t, func(t *testing.T) { wantStats(t, mustNew(t, succeed, flow.Options{}), flow.Stats{}) })
}

func TestStatsShowWhatRunsWhatWaitsAndWhatHasFinished(t *testing.T) {
	for _, scope := range []flow.OrderingScope{flow.ScopeStream, flow.ScopeFlow} {
		bubble(t, func(t *testing.T) {
			s := newStage()
			f := mustNew(t, s.handle, flow.Options{
				Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: scope}, MaxPending: 5,
				Backpressure: flow.BackpressureOptions{Capacity: 3},
			})
			one := start(t, f, "a1", "a2", "b1")
			wantStats(t, f, flow.Stats{Streams: 1, InFlight: 2, Calls: 2, Waiting: 1, ActiveKeys: 2, Capacity: 3})
			two := start(t, f, "c1", "d1", "d2")
			wantStats(t, f, flow.Stats{Streams: 2, InFlight: 3, Calls: 3, Waiting: 3, ActiveKeys: 4, Capacity: 3})
			s.finish(t, "b1")
			total := flow.Summary{Received: 1, Succeeded: 1}
			wantStats(t, f, flow.Stats{Streams: 2, InFlight: 3, Calls: 3, Waiting: 2, ActiveKeys: 3, Capacity: 3, Total: total})
			two.End()
			s.finish(t, "d1", "d2", "c1")
			total = flow.Summary{Received: 4, Succeeded: 4} // Committed stays zero: it means nothing over streams
			wantStats(t, f, flow.Stats{Streams: 1, InFlight: 1, Calls: 1, Waiting: 1, ActiveKeys: 1, Capacity: 3, Total: total})
			s.fail(t, "a1", errHandler)
			if _, err := one.result(t); err == nil {
				t.Error("the stream goes on")
			}
			wantStats(t, f, flow.Stats{Capacity: 3, Total: flow.Summary{Received: 6, Succeeded: 4, Failed: 1, Dropped: 1}})
		})
	}
}

func TestOneKeyInTwoStreamsIsOneActiveKey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed})
		start(t, f, "a1")
		start(t, f, "a2")
		wantStats(t, f, flow.Stats{Streams: 2, InFlight: 2, Calls: 2, ActiveKeys: 1})
	})
}

func TestMessageThatWaitsForItsNextTryIsWaiting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}})
		c := start(t, f, "a1")
		s.fail(t, "a1", errHandler)
		wantStats(t, f, flow.Stats{Streams: 1, Waiting: 1, ActiveKeys: 1})
		pass(time.Second)
		wantStats(t, f, flow.Stats{Streams: 1, InFlight: 1, Calls: 1, ActiveKeys: 1})
		s.finish(t, "a1")
		wantStats(t, f, flow.Stats{Streams: 1, Total: flow.Summary{Received: 1, Succeeded: 1, Retried: 1}})
		c.End()
	})
}

func TestNothingIsInFlightOnceRunHasReturned(t *testing.T) {
	f := mustNew(t, succeed, flow.Options{Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 4}})
	for range 300 {
		if _, err := f.Run(t.Context(), given("a1", "b1", "c1", "d1")); err != nil {
			t.Fatal(err)
		}
		if st := f.Stats(); st.Streams != 0 || st.InFlight != 0 || st.Waiting != 0 || st.ActiveKeys != 0 {
			t.Fatalf("after Run: %+v", st)
		}
	}
	if got := f.Stats().Total; got.Received != 1200 || got.Succeeded != 1200 {
		t.Errorf("total is %+v", got)
	}
}

func TestStatsMayBeAskedWhileMuchHappens(t *testing.T) {
	f := mustNew(t, succeed, flow.Options{Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 4}})
	var streams sync.WaitGroup
	for range 4 {
		streams.Go(func() {
			if _, err := f.Run(t.Context(), given(many(500)...)); err != nil {
				t.Error(err)
			}
		})
	}
	over := make(chan struct{})
	go func() { streams.Wait(); close(over) }()
	last := uint64(0)
	for asking := true; asking; {
		select {
		case <-over:
			asking = false
		default:
		}
		st := f.Stats()
		if st.InFlight < 0 || st.InFlight > 4 || st.Waiting < 0 || st.Streams > 4 || st.Total.Received < last ||
			st.Total.Received != st.Total.Succeeded {
			t.Fatalf("stats are %+v after a total of %d", st, last)
		}
		last = st.Total.Received
	}
	if last != 2000 {
		t.Errorf("%d finished at last", last)
	}
}
