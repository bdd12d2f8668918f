package flow

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"
)

// BatchHandler handles several messages in one call, usually in one transaction. They are of any streams and keys; those
// of one key stand in order, without a gap, and are in no other call meanwhile. len(errs) == len(batch), and all errs are
// nil.
//
// If it returns nil, errs[i] is the outcome of batch[i]: leave it nil for success. A message that fails is retried by the
// rules of [RetryOptions], in a later batch; one with [ErrNotAttempted] was not touched. Later messages of its key that are
// in the same call are believed, so a handler that goes on after a failure puts ErrNotAttempted for those of the key (with
// [OrderingFIFO], of the stream).
//
// If it returns an error, panics or exits its goroutine, no message of the batch has succeeded: it must have undone what it
// did, as a transaction that is rolled back. What becomes of the batch then says [BatchOptions].
//
// ctx carries no stream's values and no deadline: those are [Message.Context]'s. It ends with Retry.AttemptTimeout, with
// Close and the end of the grace period, and when all streams of the batch have ended early, with the last one's reason as
// its cause. One stream's end neither cancels nor fails another's messages, but it waits for the call.
//
// Neither slice may be kept, since both are used again; Values may.
type BatchHandler[T any] func(ctx context.Context, batch []Message[T], errs []error) error

// ErrNotAttempted as errs[i] of a [BatchHandler] says that batch[i] was not touched: it comes again, first in line, and it
// was no attempt. A call of which nothing was attempted has failed as a whole.
var ErrNotAttempted = errors.New("flow: not attempted")

// errNothingAttempted is the error of a call of which nothing was attempted: to call again and again would make no progress.
var errNothingAttempted = fmt.Errorf("nothing attempted: %w", ErrNotAttempted)

// BatchOptions say how the batches of a [BatchHandler] are made, and what becomes of one that has failed as a whole.
//
// When a slot is free, a batch is made of messages that have their turn and of those directly behind them in their lanes.
// Streams give one message each in turns, and within a stream keys do, until it is full. Capacity counts calls.
//
// A call that has failed as a whole is called again, together, by the rules of [RetryOptions]. When it has failed for the
// last time it is halved, and each half that fails is halved again, until the message that fails stands alone: only that
// one fails. These calls follow at once and count as attempts beyond MaxAttempts. If too many of them fail in a row, 4
// times the binary logarithm of the batch's size, it is an outage, and all that is left fails.
type BatchOptions struct {
	// MaxMessages bounds a batch. 0 means 256.
	MaxMessages int
	// MaxBytes bounds the bytes of a batch, measured as Options.MaxPendingBytes is; a message that is larger goes alone. 0
	// means no bound.
	MaxBytes int64
	// Linger is how long a batch that is not full waits for more, counted from when its first message could have begun. It
	// waits no longer than its streams are read. 0 means not at all: what came while the last call ran is the next batch.
	Linger time.Duration
	// NoIsolation has a batch that has failed as a whole for the last time fail altogether: no halves are called. One
	// client's message may then end the streams of others.
	NoIsolation bool
}

const defaultMaxMessages = 256

func (o BatchOptions) validate() error {
	switch {
	case o.MaxMessages < 0:
		return invalid("Batch.MaxMessages", o.MaxMessages, "must not be negative")
	case o.MaxBytes < 0:
		return invalid("Batch.MaxBytes", o.MaxBytes, "must not be negative")
	case o.Linger < 0:
		return invalid("Batch.Linger", o.Linger, "must not be negative")
	}
	return nil
}

// validateBatch refuses what can't be had with batches. The other policies, and QueueCapacity, decide on receipt whether
// there is a slot for one message; here a slot is a whole call's, which is made only when there is one.
func (o *Options) validateBatch() error {
	switch p := o.Backpressure; {
	case p.Policy != BackpressureQueue:
		return invalid("Backpressure.Policy", p.Policy, "must be BackpressureQueue with NewBatch")
	case p.QueueCapacity > 0:
		return invalid("Backpressure.QueueCapacity", p.QueueCapacity, "must be 0 with NewBatch: what waits is the next batch")
	case p.Capacity == 0:
		return invalid("Backpressure.Capacity", p.Capacity,
			"must be set with NewBatch: it counts calls, and while it is unlimited nothing waits and no batch forms")
	case o.Ordering.Resolver != nil:
		return invalid("Ordering.Resolver", "a resolver", "gives turns one by one: it can't be used with NewBatch")
	}
	return o.Batch.validate()
}

