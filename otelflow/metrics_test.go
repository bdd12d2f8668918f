package otelflow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	promexporter "go.opentelemetry.io/otel/exporters/prometheus"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.uber.org/goleak"

	"example.com/flow"
	"example.com/flow/flowtest"
	"example.com/flow/otelflow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errHandler = errors.New("handler failed")

// collect returns the points of all metrics, as "name{attributes} value", the count where it is a histogram.
func collect(t *testing.T, reader sdk.Reader) (points map[string]float64, all metricdata.ResourceMetrics) {
	t.Helper()
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	points = map[string]float64{}
	text := func(name string, set attribute.Set) string {
		var parts []string
		for _, kv := range set.ToSlice() {
			parts = append(parts, fmt.Sprintf("%s=%s", kv.Key, kv.Value.String()))
		}
		slices.Sort(parts)
		return name + "{" + strings.Join(parts, ",") + "}"
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					points[text(m.Name, p.Attributes)] = float64(p.Value)
				}
			case metricdata.Histogram[int64]:
				for _, p := range data.DataPoints {
					points[text(m.Name, p.Attributes)] = float64(p.Count)
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					points[text(m.Name, p.Attributes)] = float64(p.Count)
				}
			default:
				t.Errorf("%s has data of type %T", m.Name, data)
			}
		}
	}
	return points, all
}

// observed runs values through a Flow whose Observer is a Telemetry's, and returns what was collected.
func observed(t *testing.T, o flow.Options, handle flow.Handler[string], values ...string) map[string]float64 {
	t.Helper()
	reader := sdk.NewManualReader()
	tel := otelflow.New(otelflow.WithName("test"), otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
	o.Observer = tel.Observer()
	f, err := flow.New(handle, func(s string) string { return s }, o)
	if err != nil {
		t.Fatal(err)
	}
	source := flowtest.NewSource(t, values...)
	source.End()
	_, _ = f.Run(t.Context(), source.Recv)
	points, _ := collect(t, reader)
	return points
}

func TestMetricsCountMessagesByOutcomeAndErrorType(t *testing.T) {
	skip := func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }
	handle := func(_ context.Context, m flow.Message[string]) error {
		switch {
		case m.Value == "bad":
			return errHandler
		case m.Value == "twice" && m.Attempt == 1:
			return errHandler
		}
		return nil
	}
	got := observed(t, flow.Options{OnFailure: skip, Retry: flow.RetryOptions{MaxAttempts: 2}}, handle, "good", "bad", "twice")
	for point, want := range map[string]float64{
		"flow.messages{flow.name=test,flow.outcome=succeeded}":                                      2,
		"flow.messages{error.type=FailureHandlerError,flow.name=test,flow.outcome=failed}":          1,
		"flow.retries{flow.name=test}":                                                              2,
		"flow.message.wait.duration{flow.name=test}":                                                3,
		"flow.handler.duration{flow.name=test,flow.outcome=succeeded}":                              2,
		"flow.handler.duration{error.type=FailureHandlerError,flow.name=test,flow.outcome=retried}": 2,
		"flow.handler.duration{error.type=FailureHandlerError,flow.name=test,flow.outcome=failed}":  1,
		"flow.stream.duration{flow.name=test}":                                                      1,
	} {
		if got[point] != want {
			t.Errorf("%s is %v, want %v", point, got[point], want)
		}
		delete(got, point)
	}
	if len(got) > 0 {
		t.Errorf("more was recorded: %v", got)
	}
}

