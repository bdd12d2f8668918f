package flow

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// The tests of the partitions look at a stream from inside, between two steps of its workers: from outside most of this
// is a matter of time, and on busy processors of chance.

// spreadOver is a stream whose messages, which take some microseconds, go to n partitions.
func spreadOver(t *testing.T, n int) *stream[string] {
	t.Helper()
	f := mustNewInside(t, func(context.Context, Message[string]) error { return nil },
		func(s string) string { return s }, Options{Ordering: OrderingOptions{Mode: OrderingKeyedFIFO}})
	s := f.receiver.newStream(t.Context(), f.key)
	t.Cleanup(func() { s.cancel(nil) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starting = true // so that nobody comes whom the test doesn't know
	s.pace.mode, s.pace.run, s.abreast = paceMedium, chunkSize, int32(n)
	s.spreadLocked(n)
	return s
}

// processors has the test believe in n of them.
func processors(t *testing.T, n int) {
	t.Helper()
	before := runtime.GOMAXPROCS(n)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

// keysOf are n keys whose messages go to one partition.
func keysOf(s *stream[string], part, n int) (keys []string) {
	for i := 0; len(keys) < n; i++ {
		if a := (arrival[string]{key: fmt.Sprint("k", i)}); s.partitionOf(&a) == part {
			keys = append(keys, a.key)
		}
	}
	return keys
}

// receiveAll is the receiver's part.
func receiveAll(s *stream[string], keys ...string) {
	for _, key := range keys {
		s.put(&arrival[string]{seq: s.inbox.total() + 1, key: key, value: key}, weight{})
	}
}

// workerOn is one more worker, that has a lease.
func workerOn(t *testing.T, s *stream[string]) *carrier[string] {
	t.Helper()
	c := &carrier[string]{s: s, slot: true}
	s.slots++
	if !c.leaseLocked() {
		t.Fatal("there is no lease")
	}
	return c
}

// partitioned is a stream with two partitions, in each of which lie so many messages, all of different keys, and the worker
// that has it on lease. One more worker is on its way, but only looks when it is told to.
func partitioned(t *testing.T, each int) (s *stream[string], v *vigil, workers [2]*carrier[string]) {
	t.Helper()
	s = spreadOver(t, 2)
	s.mu.Lock()
	defer s.mu.Unlock()
	zero, one := keysOf(s, 0, each), keysOf(s, 1, each)
	for i := range zero {
		receiveAll(s, zero[i], one[i])
	}
	for range workers {
		c := workerOn(t, s)
		workers[c.part] = c
	}
	return s, &vigil{last: s.paceLocked()}, workers
}

// busyLane has a lane of its own for key, whose message runs.
func busyLane(s *stream[string], key string) *message[string] {
	s.inbox.count()
	m := s.acceptLocked(&arrival[string]{seq: s.inbox.total(), key: key, value: key}, weight{})
	m.state = stateRunning
	s.openLaneLocked(m)
	return m
}

// A key whose messages lay in two partitions would run twice at a time.
func TestAKeysMessagesGoToOnePartition(t *testing.T) {
	s := spreadOver(t, 3)
	for _, key := range []string{"a", "b", "c", "d"} {
		want := s.partitionOf(&arrival[string]{seq: 1, key: key})
		for seq := range uint64(10) {
			if got := s.partitionOf(&arrival[string]{seq: seq, key: key}); got != want {
				t.Errorf("the messages of %s go to the partitions %d and %d", key, want, got)
			}
		}
	}
}

// What was received under another number of partitions may be of a key that lies elsewhere now: it goes first, through the
// lanes, in the order of its receipt.
func TestNoPartitionIsLeasedBeforeWhatWasSpreadOtherwiseHasGone(t *testing.T) {
	s := spreadOver(t, 2)
	keys := keysOf(s, 1, 2)
	s.mu.Lock()
	defer s.mu.Unlock()
	receiveAll(s, keys...)
	s.spreadLocked(1)
	receiveAll(s, keys...)
	c := &carrier[string]{s: s, slot: true}
	for want := range uint64(2) {
		if !s.inbox.mixedLocked() || c.leaseLocked() {
			t.Fatalf("there may be a lease while %d lies in its old partition", want+1)
		}
		if m := s.arriveLocked(); m.seq != want+1 {
			t.Fatalf("%d comes out of the inbox, want %d", m.seq, want+1)
		}
	}
	if !c.leaseLocked() || c.leased.list[0].seq != 3 {
		t.Error("there is no lease on what was received since")
	}
}

// A lease that went on would run keys whose later messages lie in a partition that may be leased to another.
func TestChangeOfThePartitionsCallsTheirLeasesIn(t *testing.T) {
	s := spreadOver(t, 2)
	s.mu.Lock()
	defer s.mu.Unlock()
	receiveAll(s, keysOf(s, 0, 2)...)
	receiveAll(s, keysOf(s, 1, 2)...)
	a, b := workerOn(t, s), workerOn(t, s)
	s.setModeLocked(paceFast)
	if s.leases != 0 || a.leased.held || b.leased.held {
		t.Errorf("%d leases are left", s.leases)
	}
}

// Who looks out needs a slot, so there is one lease less than slots.
func TestPartitionsLeaveRoomForWhoLooksOut(t *testing.T) {
	processors(t, 4)
	for slots, want := range map[int]int{2: 1, 3: 2, 4: 3, 5: 4, 100: 4} {
		s := spreadOver(t, 1)
		s.mu.Lock()
		s.maxWorkers = slots
		mode := paceMedium
		if want == 1 {
			mode = paceSlow
		}
		if got := s.modeFor(mediumPace); got != mode {
			t.Errorf("with %d slots the mode is %v, want %v", slots, got, mode)
		}
		s.pace.mode = paceFast
		s.setModeLocked(paceMedium)
		partitions := want
		if want > 1 {
			partitions *= partitionsEach
		}
		if int(s.abreast) != want || s.inbox.spread != partitions {
			t.Errorf("with %d slots there are %d leases on %d partitions, want %d on %d",
				slots, s.abreast, s.inbox.spread, want, partitions)
		}
		s.mu.Unlock()
	}
}

func TestPartitionsAreNoMoreThanTheReceiverCanFill(t *testing.T) {
	processors(t, maxAbreast+4)
	s := spreadOver(t, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pace.mode = paceFast
	s.setModeLocked(paceMedium)
	if s.abreast != maxAbreast {
		t.Fatalf("there may be %d leases at once, want %d", s.abreast, maxAbreast)
	}
}

func TestPartitionOnLeaseIsNotLeasedToAnother(t *testing.T) {
	s := spreadOver(t, 3)
	s.mu.Lock()
	defer s.mu.Unlock()
	receiveAll(s, keysOf(s, 0, 3)...)
	workerOn(t, s)
	if c := (&carrier[string]{s: s, slot: true}); c.leaseLocked() {
		t.Error("two workers have the same messages")
	}
}

// A worker that had no others beside it would leave the keys of the other partitions waiting as long as its own got more.
func TestWorkerAloneGoesRoundThePartitions(t *testing.T) {
	s := spreadOver(t, 2)
	s.mu.Lock()
	receiveAll(s, keysOf(s, 0, 5)...)
	receiveAll(s, keysOf(s, 1, 5)...)
	s.pace.run = 1
	c := workerOn(t, s)
	s.mu.Unlock()
	var got []int
	for range 4 {
		k, part := c.leased, c.part
		got = append(got, part)
		s.pace.run = 1
		c.checkIn(k.start, true, s.clock())
		if next := s.inbox.parts[part].next; next != k.start+1 && c.part != part {
			t.Errorf("after the message at %d the partition goes on at %d", k.start, next)
		}
		if c.leased == nil {
			t.Fatal("there is no lease any more")
		}
	}
	if got[0] == got[1] || got[1] == got[2] || got[2] == got[3] {
		t.Errorf("it has had the partitions %v on lease", got)
	}
}

// Whoever needs the stream as it is needs all of it.
func TestAllLeasesAreCountedAndCalledIn(t *testing.T) {
	s, _, w := partitioned(t, 3)
	s.mu.Lock()
	defer s.mu.Unlock()
	a, b := w[0], w[1]
	a.leased.at.Store(1)
	b.leased.at.Store(2)
	if n := s.pendingLocked(); n != 3 {
		t.Errorf("%d pending under lease, want 3", n)
	}
	s.callInLocked()
	if s.leases != 0 || a.leased.m == nil || b.leased.m == nil || s.finished != 3 || s.ready.n != 1 {
		t.Errorf("%d leases are left, %d finished, %d ready; want 0, 3 and 1", s.leases, s.finished, s.ready.n)
	}
}

// What has to finish until the receiver is woken is shared among those at work, and none of them forgets to look.
func TestAllLeasesAreCutShortForAReceiverThatWaits(t *testing.T) {
	s, _, w := partitioned(t, chunkSize)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.r.maxPending = 64
	a, b := w[0], w[1]
	s.waiting, s.seen = waitRoom, 64
	s.hurryLocked()
	if a, b := a.leased.end.Load(), b.leased.end.Load(); a != 4 || b != 4 { // an eighth of 64, for both
		t.Errorf("the workers look at the stream before their messages %d and %d, want 4", a, b)
	}
}

// The receiver tells a worker of something only if its pile was empty: what is not seen then stays where it is.
func TestWhatLiesInOtherPartitionsIsSeen(t *testing.T) {
	for part := range 2 {
		s := spreadOver(t, 2)
		s.mu.Lock()
		receiveAll(s, keysOf(s, 1-part, 1)...)
		receiveAll(s, keysOf(s, part, 1)...)
		c := &carrier[string]{s: s, slot: true, part: part} // it goes on to the other
		if s.slots++; !c.leaseLocked() || c.part != 1-part {
			t.Fatal("the other partition is not on lease")
		}
		if !s.inbox.some.Load() || !s.backlogLocked() {
			t.Errorf("what was not taken out of pile %d is not seen", part)
		}
		s.inbox.fillLocked(&s.inbox.parts[part])
		if s.inbox.some.Load() || !s.leftLocked() || !s.backlogLocked() {
			t.Errorf("what was taken out of pile %d, and not run, is not seen", part)
		}
		s.mu.Unlock()
	}
}

// Who brings the last message to its end gives memory back, and the receiver goes on meanwhile.
func TestMessageThatComesAsMemoryIsGivenBackIsKept(t *testing.T) {
	s := spreadOver(t, 2)
	s.mu.Lock()
	defer s.mu.Unlock()
	receiveAll(s, keysOf(s, 1, 1)...)
	s.inbox.trimLocked(&s.r.chunks)
	if p := s.inbox.frontLocked(); p == nil || p.out.list[p.next].seq != 1 {
		t.Error("it is lost")
	}
}

func TestSnapshotSeesAllPartitions(t *testing.T) {
	s := spreadOver(t, 3)
	s.r.streams[s] = struct{}{}
	for part := range 3 {
		receiveAll(s, keysOf(s, part, 2)...)
	}
	if st := s.r.snapshot(9).Stats; st.Waiting != 6 || st.ActiveKeys != 6 {
		t.Errorf("%+v, want six that wait", st)
	}
}

// Else its messages would wait for those of keys that they have nothing to do with.
func TestSomebodyComesForAPartitionWithoutAWorker(t *testing.T) {
	s := spreadOver(t, 2)
	s.mu.Lock()
	defer s.mu.Unlock()
	receiveAll(s, keysOf(s, 0, 1)...)
	workerOn(t, s)
	v := vigil{last: s.paceLocked()}
	for part, want := range []bool{false, true} {
		if part == 1 {
			receiveAll(s, keysOf(s, 1, 1)...)
		}
		if come, _ := s.lookLocked(&v); come != want {
			t.Errorf("who looks out comes: %v, want %v", come, want)
		}
	}
}

// lookOften looks out until the worker is to come, while those who have a lease get on.
func lookOften(s *stream[string], looks int, between func(i int)) (come bool) {
	v := vigil{last: s.paceLocked()}
	for i := range looks {
		if come, _ = s.lookLocked(&v); come {
			break
		}
		between(i)
	}
	return come
}

// A message of a key whose lane is being worked off is left for a lease, but not if that takes long: what lies behind it
// is of other keys.
func TestPartitionWaitsForALaneThatGetsOnAndNotForOneThatIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // where time stands still: it measures how fast the lane gets on
		s := spreadOver(t, 2)
		keys := keysOf(s, 1, 2)
		s.mu.Lock()
		defer s.mu.Unlock()
		busyLane(s, keys[0])
		s.slots++
		for range 2 * lookOutStuck {
			receiveAll(s, keys[0])
			s.lineUpLocked(s.arriveLocked())
		}
		for range chunkSize { // a stranger among them is not left there
			receiveAll(s, keys[0])
		}
		receiveAll(s, keys[1])
		receiveAll(s, keysOf(s, 0, chunkSize)...)
		other := workerOn(t, s)
		if other.part != 0 {
			t.Fatal("the partition of the lane is on lease")
		}
		l := s.laneLocked(keys[0])
		goOn := func(i int) { other.leased.at.Store(int64(i + 1)) }
		if lookOften(s, lookOutStuck+5, func(i int) {
			s.lanes.leave(l.head)
			goOn(i)
		}) || l.stuck {
			t.Error("a lane that gets on is taken for one that is stuck")
		}
		if c := (&carrier[string]{s: s}); c.leaseLocked() {
			t.Error("a message is sorted into a lane that gets on")
		}
		other.leased.at.Store(0)
		if !lookOften(s, lookOutStuck+5, goOn) || !l.stuck {
			t.Fatal("nobody comes for what is behind a lane that is stuck")
		}
		if c := workerOn(t, s); c.leased.list[c.leased.start].key != keys[1] {
			t.Error("the lease begins with a key that has a lane")
		}
		if s.lanes.leave(l.head); l.stuck {
			t.Error("a lane that goes on is still taken for one that is stuck")
		}
	})
}

// Once it may be that the core was taken away from the worker, twice its messages take long.
func TestStuckLeasesAreCalledInAndTheSecondIsTheLast(t *testing.T) {
	s := spreadOver(t, 2)
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := keysOf(s, 0, 9)
	for i, want := range []paceMode{paceMedium, paceSlow} {
		receiveAll(s, keys[i:i+1]...)
		c := workerOn(t, s)
		if lookOften(s, 2*lookOutStuck, func(int) {}) || !c.leased.held {
			t.Fatal("a lease is called in for nothing, since nothing is left")
		}
		receiveAll(s, keys[i+2]) // it lies behind the chunk that is on lease
		if !lookOften(s, lookOutStuck+5, func(int) {}) || c.leased.held {
			t.Error("nobody comes for what lies behind a message that is stuck")
		}
		if s.pace.mode != want || s.pace.run != 1 {
			t.Errorf("the mode is %v, want %v; the next lease is for %d messages", s.pace.mode, want, s.pace.run)
		}
		for s.inbox.frontLocked() != nil {
			s.arriveLocked()
		}
	}
}

// Messages that take half as long as what makes a second worker worth while are run by one again, with its own memory.
func TestMessagesThatAreQuickForLongAreRunByOneWorkerAgain(t *testing.T) {
	processors(t, 4)
	s := spreadOver(t, 2)
	s.mu.Lock()
	defer s.mu.Unlock()
	for range 3 {
		for range quickOnes - 1 {
			s.leaseTookLocked(1, fastPace/2)
		}
		s.leaseTookLocked(1, mediumPace) // they must be so in a row
	}
	if s.pace.mode != paceMedium {
		t.Errorf("the mode is %v", s.pace.mode)
	}
	for range quickOnes {
		s.leaseTookLocked(1, fastPace/2)
	}
	if s.pace.mode != paceFast || s.inbox.spread != 1 {
		t.Errorf("the mode is %v, with %d partitions", s.pace.mode, s.inbox.spread)
	}
}

// A single long one among the short shows that they may wait for something, and under a lease others would wait with them.
func TestMessagesThatHaveBecomeShortAreLeasedAgain(t *testing.T) {
	processors(t, 4)
	for each, want := range map[time.Duration]paceMode{fastPace: paceFast, mediumPace / 2: paceMedium, mediumPace: paceMedium} {
		s := spreadOver(t, 1)
		s.mu.Lock()
		s.setModeLocked(paceSlow)
		for range 3 {
			for range shortTimed - 1 {
				s.messageTookLocked(each)
			}
			s.messageTookLocked(mediumPace + 1)
		}
		if s.pace.mode != paceSlow {
			t.Errorf("the mode is %v with one long one of %d", s.pace.mode, shortTimed)
		}
		for range shortTimed {
			s.messageTookLocked(each)
		}
		if s.pace.mode != want {
			t.Errorf("the mode is %v after messages of %v, want %v", s.pace.mode, each, want)
		}
		s.mu.Unlock()
	}
}

// Else a goroutine would yield and look for as long as the last handlers run.
func TestNobodyLooksOutWhileNothingIsLeftButWhatRunsUnderLeases(t *testing.T) {
	s := spreadOver(t, 2)
	s.mu.Lock()
	defer s.mu.Unlock()
	receiveAll(s, keysOf(s, 0, 2)...)
	receiveAll(s, keysOf(s, 1, 1)...)
	a, b := workerOn(t, s), workerOn(t, s)
	if !s.backlogLocked() {
		t.Error("the second message is not seen")
	}
	for _, c := range []*carrier[string]{a, b} {
		c.leased.at.Store(int64(c.leased.n - 1))
	}
	v := vigil{last: s.paceLocked()}
	for n := range lookOutIdle {
		if come, needed := s.lookLocked(&v); come || needed != (n+1 < lookOutIdle) {
			t.Errorf("after %d looks the worker comes: %v, may be needed: %v", n+1, come, needed)
		}
	}
}

// Messages that have their turn are no partition's: what shows that they don't get on is the stream's pace.
func TestSomebodyComesToSlowLanesAndNotToFastOnes(t *testing.T) {
	s := spreadOver(t, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots++
	receiveAll(s, "a", "b")
	s.gatherLocked()
	for _, c := range []struct {
		fast uint64 // how many messages are taken between two looks
		want bool
	}{{fast: 1 << 40}, {want: true}} {
		if come := lookOften(s, lookOutSlow+1, func(int) { s.pace.taken += c.fast }); come != c.want {
			t.Errorf("with %d messages taken between two looks who looks out comes: %v", c.fast, come)
		}
	}
}
