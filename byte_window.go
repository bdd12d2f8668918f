package flow

import (
	"sync"
	"sync/atomic"
)

// byteWindow counts the bytes pending over a Flow.
type byteWindow struct {
	limit int64
	bytes atomic.Int64
	waits atomic.Int64 // len(waiters), to be read without the lock

	mu      sync.Mutex
	waiters map[chan struct{}]struct{} // the space channels of receivers that wait
}

func newByteWindow(limit int64) *byteWindow {
	return &byteWindow{limit: limit, waiters: make(map[chan struct{}]struct{})}
}

func (w *byteWindow) full() bool { return w.bytes.Load() >= w.limit }

func (w *byteWindow) add(n int64) { w.bytes.Add(n) }

// sub takes n bytes off and wakes all who wait if there is room now: each may read one message.
func (w *byteWindow) sub(n int64) {
	if w.bytes.Add(-n) >= w.limit || w.waits.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for space := range w.waiters {
		select {
		case space <- struct{}{}:
		default: // it has been woken already
		}
	}
}

func (w *byteWindow) join(space chan struct{}) bool {
	w.mu.Lock()
	w.waiters[space] = struct{}{}
	w.waits.Store(int64(len(w.waiters)))
	w.mu.Unlock()
	return w.full()
}

func (w *byteWindow) quit(space chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiters, space)
	w.waits.Store(int64(len(w.waiters)))
}
