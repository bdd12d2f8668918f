package main

import (
	"context"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"example.com/flow"
)

// metrics sees what the server does, over a restart too.
type metrics struct {
	slow string // the key that has a group of its own; "" for none

	mu                         sync.Mutex // of all below: histograms guard nothing
	start                      time.Time  // of the first stream
	others, own                group
	retried, refused, pressure uint64
	streams                    uint64
	batches                    *hdrhistogram.Histogram // records in a call
}

// group is a set of keys whose records are measured together.
type group struct {
	stored          uint64
	last            time.Duration           // from the first stream's start to its last record
	waited, handled *hdrhistogram.Histogram // in microseconds
}

func newGroup() group { return group{waited: newHistogram(), handled: newHistogram()} }

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, time.Hour.Microseconds(), 2) }

func newMetrics(slow string) *metrics {
	return &metrics{slow: slow, others: newGroup(), own: newGroup(), batches: newHistogram()}
}

// see is the Flow's Observer.
func (m *metrics) see(_ context.Context, e flow.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch e.Kind {
	case flow.EventSuccess, flow.EventRetry, flow.EventFailure:
		if e.Batch > 0 && e.Index == 0 { // once for each call
			_ = m.batches.RecordValue(int64(e.Batch))
		}
	}
	switch e.Kind {
	case flow.EventSuccess:
		g := &m.others
		if m.slow != "" && e.Key == m.slow {
			g = &m.own
		}
		g.stored++
		g.last = time.Since(m.start)
		_ = g.waited.RecordValue(e.Waited.Microseconds()) // beyond an hour it is not worth a word
		_ = g.handled.RecordValue(e.Took.Microseconds())
	case flow.EventRetry:
		m.retried++
	case flow.EventReject:
		m.refused++
	case flow.EventPressure:
		m.pressure++
	case flow.EventStreamStart:
		if m.streams++; m.streams == 1 {
			m.start = time.Now()
		}
	}
}

// now is how many records are stored so far, and the medians of the handler's time and of the wait for it.
func (m *metrics) now() (stored uint64, handler, wait time.Duration) {
	all := newGroup()
	m.mu.Lock()
	for _, g := range []*group{&m.others, &m.own} {
		stored += g.stored
		all.handled.Merge(g.handled)
		all.waited.Merge(g.waited)
	}
	m.mu.Unlock()
	return stored, quantile(all.handled, 50), quantile(all.waited, 50)
}

func quantile(h *hdrhistogram.Histogram, q float64) time.Duration {
	return time.Duration(h.ValueAtQuantile(q)) * time.Microsecond
}
