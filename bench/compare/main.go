// Command compare measures flow beside what people use instead, and writes what it found as a table and a plot.
//
//	go run ./compare                     # everything, five rounds, to the terminal
//	go run ./compare -rows keys,ping -contenders flow,hash64
//	go run ./compare -rounds 9 -write . -readme ../README.md
//
// Contenders take turns within each round, each measurement in a process of its own, and who comes first rotates. The
// exit code is 0 unless a measurement failed, or flow broke an order that it promises.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"example.com/flow/bench/internal/report"
)

func main() {
	if work() {
		return
	}
	rounds := flag.Int("rounds", 5, "how often each measurement is made")
	only := flag.String("rows", "", "comma-separated `list` of rows; all if empty: "+strings.Join(rowNames(), " "))
	columns := flag.String("columns", "", "comma-separated `list` of columns, written without commas and spaces; all if empty")
	among := flag.String("contenders", "", "comma-separated `list` of contenders, by their first word; a row's base is always measured")
	cores := flag.Int("cpu", runtime.NumCPU(), "GOMAXPROCS of each measurement")
	quick := flag.Bool("quick", false, "a tenth of the messages: to see that it works")
	dir := flag.String("write", "", "`directory` of throughput.svg and of RESULTS.md, whose part between the compare marks is renewed")
	readme := flag.String("readme", "", "`file` whose part between the compare marks is renewed")
	flag.Parse()
	if flag.NArg() > 0 || *rounds < 1 || *cores < 1 {
		flag.Usage()
		os.Exit(2)
	}
	m := report.Machine(*cores)
	tables := plan(*only, *columns, *among)
	if len(tables) == 0 {
		fmt.Fprintln(os.Stderr, "compare: no row or column is called so")
		os.Exit(2)
	}
	started := time.Now()
	failures := measureAll(tables, *rounds, *cores, *quick)
	text := markdown(tables, m, *rounds, *quick)
	fmt.Println(text)
	fmt.Printf("%s\n", time.Since(started).Round(time.Second))
	if *dir != "" {
		failures = append(failures,
			report.Renew(filepath.Join(*dir, "RESULTS.md"), mark, text),
			plotTo(tables, filepath.Join(*dir, plotName)))
	}
	if *readme != "" {
		failures = append(failures, report.Renew(*readme, mark, digest(tables, m, *rounds)))
	}
	failures = append(failures, promised(tables)...)
	code := 0
	for _, err := range failures {
		if err != nil {
			fmt.Fprintln(os.Stderr, "compare:", err)
			code = 1
		}
	}
	os.Exit(code)
}

func rowNames() (list []string) {
	for _, r := range rows {
		list = append(list, r.name)
	}
	return list
}
