package natsflow

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// board is what a worker knows of the others: who lives, and who holds what. It is a plain value without a clock; times are
// of the worker's own. It is used by one goroutine.
type board struct {
	self       string
	partitions int
	lease      time.Duration
	cells      map[int]cell
	peers      map[string]time.Time // when each other worker was last seen to live
	sight      time.Time            // since when the bucket has been in sight, without a break
	blind      bool                 // it is out of sight
}

// cell is a partition's record as it was last seen.
type cell struct {
	record   record
	revision uint64
	at       time.Time // when this revision was first seen
}

func newBoard(self string, partitions int, lease time.Duration) *board {
	return &board{self: self, partitions: partitions, lease: lease, cells: map[int]cell{}, peers: map[string]time.Time{}}
}

// see takes in a change that is not of a worker or a record that can't be read.
func (b *board) see(c change, now time.Time) {
	switch {
	case c.worker == b.self:
	case c.worker != "" && c.gone:
		delete(b.peers, c.worker)
	case c.worker != "" && c.age >= b.lease: // a watch tells of the dead, too
	case c.worker != "":
		if at := now.Add(-c.age); at.After(b.peers[c.worker]) {
			b.peers[c.worker] = at
		}
	case c.partition >= 0 && c.partition < b.partitions:
		if c.revision <= b.cells[c.partition].revision {
			return // seen before: a watch that was made anew tells everything again
		}
		r, err := parseRecord(c.value)
		if err != nil {
			return // it is not claimed, and shows in Partitions
		}
		b.cells[c.partition] = cell{r, c.revision, now}
	}
}

// outage notes that the bucket is out of sight.
func (b *board) outage() { b.blind = true }

// recovered notes that until now the bucket was out of sight. Silence meanwhile says nothing of others: all of them get the
// whole Lease again to show that they live, so that an outage of the servers looks like no deaths.
func (b *board) recovered(now time.Time) { b.blind, b.sight = false, now }

// forget removes the workers that are dead: else an outage would bring them to life for a Lease.
func (b *board) forget(now time.Time) {
	if !b.blind {
		maps.DeleteFunc(b.peers, func(_ string, at time.Time) bool { return b.since(at, now) >= b.lease })
	}
}

// since is for how long what was seen at a time has not changed, as far as could be seen.
func (b *board) since(at, now time.Time) time.Duration {
	if at.Before(b.sight) {
		at = b.sight
	}
	return now.Sub(at)
}

// claimable returns why the partition may be claimed; "" if it may not. A record of this worker's that it does not hold is
// left from an outage: nothing of it runs any more.
func (b *board) claimable(p int, now time.Time) (reason string) {
	c, known := b.cells[p]
	switch {
	case !known || c.record.Holder == "":
		return ReasonFree
	case c.record.Holder == b.self:
		return ReasonResumed
	case !b.blind && b.since(c.at, now) >= b.lease:
		return ReasonExpired
	}
	return ""
}

// share is how many partitions this worker should hold, which holds n now. All that know the same agree, and the shares
// add up to all partitions. Where they can't be equal, those that hold most get one more: so nothing moves without need.
func (b *board) share(n int, now time.Time) int {
	held := map[string]int{b.self: n}
	for worker, at := range b.peers {
		if b.since(at, now) < b.lease {
			held[worker] = 0
		}
	}
	for _, c := range b.cells {
		if _, alive := held[c.record.Holder]; alive && c.record.Holder != b.self {
			held[c.record.Holder]++
		}
	}
	workers := make([]string, 0, len(held))
	for w := range held {
		workers = append(workers, w)
	}
	slices.SortFunc(workers, func(v, w string) int {
		return cmp.Or(cmp.Compare(held[w], held[v]), cmp.Compare(v, w))
	})
	share := b.partitions / len(workers)
	if slices.Index(workers, b.self) < b.partitions%len(workers) {
		share++
	}
	return share
}

// wait is how long until something may become claimable by silence alone. What has been silent for a whole Lease already is
// not waited for: it can be claimed at once, or not before the bucket is in sight again.
func (b *board) wait(now time.Time) time.Duration {
	least := b.lease
	until := func(at time.Time) {
		if left := b.lease - b.since(at, now); left > 0 {
			least = min(least, left)
		}
	}
	for _, c := range b.cells {
		if c.record.Holder != "" && c.record.Holder != b.self {
			until(c.at)
		}
	}
	for _, at := range b.peers {
		until(at)
	}
	return least
}

// frontier is the highest position up to which all of some partition is settled.
func (b *board) frontier() (highest uint64) {
	for _, c := range b.cells {
		if p, err := c.record.progress(); err == nil {
			highest = max(highest, p.Frontier)
		}
	}
	return highest
}
