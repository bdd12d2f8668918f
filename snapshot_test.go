package flow_test

import (
	"context"
	"fmt"
	"math"
	"net"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// seen is an Observer, which is what makes ages known.
func seen(context.Context, flow.Event) {}

func wantSnapshot[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s are\n%+v, want\n%+v", what, got, want)
	}
}

func TestSnapshotOfAFlowThatHasDoneNothingIsZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wantSnapshot(t, "all", testkit.New(t, testkit.Succeed, flow.Options{}).Snapshot(10), flow.Snapshot{})
	})
}

func TestSnapshotNamesTheHottestKeysFirst(t *testing.T) {
	for _, scope := range []flow.OrderingScope{flow.ScopeStream, flow.ScopeFlow} {
		synctest.Test(t, func(t *testing.T) {
			s := testkit.NewManualHandler()
			f := testkit.New(t, s.Handle, flow.Options{
				Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: scope},
				Backpressure: flow.BackpressureOptions{Capacity: 3}, Observer: seen,
			})
			testkit.Start(t, f, "a1", "b1", "b2", "b3", "c1")
			testkit.Advance(time.Second)
			testkit.Start(t, f, "d1", "d2", "d3", "d4") // no slot is left
			testkit.Advance(time.Second)
			snap := f.Snapshot(3)
			wantSnapshot(t, "keys", snap.Keys, []flow.KeyState{
				{Key: "d", Waiting: 4},
				{Key: "b", Waiting: 2, Running: true, Age: 2 * time.Second},
				{Key: "a", Running: true, Age: 2 * time.Second},
			})
			wantSnapshot(t, "stats", snap.Stats, flow.Stats{Streams: 2, InFlight: 3, Calls: 3, Waiting: 6, ActiveKeys: 4, Capacity: 3})
		})
	}
}

func TestSnapshotAddsUpAKeyOverItsStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed, Observer: seen})
		testkit.Start(t, f, "a1", "a2")
		testkit.Advance(time.Second)
		testkit.Start(t, f, "a3", "a4", "a5")
		wantSnapshot(t, "keys", f.Snapshot(5).Keys, []flow.KeyState{{Key: "a", Waiting: 3, Running: true, Age: time.Second}})
	})
}

func TestSnapshotNamesTheLongestRunningFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed, Observer: seen})
		c := testkit.Start(t, f)
		for _, v := range []string{"a1", "b1", "b2", "c1", "d1"} {
			c.Send(v)
			testkit.Advance(time.Second)
		}
		wantSnapshot(t, "running", f.Snapshot(3).Running, []flow.RunningMessage{
			{Stream: 1, Seq: 1, Key: "a", Attempt: 1, Age: 5 * time.Second},
			{Stream: 1, Seq: 2, Key: "b", Attempt: 1, Age: 4 * time.Second},
			{Stream: 1, Seq: 4, Key: "c", Attempt: 1, Age: 2 * time.Second},
		})
		s.Finish(t, "b1")
		testkit.Advance(time.Minute)
		if got := f.Snapshot(9).Running[3]; got.Seq != 3 || got.Age != time.Minute {
			t.Errorf("the last is %+v, want b2 since a minute", got)
		}
	})
}

func TestAgeOfARunningMessageIsItsAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second}, Observer: seen,
		})
		testkit.Start(t, f, "a1")
		testkit.Advance(time.Hour)
		s.Fail(t, "a1", testkit.ErrHandler)
		snap := f.Snapshot(1)
		wantSnapshot(t, "keys before the retry", snap.Keys, []flow.KeyState{{Key: "a", Waiting: 1}})
		wantSnapshot(t, "running before the retry", snap.Running, nil)
		testkit.Advance(time.Second)
		testkit.Advance(time.Minute)
		wantSnapshot(t, "running", f.Snapshot(1).Running, []flow.RunningMessage{
			{Stream: 1, Seq: 1, Key: "a", Attempt: 2, Age: time.Minute},
		})
	})
}

