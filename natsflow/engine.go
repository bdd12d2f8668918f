package natsflow

import (
	"context"
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
	// purge removes the messages of a partition up to frontier that were stored Topic.Dedupe ago or earlier. all reports that
	// this was all of them.
	purge(ctx context.Context, p int, frontier uint64) (all bool, err error)
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
	m, err := lookup{Last: e.topic.subject(p)}.find(ctx, e.js, e.topic.Name)
	return s.CachedInfo().State.FirstSeq, m.Position, err
}

// purge implements engine. A server that is started knows the ids of those messages only that it has, and that are not older
// than Dedupe by its clock: so these must stay, settled or not.
func (e jetStream[T]) purge(ctx context.Context, p int, frontier uint64) (all bool, err error) {
	s, err := e.js.Stream(ctx, e.topic.Name)
	if err != nil {
		return false, err
	}
	oldest := s.CachedInfo().TimeStamp.Add(-e.topic.Dedupe) // by the clock of the leader, who has also dated the messages
	subject := e.topic.subject(p)
	young, err := lookup{Since: &oldest, Next: subject}.find(ctx, e.js, e.topic.Name)
	if err != nil {
		return false, err
	}
	all = young.Position == 0 || young.Position > frontier
	if !all {
		frontier = young.Position - 1
	}
	// Where there is nothing to purge, nothing is asked for: each purge is agreed upon by all replicas, and one up to position 0
	// would take all of the subject in servers before 2.14.2.
	first, err := lookup{From: 1, Next: subject}.find(ctx, e.js, e.topic.Name)
	if err != nil || first.Position == 0 || first.Position > frontier {
		return all, err
	}
	return all, s.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(frontier+1))
}

func (e jetStream[T]) closed() bool { return e.js.Conn().IsClosed() }
