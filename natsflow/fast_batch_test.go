package natsflow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/flow/natsflow/internal/natstest"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// testTopic makes a topic of one partition and returns what publishes in it.
func testTopic(t *testing.T, js jetstream.JetStream, change func(*Topic)) (*publisher, Topic) {
	t.Helper()
	topic := Topic{Name: "uploads", Partitions: 1, Replicas: 1}
	if change != nil {
		change(&topic)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := Ensure(t.Context(), js, topic)
		if err == nil {
			break
		}
		if topic.Replicas == 1 || time.Now().After(deadline) { // a young cluster has not heard of all its servers yet
			t.Fatal(err)
		}
	}
	topic, _ = topic.withDefaults()
	return &publisher{nc: js.Conn(), patience: 20 * time.Second}, topic
}

// numbersOf are messages of one session with these numbers.
func messages(first, last int) (list []*nats.Msg) {
	for n := first; n <= last; n++ {
		list = append(list, &nats.Msg{
			Subject: "uploads.0", Header: nats.Header{headerID: {fmt.Sprintf("/s/%d", n)}}, Data: []byte(strings.Repeat("x", 100)),
		})
	}
	return list
}

// eachOf returns the messages of a list one by one, and then nil.
func eachOf(list []*nats.Msg) (next func() (*nats.Msg, error)) {
	return func() (*nats.Msg, error) {
		if len(list) == 0 {
			return nil, nil
		}
		m := list[0]
		list = list[1:]
		return m, nil
	}
}

// storedNumbers reads the whole stream.
func storedNumbers(t *testing.T, js jetstream.JetStream, stream string) (numbers []int) {
	t.Helper()
	for _, m := range storedMessages(t, js, stream) {
		id, ok := storedID(m.Headers())
		if !ok {
			t.Fatalf("a message without an id: %v", m.Headers())
		}
		numbers = append(numbers, int(id.number))
	}
	return numbers
}

// storedMessages reads the whole stream.
func storedMessages(t *testing.T, js jetstream.JetStream, stream string) (list []jetstream.Msg) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		got, err := readStream(ctx, js, stream)
		cancel()
		if err == nil {
			return got
		}
		t.Log("read again:", err)
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("the stream can't be read")
	return nil
}

func readStream(ctx context.Context, js jetstream.JetStream, stream string) (list []jetstream.Msg, err error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return nil, nil
	}
	consumer, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	it, err := consumer.Messages(jetstream.PullExpiry(2*time.Second), jetstream.PullHeartbeat(500*time.Millisecond))
	if err != nil {
		return nil, err
	}
	defer it.Stop()
	defer context.AfterFunc(ctx, it.Stop)()
	for {
		m, err := it.Next()
		if err != nil {
			return nil, err
		}
		list = append(list, m)
		meta, err := m.Metadata()
		if err != nil {
			return nil, err
		}
		if meta.Sequence.Stream >= state.LastSeq {
			return list, nil
		}
	}
}

// oneTo is 1..n.
func oneTo(n int) (list []int) {
	for i := range n {
		list = append(list, i+1)
	}
	return list
}

func TestBatchIsStoredOnceInOrder(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	p, topic := testTopic(t, js, nil)
	next := 1
	for _, size := range []int{1, 2, 3, 100, 127, 128, 129, 1000} {
		if n, err := p.store(t.Context(), eachOf(messages(next, next+size-1))); n != size || err != nil {
			t.Fatalf("%d of %d: %v", n, size, err)
		}
		next += size
	}
	for _, again := range [][2]int{{1, 1}, {5, 7}, {1, next - 1}, {next - 3, next + 3}} { // the last adds four
		list := messages(again[0], again[1])
		if n, err := p.store(t.Context(), eachOf(list)); n != len(list) || err != nil {
			t.Fatalf("again %v: %d, %v", again, n, err)
		}
	}
	if got := storedNumbers(t, js, topic.Name); !slices.Equal(got, oneTo(next+3)) {
		t.Errorf("stored: %v", got)
	}
}

