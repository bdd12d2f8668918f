package flow

import "context"

// streamOrder is the order that a stream's messages keep: lanes of its own, the resolver's with ScopeFlow, or lanes of
// its own and a caller's resolver beside them.
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

// localOrder is what a stream keeps beside a caller's own resolver.
var localOrder = newLaneResolver(OrderingOptions{Mode: OrderingKeyedFIFO})

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
		if o.resolver.opts.Mode == OrderingFIFO {
			o.line = id * 0x9e3779b97f4a7c15 // odd, so it is another for every stream, and 0 for none
		}
	}
}

// decidesOnReceipt reports whether it matters at once where a message that is received stands in its lane.
func (o *streamOrder) decidesOnReceipt() bool {
	return o.external != nil || o.shared != nil || o.refuses()
}

// mayRefuse reports whether one of so many messages that are to be lined up may find a bound reached, where so many of the
// stream are pending.
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

// asks reports whether a message of the hash needs the turn of a caller's own resolver.
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
// and is in no lane.
func (o *streamOrder) join(key string, hash uint64, t *turn) (first bool, why reason) {
	name := o.resolver.lane(key)
	if o.shared != nil {
		return o.shared.shard(hash).join(name, hash, t)
	}
	return o.own.join(name, hash, t)
}

// leave takes t out of its lane and returns whose turn has come by that, or nil. Others of home get it from here.
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

// before returns the turn in front of t, which is in a lane. It returns nil if t has its turn.
func (o *streamOrder) before(t *turn, hash uint64) *turn {
	if o.shared != nil {
		sh := o.shared.shard(hash)
		sh.mu.Lock()
		defer sh.mu.Unlock()
	}
	return t.prev
}

// trim gives back the memory of lanes that are gone.
func (o *streamOrder) trim() { o.own.trim() }

// end ends the waiting for a caller's own resolver.
func (o *streamOrder) end() {
	if o.external != nil {
		o.external.end()
	}
}

// externalOrder is a caller's own resolver, which a stream asks beside its lanes: when a message's local turn has come,
// and before it takes a slot.
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
