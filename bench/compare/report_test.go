package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/flow/bench/internal/contender"
)

// measured is a table of the first row as three rounds might have filled it.
func measured() *table {
	t := plan("keys", "1024", "flow,hash64,errgroup")[0]
	for round := range 3 {
		slower := float64(1 + round) // the machine, for all contenders
		put := func(c string, v float64, broken uint64) {
			at := cell{c, "1,024"}
			t.cells[at] = append(t.cells[at], result{Value: v * slower, Broken: broken})
		}
		put(contender.Hash, 100, 0)
		put(contender.Flow, 50, 0)
		put("errgroup", 400, 7)
	}
	return t
}

func TestReportGivesMediansAndRatios(t *testing.T) {
	text := markdown([]*table{measured()}, "a machine", 3, false)
	for _, want := range []string{
		"| hash64 | 200 | 0.00 |\n", "| flow | 100 (0.50×) | 0.00 |\n", "a machine", "50 % of its median",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}

func TestReportSaysWhoBreaksOrder(t *testing.T) {
	text := markdown([]*table{measured()}, "a machine", 3, false)
	if want := "| errgroup (breaks order: 21 times) |"; !strings.Contains(text, want) {
		t.Errorf("%q is not in\n%s", want, text)
	}
}

func TestFlowMustNotBreakOrder(t *testing.T) {
	tb := measured()
	if failures := promised([]*table{tb}); len(failures) > 0 {
		t.Errorf("others may break it: %v", failures)
	}
	tb.cells[cell{contender.Flow, "1,024"}][0].Broken = 1
	if failures := promised([]*table{tb}); len(failures) != 1 {
		t.Errorf("got %v, want one failure", failures)
	}
}

func TestPlanPicksByPlainNames(t *testing.T) {
	tables := plan("keys,ping", "1024,1key", "flow")
	if len(tables) != 2 || len(tables[0].columns) != 2 || len(tables[0].contenders) != 2 {
		t.Errorf("got %d tables, the first with %v of %v", len(tables), tables[0].columns, tables[0].contenders)
	}
	if tables := plan("nothing", "", ""); len(tables) > 0 {
		t.Errorf("a row that there is not: %d tables", len(tables))
	}
}

func TestPlotIsAnSVG(t *testing.T) {
	file := filepath.Join(t.TempDir(), plotName)
	if err := plotTo([]*table{measured()}, file); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(text), "<svg") || !strings.Contains(string(text), "hash64") {
		t.Errorf("no plot: %v, %.200s", err, text)
	}
}
