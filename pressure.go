package flow

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

// BackpressurePolicy says what becomes of a message that finds capacity exhausted.
type BackpressurePolicy int

const (
	// BackpressureQueue lets it wait. QueueCapacity bounds how many do.
	BackpressureQueue BackpressurePolicy = iota
	// BackpressureHardReject refuses it on receipt with FailureBackpressure, whether its turn has come or not.
	BackpressureHardReject
	// BackpressureSoftAllow runs it all the same.
	BackpressureSoftAllow
	// BackpressureSoftAllowWithSignal runs it, sets Message.Pressured and tells the Observer.
	BackpressureSoftAllowWithSignal
)

// String returns the constant's name.
func (p BackpressurePolicy) String() string {
	return enumName(int(p), "BackpressurePolicy", "BackpressureQueue", "BackpressureHardReject",
		"BackpressureSoftAllow", "BackpressureSoftAllowWithSignal")
}

// BackpressureOptions define behaviour under load.
type BackpressureOptions struct {
	// Policy is what becomes of a message that finds capacity exhausted. It is decided on receipt: a message that was
	// accepted is never refused later, and waits for its slot if it must.
	Policy BackpressurePolicy
	// Capacity is how many executions may be in flight over all streams of the Flow. Waiting for a turn or for a next
	// try takes none of it. 0 means unlimited.
	Capacity int
	// QueueCapacity bounds, over the Flow, how many messages wait that have their turn and lack a slot; one more is
	// refused on receipt with FailureBackpressure. BackpressureQueue only. 0 means unbounded.
	QueueCapacity int
}

func (o BackpressureOptions) validate() error {
	switch {
	case o.Policy < BackpressureQueue || o.Policy > BackpressureSoftAllowWithSignal:
		return invalid("Backpressure.Policy", o.Policy, "is not a known BackpressurePolicy")
	case o.Capacity < 0:
		return invalid("Backpressure.Capacity", o.Capacity, "must not be negative")
	case o.QueueCapacity < 0:
		return invalid("Backpressure.QueueCapacity", o.QueueCapacity, "must not be negative")
	case o.QueueCapacity > 0 && o.Policy != BackpressureQueue:
		return invalid("Backpressure.QueueCapacity", o.QueueCapacity, "needs Policy BackpressureQueue, which is "+o.Policy.String())
	case o.QueueCapacity > 0 && o.Capacity == 0:
		return invalid("Backpressure.QueueCapacity", o.QueueCapacity, "needs a Capacity: without one nothing waits for it")
	case o.Policy != BackpressureQueue && o.Capacity == 0:
		return invalid("Backpressure.Policy", o.Policy, "needs a Capacity: without one it is never exhausted")
	}
	return nil
}

const (
	reasonNoCapacity = reason(textNoCapacity) // there is no more to say than the kind does
	reasonQueueFull  = reason("too many messages wait for capacity")
)

// PressureController owns the capacity: it counts executions and decides about those that find it exhausted.
// It is safe for concurrent use.
//
// Under BackpressureQueue and BackpressureHardReject an execution holds a slot of the semaphore, which hands slots out in
// the order of asking. A shard has at most one goroutine asking there, however many messages wait in its streams, and gives
// slots that come back from runs to the semaphore when others ask, as many as leaves each stream with the same share: see
// free. Among its own streams a shard lets them take turns (see dispatch). The soft policies never wait, so they only count.
//
// The semaphore alone says who may run. The counters beside it say what it can't be asked: how many slots are taken, for
// refusals and Stats, and whether anybody waits. They change one after the other, so that a sum of two of them may be off by
// what is on its way; that decides nothing but whether a reader waits for a verdict.
type PressureController struct {
	opts   BackpressureOptions
	slots  *semaphore.Weighted // nil: nobody ever waits
	inUse  atomic.Int64        // slots taken; with a soft policy, executions
	asking atomic.Int64        // goroutines that wait in slots.Acquire
	queued atomic.Int64        // messages and callers that have their turn and no slot; kept only with QueueCapacity
}

