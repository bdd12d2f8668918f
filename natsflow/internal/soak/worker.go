package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"example.com/flow"
	"example.com/flow/natsflow"
	"example.com/flow/natsflow/internal/effects"
	"example.com/flow/natsflow/internal/natstest"
)

// codec stores texts as they are.
var codec = natsflow.Codec[string]{
	Key:       effects.Key,
	Marshal:   func(s string) ([]byte, error) { return []byte(s), nil },
	Unmarshal: func(b []byte) (string, error) { return string(b), nil },
}

// workerSpec is what a process of a worker is to do.
type workerSpec struct {
	Name, URLs, Effects string
	Topic               natsflow.Topic
	Lease, Handler      time.Duration
	Verbose             bool
}

// runWorker works until SIGTERM.
func runWorker(text string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var s workerSpec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	js, err := natstest.Dial(s.URLs)
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	store, err := effects.Dial(s.Effects)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	o := natsflow.WorkerOptions{
		Flow: flow.Options{
			Backpressure: flow.BackpressureOptions{Capacity: 128},
			Retry:        flow.RetryOptions{MaxAttempts: 100, Backoff: 10 * time.Millisecond},
		},
		Lease: s.Lease,
	}
	began := time.Now()
	if s.Verbose {
		o.Observer = func(e natsflow.PartitionEvent) {
			if e.Kind == natsflow.EventCommitted && e.Err == nil || e.Kind == natsflow.EventReplayed {
				return
			}
			fmt.Fprintf(os.Stderr, "%s %v: %v %+v\n", s.Name, time.Since(began).Round(time.Millisecond), e.Kind, e)
		}
	}
	w, err := natsflow.NewWorker(js, s.Topic, codec, func(ctx context.Context, m flow.Message[string]) error {
		time.Sleep(s.Handler)
		from, _ := natsflow.FromContext(ctx)
		if from.Seq%50 == 0 && m.Attempt == 1 {
			return errors.New("the first attempt of some fails")
		}
		return store.Apply(effects.Effect{Value: m.Value, Seq: from.Seq, Epoch: from.Epoch, Worker: s.Name})
	}, o)
	if err != nil {
		return err
	}
	for { // the servers may be about to come back
		if err = w.Run(ctx); err == nil || ctx.Err() != nil {
			return nil
		}
		fmt.Fprintln(os.Stderr, s.Name, err)
		time.Sleep(200 * time.Millisecond)
	}
}

// process is a worker in a process of its own, which is started anew when it has ended.
type process struct {
	spec workerSpec
	cmd  *exec.Cmd
	done chan struct{}
}

func (p *process) start() error {
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Env = append(os.Environ(), envWorker+"="+p.spec.String())
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		defer close(done)
		_ = cmd.Wait() // how it has ended is what the effects say
	}(p.cmd, p.done)
	return nil
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// end sends a signal that ends the process, and waits until it is gone.
func (p *process) end(s syscall.Signal) {
	p.signal(s)
	<-p.done
}
