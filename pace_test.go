package flow

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestModeFollowsHowLongLeasesTake(t *testing.T) {
	processors(t, 4)
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
		s.pace.warn = true
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

// Who has a lease looks at its stream only when it ends.
func TestLeasesAreForSoManyMessagesAsTakeTheirTime(t *testing.T) {
	processors(t, 4)
	s, _ := leased(t, nil, "a")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setModeLocked(paceMedium)
	for _, c := range []struct {
		each time.Duration
		want int32
	}{
		{time.Microsecond, 64}, {8 * time.Microsecond, 8}, {2 * time.Microsecond, 32}, {fastPace, chunkSize},
	} {
		for range 10 {
			n := int(s.pace.run)
			s.leaseTookLocked(n, time.Duration(n)*c.each)
		}
		if s.pace.run != c.want || s.pace.mode != paceMedium {
			t.Errorf("with messages of %v a lease is for %d of them in mode %d, want %d", c.each, s.pace.run, s.pace.mode, c.want)
		}
	}
}

// The first message of a burst finds cold memory, and any may lose its core.
func TestOneSlowLeaseIsNotEnough(t *testing.T) {
	s, _ := leased(t, nil, "a")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setPaceLocked(paceFast)
	for range 3 {
		s.leaseTookLocked(1, time.Second)
		if s.pace.mode != paceFast || s.pace.run != 1 {
			t.Fatalf("mode %d, and the next lease is of %d, after a slow one", s.pace.mode, s.pace.run)
		}
		s.leaseTookLocked(1, 0)
	}
	for range 2 {
		s.leaseTookLocked(1, time.Second)
	}
	s.leaseTookLocked(1, time.Second)
	if s.pace.mode != paceSlow {
		t.Errorf("mode %d after two in a row", s.pace.mode)
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