// NewPressureController returns a controller of its own capacity. It panics on impossible options, with the text that
// [New] would return.
func NewPressureController(o BackpressureOptions) *PressureController {
	mustBeValid(o.validate())
	p := &PressureController{opts: o}
	if o.Capacity > 0 && !p.soft() {
		p.slots = semaphore.NewWeighted(int64(o.Capacity))
	}
	return p
}

func (p *PressureController) soft() bool {
	return p.opts.Policy == BackpressureSoftAllow || p.opts.Policy == BackpressureSoftAllowWithSignal
}

// refuses reports whether the controller may refuse anybody: then slots are decided on at receipt, one by one.
func (p *PressureController) refuses() bool {
	return p.opts.Policy == BackpressureHardReject || p.opts.QueueCapacity > 0
}

// rejects reports whether a message received now is refused, whether or not its turn has come. That it returns false promises
// nothing: others may take the last slot meanwhile, and then the message is refused where it asks for its own.
func (p *PressureController) rejects() bool {
	return p.opts.Policy == BackpressureHardReject && p.inUse.Load() >= int64(p.opts.Capacity)
}

// try takes n slots if so many are free and nobody waits for one: the semaphore lets nobody overtake who has asked before. It
// takes all of them or none, and does not block, so a shard may call it.
func (p *PressureController) try(n int) bool {
	if p.slots == nil {
		return true
	}
	if !p.slots.TryAcquire(int64(n)) {
		return false
	}
	p.inUse.Add(int64(n))
	return true
}

// ask takes a slot, behind those who asked before. It blocks until there is one or ctx ends, so a shard calls it on a
// goroutine of its own (see slots.ask).
func (p *PressureController) ask(ctx context.Context) error {
	if err := p.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	p.inUse.Add(1)
	return nil
}

// giveBack gives n slots back to the semaphore, which hands them to those who have asked first.
func (p *PressureController) giveBack(n int) {
	if p.slots != nil {
		p.inUse.Add(int64(-n)) // before the release: whoever gets a slot must not see it counted twice
		p.slots.Release(int64(n))
	}
}

// tryQueue counts one more that has its turn and no slot, unless QueueCapacity of them wait. To look and to count is one
// step, hence the loop: shards and direct callers count at once, and the bound must hold over all of them.
func (p *PressureController) tryQueue() bool {
	limit := int64(p.opts.QueueCapacity)
	for limit > 0 {
		n := p.queued.Load()
		if n >= limit {
			return false
		}
		if p.queued.CompareAndSwap(n, n+1) {
			break
		}
	}
	return true
}

// addQueued counts n more (or fewer) that have their turn and no slot: those accepted before are never refused.
func (p *PressureController) addQueued(n int) {
	if p.opts.QueueCapacity > 0 {
		p.queued.Add(int64(n))
	}
}

// begin and end count an execution under a soft policy. pressured says that capacity was exhausted without it. A shard calls
// them once for each run, which executes one message at a time, and does not make mail runs under these policies.
func (p *PressureController) begin() (pressured bool) {
	return p.soft() && p.inUse.Add(1) > int64(p.opts.Capacity)
}

func (p *PressureController) end() {
	if p.soft() {
		p.inUse.Add(-1)
	}
}

// admit takes a slot for a direct caller whose turn has come. fresh says that it had come when the caller called: only then
// may it be refused. A caller who has waited for its turn was accepted, so it counts as queued without a look at the bound.
// It blocks on the caller's goroutine; the counters are taken back however the wait ends, or a place in the queue would be
// lost with each caller whose context ends.
func (p *PressureController) admit(ctx context.Context, fresh bool) (pressured bool, err error) {
	if p.soft() {
		return p.begin() && p.opts.Policy == BackpressureSoftAllowWithSignal, nil
	}
	if p.try(1) {
		return false, nil
	}
	switch {
	case fresh && p.opts.Policy == BackpressureHardReject:
		return false, reasonNoCapacity
	case !fresh:
		p.addQueued(1)
	case !p.tryQueue():
		return false, reasonQueueFull
	}
	p.asking.Add(1)
	err = p.ask(ctx)
	p.asking.Add(-1)
	p.addQueued(-1)
	return false, err
}

