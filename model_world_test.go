package flow_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

// item is what the streams of a world carry; with Last it is how recv ends.
type item struct {
	Stream  int
	Key     string
	Verdict flow.FailureAction
	Deaf    bool
	Last    bool
	How     ending
}

// world is the bubble in which a script is played on a real Flow.
type world struct {
	script
	f      *flow.Flow[item]
	o      *oracle
	start  time.Time
	stormy bool
	freed  chan struct{} // closed when the script went wrong: let go of everything

	mu       sync.Mutex // also guards what the sources share with their Run
	sources  []*source
	running  map[run]*execution
	seen     sight
	rules    []string // that were broken
	tell     map[uint64]*replay
	shutdown []context.CancelFunc
}

// play plays s in a bubble. The text says what went wrong, and after which move.
func play(t *testing.T, s script) (wrong string) {
	defer func() {
		if p := recover(); p != nil && wrong == "" { // what a broken bubble leaves behind says less than why it broke
			wrong = fmt.Sprint("panic: ", p)
		}
		if wrong != "" {
			wrong += "\n" + s.String()
		}
	}()
	synctest.Test(t, func(*testing.T) {
		wrong = newWorld(s).play()
	})
	return wrong
}

func newWorld(s script) *world {
	w := &world{script: s, start: time.Now(), freed: make(chan struct{}), running: map[run]*execution{}, tell: map[uint64]*replay{}}
	w.o = &oracle{script: s, lanes: map[string][]*modelMessage{}}
	opts := s.Options
	if s.OnFailure {
		opts.OnFailure = w.onFailure
	}
	if s.Observer {
		opts.Observer = w.observe
	}
	f, err := flow.New(w.handle, func(it item) string { return it.Key }, opts)
	if err != nil {
		panic(err)
	}
	w.f = f
	return w
}

// play makes all moves, and then those that bring the world to its end.
func (w *world) play() string {
	defer close(w.freed)
	w.mu.Lock()
	w.open()
	w.mu.Unlock()
	wrong := w.settle(w.o.open)
	for i, m := range w.Moves {
		if wrong = w.make(m); wrong != "" {
			wrong = fmt.Sprintf("after move %d, %v:\n%s", i, m, wrong)
			break
		}
	}
	if wrong == "" {
		wrong = w.wind()
	}
	if wrong != "" {
		w.abandon()
	}
	for _, end := range w.shutdown {
		end()
	}
	return wrong
}

// abandon lets go of all that may still be there, so that the bubble can end.
func (w *world) abandon() {
	for _, src := range w.sources {
		src.cancel()
		src.hangUp()
	}
	_ = w.f.Close()
}

// wind ends all streams, has one more use the whole capacity, and closes the Flow: nothing may be left then.
func (w *world) wind() string {
	finish := func() string {
		for range 1000 {
			if at := w.o.next(); at > 0 {
				if wrong := w.make(move{Do: doAdvance, N: 50}); wrong != "" {
					return wrong
				}
			}
			if len(w.running) == 0 {
				return ""
			}
			if wrong := w.make(move{Do: doEnd}); wrong != "" {
				return wrong
			}
		}
		return "it never ends"
	}
	for i := range w.sources {
		if wrong := w.make(move{Do: doEOF, Stream: i}); wrong != "" {
			return "at the EOF of all: " + wrong
		}
	}
	if wrong := finish(); wrong != "" {
		return "after the EOF of all: " + wrong
	}
	if n := len(w.o.underWay()); n > 0 {
		return fmt.Sprint(n, " streams have not ended")
	}
	probe := []move{{Do: doOpen, Stream: -1}}
	for _, key := range []string{"", "a", "b"} {
		probe = append(probe, move{Do: doSend, Stream: -1, Key: key})
	}
	for _, m := range append(probe, move{Do: doEOF, Stream: -1}) {
		if wrong := w.make(m); wrong != "" {
			return "of a last stream: " + wrong
		}
	}
	if wrong := finish(); wrong != "" {
		return "after a last stream: " + wrong
	}
	return w.make(move{Do: doClose})
}

// make makes a move and compares what comes of it.
func (w *world) make(m move) string {
	if m.Do == doAdvance {
		return w.advance(time.Duration(m.N) * tick)
	}
	if m.Do == doCancel && m.Deaf && w.o.mayWait() {
		return w.cancelDeaf(m)
	}
	if follow := w.do(m); follow != nil {
		if wrong := w.settle(follow); wrong != "" {
			return wrong
		}
	}
	return w.pump()
}

