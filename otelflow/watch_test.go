package otelflow_test

import (
	"context"
	"fmt"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/metric"

	"example.com/flow"
	"example.com/flow/otelflow"
)

// stats is a Flow that does nothing but have Stats.
type stats flow.Stats

func (s stats) Stats() flow.Stats { return flow.Stats(s) }

var busy = stats{Streams: 1, InFlight: 2, Calls: 1, Waiting: 3, ActiveKeys: 4, Capacity: 64}

func TestWatchShowsStatsUntilItIsUnregistered(t *testing.T) {
	reader := sdk.NewManualReader()
	tel := otelflow.New(otelflow.WithName("x"), otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
	reg, err := tel.Watch(busy)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := collect(t, reader)
	want := map[string]float64{
		"flow.streams.active{flow.name=x}": 1, "flow.messages.in_flight{flow.name=x}": 2, "flow.calls.in_flight{flow.name=x}": 1,
		"flow.messages.waiting{flow.name=x}": 3, "flow.keys.active{flow.name=x}": 4, "flow.capacity{flow.name=x}": 64,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("collected %v, want %v", got, want)
	}
	if err := reg.Unregister(); err != nil {
		t.Fatal(err)
	}
	if got, _ := collect(t, reader); len(got) > 0 {
		t.Errorf("collected %v after Unregister", got)
	}
}

func TestWatchTakesTheCapacityFromTheFlowAndShowsNoneIfUnlimited(t *testing.T) {
	for _, capacity := range []int{0, 7} {
		f, err := flow.New(func(context.Context, flow.Message[string]) error { return nil }, nil,
			flow.Options{Backpressure: flow.BackpressureOptions{Capacity: capacity}})
		if err != nil {
			t.Fatal(err)
		}
		reader := sdk.NewManualReader()
		tel := otelflow.New(otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
		reg, err := tel.Watch(f)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := collect(t, reader)
		if n, shown := got["flow.capacity{}"]; n != float64(capacity) || shown != (capacity > 0) {
			t.Errorf("capacity %d is shown as %v (%v)", capacity, n, shown)
		}
		if n, shown := got["flow.messages.in_flight{}"]; n != 0 || !shown {
			t.Errorf("%v in flight (shown: %v), want 0", n, shown)
		}
		if err := reg.Unregister(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWatchTellsSeveralFlowsOfAProcessApart(t *testing.T) {
	reader := sdk.NewManualReader()
	provider := otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader)))
	for i, name := range []string{"x", "y"} {
		tel := otelflow.New(otelflow.WithName(name), provider)
		tel.Observer()(t.Context(), flow.Event{Kind: flow.EventSuccess, Attempt: 1, Took: 1})
		reg, err := tel.Watch(stats{InFlight: 2, Calls: 1, Capacity: 10 + i})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = reg.Unregister() }()
	}
	got, _ := collect(t, reader)
	for point, want := range map[string]float64{
		"flow.capacity{flow.name=x}": 10, "flow.capacity{flow.name=y}": 11,
		"flow.messages.in_flight{flow.name=x}": 2, "flow.messages.in_flight{flow.name=y}": 2,
		"flow.messages{flow.name=x,flow.outcome=succeeded}": 1, "flow.messages{flow.name=y,flow.outcome=succeeded}": 1,
	} {
		if got[point] != want {
			t.Errorf("%s is %v, want %v", point, got[point], want)
		}
	}
}
