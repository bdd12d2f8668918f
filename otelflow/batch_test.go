package otelflow_test

import (
	"context"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"example.com/flow"
	"example.com/flow/otelflow"
)

// batchOf runs a stream whose first message holds the only slot until the others have been received: they are one batch.
func batchOf(ctx context.Context, t *testing.T, tel *otelflow.Telemetry, h flow.BatchHandler[string], values ...string) {
	t.Helper()
	gate, held := make(chan struct{}), make(chan struct{})
	f, err := flow.NewBatch(func(ctx context.Context, batch []flow.Message[string], errs []error) error {
		if batch[0].Value == "hold" {
			close(held)
			<-gate
			return nil
		}
		return h(ctx, batch, errs)
	}, nil, flow.Options{
		Backpressure: flow.BackpressureOptions{Capacity: 1}, Observer: tel.Observer(),
		OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		Batch:     flow.BatchOptions{NoIsolation: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	watching, err := tel.Watch(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = watching.Unregister() })
	values = append([]string{"hold"}, values...)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = f.Run(ctx, func() (string, error) {
			if len(values) == 0 {
				return "", io.EOF
			}
			v := values[0]
			values = values[1:]
			if v != "hold" {
				<-held
			}
			return v, nil
		})
	}()
	synctest.Wait()
	close(gate)
	<-done
}

func TestBatchIsOneCallOfOneDuration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader := sdk.NewManualReader()
		tel := otelflow.New(otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
		batchOf(t.Context(), t, tel, func(_ context.Context, batch []flow.Message[string], _ []error) error {
			time.Sleep(time.Second)
			got, _ := collect(t, reader)
			if got["flow.calls.in_flight{}"] != 1 || got["flow.messages.in_flight{}"] != float64(len(batch)) {
				t.Errorf("while %d run: %v", len(batch), got)
			}
			return nil
		}, "a", "b", "c")
		got, _ := collect(t, reader)
		if n := got["flow.batch.size{}"]; n != 2 {
			t.Errorf("flow.batch.size has %v calls, want 2: %v", n, got)
		}
		if n := got["flow.handler.duration{flow.outcome=succeeded}"]; n != 2 {
			t.Errorf("flow.handler.duration has %v calls, want 2: %v", n, got)
		}
		if n := got["flow.messages{flow.outcome=succeeded}"]; n != 4 {
			t.Errorf("flow.messages is %v, want 4", n)
		}
	})
}

func TestBatchOfWhichSomeIsNotAttemptedIsMeasuredOnce(t *testing.T) {
	for name, outcomes := range map[string][]error{
		"behind a failure": {flow.Permanent(errHandler), flow.ErrNotAttempted, flow.ErrNotAttempted},
		"the first":        {flow.ErrNotAttempted, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reader := sdk.NewManualReader()
				tel := otelflow.New(otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
				calls := 0
				batchOf(t.Context(), t, tel, func(_ context.Context, _ []flow.Message[string], errs []error) error {
					if calls++; calls == 1 {
						copy(errs, outcomes)
					}
					return nil
				}, "a", "b", "c")
				got, _ := collect(t, reader)
				durations := 0.0
				for point, n := range got {
					if strings.HasPrefix(point, "flow.handler.duration{") {
						durations += n
					}
				}
				waits, sizes := got["flow.message.wait.duration{}"], got["flow.batch.size{}"]
				if waits != 4 || sizes != 3 || durations != 3 {
					t.Errorf("%v waits, %v sizes and %v durations of 4 messages in 3 calls", waits, sizes, durations)
				}
			})
		})
	}
}

func TestBatchSpanLinksToEachStreamsSpan(t *testing.T) {
	for name, c := range map[string]struct {
		handle flow.BatchHandler[string]
		want   string
		code   codes.Code
	}{
		"success": {func(context.Context, []flow.Message[string], []error) error { return nil },
			"flow.batch.size=3 flow.outcome=succeeded", codes.Unset},
		"whole failure": {func(context.Context, []flow.Message[string], []error) error { return errHandler },
			"error.type=FailureHandlerError flow.batch.size=3 flow.outcome=failed", codes.Error},
		"one failure": {func(_ context.Context, _ []flow.Message[string], errs []error) error {
			errs[0], errs[1] = errHandler, flow.ErrNotAttempted
			return nil
		}, "error.type=FailureHandlerError flow.batch.failed=1 flow.batch.size=3 flow.outcome=failed", codes.Error},
		"panic": {func(context.Context, []flow.Message[string], []error) error { panic("boom") },
			"error.type=FailureInternal flow.batch.size=3 flow.outcome=failed", codes.Error},
		"goexit": {func(context.Context, []flow.Message[string], []error) error { runtime.Goexit(); return nil },
			"error.type=FailureInternal flow.batch.size=3 flow.outcome=failed", codes.Error},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				exporter := tracetest.NewInMemoryExporter()
				provider := trace.NewTracerProvider(trace.WithSyncer(exporter))
				tel := otelflow.New(otelflow.WithTracerProvider(provider))
				ctx, rpc := provider.Tracer("test").Start(t.Context(), "rpc")
				once := false
				batchOf(ctx, t, tel, func(ctx context.Context, batch []flow.Message[string], errs []error) error {
					if once { // what comes again
						return nil
					}
					once = true
					return otelflow.BatchHandler(tel, c.handle)(ctx, batch, errs)
				}, "a", "b", "c")
				spans := exporter.GetSpans()
				if len(spans) != 1 {
					t.Fatalf("%d spans have ended, want one", len(spans))
				}
				s := spans[0]
				if got := strings.Join(attributes(s), " "); got != c.want || s.Status.Code != c.code {
					t.Errorf("the span has %s and %v, want %s and %v", got, s.Status.Code, c.want, c.code)
				}
				if len(s.Links) != 1 || s.Links[0].SpanContext.SpanID() != rpc.SpanContext().SpanID() || s.Parent.IsValid() {
					t.Errorf("the span has links %v and parent %v", s.Links, s.Parent)
				}
			})
		})
	}
}

func TestBatchWithoutASpanThatRecordsHasNone(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(exporter))
	tel := otelflow.New(otelflow.WithTracerProvider(provider))
	h := otelflow.BatchHandler(tel, func(context.Context, []flow.Message[string], []error) error { return nil })
	batch, errs := make([]flow.Message[string], 2), make([]error, 2)
	if n := testing.AllocsPerRun(10, func() { _ = h(context.Background(), batch, errs) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if spans := exporter.GetSpans(); len(spans) != 0 {
		t.Errorf("%d spans", len(spans))
	}
}
