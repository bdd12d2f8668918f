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
	// All up to sessions, but for calls, is set by NewReceiver, New and NewBatch, before the first stream, and does not
	// change then: readers, shards and workers read it without a lock.
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

	// mu is taken before the locks of a stream's runState and mailbox: what a stream has that is in no shard yet is looked at
	// under it (see ask). No other lock is taken while it is held, and nothing of the caller's is called.
	mu      sync.Mutex
	streams map[*stream[T]]struct{}
	total   Summary     // of the streams that have ended
	shards  []*shard[T] // nil: it has no users
	pace    pace        // of the shard that ended last, for the next: streams may come one after the other
}

// NewReceiver returns a receiver for streams that pass gate and are run by engine. The options of a stream (MaxPending,
// OnFailure, Observer and so on) are at their defaults; [New] sets them. It panics if either is nil.
func NewReceiver[T any](gate *Gate, engine *Engine[T]) *Receiver[T] {
	if gate == nil || engine == nil {
		panic("flow: a Receiver needs a Gate and an Engine, got nil")
	}
	r := &Receiver[T]{
		gate: gate, engine: engine, maxPending: defaultMaxPending, streams: make(map[*stream[T]]struct{}),
		shards: make([]*shard[T], shardCount(gate)), pace: newPace(),
	}
	r.boundBytes(defaultMaxPendingBytes, sizeFunc[T]())
	return r
}

// boundBytes has r count bytes by sizeOf, up to bound. Without a sizeOf, or with a negative bound, it counts none. It is
// called before the first stream.
func (r *Receiver[T]) boundBytes(bound int64, sizeOf func(T) int) {
	r.bytes, r.sizeOf = nil, nil
	if sizeOf != nil && bound > 0 {
		r.bytes, r.sizeOf = newByteWindow(bound), sizeOf
	}
}

// shardCount returns how many shards a Receiver has at most. One keeps up with the handlers of about four processors,
// and with ScopeFlow all streams share their lanes anyway. One hands out some 10 million quick messages a second; nothing
// beyond two processors has been measured.
func shardCount(g *Gate) int {
	if r, ok := g.ordering.(*laneResolver); ok && r.opts.Scope == ScopeFlow {
		return 1
	}
	return max(1, runtime.GOMAXPROCS(0)/4)
}

// enter makes s a user of the shard that has the fewest, whose goroutine lives until they have left. It is called once, by
// Run, before the reader starts. A shard that is yet to be started is preferred to one that has users: streams are spread
// over as many processors as may be.
//
// To count the user and to publish the shard is one step under mu, or leave might end the shard in between. ask takes mu too
// for a stream that has no shard yet: once such a stream was read by ask while it entered.
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

// leave is told that a user of sh has left. It reports whether that was the last one: then the shard must end. It is called
// by the shard itself, which notes the answer in over. From then on enter does not find it, and inspect does not wake it.
func (r *Receiver[T]) leave(sh *shard[T]) (last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sh.users--
	if sh.users > 0 {
		return false
	}
	r.shards[slices.Index(r.shards, sh)] = nil
	r.pace = sh.pace.next()
	return true
}

// inspect has sh call look, which may look at the streams, all of which are sh's, or have been until they were done. It
// blocks until it has, which is for as long as sh needs for what it was told before: not for the caller's code, since a
// goroutine that runs that is replaced as the shard's. So a handler or an Observer may ask for Stats. All streams of a
// shard are looked at in one event: one after the other they would be seen at different moments, and the sum of what is in
// flight could exceed Capacity.
//
// The request is a user of sh, so that the shard is still there to answer it. If the last user has left, its streams are
// done, or will be in a moment, and what is done anybody may look at.
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
	sh.crew.lead.demand()
	<-seen
}

// Receive is one stream: it reads recv until io.EOF, runs every message, and returns when all have finished. key may be
// nil: then all keys are "". See [Flow.Run], which is the same with the options of New.
func (r *Receiver[T]) Receive(ctx context.Context, recv func() (T, error), key OrderingKeyFunc[T]) (Summary, error) {
	s := r.newStream(ctx, key)
	return s.end(s.beginAndRun(recv))
}

// newStream returns a stream that nobody else knows yet: begin makes it known to Stats and to a shutdown.
//
// It decides how the stream is lined up. It is direct if it matters where a message stands, though it can't run yet: with
// batches, which look at lanes and not at mailboxes; where a message may be refused on receipt; and where others line up in the
// same lanes, or a caller's own resolver is to be asked. Where it may be refused, its reader waits for verdicts.
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

// tellShutdown tells of the beginning of the end. The coordinator calls it once, on a goroutine of its own, after all streams
// have been told: an Observer that hangs holds up neither them nor Close. There is no message that its panic could fail.
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

// reader is the goroutine that reads a stream's source, since recv may block and can't be interrupted. It numbers each
// message, names its key and puts it into the stream's mailbox. The number comes first, since that tells a duplicate of a
// session, which is not asked for a key and takes neither a place in the window nor a turn.
//
// The fields are its goroutine's alone; what it shares with others is in its stream: mailbox, reading and runState. Nobody
// waits for it: Run returns when its messages are finished, though it may still be blocked in recv, and then it must find out
// by itself that its stream is over. So it relies on nothing that ends with Run.
type reader[T any] struct {
	s      *stream[T]
	recv   func() (T, error)
	seq    uint64 // messages received so far, without duplicates
	number uint64 // the Seq of the message at hand, or of the last one
	credit uint64 // messages that may be received before the window is looked at again
	at     entry[T]
	in     callersCode

	// Then the reader may have to wait for the verdict on one before it reads the next.
	refusable bool // messages may be refused on receipt
}

