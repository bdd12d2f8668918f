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
	options WorkerOptions
	engine  engine[T]
	runner  *partition.Runner[T]

	telling telling

	running sync.Mutex // held by Run
}

// NewWorker returns a Worker of t, for which Ensure was called, that calls h for each message. The error of an impossible
// configuration names the field, its value and the rule.
func NewWorker[T any](js jetstream.JetStream, t Topic, c Codec[T], h flow.Handler[T], o WorkerOptions) (*Worker[T], error) {
	t, err := t.withDefaults()
	if err != nil {
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
	w, err := newWorker(jetStream[T]{js, t, c}, t, h, o)
	if err != nil {
		return nil, err
	}
	w.js = js
	return w, nil
}

// newWorker returns a Worker whose servers are e.
func newWorker[T any](e engine[T], t Topic, h flow.Handler[T], o WorkerOptions) (*Worker[T], error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	r, err := partition.NewRunner(h, partition.Options{
		Flow: o.Flow, Quarantine: o.Quarantine, Poison: o.Poison, Isolation: partition.NewIsolation(o.Lease),
	})
	if err != nil {
		return nil, fmt.Errorf("natsflow: WorkerOptions: %w", err)
	}
	return &Worker[T]{topic: t, options: o, engine: e, runner: r, telling: telling{observer: o.Observer}}, nil
}

// Stats is what the one Flow that runs all partitions of this worker has under way, each partition a stream: for
// otelflow's Watch.
func (w *Worker[T]) Stats() flow.Stats { return w.runner.Stats() }

var errRunning = errors.New("natsflow: the worker runs already")

// Run works until ctx ends. Then it hands over gracefully: nothing starts any more, what runs finishes (for
// WorkerOptions.Flow.Shutdown.GracePeriod at most, if that is set; then its contexts end), progress is committed, and the
// partitions are free for others. It returns nil then, and an error only if it can't work at all: the topic is not there or
// not as t says, or the connection was closed; or, when it has ended, that the Observer has panicked, or has not returned
// for a Lease.
func (w *Worker[T]) Run(ctx context.Context) error {
	if !w.running.TryLock() {
		return errRunning
	}
	defer w.running.Unlock()
	if err := w.engine.verify(ctx); err != nil {
		return err
	}
	b, err := w.engine.bucket(ctx)
	if err != nil {
		return err
	}
	err = newMember(w, b, w.runner).run(ctx)
	if untold := w.telling.wait(w.options.Lease); untold != nil {
		return errors.Join(err, untold)
	}
	return err
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
