package natsflow

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"example.com/flow/natsflow/partition"
)

// PartitionState is what is known of a partition, whoever holds it.
type PartitionState struct {
	Partition int
	Holder    string // the worker; "" while nobody holds it. One that has died is still named until another claims it
	Epoch     uint64 // grows with each change of the holder

	Frontier  uint64 // of the stream: every message of the partition up to this Seq is settled
	Top       uint64 // no message above this one is settled, as far as is committed
	Unsettled int    // messages between that are not
	Last      uint64 // the last message stored; 0 while there is none
	// Lag is Last-Frontier, as far as is committed: 0 if all that is stored is settled. It is a distance in the stream,
	// which the topic's partitions share, so it is more than the messages that wait.
	Lag uint64
	// Age is for how long the oldest message that is not settled has been stored, by this machine's clock.
	Age time.Duration

	Deaths  int    // of holders in a row, while it is not clear that no message killed them
	Suspect uint64 // the message that runs alone in its process
	Stopped string // why nothing more of it runs; "" while it does
	Missing uint64 // messages that the stream has lost before they were settled, as far as was noticed
}

// askAtOnce is how many partitions are asked about at a time.
const askAtOnce = 8

// Partitions returns the state of all partitions, of all workers: what they have committed. It asks the servers two or three
// times for each partition. A partition whose record can't be read is held by nobody, and Stopped says so; deleting the
// record has it begin anew.
func (w *Worker[T]) Partitions(ctx context.Context) ([]PartitionState, error) {
	b, err := w.engine.bucket(ctx)
	if err != nil {
		return nil, err
	}
	states := make([]PartitionState, w.topic.Partitions)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(askAtOnce)
	for p := range states {
		g.Go(func() (err error) {
			states[p], err = w.state(ctx, b, p)
			if err != nil {
				return fmt.Errorf("natsflow: partition %d: %w", p, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return states, nil
}

func (w *Worker[T]) state(ctx context.Context, b bucket, p int) (s PartitionState, err error) {
	s.Partition = p
	value, revision, err := b.get(ctx, p)
	if err != nil {
		return s, err
	}
	settled, readable := s.take(value, revision)
	if !readable { // nobody claims it; the others are shown all the same
		return s, nil
	}
	s.Frontier, s.Top, s.Unsettled = settled.Frontier, settled.Top, len(settled.Unsettled)
	subject := w.topic.subject(p)
	last, err := lookup{Last: subject}.find(ctx, w.js, w.topic.Name)
	if s.Last = last.Position; err != nil || s.Last <= s.Frontier {
		return s, err
	}
	s.Lag = s.Last - s.Frontier
	oldest, err := lookup{From: s.Frontier + 1, Next: subject}.find(ctx, w.js, w.topic.Name)
	if err != nil || oldest.Position == 0 { // it was purged meanwhile
		return s, err
	}
	s.Age = max(0, time.Since(oldest.Stored))
	return s, nil
}

// take fills in what the record says, which the bucket has in this revision; value is nil if there is none. A record that
// can't be read is told in Stopped.
func (s *PartitionState) take(value []byte, revision uint64) (settled partition.Progress, readable bool) {
	if value == nil {
		return settled, true
	}
	r, err := parseRecord(value)
	if err == nil {
		settled, err = r.progress()
	}
	if err != nil {
		s.Stopped = err.Error()
		return settled, false
	}
	s.Holder, s.Epoch, s.Stopped, s.Missing = r.Holder, r.Epoch, r.Stopped, r.Missing
	s.Deaths, s.Suspect = r.Deaths.Count, r.Deaths.Suspect
	if s.Epoch == 0 {
		s.Epoch = revision // it is the claim
	}
	return settled, true
}
