package main

import (
	"errors"
	"runtime"
	"time"
)

// soak runs both groups for as long as cfg says, shuts their servers down under the load, and reports.
func soak(cfg config) (*report, error) {
	rep := &report{cfg: cfg, goroutinesBefore: runtime.NumGoroutine(), heapBefore: settledHeap()}
	w := newWatch()
	o := cfg.options()
	if cfg.worsen != nil {
		cfg.worsen(&o)
	}
	mixed, err := newGroup(cfg, w, o, true)
	if err != nil {
		return nil, err
	}
	control, err := newGroup(cfg, w, cfg.options(), false)
	if err != nil {
		return nil, err
	}
	stop := make(chan struct{})
	sampled := make(chan struct{})
	go func() {
		defer close(sampled)
		w.sample(mixed.s, stop)
	}()
	mixed.c.run()
	control.c.run()
	time.Sleep(cfg.length)

	rep.end = mixed.stop()
	rep.end.err = errors.Join(rep.end.err, control.stop().err)
	close(stop)
	<-sampled
	rep.w, rep.s, rep.control = w, mixed.s, control.s
	rep.goroutinesAfter = goroutinesDownTo(rep.goroutinesBefore)
	rep.heapAfter = settledHeap()
	return rep, nil
}

// goroutinesDownTo is how many goroutines there are once they are as few as n, or ten seconds have passed: connections
// that were closed take a moment to go.
func goroutinesDownTo(n int) int {
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > n && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	return runtime.NumGoroutine()
}
