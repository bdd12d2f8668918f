package otelflow_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"slices"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"example.com/flow"
	"example.com/flow/otelflow"
)

// A Flow of one capacity and one failing message, read as a collector would read it.
func Example() {
	reader := sdk.NewManualReader() // a service has an exporter here
	t := otelflow.New(
		otelflow.WithName("readings"),
		otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))),
	)
	store := func(_ context.Context, m flow.Message[string]) error {
		if m.Value == "" {
			return errors.New("empty reading")
		}
		return nil
	}
	f, err := flow.New(otelflow.Handler(t, store), nil, flow.Options{
		Observer:     t.Observer(),
		Backpressure: flow.BackpressureOptions{Capacity: 64},
		OnFailure:    func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
	})
	if err != nil {
		log.Fatal(err)
	}
	watching, err := t.Watch(f)
	if err != nil {
		log.Fatal(err)
	}

	readings := make(chan string, 3)
	readings <- "21.5"
	readings <- ""
	readings <- "22.0"
	close(readings)
	if _, err := f.Run(context.Background(), flow.FromChan(context.Background(), readings)); err != nil {
		log.Fatal(err)
	}

	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		log.Fatal(err)
	}
	_ = watching.Unregister() // not needed where the process ends
	var lines []string
	for _, m := range all.ScopeMetrics[0].Metrics {
		if sum, ok := m.Data.(metricdata.Sum[int64]); ok {
			for _, p := range sum.DataPoints {
				outcome, _ := p.Attributes.Value("flow.outcome")
				lines = append(lines, fmt.Sprintf("%s %s %d", m.Name, outcome.AsString(), p.Value))
			}
		}
	}
	slices.Sort(lines)
	for _, line := range lines {
		fmt.Println(line)
	}
	// Output:
	// flow.calls.in_flight  0
	// flow.capacity  64
	// flow.keys.active  0
	// flow.messages failed 1
	// flow.messages succeeded 2
	// flow.messages.in_flight  0
	// flow.messages.waiting  0
	// flow.streams.active  0
}
