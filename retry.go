package flow

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
)

// RetryOptions control the further tries of a message whose handler returned an error. While a message waits for its
// next try it keeps its key's place and gives up its slot.
type RetryOptions struct {
	// MaxAttempts counts all tries of a message, the first included, as in gRPC's retryPolicy. 0 and 1 mean no retry.
	// With 0 the options of retries (all below but AttemptTimeout) must be zero, since none would have any effect; with 1
	// they are kept and ignored.
	MaxAttempts int
	// Backoff is the delay before the second try. 0 means none.
	Backoff time.Duration
	// MaxBackoff caps every delay. 0 means uncapped.
	MaxBackoff time.Duration
	// Multiplier is what each delay is multiplied by to give the next. 0 means 1: constant.
	Multiplier float64
	// Jitter, from 0 to 1, makes each delay random between (1-Jitter) times itself and itself.
	Jitter float64
	// AttemptTimeout cancels an attempt's context after so long, with cause ErrAttemptTimeout. A handler that ignores
	// it keeps its slot and its key; nil after it is success. 0 means none.
	AttemptTimeout time.Duration
	// Retryable reports which errors are worth another try; it must be safe for concurrent use. nil means: all but those
	// marked by Permanent and the codes InvalidArgument, NotFound, AlreadyExists, PermissionDenied, Unauthenticated,
	// FailedPrecondition, OutOfRange, Unimplemented and DataLoss. Permanent beats it.
	Retryable func(error) bool
	// Budget limits retries over the whole Flow when much fails. The zero value is no limit.
	Budget RetryBudget
}

// RetryBudget is gRPC's retryThrottling (gRFC A6) over the Flow: it starts with MaxTokens tokens, a failed attempt that is
// worth retrying takes one, a success gives TokenRatio back, and at or below half of MaxTokens nothing is retried. An error
// that is not worth retrying (Permanent, a code that Retryable or its default excludes, a panic) takes none: the mistakes
// of one client must not end the retries of all. Both fields are set, or neither.
type RetryBudget struct {
	MaxTokens  float64 // 0: no budget
	TokenRatio float64
}

// validate refuses what can't mean anything. Floats are compared so that NaN, for which every comparison is false, is
// refused as well.
func (o RetryOptions) validate() error {
	finite := func(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }
	switch {
	case o.MaxAttempts < 0:
		return invalid("Retry.MaxAttempts", o.MaxAttempts, "must not be negative")
	case o.Backoff < 0:
		return invalid("Retry.Backoff", o.Backoff, "must not be negative")
	case o.MaxBackoff < 0:
		return invalid("Retry.MaxBackoff", o.MaxBackoff, "must not be negative")
	case o.MaxBackoff > 0 && o.MaxBackoff < o.Backoff:
		return invalid("Retry.MaxBackoff", o.MaxBackoff, "must not be below Backoff, which is "+o.Backoff.String())
	case !finite(o.Multiplier) || o.Multiplier != 0 && o.Multiplier < 1:
		return invalid("Retry.Multiplier", o.Multiplier, "must be 0 or at least 1, and finite")
	case !(o.Jitter >= 0 && o.Jitter <= 1):
		return invalid("Retry.Jitter", o.Jitter, "must be from 0 to 1")
	case o.AttemptTimeout < 0:
		return invalid("Retry.AttemptTimeout", o.AttemptTimeout, "must not be negative")
	case !finite(o.Budget.MaxTokens) || o.Budget.MaxTokens < 0:
		return invalid("Retry.Budget.MaxTokens", o.Budget.MaxTokens, "must not be negative, and must be finite")
	case !finite(o.Budget.TokenRatio) || o.Budget.TokenRatio < 0:
		return invalid("Retry.Budget.TokenRatio", o.Budget.TokenRatio, "must not be negative, and must be finite")
	case o.Budget.TokenRatio > 0 && o.Budget.MaxTokens == 0:
		return invalid("Retry.Budget.TokenRatio", o.Budget.TokenRatio, "needs MaxTokens")
	case o.Budget.MaxTokens > 0 && o.Budget.TokenRatio == 0:
		return invalid("Retry.Budget.MaxTokens", o.Budget.MaxTokens, "needs TokenRatio, else the budget never recovers")
	case o.MaxAttempts == 0:
		return o.validateUnused()
	}
	return nil
}