func TestConcurrentBatchesAreEachInOrder(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	p, topic := testTopic(t, js, nil)
	const sessions, size = 12, 300
	done := make(chan error)
	for s := range sessions {
		go func() {
			list := messages(1, size)
			for _, m := range list {
				m.Header[headerID][0] = fmt.Sprintf("/%d%s", s, m.Header[headerID][0][2:])
			}
			_, err := p.store(t.Context(), eachOf(list))
			done <- err
		}()
	}
	for range sessions {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	got := map[string]int{}
	for _, m := range storedMessages(t, js, topic.Name) {
		id, _ := storedID(m.Headers())
		if got[id.session]++; int(id.number) != got[id.session] {
			t.Fatalf("%v came as number %d", id, got[id.session])
		}
	}
	for session, n := range got {
		if n != size {
			t.Errorf("%s: %d", session, n)
		}
	}
}

func TestFullStreamRefusesAtOnceAndKeepsAPrefix(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	p, topic := testTopic(t, js, func(t *Topic) { t.MaxBytes = 16 << 10 })
	p.patience = time.Minute // refusals are answers: nobody waits
	var api *jetstream.APIError
	n, err := p.store(t.Context(), eachOf(messages(1, 300)))
	if n == 0 || n == 300 || !errors.As(err, &api) || api.ErrorCode != errCodeStoreFailed {
		t.Fatalf("%d stored: %v", n, err)
	}
	if got := storedNumbers(t, js, topic.Name); !slices.Equal(got, oneTo(n)) {
		t.Errorf("%d said to be stored, got %v", n, got)
	}
	for _, size := range []int{1, 2, 300} {
		if more, err := p.store(t.Context(), eachOf(messages(n+1, n+size))); more != 0 || !errors.As(err, &api) || api.ErrorCode != errCodeStoreFailed {
			t.Errorf("%d more: %d, %v", size, more, err)
		}
	}
}

func TestBatchWithoutAStreamFailsAtOnce(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	p := &publisher{nc: js.Conn(), patience: time.Minute}
	for _, size := range []int{1, 300} {
		if n, err := p.store(t.Context(), eachOf(messages(1, size))); n != 0 || !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("%d, %v", n, err)
		}
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errNoProgress)
	defer cancel()
	if errs := p.confirm(ctx, messages(1, 1)); errs[0] == nil {
		t.Error("confirmed")
	}
}

func TestBatchWithoutAConnectionIsNotSentLater(t *testing.T) {
	c := natstest.Start(t, 1)
	js := natstest.Connect(t, c.URLs())
	p, topic := testTopic(t, js, nil)
	c.Kill(0)
	for js.Conn().IsConnected() {
		time.Sleep(time.Millisecond)
	}
	if n, err := p.store(t.Context(), eachOf(messages(1, 5))); n != 0 || !errors.Is(err, errDisconnected) {
		t.Errorf("%d, %v", n, err)
	}
	if err := c.Run(0); err != nil {
		t.Fatal(err)
	}
	js = natstest.Connect(t, c.URLs())
	if got := storedNumbers(t, js, topic.Name); len(got) != 0 {
		t.Errorf("stored: %v", got)
	}
}

func TestBatchEndsWithItsContext(t *testing.T) {
	c := natstest.Start(t, 1)
	js := natstest.Connect(t, c.URLs())
	p, _ := testTopic(t, js, nil)
	p.patience = time.Minute
	c.Stop(0)
	defer c.Continue(0)
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
	if n, err := p.store(ctx, eachOf(messages(1, 300))); n != 0 || !errors.Is(err, why) {
		t.Errorf("%d, %v", n, err)
	}
	if errs := p.confirm(ctx, messages(1, 1)); !errors.Is(errs[0], why) {
		t.Errorf("confirm: %v", errs)
	}
	if len(p.exchanges) != 0 {
		t.Errorf("%d exchanges are left", len(p.exchanges))
	}
}

func TestBatchWithoutAnswersEndsWithNothingStored(t *testing.T) {
	c := natstest.Start(t, 1)
	js := natstest.Connect(t, c.URLs())
	p, _ := testTopic(t, js, nil)
	p.patience = 200 * time.Millisecond
	c.Stop(0)
	defer c.Continue(0)
	if n, err := p.store(t.Context(), eachOf(messages(1, 300))); n != 0 || !errors.Is(err, errNoProgress) {
		t.Errorf("%d, %v", n, err)
	}
	if errs := p.confirm(t.Context(), messages(1, 1)); !errors.Is(errs[0], errNoProgress) {
		t.Errorf("confirm: %v", errs)
	}
}

func TestALostAnswerIsAskedForAgain(t *testing.T) {
	url := natstest.Embedded(t)
	proxy := natstest.NewProxy(t, url)
	testTopic(t, natstest.Connect(t, url), nil)
	p := &publisher{nc: natstest.Connect(t, proxy.URL(), nats.IgnoreDiscoveredServers()).Conn(), patience: 4 * time.Second}
	proxy.OnFrame(func(f natstest.Frame) natstest.Fate {
		if f.Direction == natstest.ToClient && f.Number == 2 {
			return natstest.Drop
		}
		return natstest.Pass
	})
	for i, err := range p.confirm(t.Context(), messages(1, 3)) {
		if !errors.Is(err, errNotStored) { // and not that the servers don't answer
			t.Errorf("message %d: %v", i+1, err)
		}
	}
}

