package flow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// ShutdownOptions control graceful termination.
type ShutdownOptions struct {
	// GracePeriod is how long Shutdown lets unfinished messages go on before it cancels them, counted from the first
	// Shutdown. 0 means no limit but Shutdown's ctx.
	GracePeriod time.Duration
	// DrainOnClose lets all accepted messages run, retries included, before their streams end. Without it those that
	// wait are dropped at once and only the running ones finish. New streams and messages are refused in both cases.
	DrainOnClose bool
}

func (o ShutdownOptions) validate() error {
	if o.GracePeriod < 0 {
		return invalid("Shutdown.GracePeriod", o.GracePeriod, "must not be negative")
	}
	return nil
}

// ErrGracePeriod is the Err of a ShutdownError when the grace period had expired.
var ErrGracePeriod = errors.New("flow: shutdown grace period expired")

// ShutdownError says that Shutdown had to cut messages off, or returned while a function of the caller's still ran.
type ShutdownError struct {
	// CutOff is how many unfinished messages were cut off: running (in their handler or in OnFailure), waiting for a next
	// try and, in a drain, waiting. It is 0 if only something else of the caller's still ran, such as an Observer.
	CutOff int
	Seq    uint64 // the first of them, in the oldest stream that had any; 0 for an Admission
	Key    string // its key
	Err    error  // why: ErrGracePeriod or the cause of Shutdown's ctx
}

// Error never contains the key.
func (e *ShutdownError) Error() string {
	if e.CutOff == 0 {
		return fmt.Sprintf("flow: shutdown did not wait for a function of the caller's that still runs: %v", e.Err)
	}
	return fmt.Sprintf("flow: shutdown cut off %d unfinished messages, the first with seq %d: %v", e.CutOff, e.Seq, e.Err)
}

// Unwrap returns Err, as [Failure.Unwrap] does.
func (e *ShutdownError) Unwrap() error { return newCause(e.Err).unwraps }

const reasonShutdown = reason("the flow is shutting down")

// cutWait is how long Shutdown waits, after it has cancelled handlers, for those that don't heed their context.
const cutWait = time.Second

// member is what a coordinator brings to an end: a stream, or an Admission from before its wait until its Release. Its
// methods return at once and may be called more than once, in any order, from many goroutines. They are called without the
// coordinator's lock, since they lead into streams and shards, and may so be called for a member that has left meanwhile.
type member interface {
	// stop takes nothing more on. Unless drain, what waits is given up.
	stop(drain bool)
	// cut ends what is unfinished and says how much that was, and the first of it. The count comes before the end: what is
	// cut off must be counted while it is there.
	cut() (n int, seq uint64, key string)
	// close ends everything.
	close()
}

// ShutdownCoordinator knows all that is under way and ends it. It is safe for concurrent use and not reusable: what
// comes after the first Shutdown or Close is refused for good.
type ShutdownCoordinator struct {
	opts  ShutdownOptions
	began func(context.Context) // nil, or called once, when all members have been told that the end begins

	// mu guards what stands below it. It is held while nothing is waited for, and no member is called under it.
	//
	// All of it goes one way: closing, then maybe cutting, judged and late. idle may be closed at any time after closing,
	// and ends every Shutdown.
	mu       sync.Mutex
	closing  bool
	deadline time.Time         // of the grace period; zero before the first Shutdown, and without one
	members  map[member]uint64 // who is under way, numbered by their coming
	comers   uint64
	telling  bool          // began has yet to return
	idle     chan struct{} // closed when closing, nobody is under way and began has returned
	cutting  bool
	failure  *ShutdownError // what every Shutdown returns; nil unless something was cut off, or still ran when it was late
	judged   chan struct{}  // closed when the cut has been counted
	late     chan struct{}  // closed cutWait after the cut
}

// NewShutdownCoordinator returns a coordinator for one Gate, or several. It panics on impossible options, with the text
// that [New] would return.
func NewShutdownCoordinator(o ShutdownOptions) *ShutdownCoordinator {
	mustBeValid(o.validate())
	return &ShutdownCoordinator{
		opts: o, members: map[member]uint64{},
		idle: make(chan struct{}), judged: make(chan struct{}), late: make(chan struct{}),
	}
}

// enter makes m known, so that its end can be brought about. false: the end has begun and m must not start.
// Registration and the check are one step under the lock: no stream can start unseen by a Shutdown.
func (c *ShutdownCoordinator) enter(m member) bool {
	if c == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return false
	}
	c.comers++
	c.members[m] = c.comers
	return true
}

// leave is the last thing that a member does: but for a recv that is blocked nothing of the caller's runs in it any more,
// and a Shutdown may return. For one that has left, or never entered, it does nothing.
func (c *ShutdownCoordinator) leave(m member) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.members[m]; !ok {
		return
	}
	delete(c.members, m)
	c.checkIdleLocked()
}

// checkIdleLocked closes idle once nothing is left that could end. It is called at each change that can be the last. Those
// are the begin of the end, the leaving of a member and the return of began. After closing none comes in and began returns
// once, so exactly one of them finds all three conditions met first: idle is closed once.
func (c *ShutdownCoordinator) checkIdleLocked() {
	if c.closing && len(c.members) == 0 && !c.telling {
		close(c.idle)
	}
}

// begin refuses newcomers from here on. It reports whether it is the first to do so. The flag telling is set in the same
// step as closing: set later, a Flow without streams would be idle in between, and Shutdown return while the Observer
// still runs.
func (c *ShutdownCoordinator) begin() (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return false
	}
	c.closing, c.telling = true, c.began != nil
	c.checkIdleLocked()
	return true
}

