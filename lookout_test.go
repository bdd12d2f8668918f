package flow

import (
	"testing"
	"testing/synctest"
	"time"
)

// getsOn has k's worker be at another message.
func getsOn[T any](k *chunk[T]) { k.at.Store((k.at.Load() + 1) % 3) }

// leaves has n messages leave l.
func leaves(s *stream[string], l *lane, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.n -= n
}

// lookAfter is one look after d, in a bubble, at a stream whose first lease has got on.
func (s *stream[T]) lookAfter(v *vigil, d time.Duration) bool {
	time.Sleep(d)
	getsOn(s.inbox.parts[0].out)
	return s.look(v, 1)
}

// look is so many looks, and says whether one of them was enough to come.
func (s *stream[T]) look(v *vigil, times int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range times {
		if come, _ := s.lookLocked(v); come {
			return true
		}
	}
	return false
}

func TestLeaseThatIsStuckIsCalledInAndTheOthersAreNot(t *testing.T) {
	s, v, w := partitioned(t, 4)
	for range lookOutStuck {
		if s.look(v, 1) || !w[1].leased.held {
			t.Fatal("it is called in too soon")
		}
		getsOn(w[0].leased)
	}
	if !s.look(v, 1) {
		t.Fatal("the worker on its way doesn't come")
	}
	if w[1].leased.held || !w[0].leased.held || s.leases != 1 {
		t.Errorf("on lease: %v and %v; want the first, which gets on", w[0].leased.held, w[1].leased.held)
	}
	if m := w[1].leased.m; m == nil || m.seq != 2 || m.state != stateRunning || !m.lane.stuck || s.ready.n != 3 {
		t.Errorf("runs %+v, and %d are ready; want the second's first, in a lane that is stuck, and the rest", m, s.ready.n)
	}
}

// What runs with nothing behind it is in nobody's way.
func TestLeaseWithNothingLeftIsNotCalledIn(t *testing.T) {
	s, v, w := partitioned(t, 1)
	receiveAll(s, w[0].leased.list[0].key) // behind the first's
	if !s.look(v, 2*lookOutStuck) || w[0].leased.held {
		t.Error("the lease with something behind it is not called in")
	}
	if s.look(v, 2*lookOutStuck); !w[1].leased.held {
		t.Error("the lease with nothing behind it is called in")
	}
}

// There are more partitions than leases.
func TestLeaseThatIsStuckKeepsNoPartitionWaiting(t *testing.T) {
	s, v, w := partitioned(t, 1)
	s.mu.Lock()
	s.endLeaseLocked(w[0].leased)
	s.slots, s.abreast = 1, 1
	s.mu.Unlock()
	if s.look(v, lookOutStuck) {
		t.Error("somebody comes too soon")
	}
	if !s.look(v, 1) || w[1].leased.held {
		t.Error("what waits for a lease waits for a handler that is stuck")
	}
}

func TestPartitionWithoutAWorkerGetsOneAtOnce(t *testing.T) {
	s, v, w := partitioned(t, 4)
	s.mu.Lock()
	s.slots-- // the second has left
	s.endLeaseLocked(w[1].leased)
	s.mu.Unlock()
	if !s.look(v, 1) {
		t.Error("nobody comes")
	}
}

// stuckKey is partitioned, where the second worker has run into a key whose lane another worker, or nobody, works off.
func stuckKey(t *testing.T) (*stream[string], *vigil, *lane) {
	s, v, w := partitioned(t, 4)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.callInOneLocked(w[1].leased) // its lanes are those of all its keys, and its first runs
	key := w[1].leased.m.key
	s.ready = messageQueue[string]{}
	s.slots++
	receiveAll(s, key, key)
	return s, v, s.laneLocked(key)
}