// See probe: this is what it is for. A leader without a majority takes a batch and can't store it; when it comes again, the
// leader says at once that it is stored, and dies.
func TestRetryWithoutQuorumIsNotAcknowledged(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three servers")
	}
	c := natstest.Start(t, 3)
	js := natstest.Connect(t, c.URLs())
	_, topic := testTopic(t, js, func(t *Topic) { t.Replicas = 3 })
	leader, err := c.Leader(js, topic.Name)
	if err != nil {
		t.Fatal(err)
	}
	p := &publisher{nc: natstest.Connect(t, c.URL(leader)).Conn()}
	p.patience = 20 * time.Second
	if n, err := p.store(t.Context(), eachOf(messages(1, 3))); n != 3 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	p.patience = time.Second
	for i := range 3 {
		if i != leader {
			c.Kill(i)
		}
	}
	if n, err := p.store(t.Context(), eachOf(messages(4, 9))); n != 0 || err == nil {
		t.Errorf("without a majority: %d, %v", n, err)
	}
	n, err := p.store(t.Context(), eachOf(messages(4, 9)))
	t.Logf("the same again: %d of 6, %v", n, err)
	if errs := p.confirm(t.Context(), []*nats.Msg{messages(3, 3)[0], messages(9, 9)[0]}); errs[0] != nil || !errors.Is(errs[1], errInFlight) {
		t.Errorf("3 is stored, 9 is not: %v", errs)
	}
	c.Kill(leader)
	for i := range 3 {
		if i != leader {
			if err := c.Run(i); err != nil {
				t.Fatal(err)
			}
		}
	}
	js = natstest.Connect(t, c.URL((leader+1)%3))
	if _, err := c.Leader(js, topic.Name); err != nil {
		t.Fatal(err)
	}
	p = &publisher{nc: js.Conn(), patience: 10 * time.Second}
	if errs := p.confirm(t.Context(), messages(9, 9)); !errors.Is(errs[0], errNotStored) {
		t.Errorf("another leader knows 9: %v", errs)
	}
	if got := storedNumbers(t, js, topic.Name); !slices.Equal(got, oneTo(3)) {
		t.Errorf("stored: %v", got)
	}
}

func TestProbeStoresNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three servers")
	}
	c := natstest.Start(t, 3)
	js := natstest.Connect(t, c.URLs())
	p, topic := testTopic(t, js, func(t *Topic) { t.Replicas, t.MaxBytes = 3, 16<<10 })
	if errs := p.confirm(t.Context(), messages(1, 1)); !errors.Is(errs[0], errNotStored) {
		t.Errorf("in an empty stream: %v", errs)
	}
	last, err := p.store(t.Context(), eachOf(messages(1, 300)))
	var api *jetstream.APIError
	if last < 5 || !errors.As(err, &api) || api.ErrorCode != errCodeStoreFailed {
		t.Fatalf("%d, %v", last, err)
	}
	for i, err := range p.confirm(t.Context(), messages(last-4, last+5)) { // in a full stream
		if want := i >= 5; errors.Is(err, errNotStored) != want || (err != nil) != want {
			t.Errorf("message %d: %v", last-4+i, err)
		}
	}
	if got := storedNumbers(t, js, topic.Name); !slices.Equal(got, oneTo(last)) {
		t.Errorf("stored: %v", got)
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	for data, want := range map[string]probeAnswer{
		``:                                probeRefused,
		`{`:                               probeRefused,
		`{"stream":"s","seq":7}`:          probeRefused, // it would have been stored
		`{"stream":"s","duplicate":true}`: probeRefused,
		`{"stream":"s","seq":7,"duplicate":true}`:                      probeStored,
		`{"error":{"code":409,"err_code":10158},"stream":"s","seq":0}`: probeInFlight,
		`{"error":{"code":400,"err_code":10071},"stream":"s","seq":0}`: probeUnknown,
		`{"error":{"code":400,"err_code":10164},"stream":"s","seq":0}`: probeUnknown,
		`{"error":{"code":503,"err_code":10023},"stream":"s","seq":0}`: probeRefused,
	} {
		if got := answerOf(&nats.Msg{Data: []byte(data)}); got != want {
			t.Errorf("%s: %v, want %v", data, got, want)
		}
	}
	for data, want := range map[string]fastBatch{
		`{"type":"ack","seq":7,"msgs":5}`:                               {acked: 7, flow: 5},
		`{"type":"ack","seq":1,"msgs":0}`:                               {acked: 3, flow: 1}, // acks may overtake each other
		`{"type":"gap","last_seq":4,"seq":6}`:                           {acked: 3, failure: errGap},
		`{"stream":"s","seq":99,"batch":"b","count":5}`:                 {acked: 5, over: true},
		`{"stream":"s","seq":9,"duplicate":true,"batch":"b","count":1}`: {acked: 3, over: true},
	} {
		b := fastBatch{acked: 3}
		if b.take("", &nats.Msg{Data: []byte(data)}); b != want {
			t.Errorf("%s: %+v, want %+v", data, b, want)
		}
	}
	for _, data := range []string{"", "[]", `{"error":{"code":500,"err_code":1},"stream":"s","seq":0}`} {
		var b fastBatch
		if b.take("", &nats.Msg{Data: []byte(data)}); !b.over || b.failure == nil {
			t.Errorf("%s: %+v", data, b)
		}
	}
	var b fastBatch
	b.take("100.fail.4.1.$FI", &nats.Msg{Data: []byte(`{"type":"err","seq":4,"error":{"code":400,"err_code":10054}}`)})
	if b.over || unfitNumber(b.failure) != 4 {
		t.Errorf("%+v", b)
	}
}
