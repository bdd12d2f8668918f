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
	batch    metric.Int64Histogram
	stream   metric.Float64Histogram
	sessions metric.Int64Counter
	saves    metric.Int64Counter

	plain    []metric.AddOption
	plainRec []metric.RecordOption
	ended    [errorTypes][]metric.RecordOption           // error.type
	counted  [outcomes][otherKind + 1][]metric.AddOption // flow.outcome and error.type, which is a kind
	attempt  [outcomes][otherKind + 1][]metric.RecordOption
	taken    map[string][]metric.AddOption  // flow.session.found
	unsaved  [errorTypes][]metric.AddOption // error.type
}

// outcome is what became of a message, or of one attempt. Its names are the values of flow.outcome.
type outcome int

const (
	succeeded outcome = iota
	failed
	rejected
	dropped
	retried
	duplicate
	outcomes
)

var outcomeNames = [outcomes]string{"succeeded", "failed", "rejected", "dropped", "retried", "duplicate"}

// otherSession stands for a value of Event.Found that is newer than this package.
const otherSession = "_OTHER"

// sessionsFound are the values of flow.session.found: what Event.Found may be.
var sessionsFound = []string{"new", "known", "lost", "moved", "refused", otherSession}

// The boundaries for handlers are those that the semantic conventions advise for durations, and three below them: a handler
// may be much faster than a request. A message may wait for as long as a key is stuck, and a stream may last for a day.
var (
	handlerSeconds = []float64{
		0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
	}
	waitSeconds   = append(slices.Clone(handlerSeconds), 30, 60, 300, 900)
	batchMessages = []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000}
	streamSeconds = []float64{0.01, 0.1, 1, 10, 60, 300, 900, 3600, 6 * 3600, 24 * 3600}
)

func newMetrics(meter metric.Meter, name attribute.Set) metrics {
	var m metrics
	var errs [8]error
	m.messages, errs[0] = meter.Int64Counter("flow.messages",
		metric.WithUnit("{message}"), metric.WithDescription("Messages finished, by outcome."))
	m.retries, errs[1] = meter.Int64Counter("flow.retries",
		metric.WithUnit("{retry}"), metric.WithDescription("Attempts that failed and are followed by another."))
	m.wait, errs[2] = meter.Float64Histogram("flow.message.wait.duration",
		metric.WithUnit("s"), metric.WithDescription("Time from a message's receipt to its first attempt."),
		metric.WithExplicitBucketBoundaries(waitSeconds...))
	m.handler, errs[3] = meter.Float64Histogram("flow.handler.duration",
		metric.WithUnit("s"), metric.WithDescription("Time that one call of the handler took."),
		metric.WithExplicitBucketBoundaries(handlerSeconds...))
	m.stream, errs[4] = meter.Float64Histogram("flow.stream.duration",
		metric.WithUnit("s"), metric.WithDescription("Time from a stream's start to its end."),
		metric.WithExplicitBucketBoundaries(streamSeconds...))
	m.sessions, errs[5] = meter.Int64Counter("flow.sessions",
		metric.WithUnit("{stream}"), metric.WithDescription("Streams that asked for a session, by how they found it."))
	m.saves, errs[6] = meter.Int64Counter("flow.session.saves",
		metric.WithUnit("{save}"), metric.WithDescription("Saves of a session's progress that failed."))
	m.batch, errs[7] = meter.Int64Histogram("flow.batch.size",
		metric.WithUnit("{message}"), metric.WithDescription("Messages in one call of a handler of batches."),
		metric.WithExplicitBucketBoundaries(batchMessages...))
	for _, err := range errs {
		if err != nil {
			otel.Handle(err)
		}
	}
	set := func(attrs ...attribute.KeyValue) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(append(name.ToSlice(), attrs...)...))
	}
	m.taken = make(map[string][]metric.AddOption)
	for _, found := range sessionsFound {
		m.taken[found] = []metric.AddOption{set(attribute.String("flow.session.found", found))}
	}
	m.plain, m.plainRec = []metric.AddOption{set()}, []metric.RecordOption{set()}
	for t := range errorTypes {
		var failure []attribute.KeyValue
		if t != errorType(flow.FailureNone) {
			failure = []attribute.KeyValue{attribute.String("error.type", t.String())}
		}
		m.ended[t] = []metric.RecordOption{set(failure...)}
		m.unsaved[t] = []metric.AddOption{set(failure...)}
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
	case flow.EventDuplicate:
		m.finished(ctx, duplicate, &e)
	case flow.EventSession:
		m.asked(ctx, e.Found)
	case flow.EventSaveFailed:
		m.saves.Add(ctx, 1, m.unsaved[streamType(&e)]...)
	case flow.EventStreamEnd:
		if e.Found != "" { // it asked for a session and has none
			m.asked(ctx, e.Found)
		}
		m.stream.Record(ctx, e.Took.Seconds(), m.ended[streamType(&e)]...)
	}
}

// asked counts a stream that asked for a session.
func (m *metrics) asked(ctx context.Context, found string) {
	opts, known := m.taken[found]
	if !known {
		opts = m.taken[otherSession]
	}
	m.sessions.Add(ctx, 1, opts...)
}

// finished counts a message, and its last attempt if it had one.
func (m *metrics) finished(ctx context.Context, o outcome, e *flow.Event) {
	m.messages.Add(ctx, 1, m.counted[o][typeOf(e.Failure)]...)
	if endsAttempt(e) {
		m.tried(ctx, o, e)
	}
}

// tried records an attempt. Those of a batch have one call, and so one duration: the first of them tells it.
func (m *metrics) tried(ctx context.Context, o outcome, e *flow.Event) {
	switch {
	case e.Index > 0:
		return
	case e.Batch > 0:
		m.batch.Record(ctx, int64(e.Batch), m.plainRec...)
	}
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
