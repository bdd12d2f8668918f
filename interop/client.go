package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	pb "example.com/flow/examples/ingest/ingestpb"
)

// client is a gRPC implementation that somebody else wrote, as a program that makes one call.
type client struct {
	name    string
	version string
	// install gets what the client needs, and sets its version.
	install func(ctx context.Context, c *client) error
	// command is the program that makes the call of s. It reads records as NDJSON on its standard input, unless s says
	// otherwise.
	command func(r *rig, to route, s *script) (*exec.Cmd, error)
	// parse makes outcomes of what the program printed; nil means parseOutcomes.
	parse func(stdout, stderr []byte) ([]outcome, error)

	deaf      bool              // an answer that comes early shows only when it sends something
	exitTells bool              // its exit code is 0 only if the status is OK
	once      bool              // it makes one call and ends, so who resumes is its user
	cannot    map[string]string // cases, and why not
	partly    string            // what it does not show
}

// script is what a client does.
type script struct {
	records  []*pb.Record
	every    time.Duration // between records; 0: as fast as it can
	then     ending
	deadline time.Duration
	resume   bool
	session  string // "": none
	via      string // the server's address, if it is not the route's
}

// ending is what a client does after its last record.
type ending int

const (
	halfClose ending = iota // end the stream
	trickle                 // go on, with a record each millisecond, until the call is over
	silence                 // leave the stream open
)

// process is a client under way.
type process struct {
	client         *client
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	exited         chan struct{}
	err            error // of Wait; once exited
	writers        sync.WaitGroup
}

// start starts the program. The end of ctx kills it.
func (c *client) start(ctx context.Context, r *rig, to route, s *script) (*process, error) {
	cmd, err := c.command(r, to, s)
	if err != nil {
		return nil, err
	}
	p := &process{client: c, cmd: cmd, exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	killed := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	p.writers.Go(func() {
		_ = p.feed(stdin, s) // the program may be gone before it has read all
		<-p.exited
		_ = stdin.Close()
	})
	go func() {
		p.err = p.cmd.Wait()
		killed()
		close(p.exited)
	}()
	return p, nil
}

// feed writes the records of s to the program.
func (p *process) feed(stdin io.WriteCloser, s *script) error {
	lines := json.NewEncoder(stdin)
	write := func(r *pb.Record) error {
		return lines.Encode(map[string]any{
			"upload": r.GetUpload(), "line": r.GetLine(), "key": r.GetKey(), "text": r.GetText(),
		})
	}
	for _, r := range s.records {
		if err := write(r); err != nil {
			return err
		}
		if s.every > 0 {
			time.Sleep(s.every)
		}
	}
	switch s.then {
	case halfClose:
		return stdin.Close()
	case trickle:
		for line := uint64(len(s.records) + 1); ; line++ {
			if err := write(record(line, "trickle", "x")); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	case silence:
	}
	return nil
}

func record(line uint64, key, text string) *pb.Record {
	return &pb.Record{Upload: "interop", Line: line, Key: key, Text: text}
}

// wait waits for the program to end by itself and returns what it saw. A hung client is killed by the context that it
// was started with.
func (p *process) wait(ctx context.Context) ([]outcome, error) {
	<-p.exited
	p.writers.Wait()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("the client hung: %s", p.output())
	}
	exit, crashed := errors.AsType[*exec.ExitError](p.err)
	if p.err != nil && (!crashed || !p.client.exitTells || !exit.Exited()) {
		return nil, fmt.Errorf("the client crashed: %w: %s", p.err, p.output())
	}
	if p.client.parse != nil {
		return p.client.parse(p.stdout.Bytes(), p.stderr.Bytes())
	}
	return parseOutcomes(p.stdout.Bytes())
}

// output is what the program wrote, as far as it helps.
func (p *process) output() string {
	return shorten(p.stderr.String()) + shorten(p.stdout.String())
}

func shorten(s string) string {
	const enough = 400
	if len(s) > enough {
		return s[:enough] + "…"
	}
	return s
}

// interrupt is what Ctrl-C does.
func (p *process) interrupt() error { return p.cmd.Process.Signal(os.Interrupt) }

// kill ends the program as the kernel does when memory is short, and waits until it is gone.
func (p *process) kill() error {
	err := p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.exited
	p.writers.Wait()
	return err
}
