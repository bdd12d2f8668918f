package load

import "sync/atomic"

// Checker sees every message begin and end, and counts the breaches of order: a message that begins after a later one of
// its key has begun, or that another of its key has run beside. It is an array of atomics, and not a flowtest.OrderChecker,
// since the lock and the map that such a checker has for all keys together would be part of what is measured.
type Checker struct {
	slots    []slot
	breaches atomic.Uint64
}

type slot struct{ last, done atomic.Uint64 }

// NewChecker has room for so many keys.
func NewChecker(slots int) *Checker { return &Checker{slots: make([]slot, slots)} }

// Begin is called as the handler's first act.
func (c *Checker) Begin(m *Message) {
	if c.slots[m.Slot].last.Swap(m.Seq) >= m.Seq {
		c.breaches.Add(1)
	}
}

// End is called as the handler's last act.
func (c *Checker) End(m *Message) {
	s := &c.slots[m.Slot]
	if s.last.Load() != m.Seq {
		c.breaches.Add(1)
	}
	s.done.Add(1)
}

// Note is Begin and End of a handler that does nothing between.
func (c *Checker) Note(m *Message) {
	c.Begin(m)
	c.End(m)
}

// Breaches is how often order was broken.
func (c *Checker) Breaches() uint64 { return c.breaches.Load() }

// Done is how many messages have ended, of all keys but those given.
func (c *Checker) Done(but ...uint32) (n uint64) {
	for i := range c.slots {
		n += c.slots[i].done.Load()
	}
	for _, i := range but {
		n -= c.slots[i].done.Load()
	}
	return n
}
