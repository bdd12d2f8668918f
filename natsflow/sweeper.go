package natsflow

import (
	"context"
	"maps"
	"sync"
	"time"
)

const (
	sweepEvery = 10 * time.Second
	sweepLimit = 5 * time.Second // how long the servers may take to purge one partition
)

// sweeper purges what is settled, where Topic.MaxAge does not do it, and not before it was so for Topic.Dedupe: a server
// that is started knows the ids of those messages only that it still has. It is safe for concurrent use, but for sweep.
type sweeper struct {
	purge func(ctx context.Context, partition int, frontier uint64) error
	keep  time.Duration // how long what is settled is kept

	mu    sync.Mutex
	noted map[int]uint64 // up to where each partition was said to be settled
	fresh map[int]uint64 // what of that was said since the last sweep

	// Of the goroutine that sweeps:
	aging []settledThen  // from old to new
	due   map[int]uint64 // what is to be purged
}

// settledThen is up to where partitions were settled at a time.
type settledThen struct {
	at        time.Time
	frontiers map[int]uint64
}

func newSweeper(keep time.Duration, purge func(ctx context.Context, partition int, frontier uint64) error) *sweeper {
	return &sweeper{purge: purge, keep: keep, noted: map[int]uint64{}, fresh: map[int]uint64{}, due: map[int]uint64{}}
}

// committed notes what a partition's record says, also when that is what it said before: each renewal of a lease is a commit.
func (s *sweeper) committed(partition int, frontier uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if frontier > s.noted[partition] {
		s.noted[partition], s.fresh[partition] = frontier, frontier
	}
}

// run sweeps until ctx ends. Topics that keep messages for long are swept seldom, so that there is little to remember.
func (s *sweeper) run(ctx context.Context) {
	tick := time.NewTicker(max(sweepEvery, s.keep/16))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.sweep(ctx, time.Now())
		case <-ctx.Done():
			return
		}
	}
}

// sweep purges what was settled long enough ago. What fails is left to the next sweep.
func (s *sweeper) sweep(ctx context.Context, now time.Time) {
	s.mu.Lock()
	if len(s.fresh) > 0 {
		s.aging = append(s.aging, settledThen{now, s.fresh})
		s.fresh = map[int]uint64{}
	}
	s.mu.Unlock()
	for len(s.aging) > 0 && now.Sub(s.aging[0].at) >= s.keep {
		maps.Copy(s.due, s.aging[0].frontiers)
		s.aging = s.aging[1:]
	}
	for partition, frontier := range s.due {
		if s.try(ctx, partition, frontier) == nil {
			delete(s.due, partition)
		}
	}
}

func (s *sweeper) try(ctx context.Context, partition int, frontier uint64) error {
	ctx, cancel := context.WithTimeout(ctx, sweepLimit)
	defer cancel()
	return s.purge(ctx, partition, frontier)
}
