package natsflow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/natsflow/internal/natstest"
	"github.com/nats-io/nats.go"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

func TestNewGatewayRefusesWhatCantBe(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	good := Topic{Name: "uploads", Replicas: 1}
	if _, err := NewGateway(js, Topic{}, Proto(keyOf)); err == nil || !strings.Contains(err.Error(), "Topic.Name") {
		t.Error(err)
	}
	if _, err := NewGateway(nil, good, Proto(keyOf)); err == nil || !strings.Contains(err.Error(), "js must not be nil") {
		t.Error(err)
	}
	if _, err := NewGateway(js, good, Codec[*request]{}); !errors.Is(err, errIncompleteCodec) {
		t.Error(err)
	}
}

func TestGatewayStoresAnUploadOnceInOrder(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, func(t *Topic) { t.Partitions = 8 })
	f := newFlow(t, newGateway(t, js, topic), nil)
	if s, err := run(f, "s", 1, requests("u", 1, 20)...); err != nil || s.Committed != 20 {
		t.Fatal(s, err)
	}
	// A client that doesn't know what is settled sends all of it again, and more, to another gateway.
	f = newFlow(t, newGateway(t, js, topic), nil)
	if s, err := run(f, "s", 1, requests("u", 1, 30)...); err != nil || s.Committed != 30 || s.Duplicates != 20 {
		t.Fatal(s, err)
	}
	list := storedMessages(t, js, topic.Name)
	// Messages are read in the order of the stream, over all partitions: the order in which they were stored.
	wantUploads(t, list, map[string]int{"u": 30})
	for _, m := range list {
		key, _ := storedKey(m.Headers())
		if want := topic.subject(partitionOf(key, 8)); m.Subject() != want {
			t.Errorf("key %s is in %s, not in %s", key, m.Subject(), want)
		}
		if id, _ := storedID(m.Headers()); id.session != "/s" {
			t.Errorf("session %q", id.session)
		}
	}
}

// The session says nothing (its state was lost): then the ids do.
func TestForgottenSessionIsStoredOnceWithinDedupe(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	gw := newGateway(t, js, topic)
	if _, err := run(newFlow(t, gw, nil), "s", 1, requests("u", 1, 20)...); err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), topic.sessionsBucket())
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Purge(t.Context(), sessionKey(flow.SessionID{Name: "s"})); err != nil {
		t.Fatal(err)
	}
	if s, err := run(newFlow(t, newGateway(t, js, topic), nil), "s", 1, requests("u", 1, 30)...); err != nil || s.Duplicates != 0 {
		t.Fatal(s, err)
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"u": 30})
}

// After Dedupe the ids say nothing: then the session does.
func TestUploadResumedAfterDedupeIsStoredOnce(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, func(t *Topic) { t.Dedupe = 400 * time.Millisecond })
	if _, err := run(newFlow(t, newGateway(t, js, topic), nil), "s", 1, requests("u", 1, 20)...); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * topic.Dedupe)
	if s, err := run(newFlow(t, newGateway(t, js, topic), nil), "s", 1, requests("u", 1, 30)...); err != nil || s.Duplicates != 20 {
		t.Fatal(s, err)
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"u": 30})
}

func TestMessagesWithoutASessionAreStoredOnceByTheirStream(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	gw := newGateway(t, js, topic)
	var calls int
	f, err := flow.NewBatch(func(ctx context.Context, batch []flow.Message[*request], errs []error) error {
		err := gw.Store(ctx, batch, errs)
		if calls++; calls <= 2 {
			return errors.New("the answer was lost")
		}
		return err
	}, nil, flow.Options{
		Backpressure: flow.BackpressureOptions{Capacity: 1}, Batch: flow.BatchOptions{MaxMessages: 8},
		Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if s, err := run(f, "", 0, requests("u", 1, 20)...); err != nil || s.Committed != 20 {
			t.Fatal(s, err)
		}
	}
	list := storedMessages(t, js, topic.Name)
	if len(list) != 40 {
		t.Fatalf("%d are stored", len(list))
	}
	wantUploads(t, list[:20], map[string]int{"u": 20})
	wantUploads(t, list[20:], map[string]int{"u": 20})
	a, _ := storedID(list[0].Headers())
	b, _ := storedID(list[20].Headers())
	if a.isSession() || b.isSession() || a.session == b.session {
		t.Errorf("ids %v and %v", a, b)
	}
	kept := func() int {
		gw.strangers.mu.Lock()
		defer gw.strangers.mu.Unlock()
		return len(gw.names)
	}
	for deadline := time.Now().Add(10 * time.Second); kept() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d names of streams that have ended are kept", kept())
		}
	}
}

