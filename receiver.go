package flow

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// Receiver reads streams and brings each message through a Gate to an Engine. It is safe for concurrent use: many
// streams may be received at once, and they share what their Gate and Engine share.
type Receiver[T any] struct {
	gate   *Gate
	engine *Engine[T]

	maxPending int64 // math.MaxInt64: unbounded
	bytes      *byteWindow
	sizeOf     func(T) int // nil without bytes
	idle       time.Duration
	onFailure  func(context.Context, *Failure) FailureAction
	observer   Observer

	ids   atomic.Uint64
	begin paceMode // how streams begin; tests change it

	// What streams that are idle give up for others to use, until the garbage collector takes it: it owns neither
	// channel nor timer, so that streams in different synctest bubbles may share it.
	messages sync.Pool // *message[T], the heads of queues
	chunks   sync.Pool // *chunk[T], the heads of lists

	// mu is taken before any lane shard's and any stream's.
	mu      sync.Mutex
	streams map[*stream[T]]struct{}
	total   Summary // of the streams that have ended
}

// NewReceiver returns a receiver for streams that pass gate and are run by engine. The options of a stream (MaxPending,
// OnFailure, Observer and so on) are at their defaults; [New] sets them. It panics if either is nil.
func NewReceiver[T any](gate *Gate, engine *Engine[T]) *Receiver[T] {
	if gate == nil || engine == nil {
		panic("flow: a Receiver needs a Gate and an Engine, got nil")
	}
	return &Receiver[T]{
		gate: gate, engine: engine, maxPending: defaultMaxPending, streams: make(map[*stream[T]]struct{}),
	}
}

// Receive is one stream: it reads recv until io.EOF, runs every message, and returns when all have finished. key may be
// nil: then all keys are "". See [Flow.Run], which is the same with the options of New.
func (r *Receiver[T]) Receive(ctx context.Context, recv func() (T, error), key OrderingKeyFunc[T]) (Summary, error) {
	s := r.newStream(ctx, key)
	return s.end(s.beginAndRun(recv))
}

// beginAndRun blocks for as long as the client likes. What is on the stack meanwhile had better be little, or that doubles:
// so end, which it says entered for, is apart.
func (s *stream[T]) beginAndRun(recv func() (T, error)) (entered bool) {
	entered = s.begin()
	switch {
	case !entered:
		s.failure = &Failure{Kind: FailureShutdown, Err: reasonShutdown}
	case s.parent.Err() != nil:
		s.fail(contextFailure(s.parent))
		_ = s.carriers.Wait()
	case s.lives():
		s.run(recv)
	}
	return entered
}

// begin makes s known, and says whether it may run.
func (s *stream[T]) begin() bool {
	s.r.mu.Lock()
	s.r.streams[s] = struct{}{}
	s.r.mu.Unlock()
	s.tellStart()
	return s.r.gate.shutdown.enter(s)
}

// end is the last of s: nothing of it runs any more.
func (s *stream[T]) end(entered bool) (Summary, error) {
	s.cancel(nil)
	sum, f := s.summary(), s.result()
	// Its error says that this is not gRPC, where there is no client to tell. A panic is of the caller's own transport stream.
	crash := recovered(func() error { _ = grpc.SetTrailer(s.parent, sum.trailer()); return nil })
	if crash != nil && f == nil {
		f = newFailure(FailureInternal, crash)
	}
	s.tellEnd(sum, f)
	s.r.mu.Lock()
	delete(s.r.streams, s)
	s.r.total.add(sum)
	s.r.mu.Unlock()
	if entered {
		s.r.gate.shutdown.leave(s)
	}
	if f != nil {
		return sum, f
	}
	return sum, nil
}

func (r *Receiver[T]) newStream(ctx context.Context, key OrderingKeyFunc[T]) *stream[T] {
	s := &stream[T]{
		r: r, id: r.ids.Add(1), parent: ctx, start: time.Now(), keyOf: key,
		space: make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.startFn = s.startWorker
	s.inCall = grpc.ServerTransportStreamFromContext(ctx) != nil
	p := r.gate.pressure
	direct := p.refuses()
	if direct {
		s.comeFn = s.comeWorker
	}
	switch o := r.gate.ordering.(type) {
	case nil:
	case *laneResolver:
		s.order = o
		if o.opts.Scope == ScopeFlow {
			s.shared = o.lanes
		}
		direct = direct || s.shared != nil || o.opts.Capacity > 0 || o.opts.KeyCapacity > 0
	default:
		s.own = newOwnOrder(s.ctx, o)
		s.order = localOrder
		direct = true
	}
	if s.order != nil && s.shared == nil {
		s.lanes.bounds = s.order.bounds()
	}
	s.inbox.resetLocked()
	s.maxWorkers = math.MaxInt
	switch {
	case s.order != nil && s.shared == nil && s.order.opts.Mode == OrderingFIFO:
		s.serial, s.maxWorkers = true, 1
	case p.slots != nil:
		s.maxWorkers = p.opts.Capacity
	}
	s.mayLease = !direct && !p.soft()
	s.setPaceLocked(r.begin)
	if direct {
		s.inbox.bypass()
	} else {
		s.rounds = p.slots != nil && (s.order == nil || s.order.opts.Mode == OrderingKeyedFIFO)
	}
	return s
}

// localOrder is what a stream keeps beside a caller's own resolver.
var localOrder = newLaneResolver(OrderingOptions{Mode: OrderingKeyedFIFO})

// run receives and runs until the stream is done and its carriers are gone.
func (s *stream[T]) run(recv func() (T, error)) {
	if s.r.idle > 0 {
		s.mu.Lock()
		s.idle = time.AfterFunc(s.r.idle, s.checkIdle)
		s.mu.Unlock()
	}
	in := &intake[T]{s: s, recv: recv}
	go in.run()
	select {
	case <-s.done:
	case <-s.ctx.Done():
		if s.parent.Err() != nil {
			s.contextEnded()
		}
		<-s.done
	}
	s.cancel(nil) // nothing of the stream runs: this ends a worker that waits for a slot it no longer needs
	_ = s.carriers.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range []*time.Timer{s.idle, s.grace} {
		if t != nil {
			t.Stop()
		}
	}
	if s.own != nil {
		s.own.end()
	}
}

func (s *stream[T]) clock() time.Duration { return time.Since(s.start) }

// ordered says whether messages of key have an order among them.
func (s *stream[T]) ordered(key string) bool {
	_, ordered := s.place(key)
	return ordered
}

// place returns the hash of key's lane. ordered is false for a key that has no order, as none has without an order.
func (s *stream[T]) place(key string) (hash uint64, ordered bool) {
	if s.order == nil {
		return 0, false
	}
	return s.order.place(key)
}

// add adds what a stream has finished.
func (s *Summary) add(o Summary) {
	s.Succeeded += o.Succeeded
	s.Failed += o.Failed
	s.Rejected += o.Rejected
	s.Dropped += o.Dropped
	s.Retried += o.Retried
	s.Received = s.Succeeded + s.Failed + s.Rejected + s.Dropped
}