func TestMetricsCountRefusedAndDroppedMessages(t *testing.T) {
	o := flow.Options{
		Ordering:     flow.OrderingOptions{Mode: flow.OrderingNone},
		Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1},
	}
	hold := func(ctx context.Context, _ flow.Message[string]) error { <-ctx.Done(); return ctx.Err() }
	got := observed(t, o, hold, "a", "b")
	if n := got["flow.messages{error.type=FailureBackpressure,flow.name=test,flow.outcome=rejected}"]; n != 1 {
		t.Errorf("%v refused, want 1: %v", n, got)
	}
	if n := got["flow.stream.duration{error.type=FailureBackpressure,flow.name=test}"]; n != 1 {
		t.Errorf("%v streams ended for pressure, want 1: %v", n, got)
	}
	synctest.Test(t, func(t *testing.T) {
		got = observed(t, flow.Options{}, func(context.Context, flow.Message[string]) error {
			time.Sleep(time.Second) // the second is received by then
			return errHandler
		}, "a", "b")
	})
	if n := got["flow.messages{flow.name=test,flow.outcome=dropped}"]; n != 1 {
		t.Errorf("%v dropped, want 1: %v", n, got)
	}
}

func TestMetricsMeasureAnAttemptThatPanicked(t *testing.T) {
	for name, leave := range map[string]func(){"panic": func() { panic("boom") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reader := sdk.NewManualReader()
				tel := otelflow.New(otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
				f, err := flow.New(func(context.Context, flow.Message[string]) error {
					time.Sleep(7 * time.Second)
					leave()
					return nil
				}, nil, flow.Options{Observer: tel.Observer()})
				if err != nil {
					t.Fatal(err)
				}
				_, _ = f.Run(t.Context(), flowtest.NewSource(t, "a").Recv)
				_, all := collect(t, reader)
				for _, m := range all.ScopeMetrics[0].Metrics {
					if m.Name != "flow.handler.duration" {
						continue
					}
					if p := m.Data.(metricdata.Histogram[float64]).DataPoints; len(p) != 1 || p[0].Count != 1 || p[0].Sum != 7 {
						t.Errorf("attempts are %+v, want one of 7 s", p)
					}
					return
				}
				t.Error("no attempt was measured")
			})
		})
	}
}

// A bubble's clock stands still while a handler runs, and a coarse one may.
func TestMetricsMeasureAttemptsThatTakeNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		skip := func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }
		got := observed(t, flow.Options{OnFailure: skip, Retry: flow.RetryOptions{MaxAttempts: 2}},
			func(_ context.Context, m flow.Message[string]) error {
				if m.Value == "bad" {
					return errHandler
				}
				return nil
			}, "good", "bad")
		for point, want := range map[string]float64{
			"flow.handler.duration{flow.name=test,flow.outcome=succeeded}":                              1,
			"flow.handler.duration{error.type=FailureHandlerError,flow.name=test,flow.outcome=retried}": 1,
			"flow.handler.duration{error.type=FailureHandlerError,flow.name=test,flow.outcome=failed}":  1,
		} {
			if got[point] != want {
				t.Errorf("%s is %v, want %v", point, got[point], want)
			}
		}
	})
}

func TestMetricsMeasureNoAttemptOfAMessageThatIsCutShortBetweenTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader := sdk.NewManualReader()
		tel := otelflow.New(otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
		f, err := flow.New(func(context.Context, flow.Message[string]) error { time.Sleep(time.Second); return errHandler }, nil,
			flow.Options{Observer: tel.Observer(), Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour}})
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Minute, func() { _ = f.Close() })
		_, _ = f.Run(t.Context(), flowtest.NewSource(t, "a").Recv)
		got, _ := collect(t, reader)
		for point, want := range map[string]float64{
			"flow.messages{error.type=FailureShutdown,flow.outcome=failed}":              1,
			"flow.handler.duration{error.type=FailureHandlerError,flow.outcome=retried}": 1,
			"flow.handler.duration{error.type=FailureShutdown,flow.outcome=failed}":      0,
		} {
			if got[point] != want {
				t.Errorf("%s is %v, want %v: %v", point, got[point], want, got)
			}
		}
	})
}

func TestMetricsHaveNoKeysAndNoSequenceNumbers(t *testing.T) {
	handle := func(context.Context, flow.Message[string]) error { return errHandler }
	for point := range observed(t, flow.Options{}, handle, "device-4711") {
		if strings.Contains(point, "4711") || strings.Contains(point, "seq") || strings.Contains(point, "key=") {
			t.Errorf("%s", point)
		}
	}
}