// leave gives back what admit has given: a slot, or the count of an execution. One of the two does nothing.
func (p *PressureController) leave() {
	p.end()
	p.giveBack(1)
}

// Acquire takes a slot, as the policy says: it waits for one, is refused (FailureBackpressure), or goes on without.
// Waiting callers are served in order. It fails with FailureContextCancelled when ctx ends first. The error is a
// *Failure. The Admission's Release gives the slot back.
func (p *PressureController) Acquire(ctx context.Context) (Admission, error) {
	if ctx.Err() != nil {
		return Admission{}, contextFailure(ctx)
	}
	pressured, err := p.admit(ctx, true)
	if err != nil {
		return Admission{}, pressureFailure(ctx, err, "")
	}
	return Admission{&admission{pressure: p, pressured: pressured}}, nil
}

// pressureFailure makes a Failure of admit's error, which is one of the controller's own reasons or else that of ctx.
func pressureFailure(ctx context.Context, err error, key string) *Failure {
	if why, ok := err.(reason); ok {
		return &Failure{Kind: FailureBackpressure, Key: key, Err: why}
	}
	f := contextFailure(ctx)
	f.Key = key
	return f
}

// slots are what a shard holds of the capacity. A run takes them when it is sent and gives them back when it returns.
//
// Where messages may be refused, a slot belongs to one message from the moment that it has its turn: a run has as many as it
// has messages that had theirs when it was filled, and hands them on to those behind these in their lanes; and what is free is
// free for everybody at once. Everywhere else a run takes one, since it executes one message at a time, and the shard keeps a
// free one for its next run unless others ask.
//
// It is the shard's alone and has no lock; all that it shares with others is in p. What is held is in inUse or in spare, and
// spare is given back before the shard sleeps and when it ends: otherwise a slot would lie idle where nobody looks for it.
type slots struct {
	p      *PressureController
	spare  int  // held, and in no run
	inUse  int  // held, and in runs
	short  int  // ready messages that lack one; kept where messages may be refused
	turns  int  // times that something has run since a slot went to others
	asking bool // a goroutine waits for one more
	cancel context.CancelFunc
}

// take gets up to n slots for a run and returns how many it got: at most one unless messages may be refused. 0 means that the
// shard must ask. With unlimited capacity, and under the soft policies, it is 1 and nothing is held. Where messages may be
// refused it takes only what reserve and cover have got before, so that no run has a slot that was never a message's.
func (s *slots) take(n int) (got int) {
	switch {
	case s.p.slots == nil:
		return 1
	case s.p.refuses():
		got = min(n, s.spare)
		s.spare -= got
	case s.spare > 0:
		s.spare--
		got = 1
	case s.p.try(1):
		got = 1
	}
	s.inUse += got
	return got
}

// reserve gets one more slot for a message that is being admitted, where messages may be refused. It is got on receipt and
// not when the run is made: otherwise one received later, or a direct caller, could take it, and HardReject would have
// accepted more than there are slots for.
func (s *slots) reserve() bool {
	if !s.p.try(1) {
		return false
	}
	s.spare++
	return true
}

// queue counts one more message that waits for a slot, unless QueueCapacity of them do.
func (s *slots) queue() bool {
	if !s.p.tryQueue() {
		return false
	}
	s.short++
	return true
}

// cover tries to get a slot for each of so many ready messages, where each needs one of its own. Those that were queued on
// receipt have none yet, and those that come back for their next try have given up theirs.
func (s *slots) cover(ready int) {
	if !s.p.refuses() || s.spare >= ready {
		return
	}
	if s.p.try(ready - s.spare) { // at once, since the semaphore has a lock
		s.spare = ready
		return
	}
	for s.spare < ready && s.reserve() {
	}
}

