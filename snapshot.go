package flow

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
)

// Snapshot is what a Flow has under way, for an operator's eyes: see [Flow.Snapshot].
type Snapshot struct {
	Stats Stats

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
	Pending   uint64  // of these, not finished
	Committed uint64  // every message with Seq <= Committed is settled
	Session   Session // zero without one
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
// Its cost grows with the messages pending and their keys: 1,000 of them take 0.2 ms, 100,000 of 1,024 keys 6 ms. It holds
// no lock while it looks: what streams have pending is copied by the goroutine that hands their messages out, between two
// of its steps; keys are gathered and sorted afterwards, on the caller's. A busy stream that is looked at ten times a
// second is no slower for it (BenchmarkRunWatched). Streams that share such a goroutine are looked at at one moment; with
// GOMAXPROCS of 8 and more there are several, and their numbers may be a moment apart.
func (f *Flow[T]) Snapshot(n int) Snapshot { return f.receiver.snapshot(n) }

// snapshotBuilder is a Snapshot in the making. It belongs to the goroutine that asked for the Snapshot. All keys are in
// it, since which are the hottest is known only when every stream has been counted: one key may have messages in many.
type snapshotBuilder[T any] struct {
	stats   Stats
	streams topN[streamEntry[T]]
	running topN[RunningMessage]
	keys    []KeyState
	index   map[string]int // of a key in keys
}

// streamView is what a stream has under way, as its shard has copied it. Of waiting messages it has the keys alone: there
// may be MaxPending of them, and the shard hands nothing out while it copies.
type streamView struct {
	state   StreamState
	counts  Summary  // of finished messages
	waiting []string // keys of messages that do not run
	running []RunningMessage
}

// streamEntry is a stream whose particulars are looked up only if it is to be shown. Peer and Method come from the
// caller's context and its net.Addr, whose code should run for the few streams that are shown and not for ten thousand.
type streamEntry[T any] struct {
	s     *stream[T]
	state StreamState
}

// snapshot is Snapshot, and Stats with n = 0. It runs on the caller's goroutine and blocks until each shard has looked,
// which no code of the caller's can delay: shards run none. So it may be called from a handler or an Observer.
func (r *Receiver[T]) snapshot(n int) Snapshot {
	// Each order ends in something that no two of them share, so that what is equal keeps its place from one Snapshot to
	// the next.
	c := snapshotBuilder[T]{
		index: make(map[string]int),
		streams: topN[streamEntry[T]]{n: n, compare: func(a, b streamEntry[T]) int {
			return cmp.Or(cmp.Compare(b.state.Pending, a.state.Pending), cmp.Compare(a.state.ID, b.state.ID))
		}},
		running: topN[RunningMessage]{n: n, compare: func(a, b RunningMessage) int {
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
	// A stream that is about to enter a shard is found without one, and one whose shard has ended meanwhile is done: visit
	// handles both.
	byShard := make(map[*shard[T]][]*stream[T])
	for _, s := range streams {
		sh := s.sh.Load()
		byShard[sh] = append(byShard[sh], s)
	}
	for sh, group := range byShard {
		c.visit(r, sh, group)
	}
	c.stats.Streams, c.stats.ActiveKeys = len(streams), len(c.keys)
	// With single messages each that runs is a call. A batch's messages are in one call, which may be of several streams:
	// so those are counted where they are made.
	if c.stats.Calls = c.stats.InFlight; r.batching != nil {
		c.stats.Calls = int(r.calls.Load())
	}
	// The option and not the semaphore: without a capacity there is none, and 0 says so.
	c.stats.Capacity = r.gate.pressure.opts.Capacity

	// Keys come last: how many of a key wait is complete only now.
	keys := topN[KeyState]{n: n, compare: func(a, b KeyState) int {
		return cmp.Or(cmp.Compare(b.Waiting, a.Waiting), cmp.Compare(b.Age, a.Age), cmp.Compare(a.Key, b.Key))
	}}
	for _, k := range c.keys {
		keys.add(k)
	}
	snap := Snapshot{
		Stats: c.stats, Keys: keys.take(), Running: c.running.take(),
	}
	// Both calls may run the caller's code, which may panic: what it has to say is then left out.
	for _, sc := range c.streams.take() {
		if p, ok := peer.FromContext(sc.s.parent); ok && p.Addr != nil {
			guarded(func() { sc.state.Peer = p.Addr.String() })
		}
		guarded(func() { sc.state.Method, _ = grpc.Method(sc.s.parent) })
		snap.Streams = append(snap.Streams, sc.state)
	}
	return snap
}

// visit adds what streams of a shard have, all at one moment. sh is nil for those that have yet to enter one.
//
// All streams of a shard are copied in one event. When each was looked at by itself, Stats showed more in flight than
// Capacity: a slot that one stream had left was seen again with the next. Nothing of the builder is touched in that event:
// the shard hands out no messages meanwhile.
func (c *snapshotBuilder[T]) visit(r *Receiver[T], sh *shard[T], streams []*stream[T]) {
	views := make([]streamView, len(streams))
	// ask holds Receiver.mu while it looks at a stream in no shard, so that it enters none meanwhile. It may have entered one
	// since the list was made.
	if sh == nil {
		for i, s := range streams {
			views[i] = ask(s, func() streamView {
				s.settleLong()
				return s.view()
			})
		}
	} else {
		r.inspect(sh, streams, func() {
			for i, s := range streams {
				views[i] = s.view()
			}
		})
	}
	for i, s := range streams {
		c.addView(s, &views[i])
	}
}

// addView adds what s has. The counts of a stream are added to those of the streams that had ended when the list was made,
// and so each stream is in the total once, whether or not it has ended by now.
func (c *snapshotBuilder[T]) addView(s *stream[T], v *streamView) {
	c.stats.InFlight += len(v.running)
	c.stats.Waiting += len(v.waiting)
	c.stats.Total.add(v.counts)
	c.streams.add(streamEntry[T]{s, v.state})
	for _, key := range v.waiting {
		c.key(key).Waiting++
	}
	for _, m := range v.running {
		c.running.add(m)
		// Without order several messages of a key run at once: its age is that of the longest.
		k := c.key(m.Key)
		k.Running, k.Age = true, max(k.Age, m.Age)
	}
}

// key is the entry of key, to be changed at once. The pointer is into a list that grows: it holds until the next call.
func (c *snapshotBuilder[T]) key(key string) *KeyState {
	i, ok := c.index[key]
	if !ok {
		i = len(c.keys)
		c.index[key] = i
		c.keys = append(c.keys, KeyState{Key: key})
	}
	return &c.keys[i]
}

// topN keeps the first n of what it is shown, in the order of compare. It sorts now and then instead of each time: when as
// many have come as it keeps, and 64 at least. So n of a million cost little more than one pass, and the list has at most
// about twice what it keeps.
type topN[E any] struct {
	n       int
	compare func(a, b E) int
	list    []E
}

// add shows e to t. With an n of 0 nothing is kept, so that Stats pays for no list.
func (t *topN[E]) add(e E) {
	if t.n <= 0 {
		return
	}
	t.list = append(t.list, e)
	if len(t.list)-t.n >= max(t.n, 64) {
		t.cut()
	}
}

// cut drops what is behind the first n, and clears it, so that the spare part of the list keeps no stream alive.
func (t *topN[E]) cut() {
	slices.SortFunc(t.list, t.compare)
	if len(t.list) > t.n && t.n > 0 {
		clear(t.list[t.n:])
		t.list = t.list[:t.n]
	}
}

// take returns the first n, in order. Nothing may be added after it.
func (t *topN[E]) take() []E {
	t.cut()
	return t.list
}
