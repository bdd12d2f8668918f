package otelflow_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"
	"unsafe"
	"weak"

	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"example.com/flow"
	"example.com/flow/otelflow"
)

// attributeOf returns the value of one of a span's attributes; "" without it.
func attributeOf(s tracetest.SpanStub, name attribute.Key) string {
	for _, kv := range s.Attributes {
		if kv.Key == name {
			return kv.Value.String()
		}
	}
	return ""
}

func TestSpanTextsAreCutAndValidUTF8(t *testing.T) {
	long := strings.Repeat("ü", 1<<19)
	for _, c := range []struct{ name, text, wantKey, wantText string }{
		{"plain", "plain ü \n", "plain ü \n", "plain ü \n"},
		{"empty", "", "", ""},
		{"binary", "\x8f\x01\xfe", `\x8f` + "\x01" + `\xfe`, `\x8f` + "\x01" + `\xfe`},
		{"long", long, long[:128], long[:512]},
		{"long, and a rune does not fit", "x" + long, "x" + long[:126], "x" + long[:510]},
		{"long and binary", strings.Repeat("\xff", 1<<20), strings.Repeat(`\xff`, 32), strings.Repeat(`\xff`, 128)},
		{"half a rune at the end", "x\xc3", `x\xc3`, `x\xc3`},
		{"what a replacement looks like", "\ufffd", "\ufffd", "\ufffd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := flow.Message[string]{Seq: 1, Key: c.text, Attempt: 1}
			span := spanOf(t, func(context.Context, flow.Message[string]) error { return errors.New(c.text) }, m, otelflow.WithKeys())
			if got := attributeOf(span, "flow.message.key"); got != c.wantKey {
				t.Errorf("the key is %.200q, want %.200q", got, c.wantKey)
			}
			if got := span.Status.Description; got != c.wantText {
				t.Errorf("the status is %.600q, want %.600q", got, c.wantText)
			}
			for _, kv := range span.Attributes {
				if v := kv.Value.String(); !utf8.ValidString(v) {
					t.Errorf("%s is not UTF-8: %.200q", kv.Key, v)
				}
			}
		})
	}
}

func TestMetricNameIsCutAndValidUTF8(t *testing.T) {
	reader := sdk.NewManualReader()
	tel := otelflow.New(otelflow.WithName("x\xff"+strings.Repeat("y", 1000)),
		otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
	tel.Observer()(t.Context(), flow.Event{Kind: flow.EventRetry})
	got, _ := collect(t, reader)
	if want := `flow.retries{flow.name=x\xff` + strings.Repeat("y", 123) + "}"; got[want] != 1 {
		t.Errorf("collected %v, want %s", got, want)
	}
}

// A span waits in its batch until it is exported: a key that was cut from a message must not keep all of it.
func TestSpanKeepsNoMessageAlive(t *testing.T) {
	span, kept := func() (tracetest.SpanStub, weak.Pointer[[1 << 20]byte]) {
		message := new([1 << 20]byte)
		m := flow.Message[string]{Seq: 1, Key: unsafe.String(&message[0], 2), Attempt: 1}
		fail := func(_ context.Context, m flow.Message[string]) error { return errors.New(m.Key) }
		return spanOf(t, fail, m, otelflow.WithKeys()), weak.Make(message)
	}()
	runtime.GC()
	if kept.Value() != nil {
		t.Error("the message is still in memory")
	}
	if got := attributeOf(span, "flow.message.key"); got != "\x00\x00" {
		t.Errorf("the key is %q", got)
	}
}

// faulty is an error all of whose methods panic, as those of a typed nil do.
type faulty struct{}

func (faulty) Error() string { panic("Error") }
func (faulty) Unwrap() error { panic("Unwrap") }
func (faulty) Is(error) bool { panic("Is") }
func (faulty) As(any) bool   { panic("As") }

func TestHandlerReturnsAnErrorWhoseMethodsPanicAsItIs(t *testing.T) {
	for _, ended := range []bool{false, true} {
		exporter := tracetest.NewInMemoryExporter()
		provider := trace.NewTracerProvider(trace.WithSyncer(exporter))
		tel := otelflow.New(otelflow.WithTracerProvider(provider))
		ctx, rpc := provider.Tracer("test").Start(t.Context(), "rpc")
		ctx, cancel := context.WithCancel(ctx)
		if ended { // then it is asked whether it is the end of the context
			cancel()
		}
		err := otelflow.Handler(tel, func(context.Context, flow.Message[string]) error { return faulty{} })(ctx, flow.Message[string]{Seq: 1})
		if err != error(faulty{}) {
			t.Errorf("the handler's error became %T", err)
		}
		spans := exporter.GetSpans()
		if len(spans) != 1 {
			t.Fatalf("%d spans have ended, want one", len(spans))
		}
		if got, want := spans[0].Status.Description, "no text: the error's Error method panicked"; got != want {
			t.Errorf("the status is %q, want %q", got, want)
		}
		if got := attributeOf(spans[0], "error.type"); got != "FailureHandlerError" {
			t.Errorf("error.type is %q", got)
		}
		rpc.End()
		cancel()
	}
}