// NewBatch is [New] for a [BatchHandler]. Everything of Options holds as for New, with what [BatchOptions] adds. Capacity
// counts calls and must be set. The policy must be BackpressureQueue without a QueueCapacity, and a caller's own
// OrderingResolver can't be used.
func NewBatch[T any](handler BatchHandler[T], key OrderingKeyFunc[T], opts Options) (*Flow[T], error) {
	if handler == nil {
		return nil, errNilHandler
	}
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if err := opts.validateBatch(); err != nil {
		return nil, err
	}
	sizeOf := sizeFunc[T]()
	if opts.Batch.MaxBytes > 0 && sizeOf == nil {
		return nil, invalid("Batch.MaxBytes", opts.Batch.MaxBytes, sizelessRule[T]())
	}
	// newFlow knows nothing of batches: the handler is in b, and the engine, which has none, only decides about retries.
	b := &batching[T]{handler: handler, BatchOptions: opts.Batch}
	if b.MaxMessages == 0 {
		b.MaxMessages = defaultMaxMessages
	}
	opts.Batch = BatchOptions{}
	f, err := newFlow(newEngine[T](nil, opts.Retry), key, opts)
	if err != nil {
		return nil, err
	}
	r := f.receiver
	r.batching = b
	r.shards = r.shards[:1] // one batch forms at a time
	// MaxBytes needs sizes also where MaxPendingBytes, being negative, counts none.
	if b.MaxBytes > 0 {
		r.sizeOf = sizeOf
	}
	return f, nil
}

// sizelessRule says why a bound of bytes is refused.
func sizelessRule[T any]() string {
	return fmt.Sprintf("needs messages that have a size: a proto.Message, a method Size() int, a string or a []byte, not %v",
		reflect.TypeFor[T]())
}

// batching is what a Receiver has to make batches: the handler, and the options with their defaults. It does not change, so
// the shard and its workers share it.
type batching[T any] struct {
	handler BatchHandler[T]
	BatchOptions
}

// The way of a batch through its shard: form makes one of what has its turn, or lets one wait for more; call gives it to a
// worker, together with a slot; back (batch_run.go) takes it back.
//
// A message that is in a batch is in no queue. Its state says where the batch is: it forms, it is out, or it is held
// between two calls. It keeps its place in its lane meanwhile: a key's messages may be in one batch together, but what stands
// behind the last of them waits, so no other call has the key.
//
// A batch holds a slot from when it is given to a worker until its last part is back, and none while it forms or waits for
// its next call. Streams are direct: what they receive is lined up at once, since fill looks at lanes and not at mailboxes.

// batches is what a shard has under way of them. It is the shard's alone, like the shard's own fields; with workers it shares
// what is in out, by the rules that batchCall states. A batch is in one place at a time: forming, again, out, spare, or the
// shard's backoff.
type batches[T any] struct {
	sh *shard[T]
	*batching[T]
	forming *run[T]       // the one that waits for more, without a slot; nil: none does
	due     time.Duration // when it has lingered for long enough
	lingers bool          // it waits for that, and not for a slot
	again   []*run[T]     // those that are called again as a whole, and only lack a slot
	out     []*run[T]     // those with workers
	spare   []*run[T]
	gaps    []*run[T] // while a stream is swept: those with messages in their lists that are in them no more

	behind   []*stream[T] // while one is filled: streams with something behind what is in it
	lined    uint64       // messages so far
	leftOver uint64       // of these, those that were there when the last full batch began
}

