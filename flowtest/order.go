package flowtest

import (
	"errors"
	"fmt"
	"sync"
)

// OrderChecker checks, from inside a handler, the order that a Flow keeps: the messages of a key run one at a time, by
// ascending numbers, all attempts of one before the next begins.
//
//	var order flowtest.OrderChecker[string]
//	handler := func(ctx context.Context, m flow.Message[Reading]) error {
//		_ = order.Enter(m.Key, m.Seq, m.Attempt)
//		defer order.Leave(m.Key)
//		…
//	}
//	…
//	if err := order.Err(); err != nil {
//		t.Error(err)
//	}
//
// It needs no test, so it may also run in a program under load. The zero value is ready to use. It is safe for concurrent
// use, and must not be copied once it is used. It remembers every key that it has seen.
//
// A key is whatever has an order of its own. Where one checker sees several streams, each of which numbers its messages
// from 1, that is the stream and the key together; for [flow.OrderingFIFO] it is the stream alone. Where the streams of a
// Flow share their keys ([flow.ScopeFlow]), a second Enter by the key alone, with 0 for the number, checks that its messages
// do not overlap over all streams either.
type OrderChecker[K comparable] struct {
	mu         sync.Mutex
	keys       map[K]*keyOrder
	violations []error // the first maxViolations
	more       int     // violations beyond those
}

// keyOrder is what is known of one key.
type keyOrder struct {
	running int    // entered and not left
	entered uint64 // the last that entered; 0 before the first
	latest  uint64 // the highest that has entered: one that came too late does not take back what began before it
	attempt int    // the highest of that
}

const maxViolations = 10

// Enter says that message seq of key begins to run, for the attempt-th time. It returns an error, and keeps it for Err, if
// that breaks the order: if another message of key is still running (an overlap), or if a later one, or the same attempt of
// this one, has begun before (an inversion). Numbers and attempts may have gaps. A seq of 0 says that the numbers
// have no order here; then only overlaps are found.
//
// Every Enter needs a Leave, also one that returned an error.
func (c *OrderChecker[K]) Enter(key K, seq uint64, attempt int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keys == nil {
		c.keys = make(map[K]*keyOrder)
	}
	o := c.keys[key]
	if o == nil {
		o = new(keyOrder)
		c.keys[key] = o
	}
	var overlap, inversion error
	switch {
	case o.running == 0:
	case seq == 0 || o.entered == 0:
		overlap = fmt.Errorf("a message of key %s began while another was running", name(key))
	default:
		overlap = fmt.Errorf("message %d of key %s began while message %d was running", seq, name(key), o.entered)
	}
	switch {
	case seq == 0:
	case seq < o.latest:
		inversion = fmt.Errorf("message %d of key %s began after message %d", seq, name(key), o.latest)
	case seq == o.latest && attempt <= o.attempt:
		inversion = fmt.Errorf("attempt %d of message %d of key %s began after its attempt %d", attempt, seq, name(key), o.attempt)
	default:
		o.latest, o.attempt = seq, attempt
	}
	o.running++
	o.entered = seq
	return errors.Join(c.noteLocked(overlap), c.noteLocked(inversion))
}

// Leave says that a message of key that entered has stopped running, in whatever way.
func (c *OrderChecker[K]) Leave(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.keys[key]
	if o == nil || o.running == 0 {
		_ = c.noteLocked(fmt.Errorf("a message of key %s left that had not entered", name(key)))
		return
	}
	o.running--
}

// Err returns nil if the order was kept so far, or else the first ten violations, and how many more there were.
func (c *OrderChecker[K]) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := errors.Join(c.violations...)
	if c.more > 0 {
		err = errors.Join(err, fmt.Errorf("and %d more violations of the order", c.more))
	}
	return err
}

// noteLocked keeps a violation, if it is one, and returns it.
func (c *OrderChecker[K]) noteLocked(violation error) error {
	switch {
	case violation == nil:
	case len(c.violations) < maxViolations:
		c.violations = append(c.violations, violation)
	default:
		c.more++
	}
	return violation
}

// name returns key for a message: quoted and cut if it is text, which may be anything and of any length.
func name[K comparable](key K) string {
	text, isString := any(key).(string)
	if !isString {
		return fmt.Sprintf("%v", key)
	}
	return fmt.Sprintf("%.64q", text)
}
