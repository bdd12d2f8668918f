package otelnatsflow

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
)

// errorType is the attribute error.type of a request that failed: one of few words.
func errorType(err error) attribute.KeyValue {
	word := other
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		word = "timeout"
	case errors.Is(err, context.Canceled):
		word = "canceled"
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrNoStreamResponse):
		word = "no_responders"
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrReconnectBufExceeded):
		word = "disconnected"
	case errors.Is(err, jetstream.ErrKeyRevisionMismatch): // another has written, or an earlier try whose answer was lost
		word = "conflict"
	}
	return attribute.String("error.type", word)
}
