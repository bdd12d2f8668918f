// Command kill shows what flow promises of uploads that survive. Processes upload a generated input by flowclient, each
// through a proxy that cuts its connections; a server process stores it in SQLite by sessionsql. All of them are killed
// again and again, two of the clients claim the same session, and a second server takes over from one that is stopped and
// wakes up late. Meanwhile and in the end what is stored is held against what was sent and against what was acknowledged.
// The exit code is 0 only if every promise was kept. It needs a Unix, for its signals.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	exitKept   = 0
	exitBroken = 1
	exitUsage  = 2
)

func main() {
	if code, child := runChild(); child {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := command(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func command(ctx context.Context, args []string) (code int) {
	var o options
	fs := flag.NewFlagSet("kill", flag.ContinueOnError)
	fs.DurationVar(&o.length, "for", 2*time.Minute, "over how long the messages are spread, all parts together; 0: as fast as it goes")
	fs.IntVar(&o.messages, "messages", 0, "how many, in each part; 0: 1,000 for each second of the part")
	fs.IntVar(&o.keys, "keys", 1000, "of each session")
	fs.IntVar(&o.sessions, "sessions", 4, "the last of them is claimed by two senders")
	only := fs.String("part", "all", "once, plain, memory or all: with Once, without it, and without it with sessions in memory")
	if err := fs.Parse(args); err != nil {
		return exitUsage
	}
	all, err := o.parts(*only, fs.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "kill:", err)
		return exitUsage
	}
	for _, p := range all {
		r, err := p.run(ctx)
		if err != nil {
			fmt.Fprintln(os.Stderr, "kill:", err)
			return exitBroken
		}
		fmt.Println(r)
		if !r.kept() {
			code = exitBroken
		}
	}
	return code
}

// options are what the flags say.
type options struct {
	length         time.Duration
	messages       int
	keys, sessions int
}

// parts are what there is to run. With all of them, two thirds of the time are for the first.
func (o options) parts(only string, rest []string) (all []part, err error) {
	switch {
	case len(rest) > 0:
		return nil, fmt.Errorf("there are only flags (got %q)", strings.Join(rest, " "))
	case o.length < 0:
		return nil, fmt.Errorf("-for must not be negative (got %v)", o.length)
	case o.messages < 0:
		return nil, fmt.Errorf("-messages must not be negative (got %d)", o.messages)
	case o.messages == 0 && o.length == 0:
		return nil, fmt.Errorf("-messages must be given with -for 0")
	case o.keys < 1 || o.sessions < 1:
		return nil, fmt.Errorf("-keys and -sessions must be at least 1 (got %d and %d)", o.keys, o.sessions)
	}
	of := func(name string, kind kind, share float64) {
		if only != "all" {
			if only != name {
				return
			}
			share = 1
		}
		p := part{kind: kind, length: time.Duration(share * float64(o.length)), keys: o.keys, sessions: o.sessions}
		messages := o.messages
		if messages == 0 {
			messages = int(1000 * p.length.Seconds())
		}
		p.messages = max(1, messages/o.sessions)
		all = append(all, p)
	}
	of("once", withOnce, 2./3)
	of("plain", withoutOnce, 1./6)
	of("memory", inMemory, 1./6)
	if len(all) == 0 {
		return nil, fmt.Errorf("-part must be once, plain, memory or all (got %q)", only)
	}
	return all, nil
}
