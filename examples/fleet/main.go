// Command fleet shows what package natsflow is for: gateways, workers and clients in processes of their own, with a NATS
// server between them, while one after the other is killed, stopped and started again. In the end it says whether anything
// was lost, done twice, or done in another order than it was sent in.
//
//	go run .                                  # with a server of its own
//	go run . -replicas 3                      # with three of them
//	go run . -nats nats://127.0.0.1:4222      # with yours, of version 2.14 or later, with JetStream
//
// What to look at is gateway.go, worker.go and sender.go, which are the whole of such a system, and the condition in
// ledger.go, by which effects happen once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errFlags): // package flag has said what is wrong
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

var errFlags = errors.New("the flags are wrong")

// run is the conductor, or the part that the first argument names: those processes are started by the conductor.
func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		if part, ok := parts[args[0]]; ok {
			ctx := withoutParent(ctx)
			err := part(ctx, args[1:])
			if ctx.Err() != nil && errors.Is(err, context.Canceled) {
				return nil // it was asked to end, and has
			}
			return err
		}
	}
	var c config
	f := flag.NewFlagSet("fleet", flag.ContinueOnError)
	f.StringVar(&c.nats, "nats", "", "addresses of NATS servers with JetStream, 2.14 or later; without it fleet starts its own")
	f.IntVar(&c.replicas, "replicas", 1, "replicas of the topic: 1, 3 or 5, and so many servers if they are fleet's own")
	f.IntVar(&c.messages, "messages", 20_000, "messages to send, over all senders")
	f.DurationVar(&c.pause, "pause", 2*time.Second, "time between two faults")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", errFlags, err)
	}
	switch {
	case f.NArg() > 0:
		return fmt.Errorf("unknown argument %q", f.Arg(0))
	case c.messages < senders*devices:
		return fmt.Errorf("-messages is %d: it must be at least %d, one a device", c.messages, senders*devices)
	case c.replicas != 1 && c.replicas != 3 && c.replicas != 5:
		return fmt.Errorf("-replicas is %d: it must be 1, 3 or 5", c.replicas)
	case c.pause <= 0:
		return fmt.Errorf("-pause is %v: it must be positive", c.pause)
	}
	return c.conduct(ctx)
}

// parts are the processes that there are beside the conductor. Each is told what it needs by its arguments.
var parts = map[string]func(ctx context.Context, args []string) error{
	"server":  runServer,
	"gateway": runGateway,
	"worker":  runWorker,
	"sender":  runSender,
}

// withoutParent ends with ctx, or with the conductor, which holds the other end of the standard input.
func withoutParent(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		var b [1]byte
		for {
			if _, err := os.Stdin.Read(b[:]); err != nil {
				return
			}
		}
	}()
	return ctx
}
