package main

import (
	"errors"
	"slices"
	"strings"
)

// row is one question: a table of contenders by columns.
type row struct {
	name       string
	title      string
	unit       string
	base       string // the contender that the others are divided by
	target     string
	note       func(*table) string // a line below the table; may be nil
	columns    []string
	contenders []string
	measure    func(j job) (result, error)
}

// job is one measurement, in a process of its own.
type job struct {
	Row, Column, Contender string
	Quick                  bool
}

// size is how many messages to run, of n in a full measurement.
func (j job) size(n int) int {
	if j.Quick {
		return n / 10
	}
	return n
}

// result is what one measurement gives. Value is in the row's unit.
type result struct {
	Value  float64
	Ideal  float64 // what could be reached at best; 0 where nothing says
	Allocs float64 // per message; negative where they were not counted
	Broken uint64  // how often a key's order was broken
}

// errNot is returned where a contender can't do what the column asks.
var errNot = errors.New("not measured")

// rows are the numbered points that the library's speed is held to.
var rows = slices.Concat([]*row{
	keysRow, fifoRow, cpuRow, sleepRow, slowRow, pacedRow, makespanRow, grpcRow, sparseRow, streamsRow, idleRow, keyMemoryRow,
	optionsRow, pingRow,
}, cliffRows())

// chosen says whether a comma-separated list names s; an empty one names all.
func chosen(list, s string) bool {
	return list == "" || slices.Contains(strings.Split(list, ","), s)
}

// plain is a name without commas and spaces, as it stands in a list.
func plain(s string) string { return strings.NewReplacer(",", "", " ", "").Replace(s) }

func rowNamed(name string) *row {
	for _, r := range rows {
		if r.name == name {
			return r
		}
	}
	return nil
}
