package flow

import (
	"runtime"
	"time"
)

// The worker that is on its way looks out before it comes: while those at work finish a message every few hundred
// nanoseconds, one more would only fight them for the lock and for the memory behind it, and make all of them slower.
// It yields, so that whatever else could run does, and looks every two microseconds. It comes when, with work left all
// the while, little has happened.
//
// Sleeping between two looks would need a timer, and so would let time pass in a synctest bubble where nothing else does.

const (
	lookOutYields = 64 // where time stands still
	lookOutIdle   = 2  // looks at which there is nothing to do, after which it isn't needed
	lookOutSlow   = 2  // looks that show little progress, after which it comes: once may be a core that was taken away
	lookOutTime   = 2 * time.Microsecond

	// lookOutPace is the time a message below which one more worker is no help. leasePace is the same as long as there
	// is a core for it and what is at work may have a lease, which goes without the lock that workers share.
	lookOutPace = 2 * time.Microsecond
	leasePace   = 600 * time.Nanosecond
)

// pace is how fast a stream's messages are run. Guarded by stream.mu.
type pace struct {
	fast  bool      // so fast that a lease is best, as far as is known
	run   int       // how many messages the next lease is for, at most
	taken uint64    // messages that workers have taken, or finished under lease
	look  paceSight // the last of who looks out
	sort  paceSight // the last of who sorted messages into lanes
}

type paceSight struct {
	taken uint64
	at    time.Duration
}

// slow is told that messages are not run fast.
func (p *pace) slow(now paceSight) { p.fast, p.run, p.sort = false, 1, now }

// paceLocked looks at how far the workers are.
func (s *stream[T]) paceLocked() paceSight {
	return paceSight{taken: s.pace.taken + s.progressLocked(), at: s.clock()}
}

// slower says whether from a to b a message took longer than each.
func (a paceSight) slower(b paceSight, each time.Duration) bool {
	n := b.taken - a.taken
	return n == 0 || b.at-a.at > time.Duration(n)*each
}

// lookOut returns when the worker is to come, or false when it isn't needed any more: then it isn't on its way either.
func (s *stream[T]) lookOut() (come bool) {
	v := vigil{cores: runtime.GOMAXPROCS(0)}
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
	cores int
	idle  int // looks in a row at which there was nothing to do
	slow  int // looks in a row that showed little progress
}

// lookLocked is one look: is the worker to come, and if not, may it still be needed?
func (s *stream[T]) lookLocked(v *vigil) (come, needed bool) {
	last, now := s.pace.look, s.paceLocked()
	s.pace.look = now
	if s.over.Load() {
		return false, false
	}
	if !s.backlogLocked() {
		v.idle++
		return false, v.idle < lookOutIdle
	}
	limit := lookOutPace
	if s.leases && s.slots < v.cores {
		limit = leasePace
	}
	if v.idle > 0 || !last.slower(now, limit) { // there wasn't work all the while, or it went well
		v.idle, v.slow = 0, 0
		return s.slots == 0, true
	}
	if v.slow++; v.slow == lookOutSlow {
		s.pace.slow(now)
		return true, true
	}
	return s.slots == 0, true
}

// sortPaceLocked sees, as messages are sorted into lanes, whether a lease would be faster.
func (s *stream[T]) sortPaceLocked() {
	if s.pace.fast || !s.leases {
		return
	}
	now := s.paceLocked()
	if now.taken < s.pace.sort.taken+chunkSize {
		return
	}
	if s.pace.fast = !s.pace.sort.slower(now, leasePace/time.Duration(max(1, s.slots))); !s.pace.fast {
		s.pace.sort = now
	}
}
