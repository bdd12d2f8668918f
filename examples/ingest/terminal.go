package main

import (
	"fmt"
	"io"
	"os"
	"strings"
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

	barWidth   = 8
	besideBar  = barWidth + 11 // columns that it and its percentage take
	besideSpin = 4
	narrow     = 50 // columns: a narrower terminal has no room for a bar beside the count
	usual      = 80 // columns, where the terminal does not say
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

// progress is what the live line shows: how many records, and figures about the rest, what matters most first.
type progress func() (records uint64, rest []string)

// watch shows p until the returned function is called. total is -1 when it is not known. Nothing is written while
// nothing changes, unless it is a live line.
func (t *terminal) watch(total int, p progress) (stop func()) {
	every := plainEvery
	if t.live {
		every = liveEvery
		t.mu.Lock()
		size := total
		t.besides = besideBar
		if total <= 0 || t.width() < narrow {
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
			if total >= 0 { // a record that was cut off and runs again counts once
				n = min(n, uint64(total))
			}
			now := float64(n-last) / every.Seconds()
			if t.live { // smooth enough to be read
				rate += (now - rate) / 5
				t.render(n, append([]string{of(n, total), fmt.Sprintf("%.0f/s", rate)}, rest...))
			} else if n != last {
				t.note("%s  %.0f/s  %s", of(n, total), now, strings.Join(rest, "  "))
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

// render draws the live line. A line that wraps can't be cleared, so figures that don't fit are left out.
func (t *terminal) render(n uint64, figures []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bar.Describe(fitting(figures, t.width()-t.besides))
	_ = t.bar.Set64(int64(n))
}

// fitting joins as many of the first figures as there are columns for.
func fitting(figures []string, columns int) string {
	line := ""
	for i, f := range figures {
		if i > 0 {
			f = "  " + f
		}
		if len(line)+len([]rune(f)) > columns {
			break
		}
		line += f
	}
	return line
}

// width is the terminal's, in columns.
func (t *terminal) width() int {
	if f, ok := t.err.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			return width
		}
	}
	return usual
}
