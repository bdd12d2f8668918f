package modeltest_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
)

// mixedSimulation is the bubble in which a mixture is run on a real Flow.
type mixedSimulation struct {
	mixture
	f     *flow.Flow[*mixedMessage]
	freed chan struct{} // closed at the end: let go of everything

	mu      sync.Mutex
	streams []*mixedStream
	running []*mixedMessage
	order   flowtest.OrderChecker[place]
	quick   bool     // handlers return at once, whatever their pace
	ending  bool     // Shutdown or Close was called
	halted  bool     // that has come to rest: what is read now is not received
	aborted bool     // it was a Shutdown that drops what waits
	rules   []string // that were broken

	atRest   bool       // nothing was done since the simulation came to rest
	shutdown chan error // what Shutdown has returned; nil if it was not called
}

type mixedStream struct {
	id     int // as in flow.StreamState
	ctx    context.Context
	cancel context.CancelFunc
	feed   chan *mixedMessage
	closed bool // feed is
	eof    bool // recv has said so

	received []*mixedMessage            // by Seq
	finished int                        // so many from the first on are finished
	pending  int                        // not finished
	lanes    map[string][]*mixedMessage // those not finished
	skipped  map[string]bool            // keys
	sum      flow.Summary               // of the finished: Succeeded, Failed, Rejected and Retried
	begun    uint64                     // messages
	why      map[flow.FailureKind]bool
	over     bool // it has failed, or its context has ended
	returned bool
}

// mixedMessage is a message, and what has become of it.
type mixedMessage struct {
	plain
	exception
	st      *mixedStream
	seq     uint64
	ordered bool
	lane    string // if it is ordered

	attempts int
	runs     bool
	release  chan struct{} // ends the attempt that blocks
	due      time.Time     // its next try
	finished bool
}

// place is what has an order of its own: a lane of a stream, or a message that has no order, which must not overlap itself.
type place struct {
	stream int
	lane   string
	alone  uint64 // the number of a message that has no order
}

func (p *mixedMessage) place() place {
	if !p.ordered {
		return place{stream: p.st.id, alone: p.seq}
	}
	return place{stream: p.st.id, lane: p.lane}
}

// Size is what MaxPendingBytes counts.
func (p *mixedMessage) Size() int { return p.Bytes }

func playMixture(t *testing.T, x mixture) string {
	return inBubble(t, x, func() string { return newMixedSimulation(x).run() })
}

func newMixedSimulation(x mixture) *mixedSimulation {
	w := &mixedSimulation{mixture: x, freed: make(chan struct{})}
	if x.OnFailure {
		x.Options.OnFailure = w.onFailure
	}
	f, err := flow.New(w.handle, func(p *mixedMessage) string { return p.Key }, x.Options)
	if err != nil {
		panic(err)
	}
	w.f = f
	return w
}

// run makes all moves, and then those that bring the simulation to its end.
func (w *mixedSimulation) run() (wrong string) {
	defer func() { // that the bubble can end, whatever has gone wrong
		close(w.freed)
		_ = w.f.Close()
	}()
	w.open()
	for i, m := range w.Moves {
		wrong = w.make(m)
		if w.atRest = !m.Rush; wrong == "" && w.atRest {
			wrong = w.rest()
		}
		if wrong != "" {
			return fmt.Sprintf("after move %d, a %#v:\n%s", i, m.Do, wrong)
		}
	}
	return w.teardown()
}

// make makes a move. wrong is what it has seen to be so.
func (w *mixedSimulation) make(m mixedMove) (wrong string) {
	live := w.live()
	st := live[m.Stream%len(live)]
	switch m.Do {
	case mixSend:
		st.send(m.Burst)
	case mixEnd:
		w.release(m.N, 1)
	case mixEndAll:
		w.release(0, math.MaxInt)
	case mixLook:
		return w.look()
	case mixPass:
		time.Sleep(mixedBackoff)
	case mixOpen:
		if len(live) < maxMixedStreams {
			w.open()
		}
	case mixEOF:
		st.hangUp()
	case mixCancel:
		w.cancel(st)
	case mixShutdown:
		w.end(false)
		w.shutdown = make(chan error, 1)
		go func() { w.shutdown <- w.f.Shutdown(context.Background()) }()
	case mixClose:
		w.end(true)
		_ = w.f.Close()
	}
	return ""
}

// live are the streams that were not ended so far. If there is none, one is opened.
func (w *mixedSimulation) live() (all []*mixedStream) {
	w.mu.Lock()
	for _, st := range w.streams {
		if !st.returned && !st.over {
			all = append(all, st)
		}
	}
	w.mu.Unlock()
	if len(all) == 0 {
		w.open()
		all = w.streams[len(w.streams)-1:]
	}
	return all
}

// open starts a stream. The simulation comes to rest for it, so that streams are numbered as the Flow does.
func (w *mixedSimulation) open() {
	st := &mixedStream{
		id: len(w.streams) + 1, feed: make(chan *mixedMessage, 4096),
		lanes: map[string][]*mixedMessage{}, skipped: map[string]bool{}, why: map[flow.FailureKind]bool{},
	}
	st.ctx, st.cancel = context.WithCancel(context.Background())
	w.mu.Lock()
	w.streams = append(w.streams, st)
	if w.ending {
		w.endStream(st, flow.FailureShutdown)
	}
	w.mu.Unlock()
	go func() {
		sum, err := w.f.Run(st.ctx, func() (*mixedMessage, error) { return w.recv(st) })
		w.mu.Lock()
		defer w.mu.Unlock()
		w.checkResult(st, sum, err)
		st.cancel() // as gRPC does
	}()
	synctest.Wait()
}

// send sends b, as far as that is not too much.
func (st *mixedStream) send(b burst) {
	if st.closed {
		return
	}
	for i := range b.N {
		p := &mixedMessage{st: st, plain: b.Plain[i%len(b.Plain)]}
		for _, o := range b.Exceptions {
			if o.At == i {
				p.exception = o
			}
		}
		select {
		case st.feed <- p:
		default:
			return
		}
	}
}

func (st *mixedStream) hangUp() {
	if !st.closed {
		st.closed = true
		close(st.feed)
	}
}

// release has n handlers that block go on, from the at-th on, and so does what they do afterwards.
func (w *mixedSimulation) release(at, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var blocked []*mixedMessage
	for _, p := range w.running {
		if p.release != nil {
			blocked = append(blocked, p)
		}
	}
	slices.SortFunc(blocked, func(a, b *mixedMessage) int {
		if a.st != b.st {
			return a.st.id - b.st.id
		}
		return int(a.seq) - int(b.seq)
	})
	for i := range min(n, len(blocked)) {
		p := blocked[(at+i)%len(blocked)]
		close(p.release)
		p.release = nil
	}
}

func (w *mixedSimulation) cancel(st *mixedStream) {
	w.mu.Lock()
	w.endStream(st, flow.FailureContextCancelled)
	w.mu.Unlock()
	st.cancel()
}

// end notes that the end of the Flow begins.
func (w *mixedSimulation) end(atOnce bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, st := range w.streams {
		if st.why[flow.FailureShutdown] = true; atOnce {
			st.over = true
		}
	}
	w.ending = true
	w.aborted = !atOnce && !w.Options.Shutdown.DrainOnClose
}

func (w *mixedSimulation) endStream(st *mixedStream, why flow.FailureKind) {
	st.over = true
	st.why[why] = true
}