func newBatches[T any](sh *shard[T], b *batching[T]) *batches[T] {
	if b == nil {
		return nil
	}
	return &batches[T]{sh: sh, batching: b}
}

// new returns an empty batch that forms.
// It has no place yet: the caller puts it into one, or gives it back to reuse.
func (b *batches[T]) new() *run[T] {
	if n := len(b.spare); n > 0 {
		r := b.spare[n-1]
		b.spare[n-1] = nil
		b.spare = b.spare[:n-1]
		return r
	}
	r := new(run[T])
	r.reset(runBatch)
	r.batch = new(batchCall[T])
	return r
}

// reuse takes a batch that has nothing left in it. Its list may by now be a part of the memory that it once had: all is the
// whole of it, and is cleared, so that a spare batch keeps nothing alive.
func (b *batches[T]) reuse(r *run[T]) {
	c := r.batch
	clear(r.list[:cap(r.list)])
	list := r.list[:0]
	if c.all != nil {
		clear(c.all)
		list = c.all[:0]
	}
	r.list = nil
	r.reset(runBatch)
	r.list = list
	*c = batchCall[T]{parts: c.parts[:0], batchWork: c.memory()}
	if len(b.spare) < maxRun {
		b.spare = append(b.spare, r)
	}
}

// lineUp counts m, which is being received. By its place a message is known as left over from a full batch: what was there
// when that began has waited for a call already, and does not linger for more.
func (b *batches[T]) lineUp(m *message[T]) {
	b.lined++
	m.place = b.lined
}

// join has m, which has its turn or stands behind one that is in it, join r. It reports whether there was room: if not, r
// is full, though a smaller message might still fit: it would overtake. A message that is larger than MaxBytes joins an empty
// batch, which is full with that, so that it goes alone and not never.
func (b *batches[T]) join(r *run[T], m *message[T]) bool {
	c := r.batch
	if n := len(r.list); n > 0 && (n >= b.MaxMessages || b.MaxBytes > 0 && c.bytes+m.size > b.MaxBytes) {
		c.full = true
	}
	if c.full {
		return false
	}
	b.add(r, m)
	r.list = append(r.list, m)
	c.full = len(r.list) >= b.MaxMessages || b.MaxBytes > 0 && c.bytes >= b.MaxBytes
	return true
}

// add notes that m is in r, but for r's list, into which the caller puts it. What has been tried before, has come back
// untouched or is left over makes r one that does not linger.
func (b *batches[T]) add(r *run[T], m *message[T]) {
	c := r.batch
	m.state, m.run = stateForming, r
	c.bytes += m.size
	c.hurried = c.hurried || m.attempts > 0 || m.again || m.place <= b.leftOver
}

// dispatch begins batches while there are any that may begin. It reports whether any has. The slot is taken before the batch
// is made: until there is one, what comes can still be in it. Batches that are called again as a whole come first: they have
// waited already, and what stands behind them in their lanes with them.
func (b *batches[T]) dispatch() (sent bool) {
	sh := b.sh
	for sh.wantsSlot() {
		if sh.slots.take(1) == 0 {
			b.lingers = false
			sh.askForSlot()
			break
		}
		var r *run[T]
		if len(b.again) > 0 {
			r = b.again[0]
			b.again = slices.Delete(b.again, 0, 1)
		} else if r = b.form(); r == nil {
			sh.slots.unused(1)
			break
		}
		r.slots = 1
		b.call(r)
		sent = true
	}
	sh.flush()
	return sent
}

// form returns the batch that begins now, given that there is a slot for it. It returns nil if there is none, or if the one
// that forms waits for more: then it is asked again whenever something has changed. That is the case whenever the shard heeds
// an event: a message is lined up, a stream ends or is told to drain, its reader is about to wait for room (endLinger), or
// the alarm, which arm sets for due, has fired.
func (b *batches[T]) form() *run[T] {
	sh := b.sh
	r := b.forming
	if r == nil {
		r = b.new()
	}
	b.fill(r)
	c := r.batch
	switch {
	case len(r.list) == 0:
		b.reuse(r)
		return nil
	case c.full:
		b.leftOver = b.lined
	case b.Linger == 0 || c.hurried || b.forming != nil && sh.clock() >= b.due || !r.isRead():
	default:
		if b.forming == nil {
			b.forming, b.due = r, sh.after(b.Linger)
		}
		b.lingers = true
		return nil
	}
	b.forming = nil
	return r
}

