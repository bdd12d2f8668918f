package main

import (
	"fmt"
	"os"
	"strings"

	"example.com/flow/bench/internal/contender"
	"example.com/flow/bench/internal/report"
)

// table is a row with what was measured of it.
type table struct {
	*row
	columns    []string
	contenders []string
	cells      map[cell][]result // one of each round
}

type cell struct{ contender, column string }

// plan picks what to measure. Tables without a column are left out.
func plan(only, columns, among string) (tables []*table) {
	for _, r := range rows {
		if !chosen(only, r.name) {
			continue
		}
		t := &table{row: r, cells: make(map[cell][]result)}
		for _, c := range r.columns {
			if chosen(columns, plain(c)) {
				t.columns = append(t.columns, c)
			}
		}
		for _, c := range r.contenders {
			if first, _, _ := strings.Cut(c, " "); chosen(among, first) || c == r.base {
				t.contenders = append(t.contenders, c)
			}
		}
		if len(t.columns) > 0 {
			tables = append(tables, t)
		}
	}
	return tables
}

// measureAll fills the tables, round by round, so that what changes on the machine meanwhile meets all contenders.
func measureAll(tables []*table, rounds, cores int, quick bool) (failures []error) {
	failed := make(map[string]bool)
	for round := range rounds {
		for _, t := range tables {
			for _, column := range t.columns {
				for _, c := range report.Rotated(t.contenders, round) {
					if failed[t.name+column+c] {
						continue
					}
					progress(fmt.Sprintf("round %d of %d: %s, %s, %s", round+1, rounds, t.name, column, c))
					a, err := start(job{t.name, column, c, quick}, cores)
					if err != nil {
						failures = append(failures, err)
					}
					if err != nil || a.Not {
						failed[t.name+column+c] = true
						continue
					}
					at := cell{c, column}
					t.cells[at] = append(t.cells[at], a.Result)
				}
			}
		}
	}
	progress("")
	return failures
}

// progress is a line that the next one takes the place of, for whoever sits at the terminal.
func progress(line string) {
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprint(os.Stderr, "\r\033[K", line)
	}
}

// values are one cell's, round by round.
func (t *table) values(contender, column string) (list []float64) {
	for _, r := range t.cells[cell{contender, column}] {
		list = append(list, r.Value)
	}
	return list
}

// ideals are what the cells of a column could be at best.
func (t *table) ideals(column string) (list []float64) {
	for _, c := range t.contenders {
		for _, r := range t.cells[cell{c, column}] {
			if r.Ideal > 0 {
				list = append(list, r.Ideal)
			}
		}
	}
	return list
}

// allocs are the median allocations a message of a contender's worst column; negative where none were counted.
func (t *table) allocs(contender string) float64 {
	worst := -1.0
	for _, column := range t.columns {
		var list []float64
		for _, r := range t.cells[cell{contender, column}] {
			list = append(list, r.Allocs)
		}
		if len(list) > 0 {
			worst = max(worst, report.Median(list))
		}
	}
	return worst
}

// broken is how often a contender broke order, in all rounds.
func (t *table) broken(contender string) (n uint64) {
	for at, list := range t.cells {
		if at.contender == contender {
			for _, r := range list {
				n += r.Broken
			}
		}
	}
	return n
}

// noise is the widest spread of a cell of the table. What is below one of its unit, a few bytes by a million, is left out.
func (t *table) noise() (widest float64) {
	for at := range t.cells {
		if list := t.values(at.contender, at.column); report.Median(list) >= 1 {
			widest = max(widest, report.Spread(list))
		}
	}
	return widest
}

// promised says where flow broke an order that it promises.
func promised(tables []*table) (failures []error) {
	for _, t := range tables {
		for _, c := range t.contenders {
			if n := t.broken(c); strings.HasPrefix(c, contender.Flow) && n > 0 {
				failures = append(failures, fmt.Errorf("%s: %s broke order %d times", t.name, c, n))
			}
		}
	}
	return failures
}
