package flow

import (
	"sync"
	"sync/atomic"
)

// ring holds streams that take turns.
type ring[T any] struct {
	list []*stream[T]
	from int // of the first
}

func (q *ring[T]) len() int { return len(q.list) - q.from }

// first returns the one whose turn it is, or nil.
func (q *ring[T]) first() *stream[T] {
	if q.from == len(q.list) {
		return nil
	}
	return q.list[q.from]
}

func (q *ring[T]) push(s *stream[T]) {
	if q.from > 32 && 2*q.from > len(q.list) {
		n := copy(q.list, q.list[q.from:])
		clear(q.list[n:])
		q.list, q.from = q.list[:n], 0
	}
	q.list = append(q.list, s)
}

func (q *ring[T]) pop() {
	q.list[q.from] = nil
	if q.from++; q.from == len(q.list) {
		q.list, q.from = q.list[:0], 0
	}
}

// grants are the turns that others, who share lanes with a shard's streams, have handed to its messages.
type grants[T any] struct {
	some atomic.Bool // list is not empty
	mu   sync.Mutex
	list []*message[T]
}

func (g *grants[T]) add(m *message[T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.list = append(g.list, m)
	g.some.Store(true)
}

func (g *grants[T]) take() (all []*message[T]) {
	if !g.some.Load() {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	all, g.list = g.list, nil
	g.some.Store(false)
	return all
}
