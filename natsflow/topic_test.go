package natsflow

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/flow/natsflow/internal/natstest"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestMain(m *testing.M) {
	natstest.Serve()
	serveGatewayProcess()
	os.Exit(m.Run())
}

func TestTopicErrorsNameFieldValueAndRule(t *testing.T) {
	good := Topic{Name: "uploads"}
	for _, c := range []struct {
		change func(*Topic)
		want   string
	}{
		{func(t *Topic) { t.Name = "" }, `Topic.Name is "": it must be 1 to 128 letters`},
		{func(t *Topic) { t.Name = "a.b" }, `Topic.Name is "a.b"`},
		{func(t *Topic) { t.Name = strings.Repeat("x", 129) }, "must be 1 to 128"},
		{func(t *Topic) { t.Partitions = -1 }, "Topic.Partitions is -1: it must be 1 to 4096"},
		{func(t *Topic) { t.Partitions = 4097 }, "Topic.Partitions is 4097"},
		{func(t *Topic) { t.Replicas = 2 }, "Topic.Replicas is 2: it must be 1, 3 or 5"},
		{func(t *Topic) { t.Dedupe = time.Millisecond }, "Topic.Dedupe is 1ms: it must be at least 100ms"},
		{func(t *Topic) { t.Dedupe = -time.Second }, "Topic.Dedupe is -1s"},
		{func(t *Topic) { t.MaxBytes = -1 }, "Topic.MaxBytes is -1: it must not be negative"},
		{func(t *Topic) { t.MaxAge = -1 }, "Topic.MaxAge is -1ns"},
		{func(t *Topic) { t.MaxAge = time.Minute }, "Topic.MaxAge is 1m0s: it must be 0 or at least Topic.Dedupe, which is 10m0s"},
	} {
		topic := good
		c.change(&topic)
		if _, err := topic.withDefaults(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %q", topic, err, c.want)
		}
		if err := Ensure(t.Context(), nil, topic); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Ensure of %+v: got %v", topic, err)
		}
	}
	if full, err := good.withDefaults(); err != nil || full != (Topic{Name: "uploads", Partitions: 64, Replicas: 3, Dedupe: 10 * time.Minute}) {
		t.Errorf("defaults: %+v, %v", full, err)
	}
}

func TestEnsureMakesTheTopicAndThenLeavesIt(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	topic := Topic{Name: "uploads", Partitions: 8, Replicas: 1, MaxBytes: 1 << 20, MaxAge: time.Hour}
	for range 2 {
		if err := Ensure(t.Context(), js, topic); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"uploads", "uploads_dead", "KV_uploads_lease", "KV_uploads_sessions"} {
		if _, err := js.Stream(t.Context(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{topic.leaseBucket(), topic.sessionsBucket()} {
		kv, err := js.KeyValue(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if first, err := kv.Create(t.Context(), "k", nil); err != nil {
			t.Error(err)
		} else if _, err := kv.Update(t.Context(), "k", nil, first+1); err == nil {
			t.Errorf("%s: an update of another revision was taken", name)
		}
	}
	full, _ := topic.withDefaults()
	if err := full.verify(t.Context(), js); err != nil {
		t.Error(err)
	}
}

func TestEnsureByManyAtOnceMakesOneTopic(t *testing.T) {
	url := natstest.Embedded(t)
	var all sync.WaitGroup
	for range 8 {
		js := natstest.Connect(t, url)
		all.Go(func() {
			if err := Ensure(t.Context(), js, Topic{Name: "uploads", Replicas: 1}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestEnsureRefusesWhatDiffers(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	topic := Topic{Name: "uploads", Partitions: 8, Replicas: 1}
	if err := Ensure(t.Context(), js, topic); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(*Topic)
		want   string
	}{
		{func(t *Topic) { t.Partitions = 12 }, `Topic.Partitions is 12, but stream "uploads" has 8: it can't be changed`},
		{func(t *Topic) { t.Replicas = 3 }, `Topic.Replicas is 3, but stream "uploads" has 1`},
		{func(t *Topic) { t.Dedupe = time.Minute }, `Topic.Dedupe is 1m0s, but stream "uploads" has 10m0s`},
		{func(t *Topic) { t.MaxBytes = 1 << 20 }, `Topic.MaxBytes is 1048576, but stream "uploads" has -1`},
		{func(t *Topic) { t.MaxAge = time.Hour }, `Topic.MaxAge is 1h0m0s, but stream "uploads" has 0s`},
	} {
		changed := topic
		c.change(&changed)
		if err := Ensure(t.Context(), js, changed); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
		full, _ := changed.withDefaults()
		if err := full.verify(t.Context(), js); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("verify: got %v, want %q", err, c.want)
		}
	}
	if err := Ensure(t.Context(), js, topic); err != nil {
		t.Errorf("a refused Ensure has changed something: %v", err)
	}
}

// Somebody else's stream of that name, and one whose configuration was edited so that it would lose messages.
func TestEnsureRefusesForeignStreams(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	good := Topic{Name: "uploads", Partitions: 4, Replicas: 1}
	full, _ := good.withDefaults()
	for i, c := range []struct {
		of     func(Topic) jetstream.StreamConfig
		change func(*jetstream.StreamConfig)
		want   string
	}{
		{Topic.stream, func(c *jetstream.StreamConfig) { c.Metadata = nil }, "metadata natsflow.format is 1, but"},
		{Topic.stream, func(c *jetstream.StreamConfig) { c.Metadata[metaFormat] = "2" }, "metadata natsflow.format is 1, but"},
		{Topic.stream, func(c *jetstream.StreamConfig) { c.Metadata[metaHash] = "crc32" }, "metadata natsflow.hash is fnv1a64-fmix64"},
		{Topic.stream, func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }, "it would drop messages that nobody has read"},
		{Topic.stream, func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }, "retention is Limits, but"},
		{Topic.stream, func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, "storage is File, but"},
		{Topic.stream, func(c *jetstream.StreamConfig) { c.Subjects = append(c.Subjects, "more."+c.Name) }, "the list of subjects"},
		{Topic.stream, func(c *jetstream.StreamConfig) { c.AllowBatchPublish = false }, "the servers must be of version 2.14"},
		{func(t Topic) jetstream.StreamConfig { return t.bucket(t.leaseBucket(), 0) },
			func(c *jetstream.StreamConfig) { c.AllowDirect = true }, "allow_direct is false, but"},
	} {
		topic := full
		topic.Name = fmt.Sprintf("t%d", i)
		config := c.of(topic)
		c.change(&config)
		if _, err := js.CreateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		if err := Ensure(t.Context(), js, topic); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", topic.Name, err, c.want)
		}
	}
}

// The connection is there before the server is.
func TestEnsureWaitsForTheConnection(t *testing.T) {
	c := natstest.Start(t, 1)
	c.Kill(0)
	nc, err := nats.Connect(c.URLs(), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1),
		nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- Ensure(t.Context(), js, Topic{Name: "uploads", Replicas: 1}) }()
	select {
	case err := <-ended:
		t.Fatalf("before there was a server: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := c.Run(0); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestEnsureEndsWithItsContext(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Ensure(ctx, js, Topic{Name: "uploads", Replicas: 1}); err == nil {
		t.Error("no error")
	}
}

func TestEnsureOfMoreReplicasThanServersFailsAtOnce(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	began := time.Now()
	err := Ensure(t.Context(), js, Topic{Name: "uploads"})
	if err == nil || !strings.Contains(err.Error(), "replicas > 1 not supported") || time.Since(began) > ensureLimit {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}
