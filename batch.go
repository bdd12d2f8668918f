package flow

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"
)

// BatchHandler handles several messages in one call, usually in one transaction. They are of any streams and keys; those
// of one key stand in order, without a gap, and are in no other call meanwhile. len(errs) == len(batch), and all errs are
// nil.
//
// If it returns nil, errs[i] is the outcome of batch[i]: leave it nil for success. A message that fails is retried by the
// rules of [RetryOptions], in a later batch; one with [ErrNotAttempted] was not touched. Later messages of its key that are
// in the same call are believed, so a handler that goes on after a failure puts ErrNotAttempted for those of the key (with
// [OrderingFIFO], of the stream).
//
// If it returns an error, panics or exits its goroutine, no message of the batch has succeeded: it must have undone what it
// did, as a transaction that is rolled back. What becomes of the batch then says [BatchOptions].
//
// ctx carries no stream's values and no deadline: those are [Message.Context]'s. It ends with Retry.AttemptTimeout, with
// Close and the end of the grace period, and when all streams of the batch have ended early, with the last one's reason as
// its cause. One stream's end neither cancels nor fails another's messages, but it waits for the call.
//
// Neither slice may be kept, since both are used again; Values may.
type BatchHandler[T any] func(ctx context.Context, batch []Message[T], errs []error) error

// ErrNotAttempted as errs[i] of a [BatchHandler] says that batch[i] was not touched: it comes again, first in line, and it
// was no attempt. A call of which nothing was attempted has failed as a whole.
var ErrNotAttempted = errors.New("flow: not attempted")

// errNothingAttempted is the error of a call of which nothing was attempted: to call again and again would make no progress.
var errNothingAttempted = fmt.Errorf("nothing attempted: %w", ErrNotAttempted)

// BatchOptions say how the batches of a [BatchHandler] are made, and what becomes of one that has failed as a whole.
//
// When a slot is free, a batch is made of messages that have their turn and of those directly behind them in their lanes.
// Streams give one message each in turns, and within a stream keys do, until it is full. Capacity counts calls.
//
// A call that has failed as a whole is called again, together, by the rules of [RetryOptions]. When it has failed for the
// last time it is halved, and each half that fails is halved again, until the message that fails stands alone: only that
// one fails. These calls follow at once and count as attempts beyond MaxAttempts. If too many of them fail in a row, 4
// times the binary logarithm of the batch's size, it is an outage, and all that is left fails.
type BatchOptions struct {
	// MaxMessages bounds a batch. 0 means 256.
	MaxMessages int
	// MaxBytes bounds the bytes of a batch, measured as Options.MaxPendingBytes is; a message that is larger goes alone. 0
	// means no bound.
	MaxBytes int64
	// Linger is how long a batch that is not full waits for more, counted from when its first message could have begun. It
	// waits no longer than its streams are read. 0 means not at all: what came while the last call ran is the next batch.
	Linger time.Duration
	// NoIsolation has a batch that has failed as a whole for the last time fail altogether: no halves are called. One
	// client's message may then end the streams of others.
	NoIsolation bool
}

const defaultMaxMessages = 256

func (o BatchOptions) validate() error {
	switch {
	case o.MaxMessages < 0:
		return invalid("Batch.MaxMessages", o.MaxMessages, "must not be negative")
	case o.MaxBytes < 0:
		return invalid("Batch.MaxBytes", o.MaxBytes, "must not be negative")
	case o.Linger < 0:
		return invalid("Batch.Linger", o.Linger, "must not be negative")
	}
	return nil
}

// validateBatch refuses what can't be had with batches.
func (o *Options) validateBatch() error {
	switch p := o.Backpressure; {
	case p.Policy != BackpressureQueue:
		return invalid("Backpressure.Policy", p.Policy, "must be BackpressureQueue with NewBatch")
	case p.QueueCapacity > 0:
		return invalid("Backpressure.QueueCapacity", p.QueueCapacity, "must be 0 with NewBatch: what waits is the next batch")
	case p.Capacity == 0:
		return invalid("Backpressure.Capacity", p.Capacity,
			"must be set with NewBatch: it counts calls, and while it is unlimited nothing waits and no batch forms")
	case o.Ordering.Resolver != nil:
		return invalid("Ordering.Resolver", "a resolver", "gives turns one by one: it can't be used with NewBatch")
	}
	return o.Batch.validate()
}

// NewBatch is [New] for a [BatchHandler]. Everything of Options holds as for New, with what [BatchOptions] adds. Capacity
// counts calls and must be set. The policy must be BackpressureQueue without a QueueCapacity, and a caller's own
// OrderingResolver can't be used.
func NewBatch[T any](handler BatchHandler[T], key OrderingKeyFunc[T], opts Options) (*Flow[T], error) {
	if handler == nil {
		return nil, errNilHandler
	}
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if err := opts.validateBatch(); err != nil {
		return nil, err
	}
	sizeOf := sizeFunc[T]()
	if opts.Batch.MaxBytes > 0 && sizeOf == nil {
		return nil, invalid("Batch.MaxBytes", opts.Batch.MaxBytes, sizelessRule[T]())
	}
	b := &batching[T]{handler: handler, BatchOptions: opts.Batch}
	if b.MaxMessages == 0 {
		b.MaxMessages = defaultMaxMessages
	}
	opts.Batch = BatchOptions{}
	f, err := newFlow(newEngine[T](nil, opts.Retry), key, opts)
	if err != nil {
		return nil, err
	}
	r := f.receiver
	r.batching = b
	r.shards = r.shards[:1] // one batch forms at a time
	if b.MaxBytes > 0 {
		r.sizeOf = sizeOf
	}
	return f, nil
}

// sizelessRule says why a bound of bytes is refused.
func sizelessRule[T any]() string {
	return fmt.Sprintf("needs messages that have a size: a proto.Message, a method Size() int, a string or a []byte, not %v",
		reflect.TypeFor[T]())
}

// batching is what a Receiver has to make batches: the handler, and the options with their defaults.
type batching[T any] struct {
	handler BatchHandler[T]
	BatchOptions
}
