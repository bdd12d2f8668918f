package flow

import (
	"context"
	"hash/maphash"
	"sync/atomic"
)

// OrderingMode says which messages must run one after the other.
type OrderingMode int

const (
	// OrderingFIFO runs one message of the stream at a time, in Seq order.
	OrderingFIFO OrderingMode = iota
	// OrderingKeyedFIFO runs, for each key, one message at a time, in Seq order, all attempts of one before the next
	// starts. Different keys run concurrently, and a key never waits for another except for capacity: keys take turns.
	// Short handlers may run on fewer goroutines than the capacity allows.
	OrderingKeyedFIFO
	// OrderingNone keeps no order: up to Capacity messages run concurrently, and they need not start in order of receipt.
	OrderingNone
)

// String returns the constant's name.
func (m OrderingMode) String() string {
	return enumName(int(m), "OrderingMode", "OrderingFIFO", "OrderingKeyedFIFO", "OrderingNone")
}

// OrderingScope says among whose messages an order holds.
type OrderingScope int

const (
	// ScopeStream orders the messages of one stream.
	ScopeStream OrderingScope = iota
	// ScopeFlow orders a key across all streams of the Flow, by receipt: a device that reconnects while its old stream
	// still drains stays in order. With OrderingFIFO the whole Flow runs one message at a time.
	ScopeFlow
)

// String returns the constant's name.
func (s OrderingScope) String() string {
	return enumName(int(s), "OrderingScope", "ScopeStream", "ScopeFlow")
}

// OrderingOptions define which messages are ordered, among which others, and how many may wait for their turn.
type OrderingOptions struct {
	// Mode is the kind of order.
	Mode OrderingMode
	// Scope is whose messages are ordered together.
	Scope OrderingScope
	// Capacity bounds how many messages of the scope wait behind an earlier one; one more is refused on receipt with
	// FailureOrdering. 0 means unbounded.
	Capacity int
	// KeyCapacity is the same for each key, so that a hot key can't fill its stream's window. 0 means unbounded. Any burst
	// of one key is beyond it, however healthy its handler: to slow clients down instead of refusing, use MaxPending.
	KeyCapacity int
	// UnorderedEmptyKey leaves messages whose key is "" without an order among them. Off, "" is a key like any other.
	UnorderedEmptyKey bool
	// Resolver is a caller's own order in place of the built-in one, with all that Options offers. Mode must be
	// OrderingKeyedFIFO or OrderingFIFO: that is kept within each stream, and Resolver is asked when a message's turn
	// has come there, with its key ("" in OrderingFIFO), before it takes a slot. nil: the built-in order. It is not
	// closed by flow.
	Resolver OrderingResolver
}

func (o OrderingOptions) validate() error {
	switch {
	case o.Mode < OrderingFIFO || o.Mode > OrderingNone:
		return invalid("Ordering.Mode", o.Mode, "is not a known OrderingMode")
	case o.Scope < ScopeStream || o.Scope > ScopeFlow:
		return invalid("Ordering.Scope", o.Scope, "is not a known OrderingScope")
	case o.Capacity < 0:
		return invalid("Ordering.Capacity", o.Capacity, "must not be negative")
	case o.KeyCapacity < 0:
		return invalid("Ordering.KeyCapacity", o.KeyCapacity, "must not be negative")
	case o.KeyCapacity > 0 && o.Mode != OrderingKeyedFIFO:
		return invalid("Ordering.KeyCapacity", o.KeyCapacity, "needs Mode OrderingKeyedFIFO, which is "+o.Mode.String())
	case o.UnorderedEmptyKey && o.Mode != OrderingKeyedFIFO:
		return invalid("Ordering.UnorderedEmptyKey", true, "needs Mode OrderingKeyedFIFO, which is "+o.Mode.String())
	case o.Capacity > 0 && o.Mode == OrderingNone:
		return invalid("Ordering.Capacity", o.Capacity, "means nothing with Mode OrderingNone")
	case o.Scope == ScopeFlow && o.Mode == OrderingNone:
		return invalid("Ordering.Scope", o.Scope, "means nothing with Mode OrderingNone")
	case o.Resolver != nil && o.Mode == OrderingNone:
		return invalid("Ordering.Resolver", "a resolver", "means nothing with Mode OrderingNone")
	case o.Resolver != nil && o.Scope == ScopeFlow:
		return invalid("Ordering.Resolver", "a resolver", "keeps the order across streams itself: Scope must be ScopeStream")
	}
	return nil
}

