// Package otelflow shows a Flow to OpenTelemetry: an Observer that keeps metrics, and a wrapper that makes a span of each
// time a handler is called, as a child of the stream's RPC span.
//
//	t := otelflow.New(otelflow.WithName("readings"))
//	f, err := flow.New(otelflow.Handler(t, store), key, flow.Options{Observer: t.Observer(), …})
//	…
//	unregister, err := t.Watch(f, capacity)
//
// Names, units and attributes follow OpenTelemetry's semantic conventions; README.md has the table. Keys and sequence
// numbers are never attributes of a metric: clients choose them, and each would be a time series of its own.
package otelflow

import (
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

const scope = "example.com/flow/otelflow"

// Telemetry is what one Flow is shown through. It is safe for concurrent use.
type Telemetry struct {
	metrics metrics
	meter   metric.Meter
	tracer  trace.Tracer
	name    attribute.Set // of the Flow: an attribute of each metric
	keys    bool
}

// Option changes what New makes.
type Option func(*config)

type config struct {
	name    string
	meters  metric.MeterProvider
	tracers trace.TracerProvider
	keys    bool
}

// WithName gives the Flow a name, the attribute flow.name of each of its metrics: needed where a process has several.
func WithName(name string) Option { return func(c *config) { c.name = name } }

// WithMeterProvider says where metrics go. The default is the global provider.
func WithMeterProvider(p metric.MeterProvider) Option { return func(c *config) { c.meters = p } }

// WithTracerProvider says where spans go. The default is the global provider.
func WithTracerProvider(p trace.TracerProvider) Option { return func(c *config) { c.tracers = p } }

// WithKeys has spans tell their message's key (flow.message.key). Clients choose keys, and they may be personal data.
func WithKeys() Option { return func(c *config) { c.keys = true } }

// New returns the Telemetry of one Flow. As in other instrumentations, an instrument that can't be made is reported to
// otel.Handle and is then one that does nothing.
func New(opts ...Option) *Telemetry {
	c := config{meters: otel.GetMeterProvider(), tracers: otel.GetTracerProvider()}
	for _, o := range opts {
		o(&c)
	}
	var name []attribute.KeyValue
	if c.name != "" {
		name = append(name, attribute.String("flow.name", c.name))
	}
	t := &Telemetry{
		meter: c.meters.Meter(scope), tracer: c.tracers.Tracer(scope), name: attribute.NewSet(name...), keys: c.keys,
	}
	t.metrics = newMetrics(t.meter, t.name)
	return t
}
