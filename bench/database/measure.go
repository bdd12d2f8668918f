package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"example.com/flow"
	"example.com/flow/bench/internal/report"
)

// result is what one measurement gives.
type result struct {
	rate     float64 // rows a second
	p50, p99 float64 // from receipt to settled, in ms
	size     float64 // rows of a transaction, on average
	cpu      float64 // µs of this process for a row: its client, its server and the driver
}

// meter counts what is settled while it is on.
type meter struct {
	on          atomic.Bool
	rows, calls atomic.Int64 // that were inserted
	settled     atomic.Int64 // also while it is off
	wrong       atomic.Pointer[flow.Failure]

	mu     sync.Mutex
	delays []float64 // of what was settled, in ms
}

func (m *meter) observe(_ context.Context, e flow.Event) {
	switch e.Kind {
	case flow.EventSuccess:
		m.settled.Add(1)
		if m.on.Load() {
			m.mu.Lock()
			m.delays = append(m.delays, (e.Waited+e.Took).Seconds()*1e3)
			m.mu.Unlock()
		}
	case flow.EventFailure:
		if e.Failure.Kind == flow.FailureHandlerError {
			m.wrong.Store(e.Failure)
		}
	default:
	}
}

const warmUp = time.Second

// measure has clients send l into an empty table of d, for a second and then for the window that counts.
func measure(ctx context.Context, d *database, l *load, w *way, window time.Duration) (r result, err error) {
	s, closed, err := d.opened(ctx, w.connections(d))
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, closed()) }()
	m := new(meter)
	f, end, err := w.make(d, func(ctx context.Context, rows []row) error {
		err := s.insert(ctx, rows)
		if err == nil && m.on.Load() {
			m.calls.Add(1)
			m.rows.Add(int64(len(rows)))
		}
		return err
	}, flow.Options{Ordering: flow.OrderingOptions{Mode: l.mode}, MaxPending: l.pending, Observer: m.observe})
	if err != nil {
		return r, err
	}
	defer end()
	svc, err := serve(f)
	if err != nil {
		return r, err
	}
	sending, stop := context.WithCancel(ctx)
	failed := svc.send(sending, l)
	sleep(ctx, warmUp)
	runtime.GC()
	m.on.Store(true)
	began, used := time.Now(), processTime()
	sleep(ctx, window)
	m.on.Store(false)
	took, cpu := time.Since(began), processTime()-used
	stop()
	if err := errors.Join(<-failed, svc.stop(), ctx.Err()); err != nil {
		return r, err
	}
	if wrong := m.wrong.Load(); wrong != nil {
		return r, wrong
	}
	stored, disordered, err := s.check(ctx)
	switch settled := int(m.settled.Load()); {
	case err != nil:
		return r, err
	case disordered > 0:
		return r, fmt.Errorf("%d of %d rows are not in their keys' order", disordered, stored)
	case stored < settled:
		return r, fmt.Errorf("%d rows are stored, and %d were said to be", stored, settled)
	case len(m.delays) == 0 || m.calls.Load() == 0:
		return r, errors.New("nothing was stored: the window is too short")
	}
	n := float64(len(m.delays))
	return result{
		rate: n / took.Seconds(), p50: report.Median(m.delays), p99: report.Quantile(m.delays, 0.99),
		size: float64(m.rows.Load()) / float64(m.calls.Load()), cpu: cpu.Seconds() * 1e6 / n,
	}, nil
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// processTime is what this process has used of the processors. The server of PostgreSQL is another process.
func processTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
