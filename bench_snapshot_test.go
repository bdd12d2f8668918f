package flow_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"example.com/flow"
)

// BenchmarkSnapshot is one Snapshot of a stream that has so much pending, of 1,024 keys.
func BenchmarkSnapshot(b *testing.B) {
	for _, pending := range []int{1_000, 100_000} {
		b.Run(fmt.Sprintf("pending=%d", pending), func(b *testing.B) {
			opts := busyOptions(flow.OrderingKeyedFIFO)
			opts.MaxPending, opts.Observer = -1, seen
			f := newFlow(b, func(ctx context.Context, _ flow.Message[*record]) error {
				<-ctx.Done()
				return ctx.Err()
			}, opts)
			ctx, cancel := context.WithCancel(context.Background())
			next, received, over := repeat(records(1024), pending), make(chan struct{}), make(chan struct{})
			go func() {
				defer close(over)
				_, _ = f.Run(ctx, func() (*record, error) {
					r, err := next()
					if err != nil {
						close(received)
						<-ctx.Done()
					}
					return r, err
				})
			}()
			<-received
			for f.Stats().InFlight < opts.Backpressure.Capacity {
				time.Sleep(time.Millisecond)
			}
			b.ReportAllocs()
			for b.Loop() {
				f.Snapshot(20)
			}
			cancel()
			<-over
		})
	}
}

// BenchmarkRunWatched is BenchmarkRun's keyed stream with an Observer, beside nothing and beside a Snapshot each 100 ms.
func BenchmarkRunWatched(b *testing.B) {
	for _, every := range []time.Duration{0, 100 * time.Millisecond} {
		b.Run(fmt.Sprintf("snapshot=%v", every), func(b *testing.B) {
			opts := busyOptions(flow.OrderingKeyedFIFO)
			opts.Observer = seen
			f, list := newFlow(b, noop, opts), records(1024)
			over, gone := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(gone)
				for every > 0 {
					select {
					case <-over:
						return
					case <-time.After(every):
						f.Snapshot(20)
					}
				}
			}()
			b.ReportAllocs()
			b.ResetTimer()
			runAll(b, f, repeat(list, b.N))
			b.StopTimer()
			close(over)
			<-gone
		})
	}
}
