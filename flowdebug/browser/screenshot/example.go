package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"
)

// example is the example at work: a server, and clients that send to it.
type example struct {
	dir    string // of the program
	page   string // its address
	ctx    context.Context
	cancel context.CancelFunc
	ended  []<-chan struct{}
}

// start builds and starts it. One of its clients is killed after a short while: a failure to see.
func start(ctx context.Context, examples string, short time.Duration) (x *example, err error) {
	x = new(example)
	x.ctx, x.cancel = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			x.stop()
		}
	}()
	if x.dir, err = os.MkdirTemp("", "screenshot"); err != nil {
		return nil, err
	}
	build := exec.CommandContext(x.ctx, "go", "build", "-o", x.program(), "./ingest")
	build.Dir, build.Stderr = examples, os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("building the example: %w", err)
	}
	server := exec.CommandContext(x.ctx, x.program(), "-serve", "127.0.0.1:0", "-debug", "127.0.0.1:0",
		"-batch", "1", "-capacity", "16", "-slow", "device-7", "-slow-by", "400ms", "-fail", "0.02",
		"-db", filepath.Join(x.dir, "ingest.db")) // it is killed, and would leave a temporary one
	said, err := x.run(server)
	if err != nil {
		return nil, err
	}
	var addr string
	for lines := bufio.NewScanner(said); x.page == "" || addr == ""; {
		if !lines.Scan() {
			return nil, errors.New("the example's server has said no address")
		}
		if m := regexp.MustCompile(`serving on (\S+),`).FindStringSubmatch(lines.Text()); m != nil {
			addr = m[1]
		}
		if m := regexp.MustCompile(`http://\S+/debug/flow/`).FindString(lines.Text()); m != "" {
			x.page = m
		}
	}
	for i := range 4 {
		life := x.ctx
		if i == 3 {
			var end context.CancelFunc
			life, end = context.WithTimeout(life, short)
			context.AfterFunc(life, end)
		}
		client := exec.CommandContext(life, x.program(), "-connect", addr, "-in", "-", "-key", "device")
		stdin, err := client.StdinPipe()
		if err != nil {
			return nil, err
		}
		if _, err := x.run(client); err != nil {
			return nil, err
		}
		go report(stdin, i)
	}
	return x, nil
}

func (x *example) program() string { return filepath.Join(x.dir, "ingest") }

// run starts c, and returns what it says.
func (x *example) run(c *exec.Cmd) (io.Reader, error) {
	said, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	x.ended = append(x.ended, ended)
	go func() {
		defer close(ended)
		_, _ = c.Process.Wait()
	}()
	return said, nil
}

// report writes a client's records until it is gone: more and fewer of them, like a day.
func report(to io.Writer, client int) {
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		rate := 4 + 2.5*math.Sin(time.Since(start).Seconds()/20+float64(client))
		for range int(rate * (0.5 + rand.Float64())) {
			if _, err := fmt.Fprintf(to, "{\"device\":\"device-%d\",\"temperature\":%d}\n", rand.IntN(100)+1, rand.IntN(40)); err != nil {
				return
			}
		}
	}
}

func (x *example) stop() {
	x.cancel()
	for _, ended := range x.ended {
		<-ended
	}
	_ = os.RemoveAll(x.dir)
}
