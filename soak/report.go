package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/dustin/go-humanize"
)

// report is what came of a soak.
type report struct {
	cfg                               config
	w                                 *watch
	s                                 *service
	shutdown, stop                    time.Duration
	shutdownErr                       error
	goroutinesBefore, goroutinesAfter int
	heapBefore, heapAfter             uint64
}

// row is a line of the table: a bound, and what was seen beside it.
type row struct {
	what, bound, seen string
	holds             bool
}

// heapSlack is how much live heap may differ without meaning anything: buffers that gRPC keeps to use again.
const heapSlack = 16 << 20

func (r *report) rows() []row {
	bytes := r.cfg.maxPendingBytes() + int64(r.cfg.streams)*(4<<10+16) // at most one message a stream above
	before, with := quantile(r.w.calm, 99), quantile(r.w.stalled, 99)
	early, late := r.heap()
	e := r.w.ends
	number := func(what string, bound, seen int64) row {
		return row{what, humanize.Comma(bound), humanize.Comma(seen), seen <= bound}
	}
	size := func(what string, bound, seen uint64) row {
		return row{what, humanize.IBytes(bound), humanize.IBytes(seen), seen <= bound}
	}
	return []row{
		number("pending messages of a stream (MaxPending)", maxPending, r.s.pending.high.Load()),
		number("pending messages of all (Stats)", int64(r.cfg.streams)*maxPending, int64(r.w.messages)),
		size("pending bytes of all (MaxPendingBytes, and a message a stream)", uint64(bytes), uint64(r.s.bytes.high.Load())),
		number("handlers at once (Capacity)", int64(r.cfg.capacity()), r.s.running.high.Load()),
		size("live heap, late beside early", early+early/4+heapSlack, late),
		{"p99 of well-behaved streams without stalls (the machine keeps up)", short(r.cfg.keepUp), short(before),
			r.w.calm.TotalCount() > 0 && before <= r.cfg.keepUp},
		{"p99 of well-behaved streams with stalls, beside that", short(before) + " + " + short(r.cfg.hurt), short(with),
			r.w.stalled.TotalCount() > 0 && with <= before+r.cfg.hurt},
		{"lost, run twice, out of order, or ended wrongly", "0", humanize.Comma(int64(r.w.wrongs)), r.w.wrongs == 0},
		{"streams that stalled, and that went away", "some", fmt.Sprintf("%d, %d", e.stalls, e.cancelled),
			e.stalls > 0 && e.cancelled > 0},
		{"Shutdown under load", short(r.cfg.grace), short(r.shutdown), r.shutdownErr == nil && r.shutdown <= r.cfg.grace},
		number("goroutines afterwards", int64(r.goroutinesBefore), int64(r.goroutinesAfter)),
		size("live heap afterwards", r.heapBefore+heapSlack, r.heapAfter),
	}
}

func (r *report) holds() bool {
	return !slices.ContainsFunc(r.rows(), func(w row) bool { return !w.holds })
}

// String is the report as it is printed.
func (r *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d streams on %d connections for %v: %s messages, %s streams (%s ended well, %s went away, %s shut down)\n",
		r.cfg.streams, r.cfg.conns, r.cfg.length, humanize.Comma(int64(r.s.handled.Load())),
		humanize.Comma(int64(r.w.ends.well+r.w.ends.cancelled+r.w.ends.shut)), humanize.Comma(int64(r.w.ends.well)),
		humanize.Comma(int64(r.w.ends.cancelled)), humanize.Comma(int64(r.w.ends.shut)))
	for _, e := range r.w.errors {
		fmt.Fprintln(&b, "wrong:", e)
	}
	if r.shutdownErr != nil {
		fmt.Fprintln(&b, "Shutdown:", r.shutdownErr)
	}
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tbound\tseen\tholds")
	for _, w := range r.rows() {
		holds := "yes"
		if !w.holds {
			holds = "NO"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", w.what, w.bound, w.seen, holds)
	}
	_ = t.Flush() // to a Builder
	fmt.Fprintf(&b, "delay of well-behaved streams without stalls: p50 %s, p99.9 %s; with: p50 %s, p99.9 %s\n",
		short(quantile(r.w.calm, 50)), short(quantile(r.w.calm, 99.9)),
		short(quantile(r.w.stalled, 50)), short(quantile(r.w.stalled, 99.9)))
	fmt.Fprintf(&b, "longest Send of a stalled stream: %s; Shutdown and GracefulStop together: %s\n",
		short(r.w.longestSend), short(r.stop))
	fmt.Fprintf(&b, "live heap over time, MiB:%s\n", r.curve())
	return b.String()
}

// heap is the median live heap in the first and in the last third of the time with stalls.
func (r *report) heap() (early, late uint64) {
	h := r.w.heap
	h = h[min(len(h), int(r.w.stalledFrom/time.Second)):]
	q := len(h) / 3
	return median(h[:q]), median(h[len(h)-q:])
}

func median(h []uint64) uint64 {
	if len(h) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(h))[len(h)/2]
}

// curve is some twenty points of the heap's size over time.
func (r *report) curve() string {
	var b strings.Builder
	for i := 0; i < len(r.w.heap); i += max(1, len(r.w.heap)/20) {
		fmt.Fprintf(&b, " %d", r.w.heap[i]>>20)
	}
	return b.String()
}

func quantile(h *hdrhistogram.Histogram, q float64) time.Duration {
	return time.Duration(h.ValueAtQuantile(q)) * time.Microsecond
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
