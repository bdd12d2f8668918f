package flow

import "time"

// parking is a message's wait for its next try. A timer that fires although it was stopped finds it empty: the message
// may be another by then. Guarded by stream.mu.
type parking[T any] struct {
	m     *message[T]
	timer *time.Timer
}

// park lets go of m until its next try is due: it keeps its place in its lane. The worker goes on with another.
func (c *carrier[T]) park(m *message[T]) {
	s := c.s
	s.mu.Lock()
	if s.over.Load() { // no further try; the carrier keeps m to end it
		m.cutShort(s.cutKindLocked())
		s.mu.Unlock()
		return
	}
	if s.round <= 0 { // however fast: to be tried again at once, over and over, must not keep others waiting
		s.gatherLocked()
	}
	s.restLocked(m)
	m.pressured = false
	m.tried = m.attempts
	m.began.Store(0)
	if m.delay <= 0 {
		m.step = stepAttempt
		s.pushLocked(m)
	} else {
		m.state = stateParked
		p := &parking[T]{m: m}
		p.timer = time.AfterFunc(m.delay, func() { s.unpark(p) })
		m.parking = p
	}
	c.goOn(c.followLocked(), 0, nil)
}

// unpark queues p's message for its next try, unless the sweep was faster.
func (s *stream[T]) unpark(p *parking[T]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := p.m
	if m == nil {
		return
	}
	m.parking = nil
	m.step = stepAttempt
	s.pushLocked(m)
	s.startLocked()
}
