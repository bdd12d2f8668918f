package flow

// The way of a message from the inbox to the ready queue: it is lined up in its lane, its turn comes, and, where a
// caller's own resolver has a say, that is asked too (own.go). Workers do this when they have run out of what is ready.

// roundLocked lines up what was received if all has been taken that was ready when that was last done. It is called
// before a message that a worker is done with lets the next of its key go on: else a key with a full lane would keep its
// slot for as long as that lasts, while other keys' messages lie in the inbox. While messages are run fast that is no
// time, and the lanes had better be empty soon, so that there may be a lease.
func (s *stream[T]) roundLocked() {
	if s.rounds && s.round <= 0 && (!s.fastLocked() || s.inbox.old > 0) {
		s.gatherLocked()
	}
}

// gatherLocked lines up what was received until enough is ready for a while. Not more: others wait for the lock, and
// what lies in the inbox takes a quarter of the memory.
func (s *stream[T]) gatherLocked() {
	s.callInLocked()
	for enough := max(s.ready.n, s.coming) + sortBatch; s.ready.n < enough && !s.over.Load(); {
		m := s.arriveLocked()
		if m == nil {
			break
		}
		s.lineUpLocked(m)
	}
	s.round = s.ready.n
}

const sortBatch = 32

// arriveLocked takes the next message out of the inbox.
func (s *stream[T]) arriveLocked() *message[T] {
	p := s.inbox.frontLocked()
	if p == nil {
		return nil
	}
	return s.arriveFromLocked(p)
}

func (s *stream[T]) arriveFromLocked(p *partition[T]) *message[T] {
	a, w := s.inbox.takeLocked(p)
	m := s.acceptLocked(a, w)
	*a = arrival[T]{}
	return m
}

// lineUpLocked brings a message out of the inbox to its lane, or further.
func (s *stream[T]) lineUpLocked(m *message[T]) {
	first, why := s.joinLocked(m)
	switch {
	case why != "": // the resolver was closed: what is bounded doesn't pass through the inbox
		m.refuse(FailureOrdering, why)
		s.carry(m)
	case first && s.turnLocked(m):
		s.carry(m)
	}
}

// joinLocked lines m up in its lane, if it has an order. first says that its turn has come with that.
func (s *stream[T]) joinLocked(m *message[T]) (first bool, why reason) {
	var ordered bool
	if m.hash, ordered = s.place(m.key); !ordered {
		return true, ""
	}
	name := s.order.lane(m.key)
	if s.shared != nil {
		return s.shared.shard(m.hash).join(name, m.hash, &m.turn)
	}
	return s.lanes.join(name, m.hash, &m.turn)
}

// laneLocked finds key's lane among the stream's own. nil: it has none.
func (s *stream[T]) laneLocked(key string) *lane {
	if s.lanes.lanes == 0 {
		return nil
	}
	hash, ordered := s.place(key)
	if !ordered {
		return nil
	}
	return s.lanes.find(s.order.lane(key), hash)
}

// openLaneLocked makes one of the stream's own lanes for m, if it has an order: it is its turn.
func (s *stream[T]) openLaneLocked(m *message[T]) {
	var ordered bool
	if m.hash, ordered = s.place(m.key); ordered {
		s.lanes.open(s.order.lane(m.key), m.hash, &m.turn)
	}
}

// leaveLocked takes m out of its lane and returns whose turn comes by it.
func (s *stream[T]) leaveLocked(m *message[T]) *turn {
	if s.shared != nil {
		return s.shared.shard(m.hash).leave(&m.turn)
	}
	return s.lanes.leave(&m.turn)
}

// giveUpPlaceLocked takes m out of its lane if it waits there for an earlier message, and says whether it did. In one step:
// in a shared lane its turn may come at any moment, and then it is turnCame's.
func (s *stream[T]) giveUpPlaceLocked(m *message[T]) bool {
	if s.shared != nil {
		return s.shared.shard(m.hash).giveUp(&m.turn)
	}
	return s.lanes.giveUp(&m.turn)
}

// attend is called by the receiver that has put something into an inbox that nobody will look into.
func (s *stream[T]) attend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.startLocked()
}

// turnLocked sees to m, whose turn has come: it is queued, or, if the caller must carry it, it will not run.
func (s *stream[T]) turnLocked(m *message[T]) (carry bool) {
	switch {
	case s.over.Load():
		m.cutShort(s.cutKindLocked())
		return true
	case s.isGivenUpLocked(m):
		m.refuse(FailureOrdering, reasonGivenUp)
		return true
	case s.own != nil:
		s.carriers.Go(func() error { return s.ask(m) })
	default:
		s.pushLocked(m)
	}
	return false
}

// turnCame implements turnOwner: the lane's last turn was another stream's, or a direct caller's.
func (m *message[T]) turnCame() {
	s := m.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.turnLocked(m) {
		s.carry(m)
	}
	s.startLocked()
}
