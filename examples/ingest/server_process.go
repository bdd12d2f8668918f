package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

// underParent is the environment variable of a server that another process of this program has started. It ends in good
// order when its standard input does; signals of the terminal are for its parent.
const underParent = "INGEST_UNDER_PARENT"

// obeyParent calls drain when the parent says so or is gone, if there is one.
func obeyParent(drain func()) {
	if os.Getenv(underParent) == "" {
		return
	}
	signal.Ignore(os.Interrupt, syscall.SIGHUP)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		drain()
	}()
}

// serverProcess is a server in a process of its own, so that it can be killed.
type serverProcess struct {
	cmd   *exec.Cmd
	addr  string
	stdin io.Closer
	said  bytes.Buffer // on its standard error; read once it has ended
	notes []string     // what it serves where
	rest  chan struct{}
}

// startServerProcess returns once the server serves on addr.
func startServerProcess(cfg *config, addr, file string) (*serverProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &serverProcess{cmd: exec.Command(self, cfg.serverArgs(addr, file)...), rest: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), underParent+"=1")
	p.cmd.Stderr = &p.said
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	for want := 1 + cfg.watched(); want > 0 && lines.Scan(); want-- {
		if serving, ok := strings.CutPrefix(lines.Text(), "serving on "); ok {
			p.addr, _, _ = strings.Cut(serving, ",")
		} else {
			p.notes = append(p.notes, lines.Text())
		}
	}
	go func() { // its table is of what it has done alone, and that of one that is killed is lost
		defer close(p.rest)
		for lines.Scan() {
		}
	}()
	if p.addr == "" {
		return nil, cmp.Or(p.stop(), errors.New("the server has ended at once"))
	}
	return p, nil
}

// kill is kill -9.
func (p *serverProcess) kill() {
	_ = p.cmd.Process.Kill()
	<-p.rest
	_ = p.cmd.Wait() // it was killed
	_ = p.stdin.Close()
}

// stop ends the server in good order. The error is what it has said, if that was not possible.
func (p *serverProcess) stop() error {
	_ = p.stdin.Close()
	<-p.rest
	if err := p.cmd.Wait(); err != nil {
		lines := strings.Split(strings.TrimSpace(p.said.String()), "\n")
		return fmt.Errorf("the server: %s (%w)", strings.TrimPrefix(lines[len(lines)-1], "ingest: "), err)
	}
	return nil
}

// serverArgs are the arguments of a server alone that does what the flags say.
func (c *config) serverArgs(addr, file string) []string {
	args := []string{"-serve", addr, "-db", file}
	for _, name := range append([]string{"tls"}, serverFlags...) {
		switch value, given := c.given[name]; {
		case !given, name == "db", name == "slow":
		default:
			args = append(args, "-"+name+"="+value)
		}
	}
	if c.slow != "" {
		args = append(args, "-slow", c.slow)
	}
	return args
}

// watched is how many addresses -debug and -metrics name.
func (c *config) watched() (n int) {
	for _, addr := range []string{c.debug, c.metrics} {
		if addr != "" {
			n++
		}
	}
	return n
}
