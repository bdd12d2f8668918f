package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// report is what came of a soak.
type report struct {
	cfg                               config
	w                                 *watch
	s, control                        *service
	end                               end
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
	early, late := r.heap()
	e := r.w.ends
	number := func(what string, bound, seen int64) row {
		return row{what, humanize.Comma(bound), humanize.Comma(seen), seen <= bound}
	}
	size := func(what string, bound, seen uint64) row {
		return row{what, humanize.IBytes(bound), humanize.IBytes(seen), seen <= bound}
	}
	return append(append([]row{r.keptUp()}, r.unhurt()...),
		number("pending messages of a stream (MaxPending)", maxPending, r.s.pending.high.Load()),
		number("pending messages of all (Stats)", int64(r.cfg.streams)*maxPending, int64(r.w.messages)),
		size("pending bytes of all (MaxPendingBytes, and a message a stream)", uint64(bytes), uint64(r.s.bytes.high.Load())),
		number("handlers at once (Capacity)", int64(r.cfg.capacity()), r.s.running.high.Load()),
		size("live heap, late beside early", early+early/4+heapSlack, late),
		row{"lost, run twice, out of order, or ended wrongly", "0", humanize.Comma(int64(r.w.wrongs)), r.w.wrongs == 0},
		row{"streams that stalled, and that went away", "some", fmt.Sprintf("%d, %d", e.stalls, e.cancelled),
			e.stalls > 0 && e.cancelled > 0},
		row{"Shutdown under load", short(r.cfg.grace), short(r.end.shutdown), r.end.err == nil && r.end.shutdown <= r.cfg.grace},
		number("goroutines afterwards", int64(r.goroutinesBefore), int64(r.goroutinesAfter)),
		size("live heap afterwards", r.heapBefore+heapSlack, r.heapAfter),
	)
}

// keptUp is about the machine: if it does not hold, nothing is shown by unhurt.
func (r *report) keptUp() row {
	alone := r.control.delays.quantile(99)
	return row{"p99 of the control group (the machine keeps up)", short(r.cfg.keepUp()), short(alone), alone <= r.cfg.keepUp()}
}

// unhurt holds the well-behaved streams that share a Flow with stalled ones against the control group, over the same
// seconds. What a stalled stream may cost them is its slots, which it holds while Capacity is shared fairly: so at worst
// a message waits until a handler that does not stand still gives its slot back. Half of the messages may wait for one
// as short as their own, one in a hundred for the longest. There are slots enough, so that even this is rare. Twice the
// control group's delay is allowed because the machine is not quite the same for both: a connection has one reader and
// one writer at each end, and with stalled streams it carries several times as many messages to catch up with whenever
// processors were short. To wait for a stall, in a lane, for a slot or unread, takes seconds.
func (r *report) unhurt() []row {
	quantile := func(q float64, execution time.Duration) row {
		alone, beside := r.control.delays.quantile(q), r.s.delays.quantile(q)
		return row{fmt.Sprintf("p%v of well-behaved streams, by the control group's", q),
			fmt.Sprintf("2 × %s + %s", short(alone), short(execution)), short(beside), beside <= 2*alone+execution}
	}
	// A message that never came to its handler has no delay. How many are due varies a little: streams begin by chance.
	alone, beside := r.control.delays.count(), r.s.delays.count()
	return []row{
		quantile(50, steadyWork), quantile(99, r.cfg.slow),
		{"messages of well-behaved streams, by the control group's", "9/10 of " + humanize.Comma(alone), humanize.Comma(beside),
			alone > 0 && 10*beside >= 9*alone},
	}
}

func (r *report) holds() bool {
	return !slices.ContainsFunc(r.rows(), func(w row) bool { return !w.holds })
}

// String is the report as it is printed.
func (r *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d streams on %d connections for %v, and their control group: "+
		"%s messages, %s streams (%s ended well, %s went away, %s shut down)\n",
		r.cfg.streams, r.cfg.conns, r.cfg.length, humanize.Comma(int64(r.s.handled.Load()+r.control.handled.Load())),
		humanize.Comma(int64(r.w.ends.well+r.w.ends.cancelled+r.w.ends.shut)), humanize.Comma(int64(r.w.ends.well)),
		humanize.Comma(int64(r.w.ends.cancelled)), humanize.Comma(int64(r.w.ends.shut)))
	for _, e := range r.w.errors {
		fmt.Fprintln(&b, "wrong:", e)
	}
	if r.end.err != nil {
		fmt.Fprintln(&b, "Shutdown:", r.end.err)
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
	fmt.Fprintf(&b, "p99.9 of well-behaved streams: %s; of the control group: %s\n",
		short(r.s.delays.quantile(99.9)), short(r.control.delays.quantile(99.9)))
	fmt.Fprintf(&b, "longest Send of a stalled stream: %s; Shutdown and GracefulStop together: %s\n",
		short(r.w.longestSend), short(r.end.all))
	fmt.Fprintf(&b, "live heap over time, MiB:%s\n", r.curve())
	return b.String()
}

// heap is the median live heap in the first and in the last third of the time in which streams of all kinds are under way.
func (r *report) heap() (early, late uint64) {
	h := r.w.heap
	h = h[min(len(h), int(r.cfg.settled()/time.Second)):]
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
