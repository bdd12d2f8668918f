package otelnatsflow_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"example.com/flow"
	"example.com/flow/natsflow"
	"example.com/flow/natsflow/internal/natstest"
)

var words = natsflow.Codec[string]{
	Key:       func(s string) string { key, _, _ := strings.Cut(s, "/"); return key },
	Marshal:   func(s string) ([]byte, error) { return []byte(s), nil },
	Unmarshal: func(b []byte) (string, error) { return string(b), nil },
}

// upload stores values as a gateway does.
func upload(t *testing.T, js jetstream.JetStream, values ...string) {
	t.Helper()
	gw, err := natsflow.NewGateway(js, topic, words)
	if err != nil {
		t.Fatal(err)
	}
	f, err := flow.NewBatch(gw.Store, nil, flow.Options{Backpressure: flow.BackpressureOptions{Capacity: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Run(t.Context(), sourceOf(values...)); err != nil {
		t.Fatal(err)
	}
}

// sourceOf is a recv of these values.
func sourceOf(values ...string) func() (string, error) {
	all := make(chan string, len(values))
	for _, v := range values {
		all <- v
	}
	close(all)
	return flow.FromChan(context.Background(), all)
}

func await(t *testing.T, what string, ready func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ready(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// sum adds up the points of a metric whose attributes contain the text.
func sum(points map[string]float64, metric, text string) (n float64) {
	for point, v := range points {
		if strings.HasPrefix(point, metric+"{") && strings.Contains(point, text) {
			n += v
		}
	}
	return n
}

// One worker loses its servers while its handlers run, and another takes over: what is measured is what has happened.
func TestMetricsOfWorkersAreWhatHasHappened(t *testing.T) {
	urls := natstest.Embedded(t)
	js := natstest.Connect(t, urls)
	if err := natsflow.Ensure(t.Context(), js, topic); err != nil {
		t.Fatal(err)
	}
	upload(t, js, "a/1", "a/2", "b/1", "b/2", "bad/1")
	o := natsflow.WorkerOptions{Lease: 500 * time.Millisecond, Commit: 10 * time.Millisecond, DeadLetter: true}
	o.Flow.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }

	first, firstReader := telemetry()
	dying := natstest.Connect(t, urls)
	var started atomic.Int32
	o.Observer = first.Observer()
	w, err := natsflow.NewWorker(dying, topic, words, func(ctx context.Context, _ flow.Message[string]) error {
		started.Add(1)
		<-ctx.Done()
		return ctx.Err()
	}, o)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- w.Run(context.Background()) }()
	await(t, "each key runs", func() bool { return started.Load() == 3 })
	points, _ := collect(t, firstReader)
	if held, free := sum(points, "natsflow.partitions.held", ""), sum(points, "natsflow.lease.claims", "reason=free"); held != 2 || free != 2 {
		t.Errorf("the first worker: %v", points)
	}
	dying.Conn().Close()
	if <-over == nil {
		t.Error("a worker without a connection goes on")
	}
	points, _ = collect(t, firstReader)
	if held, lost := sum(points, "natsflow.partitions.held", ""), sum(points, "natsflow.lease.ends", "end=lost"); held != 0 || lost != 2 {
		t.Errorf("the first worker, after its end: %v", points)
	}
	if sum(points, "natsflow.commit.failures", "error.type=disconnected") == 0 {
		t.Errorf("no failed commit is counted: %v", points)
	}

	second, secondReader := telemetry()
	o.Observer = second.Observer()
	w, err = natsflow.NewWorker(js, topic, words, func(_ context.Context, m flow.Message[string]) error {
		if m.Key == "bad" {
			return errors.New("no reading")
		}
		return nil
	}, o)
	if err != nil {
		t.Fatal(err)
	}
	watching, err := second.Watch(w)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watching.Unregister() }()
	points, _ = collect(t, secondReader) // nobody runs: all is behind
	if sum(points, "natsflow.partition.lag", "") == 0 || sum(points, "natsflow.partition.age", "") == 0 {
		t.Errorf("with messages that wait: %v", points)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { over <- w.Run(ctx) }()
	await(t, "all is settled", func() bool {
		points, _ = collect(t, secondReader)
		return sum(points, "natsflow.partition.lag", "") == 0 && sum(points, "natsflow.lease.claims", "") == 2
	})
	cancel()
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	points, _ = collect(t, secondReader)
	for metric, want := range map[string]float64{
		"natsflow.lease.claims": 2, "natsflow.deaths": 2, "natsflow.replays": 5, "natsflow.dead_letters": 1,
		"natsflow.lease.ends": 2, "natsflow.partitions.held": 0, "natsflow.partition.unsettled": 0, "natsflow.poison": 0,
	} {
		if n := sum(points, metric, ""); n != want {
			t.Errorf("%s is %v, want %v: %v", metric, n, want, points)
		}
	}
	if sum(points, "natsflow.lease.claims", "reason=expired") != 2 || sum(points, "natsflow.lease.ends", "end=released") != 2 {
		t.Errorf("reasons: %v", points)
	}
	if sum(points, "natsflow.commit.duration", "") == 0 {
		t.Errorf("no commit is measured: %v", points)
	}
}

func TestAConflictOfTheBucketIsOne(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(t.Context(), "lease", "a"); err != nil {
		t.Fatal(err)
	}
	_, err = kv.Update(t.Context(), "lease", nil, 0)
	if word := errorTypeOf(t, err); word != "conflict" {
		t.Errorf("%v is %q", err, word)
	}
}