func TestWithoutAnObserverAgesOfMessagesAreNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed})
		testkit.Start(t, f, "a1", "b1")
		testkit.Advance(time.Hour)
		snap := f.Snapshot(5)
		wantSnapshot(t, "running", snap.Running, []flow.RunningMessage{
			{Stream: 1, Seq: 1, Key: "a", Attempt: 1}, {Stream: 1, Seq: 2, Key: "b", Attempt: 1},
		})
		if snap.Keys[0].Age != 0 || snap.Streams[0].Age != time.Hour {
			t.Errorf("snapshot is %+v, want the stream's age alone", snap)
		}
	})
}

func TestSnapshotSaysHowFarStreamsGot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Ordering:  testkit.Keyed,
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		})
		testkit.Start(t, f, "a1", "b1", "c1", "d1")
		testkit.Advance(time.Second)
		testkit.Start(t, f)
		three := testkit.Start(t, f, "e1", "f1", "f2", "g1", "h1")
		testkit.Advance(time.Second)
		s.Finish(t, "a1")
		s.Fail(t, "b1", testkit.ErrHandler) // skipped: settled
		s.Finish(t, "d1")
		s.Finish(t, "f1")
		want := []flow.StreamState{
			{ID: 3, Age: time.Second, Received: 5, Pending: 4, Committed: 0},
			{ID: 1, Age: 2 * time.Second, Received: 4, Pending: 1, Committed: 2},
			{ID: 2, Age: time.Second},
		}
		wantSnapshot(t, "streams", f.Snapshot(3).Streams, want)
		wantSnapshot(t, "two streams", f.Snapshot(2).Streams, want[:2])
		s.FinishAll(t)
		want[0].Pending, want[0].Committed = 0, 5
		three.Send("a1")
		s.Finish(t, "a1")
		want[0].Received, want[0].Committed = 6, 6
		if got := f.Snapshot(3).Streams; len(got) != 3 || got[2] != want[0] {
			t.Errorf("streams are %+v, want %+v as the last", got, want[0])
		}
	})
}

// rpc is what gRPC puts into a stream's context.
type rpc struct{ grpc.ServerTransportStream }

func (rpc) Method() string { return "/ingest.Ingest/Upload" }

func (rpc) SendHeader(metadata.MD) error { return nil }

func (rpc) SetTrailer(metadata.MD) error { return nil }

func TestSnapshotNamesPeerAndMethod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{})
		testkit.StartFunc(t, func(ctx context.Context, recv func() (string, error)) (flow.Summary, error) {
			ctx = peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4711}})
			return f.Run(grpc.NewContextWithServerTransportStream(ctx, rpc{}), recv)
		}, "a1")
		wantSnapshot(t, "streams", f.Snapshot(1).Streams, []flow.StreamState{
			{ID: 1, Peer: "192.0.2.7:4711", Method: "/ingest.Ingest/Upload", Received: 1, Pending: 1},
		})
	})
}

func TestSnapshotNamesNoneIfNoneAreAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed})
		testkit.Start(t, f, "a1", "a2", "b1")
		for _, n := range []int{0, -1} {
			wantSnapshot(t, "all", f.Snapshot(n), flow.Snapshot{
				Stats: flow.Stats{Streams: 1, InFlight: 2, Calls: 2, Waiting: 1, ActiveKeys: 2},
			})
		}
	})
}

func TestSnapshotNamesTheRightOnesOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed, MaxPending: -1, Observer: seen})
		c := testkit.Start(t, f)
		// Key k<i>x has i messages, in an order that is neither ascending nor descending.
		key := func(i int) string { return "k" + strconv.Itoa(i) + "x" }
		for j := range 300 {
			i := j * 7 % 300
			for range i + 1 {
				c.Send(key(i))
			}
			testkit.Advance(time.Millisecond)
		}
		snap := f.Snapshot(5)
		var keys, running []string
		for i := range snap.Keys {
			keys = append(keys, fmt.Sprint(snap.Keys[i].Key, snap.Keys[i].Waiting))
			running = append(running, snap.Running[i].Key)
		}
		if got, want := strings.Join(keys, " "), "k299x299 k298x298 k297x297 k296x296 k295x295"; got != want {
			t.Errorf("keys are %s, want %s", got, want)
		}
		if got, want := strings.Join(running, " "), "k0x k7x k14x k21x k28x"; got != want {
			t.Errorf("running are %s, want %s", got, want)
		}
		if all := f.Snapshot(math.MaxInt); len(all.Keys) != 300 || len(all.Running) != 300 {
			t.Errorf("of all there are %d keys, %d running", len(all.Keys), len(all.Running))
		}
	})
}

// Run with -race: the snapshot reads messages while workers have them.
func TestSnapshotMayBeTakenWhileMuchHappens(t *testing.T) {
	for name, o := range map[string]flow.Options{
		"keyed":       {Ordering: testkit.Keyed},
		"scope flow":  {Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow}},
		"no order":    {Ordering: flow.OrderingOptions{Mode: flow.OrderingNone}},
		"no observer": {Ordering: testkit.Keyed},
	} {
		if name != "no observer" {
			o.Observer = seen
		}
		o.Backpressure.Capacity, o.Retry.MaxAttempts = 4, 3
		t.Run(name, func(t *testing.T) {
			f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
				if m.Seq%3 == 0 && m.Attempt < 3 {
					return testkit.ErrHandler
				}
				return nil
			}, o)
			var streams sync.WaitGroup
			for range 4 {
				streams.Go(func() {
					if _, err := f.Run(t.Context(), testkit.Given(many(500)...)); err != nil {
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
				snap := f.Snapshot(3)
				waiting, inFlight := 0, 0
				for _, k := range f.Snapshot(1 << 20).Keys {
					waiting += k.Waiting
				}
				for _, s := range snap.Streams {
					inFlight += int(s.Pending)
					if s.Committed+s.Pending > s.Received {
						t.Fatalf("stream is %+v", s)
					}
				}
				if st := snap.Stats; waiting < 0 || len(snap.Running) > st.InFlight || inFlight > st.InFlight+st.Waiting ||
					st.Total.Received < last {
					t.Fatalf("snapshot is %+v after a total of %d", snap, last)
				}
				for _, m := range snap.Running {
					if m.Seq == 0 || m.Attempt < 1 || m.Attempt > 3 || m.Age < 0 {
						t.Fatalf("running is %+v", m)
					}
				}
				last = snap.Stats.Total.Received
			}
			if last != 2000 {
				t.Errorf("%d finished at last", last)
			}
		})
	}
}

func TestSnapshotMayBeTakenInAnObserverAndAHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f *flow.Flow[string]
		var running int
		f = testkit.New(t, func(context.Context, flow.Message[string]) error {
			running = len(f.Snapshot(1).Running)
			return nil
		}, flow.Options{Observer: func(context.Context, flow.Event) { f.Snapshot(1) }})
		if _, err := f.Run(t.Context(), testkit.Given("a1")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if running != 1 {
			t.Errorf("the handler saw %d running, want itself", running)
		}
	})
}

func wantStats(t testing.TB, f *flow.Flow[string], want flow.Stats) {
	t.Helper()
	synctest.Wait()
	if got := f.Stats(); !reflect.DeepEqual(got, want) {
		t.Fatalf("stats are %+v, want %+v", got, want)
	}
}

func TestStatsOfAFlowThatHasDoneNothingAreZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { wantStats(t, testkit.New(t, testkit.Succeed, flow.Options{}), flow.Stats{}) })
}