// ReleaseFunc ends a turn, so that the next in line gets its own. To call it more than once is harmless.
type ReleaseFunc func()

// OrderingResolver gives turns. [NewFIFO] and [NewKeyedFIFO] are built in; a caller's own (a lock kept in a database,
// say) works with [Gate.Admit] and with a [Receiver], which keeps keyed FIFO within each stream itself and calls Wait
// when a message's local turn has come, before it takes a slot. Whoever makes a resolver closes it: flow never does.
type OrderingResolver interface {
	// Wait blocks until it is key's caller's turn and returns the function that ends the turn. It must return soon
	// after ctx has ended, with an error if the turn has not come. Once Wait has returned, the end of ctx ends no turn, only
	// the ReleaseFunc does: a handler whose stream has ended may still run. It is called from many goroutines at once.
	Wait(ctx context.Context, key string) (ReleaseFunc, error)
	// Close refuses all who wait and all who come.
	Close()
}

const (
	reasonOrderFull   = reason("too many messages wait for their turn")
	reasonKeyFull     = reason("too many messages of one key wait for their turn")
	reasonOrderShut   = reason("the ordering resolver is closed")
	reasonSkipped     = reason("an earlier message of this key was skipped with SkipKey")
	reasonManySkipped = reason("too many keys were skipped")
	reasonOrderError  = reason("the ordering resolver refused")
)

// laneResolver is both built-in resolvers. Called directly it orders its callers by arrival. A Receiver that finds one
// in its Gate does not call it but gives each stream lanes of the same kind, or, with ScopeFlow, lines its messages up
// in this one's: a message that waits in a lane costs no goroutine, one that waits in Wait does.
//
// With ScopeFlow messages and direct callers stand in the same lanes, by arrival: so Gate.Admit keeps the order of a key
// beside the streams. closed is looked at when a turn is asked for and never later: turns that have come stay.
type laneResolver struct {
	opts   OrderingOptions
	lanes  *sharedLanes
	flow   *laneBounds // of those
	closed atomic.Bool
	shut   chan struct{} // closed by Close
}

// NewFIFO returns the resolver of OrderingFIFO: one caller at a time, whatever the key, by arrival. Mode is ignored.
// It panics on impossible options, with the text that [New] would return, and on a Resolver.
func NewFIFO(o OrderingOptions) OrderingResolver {
	o.Mode = OrderingFIFO
	return newLaneResolver(o)
}

// NewKeyedFIFO returns the resolver of OrderingKeyedFIFO: for each key one caller at a time, by arrival. Mode is
// ignored. It panics on impossible options, with the text that [New] would return, and on a Resolver.
func NewKeyedFIFO(o OrderingOptions) OrderingResolver {
	o.Mode = OrderingKeyedFIFO
	return newLaneResolver(o)
}

// newLaneResolver refuses a Resolver, which it would never ask: New takes that out of the options before, and asks it beside
// this one.
func newLaneResolver(o OrderingOptions) *laneResolver {
	mustBeValid(o.validate())
	if o.Resolver != nil {
		mustBeValid(invalid("Ordering.Resolver", "a resolver", "can't be asked by a built-in one: use it in its place"))
	}
	r := &laneResolver{opts: o, shut: make(chan struct{})}
	r.flow = &laneBounds{opts: r.opts, closed: &r.closed}
	r.lanes = newSharedLanes(r.flow)
	return r
}

// bounds returns those of a stream's own lanes. Without a Capacity there is nothing in them that is the stream's, so that all
// streams may have the same ones.
func (r *laneResolver) bounds() *laneBounds {
	if r.opts.Capacity == 0 {
		return r.flow
	}
	return &laneBounds{opts: r.opts, closed: &r.closed}
}

var hashSeed = maphash.MakeSeed() // per process: keys are chosen by clients, who must not be able to choose collisions

