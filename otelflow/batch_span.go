package otelflow

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"example.com/flow"
)

// BatchHandler wraps h so that each call has a span, "flow.process", with a link to the RPC span of each stream that has a
// message in it. The span is the root of a trace of its own, since it has many parents or none. It carries flow.batch.size,
// the outcome and, if the call has failed, error.type and the error's text, as [Handler]'s does. Of a call that has failed
// for some of its messages only, flow.batch.failed says for how many: those with an error other than flow.ErrNotAttempted.
//
// Where no RPC span of a call records, no span is made and nothing is allocated. What h returns is returned as it is; a panic
// and a runtime.Goexit end the span and go on their way.
func BatchHandler[T any](t *Telemetry, h flow.BatchHandler[T]) flow.BatchHandler[T] {
	return func(ctx context.Context, batch []flow.Message[T], errs []error) error {
		links := linksOf(batch)
		if len(links) == 0 {
			return h(ctx, batch, errs)
		}
		ctx, span := t.tracer.Start(ctx, "flow.process", trace.WithNewRoot(), trace.WithLinks(links...),
			trace.WithAttributes(attribute.Int("flow.batch.size", len(batch))))
		returned := false
		defer func() {
			if !returned {
				setFailed(span, flow.FailureInternal, "panic or runtime.Goexit")
			}
			span.End()
		}()
		err := h(ctx, batch, errs)
		returned = true
		if err != nil {
			setFailed(span, handlerKind(ctx, err), errorText(err))
			return err
		}
		if n, first := failedOf(errs); n > 0 {
			setFailed(span, handlerKind(ctx, first), errorText(first))
			span.SetAttributes(attribute.Int("flow.batch.failed", n))
			return nil
		}
		span.SetAttributes(attribute.String("flow.outcome", outcomeNames[succeeded]))
		return nil
	}
}

// linksOf returns a link to each span that records and of which batch has a message.
func linksOf[T any](batch []flow.Message[T]) (links []trace.Link) {
	var seen map[trace.SpanID]bool
	for _, m := range batch {
		span := trace.SpanFromContext(m.Context())
		if !span.IsRecording() {
			continue
		}
		sc := span.SpanContext()
		if seen[sc.SpanID()] {
			continue
		}
		if seen == nil {
			seen = make(map[trace.SpanID]bool)
		}
		seen[sc.SpanID()] = true
		links = append(links, trace.Link{SpanContext: sc})
	}
	return links
}

// failedOf returns how many of errs say that a message has failed, and the first of them.
func failedOf(errs []error) (n int, first error) {
	for _, err := range errs {
		if err == nil || guarded(func() bool { return errors.Is(err, flow.ErrNotAttempted) }, false) {
			continue
		}
		if n++; first == nil {
			first = err
		}
	}
	return n, first
}
