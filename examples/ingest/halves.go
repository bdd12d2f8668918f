package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"time"
)

// both runs the server and its client in one process.
func both(ctx context.Context, cfg *config, stdin io.Reader, t *terminal) error {
	if cfg.kill {
		return killed(ctx, cfg, stdin, t)
	}
	n, err := newNode(cfg, "127.0.0.1:0")
	if err != nil {
		return err
	}
	t.note("server %s, %s", n.current().addr, n.database)
	t.note("%s", cfg.load())
	for _, where := range n.watch.notes {
		t.note("%s", where)
	}
	j := &job{cfg: cfg, t: t, addr: n.current().addr, progress: n.progress, report: func(r *report) { r.server(n.metrics) }}
	if cfg.restart {
		j.middle = func() error {
			t.note("shutting the server down")
			if err := n.restart(); err != nil {
				return err
			}
			t.note("another server has taken over")
			return nil
		}
	}
	err = errors.Join(j.run(ctx, stdin), n.stop())
	if err == nil {
		t.note("%s", tryNext)
	}
	return err
}

const tryNext = "try next: -kill  -restart  -fail 0.3  -batch 1  -h"

// killed is both with the server in a process of its own, which is killed in the middle.
func killed(ctx context.Context, cfg *config, stdin io.Reader, t *terminal) error {
	db, err := cfg.database()
	if err != nil {
		return err
	}
	defer db.remove()
	p, err := startServerProcess(cfg, "127.0.0.1:0", db.file)
	if err != nil {
		return err
	}
	t.note("server %s in process %d, %s", p.addr, p.cmd.Process.Pid, db)
	t.note("%s", cfg.load())
	for _, where := range p.notes {
		t.note("%s", where)
	}
	j := &job{cfg: cfg, t: t, addr: p.addr}
	j.middle = func() error {
		t.note("killing the server (kill -9)")
		p.kill()
		next, err := startServerProcess(cfg, p.addr, db.file)
		if err != nil {
			return fmt.Errorf("restart: %w", err)
		}
		p = next
		t.note("another one has taken over, in process %d", p.cmd.Process.Pid)
		return nil
	}
	if err = errors.Join(j.run(ctx, stdin), p.stop()); err == nil {
		t.note("%s", tryNext)
	}
	return err
}

// load says in a line what the client is to send, and what is made slow.
func (c *config) load() string {
	if c.in != "" {
		return fmt.Sprintf("input %s, key %s", c.in, c.key)
	}
	load := fmt.Sprintf("%d records of %d devices", c.records, c.devices)
	if c.slow != "" {
		load += fmt.Sprintf("; %s is slow: %v each", c.slow, c.slowBy)
	}
	return load
}

// connect runs the client alone.
func connect(ctx context.Context, cfg *config, stdin io.Reader, t *terminal) error {
	t.note("server %s; %s", cfg.connect, cfg.load())
	return (&job{cfg: cfg, t: t, addr: cfg.connect}).run(ctx, stdin)
}

// serve runs the server alone, until ctx ends.
func serve(ctx context.Context, cfg *config, t *terminal) error {
	n, err := newNode(cfg, cfg.serve)
	if err != nil {
		return err
	}
	t.print("serving on %s, database %s", n.current().addr, n.file)
	for _, where := range n.watch.notes {
		t.print("%s", where)
	}
	end := t.watch(-1, n.progress)
	select {
	case <-ctx.Done():
		t.note("shutting down: what was accepted is stored, for at most %v; a second signal kills", cfg.grace)
	case <-n.current().served: // stop says why
	}
	err = n.stop()
	end()
	r := newReport()
	r.server(n.metrics)
	t.print("%s", r)
	return err
}

// job is one upload, from its input to the check.
type job struct {
	cfg      *config
	t        *terminal
	addr     string
	progress progress      // nil: of the server nothing is known
	report   func(*report) // nil too
	middle   func() error  // nil, or what happens in the middle of the input
}

func (j *job) run(ctx context.Context, stdin io.Reader) error {
	in, closeInput, err := newInput(ctx, j.cfg, stdin, rand.Text(), j.t.note)
	if err != nil {
		return err
	}
	defer func() { _ = closeInput() }()
	creds, err := j.cfg.clientCredentials()
	if err != nil {
		return err
	}
	age := 5 * time.Second
	if j.progress == nil { // only answers say how far the server is
		age = time.Second
	}
	c, err := dial(j.addr, creds, j.cfg.streams, age, j.t.note)
	if err != nil {
		return err
	}
	defer func() { _ = c.close() }()

	stop := ctx
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // the end of stop must not cut off what was sent
	defer cancel()
	if err := c.await(ctx, firstWait); err != nil {
		return err
	}
	start := time.Now()
	defer context.AfterFunc(stop, func() {
		j.t.note("interrupted: finishing what was sent; a second Ctrl-C kills")
	})()
	middle := j.inTheMiddle(in, cancel)
	show := j.progress
	if show == nil {
		show = c.progress
	}
	end := j.t.watch(in.total(), show)
	err = c.upload(ctx, stop, in)
	if middleErr := middle(); middleErr != nil {
		err = middleErr // it says more than the upload that it ended
	}
	end()
	limit := serverWait
	if err != nil {
		err, limit = fmt.Errorf("upload: %w", err), firstWait
	}
	took := time.Since(start)

	differs, checkErr := c.check(context.WithoutCancel(ctx), limit, in.upload, in.replay)
	r := newReport()
	r.client(c, in, took)
	if j.report != nil {
		j.report(r)
	}
	j.t.print("%s", r)
	switch {
	case checkErr != nil:
		j.t.print("state equals a sequential replay: not known")
		return errors.Join(err, fmt.Errorf("check: %w", checkErr))
	case differs != "":
		j.t.print("state equals a sequential replay: no (%s)", differs)
		return errors.Join(err, errors.New("the check failed"))
	case in.records == 0:
		j.t.print("state equals a sequential replay: nothing to compare, since nothing was sent")
	case err != nil:
		j.t.print("state equals a sequential replay: as far as it got (%d records); the upload failed", in.records)
	default:
		j.t.print("state equals a sequential replay: yes")
	}
	return err
}

// inTheMiddle has what is to happen there happen. The returned function waits for it, if it has begun, and returns its
// error, which ends the upload.
func (j *job) inTheMiddle(in *input, cancel context.CancelFunc) (wait func() error) {
	if j.middle == nil {
		return func() error { return nil }
	}
	in.goOn = make(chan struct{})
	var err error
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-in.half:
			close(in.goOn) // records are sent while it happens
			// The Senders take on more than the server has done by then.
			time.Sleep(100*time.Millisecond + mathrand.N(400*time.Millisecond))
			if err = j.middle(); err != nil {
				cancel()
			}
		case <-over:
		}
	}()
	return func() error {
		close(over)
		<-ended
		return err
	}
}