// do makes a move but that of the time. The result is the oracle's part; nil: nothing has happened yet.
func (w *world) do(m move) (follow func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.sources)
	src := w.sources[(m.Stream+n)%n]
	switch m.Do {
	case doOpen:
		if n >= maxStreams && m.Stream >= 0 {
			return nil
		}
		w.open()
		return w.o.open
	case doSend, doEOF, doBreak:
		if !src.final {
			src.sent = append(src.sent, item{
				Stream: src.n, Key: m.Key, Verdict: m.Verdict, Deaf: m.Deaf, Last: m.Do != doSend, How: m.How,
			})
		}
		src.final = src.final || m.Do != doSend
	case doEnd:
		ids := slices.SortedFunc(maps.Keys(w.running), func(a, b run) int {
			return cmp.Or(cmp.Compare(a.stream, b.stream), cmp.Compare(a.seq, b.seq))
		})
		if len(ids) == 0 {
			return nil
		}
		id := ids[m.N%len(ids)]
		select {
		case w.running[id].how <- m.How:
		default: // in a storm: it has been told already
		}
		return func() { w.o.ended(w.o.find(id.stream, id.seq), m.How) }
	case doCancel:
		src.cancel()
		src.hangUp()
		return func() { w.o.cancel(w.o.streams[src.n]) }
	case doShutdown:
		w.callShutdown()
		return w.o.shutdown
	case doHurry:
		for _, end := range w.shutdown {
			end()
		}
		return w.o.hurry
	case doClose:
		w.mu.Unlock()
		_ = w.f.Close()
		w.mu.Lock()
		return w.o.close
	}
	return nil
}

// cancelDeaf ends a stream's context while recv is blocked and stays so: Run gives it a moment to say why.
func (w *world) cancelDeaf(m move) string {
	src := w.sources[(m.Stream+len(w.sources))%len(w.sources)]
	src.cancel()
	time.Sleep(tick)
	if wrong := w.settle(func() {
		w.o.now += tick
		w.o.cancel(w.o.streams[src.n])
	}); wrong != "" {
		return wrong
	}
	return w.pump()
}

// pump gives recv what was sent, one by one: what is received while something else goes on is left to the storm.
func (w *world) pump() string {
	for _, src := range w.sources {
		for len(src.sent) > 0 && w.blocked(src) {
			it := src.sent[0]
			src.sent = src.sent[1:]
			src.items <- it
			if wrong := w.settle(func() { w.o.deliver(w.o.streams[src.n], it) }); wrong != "" {
				return fmt.Sprintf("on receipt of %+v: %s", it, wrong)
			}
		}
	}
	return ""
}

func (w *world) blocked(src *source) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return src.inRecv && src.result == nil
}

// advance lets time pass, and looks whenever something is due.
func (w *world) advance(d time.Duration) string {
	end := w.o.now + d
	for w.o.now < end {
		to := end
		if at := w.o.next(); at > 0 && at < end {
			to = at
		}
		time.Sleep(to - w.o.now)
		if wrong := w.settle(func() { w.o.passed(to) }); wrong != "" {
			return wrong
		}
		if wrong := w.pump(); wrong != "" {
			return wrong
		}
	}
	return ""
}

// settle waits for the world to come to rest, and has the oracle follow.
func (w *world) settle(follow func()) string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = sight{told: seen.told, shutdown: seen.shutdown}
	seen.inRecv, seen.returned, seen.running = nil, nil, map[run]bool{}
	for _, src := range w.sources {
		seen.inRecv = append(seen.inRecv, src.inRecv)
		seen.returned = append(seen.returned, src.result)
	}
	for id := range w.running {
		seen.running[id] = true
	}
	if seen.asked == nil {
		seen.asked = map[askedOf]int{}
	}
	w.mu.Unlock()
	seen.stats = w.f.Stats()
	w.mu.Lock()
	w.o.seen, w.o.asked, w.o.swept = &seen, nil, false
	follow()
	w.o.settle()
	return w.verdict()
}

// verdict is all that went wrong; "": nothing.
func (w *world) verdict() string { return strings.Join(append(w.o.wrong, w.rules...), "\n") }
