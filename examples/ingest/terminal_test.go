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
		stop := term.watch(-1, func() (uint64, string) { // nothing happens after 5 s
			return min(500, uint64(time.Since(start)/time.Millisecond)/10), "in flight 1"
		})
		time.Sleep(time.Minute)
		stop()
		want := "200 records  100/s  in flight 1\n400 records  100/s  in flight 1\n500 records  50/s  in flight 1\n"
		if errs.String() != want || out.Len() > 0 {
			t.Errorf("wrote %q, want %q", errs.String(), want)
		}
	})
}