// count keeps how many of so many ready messages lack a slot, where that bounds what is accepted, and gives back what
// none of them needs. Each dispatch ends with it, and so corrects what queue has counted on receipt: only the difference is
// told to p, where other shards and direct callers count too. Elsewhere what is held lies idle if nothing is ready, and goes
// to those who ask.
func (s *slots) count(ready int) {
	if !s.p.refuses() {
		if ready == 0 && s.others() > 0 {
			s.trim(0)
		}
		return
	}
	s.trim(min(s.spare, ready))
	short := ready - s.spare
	s.p.addQueued(short - s.short)
	s.short = short
}

// free takes back n slots in which ran streams have run something, where so many streams wait. If others ask, one goes to them
// each time that all that wait could have had a turn: so one that was asked for is kept for so many turns. Those who ask are
// served in order, so all streams have about the same share, whichever shard they are of, and a direct caller has that of a
// stream. When a slot was given away after each turn, shards had the same share, and a stream that was alone on its own three
// times what each of three others had; a shard that gave none away while it has something to run would let others wait for
// ever. What is kept is used at once, or given back by count.
func (s *slots) free(n, ran, streams int) {
	if s.p.slots == nil || n == 0 { // a run that only brings messages to their end has none
		return
	}
	s.back(n)
	s.share(ran, streams)
}

// back takes back n slots of a run.
func (s *slots) back(n int) {
	s.inUse -= n
	s.spare += n
}

// share gives others who ask what is theirs: see free.
func (s *slots) share(ran, streams int) {
	s.turns = min(s.turns, streams-1) + ran // who asks after nobody has for long is served at once
	if given := min(s.turns/streams, s.others(), s.spare); given > 0 {
		s.turns -= given * streams
		s.trim(s.spare - given) // who asked before comes first, also before what waits here
	}
}

// freeAtOnce is the first part of free where messages may be refused: what no message that is ready needs is nobody's from here
// on. It is called before anything is received that a finished message makes room for: once the slot was given back only by
// count, and by then a message had been refused though nothing ran. share follows it when that is lined up.
func (s *slots) freeAtOnce(n, ready int) {
	s.back(n)
	s.trim(min(s.spare, ready))
}

// unused takes back n slots of a run that is not sent after all. Whoever else asks gets them at once.
func (s *slots) unused(n int) { s.free(n, n, 1) }

// others returns how many ask for a slot beside this shard, which would only bring one back to itself.
func (s *slots) others() int {
	n := int(s.p.asking.Load())
	if s.asking {
		n--
	}
	return n
}

// trim gives back all but keep of those that are in no run.
func (s *slots) trim(keep int) {
	if n := s.spare - keep; n > 0 {
		s.p.giveBack(n)
		s.spare = keep
	}
}

// ask waits for a slot on a goroutine of its own, behind those who asked before, and hands it to got. It does nothing if
// it does so already or if all slots are this shard's anyway: they become free here.
//
// enter is called before the goroutine starts: it keeps the shard alive until got has been called, which sends it an event. A
// slot that came after the shard had ended would be lost.
func (s *slots) ask(enter func(), got func(error)) {
	if s.asking || s.inUse+s.spare >= s.p.opts.Capacity {
		return
	}
	s.asking = true
	s.p.asking.Add(1)
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	enter()
	go func() { got(s.p.ask(ctx)) }()
}

// answered is told what has become of the asking, as an event on the shard. Without an error there is one more slot, also if
// stopAsking has come too late to prevent it.
func (s *slots) answered(err error) {
	s.p.asking.Add(-1)
	s.asking = false
	s.cancel()
	if err == nil {
		s.spare++
	}
}

// stopAsking ends the asking if there is one; its answer still comes, and until then asking stays set, so that there is
// never a second one. A shard calls it before it sleeps with nothing that wants a slot: it would take one from others for
// nothing, and be woken for it.
func (s *slots) stopAsking() {
	if s.asking {
		s.cancel()
	}
}