// place returns the hash of key's lane, which is not 0. ordered is false for a key that has no order, and the hash then 0:
// the rest of the package knows a message without a lane by that. It is called by readers and direct callers at once.
func (r *laneResolver) place(key string) (hash uint64, ordered bool) {
	switch {
	case r.opts.Mode == OrderingFIFO:
		return 1, true
	case key == "" && r.opts.UnorderedEmptyKey:
		return 0, false
	}
	return max(1, maphash.String(hashSeed, key)), true
}

// lane returns the name of key's lane. It is also the key with which a caller's own resolver is asked.
func (r *laneResolver) lane(key string) string {
	if r.opts.Mode == OrderingFIFO {
		return ""
	}
	return key
}

// laneWaiter is a direct caller's place in a lane. It is made by join, on the caller's goroutine, which then waits for came;
// whoever leaves the lane before it closes came, without a lock. It is used once, since a ReleaseFunc may be called long
// after.
type laneWaiter struct {
	turn
	shard *laneShard
	came  chan struct{} // closed when the turn comes
	over  atomic.Bool   // released
}

func (w *laneWaiter) turnCame() { close(w.came) }

// join lines a direct caller up. A nil waiter means that key has no order. It does not block. Who is lined up must release:
// the turn comes also to a caller who does not wait for it any more.
func (r *laneResolver) join(key string) (w *laneWaiter, err error) {
	if r.closed.Load() {
		return nil, &Failure{Kind: FailureShutdown, Key: key, Err: reasonOrderShut}
	}
	hash, ordered := r.place(key)
	if !ordered {
		return nil, nil
	}
	w = &laneWaiter{shard: r.lanes.shard(hash), came: make(chan struct{})}
	w.owner, w.spare = w, new(lane)
	first, why := w.shard.join(r.lane(key), hash, &w.turn)
	if why != "" {
		return nil, &Failure{Kind: FailureOrdering, Key: key, Err: why}
	}
	if first {
		close(w.came)
	}
	return w, nil
}

// first reports whether the turn has come already.
func (w *laneWaiter) first() bool {
	select {
	case <-w.came:
		return true
	default:
		return false
	}
}

// release ends the turn, or the wait for it. Of a turn that came while its caller gave up, the next in line gets it: to leave
// the lane is one step for a waiter and for a head, so it makes no difference which of the two it was.
//
// It is the ReleaseFunc of Wait, so any goroutine may call it, any number of times. The lane must be left once only: by then
// another may have the turn. The next is told after the lane's lock has been given back, and told by its home if it is a
// message: what a shard owns changes on the shard's goroutine only.
func (w *laneWaiter) release() {
	if w.over.Swap(true) {
		return
	}
	if next, home := w.shard.leave(&w.turn); home != nil {
		home.handOver(next.owner)
	} else if next != nil {
		next.owner.turnCame()
	}
}

// wait blocks until the turn has come; else the place is given up. A turn that has come already counts, whatever has ended:
// it is not refused after that. An end that comes at the same time as the turn may win.
func (r *laneResolver) wait(ctx context.Context, w *laneWaiter, key string) error {
	if w.first() {
		return nil
	}
	select {
	case <-w.came:
		return nil
	case <-ctx.Done():
		w.release()
		f := contextFailure(ctx)
		f.Key = key
		return f
	case <-r.shut:
		w.release()
		return &Failure{Kind: FailureShutdown, Key: key, Err: reasonOrderShut}
	}
}

// Wait implements OrderingResolver. The error is a *Failure: FailureOrdering when too many wait,
// FailureContextCancelled when ctx ended first, FailureShutdown when the resolver is closed.
func (r *laneResolver) Wait(ctx context.Context, key string) (ReleaseFunc, error) {
	if ctx.Err() != nil {
		f := contextFailure(ctx)
		f.Key = key
		return nil, f
	}
	w, err := r.join(key)
	if err != nil {
		return nil, err
	}
	if w == nil {
		return func() {}, nil
	}
	if err := r.wait(ctx, w, key); err != nil {
		return nil, err
	}
	return w.release, nil
}

// Close implements OrderingResolver. Turns that have come stay until they are released. Streams that line up in this
// resolver through a Receiver have their later messages refused with FailureOrdering.
func (r *laneResolver) Close() {
	if !r.closed.Swap(true) {
		close(r.shut)
	}
}

