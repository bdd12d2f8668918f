package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// terminal is where the program speaks: results go to out, and what happens on the way goes to err. If that is a
// terminal it has a live line at its bottom, and if not a plain line now and then.
type terminal struct {
	out  io.Writer
	err  io.Writer
	live bool

	mu  sync.Mutex
	bar *progressbar.ProgressBar // nil: no live line

	besides int // columns of the live line that are not for words
}

const (
	liveEvery  = 100 * time.Millisecond
	plainEvery = 2 * time.Second

	barWidth   = 10
	besideBar  = barWidth + 11 // columns that it and its percentage take
	besideSpin = 4
	wide       = 100 // columns: a narrower terminal has no room for a bar beside the numbers
)

func newTerminal(stdout, stderr io.Writer) *terminal {
	f, ok := stderr.(*os.File)
	return &terminal{out: stdout, err: stderr, live: ok && term.IsTerminal(int(f.Fd()))}
}

// note writes a line about what happens.
func (t *terminal) note(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clearLocked()
	fmt.Fprintf(t.err, format+"\n", args...)
}

// print writes a line of the result.
func (t *terminal) print(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clearLocked()
	fmt.Fprintf(t.out, format+"\n", args...)
}

func (t *terminal) clearLocked() {
	if t.bar != nil {
		_ = t.bar.Clear()
	}
}

// progress is what the live line shows: how many records, and words about the rest.
type progress func() (records uint64, rest string)

// watch shows p until the returned function is called. total is -1 when it is not known. Nothing is written while
// nothing changes, unless it is a live line.
func (t *terminal) watch(total int, p progress) (stop func()) {
	every := plainEvery
	if t.live {
		every = liveEvery
		t.mu.Lock()
		size := total
		t.besides = besideBar
		if total <= 0 || t.width() < wide {
			size, t.besides = -1, besideSpin
		}
		t.bar = progressbar.NewOptions(size,
			progressbar.OptionSetWriter(t.err), progressbar.OptionSetWidth(barWidth),
			progressbar.OptionShowDescriptionAtLineEnd(), progressbar.OptionSetPredictTime(false),
			progressbar.OptionSetElapsedTime(false), progressbar.OptionSpinnerType(14),
			progressbar.OptionSetRenderBlankState(true))
		t.mu.Unlock()
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		last, rate := uint64(0), 0.0
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			n, rest := p()
			now := float64(n-last) / every.Seconds()
			if t.live { // smooth enough to be read
				rate += (now - rate) / 5
				t.render(n, fmt.Sprintf("%s  %.0f/s  %s", of(n, total), rate, rest))
			} else if n != last {
				t.note("%s  %.0f/s  %s", of(n, total), now, rest)
			}
			last = n
		}
	}()
	return func() {
		close(done)
		<-ended
		t.mu.Lock()
		defer t.mu.Unlock()
		t.clearLocked()
		t.bar = nil
	}
}

func of(n uint64, total int) string {
	if total < 0 {
		return fmt.Sprintf("%d records", n)
	}
	return fmt.Sprintf("%d/%d records", n, total)
}

// render draws the live line. A line that wraps can't be cleared, so what doesn't fit is cut off.
func (t *terminal) render(n uint64, words string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bar.Describe(words[:max(0, min(len(words), t.width()-t.besides))])
	_ = t.bar.Set64(int64(n))
}

// width is the terminal's, in columns.
func (t *terminal) width() int {
	if f, ok := t.err.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			return width
		}
	}
	return wide
}
