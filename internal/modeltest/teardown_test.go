package modeltest_test

import (
	"fmt"

	"example.com/flow"
)

// teardown ends all streams, has one more use the whole Flow, and closes it: nothing may be left then.
func (w *simulation) teardown() string {
	for i := range w.sources {
		if wrong := w.make(move{Do: doEOF, Stream: i}); wrong != "" {
			return "at the EOF of all: " + wrong
		}
	}
	if wrong := w.finish(); wrong != "" {
		return "after the EOF of all: " + wrong
	}
	if n := len(w.o.underWay()); n > 0 {
		return fmt.Sprint(n, " streams have not ended")
	}
	for _, m := range w.lastStream() {
		if wrong := w.make(m); wrong != "" {
			return "of a last stream: " + wrong
		}
	}
	if wrong := w.finish(); wrong != "" {
		return "after a last stream: " + wrong
	}
	if wrong := w.make(move{Do: doClose}); wrong != "" {
		return "at the Close: " + wrong
	}
	return w.make(move{Do: doLetGo})
}

// lastStream finds out whether a slot, a place or a byte is missing, or one too many: its messages are of more keys than
// there are slots, and more of one key than may wait in its lane. The first leaves room for one byte, which the second
// takes.
func (w *simulation) lastStream() []move {
	bytes := max(1, int(w.Options.MaxPendingBytes))
	moves := []move{
		{Do: doOpen, Stream: -1},
		{Do: doSend, Stream: -1, Bytes: bytes - 1},
		{Do: doSend, Stream: -1, Key: "a", Bytes: 1},
		{Do: doSend, Stream: -1, Key: "b"},
	}
	for range 4 {
		moves = append(moves, move{Do: doSend, Stream: -1, Key: "b", Verdict: flow.SkipMessage})
	}
	return append(moves, move{Do: doEOF, Stream: -1})
}

// finish has all that runs return, and lets time pass until nothing is due. Time passes before each return, too: messages
// that take none are soon run many in a row, and one that then stands still may hold up the next for a moment, of which
// the oracle knows nothing.
func (w *simulation) finish() string {
	for range 1000 {
		next, runs := move{Do: doEnd}, false
		w.locked(func() { runs = len(w.running) > 0 })
		switch {
		case runs:
			if wrong := w.make(move{Do: doAdvance, N: 1}); wrong != "" {
				return wrong
			}
		case w.o.next() > 0:
			next = move{Do: doAdvance, N: 50}
		default:
			return ""
		}
		if wrong := w.make(next); wrong != "" {
			return wrong
		}
	}
	return "it never ends"
}