// isRead reports whether more may come from one of the streams of r.
func (r *run[T]) isRead() bool {
	for _, m := range r.list {
		if m.stream.isRead() {
			return true
		}
	}
	return false
}

// fill puts into r what has its turn: streams give one message each in turns, and within a stream lanes do, each with
// its head and then those behind it.
//
// The followers of what is in r stand in their stream's behind queue, from which it gives when it has no more heads: so
// neither a stream nor a key that has much waiting fills a batch before others have given theirs. They are still waiting in
// their lanes. If r is full first, the queues are emptied and nothing else needs to be undone; if not, all of them have
// joined.
func (b *batches[T]) fill(r *run[T]) {
	sh := b.sh
	for !r.batch.full && sh.turns.len() > 0 {
		s := sh.turns.first()
		q := &s.backlog.ready
		if q.head == nil {
			q = &s.backlog.behind
		}
		if m := q.head; m != nil {
			if !b.join(r, m) {
				break
			}
			q.pop()
			if q == &s.backlog.ready {
				sh.nready--
			}
			b.followIn(m)
		}
		sh.turns.pop()
		if s.backlog.inTurns = s.backlog.ready.n+s.backlog.behind.n > 0; s.backlog.inTurns {
			sh.turns.push(s)
		}
	}
	for i, s := range b.behind { // what is not in it goes on waiting for its turn
		s.backlog.behind = messageQueue[T]{}
		b.behind[i] = nil
	}
	b.behind = b.behind[:0]
}

// followIn has the message behind m, which has joined the batch that is being filled, stand in line for that. With ScopeFlow
// it may be another stream's. One whose key is skipped must not run: it stays behind m, and is rejected when its turn comes.
func (b *batches[T]) followIn(m *message[T]) {
	sh := b.sh
	f := sh.follower(m)
	if f == nil || f.stream.backlog.isSkipped(f) {
		return
	}
	s := f.stream
	if s.backlog.behind.n == 0 {
		b.behind = append(b.behind, s)
	}
	s.backlog.behind.push(f)
	if !s.backlog.inTurns {
		s.backlog.inTurns = true
		sh.turns.push(s)
	}
}

// follow has m, which was lined up behind another, join the batch that forms, if that other is in it. fill would not find it:
// that looks for followers only as the one before them joins.
func (b *batches[T]) follow(m *message[T]) {
	if b.forming == nil || m.stream.backlog.isSkipped(m) {
		return
	}
	if before := m.before(); before != nil && before.run == b.forming {
		b.join(b.forming, m)
	}
}

// formFirst has messages, which have come back without having been attempted, be the first of the next batch, as is promised
// of ErrNotAttempted. If what forms already does not fit behind them, its last messages leave again: from the end, so that no
// message of a lane stays while one before it goes.
func (b *batches[T]) formFirst(list []*message[T]) {
	if len(list) == 0 {
		return
	}
	if b.forming == nil {
		b.forming = b.new()
	}
	r := b.forming
	for _, m := range list {
		b.add(r, m)
	}
	r.batch.hurried = true
	r.list = slices.Insert(r.list, 0, list...)
	for n := len(r.list); n > len(list) && (n > b.MaxMessages || b.MaxBytes > 0 && r.batch.bytes > b.MaxBytes); n-- {
		b.leaveForming(r)
	}
	r.batch.full = len(r.list) >= b.MaxMessages || b.MaxBytes > 0 && r.batch.bytes >= b.MaxBytes
}

