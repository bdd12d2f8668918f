package flow

import (
	"runtime"
	"time"
)

// The worker that is on its way looks out before it comes: while those at work finish a message every few hundred
// nanoseconds, one more would only fight them for the lock and for the memory behind it, and make all of them slower.
// It yields, so that whatever else could run does, and looks every two microseconds. It comes when, with work left all
// the while, a lease didn't get on, or little has happened in the lanes.
//
// Sleeping between two looks would need a timer, and so would let time pass in a synctest bubble where nothing else does.
// It was tried outside of bubbles: Go's timers take a millisecond on Linux, in which strangers wait for a stuck handler,
// and a processor that falls asleep wakes so slowly that messages of 57 ns took 80. Yielding has a price too: a processor
// that always has somebody to run takes over no goroutine that another's queue holds. So workers yield as well, now and
// then (see goOn).

const (
	lookOutYields = 64 // where time stands still
	lookOutIdle   = 2  // looks at which there is nothing to do, after which it isn't needed
	lookOutSlow   = 2  // looks that show little progress, after which it comes: once may be a core that was taken away
	lookOutStuck  = 10 // looks at which a lease is where it was, when messages take long: it is stuck
	lookOutTime   = 2 * time.Microsecond

	// lookOutPace is the time a message in the lanes below which one more worker is no help.
	lookOutPace = 2 * time.Microsecond
)

// atOnceLocked says whether a worker is to come without looking out.
func (s *stream[T]) atOnceLocked() bool {
	return s.slots == 0 || s.mayLease && s.pace.mode == paceSlow
}

// lookOut returns when the worker is to come, or false when it isn't needed any more: then it isn't on its way either.
func (s *stream[T]) lookOut() (come bool) {
	v := vigil{last: s.started}
	for {
		from := s.clock()
		for n := 0; n < lookOutYields && s.clock()-from < lookOutTime; n++ {
			runtime.Gosched()
		}
		s.mu.Lock()
		come, needed := s.lookLocked(&v)
		if !come && needed {
			s.mu.Unlock()
			continue
		}
		wake := false
		if !needed {
			s.starting = false
			wake = s.roomLocked() // what the workers took last may have been the last there is
			s.startLocked()       // for what may have come meanwhile
		}
		s.mu.Unlock()
		if wake {
			s.wakeReceiver()
		}
		return come
	}
}

// vigil is what who looks out has seen.
type vigil struct {
	last paceSight // at the last look
	idle int       // looks in a row at which there was nothing to do
	slow int       // looks in a row that showed little progress in the lanes
}

// lookLocked is one look: is the worker to come, and if not, may it still be needed?
func (s *stream[T]) lookLocked(v *vigil) (come, needed bool) {
	last, now := v.last, s.paceLocked()
	v.last = now
	switch {
	case s.over.Load():
		return false, false
	case !s.backlogLocked():
		v.idle++
		return false, v.idle < lookOutIdle
	case s.atOnceLocked():
		return true, true
	}
	if v.idle > 0 { // there wasn't work all the while
		*v = vigil{last: now}
	}
	if s.fastLocked() && !s.inbox.mixedLocked() {
		if s.lookAtPartitionsLocked() {
			return true, true
		}
		if !s.readyLocked() {
			return false, true
		}
	}
	limit := lookOutPace
	if s.slots < int(s.abreast) { // they are to be as many, once there may be leases
		limit = fastPace
	}
	if !last.slower(now, limit) {
		v.slow = 0
		return false, true
	}
	v.slow++
	return v.slow >= lookOutSlow, true
}

// lookAtPartitionsLocked says whether there is something to do that nobody does. A lease that is stuck is called in if it
// keeps somebody waiting.
func (s *stream[T]) lookAtPartitionsLocked() (come bool) {
	for i := range s.inbox.parts {
		p := &s.inbox.parts[i]
		switch {
		case !s.inbox.fillLocked(p):
		case p.leased:
			at := int(p.out.at.Load())
			if s.standsStillLocked(p.out, at, nil) && (at+1 < p.out.n || s.inbox.followedLocked(p) || s.waitsForLeaseLocked()) {
				s.breakLeaseLocked(p.out)
				come = true
			}
		case s.leases == s.abreast && s.busyLaneLocked(p) == nil: // whoever has a lease comes to it
		case s.unservedLocked(p): // where all leases are given, those who have them know now of a lane that is stuck
			come = come || s.leases < s.abreast
		}
	}
	return come
}

// waitsForLeaseLocked says whether a partition has something and is not leased, since all leases are given.
func (s *stream[T]) waitsForLeaseLocked() bool {
	if s.leases < s.abreast {
		return false
	}
	for i := range s.inbox.parts {
		if p := &s.inbox.parts[i]; !p.leased && s.inbox.fillLocked(p) {
			return true
		}
	}
	return false
}

// unservedLocked says whether p, which has no lease, lacks a worker. Where its first message's key has a lane, that is to
// end first.
func (s *stream[T]) unservedLocked(p *partition[T]) bool {
	lane := s.busyLaneLocked(p)
	if lane == nil && s.slots < int(s.abreast) {
		return true
	}
	if !s.standsStillLocked(p.out, p.next, lane) {
		return false
	}
	if lane != nil {
		lane.stuck = true
	}
	return true
}

// breakLeaseLocked calls in a lease that is stuck.
func (s *stream[T]) breakLeaseLocked(k *chunk[T]) {
	s.callInOneLocked(k)
	if k.m != nil && k.m.lane != nil {
		k.m.lane.stuck = true
	}
	s.stuckLocked()
}

// standsStillLocked takes a look at k, the first chunk of its partition, and says whether the work on it has been where it
// is for too long. Where a lane is to end first, that is the work: what lies behind waits for it no longer than it would
// wait for a lease, so it must get on as fast as messages do under one.
func (s *stream[T]) standsStillLocked(k *chunk[T], at int, lane *lane) bool {
	limit, each := lookOutSlow, fastPace
	if s.pace.mode == paceMedium {
		limit, each = lookOutStuck, mediumPace
	}
	now := standstill{at: at}
	if lane != nil {
		now.lane, now.since = lane.n, s.clock()
	}
	if seen := &k.seen; seen.looks == 0 || seen.at != at || now.getsOn(seen, each) {
		*seen = now
	}
	k.seen.looks++
	return k.seen.looks > limit
}

// getsOn says whether the lane has got on since then, a message in each or faster, or is another.
func (now standstill) getsOn(then *standstill, each time.Duration) bool {
	done := then.lane - now.lane
	return done > 0 && time.Duration(done)*each >= now.since-then.since || then.lane == 0 && now.lane > 0
}
