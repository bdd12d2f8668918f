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
	if n := c.resumed.Load(); n > 0 {
		r.row("resumed", fmt.Sprintf("%dx, %d records sent again", n, c.sent.Load()-int64(in.records)))
	}
}

// server says how the records ran.
func (r *report) server(m *metrics) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.row("streams", m.streams)
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
	r.row("", "records", "stored after", "waited p50", "p99", "handler p50", "p99")
	if m.slow != "" {
		r.group(m.slow, &m.own)
		r.group("all other keys", &m.others)
		return
	}
	r.group("all keys", &m.others)
}

func (r *report) group(name string, g *group) {
	q := func(h *hdrhistogram.Histogram, at float64) time.Duration { return short(quantile(h, at)) }
	r.row(name, g.stored, short(g.last),
		q(g.waited, 50), q(g.waited, 99), q(g.handled, 50), q(g.handled, 99))
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
