package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// report is what came of a part.
type report struct {
	part              part
	took              time.Duration
	effects, distinct int
	unsaved           int
	streams, resent   uint64
	counts            counts
}

// row is a line of the table: a promise, what it comes to, and what was seen.
type row struct {
	what, bound, seen string
	kept              bool
}

func (r *report) sent() int { return r.part.messages * r.part.sessions }

func (r *report) promises() []row {
	n := &r.counts
	number := func(what string, bound, seen int64) row {
		return row{what, humanize.Comma(bound), humanize.Comma(seen), seen <= bound}
	}
	exactly := func(what string, want, seen int) row {
		return row{what, humanize.Comma(int64(want)), humanize.Comma(int64(seen)), seen == want}
	}
	rows := []row{exactly("messages with an effect", r.sent(), r.distinct)}
	if r.part.kind == withOnce {
		rows = append(rows, exactly("effects", r.sent(), r.effects))
	} else {
		bound := "runs beyond messages, by those settled since the last Save at a kill, and running at a cut"
		if r.part.kind == inMemory {
			bound = "runs beyond messages, by those settled since the client's last answer at a kill, and running at a cut"
		}
		rows = append(rows, number(bound, int64(r.unsaved+n.cutRunning), int64(r.effects-r.distinct)))
	}
	rows = append(rows,
		exactly("out of order, acknowledged and absent, under another number, or ended wrongly", 0, n.wrongs),
		number("messages that a sender keeps (MaxBuffered)", maxBuffered, int64(n.buffered)),
		number("bytes of them (MaxBufferedBytes)", maxBufferedBytes, n.bufferedBytes),
		number("bytes pending in a server (twice MaxPendingBytes, and a message a stream)", pendingBound, n.pending),
	)
	return rows
}

// disturbances are what has to have happened for the rest to show anything.
func (r *report) disturbances() (rows []row) {
	some := func(what string, seen int) {
		rows = append(rows, row{what, "some", humanize.Comma(int64(seen)), seen > 0})
	}
	for how, seen := range r.counts.cuts {
		some("connections cut by "+cut(how).String(), seen)
	}
	some("servers killed", r.counts.serversKilled)
	if r.part.kind != inMemory {
		some("senders killed", r.counts.sendersKilled)
		some("senders that ended since another one had claimed their session", r.counts.moved)
	}
	if r.part.kind == withOnce {
		some("servers stopped, deposed by another one and woken up", r.counts.deposed)
	}
	return rows
}

func holds(rows []row) bool { return !slices.ContainsFunc(rows, func(w row) bool { return !w.kept }) }

// kept reports whether all promises were kept while everything happened that could break them.
func (r *report) kept() bool { return holds(r.promises()) && holds(r.disturbances()) }

// String is the report as it is printed.
func (r *report) String() string {
	var b strings.Builder
	n := &r.counts
	fmt.Fprintf(&b, "%v: %s messages of %d sessions, %s keys each, in %s: %s a second\n", r.part.kind, humanize.Comma(int64(r.sent())),
		r.part.sessions, humanize.Comma(int64(r.part.keys)), short(r.took), humanize.Comma(int64(float64(r.sent())/r.took.Seconds())))
	for _, w := range n.first {
		fmt.Fprintln(&b, "wrong:", w)
	}
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tpromised\tseen\tkept")
	for _, w := range append(r.promises(), r.disturbances()...) {
		kept := "yes"
		if !w.kept {
			kept = "NO"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", w.what, w.bound, w.seen, kept)
	}
	_ = t.Flush() // to a Builder
	quantile := func(q float64) string { return short(time.Duration(n.cutOff.ValueAtQuantile(q)) * time.Microsecond) }
	fmt.Fprintf(&b, "from a cut or a kill to the next stream's header: p50 %s, p99 %s, of %s; streams %s, messages sent again %s\n",
		quantile(50), quantile(99), humanize.Comma(n.cutOff.TotalCount()), humanize.Comma(int64(r.streams)), humanize.Comma(int64(r.resent)))
	fmt.Fprintf(&b, "what senders were told, compared with what is stored: %s times; messages refused to a deposed server or stream: %s; "+
		"calls of Save that failed: %d\n", humanize.Comma(int64(n.samples)), humanize.Comma(int64(n.refused)), n.saveFailed)
	return b.String()
}

// short is d with as many digits as say something.
func short(d time.Duration) string {
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.String()
}
