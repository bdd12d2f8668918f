package otelflow

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"example.com/flow"
)

// Handler wraps h so that each time it is called has a span, "flow.process", as a child of the stream's RPC span, with the
// message's number and attempt, and its outcome. (It is a function because Go's methods have no type parameters.)
//
// Where there is no RPC span that records (it was not sampled, or nothing made one) there is none of a message, and
// nothing is allocated. A panic, or a runtime.Goexit, ends the span and goes on its way.
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
			span.SetAttributes(attribute.String("flow.message.key", m.Key))
		}
		if m.Pressured {
			span.SetAttributes(attribute.Bool("flow.message.pressured", true))
		}
		returned := false
		defer func() {
			if !returned {
				end(span, failed, flow.FailureInternal.String(), "panic or runtime.Goexit")
			}
		}()
		err := h(ctx, m)
		returned = true
		if err != nil {
			end(span, failed, flow.ClassifyFailure(err).String(), err.Error())
		} else {
			span.SetAttributes(attribute.String("flow.outcome", outcomeNames[succeeded]))
			span.End()
		}
		return err
	}
}

func end(span trace.Span, o outcome, kind, text string) {
	span.SetAttributes(attribute.String("flow.outcome", outcomeNames[o]), attribute.String("error.type", kind))
	span.SetStatus(codes.Error, text)
	span.End()
}
