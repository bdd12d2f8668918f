package flow

import (
	"math"
	"slices"
	"sync"
	"time"
)

// message is a Message on its way through its stream. It belongs to its stream's shard, but while it is in a run: then
// the worker that has claimed it owns its delivery, until it gives the run back or claims the next one. The claim, a
// compare-and-swap of run.at, and the channel to and from the worker are what hands it over; nothing of it has a lock.
//
// Its memory is used again for other messages of any stream of the Receiver, so nobody may keep a message beyond its end.
// A turn that others hand over may come late, when the message is another one already: see shard.grant.
type message[T any] struct {
	// What its worker reads and writes comes first, on few cache lines, since they go to another processor and back with
	// each message. When the fields were brought into this order, and clear learned to leave what was not written, lined-up
	// messages took 6 to 40 % less processor time: 722 to 609 ns with an Observer, 393 to 204 with Ordering.Capacity.
	stream *stream[T]
	entry[T]
	delivery

	// From here on, all of a message that succeeds at once is its shard's alone. tried is there so that the shard can tell
	// which attempt is under way: attempts, which the worker counts, it must not read meanwhile.
	state   state
	refused bool        // on receipt
	tried   int         // attempts before it was handed out
	run     *run[T]     // of stateOut
	link    *message[T] // the next in the one queue that it is in: ready or free

	prevLive, nextLive *message[T] // the stream's unfinished messages, in order of receipt

	turn // its place in a lane
	trouble[T]
	observed
	place uint64 // among all that its shard has lined up; kept with batches
	batchPlace
}

// delivery is how far a message has been brought to its end. It is the worker's while that has the message. The shard reads
// it when the run is back, or, in a long run, when at is beyond the message: the worker does not come back to it then.
type delivery struct {
	step      step
	outcome   outcome
	settled   bool // OnFailure has skipped it
	skipKey   bool // and with it the later ones of its key
	crashed   bool // its cause is a panic or a Goexit of the handler
	told      bool // the Observer has heard its outcome
	pressured bool
	attempts  int
	release   ReleaseFunc // of a caller's own resolver
}

// trouble is what is known of a message that does not succeed at once. fault outlives its try: if the stream ends while the
// message waits for the next one, it is the cause of the failure that the message then has (see abort).
type trouble[T any] struct {
	wait  *wait[T]      // of stateBackoff
	cause error         // of stepCause: what the handler, or a caller's own resolver, has returned
	fault *Failure      // of the last attempt
	delay time.Duration // before the next attempt
}

// observed is what the Observer is told of a message.
type observed struct {
	waited time.Duration // until the first attempt
	took   time.Duration // the last attempt
}

// batchPlace is where a message stands in the call of a batch.
type batchPlace struct {
	batch     int  // how many messages the call has,
	index     int  // and which of them it is, as the Observer is told
	again     bool // it has come back untouched
	announced bool // the Observer has been told of the attempt that is yet to come
}

// clear makes m, which has finished, one that can be used for another message. What was not written need not be: of a
// message that has succeeded at once that is half of it, and lies on cache lines of its own. Whoever writes to trouble,
// observed or batchPlace must see to it that the condition here finds it, or the next message inherits it.
//
// The shard calls it when m has left its lane and the live list: turn is empty by then, but for what belongs to the memory
// and not to the message, its owner and its spare lane.
func (m *message[T]) clear() {
	r := m.stream.r
	m.stream = nil
	m.entry = entry[T]{} // by itself: assigned together, the two went by way of the stack, which took 20 ns
	if m.outcome != outcomeSucceeded || m.attempts != 1 {
		m.trouble = trouble[T]{}
	}
	if r.observer != nil {
		m.observed = observed{}
	}
	if r.batching != nil {
		m.batchPlace = batchPlace{}
	}
	m.delivery = delivery{}
	m.state, m.refused, m.tried, m.run = stateWaiting, false, 0, nil
}

// state says where a message is. It is its shard's, and changes only there: a worker says by the step at which it gives the
// message back what the next state is to be. The zero value is also that of a message that is in no lane yet, or is not in
// use.
type state uint8

const (
	stateWaiting state = iota // for its turn
	stateAsking               // for the turn that a caller's own resolver gives
	stateReady                // it has its turn, and is in its stream's ready queue
	stateOut                  // in a run
	stateBackoff              // for its next try
	stateForming              // in the batch that forms
	stateHeld                 // in a batch that will be called again
)