func TestMetricsHaveTheUnitsOfTheConventions(t *testing.T) {
	reader := sdk.NewManualReader()
	tel := otelflow.New(otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
	for _, kind := range []flow.EventKind{
		flow.EventAttempt, flow.EventRetry, flow.EventSuccess, flow.EventStreamEnd, flow.EventSession, flow.EventSaveFailed,
	} {
		tel.Observer()(t.Context(), flow.Event{Kind: kind, Attempt: 1, Took: time.Second})
	}
	reg, err := tel.Watch(busy)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reg.Unregister() }()
	_, all := collect(t, reader)
	units := map[string]string{}
	for _, m := range all.ScopeMetrics[0].Metrics {
		units[m.Name] = m.Unit
	}
	want := map[string]string{
		"flow.messages": "{message}", "flow.retries": "{retry}", "flow.message.wait.duration": "s",
		"flow.handler.duration": "s", "flow.stream.duration": "s", "flow.messages.in_flight": "{message}", "flow.calls.in_flight": "{call}",
		"flow.messages.waiting": "{message}", "flow.keys.active": "{key}", "flow.streams.active": "{stream}",
		"flow.capacity": "{message}", "flow.sessions": "{stream}", "flow.session.saves": "{save}",
	}
	if fmt.Sprint(units) != fmt.Sprint(want) {
		t.Errorf("units are %v, want %v", units, want)
	}
}

func TestMetricsMeasureLongWaitsAndLongStreams(t *testing.T) {
	reader := sdk.NewManualReader()
	tel := otelflow.New(otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
	tel.Observer()(t.Context(), flow.Event{Kind: flow.EventAttempt, Attempt: 1, Waited: 10 * time.Minute})
	tel.Observer()(t.Context(), flow.Event{Kind: flow.EventStreamEnd, Took: 8 * time.Hour})
	_, all := collect(t, reader)
	seen := 0
	for _, m := range all.ScopeMetrics[0].Metrics {
		points := m.Data.(metricdata.Histogram[float64]).DataPoints
		for _, p := range points {
			seen++
			if beyond := p.BucketCounts[len(p.BucketCounts)-1]; beyond != 0 {
				t.Errorf("%s: %d lie beyond the last boundary, %v s", m.Name, beyond, p.Bounds[len(p.Bounds)-1])
			}
		}
	}
	if seen != 2 {
		t.Errorf("%d histograms, want 2", seen)
	}
}

func TestMetricsAreScrapedByPrometheus(t *testing.T) {
	registry := prometheus.NewRegistry()
	exporter, err := promexporter.New(promexporter.WithRegisterer(registry))
	if err != nil {
		t.Fatal(err)
	}
	tel := otelflow.New(otelflow.WithName("readings"), otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(exporter))))
	tel.Observer()(t.Context(), flow.Event{Kind: flow.EventSuccess, Attempt: 1, Took: 30 * time.Millisecond})
	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections()
	answer, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"flow_messages_total{", `flow_outcome="succeeded"`, `flow_name="readings"`, "flow_handler_duration_seconds_bucket{"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("the page has no %s:\n%s", want, body)
		}
	}
}

func TestMetricsOfAMessageAllocateNothing(t *testing.T) {
	tel := otelflow.New(otelflow.WithName("x"), otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(sdk.NewManualReader()))))
	observe, ctx := tel.Observer(), t.Context()
	allocs := testing.AllocsPerRun(1000, func() {
		observe(ctx, flow.Event{Kind: flow.EventAttempt, Attempt: 1, Waited: time.Millisecond})
		observe(ctx, flow.Event{Kind: flow.EventSuccess, Attempt: 1, Took: time.Millisecond})
	})
	if allocs > 0 {
		t.Errorf("%v allocations a message, want none", allocs)
	}
}
