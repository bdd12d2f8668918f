package main

import (
	"fmt"
	"math"
	"strings"

	"example.com/flow/bench/internal/report"
)

// table is a database and a load, with what was measured of each way.
type table struct {
	database *database
	load     *load
	results  map[*way][]result // one of each round
}

func newTable(d *database, l *load) *table { return &table{d, l, map[*way][]result{}} }

// values are one figure of a way, round by round.
func (t *table) values(w *way, of func(result) float64) (list []float64) {
	for _, r := range t.results[w] {
		list = append(list, of(r))
	}
	return list
}

func rate(r result) float64 { return r.rate }
func p50(r result) float64  { return r.p50 }

const intro = `Rows a second that come over gRPC (loopback TCP, 128 bytes a message, client and server on the same cores) into
a real database, and the time from a message's receipt until it is settled. Most of that is what waits before it: of each of
8 streams 256 messages are read ahead, of a single one 1,024. Transactions have at most 256 rows. SQLite, with a WAL, runs one
at a time; PostgreSQL, as Debian sets it up, 4, and of those with one row 32. By hand: handlers hand their rows to as many
goroutines, each of which commits what has come during its last transaction. Each time it is checked that the rows of each key
are in order, and that none is missing that was settled.

`

// markdown is the section of RESULTS.md.
func markdown(tables []*table, machine string, rounds int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "## Rows into a database\n\n%s.\n\n%sMedians of %d interleaved rounds; in brackets the ratio to one by one "+
		"(the median of the rounds' own ratios). CPU is this process's, with the client.\n", machine, intro, rounds)
	for _, t := range tables {
		fmt.Fprintf(&b, "\n### %s, %s\n\n", t.database.name, t.load.name)
		if goal := t.goal(); goal != "" {
			fmt.Fprintf(&b, "To reach: %s.\n\n", goal)
		}
		b.WriteString("| | rows/s | p50, ms | p99, ms | rows a transaction | CPU, µs a row |\n|---|---:|---:|---:|---:|---:|\n")
		for _, w := range ways {
			if len(t.results[w]) == 0 {
				continue
			}
			med := func(of func(result) float64) string { return number(report.Median(t.values(w, of))) }
			fmt.Fprintf(&b, "| %s | %s%s | %s%s | %s | %s | %s |\n", w.name,
				med(rate), t.ratio(w, rate), med(p50), t.ratio(w, p50), med(func(r result) float64 { return r.p99 }),
				med(func(r result) float64 { return r.size }), med(func(r result) float64 { return r.cpu }))
		}
		if of := report.Ratio(t.values(ways[2], rate), t.values(ways[1], rate)); !math.IsNaN(of) && t.load.every == 0 {
			fmt.Fprintf(&b, "\nflow.NewBatch by hand-written: %.2f×.\n", of)
		}
	}
	return b.String()
}

// goal is what the batches are held to.
func (t *table) goal() string {
	switch {
	case t.load.every > 0:
		return "flow.NewBatch with a p50 of at most 1.1 × one by one"
	case t.database != databases[0]:
		return ""
	case t.load.streams > 1:
		return "flow.NewBatch at least 40 × one by one, and 0.95 × what is written by hand"
	}
	return "flow.NewBatch at least 40 × one by one"
}

// ratio is " (n×)", to the first way.
func (t *table) ratio(w *way, of func(result) float64) string {
	to := report.Ratio(t.values(w, of), t.values(ways[0], of))
	if w == ways[0] || math.IsNaN(to) {
		return ""
	}
	return fmt.Sprintf(" (%s×)", number(to))
}

// digest is what the README shows.
func digest(tables []*table, machine string, rounds int) string {
	var b strings.Builder
	b.WriteString("| rows a second, over gRPC | one by one | group commit by hand | `NewBatch` |\n|---|---:|---:|---:|\n")
	var slow []string
	for _, t := range tables {
		if t.load.every > 0 {
			slow = append(slow, fmt.Sprintf("%s %s ms instead of %s", t.database.name,
				number(report.Median(t.values(ways[2], p50))), number(report.Median(t.values(ways[0], p50)))))
			continue
		}
		fmt.Fprintf(&b, "| %s, %s |", t.database.name, t.load.name)
		for _, w := range ways {
			fmt.Fprintf(&b, " %s%s |", number(report.Median(t.values(w, rate))), t.ratio(w, rate))
		}
		b.WriteString("\n")
	}
	if len(slow) > 0 {
		fmt.Fprintf(&b, "\nNobody waits for a batch to fill. At 200 messages a second, half of them are settled within: %s.\n",
			strings.Join(slow, ", "))
	}
	fmt.Fprintf(&b, "\nMedians of %d interleaved rounds; %s. With percentiles and sizes of batches: "+
		"[bench/RESULTS.md](bench/RESULTS.md).\n", rounds, machine)
	return b.String()
}

// number has three digits or so, and commas.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1000:
		n := int64(math.Round(v))
		return fmt.Sprintf("%d,%03d", n/1000, n%1000)
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
