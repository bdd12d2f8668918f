package otelflow

import (
	"context"
	"slices"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"example.com/flow"
)

// metrics are the instruments that the Observer feeds. All sets of attributes are made beforehand, so that recording
// allocates nothing.
type metrics struct {
	messages metric.Int64Counter
	retries  metric.Int64Counter
	wait     metric.Float64Histogram
	handler  metric.Float64Histogram
	stream   metric.Float64Histogram

	plain    []metric.AddOption
	plainRec []metric.RecordOption
	ended    [errorTypes][]metric.RecordOption           // error.type
	counted  [outcomes][otherKind + 1][]metric.AddOption // flow.outcome and error.type, which is a kind
	attempt  [outcomes][otherKind + 1][]metric.RecordOption
}

// outcome is what became of a message, or of one attempt. Its names are the values of flow.outcome.
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

// The boundaries for handlers are those that the semantic conventions advise for durations, and three below them: a handler
// may be much faster than a request. A message may wait for as long as a key is stuck, and a stream may last for a day.
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
	for t := range errorTypes {
		var failure []attribute.KeyValue
		if t != errorType(flow.FailureNone) {
			failure = []attribute.KeyValue{attribute.String("error.type", t.String())}
		}
		m.ended[t] = []metric.RecordOption{set(failure...)}
		if t > otherKind {
			continue
		}
		for o := range outcomes {
			both := set(append(failure, attribute.String("flow.outcome", outcomeNames[o]))...)
			m.counted[o][t] = []metric.AddOption{both}
			m.attempt[o][t] = []metric.RecordOption{both}
		}
	}
	return m
}

// Observer returns the Observer that records the metrics: set it as Options.Observer. Each event takes a few atomic operations
// and allocates nothing. [flow.Observers] joins it with others.
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
		m.stream.Record(ctx, e.Took.Seconds(), m.ended[streamType(&e)]...)
	}
}

// finished counts a message, and its last attempt if it had one.
func (m *metrics) finished(ctx context.Context, o outcome, e *flow.Event) {
	m.messages.Add(ctx, 1, m.counted[o][typeOf(e.Failure)]...)
	if endsAttempt(e) {
		m.tried(ctx, o, e)
	}
}

func (m *metrics) tried(ctx context.Context, o outcome, e *flow.Event) {
	m.handler.Record(ctx, e.Took.Seconds(), m.attempt[o][typeOf(e.Failure)]...)
}

// endsAttempt reports whether a message finished together with an attempt: not if it never had one, nor if it was cut short
// while it waited for the next. That an attempt took no time says nothing: a coarse clock, or a bubble's, may not move in it.
func endsAttempt(e *flow.Event) bool {
	switch {
	case e.Attempt == 0:
		return false
	case e.Took > 0 || e.Failure == nil:
		return true
	}
	return e.Failure.Kind != flow.FailureContextCancelled && e.Failure.Kind != flow.FailureShutdown
}