// validateUnused refuses options that have no effect while MaxAttempts is 0. (1 says in so many words: no retry.) A
// Backoff is set in the expectation of retries: without this only the first outage would show that there are none.
func (o RetryOptions) validateUnused() error {
	const rule = "needs MaxAttempts: 0 means no retry, and 1 says so explicitly"
	switch {
	case o.Backoff != 0:
		return invalid("Retry.Backoff", o.Backoff, rule)
	case o.MaxBackoff != 0:
		return invalid("Retry.MaxBackoff", o.MaxBackoff, rule)
	case o.Multiplier != 0:
		return invalid("Retry.Multiplier", o.Multiplier, rule)
	case o.Jitter != 0:
		return invalid("Retry.Jitter", o.Jitter, rule)
	case o.Retryable != nil:
		return invalid("Retry.Retryable", "a function", rule)
	case o.Budget != RetryBudget{}:
		return invalid("Retry.Budget", o.Budget, rule)
	}
	return nil
}

// ErrAttemptTimeout is the context's cause in an attempt that took longer than RetryOptions.AttemptTimeout.
var ErrAttemptTimeout = errors.New("flow: attempt timed out")

// permanentError is the mark of Permanent. It is looked for anywhere in an error, and has no status of its own: see bare.
type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Permanent marks err as not worth another try; errors.Is and errors.As still see it. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// Engine runs the handler: it recovers panics and retries. It is safe for concurrent use. It keeps no order and holds
// no slot: that is the [Gate]'s.
type Engine[T any] struct {
	// An Engine is not changed once it is made, but for the tokens of its budget. Workers call attempt and again, which
	// don't wait between tries: a message that waits must not hold a worker. Only Execute does, for callers that have
	// neither workers nor streams.
	handler Handler[T]
	retry   RetryOptions
	budget  *budget // nil: none
}

// NewEngine returns an engine for handler. It panics on a nil handler and on impossible options, with the text that
// [New] would return.
func NewEngine[T any](handler Handler[T], retry RetryOptions) *Engine[T] {
	if handler == nil {
		mustBeValid(errNilHandler)
	}
	mustBeValid(retry.validate())
	return newEngine(handler, retry)
}

// newEngine is NewEngine for options that are valid. A Flow with batches has no handler of single messages.
func newEngine[T any](handler Handler[T], retry RetryOptions) *Engine[T] {
	e := &Engine[T]{handler: handler, retry: retry}
	if retry.Budget.MaxTokens > 0 {
		e.budget = newBudget(retry.Budget)
	}
	return e
}

// Execute runs m through the handler until it succeeds or is not tried again, and waits between the tries. It sets
// m.Attempt. The result is nil or a *Failure: FailureHandlerError, FailureContextCancelled when ctx has ended, or
// FailureInternal for a panic or runtime.Goexit. The handler runs on a goroutine of its own, so that a Goexit in it
// ends neither the caller nor the wait.
func (e *Engine[T]) Execute(ctx context.Context, m Message[T]) error {
	m.Attempt = 0
	err := isolated(func() error { return e.tries(ctx, &m) })
	if err == nil {
		return nil
	}
	f, ok := err.(*Failure)
	if !ok {
		f = newFailure(FailureInternal, err)
	}
	f.Seq, f.Key, f.Attempts, f.Value = m.Seq, m.Key, m.Attempt, m.Value
	return f
}

// tries is Execute without the guard: its error is nil or a *Failure. It runs on the goroutine that Execute starts. A
// panic ends it and is not tried again.
func (e *Engine[T]) tries(ctx context.Context, m *Message[T]) error {
	for {
		if ctx.Err() != nil {
			return contextFailure(ctx)
		}
		m.Attempt++
		err := e.attempt(ctx, *m, &contextSlab{})
		if err == nil {
			return nil
		}
		f := newFailure(FailureHandlerError, err)
		if f.endedBy(ctx) {
			f.Kind = FailureContextCancelled
			return f
		}
		delay, again := e.again(f, m.Attempt)
		if !again {
			return f
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			// The last error is kept as the cause: the end of ctx says only why there was no further try.
			return newFailure(FailureContextCancelled, &contextError{contextFailure(ctx).Err, f.Err})
		}
	}
}