// underWay returns the members, oldest first. It is a copy: some of them may have left by the time that they are told. The
// oldest come first, for a ShutdownError names the first message of the oldest stream.
func (c *ShutdownCoordinator) underWay() []member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.SortedFunc(maps.Keys(c.members), func(a, b member) int { return cmp.Compare(c.members[a], c.members[b]) })
}

// end begins the end, does what there is to do to each member, and then, if it is the first, calls began. It does not wait
// for that: an Observer may hang. Until began returns the coordinator is not idle.
//
// Every call does it to the members, and not only the first: a Close after a Shutdown asks for more than that did. began
// once came before them, on the caller's goroutine: an Observer that hung then held every stream, and Close with them.
func (c *ShutdownCoordinator) end(ctx context.Context, do func(member)) {
	first := c.begin()
	for _, m := range c.underWay() {
		do(m)
	}
	if first && c.began != nil {
		go func() {
			defer c.told()
			c.began(ctx)
		}()
	}
}

// told is called when began has returned.
func (c *ShutdownCoordinator) told() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.telling = false
	c.checkIdleLocked()
}

// errAllLeft ends the watch over the time, since all have left.
var errAllLeft = errors.New("all have left")

// Shutdown ends all that is under way gracefully, as the options say, and waits for it; what comes later is refused.
// When the grace period is over or ctx ends, the rest is cancelled. It returns nil if all messages finished by
// themselves (or were ended by Close) and nothing of the caller's runs any more, be it a handler, OnFailure or an Observer;
// else a *ShutdownError. For what doesn't heed its cancelled context it waits one second more at most. It may be called
// again and from many goroutines: each call waits, each returns the same, and any ctx may cut. A handler, OnFailure or an
// Observer must not call it, but by a goroutine: it would wait for itself.
func (c *ShutdownCoordinator) Shutdown(ctx context.Context) error {
	c.end(ctx, func(m member) { m.stop(c.opts.DrainOnClose) })

	// One stage waits until all have left, one watches the time, and each ends the other: the first by errAllLeft, the
	// second by its cut, after which it is soon late.
	stages, watch := errgroup.WithContext(ctx)
	stages.Go(func() error {
		select {
		case <-c.idle:
		case <-c.late:
		}
		return errAllLeft
	})
	stages.Go(func() error {
		if why := c.timeIsOver(watch); why != nil {
			c.cut(why)
		}
		return nil
	})
	_ = stages.Wait() // what is returned is the same for every call, also for one whose own watch saw nothing
	c.mu.Lock()
	cutting := c.cutting
	c.mu.Unlock()
	if cutting { // by another call, maybe: what it ends may be gone before it is counted
		<-c.judged
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure != nil {
		return c.failure
	}
	return nil
}

// timeIsOver blocks until the grace period is over or ctx ends, and returns which it was; nil: all have left. The first
// Shutdown starts the grace period for all of them: a later call must not lengthen it.
func (c *ShutdownCoordinator) timeIsOver(ctx context.Context) (why error) {
	var grace <-chan time.Time
	if c.opts.GracePeriod > 0 {
		c.mu.Lock()
		if c.deadline.IsZero() {
			c.deadline = time.Now().Add(c.opts.GracePeriod)
		}
		t := time.NewTimer(time.Until(c.deadline))
		c.mu.Unlock()
		defer t.Stop()
		grace = t.C
	}
	select {
	case <-grace:
		return ErrGracePeriod
	case <-ctx.Done():
	}
	if why = context.Cause(ctx); why == errAllLeft {
		return nil
	}
	return why
}

// cut cancels what is unfinished; the first of several cuts counts.
//
// It does not wait for anybody. Other Shutdowns wait for judged: members that are cut may leave, and the coordinator be
// idle, before the count is complete, and one of two calls once returned nil for it. cutWait begins with the cut itself,
// so that all Shutdowns stop waiting at the same time.
func (c *ShutdownCoordinator) cut(why error) {
	if c.isIdle() { // all had left when the time was over
		return
	}
	c.mu.Lock()
	again := c.cutting
	c.cutting = true
	c.mu.Unlock()
	if again {
		return
	}
	why = newCause(why).err
	// It is complete before it is shown: every Shutdown returns the same pointer.
	off := &ShutdownError{Err: why}
	for _, m := range c.underWay() {
		n, seq, key := m.cut()
		if off.CutOff == 0 {
			off.Seq, off.Key = seq, key
		}
		off.CutOff += n
	}
	c.mu.Lock()
	if off.CutOff > 0 {
		c.failure = off
	}
	c.mu.Unlock()
	close(c.judged)
	time.AfterFunc(cutWait, func() { c.expire(why) })
}

// expire ends the waiting for what does not heed the cut. If that is no message that was cut off, it is something else of
// the caller's, as an Observer that hangs. It runs on a timer's goroutine, cutWait after the cut, whether or not anybody
// still waits.
func (c *ShutdownCoordinator) expire(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == nil && !c.isIdle() {
		c.failure = &ShutdownError{Err: why}
	}
	close(c.late)
}

// isIdle reports whether all have left for good. It needs no lock, and may be called with it.
func (c *ShutdownCoordinator) isIdle() bool {
	select {
	case <-c.idle:
		return true
	default:
		return false
	}
}

// Close ends everything at once: streams end with FailureShutdown, running handlers are cancelled, what waits is
// dropped. It does not wait, for an Observer neither, and returns nil. A Shutdown under way goes on waiting.
func (c *ShutdownCoordinator) Close() error {
	c.end(context.Background(), member.close)
	return nil
}
