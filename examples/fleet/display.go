package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// display shows the fleet: in a terminal bars that grow, below what has happened; elsewhere a line now and then.
type display struct {
	fleet *fleet
	began time.Time

	bars                  *mpb.Progress // nil without a terminal
	states, stored, count *mpb.Bar

	mu      sync.Mutex
	printed time.Time // the last line without a terminal
	last    counts
}

func newDisplay(f *fleet) *display {
	d := &display{fleet: f, began: time.Now()}
	fmt.Printf("%d gateways, %d workers, %d senders; %d partitions, %d messages\n",
		gateways, workers, senders, partitions, f.each*senders)
	if !term.IsTerminal(int(os.Stdout.Fd())) {
		return d
	}
	d.bars = mpb.New(mpb.WithWidth(44))
	total := int64(f.each * senders)
	bar := func(name string) *mpb.Bar {
		return d.bars.New(total, mpb.BarStyle(), mpb.PrependDecorators(decor.Name(name, decor.WC{W: 8, C: decor.DindentRight})),
			mpb.AppendDecorators(decor.CountersNoUnit("%d of %d")))
	}
	d.states = d.bars.New(0, mpb.NopStyle(), mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return d.line() })))
	d.stored, d.count = bar("stored"), bar("done")
	return d
}

// line shows how each process is, and what was repeated.
func (d *display) line() string {
	var b strings.Builder
	if len(d.fleet.servers) > 0 {
		fmt.Fprintf(&b, "servers %s  ", signs(d.fleet.servers))
	}
	d.mu.Lock()
	repeats := d.last.refused
	d.mu.Unlock()
	fmt.Fprintf(&b, "gateways %s  workers %s  senders %s  repeats %d",
		signs(d.fleet.gateways), signs(d.fleet.workers), signs(d.fleet.senders), repeats)
	return b.String()
}

func signs(list []*process) string {
	var b strings.Builder
	for _, p := range list {
		s, _ := p.now()
		b.WriteString(string(s))
	}
	return b.String()
}

// event shows that something happens.
func (d *display) event(what string) {
	line := fmt.Sprintf("%5.1f s  %s\n", time.Since(d.began).Seconds(), what)
	var out io.Writer = os.Stdout
	if d.bars != nil {
		out = d.bars
	}
	_, _ = io.WriteString(out, line) // what can be done about a terminal that is gone?
}

// update shows how far it is.
func (d *display) update(stored int, c counts) {
	d.mu.Lock()
	d.last = c
	d.mu.Unlock()
	if d.bars == nil {
		if time.Since(d.printed) > 2*time.Second {
			d.printed = time.Now()
			fmt.Printf("%5.1f s  %s: stored %d, done %d\n", time.Since(d.began).Seconds(), d.line(), stored, c.applied)
		}
		return
	}
	if stored > 0 {
		d.stored.SetCurrent(int64(stored))
	}
	d.count.SetCurrent(int64(c.applied))
}

// close leaves the last picture where it is.
func (d *display) close() {
	if d.bars == nil {
		return
	}
	for _, b := range []*mpb.Bar{d.states, d.stored, d.count} {
		b.Abort(false)
	}
	d.bars.Wait()
}
