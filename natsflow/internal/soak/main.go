// Command soak runs workers of natsflow in processes of their own while all that can go wrong goes wrong, and compares what
// they have done with what was stored.
//
//	go run ./internal/soak -messages 100000 -replicas 3 -faults kill,stop,term,server,step,roll
//
// It prints one row, and exits with 1 if something was lost, out of order, or wrong in the end.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"example.com/flow/natsflow/internal/natstest"
)

// config is what a run is to be.
type config struct {
	Messages, Rate, Keys          int
	Workers, Partitions, Replicas int
	Lease, Handler, Every         time.Duration
	Faults                        string
	Verbose                       bool
}

func main() {
	natstest.Serve()
	if text := os.Getenv(envWorker); text != "" {
		if err := runWorker(text); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		return
	}
	var c config
	flag.IntVar(&c.Messages, "messages", 10_000, "how many messages are stored")
	flag.IntVar(&c.Rate, "rate", 1500, "messages a second")
	flag.IntVar(&c.Keys, "keys", 256, "keys")
	flag.IntVar(&c.Workers, "workers", 3, "workers")
	flag.IntVar(&c.Partitions, "partitions", 8, "partitions")
	flag.IntVar(&c.Replicas, "replicas", 1, "servers, and copies of each message: 1 or 3")
	flag.DurationVar(&c.Lease, "lease", 3*time.Second, "WorkerOptions.Lease")
	flag.DurationVar(&c.Handler, "handler", 2*time.Millisecond, "how long a handler takes")
	flag.DurationVar(&c.Every, "every", 4*time.Second, "from the end of one fault to the next")
	flag.StringVar(&c.Faults, "faults", "kill,stop,term,server,step,roll", "which `faults` happen, by chance: "+strings.Join(faultNames(), ", "))
	flag.BoolVar(&c.Verbose, "v", false, "say what happens")
	flag.Parse()
	ok, err := run(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// envWorker is set in a process that is to be a worker: a workerSpec.
const envWorker = "NATSFLOW_SOAK_WORKER"

func (s workerSpec) String() string {
	b, err := json.Marshal(s)
	if err != nil {
		panic("bug: " + err.Error())
	}
	return string(b)
}
