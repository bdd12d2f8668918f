package main

import (
	"context"
	"sync"
)

// group is a group commit as one writes it by hand: handlers hand their rows to a few goroutines, each of which takes what
// has come while its last transaction was under way.
type group struct {
	rows    chan waiting
	workers sync.WaitGroup
}

// waiting is a row whose handler waits for the commit.
type waiting struct {
	row  row
	done chan error
}

func newGroup(workers int, insert func(context.Context, []row) error) *group {
	g := &group{rows: make(chan waiting, keys)}
	for range workers {
		g.workers.Go(func() { g.work(insert) })
	}
	return g
}

// insert returns when the row is committed.
func (g *group) insert(ctx context.Context, r row) error {
	w := waiting{r, make(chan error, 1)}
	select {
	case g.rows <- w:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return <-w.done
}

func (g *group) work(insert func(context.Context, []row) error) {
	var rows []row
	var done []chan error
	for w := range g.rows {
		rows, done = append(rows[:0], w.row), append(done[:0], w.done)
		for more := true; more && len(rows) < largest; {
			select {
			case w, more = <-g.rows:
				if more {
					rows, done = append(rows, w.row), append(done, w.done)
				}
			default:
				more = false
			}
		}
		err := insert(context.Background(), rows)
		for _, d := range done {
			d <- err
		}
	}
}

// close is called when no handler runs any more.
func (g *group) close() {
	close(g.rows)
	g.workers.Wait()
}
