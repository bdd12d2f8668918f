package main

import (
	"fmt"
	"runtime"
	"runtime/metrics"
	"sync"
	"time"
)

// watch is what is seen over the whole soak.
type watch struct {
	start time.Time

	mu          sync.Mutex
	errors      []string // the first of them
	wrongs      int
	longestSend time.Duration
	ends        ends
	heap        []uint64 // live after the last collection, every second
	messages    int      // pending over the mixed group's Flow, at most
}

// ends counts how streams ended.
type ends struct{ well, cancelled, shut, stalls int }

func newWatch() *watch { return &watch{start: time.Now()} }

// wrong notes a broken promise.
func (w *watch) wrong(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wrongs++; len(w.errors) < 10 {
		w.errors = append(w.errors, fmt.Sprintf(format, args...))
	}
}

func (w *watch) sent(took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longestSend = max(w.longestSend, took)
}

func (w *watch) count(n func(*ends)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n(&w.ends)
}

// sample looks at the Flow and the heap until stop is closed.
func (w *watch) sample(s *service, stop <-chan struct{}) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := 1; ; i++ {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		st := s.flow.Stats()
		live := liveHeap()
		w.mu.Lock()
		w.messages = max(w.messages, st.InFlight+st.Waiting)
		if i%10 == 0 {
			w.heap = append(w.heap, live)
		}
		w.mu.Unlock()
	}
}

// liveHeap is what the last garbage collection found in use.
func liveHeap() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// settledHeap is the live heap after the collections that empty pools.
func settledHeap() uint64 {
	for range 3 {
		runtime.GC()
	}
	return liveHeap()
}
