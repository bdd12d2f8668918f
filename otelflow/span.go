package otelflow

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"example.com/flow"
)

// Handler wraps h so that each attempt has a span, "flow.process", as a child of the stream's RPC span. It carries the
// message's number, the attempt, the outcome and, of a failure, error.type and the error's text, cut to 512 bytes of valid
// UTF-8. (Handler is a function because methods have no type parameters of their own.)
//
// Where no RPC span records (the call was not sampled, or nothing instruments it), no span is made and nothing is
// allocated. What h returns is returned as it is; a panic and a runtime.Goexit end the span and go on their way.
func Handler[T any](t *Telemetry, h flow.Handler[T]) flow.Handler[T] {
	return func(ctx context.Context, m flow.Message[T]) error {
		if !trace.SpanFromContext(ctx).IsRecording() {
			return h(ctx, m)
		}
		ctx, span := t.tracer.Start(ctx, "flow.process", trace.WithAttributes(
			attribute.Int64("flow.message.seq", int64(m.Seq)),
			attribute.Int("flow.message.attempt", m.Attempt),
		))
		if t.keys {
			span.SetAttributes(attribute.String("flow.message.key", exportable(m.Key, maxKey)))
		}
		if m.Pressured {
			span.SetAttributes(attribute.Bool("flow.message.pressured", true))
		}
		returned := false
		defer func() {
			if !returned {
				setFailed(span, flow.FailureInternal, "panic or runtime.Goexit")
			}
			span.End()
		}()
		err := h(ctx, m)
		returned = true
		if err != nil {
			setFailed(span, handlerKind(ctx, err), errorText(err))
		} else {
			span.SetAttributes(attribute.String("flow.outcome", outcomeNames[succeeded]))
		}
		return err
	}
}

func setFailed(span trace.Span, kind flow.FailureKind, text string) {
	span.SetAttributes(
		attribute.String("flow.outcome", outcomeNames[failed]),
		attribute.String("error.type", kind.String()),
	)
	span.SetStatus(codes.Error, text)
}