// streamOrder is the order that a stream's messages keep: lanes of its own, the resolver's with ScopeFlow, or lanes of
// its own and a caller's resolver beside them.
//
// What init sets does not change, so anybody may call what looks only at that: the reader place and mayRefuse, workers
// ordered. What looks into lanes is the shard's to call: own has no lock, and of shared the lane's part is locked.
type streamOrder struct {
	resolver *laneResolver  // nil: there is no order
	own      laneTable      // unless shared
	shared   *sharedLanes   // nil without ScopeFlow
	external *externalOrder // nil without a caller's own resolver
	line     uint64         // the hash of the one lane of a FIFO that is the stream's own; 0: there is none
}

// resolverOption is the resolver of OrderingOptions.Resolver, and what is kept beside it within each stream. It is asked
// like a caller's own even if it is one of the built-in ones, which several Flows may then share.
type resolverOption struct {
	OrderingResolver
	local *laneResolver
}

// localOrder is what a stream keeps beside a caller's own resolver that was given to NewGate, where no options say more:
// keyed FIFO without bounds. All such streams share it, since nothing of it but its options is used: each has lanes of its
// own.
var localOrder = newLaneResolver(OrderingOptions{Mode: OrderingKeyedFIFO})

// init is called by newStream. ctx is the stream's, by whose end the waiting for a caller's own resolver ends; id tells the
// stream from all others of its Receiver.
func (o *streamOrder) init(ctx context.Context, id uint64, r OrderingResolver) {
	switch r := r.(type) {
	case nil:
		return
	case *laneResolver:
		o.resolver = r
	case *resolverOption:
		o.resolver, o.external = r.local, newExternalOrder(ctx, r.OrderingResolver)
	default:
		o.resolver, o.external = localOrder, newExternalOrder(ctx, r)
	}
	if o.resolver.opts.Scope == ScopeFlow {
		o.shared = o.resolver.lanes
	} else {
		o.own.bounds = o.resolver.bounds()
		// The one lane of a FIFO has a hash that differs from stream to stream: a shard remembers slow keys by their hashes,
		// and a slow stream must not make others run alone.
		if o.resolver.opts.Mode == OrderingFIFO {
			o.line = id * 0x9e3779b97f4a7c15 // odd, so it is another for every stream, and 0 for none
		}
	}
}

// decidesOnReceipt reports whether it matters where a message that is received stands in its lane, though it can't run yet:
// because it may be refused, because others line up in the same lanes and the order of receipt counts, or because a caller's own
// resolver is to be asked as soon as its turn has come. All other streams leave messages in the mailbox until a run has room
// for them.
func (o *streamOrder) decidesOnReceipt() bool {
	return o.sharesTurns() || o.refuses()
}

// sharesTurns reports whether others than the stream give its messages their turns.
func (o *streamOrder) sharesTurns() bool { return o.external != nil || o.shared != nil }

// mayRefuse reports whether one of so many messages that are to be lined up may find a bound reached, where so many of the
// stream are pending. The reader calls it, and waits for a verdict if so. It may say yes in vain but not no, as far as the
// stream's own messages go: every one that is not lined up yet counts as one that will wait, and of a key as many may wait as
// are pending. With ScopeFlow other streams' messages of the key count too, whose number the reader can't know: so with a
// KeyCapacity it always says yes then.
func (o *streamOrder) mayRefuse(undecided, pending int64) bool {
	if !o.refuses() {
		return false
	}
	bounds := o.own.bounds
	if o.shared != nil {
		bounds = o.resolver.flow
	}
	limit, keyLimit := int64(o.resolver.opts.Capacity), int64(o.resolver.opts.KeyCapacity)
	return limit > 0 && bounds.waiting.Load()+undecided > limit || keyLimit > 0 && (o.shared != nil || pending > keyLimit)
}

// asks reports whether a message of the hash needs the turn of a caller's own resolver. A message without a lane does not: it
// has no order to keep.
func (o *streamOrder) asks(hash uint64) bool { return o.external != nil && hash != 0 }

// refuses reports whether a message may be refused since too many wait for their turn.
func (o *streamOrder) refuses() bool {
	return o.resolver != nil && (o.resolver.opts.Capacity > 0 || o.resolver.opts.KeyCapacity > 0)
}

