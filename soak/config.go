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
	stall          time.Duration
	grace          time.Duration
	keepUp         time.Duration
	hurt           time.Duration
}

const (
	keys       = 8
	maxPending = 32       // filled by a key that stands still before its stream's next message that does so comes
	window     = 64 << 10 // of HTTP/2, a stream: what gRPC buffers of a stream that is not read
)

// capacity is enough for all stalled handlers, a tenth of the streams, and the others.
func (c config) capacity() int { return max(16, c.streams/4) }

// maxPendingBytes is less than stalled streams would take if only maxPending bound them.
func (c config) maxPendingBytes() int64 { return int64(c.streams) * 16 << 10 }

func (c config) calm() time.Duration { return c.length / 4 }

func (c config) options(o flow.Observer) flow.Options {
	return flow.Options{
		Ordering:        flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		Backpressure:    flow.BackpressureOptions{Capacity: c.capacity()},
		Shutdown:        flow.ShutdownOptions{GracePeriod: c.grace, DrainOnClose: true},
		MaxPending:      maxPending,
		MaxPendingBytes: c.maxPendingBytes(),
		Observer:        o,
	}
}
