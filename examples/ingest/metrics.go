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
	slow  string // the key that has a group of its own; "" for none
	start time.Time

	mu                         sync.Mutex // of all below: histograms guard nothing
	others, own                group
	retried, refused, pressure uint64
	streams                    uint64
}

// group is a set of keys whose records are measured together.
type group struct {
	stored          uint64
	last            time.Duration           // from the start to its last record
	waited, handled *hdrhistogram.Histogram // in microseconds
}

func newGroup() group {
	histogram := func() *hdrhistogram.Histogram { return hdrhistogram.New(1, time.Hour.Microseconds(), 2) }
	return group{waited: histogram(), handled: histogram()}
}

func newMetrics(slow string) *metrics {
	return &metrics{slow: slow, start: time.Now(), others: newGroup(), own: newGroup()}
}

// see is the Flow's Observer.
func (m *metrics) see(_ context.Context, e flow.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
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
		m.streams++
	}
}

// now is how many records are stored so far, and the quantiles of the handler's time.
func (m *metrics) now() (stored uint64, p50, p99 time.Duration) {
	all := hdrhistogram.New(1, time.Hour.Microseconds(), 2)
	m.mu.Lock()
	stored = m.others.stored + m.own.stored
	all.Merge(m.others.handled)
	all.Merge(m.own.handled)
	m.mu.Unlock()
	return stored, quantile(all, 50), quantile(all, 99)
}

func quantile(h *hdrhistogram.Histogram, q float64) time.Duration {
	return time.Duration(h.ValueAtQuantile(q)) * time.Microsecond
}
