package otelnatsflow

import (
	"context"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"

	"example.com/flow/natsflow"
)

// watchLimit is how long a collection waits for the servers: it has other metrics to show, and those of Prometheus' exporter
// have no limit of their own.
const watchLimit = 5 * time.Second

// gauges show the state of a partition.
var gauges = []struct {
	name, unit, text string
	value            func(*natsflow.PartitionState) int64
}{
	{"natsflow.partition.lag", "{sequence}", "How far the last message stored is ahead of what is settled, in numbers of the stream.",
		func(s *natsflow.PartitionState) int64 { return int64(s.Lag) }},
	{"natsflow.partition.unsettled", "{message}", "Messages not settled before the last one that is.",
		func(s *natsflow.PartitionState) int64 { return int64(s.Unsettled) }},
	{"natsflow.partition.deaths", "{death}", "Holders that died in a row, while it is not clear that no message killed them.",
		func(s *natsflow.PartitionState) int64 { return int64(s.Deaths) }},
	{"natsflow.partition.stopped", "1", "1 while nothing of the partition runs and it waits for somebody to look; else 0.",
		func(s *natsflow.PartitionState) int64 {
			if s.Stopped != "" {
				return 1
			}
			return 0
		}},
}

// Watch has each collection of metrics ask w for the state of all partitions, whoever holds them, as it was committed, and
// show it. That costs two or three requests for each partition, and is the same from each process, so it is enough to have
// it from one, which need not run the worker; of several take the maximum, not the sum. Watch makes nobody run.
//
// A collection waits for the servers for 5 seconds at most. What they don't answer goes to otel.Handle and is not shown, and
// other metrics are: an error of a callback would have an exporter drop all of the collection.
//
// Collections hold on to w until the Registration is unregistered.
func (t *Telemetry) Watch(w interface {
	Partitions(context.Context) ([]natsflow.PartitionState, error)
}) (metric.Registration, error) {
	age, err := t.meter.Float64ObservableGauge("natsflow.partition.age", metric.WithUnit("s"),
		metric.WithDescription("How long the oldest message that is not settled has been stored."))
	if err != nil {
		return nil, err
	}
	instruments := make([]metric.Int64ObservableGauge, len(gauges))
	observables := []metric.Observable{age}
	for i, g := range gauges {
		if instruments[i], err = t.meter.Int64ObservableGauge(g.name, metric.WithUnit(g.unit), metric.WithDescription(g.text)); err != nil {
			return nil, err
		}
		observables = append(observables, instruments[i])
	}
	return t.meter.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		ctx, cancel := context.WithTimeout(ctx, watchLimit)
		defer cancel()
		states, err := w.Partitions(ctx)
		if err != nil {
			otel.Handle(err)
			return nil
		}
		for _, s := range states {
			attrs := t.attributes(partitionID(s.Partition))
			o.ObserveFloat64(age, s.Age.Seconds(), attrs)
			for i, g := range gauges {
				o.ObserveInt64(instruments[i], g.value(&s), attrs)
			}
		}
		return nil
	}, observables...)
}
