package partition

import (
	"context"
	"fmt"
	"time"
)

// Message is a message of a partition as its log has it.
type Message[T any] struct {
	Position uint64
	Key      string
	Value    T
	Err      error               // why there is no Value: the bytes could not be decoded
	Raw      []byte              // as they were stored
	Headers  map[string][]string // as they were stored
	Session  string              // of the upload that it came by; "" for none
	Number   uint64              // its number in that
	Stored   time.Time
}

// Source reads one partition in its order.
type Source[T any] interface {
	// Next blocks until there is a message, and returns it; positions ascend. It ends with ctx, by its error. Any other
	// error means that the partition can't be read: it stops.
	Next(ctx context.Context) (Message[T], error)
}

// Tenure is the right to run the messages of a partition. It is safe for concurrent use.
type Tenure interface {
	// Check returns nil while the partition is held for certain, and else an error that says so. It is quick.
	Check() error
	// Suspect notes in the durable record that the message at position is about to run alone; 0 means that none does any
	// more. It returns nil when that is noted, and an error only when the partition is lost or ctx has ended.
	Suspect(ctx context.Context, position uint64) error
}

// DecodeError is the failure of a message whose bytes could not be decoded. Its Failure's Value is the bytes.
type DecodeError struct {
	Position uint64
	Err      error // what the codec returned
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("message %d can't be decoded: %v", e.Position, e.Err)
}

// Unwrap returns Err.
func (e *DecodeError) Unwrap() error { return e.Err }

// PoisonError is the failure of a message that is not run any more, since holders died of it.
type PoisonError struct {
	Position uint64
	Deaths   int
}

func (e *PoisonError) Error() string {
	return fmt.Sprintf("%d processes died while message %d ran alone in them", e.Deaths, e.Position)
}
