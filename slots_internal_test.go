package flow

import (
	"context"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"
)

func newSlots(o BackpressureOptions) *slots {
	return &slots{p: NewPressureController(o)}
}

func wantSlots(t testing.TB, s *slots, spare, inUse int, held int64) {
	t.Helper()
	if got := s.p.inUse.Load(); s.spare != spare || s.inUse != inUse || got != held {
		t.Errorf("%d spare, %d in use, %d held of all; want %d, %d, %d", s.spare, s.inUse, got, spare, inUse, held)
	}
}

func TestSlotsWithoutACapacityAreEndless(t *testing.T) {
	s := newSlots(BackpressureOptions{})
	for range 100 {
		if s.take(128) != 1 {
			t.Fatal("there is none")
		}
	}
	s.free(100)
	wantSlots(t, s, 0, 0, 0)
}

func TestSlotsARunTakesOneHoweverLongItIs(t *testing.T) {
	s := newSlots(BackpressureOptions{Capacity: 2})
	if a, b, c := s.take(128), s.take(128), s.take(128); a != 1 || b != 1 || c != 0 {
		t.Errorf("three runs got %d, %d and %d of 2", a, b, c)
	}
	wantSlots(t, s, 0, 2, 2)
	s.free(1)
	wantSlots(t, s, 1, 1, 2) // kept for the next run
	if s.take(128) != 1 {
		t.Error("what it kept is not there")
	}
	wantSlots(t, s, 0, 2, 2)
	s.free(2)
	s.trim(0)
	wantSlots(t, s, 0, 0, 0)
}

func TestSlotsWhereMessagesMayBeRefusedARunTakesWhatItsMessagesHave(t *testing.T) {
	s := newSlots(BackpressureOptions{Capacity: 3, Policy: BackpressureHardReject})
	if s.take(4) != 0 {
		t.Error("a run got a slot that no message has")
	}
	for range 3 {
		if !s.reserve() {
			t.Fatal("no slot for a message that is admitted")
		}
	}
	if s.reserve() {
		t.Error("a fourth of three")
	}
	if got := s.take(2); got != 2 {
		t.Errorf("two messages got %d slots", got)
	}
	wantSlots(t, s, 1, 2, 3)
	if got := s.take(2); got != 1 {
		t.Errorf("the next two got %d of the one that is left", got)
	}
	s.free(3)
	s.count(0) // nothing is ready: what is free is free for everybody
	wantSlots(t, s, 0, 0, 0)
}

func TestSlotsCoverAsManyReadyMessagesAsThereAre(t *testing.T) {
	s := newSlots(BackpressureOptions{Capacity: 3, QueueCapacity: 10})
	s.cover(2)
	wantSlots(t, s, 2, 0, 2)
	s.cover(5)
	wantSlots(t, s, 3, 0, 3)
	plain := newSlots(BackpressureOptions{Capacity: 3})
	plain.cover(2)
	wantSlots(t, plain, 0, 0, 0)
}

func TestSlotsCountWhatWaitsForOneUpToQueueCapacity(t *testing.T) {
	s := newSlots(BackpressureOptions{Capacity: 1, QueueCapacity: 2})
	if !s.reserve() || s.reserve() || !s.queue() || !s.queue() || s.queue() {
		t.Fatal("want one slot, and two places to wait")
	}
	want := func(short int, queued int64) {
		t.Helper()
		if got := s.p.queued.Load(); s.short != short || got != queued {
			t.Errorf("%d lack a slot, %d of all; want %d, %d", s.short, got, short, queued)
		}
	}
	want(2, 2)
	s.count(3)
	want(2, 2)
	s.take(1)
	s.count(2) // the other two
	want(2, 2)
	s.free(1)
	s.count(2)
	want(1, 1) // one of them has the slot
	if !s.queue() {
		t.Error("the place is not free again")
	}
	s.count(0)
	want(0, 0)
	wantSlots(t, s, 0, 0, 0)
}

func TestSlotsRetriesAreCountedBeyondQueueCapacity(t *testing.T) {
	s := newSlots(BackpressureOptions{Capacity: 1, QueueCapacity: 1})
	s.count(5) // accepted long ago
	if s.short != 5 || s.p.queued.Load() != 5 {
		t.Errorf("%d lack a slot, %d of all", s.short, s.p.queued.Load())
	}
	if s.queue() {
		t.Error("one more is accepted")
	}
}

func TestSlotsGoToWhoAskedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPressureController(BackpressureOptions{Capacity: 1})
		s := &slots{p: p}
		s.take(1)
		var got Admission
		go func() {
			a, err := p.Acquire(t.Context())
			if err != nil {
				t.Error(err)
			}
			got = a
		}()
		synctest.Wait()
		s.free(1)
		synctest.Wait()
		if got.a == nil {
			t.Fatal("who asked has no slot, though one is free")
		}
		wantSlots(t, s, 0, 0, 1)
		if s.take(1) != 0 {
			t.Error("it is there twice")
		}
		got.Release()
		wantSlots(t, s, 0, 0, 0)
	})
}

func TestSlotsAskOnceAndInTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPressureController(BackpressureOptions{Capacity: 1})
		a, b := &slots{p: p}, &slots{p: p}
		answers := make(chan error, 8)
		entered := 0
		ask := func(s *slots) { s.ask(func() { entered++ }, func(err error) { answers <- err }) }
		a.take(1)
		ask(a) // all slots are its own anyway
		if a.asking || entered > 0 {
			t.Error("it asks for a slot of its own")
		}
		ask(b)
		ask(b)
		synctest.Wait()
		if !b.asking || entered != 1 || p.asking.Load() != 1 {
			t.Errorf("asking: %v, %d times, %d of all", b.asking, entered, p.asking.Load())
		}
		a.free(1)
		synctest.Wait()
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
		b.answered(nil)
		wantSlots(t, a, 0, 0, 1)
		wantSlots(t, b, 1, 0, 1)
		if b.asking || p.asking.Load() != 0 {
			t.Errorf("asking: %v, %d of all", b.asking, p.asking.Load())
		}
		b.trim(0)
		wantSlots(t, b, 0, 0, 0)
	})
}

func TestSlotsThatAreNotNeededAnyMoreAreNotAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPressureController(BackpressureOptions{Capacity: 1})
		other, s := &slots{p: p}, &slots{p: p}
		other.take(1)
		s.stopAsking() // it doesn't
		answers := make(chan error, 1)
		s.ask(func() {}, func(err error) { answers <- err })
		synctest.Wait()
		s.stopAsking()
		if err := <-answers; err != context.Canceled {
			t.Errorf("the answer is %v", err)
		}
		s.answered(context.Canceled)
		wantSlots(t, s, 0, 0, 1)
		if s.asking || p.asking.Load() != 0 {
			t.Error("it still asks")
		}
	})
}

// Whatever two shards do: never more slots than there are, and in the end none is left with anybody.
func TestSlotsAreNeitherLostNorDoubled(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := BackpressureOptions{Capacity: rapid.IntRange(1, 4).Draw(t, "capacity")}
		if rapid.Bool().Draw(t, "refuses") {
			o.QueueCapacity = rapid.IntRange(1, 4).Draw(t, "queue")
		}
		p := NewPressureController(o)
		both := []*slots{{p: p}, {p: p}}
		runs := make([][]int, 2) // slots of those that are out
		ready := make([]int, 2)
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			i := rapid.IntRange(0, 1).Draw(t, "shard")
			s := both[i]
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0: // a message is received
				if !p.refuses() || s.reserve() || s.queue() {
					ready[i]++
				}
			case 1: // runs are sent
				s.cover(ready[i])
				n := min(ready[i], rapid.IntRange(1, 3).Draw(t, "length"))
				if got := 0; n > 0 {
					if got = s.take(n); got > 0 {
						runs[i] = append(runs[i], got)
						if p.refuses() {
							n = got
						}
						ready[i] -= n
					}
				}
				s.count(ready[i])
			case 2: // one is back
				if len(runs[i]) > 0 {
					s.free(runs[i][0])
					runs[i] = runs[i][1:]
					s.count(ready[i])
				}
			case 3: // the shard has nothing to do
				s.trim(0)
				s.count(ready[i])
			case 4: // a stream ends
				ready[i] = 0
				s.count(0)
			}
			held := 0
			for i, s := range both {
				out := 0
				for _, n := range runs[i] {
					out += n
				}
				if s.spare < 0 || s.inUse != out {
					t.Fatalf("%+v with %d out", s, out)
				}
				held += s.spare + s.inUse
			}
			if n := p.inUse.Load(); n != int64(held) || n > int64(o.Capacity) {
				t.Fatalf("%d of %d are in use, and %d are known", n, o.Capacity, held)
			}
			if n := p.queued.Load(); n != int64(both[0].short+both[1].short) && o.QueueCapacity > 0 {
				t.Fatalf("%d lack a slot, and %d and %d are known", n, both[0].short, both[1].short)
			}
		}
		for i, s := range both {
			for _, n := range runs[i] {
				s.free(n)
			}
			s.count(0)
			s.trim(0)
		}
		if p.inUse.Load() != 0 || p.queued.Load() != 0 {
			t.Fatalf("%d are in use in the end, %d lack one", p.inUse.Load(), p.queued.Load())
		}
		for range o.Capacity {
			if !p.try() {
				t.Fatal("one is lost")
			}
		}
		if p.try() {
			t.Fatal("there is one more than before")
		}
	})
}
