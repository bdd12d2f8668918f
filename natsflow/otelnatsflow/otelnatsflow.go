// Package otelnatsflow shows the partitions of a natsflow topic, and what becomes of them, to OpenTelemetry: by an Observer
// that records what happens to those of one worker, and by a callback that shows the state of all.
//
//	t := otelnatsflow.New(topic)
//	w, err := natsflow.NewWorker(js, topic, codec, store, natsflow.WorkerOptions{Observer: t.Observer(), …})
//	…
//	watching, err := t.Watch(w)
//
// What happens to the messages of a worker, or of a gateway, is shown by package otelflow, as for any Flow.
//
// Names, units and attributes go by OpenTelemetry's semantic conventions, but for some namespaces that are plural, such as
// natsflow.events; natsflow's README has the table. Keys and sequence numbers are never attributes: there are too many of
// them. A partition is one; Topic.Partitions bounds them.
package otelnatsflow

import (
	"strconv"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"example.com/flow/natsflow"
)

const scope = "example.com/flow/natsflow/otelnatsflow"

// Telemetry is what the partitions of one topic are shown through. It is safe for concurrent use, and owns nothing that has
// to be closed.
type Telemetry struct {
	meter   metric.Meter
	topic   attribute.KeyValue
	metrics metrics
}

// Option changes what New makes.
type Option func(*config)

type config struct{ meters metric.MeterProvider }

// WithMeterProvider says where metrics go. The default is the global provider.
func WithMeterProvider(p metric.MeterProvider) Option { return func(c *config) { c.meters = p } }

// New returns the Telemetry of a topic, whose name is the attribute messaging.destination.name of each metric. As in other
// instrumentations, an instrument that can't be made is reported to otel.Handle and is then one that does nothing.
func New(topic natsflow.Topic, opts ...Option) *Telemetry {
	c := config{meters: otel.GetMeterProvider()}
	for _, o := range opts {
		o(&c)
	}
	t := &Telemetry{meter: c.meters.Meter(scope), topic: attribute.String("messaging.destination.name", topic.Name)}
	t.metrics = newMetrics(t.meter)
	return t
}

// attributes are those of a measurement: the topic's name and more.
func (t *Telemetry) attributes(more ...attribute.KeyValue) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(append(more, t.topic)...))
}

func partitionID(p int) attribute.KeyValue {
	return attribute.String("messaging.destination.partition.id", strconv.Itoa(p))
}
