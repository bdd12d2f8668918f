package flow

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// attemptContext is the context of an attempt that has a time limit. Most handlers that are done in time ask it for
// nothing but values, or for nothing at all, so it becomes a real context with a timer only when somebody asks for what only
// that can give: until then it costs a reading of the clock. context.WithTimeoutCause for each attempt takes 700 ns and
// four allocations.
type attemptContext struct {
	parent   context.Context
	deadline time.Time

	mu     sync.Mutex
	over   bool            // the attempt has returned
	real   context.Context // nil: nobody has asked
	cancel context.CancelFunc
}

// contextSlab makes attemptContexts, many at a time. None is used twice: the caller's code may have kept it. It is not safe
// for concurrent use.
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

// end cancels c: the attempt has returned.
func (c *attemptContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.cancel != nil {
		c.cancel()
	}
}

// become makes c real.
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

// whole returns c as a real context if it is one, or if it has ended; nil otherwise.
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

// Err implements context.Context.
func (c *attemptContext) Err() error {
	if real := c.whole(); real != nil {
		return real.Err()
	}
	return c.parent.Err()
}

// Value implements context.Context. context.Cause, and a context that is derived from c, find here the one that is real.
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
