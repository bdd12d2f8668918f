package load

import (
	"sync/atomic"
	"time"
)

var sink atomic.Uint64

// spinRounds over 128 bytes take about a microsecond: SpinTime says how long on this machine.
const spinRounds = 8

func spin(p []byte) {
	h := uint64(14695981039346656037)
	for range spinRounds {
		for _, b := range p {
			h = (h ^ uint64(b)) * 1099511628211
		}
	}
	if h == 42 {
		sink.Add(1)
	}
}

// SpinTime measures what Spin's handler takes of a core.
func SpinTime() time.Duration {
	const n = 100_000
	start := time.Now()
	for i := range n {
		spin(payloads[i&1023])
	}
	return time.Since(start) / n
}

// Spin is a handler that computes for about a microsecond.
func Spin(c *Checker) func(*Message) {
	return func(m *Message) {
		c.Begin(m)
		spin(m.Payload)
		c.End(m)
	}
}

// Sleep is a handler that waits, as for a database: for d, or for the message's own time if that is set.
func Sleep(c *Checker, d time.Duration) func(*Message) {
	return func(m *Message) {
		c.Begin(m)
		if m.Busy > 0 {
			time.Sleep(m.Busy)
		} else {
			time.Sleep(d)
		}
		c.End(m)
	}
}
