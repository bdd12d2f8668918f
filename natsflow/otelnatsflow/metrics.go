package otelnatsflow

import (
	"context"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"example.com/flow/natsflow"
)

// metrics are the instruments that the Observer feeds.
type metrics struct {
	held        metric.Int64UpDownCounter
	claims      metric.Int64Counter
	ends        metric.Int64Counter
	stops       metric.Int64Counter
	commit      metric.Float64Histogram
	commitFails metric.Int64Counter
	deaths      metric.Int64Counter
	replays     metric.Int64Counter
	refusals    metric.Int64Counter
	suspects    metric.Int64Counter
	poison      metric.Int64Counter
	letters     metric.Int64Counter
	letterFails metric.Int64Counter
	losses      metric.Int64Counter
	dropped     metric.Int64Counter
}

// The values of natsflow.lease.end: how a worker's hold of a partition ends.
const (
	released = "released"
	lost     = "lost"
)

// other is the value of an attribute for what is newer than this package, or too rare for a name, as in the conventions.
const other = "_OTHER"

// A commit is one write to a bucket: some hundred microseconds with one server near by, seconds while there is no leader.
var commitSeconds = []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

func newMetrics(meter metric.Meter) (m metrics) {
	counters := []struct {
		to               *metric.Int64Counter
		name, unit, text string
	}{
		{&m.claims, "natsflow.lease.claims", "{claim}", "Partitions claimed, by what they were before."},
		{&m.ends, "natsflow.lease.ends", "{lease}", "Partitions held no more, by how that ended."},
		{&m.stops, "natsflow.partition.stops", "{stop}", "Partitions that their holder runs no more of, since something failed."},
		{&m.commitFails, "natsflow.commit.failures", "{failure}", "Writes of a partition's record that failed and are tried again."},
		{&m.deaths, "natsflow.deaths", "{death}", "Holders found dead when their partition was claimed."},
		{&m.replays, "natsflow.replays", "{message}", "Messages read that a holder that died, or has lost the partition, may have run."},
		{&m.refusals, "natsflow.refusals", "{refusal}", "Attempts, OnFailures and dead letters refused since the partition was not held for certain."},
		{&m.suspects, "natsflow.suspects", "{message}", "Attempts that ran alone in the process, since holders died."},
		{&m.poison, "natsflow.poison", "{message}", "Messages not run since holders died of them."},
		{&m.letters, "natsflow.dead_letters", "{message}", "Dead letters stored."},
		{&m.letterFails, "natsflow.dead_letter.failures", "{failure}", "Stores of dead letters that failed and are tried again."},
		{&m.losses, "natsflow.losses", "{loss}", "Times that messages were missing from the stream before they were settled."},
		{&m.dropped, "natsflow.events.dropped", "{event}", "Events not told and so not counted, since too many waited for the Observer."},
	}
	for _, c := range counters {
		var err error
		if *c.to, err = meter.Int64Counter(c.name, metric.WithUnit(c.unit), metric.WithDescription(c.text)); err != nil {
			otel.Handle(err)
		}
	}
	var err error
	m.held, err = meter.Int64UpDownCounter("natsflow.partitions.held",
		metric.WithUnit("{partition}"), metric.WithDescription("Partitions that the worker holds."))
	if err != nil {
		otel.Handle(err)
	}
	m.commit, err = meter.Float64Histogram("natsflow.commit.duration",
		metric.WithUnit("s"), metric.WithDescription("Time that it took to write a partition's progress, with all tries."),
		metric.WithExplicitBucketBoundaries(commitSeconds...))
	if err != nil {
		otel.Handle(err)
	}
	return m
}

// Observer returns a function that records what happens to a worker's partitions: set it as WorkerOptions.Observer, or call
// it from there.
func (t *Telemetry) Observer() func(natsflow.PartitionEvent) { return t.observe }

func (t *Telemetry) observe(e natsflow.PartitionEvent) {
	ctx, m := context.Background(), &t.metrics // an event is of no request
	count := func(c metric.Int64Counter, more ...attribute.KeyValue) {
		c.Add(ctx, 1, t.attributes(append(more, partitionID(e.Partition))...))
	}
	if e.Dropped > 0 {
		m.dropped.Add(ctx, int64(e.Dropped), t.attributes())
	}
	switch e.Kind {
	case natsflow.EventClaimed:
		m.held.Add(ctx, 1, t.attributes())
		count(m.claims, attribute.String("natsflow.claim.reason", reasonOf(e.Reason)))
	case natsflow.EventReleased:
		m.held.Add(ctx, -1, t.attributes())
		count(m.ends, attribute.String("natsflow.lease.end", released))
	case natsflow.EventLost:
		m.held.Add(ctx, -1, t.attributes())
		count(m.ends, attribute.String("natsflow.lease.end", lost))
	case natsflow.EventStopped:
		count(m.stops)
	case natsflow.EventCommitted:
		if e.Err != nil {
			m.commitFails.Add(ctx, 1, t.attributes(errorType(e.Err)))
			return
		}
		m.commit.Record(ctx, e.Took.Seconds(), t.attributes())
	case natsflow.EventDied:
		count(m.deaths)
	case natsflow.EventReplayed:
		count(m.replays)
	case natsflow.EventRefused:
		count(m.refusals)
	case natsflow.EventSuspect:
		count(m.suspects)
	case natsflow.EventPoison:
		count(m.poison)
	case natsflow.EventDeadLetter:
		if e.Err != nil {
			m.letterFails.Add(ctx, 1, t.attributes(errorType(e.Err)))
			return
		}
		count(m.letters)
	case natsflow.EventMissing:
		count(m.losses)
	}
}

// reasonOf is the reason of a claim, one of few.
func reasonOf(reason string) string {
	switch reason {
	case natsflow.ReasonFree, natsflow.ReasonExpired, natsflow.ReasonResumed:
		return reason
	}
	return other
}
