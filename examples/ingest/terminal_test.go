package main

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"
)

func TestWithoutATerminalAPlainLineComesNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out, errs bytes.Buffer
		term := newTerminal(&out, &errs)
		start := time.Now()
		stop := term.watch(-1, func() (uint64, []string) { // nothing happens after 5 s
			return min(500, uint64(time.Since(start)/time.Millisecond)/10), []string{"in flight 1"}
		})
		time.Sleep(time.Minute)
		stop()
		want := "200 records  100/s  in flight 1\n400 records  100/s  in flight 1\n500 records  50/s  in flight 1\n"
		if errs.String() != want || out.Len() > 0 {
			t.Errorf("wrote %q, want %q", errs.String(), want)
		}
	})
}

func TestFiguresThatDontFitAreLeftOut(t *testing.T) {
	figures := []string{"13454/20000 records", "9885/s", "in flight 64", "waiting 861", "handler 2.9ms", "wait 120µs"}
	for columns, want := range map[int]string{
		80 - besideBar:  "13454/20000 records  9885/s  in flight 64  waiting 861",
		60 - besideBar:  "13454/20000 records  9885/s  in flight 64",
		40 - besideSpin: "13454/20000 records  9885/s",
		19:              "13454/20000 records",
		18:              "",
		-5:              "",
		200:             "13454/20000 records  9885/s  in flight 64  waiting 861  handler 2.9ms  wait 120µs",
	} {
		if got := fitting(figures, columns); got != want {
			t.Errorf("in %d columns: %q, want %q", columns, got, want)
		}
	}
}

func TestProgressNeverPassesItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out, errs bytes.Buffer
		n := uint64(0)
		stop := newTerminal(&out, &errs).watch(100, func() (uint64, []string) { // some run twice
			n += 80
			return n, nil
		})
		time.Sleep(time.Minute)
		stop()
		if want := "80/100 records  40/s  \n100/100 records  10/s  \n"; errs.String() != want {
			t.Errorf("wrote %q, want %q", errs.String(), want)
		}
	})
}
