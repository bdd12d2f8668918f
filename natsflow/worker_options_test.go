package natsflow

import (
	"context"
	"strings"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/natsflow/internal/natstest"
)

func TestWorkerErrorsNameFieldValueAndRule(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	ok := func(context.Context, flow.Message[string]) error { return nil }
	for _, c := range []struct {
		change func(*WorkerOptions)
		want   string
	}{
		{func(o *WorkerOptions) { o.Lease = time.Millisecond }, "WorkerOptions.Lease is 1ms: it must be at least 200ms"},
		{func(o *WorkerOptions) { o.Lease = -time.Second }, "WorkerOptions.Lease is -1s"},
		{func(o *WorkerOptions) { o.Commit = -1 }, "WorkerOptions.Commit is -1ns: it must be from 0"},
		{func(o *WorkerOptions) { o.Commit = 4 * time.Second }, "WorkerOptions.Commit is 4s: it must be from 0, for 250ms, to a quarter of Lease, which is 15s"},
		{func(o *WorkerOptions) { o.Quarantine = -1 }, "WorkerOptions.Quarantine is -1: it must be positive"},
		{func(o *WorkerOptions) { o.Poison = -1 }, "WorkerOptions.Poison is -1: it must be positive"},
		{func(o *WorkerOptions) { o.Flow.Ordering.Mode = flow.OrderingNone }, "Flow.Ordering.Mode is OrderingNone: it must be"},
		{func(o *WorkerOptions) { o.Flow.Ordering.Scope = flow.ScopeFlow }, "Flow.Ordering.Scope is ScopeFlow: it must be"},
		{func(o *WorkerOptions) { o.Flow.Ordering.Capacity = 1 }, "Flow.Ordering.Capacity is 1: it must be 0"},
		{func(o *WorkerOptions) { o.Flow.Ordering.KeyCapacity = 1 }, "Flow.Ordering.KeyCapacity is 1: it must be 0"},
		{func(o *WorkerOptions) { o.Flow.Backpressure.Policy = flow.BackpressureHardReject }, "Flow.Backpressure.Policy is BackpressureHardReject: it must not refuse"},
		{func(o *WorkerOptions) { o.Flow.Backpressure.QueueCapacity = 1 }, "Flow.Backpressure.QueueCapacity is 1: it must be 0"},
		{func(o *WorkerOptions) { o.Flow.MaxPending = -1 }, "Flow.MaxPending is -1: it must not be negative"},
		{func(o *WorkerOptions) { o.Flow.IdleTimeout = 1 }, "Flow.IdleTimeout is 1ns: it must be 0"},
		{func(o *WorkerOptions) { o.Flow.Sessions = &flow.SessionOptions{} }, "Flow.Sessions is set: it must be nil"},
		{func(o *WorkerOptions) { o.Flow.Retry.Backoff = 1 }, "Options.Retry.Backoff"},
	} {
		var o WorkerOptions
		c.change(&o)
		_, err := NewWorker(js, Topic{Name: "x"}, words, ok, o)
		if err == nil || !strings.HasPrefix(err.Error(), "natsflow: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	for want, try := range map[string]func() error{
		"the handler must not be nil": func() error {
			_, err := NewWorker[string](js, Topic{Name: "x"}, words, nil, WorkerOptions{})
			return err
		},
		"JetStream must not be nil": func() error { _, err := NewWorker(nil, Topic{Name: "x"}, words, ok, WorkerOptions{}); return err },
		"Topic.Name":                func() error { _, err := NewWorker(js, Topic{}, words, ok, WorkerOptions{}); return err },
		"Codec": func() error {
			_, err := NewWorker(js, Topic{Name: "x"}, Codec[string]{}, ok, WorkerOptions{})
			return err
		},
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	w, err := NewWorker(js, Topic{Name: "x"}, words, ok, WorkerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if o := w.options; o.Lease != 15*time.Second || o.Commit != 250*time.Millisecond || o.Quarantine != 2 || o.Poison != 2 {
		t.Errorf("defaults: %+v", o)
	}
	if err := w.Run(t.Context()); err == nil || !strings.Contains(err.Error(), `stream "x"`) {
		t.Errorf("Run without a topic: %v", err)
	}
}

func TestWorkerRefusesATopicThatIsNotAsItSays(t *testing.T) {
	js, topic := topicOf(t, 4)
	topic.Partitions = 8
	w, err := NewWorker(js, topic, words, func(context.Context, flow.Message[string]) error { return nil }, WorkerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "Topic.Partitions") {
		t.Errorf("Run: %v", err)
	}
}

func TestWorkerRunsOnce(t *testing.T) {
	w := mustWorker(t, func(context.Context, flow.Message[string]) error { return nil }, quick)
	runWorker(t, w)
	await(t, "it holds all", func() bool {
		states, err := w.Partitions(t.Context())
		return err == nil && states[0].Holder != "" && states[3].Holder != ""
	})
	if err := w.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("a second Run: %v", err)
	}
}

func TestWorkerWhoseConnectionIsClosedReturnsAnError(t *testing.T) {
	w := mustWorker(t, func(context.Context, flow.Message[string]) error { return nil }, WorkerOptions{Lease: 500 * time.Millisecond})
	over := make(chan error, 1)
	go func() { over <- w.Run(context.Background()) }()
	await(t, "it holds all", func() bool {
		states, err := w.Partitions(t.Context())
		return err == nil && states[0].Holder != "" && states[3].Holder != ""
	})
	w.js.Conn().Close()
	select {
	case err := <-over:
		if err == nil || !strings.Contains(err.Error(), "connection") {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("Run has not returned")
	}
}