// A lane that is being worked off ends soon if it doesn't get more, and then there is a lease again.
func TestKeyThatIsBusyIsLeftInTheInboxWhileItsLaneGetsOn(t *testing.T) {
	s, _, l := stuckKey(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	idle := &carrier[string]{s: s, slot: true}
	if idle.leaseLocked() || l.n != 1 {
		t.Errorf("there is a lease, or %d messages in the lane; want none, and the one that runs", l.n)
	}
	if l.stuck = true; idle.leaseLocked() || l.n != 3 {
		t.Errorf("there is a lease, or %d messages in a lane that is stuck; want none, and all", l.n)
	}
}

// A stranger that lies behind messages of a busy key does not wait for its lane.
func TestStrangerIsNotLeftBehindABusyKey(t *testing.T) {
	s, _, l := stuckKey(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	receiveAll(s, keysOf(s, 1, 5)[4]) // the others are in use
	if c := (&carrier[string]{s: s, slot: true}); !c.leaseLocked() || l.n != 3 {
		t.Errorf("%d messages in the lane, want three, and a lease that begins with the stranger", l.n)
	}
}

func TestLaneThatDoesNotGetOnIsMarkedStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v, l := stuckKey(t)
		l.n = 3 * lookOutStuck
		for range 2 * lookOutStuck { // it does
			leaves(s, l, 1)
			if s.lookAfter(v, mediumPace) {
				t.Fatal("somebody comes although all get on")
			}
		}
		for i := 0; !l.stuck; i++ {
			if i > lookOutStuck {
				t.Fatal("it is not seen")
			}
			if s.lookAfter(v, mediumPace) != l.stuck {
				t.Error("who has seen it doesn't come")
			}
		}
	})
}

// However long a lane is, what lies behind its key's messages waits for it no longer than for a lease.
func TestLaneThatGetsOnSlowlyIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v, l := stuckKey(t)
		l.n = 1000
		for i := 0; !l.stuck; i++ {
			if i > lookOutStuck {
				t.Fatal("it is waited for")
			}
			leaves(s, l, 1)
			s.lookAfter(v, 2*mediumPace)
		}
	})
}

// With one key there is nothing but its lane, once a lease of it has been broken: what is received meanwhile had better
// wait until that is empty, however long it is.
func TestLongLaneThatGetsOnFastIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v, l := stuckKey(t)
		for l.n = 1000; l.n > 100; {
			leaves(s, l, 20)
			if s.lookAfter(v, 10*mediumPace); l.stuck {
				t.Fatal("it is not waited for")
			}
		}
	})
}

// Else a trickle of messages, each of which brings the worker that has looked out, would hide a lease that is stuck.
func TestWhatIsSeenOfALeaseOutlivesWhoHasSeenIt(t *testing.T) {
	s, _, w := partitioned(t, 4)
	for range lookOutStuck + 1 {
		getsOn(w[0].leased)
		s.look(&vigil{}, 1)
	}
	if w[1].leased != nil && w[1].leased.held {
		t.Error("a stuck lease is not called in")
	}
}

// The last of the workers won't see a lane end that nobody works off: its head waits for its next try.
func TestWorkerThatIsAloneLinesUpWhatIsBehindABusyKey(t *testing.T) {
	s, _, l := stuckKey(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots = 1
	if (&carrier[string]{s: s, slot: true}).leaseLocked(); l.n != 3 {
		t.Errorf("%d messages in the lane, want all three", l.n)
	}
}

// Who ends a lease begins another at once, so that while other partitions have work all leases are given whenever somebody
// looks. A key whose message waited for its next try kept all that lay behind its next one waiting as well.
func TestStrangerIsNotLeftBehindABusyKeyWhileAllLeasesAreGiven(t *testing.T) {
	s := spreadOver(t, 3)
	s.mu.Lock()
	s.abreast = 2
	zero, one, two := keysOf(s, 0, 9), keysOf(s, 1, 9), keysOf(s, 2, 2)
	receiveAll(s, zero...)
	receiveAll(s, one...)
	workers := []*carrier[string]{workerOn(t, s), workerOn(t, s)}
	busyLane(s, two[0]).state = stateParked
	receiveAll(s, two[0])
	s.inbox.fillLocked(&s.inbox.parts[2])
	receiveAll(s, two[1]) // the stranger, in another chunk
	v := &vigil{last: s.paceLocked()}
	s.mu.Unlock()
	for round := range 1000 {
		for _, c := range workers {
			if round%5 != 4 {
				getsOn(c.leased)
				continue
			}
			s.mu.Lock()
			part := c.leased.part
			s.endLeaseLocked(c.leased)
			receiveAll(s, keysOf(s, part, 9)...)
			if !c.leaseLocked() {
				t.Fatal("there is no lease")
			}
			key := c.leased.list[c.leased.start].key
			s.mu.Unlock()
			if key == two[1] {
				return
			}
		}
		if s.look(v, 1) {
			t.Fatal("one more worker comes, although all leases are given")
		}
	}
	t.Error("the stranger waits for a key whose message is parked")
}
