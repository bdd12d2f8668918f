package otelnatsflow_test

import (
	"context"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"google.golang.org/grpc/metadata"

	"example.com/flow"
	"example.com/flow/natsflow"
	"example.com/flow/natsflow/internal/natstest"
	"example.com/flow/otelflow"
)

// What natsflow's README says of a gateway's metrics, which are otelflow's.
func TestMetricsOfAGatewayAreThoseOfItsFlow(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	gw, err := natsflow.NewGateway(js, topic, words)
	if err != nil {
		t.Fatal(err)
	}
	reader := sdk.NewManualReader()
	tel := otelflow.New(otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
	window := 0.0
	f, err := flow.NewBatch(func(ctx context.Context, batch []flow.Message[string], errs []error) error {
		points, _ := collect(t, reader)
		window = max(window, points["flow.messages.in_flight{}"])
		return gw.Store(ctx, batch, errs)
	}, nil, flow.Options{
		Sessions: &flow.SessionOptions{Store: gw.Sessions()}, Observer: tel.Observer(),
		Backpressure: flow.BackpressureOptions{Capacity: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	watching, err := tel.Watch(f)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watching.Unregister() }()
	run := func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		_, err := f.Run(ctx, sourceOf("a/1", "a/2", "b/1"))
		return err
	}
	if run(t.Context()) == nil {
		t.Error("stored, though there is no topic")
	}
	if err := natsflow.Ensure(t.Context(), js, topic); err != nil {
		t.Fatal(err)
	}
	session := metadata.NewIncomingContext(t.Context(), metadata.Pairs("flow-session", "upload"))
	for range 2 { // it comes back, and sends all again
		if err := run(session); err != nil {
			t.Fatal(err)
		}
	}
	points, _ := collect(t, reader)
	for point, want := range map[string]float64{
		"flow.sessions{flow.session.found=new}":                                     1,
		"flow.sessions{flow.session.found=known}":                                   1,
		"flow.messages{flow.outcome=duplicate}":                                     3,
		"flow.messages{flow.outcome=succeeded}":                                     3,
		"flow.handler.duration{error.type=FailureHandlerError,flow.outcome=failed}": 1,
	} {
		if points[point] != want {
			t.Errorf("%s is %v, want %v: %v", point, points[point], want, points)
		}
	}
	if window == 0 {
		t.Error("there was no window")
	}
}
