package main

import (
	"fmt"
	"os"
	"strings"
)

const (
	beginMark = "<!-- compare: begin -->"
	endMark   = "<!-- compare: end -->"
)

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

// renew replaces what is between the marks of the file.
func renew(file, text string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	renewed, err := between(string(old), text)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(renewed), 0o644)
}

func between(old, text string) (string, error) {
	head, rest, began := strings.Cut(old, beginMark)
	_, tail, ended := strings.Cut(rest, endMark)
	if !began || !ended {
		return "", fmt.Errorf("needs the marks %s and %s", beginMark, endMark)
	}
	return head + beginMark + "\n" + text + endMark + tail, nil
}
