package natsflow

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"example.com/flow"
	"example.com/flow/natsflow/partition"
)

// Worker runs the messages of a topic, beside any number of others in other processes: each partition is run by one of
// them at a time. It is safe for concurrent use.
type Worker[T any] struct {
	js      jetstream.JetStream
	topic   Topic
	codec   Codec[T]
	handler flow.Handler[T]
	options WorkerOptions

	// How the worker reaches the servers: tests put theirs between.
	openBucket func(ctx context.Context) (bucket, error)
	openSource func(p int, after uint64) source[T]
	openDead   func(p int, epoch uint64) partition.DeadLetters

	running sync.Mutex // held by Run
}

// source is a partition.Source that is closed when nobody reads it any more.
type source[T any] interface {
	partition.Source[T]
	close()
}

// NewWorker returns a Worker of t, for which Ensure was called, that calls h for each message. The error of an impossible
// configuration names the field, its value and the rule.
func NewWorker[T any](js jetstream.JetStream, t Topic, c Codec[T], h flow.Handler[T], o WorkerOptions) (*Worker[T], error) {
	t, err := t.withDefaults()
	if err != nil {
		return nil, err
	}
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	switch {
	case js == nil:
		return nil, errors.New("natsflow: the JetStream must not be nil")
	case h == nil:
		return nil, errors.New("natsflow: the handler must not be nil")
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	w := &Worker[T]{js: js, topic: t, codec: c, handler: h, options: o}
	w.openBucket = func(ctx context.Context) (bucket, error) {
		kv, err := js.KeyValue(ctx, t.leaseBucket())
		if err != nil {
			return nil, fmt.Errorf("natsflow: bucket %q: %w", t.leaseBucket(), err)
		}
		return kvBucket{kv}, nil
	}
	w.openSource = func(p int, after uint64) source[T] {
		return &reader[T]{js: js, topic: t, codec: c, partition: p, last: after, pullMax: pullMax}
	}
	w.openDead = func(p int, epoch uint64) partition.DeadLetters { return deadLetters{js, t, p, epoch} }
	if _, err := w.newRunner(); err != nil {
		return nil, err
	}
	return w, nil
}

// pullMax is how many messages of a partition the client library reads ahead.
const pullMax = 500

func (w *Worker[T]) newRunner() (*partition.Runner[T], error) {
	r, err := partition.NewRunner(w.handler, partition.Options{
		Flow: w.options.Flow, Quarantine: w.options.Quarantine, Poison: w.options.Poison,
		Isolation: partition.NewIsolation(w.options.Lease),
	})
	if err != nil {
		return nil, fmt.Errorf("natsflow: WorkerOptions: %w", err)
	}
	return r, nil
}

var errRunning = errors.New("natsflow: the worker runs already")

// Run works until ctx ends. Then it hands over gracefully: nothing starts any more, what runs finishes (for
// WorkerOptions.Flow.Shutdown.GracePeriod at most, if that is set; then its contexts end), progress is committed, and the
// partitions are free for others. It returns nil then, and an error only if it can't work at all: the topic is not there or
// not as t says, or the connection was closed.
func (w *Worker[T]) Run(ctx context.Context) error {
	if !w.running.TryLock() {
		return errRunning
	}
	defer w.running.Unlock()
	if err := w.topic.verify(ctx, w.js); err != nil {
		return err
	}
	b, err := w.openBucket(ctx)
	if err != nil {
		return err
	}
	runner, err := w.newRunner()
	if err != nil {
		return err
	}
	return newMember(w, b, runner).run(ctx)
}

// workerID is a new name. It begins with the host's, for those who read it.
func workerID() string {
	host, _ := os.Hostname()
	host = strings.Map(func(r rune) rune {
		if r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, host)
	return host + "-" + rand.Text()
}

// bounds are the first and the last position of the stream.
func (w *Worker[T]) bounds(ctx context.Context) (first, last uint64, err error) {
	s, err := w.js.Stream(ctx, w.topic.Name)
	if err != nil {
		return 0, 0, err
	}
	state := s.CachedInfo().State
	return state.FirstSeq, state.LastSeq, nil
}

func (w *Worker[T]) observe(e PartitionEvent) {
	if w.options.Observer != nil {
		w.options.Observer(e)
	}
}
