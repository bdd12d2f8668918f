package modeltest_test

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

// runConcurrently runs a script without letting the simulation come to rest between the moves, so that they meet: a message is
// received while another ends, or while its stream does. No oracle can say what must come of that. But the rules stand
// (see simulation.handle), everything ends, and the numbers agree.
func runConcurrently(t *testing.T, s script) string {
	wrong := inBubble(t, s, func() string { return newSimulation(s).runConcurrently() })
	if wrong != "" {
		wrong = "run concurrently: " + wrong
	}
	return wrong
}

func (w *simulation) runConcurrently() (wrong string) {
	defer close(w.freed)
	w.concurrent = true
	w.locked(func() { w.open() })
	for _, m := range w.Moves {
		if m.Do == doAdvance {
			time.Sleep(time.Duration(m.N) * tick)
		} else {
			w.do(m)
		}
		switch m.N % 3 { // as good a reason as any, and it shrinks
		case 1:
			runtime.Gosched()
		case 2:
			time.Sleep(time.Nanosecond) // others linger as long: see simulation.linger
		}
		w.push()
	}
	for i := range w.sources {
		w.do(move{Do: doEOF, Stream: i})
	}
	for range 1000 {
		w.push()
		time.Sleep(time.Minute)
		synctest.Wait()
		if w.do(move{Do: doEnd}) == nil && !w.push() {
			break
		}
	}
	synctest.Wait()
	w.locked(func() { wrong = w.numbers() })
	if wrong != "" {
		w.abandon()
	}
	_ = w.f.Close()
	for _, end := range w.shutdown {
		end()
	}
	return wrong
}

func (w *simulation) locked(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

// push gives the sources what was sent, as fast as they take it.
func (w *simulation) push() (more bool) {
	w.locked(func() {
		for _, src := range w.sources {
			for len(src.sent) > 0 && len(src.items) < cap(src.items) {
				src.items <- src.sent[0]
				src.sent = src.sent[1:]
				more = true
			}
		}
	})
	return more
}

// numbers says what does not add up after everything has ended.
func (w *simulation) numbers() string {
	var total flow.Summary
	for _, src := range w.sources {
		if src.result == nil {
			w.broken("stream %d: Run has not returned, and nothing is left to wait for", src.n)
			continue
		}
		s := src.result.sum
		committed := s.Received
		if len(s.Unsettled) > 0 {
			committed = s.Unsettled[0] - 1
		}
		unsettled := uint64(len(s.Unsettled))
		switch {
		case s.Received != s.Succeeded+s.Failed+s.Rejected+s.Dropped, s.Committed != committed,
			s.Succeeded != src.succeeded, s.Succeeded+src.skipped+unsettled != s.Received,
			s.Retried+src.began != src.attempts:
			w.broken("stream %d: %+v, want %d succeeded, %d skipped, %d attempts of %d messages",
				src.n, s, src.succeeded, src.skipped, src.attempts, src.began)
		case src.result.err == nil && (unsettled > 0 || !src.final):
			w.broken("stream %d: ended well with %+v", src.n, s)
		}
		total.Received += s.Received
	}
	st := w.f.Stats()
	if st.Streams != 0 || st.InFlight != 0 || st.Waiting != 0 || st.ActiveKeys != 0 || st.Total.Received != total.Received {
		w.broken("Stats of what has ended: %+v", st)
	}
	return w.verdict()
}
