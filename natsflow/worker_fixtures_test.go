package natsflow

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/flow/natsflow/internal/natstest"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// words is the Codec of the tests: a value is "key/n", and one that has no slash can't be decoded.
var words = Codec[string]{
	Key:     func(s string) string { key, _, _ := strings.Cut(s, "/"); return key },
	Marshal: func(s string) ([]byte, error) { return []byte(s), nil },
	Unmarshal: func(b []byte) (string, error) {
		if !strings.Contains(string(b), "/") {
			return "", fmt.Errorf("%q has no slash", b)
		}
		return string(b), nil
	},
}

// topicOf ensures a topic of so many partitions on a server of the test's own.
func topicOf(t testing.TB, partitions int) (jetstream.JetStream, Topic) {
	t.Helper()
	js := natstest.Connect(t, natstest.Embedded(t))
	topic := Topic{Name: "test", Partitions: partitions, Replicas: 1}
	if err := Ensure(t.Context(), js, topic); err != nil {
		t.Fatal(err)
	}
	return js, topic
}

// publish stores values as a gateway does, with ids of their own.
func publish(t testing.TB, js jetstream.JetStream, topic Topic, values ...string) {
	t.Helper()
	for _, v := range values {
		m, err := storedWord(topic, messageID{session: "a/b", number: uint64(published.next())}, v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
}

var published counter

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) next() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

// journal is what handlers have done, in the order in which they did it.
type journal struct {
	mu   sync.Mutex
	done []string
}

func (j *journal) add(v string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.done = append(j.done, v)
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string(nil), j.done...)
}

// of is what was done of one key.
func (j *journal) of(key string) (values []string) {
	for _, v := range j.all() {
		if words.Key(v) == key {
			values = append(values, v)
		}
	}
	return values
}

// await waits until ready, for long enough on a busy machine.
func await(t testing.TB, what string, ready func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ready(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// runWorker runs w until the test ends, or stop is called, which waits.
func runWorker[T any](t testing.TB, w *Worker[T]) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- w.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-over; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// sequence is the values key/1 to key/n of each key, mixed.
func sequence(n int, keys ...string) (values []string) {
	for i := range n {
		for _, key := range keys {
			values = append(values, key+"/"+strconv.Itoa(i+1))
		}
	}
	return values
}

// eventLog is an Observer that remembers.
type eventLog struct {
	mu  sync.Mutex
	all []PartitionEvent
}

func (l *eventLog) observe(e PartitionEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, e)
}

// of is the events of a kind.
func (l *eventLog) of(kind EventKind) (events []PartitionEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.all {
		if e.Kind == kind {
			events = append(events, e)
		}
	}
	return events
}

// deadOf is the dead letters of w's topic.
func deadOf(t testing.TB, w *Worker[string]) (letters []*jetstream.RawStreamMsg) {
	t.Helper()
	s, err := w.js.Stream(t.Context(), w.topic.deadStream())
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		letters = append(letters, m)
	}
	return letters
}

// sideBySide runs test for each of 0 to n-1 with this stride, as subtests, so many at once: they wait more than they work,
// so there may be more of them than processors.
func sideBySide(t *testing.T, n, stride, atOnce int, name func(i int) string, test func(t *testing.T, i int)) {
	t.Helper()
	next := make(chan int)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for i := range next {
				t.Run(name(i), func(t *testing.T) { test(t, i) })
			}
		})
	}
	for i := 0; i < n; i += stride {
		next <- i
	}
	close(next)
	all.Wait()
}

// storedWord is what is stored of v.
func storedWord(t Topic, id messageID, v string) (*nats.Msg, error) {
	o := newOutgoing()
	return &o.Msg, words.message(o, t, id, v)
}
