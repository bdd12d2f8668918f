// Command interop runs clients that others wrote against a Flow behind a real gRPC server, directly and through a proxy,
// in plain text and over TLS, and prints a table of what was run against what. README.md says more. It is to be run in
// its own directory: go run .
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	onlyClients := flag.String("clients", "", "which clients, by their names in the table, separated by commas; all if empty")
	onlyCases := flag.String("cases", "", "which cases, likewise")
	direct := flag.Bool("direct", false, "leave the proxy out")
	flag.Parse()
	m, err := newMatrix(*onlyClients, *onlyCases, *direct)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = m.run(ctx, os.Stderr)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
	fmt.Print(m)
	if m.failed() {
		os.Exit(1)
	}
}
