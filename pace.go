package flow

import "time"

// pace is how fast a stream's messages are run, and so how they are run best. All but look is guarded by stream.mu.
type pace struct {
	mode  paceMode
	run   int           // how many messages the next lease is for, at most
	short int           // messages in a row that were not slow, of those timed in the lanes
	sum   time.Duration // of those
	quick int           // leases in a row for which one worker would have been enough
	taken uint64        // messages that workers have taken, or finished under lease
	look  paceSight     // when the worker on its way was started
}

// paceMode is the way messages go.
type paceMode uint8

const (
	paceFast   paceMode = iota // under lease, one after the other: to come beside would cost more than a message does
	paceMedium                 // under lease, in as many partitions as there are processors
	paceSlow                   // through the lanes
)

const (
	// leasePace is the time a message below which one more worker is no help, as long as the one that is there needs
	// no lock.
	leasePace  = 600 * time.Nanosecond
	mediumPace = 10 * time.Microsecond // what takes longer may have waited for something

	timedEach  = 16 // in the lanes, every so many-th message is timed
	shortTimed = 4  // so many in a row must not be slow
	quickOnes  = 8
)

// modeFor is how messages that take so long are run.
func (s *stream[T]) modeFor(each time.Duration) paceMode {
	switch {
	case each <= leasePace:
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

// setPaceLocked forgets how messages were run.
func (s *stream[T]) setPaceLocked(mode paceMode) {
	s.pace.mode, s.pace.run, s.pace.short, s.pace.sum, s.pace.quick = mode, 1, 0, 0, 0
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
		if each > leasePace/2 {
			s.pace.quick = 0
		} else if s.pace.quick++; s.pace.quick == quickOnes && s.pace.mode == paceMedium {
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

// stuckLocked is told that the handler under k's lease doesn't return. Once may be its core that was taken away.
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
