package contender

import (
	"hash/maphash"
	"sync"

	"example.com/flow/bench/internal/load"
)

// startHash is what most people write by hand: as many goroutines as there are workers, each with a buffered channel, and
// a key's hash says which. Keys that share a goroutine wait for each other.
func startHash(h Handler, workers, _ int) Executor {
	seed := maphash.MakeSeed()
	lines := make([]chan *load.Message, workers)
	var wg sync.WaitGroup
	for i := range lines {
		line := make(chan *load.Message, 64)
		lines[i] = line
		wg.Go(func() {
			for m := range line {
				h(m)
			}
		})
	}
	return pushing(func(m *load.Message) {
		lines[maphash.String(seed, m.Key)%uint64(workers)] <- m
	}, func() {
		for _, line := range lines {
			close(line)
		}
		wg.Wait()
	})
}

// startOne is one worker behind one buffered channel.
func startOne(h Handler, _, pending int) Executor {
	line := make(chan *load.Message, pending)
	var wg sync.WaitGroup
	wg.Go(func() {
		for m := range line {
			h(m)
		}
	})
	return pushing(func(m *load.Message) { line <- m }, func() { close(line); wg.Wait() })
}

func startRing(h Handler, workers, pending int) Executor {
	p := newRingLanes(workers, 16, pending, h)
	return pushing(p.submit, p.close)
}
