package flow_test

import (
	"context"
	"fmt"
	"math"
	"net"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"example.com/flow"
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
	bubble(t, func(t *testing.T) {
		wantSnapshot(t, "all", mustNew(t, succeed, flow.Options{}).Snapshot(10), flow.Snapshot{})
	})
}

func TestSnapshotNamesTheHottestKeysFirst(t *testing.T) {
	for _, scope := range []flow.OrderingScope{flow.ScopeStream, flow.ScopeFlow} {
		bubble(t, func(t *testing.T) {
			s := newStage()
			f := mustNew(t, s.handle, flow.Options{
				Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: scope},
				Backpressure: flow.BackpressureOptions{Capacity: 3}, Observer: seen,
			})
			start(t, f, "a1", "b1", "b2", "b3", "c1")
			pass(time.Second)
			start(t, f, "d1", "d2", "d3", "d4") // no slot is left
			pass(time.Second)
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
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed, Observer: seen})
		start(t, f, "a1", "a2")
		pass(time.Second)
		start(t, f, "a3", "a4", "a5")
		wantSnapshot(t, "keys", f.Snapshot(5).Keys, []flow.KeyState{{Key: "a", Waiting: 3, Running: true, Age: time.Second}})
	})
}

func TestSnapshotNamesTheLongestRunningFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed, Observer: seen})
		c := start(t, f)
		for _, v := range []string{"a1", "b1", "b2", "c1", "d1"} {
			c.Send(v)
			pass(time.Second)
		}
		wantSnapshot(t, "running", f.Snapshot(3).Running, []flow.RunningMessage{
			{Stream: 1, Seq: 1, Key: "a", Attempt: 1, Age: 5 * time.Second},
			{Stream: 1, Seq: 2, Key: "b", Attempt: 1, Age: 4 * time.Second},
			{Stream: 1, Seq: 4, Key: "c", Attempt: 1, Age: 2 * time.Second},
		})
		s.finish(t, "b1")
		pass(time.Minute)
		if got := f.Snapshot(9).Running[3]; got.Seq != 3 || got.Age != time.Minute {
			t.Errorf("the last is %+v, want b2 since a minute", got)
		}
	})
}

func TestAgeOfARunningMessageIsItsAttempts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Second}, Observer: seen,
		})
		start(t, f, "a1")
		pass(time.Hour)
		s.fail(t, "a1", errHandler)
		snap := f.Snapshot(1)
		wantSnapshot(t, "keys before the retry", snap.Keys, []flow.KeyState{{Key: "a", Waiting: 1}})
		wantSnapshot(t, "running before the retry", snap.Running, nil)
		pass(time.Second)
		pass(time.Minute)
		wantSnapshot(t, "running", f.Snapshot(1).Running, []flow.RunningMessage{
			{Stream: 1, Seq: 1, Key: "a", Attempt: 2, Age: time.Minute},
		})
	})
}

func TestWithoutAnObserverAgesOfMessagesAreNotKnown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed})
		start(t, f, "a1", "b1")
		pass(time.Hour)
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
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Ordering:  keyed,
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		})
		start(t, f, "a1", "b1", "c1", "d1")
		pass(time.Second)
		start(t, f)
		three := start(t, f, "e1", "f1", "f2", "g1", "h1")
		pass(time.Second)
		s.finish(t, "a1")
		s.fail(t, "b1", errHandler) // skipped: settled
		s.finish(t, "d1")
		s.finish(t, "f1")
		want := []flow.StreamState{
			{ID: 3, Age: time.Second, Received: 5, Pending: 4, Committed: 0},
			{ID: 1, Age: 2 * time.Second, Received: 4, Pending: 1, Committed: 2},
			{ID: 2, Age: time.Second},
		}
		wantSnapshot(t, "streams", f.Snapshot(3).Streams, want)
		wantSnapshot(t, "two streams", f.Snapshot(2).Streams, want[:2])
		s.finishAll(t)
		want[0].Pending, want[0].Committed = 0, 5
		three.Send("a1")
		s.finish(t, "a1")
		want[0].Received, want[0].Committed = 6, 6
		if got := f.Snapshot(3).Streams; len(got) != 3 || got[2] != want[0] {
			t.Errorf("streams are %+v, want %+v as the last", got, want[0])
		}
	})
}

// rpc is what gRPC puts into a stream's context.
type rpc struct{ grpc.ServerTransportStream }

func (rpc) Method() string               { return "/ingest.Ingest/Upload" }
func (rpc) SendHeader(metadata.MD) error { return nil }
func (rpc) SetTrailer(metadata.MD) error { return nil }

func TestSnapshotNamesPeerAndMethod(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{})
		begin(t, func(ctx context.Context, recv func() (string, error)) (flow.Summary, error) {
			ctx = peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4711}})
			return f.Run(grpc.NewContextWithServerTransportStream(ctx, rpc{}), recv)
		}, "a1")
		wantSnapshot(t, "streams", f.Snapshot(1).Streams, []flow.StreamState{
			{ID: 1, Peer: "192.0.2.7:4711", Method: "/ingest.Ingest/Upload", Received: 1, Pending: 1},
		})
	})
}

func TestSnapshotNamesNoneIfNoneAreAskedFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed})
		start(t, f, "a1", "a2", "b1")
		for _, n := range []int{0, -1} {
			wantSnapshot(t, "all", f.Snapshot(n), flow.Snapshot{
				Stats: flow.Stats{Streams: 1, InFlight: 2, Calls: 2, Waiting: 1, ActiveKeys: 2},
			})
		}
	})
}

func TestSnapshotNamesTheRightOnesOfMany(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed, MaxPending: -1, Observer: seen})
		c := start(t, f)
		// Key k<i>x has i messages, in an order that is neither ascending nor descending.
		key := func(i int) string { return "k" + strconv.Itoa(i) + "x" }
		for j := range 300 {
			i := j * 7 % 300
			for range i + 1 {
				c.Send(key(i))
			}
			pass(time.Millisecond)
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
		"keyed":       {Ordering: keyed},
		"scope flow":  {Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow}},
		"no order":    {Ordering: flow.OrderingOptions{Mode: flow.OrderingNone}},
		"no observer": {Ordering: keyed},
	} {
		if name != "no observer" {
			o.Observer = seen
		}
		o.Backpressure.Capacity, o.Retry.MaxAttempts = 4, 3
		t.Run(name, func(t *testing.T) {
			f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
				if m.Seq%3 == 0 && m.Attempt < 3 {
					return errHandler
				}
				return nil
			}, o)
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
	bubble(t, func(t *testing.T) {
		var f *flow.Flow[string]
		var running int
		f = mustNew(t, func(context.Context, flow.Message[string]) error {
			running = len(f.Snapshot(1).Running)
			return nil
		}, flow.Options{Observer: func(context.Context, flow.Event) { f.Snapshot(1) }})
		if _, err := f.Run(t.Context(), given("a1")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if running != 1 {
			t.Errorf("the handler saw %d running, want itself", running)
		}
	})
}
