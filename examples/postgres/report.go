package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// newReport is the table at the end.
func newReport(st *store, letters int64, took time.Duration) string {
	st.mu.Lock()
	defer st.mu.Unlock()
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("stored", "%d in %v: %.0f rows/s", st.stored, took.Round(time.Millisecond), float64(st.stored)/took.Seconds())
	row("transactions", "%d, of which %d row by row", len(st.sizes), st.byRow)
	if n := len(st.sizes); n > 0 {
		row("rows in one", "%d on average, %d at most", st.stored/n, slices.Max(st.sizes))
	}
	row("dead letters", "%d", letters)
	_ = t.Flush() // to a strings.Builder
	return b.String()
}

// showBar shows how many rows are stored, if stderr is a terminal, until the returned function is called. It takes less
// than 80 columns.
func showBar(stderr io.Writer, total int, st *store) (end func()) {
	f, ok := stderr.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func() {}
	}
	bar := progressbar.NewOptions(total, progressbar.OptionSetWriter(f), progressbar.OptionSetWidth(20),
		progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("rows"),
		progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false), progressbar.OptionClearOnFinish(),
		progressbar.OptionUseANSICodes(true))
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = bar.Set(st.count())
			case <-done:
				_ = bar.Clear()
				return
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}