// step is what a worker does next with a message. Each calls at most one function of the caller's, which may panic or
// call runtime.Goexit: see worker.crashed. So it is known whose the panic was, and the message goes on with the next step
// instead of calling the same function again.
//
// The order counts: steps before stepBackoff are the worker's to do, at those from stepBackoff on it is done with the
// message.
type step uint8

const (
	stepAttempt   step = iota // run the handler
	stepCause                 // make a failure of what the caller's code has done to it before it could run
	stepRetry                 // tell the Observer of the coming try
	stepSuccess               // tell of the success
	stepAsk                   // ask OnFailure
	stepFailure               // tell of the failure or the refusal, and end the stream if it must end
	stepDrop                  // tell of the drop
	stepRelease               // give back the turn of a caller's own resolver
	stepBackoff               // wait for the next try: the worker gives the message back
	stepUntouched             // the handler of its batch did not attempt it: the same
	stepFinished              // it is at its end: the worker goes on with the next
)

// failure makes a Failure of m. It asks err's methods, which are the caller's code: so it is for workers, and on a shard only
// for an err that is one of the package's own reasons, of which nothing is asked.
func (m *message[T]) failure(kind FailureKind, err error) *Failure {
	f := newFailure(kind, err)
	f.Seq, f.Key, f.Attempts, f.Value = m.seq, m.key, m.attempts, m.value
	return f
}

// fail makes m one whose last attempt has failed for good. OnFailure is asked next, while m still has its place in the lane:
// so that SkipKey comes before the next message of the key can start.
func (m *message[T]) fail(kind FailureKind, err error) { m.failWith(m.failure(kind, err)) }

func (m *message[T]) failWith(f *Failure) { m.fault, m.outcome, m.step = f, outcomeFailed, stepAsk }

// refuse makes m one that will not run: on receipt, because of a skipped key, or because a caller's own resolver has refused
// its turn. A worker brings it to its end like one that has run, since OnFailure and the Observer are told of it too.
func (m *message[T]) refuse(kind FailureKind, err error) {
	m.fault, m.outcome, m.step = m.failure(kind, err), outcomeRejected, stepAsk
}

// abort makes m one whose stream has ended before it was done: dropped if it never ran, otherwise failed, with the error
// of its last try as the cause. Neither comes to OnFailure, and neither is what has ended the stream.
//
// The shard calls it for what has not begun, a worker for the message at hand. It may be called for a message whose outcome
// another failure has set already: what was set last before the message is settled counts.
func (m *message[T]) abort(kind FailureKind) {
	if m.attempts == 0 {
		m.outcome, m.step = outcomeDropped, stepDrop
		return
	}
	if m.fault == nil {
		m.fault = m.failure(kind, nil)
	} else {
		m.fault = m.fault.as(kind) // the error's methods are the caller's code, which a shard must not call
	}
	m.outcome, m.step = outcomeFailed, stepFailure
}

// retryUnlessOver has m, which has failed, be tried again after delay, if again says so and its stream goes on. It is called
// by the worker after failWith, which it overrides. A stream that is over has no more tries: what would have been tried again
// is aborted and does not come to OnFailure, as if the shutdown had found it in its backoff. If the stream ends after this
// look, the shard finds it swept when the run comes back, and aborts m there (see shard.retry).
func (m *message[T]) retryUnlessOver(again bool, delay time.Duration) {
	s := m.stream
	switch {
	case !again:
	case s.state.phase() >= phaseAborting:
		m.abort(s.abortKind())
	default:
		m.delay, m.step = delay, stepRetry
	}
}

// asks reports whether OnFailure is asked about m, or was; a nil m is one that is not lined up. It is the shard's to ask.
// A shutdown counts such a message as cut off, like one whose handler runs: OnFailure is the caller's code too.
func (m *message[T]) asks() bool {
	return m != nil && m.state == stateOut && m.run.asking.Load() == m
}

// runs reports whether a worker has m under way; a nil m is one that is not lined up. It is the shard's to ask, after
// settleLong: of a run that goes on meanwhile it shows the message that ran then, and so never two.
func (m *message[T]) runs() bool {
	if m == nil {
		return false
	}
	r := m.run
	switch {
	case m.state != stateOut || r.kind == runFinish:
		return false
	case r.kind == runBatch:
		return r.at.Load() >= 0
	}
	if r.recalled { // all behind the claimed message was taken back, so that this one is the last
		return m == r.list[r.end-1]
	}
	return r.at.Load() >= 0 && r.list[r.settled] == m
}

