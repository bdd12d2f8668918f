package flow

import (
	"container/heap"
	"time"
)

// backoff holds the messages of a shard that wait for their next try.
type backoff[T any] struct{ waits waits[T] }

// wait is a message's wait for its next try.
type wait[T any] struct {
	due   time.Duration
	order uint64 // by which equal times keep their order
	index int    // in the heap
	m     *message[T]
}

// add has m wait until due.
func (b *backoff[T]) add(m *message[T], due time.Duration) {
	m.wait = &wait[T]{due: due, order: m.seq, m: m}
	heap.Push(&b.waits, m.wait)
}

// remove takes m back.
func (b *backoff[T]) remove(m *message[T]) {
	heap.Remove(&b.waits, m.wait.index)
	m.wait = nil
}

// next returns when the first is due; ok is false if none waits.
func (b *backoff[T]) next() (due time.Duration, ok bool) {
	if len(b.waits) == 0 {
		return 0, false
	}
	return b.waits[0].due, true
}

// pop takes out a message that is due at now. It returns nil if none is.
func (b *backoff[T]) pop(now time.Duration) *message[T] {
	if due, ok := b.next(); !ok || due > now {
		return nil
	}
	m := heap.Pop(&b.waits).(*wait[T]).m
	m.wait = nil
	return m
}

// waits implements heap.Interface: the one that is due first is in front.
type waits[T any] []*wait[T]

func (h waits[T]) Len() int { return len(h) }
func (h waits[T]) Less(i, j int) bool {
	if h[i].due != h[j].due {
		return h[i].due < h[j].due
	}
	return h[i].order < h[j].order
}
func (h waits[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *waits[T]) Push(x any) {
	w := x.(*wait[T])
	w.index = len(*h)
	*h = append(*h, w)
}
func (h *waits[T]) Pop() any {
	old := *h
	last := len(old) - 1
	w := old[last]
	old[last] = nil
	*h = old[:last]
	return w
}
