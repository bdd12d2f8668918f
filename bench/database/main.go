// Command database measures how many rows a second come through a gRPC service into a real database: one by one, by a
// group commit that is written by hand, and by flow.NewBatch.
//
//	go run ./database                               # all databases and loads, five rounds, to the terminal
//	go run ./database -databases PostgreSQL -rounds 1
//	go run ./database -write . -readme ../README.md # renews the part between the database marks of both files
//
// Ways take turns within each round, and who comes first rotates. The exit code is 0 unless a measurement failed, or the
// rows of a key are not in order.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"example.com/flow/bench/internal/report"
)

// mark names the part of RESULTS.md and of the README that is this program's to renew.
const mark = "database"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "database:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("database", flag.ContinueOnError)
	rounds := fs.Int("rounds", 5, "how often each measurement is made")
	window := fs.Duration("window", 4*time.Second, "how long it looks, after a second of warm-up")
	only := fs.String("databases", "", "comma-separated `list` of "+strings.Join(names(databases), ", ")+"; all if empty")
	dir := fs.String("write", "", "`directory` of RESULTS.md, whose part between the database marks is renewed")
	readme := fs.String("readme", "", "`file` whose part between the database marks is renewed")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 || *rounds < 1 || *window <= 0 {
		return errors.New("-rounds and -window must be positive, and there are no arguments: see -h")
	}
	m := report.Machine(runtime.NumCPU())
	var tables []*table
	for _, d := range databases {
		if *only == "" || slices.Contains(strings.Split(*only, ","), d.name) {
			for _, l := range loads {
				tables = append(tables, newTable(d, l))
			}
		}
	}
	if len(tables) == 0 {
		return fmt.Errorf("-databases: there is none called %q", *only)
	}
	for round := range *rounds {
		for _, t := range tables {
			for _, w := range report.Rotated(ways, round) {
				fmt.Fprintf(os.Stderr, "round %d of %d: %s, %s, %s\n", round+1, *rounds, t.database.name, t.load.name, w.name)
				r, err := measure(ctx, t.database, t.load, w, *window)
				if err != nil {
					return fmt.Errorf("%s, %s, %s: %w", t.database.name, t.load.name, w.name, err)
				}
				t.results[w] = append(t.results[w], r)
			}
		}
	}
	text := markdown(tables, m, *rounds)
	fmt.Println(text)
	var err error
	if *dir != "" {
		err = report.Renew(filepath.Join(*dir, "RESULTS.md"), mark, text)
	}
	if *readme != "" {
		err = errors.Join(err, report.Renew(*readme, mark, digest(tables, m, *rounds)))
	}
	return err
}

func names(all []*database) (list []string) {
	for _, d := range all {
		list = append(list, d.name)
	}
	return list
}
