package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/flow"
)

func openedSQLite(t *testing.T) sink {
	t.Helper()
	s, closed, err := databases[0].opened(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closed(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestCheckFindsWhatIsOutOfOrder(t *testing.T) {
	s := openedSQLite(t)
	for _, rows := range [][]row{
		{{"a", 1, []byte("x")}, {"b", 1, []byte("x")}, {"a", 2, []byte("x")}}, {{"b", 3, []byte("x")}},
	} {
		if err := s.insert(t.Context(), rows); err != nil {
			t.Fatal(err)
		}
	}
	if stored, disordered, err := s.check(t.Context()); stored != 4 || disordered != 0 || err != nil {
		t.Errorf("%d stored, %d disordered, %v; want 4 and 0", stored, disordered, err)
	}
	if err := s.insert(t.Context(), []row{{"b", 2, []byte("x")}, {"a", 2, []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	if stored, disordered, err := s.check(t.Context()); stored != 6 || disordered != 2 || err != nil {
		t.Errorf("%d stored, %d disordered, %v; want 6 and 2", stored, disordered, err)
	}
}

func TestInsertIsOneTransaction(t *testing.T) {
	s := openedSQLite(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.insert(ctx, []row{{"a", 1, []byte("x")}, {"a", 2, []byte("x")}}); err == nil {
		t.Error("it was done after its context's end")
	}
	if stored, _, err := s.check(t.Context()); stored != 0 || err != nil {
		t.Errorf("%d rows are stored, %v; want none", stored, err)
	}
}

func TestGroupGivesEachItsAnswer(t *testing.T) {
	refused := errors.New("refused")
	var mu sync.Mutex
	stored := 0
	g := newGroup(2, func(_ context.Context, rows []row) error {
		if len(rows) > largest {
			t.Errorf("%d rows", len(rows))
		}
		mu.Lock()
		defer mu.Unlock()
		stored += len(rows)
		if rows[0].key == "bad" {
			return refused
		}
		return nil
	})
	var all sync.WaitGroup
	for i := range 1000 {
		all.Go(func() {
			if err := g.insert(t.Context(), row{key: fmt.Sprint(i)}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := g.insert(t.Context(), row{key: "bad"}); !errors.Is(err, refused) {
		t.Errorf("got %v, want what insert returned", err)
	}
	g.close()
	if stored != 1001 {
		t.Errorf("%d rows were inserted, want 1001", stored)
	}
}

func TestEachWayIsMeasured(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for _, l := range loads {
		for _, w := range ways {
			r, err := measure(t.Context(), databases[1], l, w, 300*time.Millisecond)
			if err != nil {
				t.Fatalf("%s, %s: %v", l.name, w.name, err)
			}
			if r.rate <= 0 || r.p50 <= 0 || r.p99 < r.p50 || r.size < 1 || r.size > largest || !w.many && r.size != 1 {
				t.Errorf("%s, %s: %+v", l.name, w.name, r)
			}
		}
	}
}

func TestFailureOfTheDatabaseIsReported(t *testing.T) {
	gone := errors.New("the disk is gone")
	d := &database{"broken", 1, 1, func(context.Context, string, int) (sink, error) { return &brokenSink{gone}, nil }}
	for _, w := range ways {
		if _, err := measure(t.Context(), d, loads[0], w, 100*time.Millisecond); err == nil || !strings.Contains(err.Error(), gone.Error()) {
			t.Errorf("%s: %v, want %v", w.name, err, gone)
		}
	}
}

// brokenSink stores nothing.
type brokenSink struct{ err error }

func (s *brokenSink) insert(context.Context, []row) error   { return flow.Permanent(s.err) }
func (*brokenSink) check(context.Context) (int, int, error) { return 0, 0, nil }
func (*brokenSink) close() error                            { return nil }

func TestReportGivesMediansAndRatios(t *testing.T) {
	var tables []*table
	for _, l := range loads {
		tb := newTable(databases[0], l)
		for round := range 3 {
			slower := 1 / float64(1+round) // the machine, for all ways
			for i, r := range []result{{1000, 8, 9, 1, 300}, {20_000, 2, 9, 99, 30}, {50_000, 1, 9, 256, 20}} {
				r.rate *= slower
				tb.results[ways[i]] = append(tb.results[ways[i]], r)
			}
		}
		tables = append(tables, tb)
	}
	text := markdown(tables, "a machine", 3)
	for _, want := range []string{
		"| one by one | 500 | 8.00 | 9.00 | 1.00 | 300 |\n",
		"| flow.NewBatch | 25,000 (50.0×) | 1.00 (0.12×) | 9.00 | 256 | 20.0 |\n",
		"flow.NewBatch by hand-written: 2.50×.", "a machine", "To reach: flow.NewBatch at least 40 ×",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	for _, want := range []string{
		"| SQLite FULL, one FIFO stream | 500 | 10,000 (20.0×) | 25,000 (50.0×) |\n", "SQLite FULL 1.00 ms instead of 8.00",
	} {
		if got := digest(tables, "a machine", 3); !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
}

func TestWrongFlagsAreErrors(t *testing.T) {
	for _, args := range []string{"-rounds 0", "-window 0s", "-databases Oracle", "all"} {
		if err := run(t.Context(), strings.Fields(args)); err == nil {
			t.Errorf("%s: no error", args)
		}
	}
}
