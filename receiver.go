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

// reader is the goroutine that reads a stream's source, since recv may block and can't be interrupted. It names the key
// of each message and puts it into the stream's mailbox. It numbers nothing: the shard does, in the same order.
type reader[T any] struct {
	s      *stream[T]
	recv   func() (T, error)
	seq    uint64 // messages received so far, without duplicates
	number uint64 // the Seq of the message at hand, or of the last one
	credit uint64 // messages that may be received before the window is looked at again
	at     entry[T]
	in     callersCode

	refusable bool // messages may be refused on receipt
}

// reading is what a reader shares with its stream's shard and with Run.
type reading struct {
	window   window
	activity activity
	verdict  verdict
}

// callersCode says which of the caller's functions a reader is in: whose panic it is.
type callersCode uint8

const (
	inNone callersCode = iota
	inRecv
	inKey // the key function, or what measures a message
)

// run reads until the source ends, or the stream does: then what recv still returns is discarded.
func (rd *reader[T]) run() {
	rd.s.activity.inRecv.Store(true)
	normal := false
	defer func() {
		if !normal {
			rd.crashed(errGoexit)
		}
		rd.s.activity.inRecv.Store(false)
		rd.s.tell()
	}()
	if crash := rd.read(); crash != nil {
		rd.crashed(crash)
	}
	normal = true
}

// read is the loop. It returns what the caller's functions panicked with, or nil if nothing more is to be read. There is
// one deferred function for all messages, since one for each would cost a fifth of the loop.
func (rd *reader[T]) read() (crash error) {
	normal := false
	defer func() {
		if !normal { // as in recovered
			crash = newPanicError(recover())
		}
	}()
	s, r := rd.s, rd.s.r
	timed := r.observer != nil || r.idle > 0
	for rd.awaitRoom() {
		rd.in = inRecv
		v, err := rd.recv()
		if err != nil {
			rd.ended(err)
			break
		}
		rd.in = inNone
		if s.parent.Err() != nil {
			s.fail(contextFailure(s.parent))
			break
		}
		rd.number++
		rd.at = entry[T]{value: v, seq: rd.number}
		if timed {
			rd.at.received = int64(s.clock())
			s.activity.last.Store(rd.at.received)
			s.activity.inCallersCode.Store(r.idle > 0)
		}
		if s.session != nil && rd.duplicate() {
			continue
		}
		rd.in = inKey
		if r.sizeOf != nil {
			rd.at.size = int64(r.sizeOf(v))
		}
		if s.keyOf != nil {
			rd.at.key = s.keyOf(v)
		}
		rd.in = inNone
		if !rd.put() {
			break
		}
	}
	normal = true
	return nil
}

// duplicate reports whether the message at hand was settled by an earlier stream of the session: it is only counted.
func (rd *reader[T]) duplicate() bool {
	s := rd.s
	if !s.session.before.settled(rd.at.seq) {
		s.session.saver.touch()
		return false
	}
	s.duplicates.Add(1)
	s.emitDuplicate(rd.at.seq)
	rd.at = entry[T]{}
	if s.r.idle > 0 {
		s.activity.inCallersCode.Store(false)
	}
	return true
}

// put receives the message at hand. It reports whether more may be received.
func (rd *reader[T]) put() (open bool) {
	s := rd.s
	if s.order.resolver != nil && rd.at.crash == nil {
		rd.at.hash, _ = s.order.place(rd.at.key)
	}
	waits := rd.refusable && rd.mayBeRefused()
	if waits {
		s.verdict.ask(rd.seq + 1)
	}
	size := rd.at.size
	if size > 0 && s.window.share != nil { // before the shard can count them off
		s.window.share.add(size)
	}
	ok, tell := s.box.put(&rd.at, &s.r.chunks)
	if size > 0 && !ok && s.window.share != nil {
		s.window.share.sub(size)
	}
	if ok {
		rd.seq++
		rd.credit--
		if tell {
			s.tell()
		}
		if waits {
			s.verdict.await(s.done)
		}
	}
	rd.at = entry[T]{} // for as long as recv is blocked it would keep the message alive
	if s.r.idle > 0 {
		s.activity.inCallersCode.Store(false)
	}
	return ok
}

