package flow

import "time"

// pace is how fast a stream's messages are run, and so how they are run best. Guarded by stream.mu.
type pace struct {
	mode  paceMode
	warn  bool          // the last lease was of one message, and slow
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

	// leaseTime is how long a lease may take, about, before its worker looks at its stream again.
	leaseTime = 100 * time.Microsecond

	timedEach  = 16 // in the lanes, every so many-th message is timed,
	shortTimed = 4  // and so many of them in a row must be short to end paceSlow
	quickOnes  = 8  // so many leases in a row must be quick to end paceMedium
)

// modeFor is how messages that take so long are run.
func (s *stream[T]) modeFor(each time.Duration) paceMode {
	switch {
	case each <= fastPace:
		return paceFast
	case each <= mediumPace && s.abreastLocked() > 1:
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
		n = max(1, s.abreastLocked())
	}
	s.abreast = int32(n)
	if n > 1 {
		n *= partitionsEach
	}
	s.spreadLocked(n)
}

// leaseTookLocked is told how long the messages of a lease took.
func (s *stream[T]) leaseTookLocked(n int, took time.Duration) {
	p, each := &s.pace, took/time.Duration(n)
	if mode := s.modeFor(each); mode > p.mode {
		if p.sure() {
			s.setModeLocked(mode)
		}
		return
	}
	p.warn = false
	switch all := time.Duration(p.run) * each; {
	case all <= leaseTime/2:
		p.run = min(2*p.run, chunkSize)
	case all > leaseTime:
		p.run = max(1, p.run/2)
	}
	if p.mode == paceFast || each > fastPace/2 {
		p.quick = 0
	} else if p.quick++; p.quick == quickOnes {
		s.setModeLocked(paceFast)
	}
}

// sure is told that a lease was slow, or stuck, and says whether it is not for the first time. Once may be its core that
// was taken away, or its first message, whose memory was cold: the next, of a single message, shows.
func (p *pace) sure() bool {
	if p.run == 1 && p.warn {
		return true
	}
	p.run, p.warn = 1, true
	return false
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

// stuckLocked is told that a handler under lease doesn't return.
func (s *stream[T]) stuckLocked() {
	if s.pace.sure() {
		s.setModeLocked(paceSlow)
	}
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