// attempt calls the handler once, under a context from slab if attempts have a time limit. It lets panics through. A
// success is given back to the budget here, where all ways of running a single message pass; whether a failure counts
// depends on whether it is worth another try, which again decides.
func (e *Engine[T]) attempt(ctx context.Context, m Message[T], slab *contextSlab) (err error) {
	if e.retry.AttemptTimeout <= 0 {
		err = e.handler(ctx, m)
	} else {
		err = e.timed(slab.new(ctx, e.retry.AttemptTimeout), m)
	}
	if err == nil && e.budget != nil {
		e.budget.give()
	}
	return err
}

// timed ends ctx when the handler returns, panics or exits its goroutine: a context that is derived from it, and its
// timer, must not stay until the deadline. The handler's result stands, also if the time is over: nil after AttemptTimeout
// is success.
func (e *Engine[T]) timed(ctx *attemptContext, m Message[T]) error {
	defer ctx.end()
	return e.handler(ctx, m)
}

// again decides whether a message that failed with f in its n-th attempt is tried again, and after what delay. What is
// worth another try takes a token from the budget, whether or not it gets one: that is how the budget sees trouble.
//
// So with a budget the last attempt takes one too, and Retryable is asked even then. What is not worth another try takes
// none: once every failure did, and a client that sent invalid messages ended the retries of all others. Workers call it,
// and Retryable is the caller's code: it may panic, which is then the message's failure.
func (e *Engine[T]) again(f *Failure, n int) (time.Duration, bool) {
	last := n >= e.retry.MaxAttempts
	if last && e.budget == nil || !e.retry.worthRetrying(f) {
		return 0, false
	}
	if e.budget != nil && !e.budget.take() || last {
		return 0, false
	}
	return e.retry.delay(f.said().delay, n), true
}

// worthRetrying reports whether what failed with f may succeed in another try. Permanent comes before Retryable: the
// handler that marks an error knows more about it than a rule for all errors.
func (o *RetryOptions) worthRetrying(f *Failure) bool {
	c := f.said()
	if c.permanent {
		return false
	}
	if o.Retryable != nil {
		return o.Retryable(f.Err)
	}
	return !isPermanentCode(c.code)
}

// isPermanentCode reports whether an error with this code is not worth another try: the same call will fail again.
// [RetryAfter] uses the same list on the client.
func isPermanentCode(code codes.Code) bool {
	switch code {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated,
		codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented, codes.DataLoss:
		return true
	}
	return false
}

// delay is the time before the try after the n-th: exponential, capped, jittered, and not shorter than the error asked
// for, as far as the cap allows.
//
// It is computed in float64, where a product that is too large becomes infinite and is capped, while an int64 would wrap
// round to a negative delay. What the error asked for is not jittered: it is a least time, given by a server that knows
// its load.
func (o *RetryOptions) delay(asked time.Duration, n int) time.Duration {
	d := float64(o.Backoff)
	if d > 0 && o.Multiplier > 1 { // the power may be infinite, and zero times infinity is not a number
		d *= math.Pow(o.Multiplier, float64(n-1))
	}
	limit := float64(math.MaxInt64)
	if o.MaxBackoff > 0 {
		limit = float64(o.MaxBackoff)
	}
	d = min(d, limit)
	if o.Jitter > 0 {
		d *= 1 - o.Jitter*rand.Float64()
	}
	d = min(max(d, float64(asked)), limit)
	if d >= math.MaxInt64 { // as a float it may be one more than an int64 holds
		return math.MaxInt64
	}
	return time.Duration(d)
}

// budget holds tokens as float64 bits, so that workers of all shards can change them without a lock. Tokens are from 0 to
// MaxTokens. It is one for the Flow, since what is in trouble, mostly something behind the handlers, is what all its
// streams share.
type budget struct {
	opts   RetryBudget
	tokens atomic.Uint64
}

