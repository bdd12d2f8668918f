package natsflow

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/natsflow/internal/natstest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// aState is one in which everything is set.
func aState(committed uint64) flow.SessionState {
	return flow.SessionState{
		Epoch: 3, Fence: 5, GivenUp: []string{"a", "", "\xff\x00"},
		Progress: flow.Summary{Received: committed + 3, Committed: committed, Unsettled: []uint64{committed + 1, committed + 3}}.Progress(),
	}
}

func TestSessionsAreSavedInTheCurrentVersionOnly(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	s, ctx := newGateway(t, js, topic).Sessions(), t.Context()
	for _, id := range []flow.SessionID{
		{Owner: "o", Name: "n"}, {Name: "n"}, {Owner: "o/n"}, {Owner: "\x00\xff%", Name: strings.Repeat("~", 128)}, {Owner: strings.Repeat("o", 9999)},
	} {
		if state, v, err := s.Load(ctx, id); v != 0 || err != nil || !reflect.DeepEqual(state, flow.SessionState{}) {
			t.Fatalf("an unknown session is %+v, %d, %v", state, v, err)
		}
		if _, err := s.Save(ctx, id, aState(1), 7); !errors.Is(err, flow.ErrSessionMoved) {
			t.Fatalf("a version of what is not there: %v", err)
		}
		v1, err := s.Save(ctx, id, aState(1), 0)
		if err != nil || v1 == 0 {
			t.Fatalf("the first version is %d, %v", v1, err)
		}
		if _, err := s.Save(ctx, id, aState(2), 0); !errors.Is(err, flow.ErrSessionMoved) {
			t.Fatalf("a second first one: %v", err)
		}
		v2, err := s.Save(ctx, id, aState(2), v1)
		if err != nil || v2 <= v1 {
			t.Fatalf("version %d after %d: %v", v2, v1, err)
		}
		if _, err := s.Save(ctx, id, aState(3), v1); !errors.Is(err, flow.ErrSessionMoved) {
			t.Fatalf("an outdated version: %v", err)
		}
		if state, v, err := s.Load(ctx, id); v != v2 || err != nil || !reflect.DeepEqual(state, aState(2)) {
			t.Fatalf("got %+v, %d, %v", state, v, err)
		}
	}
}