// before returns the message that m stands behind in its lane, if that is of the same shard; nil otherwise. With batches nobody
// but their shard has messages in the lanes, even with ScopeFlow: NewBatch allows for one shard, and shares its Gate with no
// direct caller. So there nil says that m has its turn.
func (m *message[T]) before() *message[T] {
	if m.lane == nil {
		return nil
	}
	if t := m.stream.order.before(&m.turn, m.hash); t != nil {
		b, _ := t.owner.(*message[T])
		return b
	}
	return nil
}

// turnCame implements turnOwner. The turn of a message comes to its shard: see handOver.
func (m *message[T]) turnCame() { panic("bug: a message has been told of its turn") }

// messageQueue is a FIFO of messages through their links, so that to wait allocates nothing. A message has one link: it is in
// one queue at a time, and whoever takes it out of the ready queue says by its state where it is then.
type messageQueue[T any] struct {
	head, tail *message[T]
	n          int
}

func (q *messageQueue[T]) push(m *message[T]) {
	m.link = nil
	if q.head == nil {
		q.head = m
	} else {
		q.tail.link = m
	}
	q.tail = m
	q.n++
}

func (q *messageQueue[T]) pushFront(m *message[T]) {
	m.link = q.head
	q.head = m
	if m.link == nil {
		q.tail = m
	}
	q.n++
}

func (q *messageQueue[T]) pop() *message[T] {
	m := q.head
	if m != nil {
		q.head, m.link = m.link, nil
		q.n--
	}
	return m
}

// magazine is how many messages change hands at once between a shard and the pool: sync.Pool's own cost is shared by so many.
const magazine = 256

// messageCache is the messages that a shard keeps for use by later ones: two magazines, so that a shard whose need goes up
// and down around a full one does not go to the pool each time. The pool is the garbage collector's to empty, so that a
// burst leaves nothing behind. It is the shard's alone and has no lock; the pool is the Receiver's, so that one shard finds
// there what another has left.
type messageCache[T any] struct{ free, full messageQueue[T] }

// get returns a message that is clear: one of this cache, else one of a magazine from the pool, else a new one, which is the
// owner of its turn for good and brings the memory of a lane with it.
func (c *messageCache[T]) get(pool *sync.Pool) *message[T] {
	if c.free.n == 0 {
		c.free, c.full = c.full, c.free
	}
	if c.free.n == 0 {
		for m, _ := pool.Get().(*message[T]); m != nil; {
			next := m.link
			c.free.push(m)
			m = next
		}
	}
	if m := c.free.pop(); m != nil {
		return m
	}
	m := new(message[T])
	m.owner, m.spare = m, new(lane) // not a part of m: a lane is handed on, and would keep m alive
	return m
}

// put takes m, which has finished and is cleared.
func (c *messageCache[T]) put(m *message[T], pool *sync.Pool) {
	if c.free.n >= magazine {
		c.drop(&c.full, pool)
		c.free, c.full = c.full, c.free
	}
	c.free.pushFront(m) // the one that is still in the cache
}

// some reports whether it keeps any.
func (c *messageCache[T]) some() bool { return c.free.n > 0 || c.full.n > 0 }

// empty leaves everything to others. A shard does so when it ends, and when it has had nothing to do for idleTime.
func (c *messageCache[T]) empty(pool *sync.Pool) {
	c.drop(&c.free, pool)
	c.drop(&c.full, pool)
}

// drop puts a whole list into the pool, as its first message: the others follow through their links. The queue must forget
// it in the same step, or two would use the same messages.
func (c *messageCache[T]) drop(q *messageQueue[T], pool *sync.Pool) {
	if q.head != nil {
		pool.Put(q.head)
	}
	*q = messageQueue[T]{}
}

// liveList is the unfinished messages of one stream that its shard knows, in order of receipt: so the first is what
// Committed waits for. Messages are added in that order, as they are accepted, and finish in any: hence the links both ways.
type liveList[T any] struct{ first, last *message[T] }

func (l *liveList[T]) add(m *message[T]) {
	if m.prevLive = l.last; l.last == nil {
		l.first = m
	} else {
		l.last.nextLive = m
	}
	l.last = m
}

