// Command postgres stores readings in PostgreSQL, many in a transaction: a gRPC service on flow.NewBatch and its client,
// in one process. Without -dsn it starts the PostgreSQL server that is installed, for as long as it runs. In the end the
// tables are compared with a sequential replay of what was sent. README.md says more.
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
	exitOK     = 0 // all is stored, and the tables are right
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as it is under nohup
		signals = append(signals, syscall.SIGHUP)
	}
	// They end the upload, and what was made for it is removed. It never takes long, so a second one changes nothing.
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the program. The end of ctx cuts it short.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cfg, err := parse(args, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "postgres: %v\nTry -h for help.\n", err)
		return exitUsage
	}
	if cfg.dsn == "" {
		fmt.Fprintln(stderr, "starting PostgreSQL")
	}
	var closing error
	db, err := openDatabase(ctx, cfg)
	if err == nil {
		err = upload(ctx, cfg, db, stdout, stderr)
		closing = db.close()
	}
	if err != nil && ctx.Err() != nil { // whatever else there is to say comes of that
		err = errors.New("interrupted")
	}
	err = errors.Join(err, closing)
	if err != nil {
		fmt.Fprintf(stderr, "postgres: %v\n", err)
		return exitFailed
	}
	return exitOK
}

// upload is a server, its client, and the check.
func upload(ctx context.Context, cfg *config, db *database, stdout, stderr io.Writer) (err error) {
	in := newInput(cfg.readings)
	fmt.Fprintf(stdout, "%v\n%v\n", db, in)
	st := &store{pool: db.pool}
	s, err := startServer(cfg, st)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	end := showBar(stderr, cfg.readings, st)
	took, err := send(ctx, s.addr, in)
	end()
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "\n%s", newReport(st, s.letters.Load(), took))
	switch differs, err := st.differences(ctx, in); {
	case err != nil:
		return err
	case differs != "":
		fmt.Fprintf(stdout, "tables equal a sequential replay: no (%s)\n", differs)
		return errors.New("the check failed")
	}
	fmt.Fprintln(stdout, "tables equal a sequential replay: yes")
	fmt.Fprintln(stdout, "try next: -batch 1  -batch 1 -calls 32  -batch 1000  -h")
	return nil
}