func TestOfManySavesOfAVersionOneIsDone(t *testing.T) {
	url := natstest.Embedded(t)
	js := natstest.Connect(t, url)
	_, topic := testTopic(t, js, nil)
	id, version := flow.SessionID{Name: "s"}, uint64(0)
	for round := range 10 {
		var done, moved atomic.Int32
		var next atomic.Uint64
		var all sync.WaitGroup
		for range 4 {
			s := newGateway(t, natstest.Connect(t, url), topic).Sessions()
			all.Go(func() {
				v, err := s.Save(t.Context(), id, aState(uint64(round)), version)
				switch {
				case err == nil:
					done.Add(1)
					next.Store(v)
				case errors.Is(err, flow.ErrSessionMoved):
					moved.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		all.Wait()
		if done.Load() != 1 || moved.Load() != 3 {
			t.Fatalf("round %d: %d were done, %d moved", round, done.Load(), moved.Load())
		}
		version = next.Load()
	}
}

func TestVersionNeverComesAgainOfAForgottenSession(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	s, ctx, id := newGateway(t, js, topic).Sessions(), t.Context(), flow.SessionID{Name: "s"}
	v1, err := s.Save(ctx, id, aState(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(ctx, "KV_"+topic.sessionsBucket())
	if err == nil {
		err = stream.Purge(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Save(ctx, id, aState(2), v1); !errors.Is(err, flow.ErrSessionMoved) {
		t.Errorf("a version of a forgotten session: %v", err)
	}
	if v2, err := s.Save(ctx, id, aState(2), 0); err != nil || v2 <= v1 {
		t.Errorf("version %d after %d: %v", v2, v1, err)
	}
}

func TestMalformedSessionIsAnError(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	kv, err := js.KeyValue(t.Context(), topic.sessionsBucket())
	if err != nil {
		t.Fatal(err)
	}
	id := flow.SessionID{Name: "s"}
	if _, err := kv.Put(t.Context(), sessionKey(id), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := newGateway(t, js, topic).Sessions().Load(t.Context(), id); err == nil {
		t.Error("no error")
	}
}

func TestSessionsWithoutTheirBucketAreAnErrorUntilItIsThere(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	topic := Topic{Name: "uploads", Partitions: 4, Replicas: 1}
	s, id := newGateway(t, js, topic).Sessions(), flow.SessionID{Name: "s"}
	if _, _, err := s.Load(t.Context(), id); err == nil {
		t.Error("Load: no error")
	}
	if _, err := s.Save(t.Context(), id, aState(1), 0); err == nil || errors.Is(err, flow.ErrSessionMoved) {
		t.Errorf("Save: %v", err)
	}
	if err := Ensure(t.Context(), js, topic); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Save(t.Context(), id, aState(1), 0); err != nil {
		t.Error(err)
	}
}

func TestFencesAreKnownForAWhile(t *testing.T) {
	start := time.Now()
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	fences := &knownFences{good: 10 * time.Second}
	a, b := flow.SessionID{Name: "a"}, flow.SessionID{Name: "b"}
	want := func(id flow.SessionID, now int, fence uint64, until int) {
		t.Helper()
		f, u, ok := fences.fence(id, at(now))
		if wantOK := until > 0; ok != wantOK || ok && (f != fence || !u.Equal(at(until))) {
			t.Errorf("at %d: %d until %v, %v", now, f, u.Sub(start), ok)
		}
	}
	want(a, 0, 0, 0)
	fences.note(a, 3, at(1))
	want(a, 2, 3, 11)
	want(a, 11, 0, 0)
	fences.note(a, 3, at(5))
	want(a, 11, 3, 15)
	fences.note(a, 3, at(4)) // an answer that came late
	want(a, 11, 3, 15)
	fences.note(a, 2, at(8)) // the same, of before the fence rose
	want(a, 11, 3, 15)
	fences.note(a, 4, at(8))
	want(a, 11, 4, 18)
	fences.note(b, 1, at(30)) // a is forgotten
	if len(fences.known) != 1 {
		t.Errorf("known: %v", fences.known)
	}
	want(b, 31, 1, 40)
}

// overtaken has f begin to store an upload of n messages, which next stores while f is stopped. f is woken when the stream
// has forgotten the ids of the messages, and overtaken returns what its Run ends with.
func overtaken(t *testing.T, f *flow.Flow[*request], next *Gateway[*request], n int, stopped <-chan struct{}, wake chan<- struct{}) error {
	t.Helper()
	ended := make(chan error)
	go func() {
		_, err := run(f, "s", 1, requests("u", 1, n)...)
		ended <- err
	}()
	<-stopped
	if s, err := run(newFlow(t, next, nil), "s", 1, requests("u", 1, n)...); err != nil || s.Committed != uint64(n) {
		t.Error(s, err)
	}
	time.Sleep(2 * next.topic.Dedupe)
	close(wake)
	return <-ended
}

// A gateway was stopped for longer than the stream knows ids. Meanwhile the session went on elsewhere: the messages that it
// still has must not be stored a second time, whether its Flow has noticed by then or not.
func TestGatewayThatWasStoppedForLongerThanDedupeStoresNothingOfAMovedSession(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, func(t *Topic) { t.Dedupe = 300 * time.Millisecond })
	old, next := newGateway(t, js, topic), newGateway(t, js, topic)
	stopped, wake := make(chan struct{}), make(chan struct{})
	var calls, refused atomic.Int32
	f, err := flow.NewBatch(func(ctx context.Context, batch []flow.Message[*request], errs []error) error {
		if calls.Add(1) == 2 {
			close(stopped)
			<-wake
		}
		err := old.Store(context.WithoutCancel(ctx), batch, errs)
		for _, e := range errs {
			if errors.Is(e, flow.ErrSessionMoved) {
				refused.Add(1)
			}
		}
		return err
	}, nil, flow.Options{
		Sessions:     &flow.SessionOptions{Store: old.Sessions(), SaveEvery: time.Hour},
		Backpressure: flow.BackpressureOptions{Capacity: 1}, Batch: flow.BatchOptions{MaxMessages: 5},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := overtaken(t, f, next, 40, stopped, wake); err == nil {
		t.Error("the stopped one has ended well")
	}
	if refused.Load() != 1 {
		t.Errorf("%d messages were refused, want the first of the call", refused.Load())
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"u": 40})
}

// The same, stopped between the look at its sessions and the first message.
func TestGatewayThatWasStoppedInACallBeginsNothing(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, func(t *Topic) { t.Dedupe = 300 * time.Millisecond })
	old, next := newGateway(t, js, topic), newGateway(t, js, topic)
	marshal := old.codec.Marshal
	stopped, wake := make(chan struct{}), make(chan struct{})
	var once sync.Once
	old.codec.Marshal = func(r *request) ([]byte, error) {
		once.Do(func() {
			close(stopped)
			<-wake
		})
		return marshal(r)
	}
	f, err := flow.NewBatch(func(ctx context.Context, batch []flow.Message[*request], errs []error) error {
		return old.Store(context.WithoutCancel(ctx), batch, errs)
	}, nil, flow.Options{
		Sessions:     &flow.SessionOptions{Store: old.Sessions(), SaveEvery: time.Hour},
		Backpressure: flow.BackpressureOptions{Capacity: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	err = overtaken(t, f, next, 10, stopped, wake)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), errStopped.Error()) {
		t.Errorf("the stopped one ends with %v", err)
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"u": 10})
}

// The same, stopped in the middle of a batch, of which the servers have the first half.
func TestGatewayThatWasStoppedWithinABatchSendsNoMoreOfIt(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, func(t *Topic) { t.Dedupe = 300 * time.Millisecond })
	old, next := newGateway(t, js, topic), newGateway(t, js, topic)
	marshal, made := old.codec.Marshal, 0
	stopped, wake := make(chan struct{}), make(chan struct{})
	old.codec.Marshal = func(r *request) ([]byte, error) {
		if made++; made == 20 {
			close(stopped)
			<-wake
		}
		return marshal(r)
	}
	f := oneCall(t, old, 40, func(o *flow.Options) {
		o.Sessions = &flow.SessionOptions{Store: old.Sessions(), SaveEvery: time.Hour}
	})
	if err := overtaken(t, f, next, 40, stopped, wake); err == nil {
		t.Error("the stopped one has ended well")
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"u": 40})
}

func TestStoreWithoutTheSessionsBucketIsUnavailable(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	if err := js.DeleteStream(t.Context(), "KV_"+topic.sessionsBucket()); err != nil {
		t.Fatal(err)
	}
	f := newFlow(t, newGateway(t, js, topic), func(o *flow.Options) { o.Sessions.Store = nil })
	if _, err := run(f, "s", 1, requests("u", 1, 3)...); status.Code(err) != codes.Unavailable {
		t.Errorf("a session in another store can't be looked up: %v", err)
	}
}

func TestSessionsInAnotherStoreAreStoredToo(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	f := newFlow(t, newGateway(t, js, topic), func(o *flow.Options) { o.Sessions.Store = nil })
	if _, err := run(f, "s", 1, requests("u", 1, 30)...); err != nil {
		t.Error(err)
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"u": 30})
}