func TestStatsShowWhatRunsWhatWaitsAndWhatHasFinished(t *testing.T) {
	for _, scope := range []flow.OrderingScope{flow.ScopeStream, flow.ScopeFlow} {
		synctest.Test(t, func(t *testing.T) {
			s := testkit.NewManualHandler()
			f := testkit.New(t, s.Handle, flow.Options{
				Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: scope}, MaxPending: 5,
				Backpressure: flow.BackpressureOptions{Capacity: 3},
			})
			one := testkit.Start(t, f, "a1", "a2", "b1")
			wantStats(t, f, flow.Stats{Streams: 1, InFlight: 2, Calls: 2, Waiting: 1, ActiveKeys: 2, Capacity: 3})
			two := testkit.Start(t, f, "c1", "d1", "d2")
			wantStats(t, f, flow.Stats{Streams: 2, InFlight: 3, Calls: 3, Waiting: 3, ActiveKeys: 4, Capacity: 3})
			s.Finish(t, "b1")
			total := flow.Summary{Received: 1, Succeeded: 1}
			wantStats(t, f, flow.Stats{Streams: 2, InFlight: 3, Calls: 3, Waiting: 2, ActiveKeys: 3, Capacity: 3, Total: total})
			two.End()
			s.Finish(t, "d1", "d2", "c1")
			total = flow.Summary{Received: 4, Succeeded: 4} // Committed stays zero: it means nothing over streams
			wantStats(t, f, flow.Stats{Streams: 1, InFlight: 1, Calls: 1, Waiting: 1, ActiveKeys: 1, Capacity: 3, Total: total})
			s.Fail(t, "a1", testkit.ErrHandler)
			if _, err := one.Result(t); err == nil {
				t.Error("the stream goes on")
			}
			wantStats(t, f, flow.Stats{Capacity: 3, Total: flow.Summary{Received: 6, Succeeded: 4, Failed: 1, Dropped: 1}})
		})
	}
}

func TestOneKeyInTwoStreamsIsOneActiveKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed})
		testkit.Start(t, f, "a1")
		testkit.Start(t, f, "a2")
		wantStats(t, f, flow.Stats{Streams: 2, InFlight: 2, Calls: 2, ActiveKeys: 1})
	})
}

func TestMessageThatWaitsForItsNextTryIsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second}})
		c := testkit.Start(t, f, "a1")
		s.Fail(t, "a1", testkit.ErrHandler)
		wantStats(t, f, flow.Stats{Streams: 1, Waiting: 1, ActiveKeys: 1})
		testkit.Advance(time.Second)
		wantStats(t, f, flow.Stats{Streams: 1, InFlight: 1, Calls: 1, ActiveKeys: 1})
		s.Finish(t, "a1")
		wantStats(t, f, flow.Stats{Streams: 1, Total: flow.Summary{Received: 1, Succeeded: 1, Retried: 1}})
		c.End()
	})
}

func TestNothingIsInFlightOnceRunHasReturned(t *testing.T) {
	f := testkit.New(t, testkit.Succeed, flow.Options{Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 4}})
	for range 300 {
		if _, err := f.Run(t.Context(), testkit.Given("a1", "b1", "c1", "d1")); err != nil {
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
	f := testkit.New(t, testkit.Succeed, flow.Options{Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 4}})
	var streams sync.WaitGroup
	for range 4 {
		streams.Go(func() {
			if _, err := f.Run(t.Context(), testkit.Given(many(500)...)); err != nil {
				t.Error(err)
			}
		})
	}
	over := make(chan struct{})
	go func() { streams.Wait(); close(over) }()
	most := 4 * max(1, runtime.GOMAXPROCS(0)/4) // with several goroutines that hand messages out, each is asked at a moment of its own
	last := uint64(0)
	for asking := true; asking; {
		select {
		case <-over:
			asking = false
		default:
		}
		st := f.Stats()
		if st.InFlight < 0 || st.InFlight > most || st.Waiting < 0 || st.Streams > 4 || st.Total.Received < last ||
			st.Total.Received != st.Total.Succeeded {
			t.Fatalf("stats are %+v after a total of %d", st, last)
		}
		last = st.Total.Received
	}
	if last != 2000 {
		t.Errorf("%d finished at last", last)
	}
}
