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
	batch *run[T] // instead of m
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

// addBatch has r, all of whose messages are tried again together, wait until due.
func (b *backoff[T]) addBatch(r *run[T], due time.Duration) {
	heap.Push(&b.waits, &wait[T]{due: due, order: r.list[0].seq, batch: r})
}

// removeBatch takes r back.
func (b *backoff[T]) removeBatch(r *run[T]) {
	for _, w := range b.waits {
		if w.batch == r {
			heap.Remove(&b.waits, w.index)
			return
		}
	}
}

// next returns when the first is due; ok is false if none waits.
func (b *backoff[T]) next() (due time.Duration, ok bool) {
	if len(b.waits) == 0 {
		return 0, false
	}
	return b.waits[0].due, true
}

// pop takes out what is due at now, a message or a batch. ok is false if nothing is.
func (b *backoff[T]) pop(now time.Duration) (m *message[T], batch *run[T], ok bool) {
	if due, some := b.next(); !some || due > now {
		return nil, nil, false
	}
	w := heap.Pop(&b.waits).(*wait[T])
	if w.m != nil {
		w.m.wait = nil
	}
	return w.m, w.batch, true
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
