// Command soak loads a Flow behind a real gRPC server over loopback TCP, with many streams on few connections: steady
// ones, bursts, slow handlers, handlers that stand still, silent clients and clients that go away. It watches that the
// Flow's bounds hold, that nothing is lost or out of order, that the well-behaved are not hurt by the others, and that a
// shutdown under that load leaves nothing behind. The exit code is 0 only if all of it holds.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"
)

func main() {
	var cfg config
	flag.IntVar(&cfg.streams, "streams", 2000, "how many streams at a time")
	flag.IntVar(&cfg.conns, "conns", 20, "on how many connections")
	flag.DurationVar(&cfg.length, "for", 2*time.Minute, "how long; the first quarter is without stalls, silence and cancels")
	flag.DurationVar(&cfg.life, "life", 10*time.Second, "how long a stream lives at most")
	flag.DurationVar(&cfg.stall, "stall", 5*time.Second, "how long a stalled handler stands still")
	flag.DurationVar(&cfg.grace, "grace", 15*time.Second, "the grace period of the shutdown")
	flag.DurationVar(&cfg.keepUp, "keepup", 100*time.Millisecond,
		"a p99 of well-behaved streams above this before any stall means that the machine can't keep up: then nothing is shown")
	flag.DurationVar(&cfg.hurt, "hurt", 50*time.Millisecond,
		"how much later than without stalls the p99 of well-behaved streams may be")
	flag.Parse()
	if flag.NArg() > 0 || cfg.streams < 20 || cfg.conns < 1 || cfg.length <= 0 || cfg.life <= 0 || cfg.stall <= 0 {
		fmt.Fprintln(os.Stderr, "soak: needs at least 20 streams, a connection, and times above 0; -h lists the flags")
		os.Exit(2)
	}
	r, err := soak(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
	fmt.Print(r)
	if !r.holds() {
		os.Exit(1)
	}
}
