package main

import (
	"fmt"
	"strings"
)

// mark names the part of the README and of RESULTS.md that is this program's to renew.
const mark = "compare"

// digest is what the README shows: the first table, the plot, and where it is from.
func digest(tables []*table, machine string, rounds int) string {
	var b strings.Builder
	for _, t := range tables {
		if t.row == keysRow {
			fmt.Fprintf(&b, "%s, in nanoseconds a message (64 workers; in brackets the ratio to hash64):\n\n", t.title)
			t.write(&b)
			fmt.Fprintf(&b, "\n![Nanoseconds a message by contender and number of keys](bench/%s)\n\n", plotName)
		}
	}
	fmt.Fprintf(&b, "Medians of %d interleaved rounds; %s. All rows: [bench/RESULTS.md](bench/RESULTS.md).\n", rounds, machine)
	return b.String()
}
