// Command soak loads a Flow behind a real gRPC server over loopback TCP, with many streams on few connections: steady
// ones, bursts, slow handlers, handlers that stand still, silent clients and clients that go away. It watches that the
// Flow's bounds hold, that nothing is lost or out of order, that the well-behaved are not hurt by the others, and that a
// shutdown under that load leaves nothing behind. Who is hurt shows beside a control group, well-behaved streams on a
// Flow of their own at the same time. The exit code is 0 only if all of it holds.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"
)

func main() {
	var cfg config
	flag.IntVar(&cfg.streams, "streams", 2000, "how many streams at a time; half of them are well-behaved, and as many more are the control group")
	flag.IntVar(&cfg.conns, "conns", 20, "on how many connections; the control group has as many of its own")
	flag.DurationVar(&cfg.length, "for", 2*time.Minute, "how long")
	flag.DurationVar(&cfg.life, "life", 10*time.Second, "how long a stream lives at most")
	flag.DurationVar(&cfg.slow, "slow", 50*time.Millisecond, "how long a slow handler takes")
	flag.DurationVar(&cfg.stall, "stall", 5*time.Second, "how long a stalled handler stands still at most")
	flag.DurationVar(&cfg.grace, "grace", 15*time.Second, "the grace period of the shutdown")
	flag.Parse()
	if flag.NArg() > 0 || cfg.streams < 20 || cfg.conns < 1 || cfg.length <= 0 || cfg.life <= 0 || cfg.slow <= 0 || cfg.stall <= 0 {
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
