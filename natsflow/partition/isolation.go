package partition

import (
	"context"
	"math"
	"time"

	"golang.org/x/sync/semaphore"
)

// Isolation lets suspects run alone in the process: see [Deaths]. It is safe for concurrent use.
type Isolation struct {
	sem      *semaphore.Weighted
	patience time.Duration
}

// NewIsolation returns an Isolation in which one that wants to be alone keeps others from beginning for patience at most, and
// then lets them begin for as long before it tries again: a handler that is stuck must not stop the whole process.
func NewIsolation(patience time.Duration) *Isolation {
	return &Isolation{semaphore.NewWeighted(math.MaxInt64), patience}
}

// Shared blocks until nobody is alone. The caller must call Leave.
func (i *Isolation) Shared(ctx context.Context) error { return i.sem.Acquire(ctx, 1) }

// Leave ends Shared.
func (i *Isolation) Leave() { i.sem.Release(1) }

// Alone blocks until nobody else is in, and keeps it so. The caller must call LeaveAlone.
func (i *Isolation) Alone(ctx context.Context) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, i.patience)
		err := i.sem.Acquire(attempt, math.MaxInt64)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		pause := time.NewTimer(i.patience)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		}
	}
}

// LeaveAlone ends Alone.
func (i *Isolation) LeaveAlone() { i.sem.Release(math.MaxInt64) }
