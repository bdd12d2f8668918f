package modeltest_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
)

// item is what the streams of a simulation carry; with Last it is how recv ends.
type item struct {
	Stream         int
	Key            string
	Bytes          int
	Verdict        flow.FailureAction
	IgnoresContext bool
	Last           bool
	How            ending
}

// Size is what MaxPendingBytes counts.
func (it item) Size() int { return it.Bytes }

// simulation is the bubble in which a script is run on a real Flow.
type simulation struct {
	script
	f          *flow.Flow[item]
	o          *oracle
	start      time.Time
	concurrent bool
	freed      chan struct{} // closed when the script went wrong: let go of everything
	letGo      chan struct{} // closed: the Observer does not hang
	goOn       func()        // closes it

	mu       sync.Mutex // also guards what the sources share with their Run
	sources  []*source
	running  map[run]*execution
	order    flowtest.OrderChecker[laneOf] // as the handlers see it
	firsts   flowtest.OrderChecker[laneOf] // the same, of the first attempts in batches alone
	tried    map[run]bool                  // those that had one
	seen     sight
	calls    int      // of a handler of batches
	rules    []string // that were broken
	tell     map[uint64]*replay
	shutdown []context.CancelFunc
}

// runScript runs s in a bubble. The text says what went wrong, and after which move.
func runScript(t *testing.T, s script) string {
	return inBubble(t, s, func() string { return newSimulation(s).run() })
}

// inBubble runs what is given in a bubble. The text says what went wrong, and in what.
func inBubble(t *testing.T, what fmt.Stringer, run func() string) (wrong string) {
	defer func() {
		if p := recover(); p != nil && wrong == "" { // what a broken bubble leaves behind says less than why it broke
			wrong = fmt.Sprint("panic: ", p)
		}
		if wrong != "" {
			wrong += "\n" + what.String()
		}
	}()
	synctest.Test(t, func(*testing.T) { wrong = run() })
	return wrong
}

func newSimulation(s script) *simulation {
	w := &simulation{script: s, start: time.Now(), freed: make(chan struct{}), running: map[run]*execution{}, tried: map[run]bool{}, tell: map[uint64]*replay{}}
	w.letGo = make(chan struct{})
	w.goOn = sync.OnceFunc(func() { close(w.letGo) })
	w.o = &oracle{script: s, lanes: map[string][]*modelMessage{}, tokens: s.Options.Retry.Budget.MaxTokens}
	opts := s.Options
	if s.OnFailure {
		opts.OnFailure = w.onFailure
	}
	if s.Observer {
		opts.Observer = w.observe
	}
	key := func(it item) string { return it.Key }
	f, err := flow.New(w.handle, key, opts)
	if s.Batches {
		f, err = flow.NewBatch(w.handleBatch, key, opts)
	}
	if err != nil {
		panic(err)
	}
	w.f = f
	return w
}

// run makes all moves, and then those that bring the simulation to its end.
func (w *simulation) run() string {
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
		wrong = w.teardown()
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
func (w *simulation) abandon() {
	for _, src := range w.sources {
		src.cancel()
		src.hangUp()
	}
	_ = w.f.Close()
}

// make makes a move and compares what comes of it.
func (w *simulation) make(m move) string {
	if m.Do == doAdvance {
		return w.advance(time.Duration(m.N) * tick)
	}
	if m.Do != doSend && w.o.takesNoTime() {
		if wrong := w.advance(tick); wrong != "" {
			return "while time passes: " + wrong
		}
	}
	if m.Do == doCancel && m.IgnoresContext && w.o.mayWait() {
		return w.cancelInRecv(m)
	}
	if follow := w.do(m); follow != nil {
		if wrong := w.settle(follow); wrong != "" {
			return wrong
		}
	}
	return w.pump()
}

// do makes a move but that of the time. The result is the oracle's part; nil: nothing has happened yet.
func (w *simulation) do(m move) (follow func()) {
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
				Stream: src.n, Key: m.Key, Bytes: m.Bytes, Verdict: m.Verdict, IgnoresContext: m.IgnoresContext, Last: m.Do != doSend, How: m.How,
			})
		}
		src.final = src.final || m.Do != doSend
	case doEnd:
		if ids := w.runningInOrder(); len(ids) > 0 {
			return w.end(ids[m.N%len(ids)], m.How, m.Each)
		}
	case doCancel:
		src.cancel()
		src.hangUp()
		return func() { w.o.cancel(w.o.streams[src.n]) }
	case doShutdown:
		w.callShutdown()
		return w.o.shutdown
	case doCancelShutdown:
		for _, end := range w.shutdown {
			end()
		}
		return w.o.cancelShutdown
	case doClose:
		w.mu.Unlock()
		_ = w.f.Close()
		w.mu.Lock()
		return w.o.close
	case doLetGo:
		w.goOn()
		return w.o.letGo
	}
	return nil
}

