package main

import (
	"flag"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5/pgxpool"
)

// config is what the flags say.
type config struct {
	dsn      string
	readings int
	batch    int
	calls    int
}

const usage = `Stores readings in PostgreSQL, many in a transaction, and checks what is stored.

    go run ./postgres [flags]

  -dsn DSN      of a running server; without one, the PostgreSQL that is
                installed is started, in a temporary folder
  -readings N   how many are sent (20000)
  -batch N      readings in a transaction, at most (256)
  -calls N      transactions at once (4)

The tables are made in a schema of their own, which is dropped in the end.
`

// parse reads the flags. It prints the help that -h asks for, and returns flag.ErrHelp.
func parse(args []string, help io.Writer) (*config, error) {
	c := new(config)
	fs := flag.NewFlagSet("postgres", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // the error says it all
	fs.StringVar(&c.dsn, "dsn", "", "")
	fs.IntVar(&c.readings, "readings", 20_000, "")
	fs.IntVar(&c.batch, "batch", 256, "")
	fs.IntVar(&c.calls, "calls", 4, "")
	fs.Usage = func() { fmt.Fprint(help, usage) }
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	for _, f := range []struct {
		name        string
		value, most int
	}{{"-readings", c.readings, 1_000_000}, {"-batch", c.batch, 100_000}, {"-calls", c.calls, 1000}} {
		if f.value < 1 || f.value > f.most {
			return nil, fmt.Errorf("%s must be from 1 to %d (got %d)", f.name, f.most, f.value)
		}
	}
	if c.dsn != "" {
		if _, err := pgxpool.ParseConfig(c.dsn); err != nil {
			return nil, fmt.Errorf("-dsn: %w", err)
		}
	}
	return c, nil
}