// leaveForming makes the last message of r what it was before it joined: ready, in front of its stream's others, if it has
// its turn, and waiting in its lane otherwise.
func (b *batches[T]) leaveForming(r *run[T]) {
	sh := b.sh
	last := len(r.list) - 1
	m := r.list[last]
	r.list[last] = nil
	r.list = r.list[:last]
	r.batch.bytes -= m.size
	m.run = nil
	if m.before() != nil {
		m.state = stateWaiting
		return
	}
	m.state = stateReady
	m.stream.backlog.ready.pushFront(m)
	sh.hasTurn(m.stream)
}

// call gives r to a worker. r has a slot, and the messages in its list are those of this call; they may be a part of a batch
// whose other parts are in parts. From here until back the messages' delivery is the worker's.
//
// The context is of no stream: it has no values and no deadline, as the contract says, and ends by endCalls or with the call.
func (b *batches[T]) call(r *run[T]) {
	sh := b.sh
	for _, m := range r.list {
		m.state, m.run, m.step, m.tried, m.again = stateOut, r, stepAttempt, m.attempts, false
	}
	// The first call has the whole list, and all later ones have parts of its memory.
	if r.batch.all == nil {
		r.batch.all = r.list
	}
	r.at.Store(unclaimed)
	r.next = 0
	r.batch.ctx, r.batch.cancel = context.WithCancelCause(context.Background())
	b.out = append(b.out, r)
	sh.give(r)
}

// endCalls is told that s may have ended early: then so do the contexts of the calls whose streams all have. The shard calls
// it for each event of a stream, as the end of Run's own context is one (see stream.run), and when messages have been left
// out of a call, since those that remain may all be of streams that have ended. The cause is the last stream's.
func (b *batches[T]) endCalls(s *stream[T]) {
	if s.ctx.Err() == nil {
		return
	}
	for _, r := range b.out {
		if r.hasEnded(s) {
			r.batch.cancel(context.Cause(s.ctx))
		}
	}
}

// hasEnded reports whether s is one of the streams of r, and all of them have ended early.
func (r *run[T]) hasEnded(s *stream[T]) bool {
	found := false
	for _, m := range r.list {
		if m.stream.ctx.Err() == nil {
			return false
		}
		found = found || m.stream == s
	}
	return found
}

// takeOut takes m, whose stream has ended, out of the batch that it is in, which forms or is held. The sweep of the stream
// calls it for all its messages, brings them to their end, and then calls closeGaps: m is in no batch any more, but still in
// its lane, and in the batch's list until then.
func (b *batches[T]) takeOut(m *message[T]) {
	r := m.run
	c := r.batch
	m.run = nil
	if r.worker == nil { // it is in the list, and not in a part
		c.bytes -= m.size
	}
	if !c.gaps {
		c.gaps = true
		b.gaps = append(b.gaps, r)
	}
}

// closeGaps has the batches out of which messages were taken forget them. A batch of none ceases to be. Each list is gone
// through once: to look for each message by itself took a shard seconds, where a stream had a large batch.
//
// A batch with a worker is not called off: what was taken out was in one of its other parts, which are the shard's alone,
// and the worker looks only at the part that is out.
func (b *batches[T]) closeGaps() {
	for i, r := range b.gaps {
		b.gaps[i] = nil
		c := r.batch
		c.gaps = false
		gone := func(m *message[T]) bool { return m.run != r }
		if r.worker != nil { // out with another part
			for i := range c.parts {
				c.parts[i] = slices.DeleteFunc(c.parts[i], gone)
			}
			continue
		}
		r.list = slices.DeleteFunc(r.list, gone)
		c.full = false
		if len(r.list) == 0 {
			b.forget(r)
		}
	}
	b.gaps = b.gaps[:0]
}

// forget takes r, in which nothing is left, from where it forms or is held.
func (b *batches[T]) forget(r *run[T]) {
	switch i := slices.Index(b.again, r); {
	case b.forming == r:
		b.forming = nil
	case i >= 0:
		b.again = slices.Delete(b.again, i, i+1)
	default:
		b.sh.backoff.removeBatch(r)
	}
	b.reuse(r)
}