// newBudget returns a full budget.
func newBudget(o RetryBudget) *budget {
	b := &budget{opts: o}
	b.tokens.Store(math.Float64bits(o.MaxTokens))
	return b
}

// give puts back what a success is worth.
func (b *budget) give() {
	b.change(func(t float64) float64 { return min(t+b.opts.TokenRatio, b.opts.MaxTokens) })
}

// take takes the token of a failed attempt that is worth retrying, and reports whether enough are left to retry it. The
// comparison is with what is left after the token, as gRFC A6 has it: at half of MaxTokens nothing is retried any more.
func (b *budget) take() bool {
	return b.change(func(t float64) float64 { return max(t-1, 0) }) > b.opts.MaxTokens/2
}

// enough reports whether enough are left to retry anything. A call of several messages takes one token, and asks here for
// the others that have failed in it.
func (b *budget) enough() bool { return math.Float64frombits(b.tokens.Load()) > b.opts.MaxTokens/2 }

// change replaces the tokens by what f makes of them, and returns that. f may be called more than once. In a Flow in which
// all goes well the budget is full and each success would write the same value: the store is left out, since it would move
// the cache line from one processor to the other with each message.
func (b *budget) change(f func(float64) float64) float64 {
	for {
		old := b.tokens.Load()
		t := f(math.Float64frombits(old))
		now := math.Float64bits(t)
		if now == old || b.tokens.CompareAndSwap(old, now) { // full stays full without a write to the shared line
			return t
		}
	}
}

// backoff holds the messages of a shard that wait for their next try. It is the shard's own and needs no lock. There is no
// timer for each message: the shard arms one for whatever it waits for (see arm), and pops what is due. A message that
// waits is in stateBackoff and keeps its lane, so its key waits with it; its slot is given back.
type backoff[T any] struct{ waits waits[T] }

// wait is a message's wait for its next try, or that of a batch. It is made for each wait: a failure is rare, and an entry
// that messages kept for it would be paid for by all of them.
type wait[T any] struct {
	due   time.Duration
	order uint64 // by which equal times keep their order
	index int    // in the heap
	m     *message[T]
	batch *run[T] // instead of m
}

// add has m wait until due. m must not wait already. Of one stream, and by chance of several, messages due at the same
// time go on in the order of their numbers.
func (b *backoff[T]) add(m *message[T], due time.Duration) {
	m.wait = &wait[T]{due: due, order: m.seq, m: m}
	heap.Push(&b.waits, m.wait)
}

// remove takes back m, which waits: its stream has ended, or its key was skipped. It costs the logarithm of what waits,
// which is why a wait knows its index.
func (b *backoff[T]) remove(m *message[T]) {
	heap.Remove(&b.waits, m.wait.index)
	m.wait = nil
}

// addBatch has r, all of whose messages are tried again together, wait until due. Its messages have no waits of their own,
// so that they become due as one call.
func (b *backoff[T]) addBatch(r *run[T], due time.Duration) {
	heap.Push(&b.waits, &wait[T]{due: due, order: r.list[0].seq, batch: r})
}

// removeBatch takes r back. It looks at all that wait: it is called when the last message of a batch has been taken out,
// which is rare, and few batches wait.
func (b *backoff[T]) removeBatch(r *run[T]) {
	for _, w := range b.waits {
		if w.batch == r {
			heap.Remove(&b.waits, w.index)
			return
		}
	}
}

// next returns when the first is due; ok is false if none waits.
func (b *backoff[T]) next() (due time.Duration, ok bool) {
	if len(b.waits) == 0 {
		return 0, false
	}
	return b.waits[0].due, true
}

// pop takes out what is due at now, a message or a batch. ok is false if nothing is. The shard calls it until nothing is
// due.
func (b *backoff[T]) pop(now time.Duration) (m *message[T], batch *run[T], ok bool) {
	if due, some := b.next(); !some || due > now {
		return nil, nil, false
	}
	w := heap.Pop(&b.waits).(*wait[T])
	if w.m != nil {
		w.m.wait = nil
	}
	return w.m, w.batch, true
}

// waits implements heap.Interface: the one that is due first is in front.
type waits[T any] []*wait[T]

