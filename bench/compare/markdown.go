package main

import (
	"fmt"
	"math"
	"strings"

	"example.com/flow/bench/internal/report"
)

// markdown is the whole report.
func markdown(tables []*table, machine string, rounds int, quick bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "## Messages\n\n%s.\n\n", machine)
	if quick {
		b.WriteString("**A quick run, to see that it works: its numbers mean little.**\n\n")
	}
	fmt.Fprintf(&b, "Medians of %d interleaved rounds, each measurement in a process of its own; less is better but for %%. "+
		"In brackets the ratio to the table's first line (the median of the rounds' own ratios) and, where there is one, "+
		"to the ideal. Messages of 128 bytes, 64 workers, at most 4,096 pending, one producer, and a check of each key's order in each "+
		"handler. hash64 is 64 goroutines with a buffered channel each, chosen by a key's hash; ringlane is a prototype "+
		"of the library's lanes without contexts, errors, panics or bounds.\n", rounds)
	for _, t := range tables {
		fmt.Fprintf(&b, "\n### %s (`%s`)\n\nTo reach: %s.\n\n", t.title, t.name, t.target)
		t.write(&b)
		if t.note != nil {
			fmt.Fprintf(&b, "\n%s\n", t.note(t))
		}
		if rounds >= enoughRounds {
			fmt.Fprintf(&b, "\nThe middle half of a cell's rounds is %.0f %% of its median wide, at worst.\n", 100*t.noise())
		}
	}
	return b.String()
}

// write is the table itself.
func (t *table) write(b *strings.Builder) {
	counted := false
	for _, c := range t.contenders {
		counted = counted || t.allocs(c) >= 0
	}
	head := append([]string{t.unit}, t.columns...)
	if counted {
		head = append(head, "allocs")
	}
	line := func(cells []string) { fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | ")) }
	line(head)
	fmt.Fprintf(b, "|---|%s\n", strings.Repeat("---:|", len(head)-1))
	for _, c := range t.contenders {
		cells := []string{c}
		if n := t.broken(c); n > 0 {
			cells[0] += fmt.Sprintf(" (breaks order: %d times)", n)
		}
		for _, column := range t.columns {
			cells = append(cells, t.cell(c, column))
		}
		if counted {
			cells = append(cells, fmt.Sprintf("%.2f", t.allocs(c)))
		}
		line(cells)
	}
	cells, any := []string{"ideal"}, false
	for _, column := range t.columns {
		text := "–"
		if list := t.ideals(column); len(list) > 0 {
			text, any = number(report.Median(list)), true
		}
		cells = append(cells, text)
	}
	if counted {
		cells = append(cells, "")
	}
	if any {
		line(cells)
	}
}

// cell is "median (ratio×; ideal ratio×)".
func (t *table) cell(contender, column string) string {
	list := t.values(contender, column)
	if len(list) == 0 {
		return "–"
	}
	value := report.Median(list)
	var notes []string
	if to := report.Ratio(list, t.values(t.base, column)); contender != t.base && !math.IsNaN(to) {
		notes = append(notes, fmt.Sprintf("%.2f×", to))
	}
	if ideals := t.ideals(column); len(ideals) > 0 {
		notes = append(notes, fmt.Sprintf("ideal %.2f×", value/report.Median(ideals)))
	}
	if len(notes) == 0 {
		return number(value)
	}
	return fmt.Sprintf("%s (%s)", number(value), strings.Join(notes, "; "))
}

// number has three digits or so.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// enoughRounds is how many it takes to say how far they lie apart.
const enoughRounds = 3

// above is a note: how far the contenders are above the first.
func above(t *table) string {
	var parts []string
	for _, column := range t.columns {
		base := report.Median(t.values(t.base, column))
		for _, c := range t.contenders {
			if list := t.values(c, column); c != t.base && len(list) > 0 {
				parts = append(parts, fmt.Sprintf("%s %s", c, number(report.Median(list)-base)))
			}
		}
	}
	return fmt.Sprintf("Above %s, in %s: %s.", t.base, t.unit, strings.Join(parts, ", "))
}

// across is a note: the last column by the first.
func across(t *table) string {
	first, last := t.columns[0], t.columns[len(t.columns)-1]
	var parts []string
	for _, c := range t.contenders {
		if to := report.Ratio(t.values(c, last), t.values(c, first)); !math.IsNaN(to) {
			parts = append(parts, fmt.Sprintf("%s %.2f×", c, to))
		}
	}
	return fmt.Sprintf("“%s” by “%s”: %s.", last, first, strings.Join(parts, ", "))
}
