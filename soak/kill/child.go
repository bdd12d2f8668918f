package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"time"
)

// taskVariable is the environment variable that makes a process of this binary a server or a sender. It has the task.
const taskVariable = "FLOW_KILL_TASK"

// task is what a child process is to do: one of the two.
type task struct {
	Server *serverTask `json:",omitempty"`
	Sender *senderTask `json:",omitempty"`
}

// statement is a line by which a child process says what it sees. What does not concern it is zero.
type statement struct {
	Address    string `json:",omitempty"` // a server: it serves there
	Pending    int64  `json:",omitempty"` // a server: the bytes received and not finished, at their highest so far
	Cut        int    `json:",omitempty"` // a server: messages that were stored although their call had been cancelled
	Refused    int    `json:",omitempty"` // a server: messages not stored, since their session had been taken
	SaveFailed int    `json:",omitempty"` // a server: calls of Save

	Settled *settled `json:",omitempty"` // a sender: what it was told
	Opened  int64    `json:",omitempty"` // a sender: a stream that was begun then, in nanoseconds since 1970, got its header
	Moved   bool     `json:",omitempty"` // a sender: it has ended, since another one has claimed the session
	Done    bool     `json:",omitempty"` // a sender: all is settled

	Wrong string `json:",omitempty"` // a broken promise
}

// settled is what a sender was told of its session.
type settled struct {
	Taken         uint64   // the highest number that it has taken on
	Unsettled     []uint64 // of 1 to Taken, ascending: not known to be settled
	Buffered      int      // Stats of the Sender
	BufferedBytes int64
	Streams       uint64
	Resent        uint64
}

// through is up to where all is settled.
func (s *settled) through() uint64 {
	if len(s.Unsettled) > 0 {
		return s.Unsettled[0] - 1
	}
	return s.Taken
}

// speaker writes statements to the standard output, each at once: what was said before a kill was said.
type speaker struct{ mu sync.Mutex }

func (s *speaker) say(what statement) {
	line, err := json.Marshal(what)
	if err != nil {
		panic("bug: " + err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = os.Stdout.Write(append(line, '\n'))
}

func (s *speaker) wrong(format string, args ...any) {
	s.say(statement{Wrong: fmt.Sprintf(format, args...)})
}

// runChild does the task that the environment has, and reports whether there is one.
func runChild() (code int, child bool) {
	text := os.Getenv(taskVariable)
	if text == "" {
		return 0, false
	}
	var t task
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		panic("bug: " + err.Error())
	}
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	go func() { // the parent never writes: the end of this pipe is the parent's
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(exitBroken)
	}()
	before := runtime.NumGoroutine()
	var out speaker
	var err error
	if t.Server != nil {
		err = t.Server.run(&out, terminate)
	} else {
		err = t.Sender.run(&out)
	}
	if err != nil {
		out.wrong("%v", err)
		return exitBroken, true
	}
	if stacks := goroutinesAbove(before); stacks != "" {
		out.wrong("goroutines are left: %s", stacks)
		return exitBroken, true
	}
	return exitKept, true
}

// goroutinesAbove returns the stacks of all goroutines if there stay to be more than n, which connections that were closed
// take a moment for.
func goroutinesAbove(n int) string {
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			var b strings.Builder
			_ = pprof.Lookup("goroutine").WriteTo(&b, 1)
			return b.String()
		}
	}
	return ""
}

// child is a process of this binary, as its parent sees it.
type child struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	lines  *bufio.Scanner
	mu     sync.Mutex
	killed bool
}

func startChild(t task) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(self)}
	c.cmd.Env = append(os.Environ(), taskVariable+"="+string(text))
	c.cmd.Stderr = os.Stderr
	// Ctrl-C is for the parent, which ends its children.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.lines = bufio.NewScanner(stdout)
	c.lines.Buffer(nil, 16<<20)
	return c, c.cmd.Start()
}

// listen hands on what the process says until its output ends, waits for its end, and returns its exit code; -1 after a
// signal. The last line of a process that was killed may be cut off, and is not handed on.
func (c *child) listen(hear func(statement)) (code int) {
	for c.lines.Scan() {
		var s statement
		if json.Unmarshal(c.lines.Bytes(), &s) == nil {
			hear(s)
		}
	}
	_ = c.cmd.Wait() // the exit code says it
	_ = c.stdin.Close()
	return c.cmd.ProcessState.ExitCode()
}

// kill is kill -9.
func (c *child) kill() {
	c.mu.Lock()
	c.killed = true
	c.mu.Unlock()
	_ = c.cmd.Process.Kill() // it may have ended by itself
}

func (c *child) wasKilled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.killed
}

func (c *child) signal(s syscall.Signal) { _ = c.cmd.Process.Signal(s) }