// place returns the hash of key's lane; ordered is false for a key that has no order.
func (o *streamOrder) place(key string) (hash uint64, ordered bool) {
	switch {
	case o.line != 0:
		return o.line, true
	case o.resolver == nil:
		return 0, false
	}
	return o.resolver.place(key)
}

// ordered reports whether messages of key have an order among them.
func (o *streamOrder) ordered(key string) bool {
	_, ordered := o.place(key)
	return ordered
}

// join lines t up in key's lane. first reports whether its turn has come with that. If why is not empty, t was refused
// and is in no lane. t keeps its place until leave is called, through all attempts of its message and their backoff.
func (o *streamOrder) join(key string, hash uint64, t *turn) (first bool, why reason) {
	name := o.resolver.lane(key)
	if o.shared != nil {
		return o.shared.shard(hash).join(name, hash, t)
	}
	return o.own.join(name, hash, t)
}

// leave takes t out of its lane and returns whose turn has come by that, or nil. The caller, a shard, goes on with one that
// is its own, as home says. One of another shard is handed over to that from here, and a direct caller is woken.
func (o *streamOrder) leave(t *turn, hash uint64, home turnHome) (next *turn) {
	if o.shared == nil {
		return o.own.leave(t)
	}
	next, other := o.shared.shard(hash).leave(t)
	switch {
	case next == nil || other == home:
		return next
	case other == nil: // a direct caller
		next.owner.turnCame()
	default:
		other.handOver(next.owner)
	}
	return nil
}

// cancelWait takes t out of its lane if it stands there behind another: nobody's turn comes by that.
func (o *streamOrder) cancelWait(t *turn, hash uint64) {
	if o.shared != nil {
		o.shared.shard(hash).cancelWait(t)
		return
	}
	o.own.cancelWait(t)
}

// isHead reports whether t, which is in a lane, has its turn.
func (o *streamOrder) isHead(t *turn, hash uint64) bool {
	if o.shared != nil {
		sh := o.shared.shard(hash)
		sh.mu.Lock()
		defer sh.mu.Unlock()
	}
	return t.lane.head == t
}

// before returns the turn in front of t, which is in a lane, if that is of the same home; nil otherwise, and if t has its
// turn. The lock is given back before the caller, a shard, looks at what is returned: so that must be its own.
func (o *streamOrder) before(t *turn, hash uint64) *turn {
	if o.shared == nil {
		return t.prev
	}
	sh := o.shared.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if t.prev == nil || t.prev.home != t.home {
		return nil
	}
	return t.prev
}

// trim gives back the memory of lanes that are gone. It is for the stream's own table: a shared one is trimmed as it is left.
func (o *streamOrder) trim() { o.own.trim() }

// end ends the waiting for a caller's own resolver. The shard calls it when it sweeps the stream, since a shutdown without
// drain drops what waits but does not end the stream's context; and Run calls it at the end, to free the context.
func (o *streamOrder) end() {
	if o.external != nil {
		o.external.end()
	}
}

// externalOrder is a caller's own resolver, which a stream asks beside its lanes: when a message's local turn has come,
// and before it takes a slot. It belongs to one stream; the resolver in it may serve many, and is not closed from here.
type externalOrder struct {
	OrderingResolver
	ctx context.Context // of those who ask: a shutdown ends it before the stream's
	end context.CancelFunc
}

func newExternalOrder(ctx context.Context, r OrderingResolver) *externalOrder {
	o := &externalOrder{OrderingResolver: r}
	o.ctx, o.end = context.WithCancel(ctx)
	return o
}

// turn asks for key's turn and hands the answer to answered. It does so on a goroutine of its own, since to ask may block,
// and the caller's code may panic or exit the goroutine.
//
// answered is called exactly once, also after a runtime.Goexit, by a deferred function that finds errGoexit where nothing
// else was said: without an answer the message would keep its lane for ever and its stream would not end. The shard calls
// turn, and is told of the answer by an event; if the stream is over by then, a turn that has come after all is released
// without a run.
func (o *externalOrder) turn(key string, answered func(ReleaseFunc, error)) {
	go func() {
		var release ReleaseFunc
		err := errGoexit
		defer func() { answered(release, err) }()
		err = recovered(func() (err error) {
			release, err = o.Wait(o.ctx, key)
			return err
		})
	}()
}
