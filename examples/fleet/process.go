package main

import (
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// process is a part of the fleet, over all its lives.
type process struct {
	name string
	args []string

	mu    sync.Mutex
	state state
	life  *life
}

// state is how a process is, in a sign.
type state string

const (
	running state = "●"
	stopped state = "‖"
	dead    state = "✗"
	done    state = "✓"
)

// life is one of a process.
type life struct {
	cmd   *exec.Cmd
	stdin io.Closer     // the process ends when it is closed
	ended chan struct{} // closed when it has
	err   error         // how
}

// start begins a new life. The process must be dead.
func (p *process) start() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe, p.args...)
	cmd.Stderr = os.Stderr
	// So that a Ctrl-C reaches the conductor alone, which ends the others in turn.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	l := &life{cmd: cmd, stdin: stdin, ended: make(chan struct{})}
	p.mu.Lock()
	p.life, p.state = l, running
	p.mu.Unlock()
	go func() {
		l.err = cmd.Wait()
		p.mu.Lock()
		if p.life == l {
			p.state = dead
			if l.err == nil {
				p.state = done
			}
		}
		p.mu.Unlock()
		close(l.ended)
	}()
	return nil
}

func (p *process) now() (state, *life) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state, p.life
}

// signal sends a signal to a process, which may have ended.
func (p *process) signal(s syscall.Signal, next state) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == running || p.state == stopped {
		_ = p.life.cmd.Process.Signal(s)
		p.state = next
	}
}

// kill kills it, and waits until it is dead.
func (p *process) kill() {
	_, l := p.now()
	if l == nil {
		return
	}
	_ = l.cmd.Process.Kill()
	<-l.ended
}

// end asks it to end, and kills it if it doesn't.
func (p *process) end(patience time.Duration) {
	_, l := p.now()
	if l == nil {
		return
	}
	_ = l.stdin.Close()
	select {
	case <-l.ended:
	case <-time.After(patience):
		p.kill()
	}
}
