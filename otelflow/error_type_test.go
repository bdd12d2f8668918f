package otelflow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
	"example.com/flow/flowtest"
	"example.com/flow/otelflow"
)

// errorTypes returns the values of error.type that a metric has points of.
func errorTypes(points map[string]float64, metric string) []string {
	var all []string
	for point := range maps.Keys(points) {
		if _, after, ok := strings.Cut(point, "error.type="); ok && strings.HasPrefix(point, metric+"{") {
			all = append(all, strings.FieldsFunc(after, func(r rune) bool { return r == ',' || r == '}' })[0])
		}
	}
	slices.Sort(all)
	return all
}

func TestErrorTypeOfABrokenSourceIsTheCodeOfItsStatus(t *testing.T) {
	tooLarge := status.Error(codes.ResourceExhausted, "grpc: received message larger than max")
	for name, c := range map[string]struct {
		recv func() (string, error)
		want string
	}{
		"an oversized message":      {func() (string, error) { return "", tooLarge }, "RESOURCE_EXHAUSTED"},
		"wrapped":                   {func() (string, error) { return "", fmt.Errorf("recv: %w", tooLarge) }, "RESOURCE_EXHAUSTED"},
		"an undecodable message":    {func() (string, error) { return "", status.Error(codes.Internal, "grpc: failed to unmarshal") }, "INTERNAL"},
		"a code that is none":       {func() (string, error) { return "", status.Error(4711, "strange") }, "UNKNOWN"},
		"the highest code":          {func() (string, error) { return "", status.Error(codes.Unauthenticated, "who?") }, "UNAUTHENTICATED"},
		"the client went away":      {func() (string, error) { return "", status.Error(codes.Canceled, "canceled") }, "FailureContextCancelled"},
		"no status":                 {func() (string, error) { return "", io.ErrUnexpectedEOF }, "FailureInternal"},
		"a panic":                   {func() (string, error) { panic("recv") }, "FailureInternal"},
		"a panic that has a status": {func() (string, error) { panic(tooLarge) }, "FailureInternal"},
	} {
		t.Run(name, func(t *testing.T) {
			reader := sdk.NewManualReader()
			tel := otelflow.New(otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
			f, err := flow.New(func(context.Context, flow.Message[string]) error { return nil }, nil, flow.Options{Observer: tel.Observer()})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Run(t.Context(), c.recv); err == nil {
				t.Fatal("the stream ended well")
			}
			points, _ := collect(t, reader)
			if got := errorTypes(points, "flow.stream.duration"); !slices.Equal(got, []string{c.want}) {
				t.Errorf("error.type is %v, want %s", got, c.want)
			}
		})
	}
}

// What a message's failure says about its stream stays a kind: a handler's status is its own affair.
func TestErrorTypeOfAStreamThatAMessageEndedIsAKind(t *testing.T) {
	reader := sdk.NewManualReader()
	tel := otelflow.New(otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
	tooLarge := status.Error(codes.ResourceExhausted, "")
	for _, f := range []*flow.Failure{
		{Kind: flow.FailureHandlerError, Seq: 1, Err: tooLarge},
		{Kind: flow.FailureInternal, Seq: 1, Err: tooLarge},
		{Kind: flow.FailureInternal, Err: faulty{}},
		{Kind: flow.FailureInternal},
		{Kind: 4711, Err: tooLarge},
	} {
		tel.Observer()(t.Context(), flow.Event{Kind: flow.EventStreamEnd, Took: time.Second, Failure: f})
	}
	points, _ := collect(t, reader)
	if got := errorTypes(points, "flow.stream.duration"); !slices.Equal(got, []string{"FailureHandlerError", "FailureInternal", "_OTHER"}) {
		t.Errorf("error.type is %v", got)
	}
}

func TestErrorTypeOfASpanIsThatOfTheMetric(t *testing.T) {
	attempts := flow.RetryOptions{AttemptTimeout: time.Minute}
	for name, c := range map[string]struct {
		handle func(context.Context, flow.Message[string]) error
		opts   flow.Options
		end    func(*flow.Flow[string], context.CancelCauseFunc) // after a second
		want   string
	}{
		"an error": {
			handle: func(context.Context, flow.Message[string]) error { return errHandler }, want: "FailureHandlerError",
		},
		"a deadline of its own": {
			handle: func(ctx context.Context, _ flow.Message[string]) error {
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				<-ctx.Done()
				return ctx.Err()
			}, want: "FailureHandlerError",
		},
		"the attempt's time": {
			handle: untilItsEnd(context.Cause), opts: flow.Options{Retry: attempts}, want: "FailureHandlerError",
		},
		"a service behind this one shuts down": {
			handle: func(context.Context, flow.Message[string]) error {
				return (&flow.Failure{Kind: flow.FailureShutdown}).GRPCStatus().Err()
			}, want: "FailureHandlerError",
		},
		"the client is gone": {
			handle: untilItsEnd(context.Context.Err), want: "FailureContextCancelled",
			end: func(_ *flow.Flow[string], cancel context.CancelCauseFunc) { cancel(nil) },
		},
		"the client is gone, with a cause": {
			handle: untilItsEnd(context.Cause), want: "FailureContextCancelled",
			end: func(_ *flow.Flow[string], cancel context.CancelCauseFunc) { cancel(errHandler) },
		},
		"the client is gone, another error": {
			handle: untilItsEnd(func(context.Context) error { return errors.New("rolled back") }), want: "FailureHandlerError",
			end: func(_ *flow.Flow[string], cancel context.CancelCauseFunc) { cancel(nil) },
		},
		"close": {
			handle: untilItsEnd(context.Context.Err), want: "FailureShutdown",
			end: func(f *flow.Flow[string], _ context.CancelCauseFunc) { _ = f.Close() },
		},
		"a panic": {
			handle: func(context.Context, flow.Message[string]) error { time.Sleep(time.Second); panic("boom") }, want: "FailureInternal",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				exporter, reader := tracetest.NewInMemoryExporter(), sdk.NewManualReader()
				tracers := trace.NewTracerProvider(trace.WithSyncer(exporter))
				tel := otelflow.New(otelflow.WithTracerProvider(tracers),
					otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
				c.opts.Observer = tel.Observer()
				f, err := flow.New(otelflow.Handler(tel, c.handle), nil, c.opts)
				if err != nil {
					t.Fatal(err)
				}
				ctx, _ := tracers.Tracer("test").Start(t.Context(), "rpc")
				ctx, cancel := context.WithCancelCause(ctx)
				defer cancel(nil)
				if c.end != nil {
					time.AfterFunc(time.Second, func() { c.end(f, cancel) })
				}
				_, _ = f.Run(ctx, flowtest.NewSource(t, "a").Recv)
				points, _ := collect(t, reader)
				if got := errorTypes(points, "flow.messages"); !slices.Equal(got, []string{c.want}) {
					t.Errorf("the metric's error.type is %v, want %s", got, c.want)
				}
				if got := attributeOf(exporter.GetSpans()[0], "error.type"); got != c.want {
					t.Errorf("the span's error.type is %s, want %s", got, c.want)
				}
			})
		})
	}
}

