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

// sweeper purges what is settled, where Topic.MaxAge does not do it. What it purges is in the record of a partition, so it
// is right whoever holds that by then. It is safe for concurrent use.
type sweeper struct {
	purge func(ctx context.Context, partition int, frontier uint64) error

	mu    sync.Mutex
	dirty map[int]uint64 // frontiers up to which not all is purged
	swept map[int]uint64 // up to where each partition was purged
}

func newSweeper(purge func(ctx context.Context, partition int, frontier uint64) error) *sweeper {
	return &sweeper{purge: purge, dirty: map[int]uint64{}, swept: map[int]uint64{}}
}

// committed notes what a partition's record says, also when that is what it said before: each renewal of a lease is a commit.
func (s *sweeper) committed(partition int, frontier uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if frontier > s.swept[partition] {
		s.dirty[partition] = frontier
	}
}

// run sweeps until ctx ends.
func (s *sweeper) run(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.sweep(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// sweep purges all partitions whose frontiers have moved. What fails is left to the next sweep that has something to do.
func (s *sweeper) sweep(ctx context.Context) {
	s.mu.Lock()
	dirty := maps.Clone(s.dirty)
	clear(s.dirty)
	s.mu.Unlock()
	for partition, frontier := range dirty {
		err := s.try(ctx, partition, frontier)
		s.mu.Lock()
		if err == nil {
			s.swept[partition] = frontier
		} else {
			s.dirty[partition] = max(s.dirty[partition], frontier)
		}
		s.mu.Unlock()
	}
}

func (s *sweeper) try(ctx context.Context, partition int, frontier uint64) error {
	ctx, cancel := context.WithTimeout(ctx, sweepLimit)
	defer cancel()
	return s.purge(ctx, partition, frontier)
}
