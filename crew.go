package flow

import "time"

// idleTime is how long a worker that has nothing to do stays.
const idleTime = 100 * time.Millisecond

// crew is the workers of a shard. They are started as they are needed; the one that was last at work is the next to be
// given some, and those that were not needed for a while end.
type crew[T any] struct {
	sh       *shard[T]
	idle     []*worker[T] // the last is the next to work
	unneeded int          // the fewest that were idle since idleFrom
	idleFrom time.Duration
}

// give hands r to a worker.
func (c *crew[T]) give(r *run[T]) {
	n := len(c.idle)
	if n == 0 {
		w := &worker[T]{sh: c.sh, runs: make(chan *run[T], 1)}
		r.worker, w.run = w, r
		go w.work()
		return
	}
	w := c.idle[n-1]
	c.idle[n-1] = nil
	c.idle = c.idle[:n-1]
	c.unneeded = min(c.unneeded, n-1)
	r.worker = w
	w.runs <- r // has room: w is idle
}

// back takes back a worker that has nothing to do.
func (c *crew[T]) back(w *worker[T]) { c.idle = append(c.idle, w) }

// next returns when to trim next; ok is false if there is nothing to trim.
func (c *crew[T]) next(now time.Duration) (at time.Duration, ok bool) {
	if len(c.idle) == 0 {
		return 0, false
	}
	if c.idleFrom == 0 {
		c.idleFrom, c.unneeded = now, len(c.idle)
	}
	return c.idleFrom + idleTime, true
}

// trim ends the workers that were idle all the time since the last trim.
func (c *crew[T]) trim() {
	n := min(c.unneeded, len(c.idle))
	for _, w := range c.idle[:n] { // those in front have been idle for longest
		close(w.runs)
	}
	kept := copy(c.idle, c.idle[n:])
	clear(c.idle[kept:])
	c.idle = c.idle[:kept]
	c.idleFrom = 0
}

// end ends all workers.
func (c *crew[T]) end() {
	c.unneeded = len(c.idle)
	c.trim()
}
