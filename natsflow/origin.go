package natsflow

import (
	"context"
	"time"

	"example.com/flow/natsflow/partition"
)

// Origin is where a handler's message comes from.
//
// Seq grows along each key, over all workers and tries: an effect that stores it with the key, and does nothing where what
// is stored is not lower, happens once and in order, whatever dies or wakes up. Epoch grows with each change of the
// partition's holder, for stores that can only fence.
type Origin struct {
	Partition int
	Seq       uint64 // of the topic's stream
	Epoch     uint64
	Session   string // of the upload that it came by, and
	Number    uint64 // its number in that; "" and 0 for a message that was stored without a session
	Stored    time.Time
	// Replayed says that a worker that died, or has lost the partition, may have run the message already, perhaps to its end.
	Replayed bool
}

// originContext is a context with an origin: one allocation a message, and a small one.
type originContext[T any] struct {
	context.Context
	holding  *holding[T]
	message  *partition.Message[T]
	replayed bool
}

type originKey struct{}

// Value implements context.Context.
func (c *originContext[T]) Value(key any) any {
	if key == (originKey{}) {
		return c
	}
	return c.Context.Value(key)
}

func (c *originContext[T]) origin() Origin {
	return Origin{
		Partition: c.holding.partition, Seq: c.message.Position, Epoch: c.holding.epoch,
		Session: c.message.Session, Number: c.message.Number, Stored: c.message.Stored, Replayed: c.replayed,
	}
}

// FromContext returns the origin of the message whose handler, or OnFailure, was given ctx. It returns false for a context
// that is of no worker's.
func FromContext(ctx context.Context) (Origin, bool) {
	c, ok := ctx.Value(originKey{}).(interface{ origin() Origin })
	if !ok {
		return Origin{}, false
	}
	return c.origin(), true
}
