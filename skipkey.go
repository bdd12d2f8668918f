package flow

// maxGivenUp bounds the keys that a stream remembers as given up: they are chosen by the client.
const maxGivenUp = 65536

// giveUp sees to it that no message of m's key after m runs.
func (s *stream[T]) giveUp(m *message[T]) {
	if !s.ordered(m.key) || m.unkeyed {
		return
	}
	s.mu.Lock()
	s.callInLocked()
	if s.givenUp == nil {
		s.givenUp = make(map[string]uint64)
	}
	if from, ok := s.givenUp[m.key]; !ok || m.seq < from {
		s.givenUp[m.key] = m.seq
	}
	many := len(s.givenUp) > maxGivenUp
	// A given-up message needs no capacity, so it must not lie where only a worker comes by: from now on all are lined
	// up on receipt.
	s.inbox.bypass()
	for m := s.arriveLocked(); m != nil; m = s.arriveLocked() {
		s.lineUpLocked(m)
	}
	s.startLocked()
	s.mu.Unlock()
	if many {
		s.fail(m.failure(FailureOrdering, reasonGivenMany))
	}
}

func (s *stream[T]) isGivenUpLocked(m *message[T]) bool {
	if s.givenUp == nil || m.unkeyed {
		return false
	}
	from, ok := s.givenUp[m.key]
	return ok && m.seq > from
}
