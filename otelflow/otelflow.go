// Package otelflow shows a Flow to OpenTelemetry: by an Observer that records metrics, by a wrapper that gives each attempt
// of a handler a span below the stream's RPC span, and by a callback that shows what is under way.
//
//	t := otelflow.New(otelflow.WithName("readings"))
//	f, err := flow.New(otelflow.Handler(t, store), key, flow.Options{Observer: t.Observer(), …})
//	…
//	watching, err := t.Watch(f)
//
// Names, units and attributes go by OpenTelemetry's semantic conventions, but for some namespaces that are plural, such as
// flow.messages; README.md has the table. Keys and sequence numbers are never attributes of a metric: clients choose them,
// and each would be a time series of its own.
//
// What clients and handlers say (a key, the text of an error) is cut to size and made valid UTF-8 before it gets into a
// span: an exporter refuses a whole batch for one string that is not.
package otelflow

import (
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

const scope = "example.com/flow/otelflow"

// Telemetry is what one Flow is shown through. It is safe for concurrent use, and owns nothing that has to be closed.
type Telemetry struct {
	metrics metrics
	meter   metric.Meter
	tracer  trace.Tracer
	name    attribute.Set // flow.name, an attribute of each metric; empty without WithName
	keys    bool          // spans tell keys
}

// Option changes what New makes.
type Option func(*config)

type config struct {
	name    string
	meters  metric.MeterProvider
	tracers trace.TracerProvider
	keys    bool
}

// WithName gives the Flow a name, the attribute flow.name of each of its metrics: needed where a process has several Flows.
// At most 128 bytes of it are shown.
func WithName(name string) Option { return func(c *config) { c.name = name } }

// WithMeterProvider says where metrics go. The default is the global provider.
func WithMeterProvider(p metric.MeterProvider) Option { return func(c *config) { c.meters = p } }

// WithTracerProvider says where spans go. The default is the global provider.
func WithTracerProvider(p trace.TracerProvider) Option { return func(c *config) { c.tracers = p } }

// WithKeys has spans tell at most 128 bytes of their message's key (flow.message.key). Clients choose keys, and keys may be
// personal data. Bytes that are no UTF-8 are written as in Go, \xff.
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
		name = append(name, attribute.String("flow.name", exportable(c.name, maxName)))
	}
	t := &Telemetry{
		meter: c.meters.Meter(scope), tracer: c.tracers.Tracer(scope), name: attribute.NewSet(name...), keys: c.keys,
	}
	t.metrics = newMetrics(t.meter, t.name)
	return t
}
