package main

import (
	"time"

	"example.com/flow"
)

// config is what the flags say. It is valid once parse has returned it.
type config struct {
	devices, records int
	in, key, bad     string
	streams          int

	mode     flow.OrderingMode
	batch    int // records in a call of the handler at most; 1: one by one
	capacity int
	policy   flow.BackpressurePolicy
	db       string
	grace    time.Duration

	slow    string
	slowBy  time.Duration
	fail    float64
	restart bool
	kill    bool

	debug, metrics string

	serve, connect string
	tls            string

	given map[string]string // the flags as they were given
}

// flowOptions are the server's: what a record may cost, when it is tried again, and how a shutdown ends it.
func (c *config) flowOptions(see flow.Observer) flow.Options {
	o := flow.Options{
		Ordering:     flow.OrderingOptions{Mode: c.mode},
		Backpressure: flow.BackpressureOptions{Policy: c.policy, Capacity: c.capacity},
		Retry: flow.RetryOptions{
			MaxAttempts: 20,
			Backoff:     time.Millisecond,
			Multiplier:  2,
			MaxBackoff:  20 * time.Millisecond,
			Jitter:      0.5,
		},
		Shutdown:        flow.ShutdownOptions{DrainOnClose: true, GracePeriod: c.grace},
		MaxPending:      1024,
		MaxPendingBytes: 64 << 20,
		Observer:        see,
	}
	if c.batch > 1 {
		o.Batch.MaxMessages = c.batch
	}
	return o
}
