package otelflow

import (
	"context"
	"slices"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"example.com/flow"
)

// metrics are the instruments that the Observer feeds. The attributes of all that it may record are made beforehand: to
// record allocates nothing.
type metrics struct {
	messages metric.Int64Counter
	retries  metric.Int64Counter
	wait     metric.Float64Histogram
	handler  metric.Float64Histogram
	stream   metric.Float64Histogram

	plain    []metric.AddOption
	plainRec []metric.RecordOption
	counted  [outcomes][kinds][]metric.AddOption    // flow.outcome and error.type
	ended    [kinds][]metric.RecordOption           // error.type
	attempt  [outcomes][kinds][]metric.RecordOption // of the handler: succeeded, failed, retried
}

type outcome int

const (
	succeeded outcome = iota
	failed
	rejected
	dropped
	retried
	outcomes
)

var outcomeNames = [outcomes]string{"succeeded", "failed", "rejected", "dropped", "retried"}

const kinds = int(flow.FailureInternal) + 1

// The boundaries of a handler's time are those that the semantic conventions advise for durations, and three below
// them: a handler may be much faster than a request. A message may wait for as long as a key is stuck, and a stream may
// last for a day.
var (
	handlerSeconds = []float64{
		0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
	}
	waitSeconds   = append(slices.Clone(handlerSeconds), 30, 60, 300, 900)
	streamSeconds = []float64{0.01, 0.1, 1, 10, 60, 300, 900, 3600, 6 * 3600, 24 * 3600}
)

func newMetrics(meter metric.Meter, name attribute.Set) metrics {
	var m metrics
	var errs [5]error
	m.messages, errs[0] = meter.Int64Counter("flow.messages",
		metric.WithUnit("{message}"), metric.WithDescription("Messages finished, by outcome."))
	m.retries, errs[1] = meter.Int64Counter("flow.retries",
		metric.WithUnit("{retry}"), metric.WithDescription("Attempts that failed and are followed by another."))
	m.wait, errs[2] = meter.Float64Histogram("flow.message.wait.duration",
		metric.WithUnit("s"), metric.WithDescription("Time from a message's receipt to its first attempt."),
		metric.WithExplicitBucketBoundaries(waitSeconds...))
	m.handler, errs[3] = meter.Float64Histogram("flow.handler.duration",
		metric.WithUnit("s"), metric.WithDescription("Time that one attempt took."),
		metric.WithExplicitBucketBoundaries(handlerSeconds...))
	m.stream, errs[4] = meter.Float64Histogram("flow.stream.duration",
		metric.WithUnit("s"), metric.WithDescription("Time from a stream's start to its end."),
		metric.WithExplicitBucketBoundaries(streamSeconds...))
	for _, err := range errs {
		if err != nil {
			otel.Handle(err)
		}
	}
	set := func(attrs ...attribute.KeyValue) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(append(name.ToSlice(), attrs...)...))
	}
	m.plain, m.plainRec = []metric.AddOption{set()}, []metric.RecordOption{set()}
	for k := range kinds {
		var kind []attribute.KeyValue
		if flow.FailureKind(k) != flow.FailureNone {
			kind = []attribute.KeyValue{attribute.String("error.type", flow.FailureKind(k).String())}
		}
		m.ended[k] = []metric.RecordOption{set(kind...)}
		for o := range outcomes {
			both := set(append(kind, attribute.String("flow.outcome", outcomeNames[o]))...)
			m.counted[o][k] = []metric.AddOption{both}
			m.attempt[o][k] = []metric.RecordOption{both}
		}
	}
	return m
}

// Observer returns what Options.Observer takes.
func (t *Telemetry) Observer() flow.Observer { return t.metrics.observe }

func (m *metrics) observe(ctx context.Context, e flow.Event) {
	switch e.Kind {
	case flow.EventAttempt:
		if e.Attempt == 1 {
			m.wait.Record(ctx, e.Waited.Seconds(), m.plainRec...)
		}
	case flow.EventRetry:
		m.retries.Add(ctx, 1, m.plain...)
		m.tried(ctx, retried, &e)
	case flow.EventSuccess:
		m.finished(ctx, succeeded, &e)
	case flow.EventFailure:
		m.finished(ctx, failed, &e)
	case flow.EventReject:
		m.finished(ctx, rejected, &e)
	case flow.EventDrop:
		m.finished(ctx, dropped, &e)
	case flow.EventStreamEnd:
		m.stream.Record(ctx, e.Took.Seconds(), m.ended[kindOf(e.Failure)]...)
	}
}

// finished counts a message, and its last attempt if it had one.
func (m *metrics) finished(ctx context.Context, o outcome, e *flow.Event) {
	m.messages.Add(ctx, 1, m.counted[o][kindOf(e.Failure)]...)
	m.tried(ctx, o, e)
}

func (m *metrics) tried(ctx context.Context, o outcome, e *flow.Event) {
	if e.Attempt > 0 && e.Took > 0 {
		m.handler.Record(ctx, e.Took.Seconds(), m.attempt[o][kindOf(e.Failure)]...)
	}
}

func kindOf(f *flow.Failure) int {
	if f == nil || f.Kind < 0 || int(f.Kind) >= kinds {
		return int(flow.FailureNone)
	}
	return int(f.Kind)
}

// Watch has each collection of metrics look at f's Stats: what runs, what waits, how many keys and streams are active, and
// capacity, which is Options.Backpressure.Capacity (0: unlimited, and not shown). It holds f until it is unregistered.
func (t *Telemetry) Watch(f interface{ Stats() flow.Stats }, capacity int) (metric.Registration, error) {
	type gauge struct {
		name, unit, text string
		value            func(flow.Stats) int
	}
	gauges := []gauge{
		{"flow.messages.in_flight", "{message}", "Messages whose handler runs.", func(s flow.Stats) int { return s.InFlight }},
		{"flow.messages.waiting", "{message}", "Messages accepted that neither run nor are finished.", func(s flow.Stats) int { return s.Waiting }},
		{"flow.keys.active", "{key}", "Keys that have messages running or waiting.", func(s flow.Stats) int { return s.ActiveKeys }},
		{"flow.streams.active", "{stream}", "Streams under way.", func(s flow.Stats) int { return s.Streams }},
	}
	if capacity > 0 {
		gauges = append(gauges, gauge{"flow.capacity", "{message}", "Messages that may run at once.", func(flow.Stats) int { return capacity }})
	}
	instruments := make([]metric.Int64ObservableUpDownCounter, len(gauges))
	observables := make([]metric.Observable, len(gauges))
	for i, g := range gauges {
		c, err := t.meter.Int64ObservableUpDownCounter(g.name, metric.WithUnit(g.unit), metric.WithDescription(g.text))
		if err != nil {
			return nil, err
		}
		instruments[i], observables[i] = c, c
	}
	name := metric.WithAttributeSet(t.name)
	return t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		stats := f.Stats()
		for i, g := range gauges {
			o.ObserveInt64(instruments[i], int64(g.value(stats)), name)
		}
		return nil
	}, observables...)
}