// reading is what a reader shares with its stream's shard and with Run. It is atomics and channels with room for one, so that
// neither a shard nor Run ever waits for a reader.
type reading struct {
	window   window
	activity activity
	verdict  verdict
}

// callersCode says which of the caller's functions a reader is in: whose panic it is. It is set around each call, since the
// one deferred function that recovers for all of them can't know otherwise.
type callersCode uint8

const (
	inNone callersCode = iota
	inRecv
	inKey // the key function, or what measures a message
)

// run reads until the source ends, or the stream does: then what recv still returns is discarded.
//
// A runtime.Goexit runs the deferred functions and ends the goroutine: so one of them fails the stream then. The shard is
// told last, when state says why no more comes: it ends the stream if nothing is pending, and if the last message has
// finished before, nobody else tells it.
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
//
// It blocks for room, in recv, and for a verdict. Whether the context has ended is asked again after recv: what arrives later
// is not received, or it would be counted, and dropped, in a stream whose client is gone.
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
		// Nor is it received once the stream has ended otherwise: Run and Shutdown may have returned, after which none of
		// the caller's functions is called for it.
		if s.state.phase() >= phaseDraining {
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
		if s.session != nil { // after it is received: what the saver then looks at counts it
			s.session.saver.touch()
		}
	}
	normal = true
	return nil
}

// duplicate reports whether the message at hand was settled by an earlier stream of the session: it is only counted. The
// Observer is told of it here, on the reader's goroutine.
func (rd *reader[T]) duplicate() bool {
	s := rd.s
	if !s.session.before.settled(rd.at.seq) {
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

// put receives the message at hand. It reports whether more may be received. What the shard needs to know of the message is
// said before the mailbox has it, since it may be finished before put returns: that the reader waits for the verdict, and how
// many bytes are pending. A mailbox that is shut takes nothing, and the bytes are counted off again.
//
// inCallersCode is cleared last: who looks whether the stream is idle sees that, or that the mailbox has got one more than
// has finished, or the time of the finish.
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

// ended handles recv's first error. recv is not called again. gRPC cancels a stream's context before the Recv of an oversized
// message returns, so an end of the context is not yet the reason: recv's status may say more.
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

// awaitRoom blocks while the stream must not be read. It returns false if it must not be read any more. It looks at
// everything again after each wait, for a wake-up may have any reason. MaxPending is looked at once for a whole credit,
// since what the reader alone uses up can't be used by others; bytes are looked at before each message, since all streams
// share them.
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

// waitForRoom blocks until MaxPending may allow for more. It says that it waits before it looks once more: see window.
func (rd *reader[T]) waitForRoom() {
	w := &rd.s.window
	w.waiting.Store(true)
	defer w.waiting.Store(false)
	if w.room(rd.seq) == 0 { // otherwise it has come since it was looked for
		rd.waitForSpace()
	}
}

// waitForBytes blocks until MaxPendingBytes may allow for more. stopWaiting is called however the wait ends, also with the
// stream: a reader that was woken for bytes wakes the next, who would otherwise wait on though there is room.
func (rd *reader[T]) waitForBytes() {
	share := rd.s.window.share
	defer share.stopWaiting()
	if share.wait() {
		rd.waitForSpace()
	}
}

// waitForSpace blocks until the reader is woken, or its stream ends. Whoever calls it has said before what it waits for.
// Meanwhile the reader is not in recv: if the context ends there is no recv that could say more, and Run need not wait for
// one. A batch that lingers is told, since of this stream nothing more will come.
func (rd *reader[T]) waitForSpace() {
	s := rd.s
	s.activity.inRecv.Store(false)
	defer s.activity.inRecv.Store(true)
	s.endLinger()
	// Looked at after inRecv was cleared: Run looks at inRecv after it has seen the context end, so one sees the other.
	if s.parent.Err() != nil { // Run may have seen it end while recv seemed to be what the reader waits for
		return
	}
	<-s.window.space // also when the stream ends or must end: the shard signals it in sweep and in end
}

// noted keeps when a message has finished, for IdleTimeout.
func (a *activity) noted(at time.Duration) { a.last.Store(int64(at)) }

// verdict lets a reader wait until what it has received is lined up, and until a refusal has come to its end. The reader asks
// before it puts the message and awaits after it; the shard gives, when it has lined up everything there is and no refusal is
// under way (see shard.nextEntry). Both count what the stream has received, without duplicates of a session.
type verdict struct {
	// asked is set by the reader and cleared by the shard. Between the two the reader asks nothing else: it is blocked in
	// await, or has left since the stream takes nothing more.
	asked atomic.Uint64 // how many are to be lined up until the reader goes on; 0: it does not wait
	given chan struct{}
}

// ask is called before the message seq is put where the shard finds it: it may be lined up at once, and a shard that did not
// know of the question would give no answer.
func (v *verdict) ask(seq uint64) { v.asked.Store(seq) }

// isAsked reports whether the reader waits, or is about to.
func (v *verdict) isAsked() bool { return v.asked.Load() > 0 }

// give is told that everything up to seq is lined up. It must not block, since it is called by the shard: it puts one token
// for each question, and the reader asks the next one only when it has taken that.
func (v *verdict) give(seq uint64) {
	if asked := v.asked.Load(); asked > 0 && asked <= seq {
		v.asked.Store(0)
		v.given <- struct{}{} // has room: it was asked for one
	}
}

// await blocks until the verdict is given, or over is closed: a stream that ends gives no verdict on what it drops.
func (v *verdict) await(over <-chan struct{}) {
	select {
	case <-v.given:
	case <-over:
	}
}
