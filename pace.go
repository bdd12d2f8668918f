package flow

import "time"

// pace is how fast a stream's messages are run, and so how they are run best. Guarded by stream.mu.
type pace struct {
	mode  paceMode
	run   int32         // how many messages the next lease is for, at most
	quick int32         // leases in a row for which one worker would have been enough
	short int32         // messages in a row that were not slow, of those timed in the lanes
	sum   time.Duration // of those
	taken uint64        // messages that workers have taken, or finished under lease
}

// paceMode is the way messages go.
type paceMode uint8

const (
	paceFast   paceMode = iota // under lease, one after the other: to come beside would cost more than a message does
	paceMedium                 // under lease, in as many partitions as there are processors
	paceSlow                   // through the lanes
)

const (
	// fastPace is the time a message below which one more worker is no help, as long as the one that is there needs no
	// lock: to wake it, and to hand it what lies in another processor's cache, costs as much.
	fastPace = 600 * time.Nanosecond
	// mediumPace is the time above which a handler is likely to have waited for something. With messages that take
	// longer the lanes' cost, a fifth of a microsecond, doesn't matter.
	mediumPace = 10 * time.Microsecond

	timedEach  = 16 // in the lanes, every so many-th message is timed,
	shortTimed = 4  // and so many of them in a row must be short to end paceSlow
	quickOnes  = 8  // so many leases in a row must be quick to end paceMedium
)

// modeFor is how messages that take so long are run.
func (s *stream[T]) modeFor(each time.Duration) paceMode {
	switch {
	case each <= fastPace:
		return paceFast
	case each <= mediumPace && s.partitionsLocked() > 1:
		return paceMedium
	}
	return paceSlow
}

// setModeLocked changes how messages are run.
func (s *stream[T]) setModeLocked(mode paceMode) {
	if s.pace.mode != mode {
		s.setPaceLocked(mode)
	}
}

// setPaceLocked begins anew: it forgets what was seen of the messages so far.
func (s *stream[T]) setPaceLocked(mode paceMode) {
	s.pace = pace{mode: mode, run: 1, taken: s.pace.taken}
	n := 1
	if mode == paceMedium {
		n = max(1, s.partitionsLocked())
	}
	s.spreadLocked(n)
}

// leaseTookLocked is told how long the messages of a lease took. A long one may have been slow because its core was taken
// away: the next, of a single message, shows.
func (s *stream[T]) leaseTookLocked(n int, took time.Duration) {
	each := took / time.Duration(n)
	switch mode := s.modeFor(each); {
	case mode > s.pace.mode && s.pace.run > 1:
		s.pace.run = 1
	case mode > s.pace.mode:
		s.setModeLocked(mode)
	default:
		s.pace.run = min(2*s.pace.run, chunkSize)
		if s.pace.mode == paceFast || each > fastPace/2 {
			s.pace.quick = 0
		} else if s.pace.quick++; s.pace.quick == quickOnes {
			s.setModeLocked(paceFast)
		}
	}
}

// messageTookLocked is told how long a message took that went through the lanes.
func (s *stream[T]) messageTookLocked(took time.Duration) {
	p := &s.pace
	if p.mode != paceSlow || took > mediumPace {
		p.short, p.sum = 0, 0
		return
	}
	p.short++
	if p.sum += took; p.short == shortTimed {
		mode := s.modeFor(p.sum / shortTimed)
		p.short, p.sum = 0, 0
		s.setModeLocked(mode)
	}
}

// stuckLocked is told that a handler under lease doesn't return. Once may be its core that was taken away.
func (s *stream[T]) stuckLocked() {
	if s.pace.run > 1 {
		s.pace.run = 1
		return
	}
	s.setModeLocked(paceSlow)
}

type paceSight struct {
	taken uint64
	at    time.Duration
}

// paceLocked looks at how far the workers are.
func (s *stream[T]) paceLocked() paceSight {
	return paceSight{taken: s.pace.taken + s.progressLocked(), at: s.clock()}
}

// slower says whether from a to b a message took longer than each.
func (a paceSight) slower(b paceSight, each time.Duration) bool {
	n := b.taken - a.taken
	return n == 0 || b.at-a.at > time.Duration(n)*each
}
