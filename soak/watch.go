package main

import (
	"fmt"
	"runtime"
	"runtime/metrics"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// watch is what is seen over the whole soak.
type watch struct {
	start        time.Time
	calmFrom     time.Duration
	calmUntil    time.Duration
	stalledFrom  time.Duration
	stalledUntil time.Duration

	mu            sync.Mutex
	calm, stalled *hdrhistogram.Histogram // delays of well-behaved streams' messages, in microseconds
	errors        []string                // the first of them
	wrongs        int
	longestSend   time.Duration
	ends          ends
	heap          []uint64 // live after the last collection, every second
	messages      int      // pending over the Flow, at most
}

// ends counts how streams ended.
type ends struct{ well, cancelled, shut, stalls int }

func newWatch(cfg config) *watch {
	histogram := func() *hdrhistogram.Histogram { return hdrhistogram.New(1, time.Hour.Microseconds(), 3) }
	calm := cfg.calm()
	return &watch{
		start: time.Now(), calm: histogram(), stalled: histogram(),
		calmFrom: calm / 4, calmUntil: calm,
		// By then those that stall, go silent and go away have taken over from those that didn't.
		stalledFrom: min(calm+cfg.life, calm+(cfg.length-calm)/3), stalledUntil: cfg.length,
	}
}

// delay notes the way of a message from when it was to be sent to its handler.
func (w *watch) delay(due, now time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	us := max(1, (now - due).Microseconds())
	switch {
	case due >= w.calmFrom && due < w.calmUntil:
		_ = w.calm.RecordValue(us) // an hour is not exceeded
	case due >= w.stalledFrom && due < w.stalledUntil:
		_ = w.stalled.RecordValue(us)
	}
}

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
