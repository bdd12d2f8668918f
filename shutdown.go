package flow

import (
	"context"
	"errors"
	"fmt"
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

// ShutdownError says that Shutdown had to cut messages off.
type ShutdownError struct {
	CutOff int    // how many unfinished messages: running, waiting for a next try and, in a drain, waiting
	Seq    uint64 // the first of them, in the oldest stream that had any; 0 for an Admission
	Key    string // its key
	Err    error  // why: ErrGracePeriod or the cause of Shutdown's ctx
}

// Error never contains the key.
func (e *ShutdownError) Error() string {
	return fmt.Sprintf("flow: shutdown cut off %d unfinished messages, the first with seq %d: %v", e.CutOff, e.Seq, e.Err)
}

// Unwrap returns Err, as [Failure.Unwrap] does.
func (e *ShutdownError) Unwrap() error { return newCause(e.Err).unwraps }

const reasonShutdown = reason("the flow is shutting down")

// cutWait is how long Shutdown waits, after it has cancelled handlers, for those that don't heed their context.
const cutWait = time.Second

// member is what a coordinator brings to an end: a stream, or an Admission from before its wait until its Release.
// Its methods return at once and may be called more than once, in any order, from many goroutines.
type member interface {
	// stop takes nothing more on. Unless drain, what waits is given up.
	stop(drain bool)
	// cut ends what is unfinished and says how much that was, and the first of it.
	cut() (n int, seq uint64, key string)
	// close ends everything.
	close()
}

// ShutdownCoordinator knows all that is under way and ends it. It is safe for concurrent use and not reusable: what
// comes after the first Shutdown or Close is refused for good.
type ShutdownCoordinator struct {
	opts  ShutdownOptions
	began func(context.Context) // nil, or called once, when the end begins

	mu       sync.Mutex
	closing  bool
	deadline time.Time         // of the grace period; zero before the first Shutdown, and without one
	members  map[member]uint64 // who is under way, numbered by their coming
	comers   uint64
	idle     chan struct{} // closed when closing and nobody is under way
	cutting  bool
	cutOff   *ShutdownError // nil when nothing was cut off
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
	if c.closing && len(c.members) == 0 {
		close(c.idle)
	}
}

// begin refuses newcomers from here on and returns those under way, oldest first.
func (c *ShutdownCoordinator) begin() (under []member, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first = !c.closing
	c.closing = true
	for m := range c.members {
		under = append(under, m)
	}
	if first && len(under) == 0 {
		close(c.idle)
	}
	slices.SortFunc(under, func(a, b member) int { return int(c.members[a]) - int(c.members[b]) })
	return under, first
}

// end begins the end, tells of it if it is the first to do so, and does what there is to do to each member, even if the
// telling panics or exits its goroutine.
func (c *ShutdownCoordinator) end(ctx context.Context, do func(member)) {
	under, first := c.begin()
	defer func() {
		for _, m := range under {
			do(m)
		}
	}()
	if first && c.began != nil {
		c.began(ctx)
	}
}

// Shutdown ends all that is under way gracefully, as the options say, and waits for it; what comes later is refused.
// When the grace period is over or ctx ends, the rest is cancelled. It returns nil if all messages finished by
// themselves (or were ended by Close), else a *ShutdownError. For handlers that don't heed their cancelled context it
// waits one second more at most. It may be called again and from many goroutines: each call waits, each returns the
// same, and any ctx may cut. A handler, OnFailure or an Observer must not call it, but by a goroutine: it would wait for
// itself.
func (c *ShutdownCoordinator) Shutdown(ctx context.Context) error {
	c.end(ctx, func(m member) { m.stop(c.opts.DrainOnClose) })

	c.mu.Lock()
	if c.deadline.IsZero() && c.opts.GracePeriod > 0 {
		c.deadline = time.Now().Add(c.opts.GracePeriod)
	}
	deadline := c.deadline
	c.mu.Unlock()

	// Two stages that end each other: one waits until all have left, one watches the clock and ctx.
	left := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		defer close(left)
		select {
		case <-c.idle:
		case <-c.late:
		}
		return nil
	})
	g.Go(func() error {
		var grace <-chan time.Time
		if !deadline.IsZero() {
			t := time.NewTimer(time.Until(deadline))
			defer t.Stop()
			grace = t.C
		}
		select {
		case <-left:
			return nil
		case <-grace:
			return c.cut(ErrGracePeriod)
		case <-ctx.Done():
			return c.cut(context.Cause(ctx))
		}
	})
	_ = g.Wait() // the verdict below is the same for every caller, also for one whose own watch saw nothing
	c.mu.Lock()
	cutting := c.cutting
	c.mu.Unlock()
	if cutting { // by another call, maybe: what it ends may be gone before it is counted
		<-c.judged
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cutOff != nil {
		return c.cutOff
	}
	return nil
}

// cut cancels what is unfinished; the first of several cuts counts.
func (c *ShutdownCoordinator) cut(why error) error {
	select {
	case <-c.idle: // all had left when the time was over
		return nil
	default:
	}
	c.mu.Lock()
	again := c.cutting
	c.cutting = true
	c.mu.Unlock()
	if again {
		return why
	}
	under, _ := c.begin()
	off := &ShutdownError{Err: newCause(why).err}
	for _, m := range under {
		n, seq, key := m.cut()
		if off.CutOff == 0 {
			off.Seq, off.Key = seq, key
		}
		off.CutOff += n
	}
	c.mu.Lock()
	if off.CutOff > 0 {
		c.cutOff = off
	}
	c.mu.Unlock()
	close(c.judged)
	time.AfterFunc(cutWait, func() { close(c.late) })
	return why
}

// Close ends everything at once: streams end with FailureShutdown, running handlers are cancelled, what waits is
// dropped. It does not wait and returns nil. A Shutdown under way goes on waiting for the handlers.
func (c *ShutdownCoordinator) Close() error {
	c.end(context.Background(), member.close)
	return nil
}
