package flow

import (
	"cmp"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
)

// Snapshot is what a Flow has under way, for an operator's eyes: see [Flow.Snapshot].
type Snapshot struct {
	Stats    Stats
	Capacity int // of executions in flight; 0 is unlimited

	Streams []StreamState    // those with most pending first; then the oldest
	Keys    []KeyState       // those with most waiting first; then those whose message runs longest
	Running []RunningMessage // those that run longest first; then by stream and Seq
}

// StreamState is a stream that runs.
type StreamState struct {
	ID        uint64        // as in Event.Stream
	Peer      string        // the client's address; "" outside of gRPC
	Method    string        // the full name of the RPC; "" outside of gRPC
	Age       time.Duration // since Run was called
	Received  uint64
	Pending   uint64 // of these, not finished
	Committed uint64 // every message with Seq <= Committed is settled
}

// KeyState is a key that has messages which are not finished, in whatever streams. Keys are chosen by clients.
type KeyState struct {
	Key     string
	Waiting int           // of these, how many do not run
	Running bool          // one of them runs
	Age     time.Duration // of its running message: see RunningMessage.Age
}

// RunningMessage is a message that a handler has.
type RunningMessage struct {
	Stream  uint64
	Seq     uint64
	Key     string
	Attempt int
	Age     time.Duration // since the attempt began; 0 without an Observer: then no clock is read
}

// Snapshot looks at what is under way and names the n streams with most pending, the n hottest keys and the n messages
// that run longest, n of each at most; with n <= 0 it names none. Nothing is kept up to date for it, so that a Flow at
// which nobody looks pays nothing.
//
// Its cost grows with the messages pending and their keys: 1,000 of them take 0.2 ms, 100,000 of 1,024 keys 6 ms. One lock
// is held at a time, a stream's, while what it has pending is copied; keys are gathered and sorted without it. A busy
// stream that is looked at ten times a second is no slower for it (BenchmarkRunWatched). Streams are looked at one after
// the other, so that the numbers of two of them may be a moment apart.
func (f *Flow[T]) Snapshot(n int) Snapshot { return f.receiver.snapshot(n) }

// census is a Snapshot in the making.
type census[T any] struct {
	stats   Stats
	streams topList[streamCount[T]]
	running topList[RunningMessage]
	keys    []KeyState
	index   map[string]int // of a key in keys

	// What the stream at hand has pending, copied under its lock and worked up without it.
	waits []string // keys
	runs  []RunningMessage
}

// streamCount is a stream whose particulars are looked up only if it is to be shown.
type streamCount[T any] struct {
	s     *stream[T]
	state StreamState
}

func (r *Receiver[T]) snapshot(n int) Snapshot {
	c := census[T]{
		index: make(map[string]int),
		streams: topList[streamCount[T]]{n: n, compare: func(a, b streamCount[T]) int {
			return cmp.Or(cmp.Compare(b.state.Pending, a.state.Pending), cmp.Compare(a.state.ID, b.state.ID))
		}},
		running: topList[RunningMessage]{n: n, compare: func(a, b RunningMessage) int {
			return cmp.Or(cmp.Compare(b.Age, a.Age), cmp.Compare(a.Stream, b.Stream), cmp.Compare(a.Seq, b.Seq))
		}},
	}
	r.mu.Lock()
	streams := make([]*stream[T], 0, len(r.streams))
	for s := range r.streams {
		streams = append(streams, s)
	}
	c.stats.Total = r.total // together with the streams, so that one that ends meanwhile is counted once
	r.mu.Unlock()
	for _, s := range streams {
		c.visit(s)
	}
	c.stats.Streams, c.stats.ActiveKeys = len(streams), len(c.keys)
	c.stats.Capacity = r.gate.pressure.opts.Capacity

	keys := topList[KeyState]{n: n, compare: func(a, b KeyState) int {
		return cmp.Or(cmp.Compare(b.Waiting, a.Waiting), cmp.Compare(b.Age, a.Age), cmp.Compare(a.Key, b.Key))
	}}
	for _, k := range c.keys {
		keys.add(k)
	}
	snap := Snapshot{
		Stats: c.stats, Capacity: c.stats.Capacity, Keys: keys.take(), Running: c.running.take(),
	}
	for _, sc := range c.streams.take() {
		if p, ok := peer.FromContext(sc.s.parent); ok && p.Addr != nil {
			guarded(func() { sc.state.Peer = p.Addr.String() })
		}
		guarded(func() { sc.state.Method, _ = grpc.Method(sc.s.parent) })
		snap.Streams = append(snap.Streams, sc.state)
	}
	return snap
}

// visit adds what s has.
func (c *census[T]) visit(s *stream[T]) {
	state := c.copy(s)
	c.streams.add(streamCount[T]{s, state})
	for _, key := range c.waits {
		c.key(key).Waiting++
	}
	for _, m := range c.runs {
		c.running.add(m)
		k := c.key(m.Key)
		k.Running, k.Age = true, max(k.Age, m.Age)
	}
}

// copy copies what s has pending. All that it reads of a message is guarded by the stream's lock, but for the time of
// its attempt's start, which is atomic.
func (c *census[T]) copy(s *stream[T]) StreamState {
	c.waits, c.runs = c.waits[:0], c.runs[:0]
	now := s.clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.callInLocked()
	first := uint64(math.MaxUint64) // that is not settled
	wait := func(a *arrival[T]) {
		first = min(first, a.seq)
		c.waits = append(c.waits, a.key)
	}
	for m := s.live; m != nil; m = m.nextLive {
		if m.state != stateRunning {
			wait(&m.arrival)
			continue
		}
		first = min(first, m.seq)
		run := RunningMessage{Stream: s.id, Seq: m.seq, Key: m.key, Attempt: m.tried + 1}
		if began := m.began.Load(); began > 0 {
			run.Age = max(0, now-time.Duration(began-1))
		}
		c.runs = append(c.runs, run)
	}
	s.inbox.visitLocked(wait)
	for _, seq := range s.counts.Unsettled {
		first = min(first, seq)
	}
	c.stats.InFlight += len(c.runs)
	c.stats.Waiting += len(c.waits)
	c.stats.Total.add(s.counts)
	pending := uint64(len(c.waits) + len(c.runs)) // and not the inbox's count, which goes on meanwhile
	received := s.finished + pending
	return StreamState{ID: s.id, Age: now, Received: received, Pending: pending, Committed: min(first-1, received)}
}

// key is the entry of key, to be changed at once.
func (c *census[T]) key(key string) *KeyState {
	i, ok := c.index[key]
	if !ok {
		i = len(c.keys)
		c.index[key] = i
		c.keys = append(c.keys, KeyState{Key: key})
	}
	return &c.keys[i]
}

// topList keeps the first n of what it is shown, in the order of compare. It sorts now and then instead of each time.
type topList[E any] struct {
	n       int
	compare func(a, b E) int
	list    []E
}

func (t *topList[E]) add(e E) {
	if t.n <= 0 {
		return
	}
	t.list = append(t.list, e)
	if len(t.list)-t.n >= max(t.n, 64) {
		t.cut()
	}
}

func (t *topList[E]) cut() {
	slices.SortFunc(t.list, t.compare)
	if len(t.list) > t.n && t.n > 0 {
		clear(t.list[t.n:])
		t.list = t.list[:t.n]
	}
}

func (t *topList[E]) take() []E {
	t.cut()
	return t.list
}