func TestStoreWithoutTheTopicIsUnavailable(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	topic := Topic{Name: "uploads", Partitions: 4, Replicas: 1}
	f := newFlow(t, newGateway(t, js, topic), func(o *flow.Options) { o.Sessions = nil })
	if _, err := run(f, "", 0, requests("u", 1, 3)...); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "stream not found") {
		t.Error(err)
	}
	if err := Ensure(t.Context(), js, topic); err != nil {
		t.Fatal(err)
	}
	if _, err := run(f, "", 0, requests("u", 1, 3)...); err != nil {
		t.Error(err)
	}
	topic.Partitions = 8
	f = newFlow(t, newGateway(t, js, topic), func(o *flow.Options) { o.Sessions = nil })
	if _, err := run(f, "", 0, requests("u", 1, 3)...); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "Topic.Partitions is 8, but") {
		t.Error(err)
	}
}

func TestFullStreamIsResourceExhaustedWithRetryInfo(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, func(t *Topic) { t.MaxBytes = 4 << 10 })
	f := newFlow(t, newGateway(t, js, topic), nil)
	s, err := run(f, "s", 1, requests("u", 1, 100)...)
	if delay, again := flow.RetryAfter(err); status.Code(err) != codes.ResourceExhausted || !again || delay != fullRetry {
		t.Errorf("%v: again %v, after %v", err, again, delay)
	}
	if s.Committed == 0 || s.Committed >= 100 {
		t.Errorf("%+v", s)
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"u": int(s.Committed)})
	// Workers have purged what they have settled.
	stream, err := js.Stream(t.Context(), topic.Name)
	if err == nil {
		err = stream.Purge(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if again, err := run(f, "s", int(s.Committed)+1, requests("u", int(s.Committed)+1, int(s.Committed)+5)...); err != nil || again.Committed != s.Committed+5 {
		t.Error(again, err)
	}
}

// The server's own bound, which the gateway does not know: only the message that is too large fails, wherever it is.
func TestMessageTooLargeForTheStreamEndsItsOwnStreamOnly(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	stream, err := js.Stream(t.Context(), topic.Name)
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.MaxMsgSize = 500
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	f := newFlow(t, newGateway(t, js, topic), func(o *flow.Options) { o.Batch.MaxMessages = 64 })
	for at := 1; at <= 4; at++ {
		upload := fmt.Sprint("u", at)
		list := requests(upload, 1, 5)
		list[at-1] = requestOf(strings.Repeat("x", 500), at)
		s, err := run(f, upload, 1, list...)
		if status.Code(err) != codes.InvalidArgument || int(s.Committed) != at-1 {
			t.Errorf("message %d: %+v, %v", at, s, err)
		}
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"u2": 1, "u3": 2, "u4": 3})
}

// One client's message that no server takes, or that can't be marshalled, ends its own stream, behind what was before it.
func TestUnfitMessageEndsItsOwnStreamOnly(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	for i, unfit := range []*request{
		requestOf(strings.Repeat("x", int(js.Conn().MaxPayload())), 1), // the key alone is too large for a header
		{ExpectCompressed: &testpb.BoolValue{Value: true}},             // what Marshal does not like
	} {
		gw := newGateway(t, js, topic)
		marshal := gw.codec.Marshal
		gw.codec.Marshal = func(r *request) ([]byte, error) {
			if r.GetExpectCompressed().GetValue() {
				return nil, errors.New("no")
			}
			return marshal(r)
		}
		var block sync.WaitGroup
		block.Add(1)
		f, err := flow.NewBatch(func(ctx context.Context, batch []flow.Message[*request], errs []error) error {
			block.Wait() // until all is received: so one call has messages of both streams
			return gw.Store(ctx, batch, errs)
		}, nil, flow.Options{Backpressure: flow.BackpressureOptions{Capacity: 1}, Batch: flow.BatchOptions{MaxMessages: 64}})
		if err != nil {
			t.Fatal(err)
		}
		var streams sync.WaitGroup
		streams.Go(func() {
			list := append(requests(fmt.Sprintf("bad%d", i), 1, 3), unfit)
			s, err := run(f, "", 0, append(list, requests(fmt.Sprintf("bad%d", i), 4, 6)...)...)
			if status.Code(err) != codes.InvalidArgument || s.Committed != 3 {
				t.Errorf("%+v, %v", s, err)
			}
		})
		streams.Go(func() {
			if s, err := run(f, "", 0, requests(fmt.Sprintf("good%d", i), 1, 10)...); err != nil {
				t.Errorf("%+v, %v", s, err)
			}
		})
		for f.Stats().InFlight+f.Stats().Waiting < 17 {
			time.Sleep(time.Millisecond)
		}
		block.Done()
		streams.Wait()
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"bad0": 3, "good0": 10, "bad1": 3, "good1": 10})
}