// mayBeRefused reports whether the message at hand may find a bound reached. Then no further one is read before that is
// decided and, if it is refused, done: so refusals slow their client down. Far from the bounds there is nothing to wait for,
// and to wait would cost a microsecond a message.
func (rd *reader[T]) mayBeRefused() bool {
	s := rd.s
	p := s.r.gate.pressure
	undecided := int64(rd.seq + 1 - s.window.linedUp.Load())
	switch {
	case p.opts.Policy == BackpressureHardReject && p.inUse.Load()+undecided > int64(p.opts.Capacity),
		p.opts.QueueCapacity > 0 && p.inUse.Load()+p.queued.Load()+undecided > int64(p.opts.Capacity+p.opts.QueueCapacity):
		return true
	}
	return s.order.mayRefuse(undecided, int64(rd.seq+1-s.window.finished.Load()))
}

// ended handles recv's first error. recv is not called again.
func (rd *reader[T]) ended(err error) {
	s := rd.s
	ended := s.parent.Err() != nil
	if err == io.EOF && !ended {
		s.state.inputEnded()
		return
	}
	f := recvFailure(err)
	// Only a status that says something else than the end of the context is a better reason than that.
	if ended && (!f.said().stated || f.Kind == FailureContextCancelled) {
		f = contextFailure(s.parent)
	}
	s.fail(f)
}

// crashed handles a panic or a Goexit of the caller's code. Of recv it ends the stream; of the key function it is the
// failure of its message, which is received without a key, and with which the stream ends.
func (rd *reader[T]) crashed(err error) {
	switch rd.in {
	case inRecv:
		rd.ended(err)
	case inKey:
		rd.at.crash, rd.at.key = err, ""
		rd.put()
	default: // between two messages: it belongs to none
		rd.s.fail(newFailure(FailureInternal, err))
	}
}

// awaitRoom blocks while the stream must not be read. It returns false if it must not be read any more.
func (rd *reader[T]) awaitRoom() bool {
	s := rd.s
	w := &s.window
	for s.state.phase() < phaseDraining {
		if s.parent.Err() != nil {
			s.fail(contextFailure(s.parent)) // there is no recv that could say more
			return false
		}
		if rd.credit == 0 {
			rd.credit = w.room(rd.seq)
		}
		switch {
		case rd.credit == 0:
			rd.waitForRoom()
		case w.share != nil && !w.share.mayRead():
			rd.waitForBytes()
		default:
			return true
		}
	}
	return false
}

// waitForRoom blocks until MaxPending may allow for more.
func (rd *reader[T]) waitForRoom() {
	w := &rd.s.window
	w.waiting.Store(true)
	defer w.waiting.Store(false)
	if w.room(rd.seq) == 0 { // otherwise it has come since it was looked for
		rd.waitForSpace()
	}
}

// waitForBytes blocks until MaxPendingBytes may allow for more.
func (rd *reader[T]) waitForBytes() {
	share := rd.s.window.share
	defer share.stopWaiting()
	if share.wait() {
		rd.waitForSpace()
	}
}

// waitForSpace blocks until the reader is woken, or its stream ends.
func (rd *reader[T]) waitForSpace() {
	s := rd.s
	s.activity.inRecv.Store(false)
	defer s.activity.inRecv.Store(true)
	s.endLinger()
	if s.parent.Err() != nil { // Run may have seen it end while recv seemed to be what the reader waits for
		return
	}
	<-s.window.space // also when the stream ends or must end: the shard signals it in sweep and in end
}

// noted keeps when a message has finished, for IdleTimeout.
func (a *activity) noted(at time.Duration) { a.last.Store(int64(at)) }

// verdict lets a reader wait until what it has received is lined up, and until a refusal has come to its end.
type verdict struct {
	asked atomic.Uint64 // the Seq that the reader waits for; 0: it does not wait
	given chan struct{}
}

// ask is called before the message seq is put where the shard finds it.
func (v *verdict) ask(seq uint64) { v.asked.Store(seq) }

// give is told that everything up to seq is lined up.
func (v *verdict) give(seq uint64) {
	if asked := v.asked.Load(); asked > 0 && asked <= seq {
		v.asked.Store(0)
		v.given <- struct{}{} // has room: it was asked for one
	}
}

// await blocks until the verdict is given, or over is closed.
func (v *verdict) await(over <-chan struct{}) {
	select {
	case <-v.given:
	case <-over:
	}
}