// untilItsEnd returns a handler that waits for the end of its context and returns what why says.
func untilItsEnd(why func(context.Context) error) flow.Handler[string] {
	return func(ctx context.Context, _ flow.Message[string]) error {
		<-ctx.Done()
		return why(ctx)
	}
}

func TestTelemetryMadeOutsideABubbleServesFlowsInside(t *testing.T) {
	exporter, reader := tracetest.NewInMemoryExporter(), sdk.NewManualReader()
	tracers := trace.NewTracerProvider(trace.WithSyncer(exporter))
	tel := otelflow.New(otelflow.WithTracerProvider(tracers), otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			f, err := flow.New(otelflow.Handler(tel, func(context.Context, flow.Message[string]) error { time.Sleep(time.Second); return nil }),
				nil, flow.Options{Observer: tel.Observer()})
			if err != nil {
				t.Fatal(err)
			}
			reg, err := tel.Watch(f)
			if err != nil {
				t.Fatal(err)
			}
			ctx, _ := tracers.Tracer("test").Start(t.Context(), "rpc")
			source := flowtest.NewSource(t, "a")
			source.End()
			if _, err := f.Run(ctx, source.Recv); err != nil {
				t.Error(err)
			}
			if err := reg.Unregister(); err != nil {
				t.Error(err)
			}
		})
	}
	points, _ := collect(t, reader)
	if n := points["flow.handler.duration{flow.outcome=succeeded}"]; n != 2 || len(exporter.GetSpans()) != 2 {
		t.Errorf("%v attempts and %d spans were recorded, want 2", n, len(exporter.GetSpans()))
	}
}