func (l *liveList[T]) remove(m *message[T]) {
	if m.prevLive == nil {
		l.first = m.nextLive
	} else {
		m.prevLive.nextLive = m.nextLive
	}
	if m.nextLive == nil {
		l.last = m.prevLive
	} else {
		m.nextLive.prevLive = m.prevLive
	}
	m.prevLive, m.nextLive = nil, nil
}

// outcome is what became of a message. Its zero value is none, so that a path that forgets to set one is found.
type outcome uint8

const (
	outcomeNone outcome = iota
	outcomeSucceeded
	outcomeFailed
	outcomeRejected
	outcomeDropped
)

// ledger is the accounting of one stream: every message is accepted once and finished once. It has one owner at a time: Run
// until the stream enters a shard, then the shard, and once the stream is done anybody may read it.
//
// Its invariants: received = finished + pending; finished = Succeeded + Failed + Rejected + Dropped; a message is
// unsettled if it has finished without success and nobody has skipped it.
//
// received is a count and highest a Seq. They differ in a session, where the first Seq need not be 1 and duplicates, which
// the reader leaves out, have a Seq of their own.
type ledger struct {
	received  uint64  // accepted so far
	highest   uint64  // the Seq of the last that was accepted; below the first if none was
	counts    Summary // of those that have finished; Received and Committed are not kept in it
	firstOpen uint64  // the lowest unsettled Seq; math.MaxUint64 without one
}

// newLedger returns the ledger of a stream whose first message has the Seq first.
func newLedger(first uint64) ledger { return ledger{highest: first - 1, firstOpen: math.MaxUint64} }

// accept counts the message seq, which is above all before.
func (l *ledger) accept(seq uint64) {
	l.received++
	l.highest = seq
}

// finish counts the message seq, which was tried so many times, as finished. Messages finish in any order: so Unsettled is
// kept as it comes and sorted when somebody asks, and the lowest of them beside it, since committed is wanted after every
// flush.
func (l *ledger) finish(seq uint64, attempts int, as outcome, settled bool) {
	switch as {
	case outcomeSucceeded:
		l.counts.Succeeded++
		settled = true
	case outcomeFailed:
		l.counts.Failed++
	case outcomeRejected:
		l.counts.Rejected++
	case outcomeDropped:
		l.counts.Dropped++
	default:
		panic("bug: a message has finished without an outcome")
	}
	if attempts > 1 {
		l.counts.Retried += uint64(attempts - 1)
	}
	if !settled {
		l.counts.Unsettled = append(l.counts.Unsettled, seq)
		l.firstOpen = min(l.firstOpen, seq)
	}
}

// succeed accepts the next n messages, up to the message last, and counts them as done at the first try. It is for mail runs,
// whose messages are accepted only as they are settled: of these the ledger has nothing pending.
func (l *ledger) succeed(n, last uint64) {
	l.received += n
	l.highest = last
	l.counts.Succeeded += n
}

func (l *ledger) finished() uint64 {
	c := &l.counts
	return c.Succeeded + c.Failed + c.Rejected + c.Dropped
}

// pending returns how many messages are accepted and not finished.
func (l *ledger) pending() uint64 { return l.received - l.finished() }

// committed returns the Seq up to which all messages are settled, given the lowest that is pending (0: none is).
// What is still in the mailbox is above highest, and so never below the answer.
func (l *ledger) committed(firstPending uint64) uint64 {
	if firstPending == 0 {
		firstPending = l.highest + 1
	}
	return min(firstPending, l.firstOpen) - 1
}

// summary is complete once nothing is pending. Unsettled is a copy: the Summary is the caller's to change, and Progress and
// Snapshot may still read the ledger meanwhile.
func (l *ledger) summary() Summary {
	sum := l.counts
	sum.Received, sum.Last = l.received, l.highest
	sum.Unsettled = slices.Clone(sum.Unsettled)
	slices.Sort(sum.Unsettled)
	sum.Committed = l.committed(0)
	return sum
}

// unsettled returns the highest Seq received, and what is not settled of what was received, while some are pending. pending
// is ascending.
func (l *ledger) unsettled(pending []uint64) (highest uint64, open []uint64) {
	open = slices.Concat(l.counts.Unsettled, pending)
	slices.Sort(open)
	highest = l.highest
	if len(pending) > 0 {
		highest = max(highest, pending[len(pending)-1]) // not all of them are lined up yet
	}
	return highest, open
}
