package natsflow

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/flow/natsflow/partition"
)

// fakeEngine is the servers in memory, in a bubble. It is safe for concurrent use.
type fakeEngine struct {
	bucket_ *fakeBucket
	closed_ atomic.Bool

	mu      sync.Mutex
	log     []partition.Message[string] // the stream: position i+1 is at i
	of      map[uint64]int              // the partition of each position
	purged  uint64                      // the stream begins behind it
	more    chan struct{}               // closed and replaced when something is stored
	letters []partition.DeadLetter
	purges  map[int]uint64
	dedupe  time.Duration
}

func newFakeEngine() *fakeEngine {
	return &fakeEngine{bucket_: newFakeBucket(), of: map[uint64]int{}, more: make(chan struct{}), purges: map[int]uint64{}}
}

// store stores a value, in the partition of its key among so many.
func (e *fakeEngine) store(partitions int, values ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, v := range values {
		position := uint64(len(e.log)) + 1
		e.of[position] = partitionOf(words.Key(v), partitions)
		e.log = append(e.log, partition.Message[string]{Position: position, Key: words.Key(v), Value: v, Raw: []byte(v), Stored: time.Now()})
	}
	close(e.more)
	e.more = make(chan struct{})
}

func (e *fakeEngine) verify(context.Context) error           { return nil }
func (e *fakeEngine) bucket(context.Context) (bucket, error) { return e.bucket_, nil }
func (e *fakeEngine) closed() bool                           { return e.closed_.Load() }

func (e *fakeEngine) source(p int, after uint64) source[string] { return &fakeSource{e, p, after} }

func (e *fakeEngine) dead(int, uint64) partition.DeadLetters { return e }

// Store implements partition.DeadLetters.
func (e *fakeEngine) Store(_ context.Context, letter partition.DeadLetter) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.ContainsFunc(e.letters, func(l partition.DeadLetter) bool { return l.Position == letter.Position }) {
		e.letters = append(e.letters, letter)
	}
	return nil
}

func (e *fakeEngine) bounds(_ context.Context, p int) (first, last uint64, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for position, of := range e.of {
		if of == p && position > e.purged {
			last = max(last, position)
		}
	}
	return e.purged + 1, last, nil
}

func (e *fakeEngine) purge(_ context.Context, p int, frontier uint64) (all bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for position := uint64(1); position <= frontier; position++ {
		switch {
		case e.of[position] != p:
		case time.Since(e.log[position-1].Stored) < e.dedupe:
			return false, nil
		default:
			e.purges[p] = max(e.purges[p], position)
		}
	}
	return true, nil
}

type fakeSource struct {
	e    *fakeEngine
	p    int
	last uint64
}

func (s *fakeSource) Next(ctx context.Context) (partition.Message[string], error) {
	for {
		s.e.mu.Lock()
		s.last = max(s.last, s.e.purged)
		for s.last < uint64(len(s.e.log)) {
			s.last++
			if s.e.of[s.last] == s.p {
				m := s.e.log[s.last-1]
				s.e.mu.Unlock()
				return m, ctx.Err()
			}
		}
		more := s.e.more
		s.e.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return partition.Message[string]{}, ctx.Err()
		}
	}
}

func (s *fakeSource) close() {}