// oneCall makes a Flow whose first call has all of a stream of n messages.
func oneCall(t *testing.T, gw *Gateway[*request], n int, change func(*flow.Options)) *flow.Flow[*request] {
	t.Helper()
	return newFlow(t, gw, func(o *flow.Options) {
		*o = flow.Options{
			Backpressure: flow.BackpressureOptions{Capacity: 1}, Batch: flow.BatchOptions{MaxMessages: n, Linger: time.Minute}, MaxPending: n,
		}
		if change != nil {
			change(o)
		}
	})
}

func TestABatchIsMadeWhileItIsSent(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	gw := newGateway(t, js, topic)
	marshal, made := gw.codec.Marshal, 0
	gw.codec.Marshal = func(r *request) ([]byte, error) {
		if made++; made == 900 {
			if stream, err := js.Stream(context.Background(), topic.Name); err != nil || stream.CachedInfo().State.Msgs == 0 {
				t.Errorf("nothing is stored yet (%v)", err)
			}
		}
		return marshal(r)
	}
	if s, err := run(oneCall(t, gw, 1000, nil), "", 0, requests("u", 1, 1000)...); err != nil || s.Committed != 1000 {
		t.Error(s, err)
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"u": 1000})
}

// A codec that panics has what was sent before be sent again.
func TestPanicOfACodecEndsItsOwnStreamAndRepeatsNothing(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	gw := newGateway(t, js, topic)
	marshal := gw.codec.Marshal
	gw.codec.Marshal = func(r *request) ([]byte, error) {
		if strings.HasSuffix(string(r.GetPayload().GetBody()), "/38") {
			panic("no")
		}
		return marshal(r)
	}
	s, err := run(oneCall(t, gw, 40, nil), "", 0, requests("u", 1, 40)...)
	if status.Code(err) != codes.Internal || s.Committed != 37 {
		t.Error(s, err)
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"u": 37})
}

// The first message of a stream that is not stored says how it ends, not a later one of the same call.
func TestUnfitMessageBehindOneThatIsNotStoredWaits(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, func(t *Topic) { t.MaxBytes = 2 << 10 })
	gw := newGateway(t, js, topic)
	marshal := gw.codec.Marshal
	gw.codec.Marshal = func(r *request) ([]byte, error) {
		if strings.HasSuffix(string(r.GetPayload().GetBody()), "/40") {
			return nil, errors.New("no")
		}
		return marshal(r)
	}
	s, err := run(oneCall(t, gw, 60, nil), "", 0, requests("u", 1, 60)...)
	if status.Code(err) != codes.ResourceExhausted || s.Committed == 0 || s.Committed >= 39 {
		t.Error(s, err)
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"u": int(s.Committed)})
}

// sized returns message n of an upload whose stored form takes so many bytes with its headers.
func sized(t *testing.T, gw *Gateway[*request], upload string, n, size int) *request {
	t.Helper()
	r := requestOf(upload, n)
	body := r.GetPayload().GetBody()
	o, pad := newOutgoing(), size-1000 // near enough for the numbers in it to be as long as they will be
	for range 2 {
		r.Payload.Body = slices.Concat(body, make([]byte, pad))
		if err := gw.codec.message(o, gw.topic, messageID{session: "/" + upload, number: uint64(n)}, r); err != nil {
			t.Fatal(err)
		}
		pad += size - (o.Size() - len(o.Subject))
	}
	if got := o.Size() - len(o.Subject); got != size {
		t.Fatalf("it takes %d bytes, want %d", got, size)
	}
	return r
}