func (h waits[T]) Len() int { return len(h) }
func (h waits[T]) Less(i, j int) bool {
	if h[i].due != h[j].due {
		return h[i].due < h[j].due
	}
	return h[i].order < h[j].order
}
func (h waits[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *waits[T]) Push(x any) {
	w := x.(*wait[T])
	w.index = len(*h)
	*h = append(*h, w)
}
func (h *waits[T]) Pop() any {
	old := *h
	last := len(old) - 1
	w := old[last]
	old[last] = nil
	*h = old[:last]
	return w
}

// attemptContext is the context of an attempt that has a time limit. Most handlers that are done in time ask it for
// nothing but values, or for nothing at all, so it becomes a real context with a timer only when somebody asks for what only
// that can give: until then it costs a reading of the clock. context.WithTimeoutCause for each attempt takes 700 ns and
// four allocations.
//
// One is made for an attempt and ended when the handler has returned; the handler, and whatever it has passed the context
// to, calls the others from any goroutine, also after that. mu guards what stands below it. It is held while the real
// context is made and cancelled, but never while its methods are called.
type attemptContext struct {
	parent   context.Context
	deadline time.Time

	mu     sync.Mutex
	over   bool            // the attempt has returned
	real   context.Context // nil: nobody has asked
	cancel context.CancelFunc
}

// contextSlab makes attemptContexts, many at a time. None is used twice: the caller's code may have kept it. It is not
// safe for concurrent use. Each worker has one for its attempts, so that 64 of them cost one allocation. A context that is
// kept by the caller's code keeps the 63 beside it alive.
type contextSlab struct{ free []attemptContext }

const slabLength = 64

func (s *contextSlab) new(parent context.Context, limit time.Duration) *attemptContext {
	if len(s.free) == 0 {
		s.free = make([]attemptContext, slabLength)
	}
	c := &s.free[0]
	s.free = s.free[1:]
	c.parent, c.deadline = parent, time.Now().Add(limit)
	return c
}

// end cancels c: the attempt has returned. A context that becomes real later is cancelled at once: see become.
func (c *attemptContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.cancel != nil {
		c.cancel()
	}
}

// become makes c real. The first call makes it, and all return the same. Its deadline counts from the beginning of the
// attempt, so it does not matter when that is; if it has passed already, the context is made as one that has ended.
func (c *attemptContext) become() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.real == nil {
		c.real, c.cancel = context.WithDeadlineCause(c.parent, c.deadline, ErrAttemptTimeout)
		if c.over {
			c.cancel()
		}
	}
	return c.real
}

// whole returns c as a real context if it is one, or if it has ended; nil otherwise. One whose time is over becomes real
// here, since only a real one can say by which cause it has ended.
func (c *attemptContext) whole() context.Context {
	c.mu.Lock()
	real, over := c.real, c.over
	c.mu.Unlock()
	if real == nil && (over || !time.Now().Before(c.deadline)) {
		real = c.become()
	}
	return real
}

// Deadline implements context.Context.
func (c *attemptContext) Deadline() (time.Time, bool) {
	if at, ok := c.parent.Deadline(); ok && at.Before(c.deadline) {
		return at, true
	}
	return c.deadline, true
}

// Done implements context.Context.
func (c *attemptContext) Done() <-chan struct{} { return c.become().Done() }

// Err implements context.Context. The parent is asked as long as c lives: its end is c's end too, and no timer is needed
// to see it.
func (c *attemptContext) Err() error {
	if real := c.whole(); real != nil {
		return real.Err()
	}
	return c.parent.Err()
}

// Value implements context.Context. context.Cause, and a context that is derived from c, find here the one that is real.
// They ask by a key that package context keeps to itself; were the parent to answer, Cause would not say
// ErrAttemptTimeout, and package context would start a goroutine for each derived context.
func (c *attemptContext) Value(key any) any {
	if real := c.whole(); real != nil {
		return real.Value(key)
	}
	return c.parent.Value(key)
}

// String is for those who print a context.
func (c *attemptContext) String() string {
	return fmt.Sprint(c.parent, ".WithDeadline(", c.deadline, ")")
}
