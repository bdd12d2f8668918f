package otelflow

import (
	"context"

	"go.opentelemetry.io/otel/metric"

	"example.com/flow"
)

// gauges show the Stats of a Flow. A value of 0 of an optional one is not shown.
var gauges = []struct {
	name, unit, text string
	value            func(*flow.Stats) int
	optional         bool
}{
	{name: "flow.messages.in_flight", unit: "{message}", text: "Messages whose handler runs.",
		value: func(s *flow.Stats) int { return s.InFlight }},
	{name: "flow.calls.in_flight", unit: "{call}", text: "Calls of the handler under way; flow.capacity bounds them.",
		value: func(s *flow.Stats) int { return s.Calls }},
	{name: "flow.capacity", unit: "{message}", text: "Messages that may run at once; calls, where they are of batches.",
		value: func(s *flow.Stats) int { return s.Capacity }, optional: true}, // 0 would read as none, and means unlimited
	{name: "flow.messages.waiting", unit: "{message}", text: "Messages accepted that neither run nor are finished.",
		value: func(s *flow.Stats) int { return s.Waiting }},
	{name: "flow.keys.active", unit: "{key}", text: "Keys that have messages running or waiting.",
		value: func(s *flow.Stats) int { return s.ActiveKeys }},
	{name: "flow.streams.active", unit: "{stream}", text: "Streams under way.",
		value: func(s *flow.Stats) int { return s.Streams }},
}

// Watch has each collection of metrics read f's Stats and show how many messages run and wait, how many calls of the handler are under way, how many keys and streams are
// active, and the capacity unless it is unlimited. The cost of a collection is that of [flow.Flow.Stats].
//
// Collections hold on to f, and show it, until the Registration is unregistered. Watch one Flow with each Telemetry: two
// would be recorded under one name.
func (t *Telemetry) Watch(f interface{ Stats() flow.Stats }) (metric.Registration, error) {
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
			if v := g.value(&stats); v != 0 || !g.optional {
				o.ObserveInt64(instruments[i], int64(v), name)
			}
		}
		return nil
	}, observables...)
}
