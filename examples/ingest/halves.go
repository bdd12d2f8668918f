package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"
)

// both runs the server and its client in one process.
func both(ctx context.Context, cfg *config, stdin io.Reader, t *terminal) error {
	n, err := newNode(cfg, "127.0.0.1:0")
	if err != nil {
		return err
	}
	t.note("server %s, %s", n.current().addr, n.database())
	t.note("%s", cfg.load())
	for _, where := range n.watch.notes {
		t.note("%s", where)
	}
	j := &job{cfg: cfg, t: t, addr: n.current().addr, progress: n.progress, report: func(r *report) { r.server(n.metrics) }}
	if cfg.restart {
		j.middle = func() error {
			t.note("half of the input is read: shutting the server down")
			if err := n.restart(); err != nil {
				return err
			}
			t.note("another server has taken over")
			return nil
		}
	}
	err = errors.Join(j.run(ctx, stdin), n.stop())
	if err == nil {
		t.note("try next: -restart  -fail 0.3  -mode none  -policy hard  -h")
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
	c, err := dial(j.addr, creds, j.t.note)
	if err != nil {
		return err
	}
	defer func() { _ = c.close() }()

	stop := ctx
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx)) // the end of stop must not cut off what was sent
	defer cancel(nil)
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
		show = func() (uint64, []string) { return uint64(c.begun.Load()), []string{"sent"} }
	}
	end := j.t.watch(in.total(), show)
	err = c.upload(ctx, stop, in, j.cfg.streams)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause // of what happened in the middle: it says more than the calls that it ended
	}
	cancel(nil)
	middle()
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

// inTheMiddle has what is to happen there happen. The returned function waits for it, if it has begun.
func (j *job) inTheMiddle(in *input, cancel context.CancelCauseFunc) (wait func()) {
	if j.middle == nil {
		return func() {}
	}
	in.goOn = make(chan struct{})
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-in.half:
			close(in.goOn) // records are sent while it happens
			if err := j.middle(); err != nil {
				cancel(err)
			}
		case <-over:
		}
	}()
	return func() {
		close(over)
		<-ended
	}
}
