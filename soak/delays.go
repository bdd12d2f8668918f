package main

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// delays are those of the messages of one group's well-behaved streams, from when each was to be sent to its handler. A
// sender that is held up sends late what was due before, so what it waited for counts. Both groups' are of the same seconds.
type delays struct {
	from, until time.Duration

	mu sync.Mutex
	us *hdrhistogram.Histogram // microseconds
}

func newDelays(cfg config) *delays {
	return &delays{from: cfg.settled(), until: cfg.length, us: hdrhistogram.New(1, time.Hour.Microseconds(), 3)}
}

func (d *delays) note(due, now time.Duration) {
	if due < d.from || due >= d.until {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.us.RecordValue(max(1, (now - due).Microseconds())) // an hour is not exceeded
}

func (d *delays) count() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.us.TotalCount()
}

func (d *delays) quantile(q float64) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Duration(d.us.ValueAtQuantile(q)) * time.Microsecond
}
