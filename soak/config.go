package main

import (
	"time"

	"example.com/flow"
)

// config says how much load there is, and how long.
type config struct {
	streams, conns int
	length         time.Duration
	life           time.Duration
	slow           time.Duration
	stall          time.Duration
	grace          time.Duration
	worsen         func(*flow.Options) // of the Flow with all kinds of streams, for tests; may be nil
}

const (
	keys       = 8
	maxPending = 32       // filled by a key that stands still before its stream's next message that does so comes
	window     = 64 << 10 // of HTTP/2, a stream: what gRPC buffers of a stream that is not read
)

// capacity is enough for all stalled handlers, a tenth of the streams, and the others.
func (c config) capacity() int { return max(16, c.streams/4) }

// maxPendingBytes is less than stalled streams would take if only maxPending bound them.
func (c config) maxPendingBytes() int64 { return int64(c.streams) * 8 << 10 }

// settled is when streams of all kinds are under way.
func (c config) settled() time.Duration { return min(c.life, c.length/3) }

// keepUp bounds the control group's p99: where the machine alone is later than this, what unhurt allows is no longer far
// below what waiting for a stall costs, and nothing is shown.
func (c config) keepUp() time.Duration { return c.stall / 5 }

func (c config) options() flow.Options {
	return flow.Options{
		Ordering:        flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		Backpressure:    flow.BackpressureOptions{Capacity: c.capacity()},
		Shutdown:        flow.ShutdownOptions{GracePeriod: c.grace, DrainOnClose: true},
		MaxPending:      maxPending,
		MaxPendingBytes: c.maxPendingBytes(),
	}
}
