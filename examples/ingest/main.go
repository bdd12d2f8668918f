// Command ingest is a telemetry service on flow, and its client. Without flags it starts the server on 127.0.0.1, uploads
// the records of a generated fleet over real gRPC, stores each in SQLite, and checks that the stored state is what a
// sequential replay of the input gives. Its flags let one see how flow behaves; README.md shows them at work.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const (
	exitOK     = 0 // all is done, and the state is right
	exitFailed = 1 // something failed, was cut short, or the check says no
	exitUsage  = 2
)

func main() {
	ctx, drain := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as it is under nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	signal.Ignore(syscall.SIGPIPE) // whoever reads the output may go, and the database is still to be removed
	obeyParent(drain)
	go func() {
		<-signals
		drain()
		<-signals // at once, as the signal would have done by itself, but with nothing left behind
		temporary.removeAll()
		fmt.Fprintln(os.Stderr, "ingest: ended by a second signal")
		os.Exit(exitFailed)
	}()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program. The end of ctx asks it to stop taking records on and to finish those that it took.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cfg, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "ingest: %v\nTry -h for help.\n", err)
		return exitUsage
	}
	t := newTerminal(stdout, stderr)
	switch {
	case cfg.serve != "":
		err = serve(ctx, cfg, t)
	case cfg.connect != "":
		err = connect(ctx, cfg, stdin, t)
	default:
		err = both(ctx, cfg, stdin, t)
	}
	if err != nil {
		t.note("ingest: %v", err)
		return exitFailed
	}
	return exitOK
}
