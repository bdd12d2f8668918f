package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// report is the table at the end.
type report struct {
	text strings.Builder
	tab  *tabwriter.Writer
}

func newReport() *report {
	r := new(report)
	r.tab = tabwriter.NewWriter(&r.text, 0, 0, 2, ' ', 0)
	return r
}

func (r *report) row(cells ...any) {
	for _, cell := range cells {
		fmt.Fprintf(r.tab, "%v\t", cell)
	}
	fmt.Fprintln(r.tab)
}

// client says what was uploaded.
func (r *report) client(c *client, in *input, took time.Duration) {
	r.row("records", fmt.Sprintf("%d of %d keys in %v: %.0f/s", in.records, len(in.replay), short(took),
		float64(in.records)/took.Seconds()))
	if in.bad > 0 {
		r.row("bad lines", in.bad)
	}
	st := c.stats()
	r.row("streams", fmt.Sprintf("%d, %d records sent again", st.Streams, st.Resent))
}

// server says how the records ran.
func (r *report) server(m *metrics) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.batches.TotalCount(); n > 0 {
		r.row("batches", fmt.Sprintf("%d of %d records (p50), at most %d", n, m.batches.ValueAtQuantile(50), m.batches.Max()))
	}
	for _, n := range []struct {
		name  string
		count uint64
	}{{"retried", m.retried}, {"refused", m.refused}, {"beyond capacity", m.pressure}} {
		if n.count > 0 {
			r.row(n.name, n.count)
		}
	}
	_ = r.tab.Flush()
	r.text.WriteByte('\n')
	names, groups := []string{"all keys"}, []*group{&m.others}
	if m.slow != "" {
		names, groups = []string{m.slow, "all other keys"}, []*group{&m.own, &m.others}
	}
	line := func(what string, of func(*group) any) {
		cells := []any{what}
		for _, g := range groups {
			cells = append(cells, of(g))
		}
		r.row(cells...)
	}
	quantiles := func(h *hdrhistogram.Histogram) any {
		return fmt.Sprintf("%v, %v", short(quantile(h, 50)), short(quantile(h, 99)))
	}
	header := []any{""}
	for _, name := range names {
		header = append(header, name)
	}
	r.row(header...)
	line("records stored", func(g *group) any { return g.stored })
	line("the last one after", func(g *group) any { return short(g.last) })
	line("wait p50, p99", func(g *group) any { return quantiles(g.waited) })
	line("handler p50, p99", func(g *group) any { return quantiles(g.handled) })
}

// String returns the table without a line end.
func (r *report) String() string {
	_ = r.tab.Flush()
	lines := strings.Split(strings.TrimRight(r.text.String(), " \n"), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}
