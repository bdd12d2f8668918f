package partition

import (
	"context"
	"time"

	"example.com/flow"
)

// DeadLetter is a message that was given up, and why.
type DeadLetter struct {
	Position uint64
	Key      string
	Raw      []byte
	Headers  map[string][]string
	Attempts int
	Err      error
}

// DeadLetters are where messages go that were given up. It must be safe for concurrent use.
type DeadLetters interface {
	// Store returns nil when the letter is stored durably. One that is stored again is the same letter: Position says so.
	Store(ctx context.Context, letter DeadLetter) error
}

const (
	deadLetterPause    = 50 * time.Millisecond
	deadLetterMaxPause = 5 * time.Second
)

// bury stores the letter of a message before that is settled. It tries until it has succeeded or the partition is lost:
// the key waits meanwhile, so nothing comes after a message of which it isn't known what became.
func (run *Run[T]) bury(ctx context.Context, d *delivery[T], f *flow.Failure) error {
	letter := DeadLetter{
		Position: d.Position, Key: d.Key, Raw: d.Raw, Headers: d.Headers, Attempts: f.Attempts, Err: f.Err,
	}
	pause := deadLetterPause
	for {
		if err := run.tenure.Check(); err != nil {
			return err
		}
		err := run.DeadLetters.Store(ctx, letter)
		run.observe(Event{Kind: EventDeadLetter, Position: d.Position, Key: d.Key, Err: err})
		if err == nil {
			return nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		pause = min(2*pause, deadLetterMaxPause)
	}
}