func (w *simulation) runningInOrder() []run {
	return slices.SortedFunc(maps.Keys(w.running), func(a, b run) int {
		return cmp.Or(cmp.Compare(a.stream, b.stream), cmp.Compare(a.seq, b.seq))
	})
}

// end has a handler return.
func (w *simulation) end(id run, how ending, each []ending) (follow func()) {
	select {
	case w.running[id].how <- callEnd{how, each}:
	default: // run concurrently: it has been told already
	}
	if w.Batches {
		return func() { w.o.callEnded(w.o.find(id.stream, id.seq).call, how, each) }
	}
	return func() { w.o.ended(w.o.find(id.stream, id.seq), how) }
}

// cancelInRecv ends a stream's context while recv is blocked and stays so: Run gives it a moment to say why.
func (w *simulation) cancelInRecv(m move) string {
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

// pump has the handlers return whose time is over, and gives recv what was sent, all one by one: what happens while
// something else goes on is left to runConcurrently.
func (w *simulation) pump() string {
	for id := w.late(); id != nil; id = w.late() {
		var follow func()
		w.locked(func() { follow = w.end(*id, endByTimeout, nil) })
		if wrong := w.settle(follow); wrong != "" {
			return fmt.Sprintf("at the end of %v's time: %s", *id, wrong)
		}
	}
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

// late is a handler whose attempt's time is over, and that heeds it; nil: there is none.
func (w *simulation) late() *run {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range w.runningInOrder() {
		if e := w.running[id]; !e.IgnoresContext && e.cause == flow.ErrAttemptTimeout {
			return &id
		}
	}
	return nil
}

func (w *simulation) blocked(src *source) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return src.inRecv && src.result == nil
}

// advance lets time pass, and looks whenever something is due.
func (w *simulation) advance(d time.Duration) string {
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

// rest waits until nothing goes on any more, and returns Stats. To ask for them has the shards count what long runs have
// done, which they otherwise do every half a millisecond only, and by which readers may be woken: until they stay the same.
func (w *simulation) rest() flow.Stats {
	synctest.Wait()
	for stats := w.f.Stats(); ; {
		synctest.Wait()
		before := stats
		if stats = w.f.Stats(); reflect.DeepEqual(stats, before) {
			return stats
		}
	}
}

// settle waits for the simulation to come to rest, and has the oracle follow.
func (w *simulation) settle(follow func()) string {
	stats := w.rest()
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = sight{told: seen.told, shutdown: seen.shutdown}
	seen.inRecv, seen.returned, seen.running = nil, nil, map[run]error{}
	for _, src := range w.sources {
		seen.inRecv = append(seen.inRecv, src.inRecv)
		seen.returned = append(seen.returned, src.result)
	}
	for id, e := range w.running {
		seen.running[id] = e.cause
	}
	if seen.asked == nil {
		seen.asked = map[askedOf]int{}
	}
	seen.stats = stats
	w.o.seen, w.o.asked, w.o.swept = &seen, nil, false
	follow()
	w.o.settle()
	return w.verdict()
}

// verdict is all that went wrong; "": nothing.
func (w *simulation) verdict() string { return strings.Join(append(w.o.wrong, w.rules...), "\n") }
