package natsflow

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"example.com/flow/natsflow/partition"
)

// engine is all that a worker needs of the servers. Tests put theirs in its place, or something between.
type engine[T any] interface {
	// verify returns an error if the topic is not there, or not as the worker was told.
	verify(ctx context.Context) error
	bucket(ctx context.Context) (bucket, error)
	// source reads a partition behind the position after.
	source(p int, after uint64) source[T]
	dead(p int, epoch uint64) partition.DeadLetters
	// bounds returns the first position of the stream, and the last one of a partition; 0 if that has none.
	bounds(ctx context.Context, p int) (first, last uint64, err error)
	// purge removes the messages of a partition up to frontier.
	purge(ctx context.Context, p int, frontier uint64) error
	// closed reports whether the servers can't be reached any more, for good.
	closed() bool
}

// source is a partition.Source that is closed when nobody reads it any more.
type source[T any] interface {
	partition.Source[T]
	close()
}

// jetStream is the engine.
type jetStream[T any] struct {
	js    jetstream.JetStream
	topic Topic
	codec Codec[T]
}

func (e jetStream[T]) verify(ctx context.Context) error { return e.topic.verify(ctx, e.js) }

func (e jetStream[T]) bucket(ctx context.Context) (bucket, error) {
	kv, err := e.js.KeyValue(ctx, e.topic.leaseBucket())
	if err != nil {
		return nil, fmt.Errorf("natsflow: bucket %q: %w", e.topic.leaseBucket(), err)
	}
	return kvBucket{e.js, kv}, nil
}

func (e jetStream[T]) source(p int, after uint64) source[T] {
	return &reader[T]{js: e.js, topic: e.topic, codec: e.codec, partition: p, last: after}
}

func (e jetStream[T]) dead(p int, epoch uint64) partition.DeadLetters {
	return deadLetters{e.js, e.topic, p, epoch}
}

func (e jetStream[T]) bounds(ctx context.Context, p int) (first, last uint64, err error) {
	s, err := e.js.Stream(ctx, e.topic.Name)
	if err != nil {
		return 0, 0, err
	}
	m, err := s.GetLastMsgForSubject(ctx, e.topic.subject(p))
	switch {
	case err == nil:
		last = m.Sequence
	case !errors.Is(err, jetstream.ErrMsgNotFound):
		return 0, 0, err
	}
	return s.CachedInfo().State.FirstSeq, last, nil
}

func (e jetStream[T]) purge(ctx context.Context, p int, frontier uint64) error {
	s, err := e.js.Stream(ctx, e.topic.Name)
	if err != nil {
		return err
	}
	return s.Purge(ctx, jetstream.WithPurgeSubject(e.topic.subject(p)), jetstream.WithPurgeSequence(frontier+1))
}

func (e jetStream[T]) closed() bool { return e.js.Conn().IsClosed() }
