package flow

import (
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// withProcessors has a test see so many.
func withProcessors(t *testing.T, n int) {
	before := runtime.GOMAXPROCS(n)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

func TestModeFollowsHowLongLeasesTake(t *testing.T) {
	withProcessors(t, 4)
	for _, c := range []struct {
		from paceMode
		run  int32
		each time.Duration
		want paceMode
	}{
		{paceFast, 1, 100 * time.Nanosecond, paceFast},
		{paceFast, 1, 2 * time.Microsecond, paceMedium},
		{paceFast, 1, time.Millisecond, paceSlow},
		{paceFast, 8, time.Millisecond, paceFast}, // by chance, maybe: the next lease is of one message
		{paceMedium, 1, 2 * time.Microsecond, paceMedium},
		{paceMedium, 1, time.Millisecond, paceSlow},
		{paceMedium, 8, time.Millisecond, paceMedium},
		{paceMedium, 1, 100 * time.Nanosecond, paceMedium}, // one quick lease is not enough
	} {
		s, _ := leased(t, nil, "a")
		s.mu.Lock()
		s.setModeLocked(c.from)
		s.pace.run = c.run
		s.leaseTookLocked(4, 4*c.each)
		if s.pace.mode != c.want {
			t.Errorf("from %d, in leases of %d, messages of %v lead to %d, want %d", c.from, c.run, c.each, s.pace.mode, c.want)
		}
		if c.want > c.from || c.run > 1 {
			if s.pace.run != 1 {
				t.Errorf("from %d, in leases of %d, messages of %v: the next lease is of %d, want 1", c.from, c.run, c.each, s.pace.run)
			}
		}
		s.mu.Unlock()
	}
}

func TestQuickLeasesInARowEndTheMediumPace(t *testing.T) {
	withProcessors(t, 4)
	s, _ := leased(t, nil, "a")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setModeLocked(paceMedium)
	for n := 1; n < 2*quickOnes; n++ {
		if s.pace.mode != paceMedium {
			t.Fatalf("it ended after %d leases", n)
		}
		if s.leaseTookLocked(1, 0); n == quickOnes-1 {
			s.leaseTookLocked(1, mediumPace) // no longer in a row
		}
	}
	if s.leaseTookLocked(1, 0); s.pace.mode != paceFast || s.inbox.spread != 1 {
		t.Errorf("mode %d with %d partitions after %d quick leases in a row", s.pace.mode, s.inbox.spread, quickOnes)
	}
}

func TestShortMessagesInARowEndTheSlowPace(t *testing.T) {
	withProcessors(t, 4)
	for took, want := range map[time.Duration]paceMode{
		100 * time.Nanosecond: paceFast, 5 * time.Microsecond: paceMedium, 20 * time.Microsecond: paceSlow,
	} {
		s, _ := leased(t, nil, "a")
		s.mu.Lock()
		s.setModeLocked(paceSlow)
		for range shortTimed - 1 {
			s.messageTookLocked(took)
		}
		s.messageTookLocked(time.Second) // no longer in a row
		for range shortTimed - 1 {
			s.messageTookLocked(took)
		}
		if s.pace.mode != paceSlow {
			t.Errorf("messages of %v lead to %d before there were enough of them", took, s.pace.mode)
		}
		if s.messageTookLocked(took); s.pace.mode != want {
			t.Errorf("messages of %v lead to %d, want %d", took, s.pace.mode, want)
		}
		s.mu.Unlock()
	}
}

// A message in the lanes is timed now and then, so that a stream whose handlers have been stuck finds back to leases.
func TestMessagesInTheLanesAreTimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // each takes no time
		s, c := leased(t, nil, strings.Split(strings.Repeat("abcdefghij", 20), "")...)
		s.mu.Lock()
		s.setModeLocked(paceSlow) // calls the lease in
		s.starting = true         // nobody else comes
		s.mu.Unlock()
		c.m = c.callIn()
		timed := 0
		for range shortTimed * timedEach {
			c.m.outcome, c.m.step = succeeded, stepFinish
			if c.timing > 0 {
				timed++
			}
			if c.next(); c.m == nil {
				break
			}
		}
		if timed != shortTimed || s.pace.mode != paceFast {
			t.Errorf("%d messages were timed, and the mode is %d; want %d and that of fast ones", timed, s.pace.mode, shortTimed)
		}
	})
}

// There must be a worker left to look out.
func TestPartitionsAreFewerThanWorkers(t *testing.T) {
	withProcessors(t, 4)
	s, _ := leased(t, nil, "a")
	for workers, want := range map[int]int{1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 100: 4} {
		s.mu.Lock()
		s.setPaceLocked(paceFast)
		s.maxWorkers = workers
		s.leaseTookLocked(1, mediumPace)
		if s.inbox.spread != want || (s.pace.mode == paceMedium) != (want > 1) {
			t.Errorf("%d partitions in mode %d with %d workers, want %d", s.inbox.spread, s.pace.mode, workers, want)
		}
		s.mu.Unlock()
	}
	withProcessors(t, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setPaceLocked(paceFast)
	if s.leaseTookLocked(1, mediumPace); s.pace.mode != paceSlow {
		t.Errorf("mode %d on one processor, want that of the lanes", s.pace.mode)
	}
}
