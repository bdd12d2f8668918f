package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
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
	f     *flow.Flow[item]
	o     *oracle
	start time.Time
	freed chan struct{} // closed when the script went wrong: let go of everything

	mu       sync.Mutex // also guards what the sources share with their Run
	sources  []*source
	running  map[run]*execution
	seen     sight
	rules    []string // that were broken
	tell     map[uint64]*replay
	shutdown []context.CancelFunc
}

// execution is a handler that runs.
type execution struct{ how chan ending }

type source struct {
	n      int
	sent   []item // and not received
	items  chan item
	ctx    context.Context
	cancel context.CancelFunc
	gone   chan struct{} // closed when Run has returned, as gRPC then fails recv
	final  bool
	inRecv bool
	result *result
}

var errHandler = errors.New("the handler failed")

// play plays s in a bubble. The text says what went wrong, and after which move.
func play(t *testing.T, s script) (wrong string) {
	var w *world
	defer func() {
		if p := recover(); p != nil {
			if text, ok := p.(string); wrong == "" || !ok {
				wrong += fmt.Sprint("panic: ", p)
			} else {
				_ = text
			}
		}
		if wrong != "" {
			wrong += "\n" + s.String()
		}
	}()
	synctest.Test(t, func(*testing.T) {
		w = newWorld(s)
		wrong = w.play()
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
	wrong := w.make(move{Do: doOpen})
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
		for _, src := range w.sources {
			src.cancel()
		}
		_ = w.f.Close()
	}
	for _, end := range w.shutdown {
		end()
	}
	return wrong
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
	probe := []move{{Do: doOpen}}
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
	var follow func()
	n := len(w.sources)
	var src *source
	if n > 0 {
		src = w.sources[(m.Stream+n)%n]
	}
	switch m.Do {
	case doOpen:
		if n >= maxStreams && m.Stream >= 0 && n > maxStreams {
			return ""
		}
		w.open()
		follow = w.o.open
	case doSend, doEOF, doBreak:
		it := item{Stream: src.n, Key: m.Key, Verdict: m.Verdict, Deaf: m.Deaf, Last: m.Do != doSend, How: m.How}
		if !src.final {
			src.sent = append(src.sent, it)
		}
		src.final = src.final || it.Last
		return w.pump()
	case doEnd:
		ids := slices.SortedFunc(maps.Keys(w.running), func(a, b run) int { return (a.stream-b.stream)*1000 + int(a.seq) - int(b.seq) })
		if len(ids) == 0 {
			return ""
		}
		id := ids[m.N%len(ids)]
		w.running[id].how <- m.How
		follow = func() { w.o.ended(w.o.find(id.stream, id.seq), m.How) }
	case doCancel:
		src.cancel()
		follow = func() { w.o.cancel(w.o.streams[src.n]) }
	case doShutdown:
		w.callShutdown()
		follow = w.o.shutdown
	case doHurry:
		for _, end := range w.shutdown {
			end()
		}
		follow = w.o.hurry
	case doClose:
		_ = w.f.Close()
		follow = w.o.close
	case doAdvance:
		return w.advance(time.Duration(m.N) * tick)
	}
	if wrong := w.settle(follow); wrong != "" {
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
		seen.asked = map[asking]int{}
	}
	w.mu.Unlock()
	seen.stats = w.f.Stats()
	w.mu.Lock()
	w.o.seen, w.o.asked = &seen, nil
	follow()
	w.o.settle()
	w.o.wrong = append(w.o.wrong, w.rules...)
	return w.o.verdict()
}

func (w *world) broken(format string, args ...any) {
	w.rules = append(w.rules, fmt.Sprintf(format, args...))
}

func (w *world) handle(ctx context.Context, m flow.Message[item]) error {
	id := run{m.Value.Stream, m.Seq}
	e := &execution{how: make(chan ending, 1)}
	w.mu.Lock()
	if w.running[id] != nil {
		w.broken("%v runs twice at a time", id)
	}
	w.running[id] = e
	if w.seen.starts == nil {
		w.seen.starts = map[start]bool{}
	}
	w.seen.starts[start{id, m.Attempt, m.Pressured}] = false
	w.mu.Unlock()
	how := endWell
	ended := ctx.Done()
	if m.Value.Deaf {
		ended = nil
	}
	select {
	case how = <-e.how:
	case <-ended:
		how = endByContext
	case <-w.freed:
	}
	w.mu.Lock()
	delete(w.running, id)
	w.mu.Unlock()
	switch how {
	case endWell:
		return nil
	case endPermanent:
		return flow.Permanent(errHandler)
	case endPanic:
		panic("the handler panics")
	case endGoexit:
		runtime.Goexit()
	case endContextError:
		return context.Canceled
	case endByContext:
		return context.Cause(ctx)
	}
	return errHandler
}

func (w *world) onFailure(_ context.Context, f *flow.Failure) flow.FailureAction {
	it := f.Value.(item)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen.asked == nil {
		w.seen.asked = map[asking]int{}
	}
	w.seen.asked[asking{it.Stream, f.Seq, f.Kind}]++
	return it.Verdict
}

func (w *world) callShutdown() {
	ctx, cancel := context.WithCancel(context.Background())
	w.shutdown = append(w.shutdown, cancel)
	go func() {
		err := w.f.Shutdown(ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.seen.shutdown = append(w.seen.shutdown, err)
	}()
}

func (w *world) open() {
	src := &source{n: len(w.sources), items: make(chan item), gone: make(chan struct{})}
	src.ctx, src.cancel = context.WithCancel(context.Background())
	w.sources = append(w.sources, src)
	go func() {
		sum, err := w.f.Run(src.ctx, func() (item, error) { return w.recv(src) })
		w.mu.Lock()
		defer w.mu.Unlock()
		for id := range w.running {
			if id.stream == src.n {
				w.broken("%v outlives its Run", id)
			}
		}
		src.result = &result{sum, err}
		close(src.gone)
	}()
}

func (w *world) recv(src *source) (it item, err error) {
	w.mu.Lock()
	src.inRecv = true
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		src.inRecv = false
	}()
	select {
	case it = <-src.items:
	case <-src.ctx.Done():
		return it, src.ctx.Err()
	case <-src.gone:
		return it, io.ErrClosedPipe
	}
	if !it.Last {
		return it, nil
	}
	switch it.How {
	case endWell:
		return it, io.EOF
	case endContextError:
		return it, context.Canceled
	case endPanic:
		panic("recv panics")
	case endGoexit:
		runtime.Goexit()
	}
	return it, errors.New("the source is broken")
}
