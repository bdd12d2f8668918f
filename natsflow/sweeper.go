package natsflow

import (
	"context"
	"sync"
	"time"
)

const (
	sweepEvery = 10 * time.Second
	sweepLimit = 5 * time.Second // how long the servers may take for one partition
)

// sweeper has what is settled purged, where Topic.MaxAge does not do it. It is safe for concurrent use.
type sweeper struct {
	// purge removes what may be removed of a partition. all reports that nothing is left to be removed until more is settled.
	purge func(ctx context.Context, partition int) (all bool, err error)

	mu      sync.Mutex
	settled map[int]uint64 // up to where each partition's record has said that it is
	due     map[int]bool   // those of which not all may be purged
}

func newSweeper(purge func(ctx context.Context, partition int) (all bool, err error)) *sweeper {
	return &sweeper{purge: purge, settled: map[int]uint64{}, due: map[int]bool{}}
}

// committed notes what a partition's record says, also when that is what it said before: each renewal of a lease is a commit.
func (s *sweeper) committed(partition int, frontier uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if frontier != s.settled[partition] {
		s.settled[partition], s.due[partition] = frontier, true
	}
}

// left notes that the partition is another's by now, who will sweep it.
func (s *sweeper) left(partition int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.settled, partition)
	delete(s.due, partition)
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

// sweep purges the partitions that are due. What fails, or may not be purged yet, is left to the next sweep.
func (s *sweeper) sweep(ctx context.Context) {
	s.mu.Lock()
	due := s.due
	s.due = map[int]bool{}
	s.mu.Unlock()
	for partition := range due {
		if s.try(ctx, partition) {
			continue
		}
		s.mu.Lock()
		if _, held := s.settled[partition]; held {
			s.due[partition] = true
		}
		s.mu.Unlock()
	}
}

func (s *sweeper) try(ctx context.Context, partition int) (all bool) {
	ctx, cancel := context.WithTimeout(ctx, sweepLimit)
	defer cancel()
	all, err := s.purge(ctx, partition)
	return all && err == nil
}