// What a message takes is its headers and its data, wherever it is in a call: neither its subject nor where the answer goes.
func TestTheLargestMessageIsStoredWhereverItIs(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	gw := newGateway(t, js, topic)
	gw.pub.patience = time.Minute
	f := oneCall(t, gw, 4, func(o *flow.Options) { o.Sessions = &flow.SessionOptions{Store: gw.Sessions()} })
	size := int(js.Conn().MaxPayload()) - deadLetterRoom
	var list []*request
	for n := 1; n <= 4; n++ {
		list = append(list, sized(t, gw, "s", n, size))
	}
	if s, err := run(f, "s", 1, list...); err != nil || s.Committed != 4 {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := run(f, "t", 1, sized(t, gw, "t", 1, size+1)); status.Code(err) != codes.InvalidArgument || s.Committed != 0 {
		t.Errorf("one byte more: %+v, %v", s, err)
	}
	if n := len(storedMessages(t, js, topic.Name)); n != 4 {
		t.Errorf("%d are stored", n)
	}
}

// That is what the servers measure: one that takes exactly max_payload is stored.
func TestServersMeasureHeadersAndData(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	p, _ := testTopic(t, js, nil)
	p.patience = time.Minute
	list := messages(1, 3)
	for i, m := range list {
		m.Data = make([]byte, len(m.Data)+int(js.Conn().MaxPayload())-(m.Size()-len(m.Subject)))
		if i == 2 {
			m.Data = append(m.Data, 0)
		}
	}
	if n, err := p.store(t.Context(), eachOf(list)); n > 2 || !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("one byte more: %d, %v", n, err)
	}
	if n, err := p.store(t.Context(), eachOf(list[:2])); n != 2 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// What is known of a session may be too old in a moment: then it is asked for, since the servers may take longer to answer.
func TestFenceThatIsSoonTooOldIsAskedForAgain(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	gw := newGateway(t, js, topic)
	fences := gw.sessions.fences
	soon := 20 * time.Millisecond
	marshal := gw.codec.Marshal
	gw.codec.Marshal = func(r *request) ([]byte, error) {
		time.Sleep(2 * soon) // as servers may that are slow
		return marshal(r)
	}
	f, err := flow.NewBatch(func(ctx context.Context, batch []flow.Message[*request], errs []error) error {
		session := batch[0].Session()
		fences.mu.Lock()
		fences.known[session.ID] = fenceSeen{fence: session.Fence, at: time.Now().Add(soon - fences.good)}
		fences.mu.Unlock()
		return gw.Store(ctx, batch, errs)
	}, nil, flow.Options{
		Sessions:     &flow.SessionOptions{Store: gw.Sessions(), SaveEvery: time.Hour},
		Backpressure: flow.BackpressureOptions{Capacity: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := run(f, "s", 1, requests("u", 1, 1)...); err != nil || s.Committed != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

// A bucket that does not answer is waited for once in a call, not once for each of its sessions.
func TestSessionsOfACallAreWaitedForTogether(t *testing.T) {
	url := natstest.Embedded(t)
	proxy := natstest.NewProxy(t, url)
	_, topic := testTopic(t, natstest.Connect(t, url), nil)
	gw := newGateway(t, natstest.Connect(t, proxy.URL(), nats.IgnoreDiscoveredServers()), topic)
	const sessions = 8
	store, release := together(gw)
	f, err := flow.NewBatch(store, nil, flow.Options{
		Sessions:     &flow.SessionOptions{Store: gw.Sessions(), SaveEvery: time.Hour},
		Backpressure: flow.BackpressureOptions{Capacity: 1}, Batch: flow.BatchOptions{MaxMessages: sessions},
	})
	if err != nil {
		t.Fatal(err)
	}
	var streams sync.WaitGroup
	streams.Go(func() { _, _ = run(f, "", 0, requests("first", 1, 1)...) })
	for f.Stats().InFlight < 1 {
		time.Sleep(time.Millisecond)
	}
	for i := range sessions {
		streams.Go(func() {
			name := fmt.Sprint("s", i)
			if _, err := run(f, name, 1, requests(name, 1, 1)...); status.Code(err) != codes.Unavailable {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	for f.Stats().Waiting < sessions {
		time.Sleep(time.Millisecond)
	}
	var asked atomic.Int32
	gw.sessions.fences.mu.Lock()
	clear(gw.sessions.fences.known)
	gw.sessions.fences.mu.Unlock()
	proxy.OnFrame(func(f natstest.Frame) natstest.Fate {
		if f.Direction == natstest.ToServer && strings.HasPrefix(f.Subject, "$JS.API.STREAM.MSG.GET.KV_"+topic.sessionsBucket()) {
			asked.Add(1)
			return natstest.Drop
		}
		return natstest.Pass
	})
	release()
	streams.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("%d were waited for, one after the other", n)
	}
}
