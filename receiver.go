package flow

import (
	"context"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Receiver reads streams and brings each message through a Gate to an Engine. It is safe for concurrent use: many
// streams may be received at once, and they share what their Gate and Engine share.
type Receiver[T any] struct {
	gate   *Gate
	engine *Engine[T]

	batching *batching[T] // nil: the handler is called with one message each
	calls    atomic.Int64 // of a BatchHandler, under way

	maxPending int64       // unboundedPending: no bound
	bytes      *byteWindow // nil: bytes are not counted
	sizeOf     func(T) int // nil without bytes
	idle       time.Duration
	onFailure  func(context.Context, *Failure) FailureAction
	observer   Observer
	sessions   *sessions // nil: none

	ids atomic.Uint64

	// What streams that are idle leave to others, until the garbage collector takes it: it owns neither channel nor
	// timer, so that streams in different synctest bubbles may share it.
	chunks   sync.Pool // *chunk[T]
	messages sync.Pool // *message[T], the heads of lists through their links

	// mu is taken before a stream's runState's, and no other lock is taken while it is held.
	mu      sync.Mutex
	streams map[*stream[T]]struct{}
	total   Summary     // of the streams that have ended
	shards  []*shard[T] // nil: it has no users
}

// NewReceiver returns a receiver for streams that pass gate and are run by engine. The options of a stream (MaxPending,
// OnFailure, Observer and so on) are at their defaults; [New] sets them. It panics if either is nil.
func NewReceiver[T any](gate *Gate, engine *Engine[T]) *Receiver[T] {
	if gate == nil || engine == nil {
		panic("flow: a Receiver needs a Gate and an Engine, got nil")
	}
	r := &Receiver[T]{
		gate: gate, engine: engine, maxPending: defaultMaxPending, streams: make(map[*stream[T]]struct{}),
		shards: make([]*shard[T], shardCount(gate)),
	}
	r.boundBytes(defaultMaxPendingBytes, sizeFunc[T]())
	return r
}

// boundBytes has r count bytes by sizeOf, up to bound. Without a sizeOf, or with a negative bound, it counts none.
func (r *Receiver[T]) boundBytes(bound int64, sizeOf func(T) int) {
	r.bytes, r.sizeOf = nil, nil
	if sizeOf != nil && bound > 0 {
		r.bytes, r.sizeOf = newByteWindow(bound), sizeOf
	}
}

// shardCount returns how many shards a Receiver has at most. One keeps up with the handlers of about four processors,
// and with ScopeFlow all streams share their lanes anyway.
func shardCount(g *Gate) int {
	if r, ok := g.ordering.(*laneResolver); ok && r.opts.Scope == ScopeFlow {
		return 1
	}
	return max(1, runtime.GOMAXPROCS(0)/4)
}

// enter makes s a user of the shard that has the fewest, whose goroutine lives until they have left.
func (r *Receiver[T]) enter(s *stream[T]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	least := 0
	for i, sh := range r.shards {
		if sh == nil {
			r.shards[i] = startShard(r)
			least = i
			break
		}
		if sh.users < r.shards[least].users {
			least = i
		}
	}
	r.shards[least].users++
	s.sh.Store(r.shards[least])
}

// leave is told that a user of sh has left. It reports whether that was the last one: then the shard must end.
func (r *Receiver[T]) leave(sh *shard[T]) (last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sh.users--
	if sh.users > 0 {
		return false
	}
	r.shards[slices.Index(r.shards, sh)] = nil
	return true
}

// inspect has sh call look, which may look at the streams, all of which are sh's, or have been until they were done.
func (r *Receiver[T]) inspect(sh *shard[T], streams []*stream[T], look func()) {
	r.mu.Lock()
	lives := sh.users > 0
	if lives {
		sh.users++
	}
	r.mu.Unlock()
	if !lives {
		for _, s := range streams {
			<-s.done
		}
		look()
		return
	}
	seen := make(chan struct{})
	sh.events <- event[T]{do: func() {
		sh.settleLong()
		look()
		close(seen)
		sh.over = r.leave(sh)
	}}
	<-seen
}

// Receive is one stream: it reads recv until io.EOF, runs every message, and returns when all have finished. key may be
// nil: then all keys are "". See [Flow.Run], which is the same with the options of New.
func (r *Receiver[T]) Receive(ctx context.Context, recv func() (T, error), key OrderingKeyFunc[T]) (Summary, error) {
	s := r.newStream(ctx, key)
	return s.end(s.beginAndRun(recv))
}

func (r *Receiver[T]) newStream(ctx context.Context, key OrderingKeyFunc[T]) *stream[T] {
	s := &stream[T]{
		r: r, id: r.ids.Add(1), parent: ctx, start: time.Now(), keyOf: key, done: make(chan struct{}),
		rpc: rpc{stream: streamOf(ctx)},
	}
	s.emitter = emitter[T]{s}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.origin.ctx = s.ctx
	s.window.init(r.maxPending)
	s.order.init(s.ctx, s.id, r.gate.ordering)
	s.backlog.ledger = newLedger(1)
	s.backlog.direct = r.batching != nil || r.gate.pressure.refuses() || s.order.decidesOnReceipt()
	if r.gate.pressure.refuses() || s.order.refuses() {
		s.verdict.given = make(chan struct{}, 1)
	}
	return s
}

// tellShutdown tells of the beginning of the end.
func (r *Receiver[T]) tellShutdown(ctx context.Context) {
	if r.observer == nil {
		return
	}
	_ = isolated(func() error {
		r.observer(ctx, Event{Kind: EventShutdown})
		return nil
	})
}

// FromChan makes a recv of a channel: a source other than gRPC. It blocks until there is a value; it returns io.EOF when
// ch is closed and empty, and ctx.Err() when ctx has ended. Like every recv it is for one Run. When that ends early, the
// goroutine blocked in it ends with ctx or with the next value, which is lost: give it a ctx that ends.
func FromChan[T any](ctx context.Context, ch <-chan T) func() (T, error) {
	return func() (v T, err error) {
		if err := ctx.Err(); err != nil {
			return v, err
		}
		select {
		case v, ok := <-ch:
			if !ok {
				return v, io.EOF
			}
			return v, nil
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}
