package flow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// The small parts of a shard.

func TestBackoffGivesWhatIsDueInTheOrderOfTimeThenOfReceipt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b backoff[int]
		type waiter struct {
			m   *message[int]
			due time.Duration
		}
		var all []waiter
		for seq := range rapid.IntRange(0, 20).Draw(t, "messages") {
			w := waiter{new(message[int]), time.Duration(rapid.IntRange(0, 5).Draw(t, "due"))}
			w.m.seq = uint64(seq + 1)
			all = append(all, w)
			b.add(w.m, w.due)
		}
		for n := rapid.IntRange(0, 5).Draw(t, "removed"); n > 0 && len(all) > 0; n-- {
			i := rapid.IntRange(0, len(all)-1).Draw(t, "which")
			b.remove(all[i].m)
			if all[i].m.wait != nil {
				t.Fatal("a message that was taken back still waits")
			}
			all = slices.Delete(all, i, i+1)
		}
		slices.SortStableFunc(all, func(a, b waiter) int { return int(a.due - b.due) })
		for now := time.Duration(0); now <= 5; now++ {
			for len(all) > 0 && all[0].due <= now {
				if due, ok := b.next(); !ok || due != all[0].due {
					t.Fatalf("next() = %v, %v, want %v", due, ok, all[0].due)
				}
				if m, _, _ := b.pop(now); m != all[0].m || m.wait != nil {
					t.Fatalf("at %v comes %v, want %v", now, m, all[0].m)
				}
				all = all[1:]
			}
			if m, _, _ := b.pop(now); m != nil {
				t.Fatalf("at %v comes message %d before its time", now, m.seq)
			}
		}
		if _, ok := b.next(); ok || len(b.waits) > 0 {
			t.Fatal("somebody is left")
		}
	})
}

// rung is an alarm that notes when it fires.
type rung struct {
	alarm
	began time.Time
	mu    sync.Mutex
	at    []time.Duration
}

func newRung() *rung {
	r := &rung{began: time.Now()}
	r.fire = func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.at = append(r.at, r.now())
	}
	return r
}

func (r *rung) now() time.Duration { return time.Since(r.began) }

func (r *rung) want(t *testing.T, at ...time.Duration) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.at, at) {
		t.Errorf("it has fired at %v, want %v", r.at, at)
	}
}

func TestAlarmFiresAtTheEarliestTimeItWasSetFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newRung()
		a.stop() // was never set
		a.set(a.now(), 5*time.Second)
		a.set(a.now(), 3*time.Second)
		a.set(a.now(), 4*time.Second)
		time.Sleep(10 * time.Second)
		a.want(t, 3*time.Second)
		a.rang()
		a.set(a.now(), 11*time.Second)
		time.Sleep(2 * time.Second)
		a.want(t, 3*time.Second, 11*time.Second)
	})
}

func TestAlarmForWhatIsOverdueFiresAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newRung()
		time.Sleep(time.Second)
		a.set(a.now(), time.Millisecond)
		time.Sleep(time.Millisecond)
		a.want(t, time.Second)
	})
}

func TestAlarmThatIsStoppedDoesNotFire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newRung()
		a.set(a.now(), time.Second)
		a.stop()
		time.Sleep(time.Hour)
		a.want(t)
	})
}

// A shard that was too busy to be told sets its alarm again before it sleeps, and that must not be taken for set already.
func TestAlarmThatFiredUnheardIsSetAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newRung()
		a.set(a.now(), time.Second)
		time.Sleep(2 * time.Second)
		a.want(t, time.Second)
		a.fired.Store(true) // as rings does, instead of the shard's rang
		a.set(a.now(), 3*time.Second)
		time.Sleep(2 * time.Second)
		a.want(t, time.Second, 3*time.Second)
	})
}

// So the timer of a busy shard neither fires nor is set for each message.
func TestAlarmThatIsAboutToFireForNothingIsPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newRung()
		for a.now() < 100*lookTime {
			a.set(a.now(), a.now()+lookTime)
			time.Sleep(lookTime / 10)
		}
		a.want(t)
		a.set(a.now(), a.now()+time.Hour)
		set := a.alarm.at
		a.set(a.now(), set+time.Hour)
		if a.alarm.at != set {
			t.Error("it was put off long before it fires")
		}
	})
}

func TestRingGivesStreamsTheirTurnsInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q ring[int]
		var list []*stream[int]
		for range rapid.IntRange(0, 300).Draw(t, "steps") {
			if len(list) > 0 && rapid.IntRange(0, 2).Draw(t, "pop") == 0 {
				q.pop()
				list = list[1:]
			} else {
				s := new(stream[int])
				q.push(s)
				list = append(list, s)
			}
			var first *stream[int]
			if len(list) > 0 {
				first = list[0]
			}
			if q.len() != len(list) || q.first() != first {
				t.Fatalf("%d wait, want %d", q.len(), len(list))
			}
		}
	})
}

// Streams that take turns for ever need no more room than there are streams.
func TestRingStaysSmall(t *testing.T) {
	var q ring[int]
	for range 10 {
		q.push(new(stream[int]))
	}
	for range 100_000 {
		s := q.first()
		q.pop()
		q.push(s)
	}
	if n := cap(q.list); n > 200 {
		t.Errorf("room for %d of ten streams", n)
	}
	for q.len() > 0 {
		q.pop()
	}
	for _, s := range q.list[:cap(q.list)] {
		if s != nil {
			t.Fatal("a stream that has gone is kept alive")
		}
	}
}

func TestGrantsAreGivenOnce(t *testing.T) {
	var g grants[int]
	if g.take() != nil {
		t.Error("some from nobody")
	}
	a, b := new(message[int]), new(message[int])
	g.add(a)
	g.add(b)
	if got := g.take(); !slices.Equal(got, []*message[int]{a, b}) {
		t.Errorf("take() = %v", got)
	}
	if g.take() != nil {
		t.Error("they come twice")
	}
}

func TestMessageQueueIsFirstInFirstOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q messageQueue[int]
		var list []*message[int]
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			m := new(message[int])
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				q.push(m)
				list = append(list, m)
			case 1:
				q.pushFront(m)
				list = slices.Insert(list, 0, m)
			case 2:
				m = nil
				if len(list) > 0 {
					m, list = list[0], list[1:]
				}
				if got := q.pop(); got != m || got != nil && got.link != nil {
					t.Fatalf("pop() = %p, want %p", got, m)
				}
			}
			if q.n != len(list) {
				t.Fatalf("n is %d, want %d", q.n, len(list))
			}
		}
	})
}

func TestLiveListKeepsTheOrderOfReceipt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l liveList[int]
		var list []*message[int]
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			if len(list) > 0 && rapid.Bool().Draw(t, "remove") {
				i := rapid.IntRange(0, len(list)-1).Draw(t, "which")
				l.remove(list[i])
				list = slices.Delete(list, i, i+1)
			} else {
				m := new(message[int])
				l.add(m)
				list = append(list, m)
			}
			var there, back []*message[int]
			for m := l.first; m != nil; m = m.nextLive {
				there = append(there, m)
			}
			for m := l.last; m != nil; m = m.prevLive {
				back = append(back, m)
			}
			slices.Reverse(back)
			if !slices.Equal(there, list) || !slices.Equal(back, list) {
				t.Fatalf("forwards %v, backwards %v, want %v", there, back, list)
			}
		}
	})
}

func TestMessageCacheGivesEachMessageToOneOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c messageCache[int]
		var pool sync.Pool
		var out []*message[int]
		in := map[*message[int]]bool{}
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			n := rapid.IntRange(1, 2*magazine).Draw(t, "messages")
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1:
				for range n {
					m := c.get(&pool)
					if in[m] {
						t.Fatal("a message is in use twice")
					}
					if m.owner != m || m.spare == nil {
						t.Fatal("a message can't be lined up")
					}
					in[m] = true
					out = append(out, m)
				}
			case 2, 3:
				for ; n > 0 && len(out) > 0; n-- {
					m := out[len(out)-1]
					out = out[:len(out)-1]
					delete(in, m)
					c.put(m, &pool)
				}
			case 4:
				c.empty(&pool)
				if c.free.n+c.full.n > 0 {
					t.Fatal("something is left")
				}
			}
			if n := c.free.n + c.full.n; n > 2*magazine {
				t.Fatalf("it keeps %d", n)
			}
		}
	})
}

func TestMessageCacheAroundAFullMagazineDoesNotGoToThePool(t *testing.T) {
	var c messageCache[int]
	var pool sync.Pool
	var out []*message[int]
	for range 3 * magazine {
		out = append(out, c.get(&pool))
	}
	for _, m := range out {
		c.put(m, &pool)
	}
	pool = sync.Pool{New: func() any { t.Error("it goes to the pool"); return nil }}
	for range 100 {
		a, b := c.get(&pool), c.get(&pool)
		c.put(a, &pool)
		c.put(b, &pool)
	}
}

// A message of a run is either run by its worker or taken back, whoever comes first.
func TestRunIsClaimedOrRecalledAndNeverBoth(t *testing.T) {
	const messages = 50
	for range 200 {
		r := new(run[int])
		r.reset(runExecute)
		var claimed int32
		done := make(chan struct{})
		go func() {
			defer close(done)
			for claimed < messages && r.at.CompareAndSwap(claimed-1, claimed) {
				claimed++
			}
		}()
		for range time.Now().UnixNano() % 20 {
			runtime.Gosched()
		}
		at := r.at.Swap(recalled)
		<-done
		if claimed != at+1 {
			t.Fatalf("%d were claimed, and all from %d on were taken back", claimed, at+1)
		}
	}
}

func TestRunStandsIfItsWorkerDoesOrIfItIsOutForTooLong(t *testing.T) {
	type look struct {
		at   int32
		now  time.Duration
		want bool
	}
	const start = time.Hour
	for name, looks := range map[string][]look{
		"no worker has claimed it":   {{unclaimed, start, false}, {unclaimed, start + time.Second, false}},
		"it was claimed just now":    {{unclaimed, start, false}, {0, start + stillTime, false}, {0, start + 2*stillTime - 1, false}},
		"it was claimed late":        {{unclaimed, start, false}, {0, start + lookTime, false}, {1, start + lookTime + 1, false}},
		"it stands still":            {{5, start, false}, {5, start + stillTime - 1, false}, {5, start + stillTime, true}},
		"it goes on":                 {{5, start, false}, {6, start + stillTime, false}, {7, start + lookTime - 1, false}},
		"it goes on, but far slower": {{5, start, false}, {6, start + lookTime/2, false}, {7, start + lookTime, true}},
	} {
		t.Run(name, func(t *testing.T) {
			r := new(run[int])
			r.reset(runExecute)
			for _, l := range looks {
				if got := r.stands(l.at, l.now); got != l.want {
					t.Errorf("at %d after %v: %v", l.at, l.now-start, got)
				}
			}
		})
	}
}

func TestRunSetForgetsWhatIsRecalledAndUsesItAgain(t *testing.T) {
	var rs runSet[int]
	a, b, c := rs.new(runExecute), rs.new(runExecute), rs.new(runFinish)
	rs.long = []*run[int]{a, b, c}
	rs.forget(a)
	rs.forget(a)
	if len(rs.long) != 2 || !slices.Contains(rs.long, b) || !slices.Contains(rs.long, c) {
		t.Errorf("%d long runs are left", len(rs.long))
	}
	a.list = append(a.list, new(message[int]))
	a.at.Store(recalled)
	a.recalled, a.slots, a.settled, a.end, a.next = true, 3, 1, 1, 1
	a.first = new(stream[int])
	rs.reuse(a)
	again := rs.new(runFinish)
	if again != a {
		t.Fatal("it is not used again")
	}
	if again.at.Load() != unclaimed || len(again.list) > 0 || again.recalled || again.slots != 0 || again.settled != 0 ||
		again.end != 0 || again.next != 0 || again.first != nil || again.kind != runFinish {
		t.Errorf("it remembers: %+v", fmt.Sprint(again.list, again.recalled, again.slots, again.settled, again.end))
	}
}

func TestReceiverSharesShardsOutEvenlyAndEndsThemWithTheirLastStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, nil, Options{})
		r := f.receiver
		r.shards = make([]*shard[int], 3)
		var streams []*stream[int]
		for range 7 {
			s := r.newStream(t.Context(), nil)
			r.enter(s)
			streams = append(streams, s)
		}
		users := func() (all []int) {
			for _, sh := range r.shards {
				if sh != nil {
					all = append(all, sh.users)
				}
			}
			slices.Sort(all)
			return all
		}
		if got := users(); !slices.Equal(got, []int{2, 2, 3}) {
			t.Errorf("%v streams a shard", got)
		}
		for _, s := range streams {
			s.state.inputEnded()
			s.tell()
			<-s.done
		}
		synctest.Wait()
		if got := users(); len(got) > 0 {
			t.Errorf("%v streams a shard are left", got)
		}
	})
}

const (
	quickTime = stillTime / 100
	slowTime  = time.Millisecond
)

// grown returns a pace whose runs have the length, as they come to have it.
func grown(t *testing.T, length int32) pace {
	t.Helper()
	p := newPace()
	for range 10 * maxRun {
		if p.length == length {
			return p
		}
		p.observe(p.length, quickTime*time.Duration(p.length), 1, false, true)
	}
	t.Fatalf("runs of %d messages never come; they have %d", length, p.length)
	return p
}

func TestPaceBeginsWithRunsOfOneMessage(t *testing.T) {
	p := newPace()
	for range quickRuns {
		if p.length != 1 {
			t.Fatalf("runs have %d messages before %d were quick", p.length, quickRuns)
		}
		p.observe(1, 0, 1, false, true)
	}
	p.observe(1, 0, 1, false, true)
	if p.length != 2 {
		t.Errorf("runs have %d messages after %d that were quick", p.length, quickRuns+1)
	}
}

func TestPaceGrowsWhileRunsAreQuick(t *testing.T) {
	p := grown(t, 2)
	for want := int32(4); want <= maxRun; want *= 2 {
		p.observe(p.length, 0, 1, false, true)
		if p.length != want {
			t.Fatalf("runs have %d messages, want %d", p.length, want)
		}
	}
	p.observe(p.length, 0, 1, false, true)
	if p.length != maxRun {
		t.Errorf("runs have %d messages, more than %d", p.length, maxRun)
	}
}

func TestPaceLooksAtWhatARunTook(t *testing.T) {
	for name, c := range map[string]struct {
		n    int32
		took time.Duration
		more bool
		want int32
	}{
		"quick":                               {16, runTime / 4, true, 32},
		"half of the time":                    {16, runTime / 2, true, 32},
		"more than half of the time":          {16, runTime/2 + 16, true, 16},
		"all of the time":                     {16, runTime, true, 16},
		"too long":                            {16, 2 * runTime, true, 8},
		"quick, and nothing else waited":      {16, 0, false, 16},
		"quick, and shorter than it may be":   {8, 0, true, 16},
		"short, and too long for its length":  {4, runTime, true, 8},
		"short, but its messages are in time": {4, runTime / 8, true, 16},
	} {
		t.Run(name, func(t *testing.T) {
			p := grown(t, 16)
			p.observe(c.n, c.took, 1, false, c.more)
			if p.length != c.want {
				t.Errorf("runs have %d messages, want %d", p.length, c.want)
			}
		})
	}
}

func TestPaceNeverHasRunsOfLessThanOneMessage(t *testing.T) {
	p := grown(t, 4)
	for range 8 {
		p.observe(2, time.Second, 1, false, true)
	}
	if p.length != 1 {
		t.Errorf("runs have %d messages", p.length)
	}
}

func TestPaceBeginsAnewAfterARunThatStoodStill(t *testing.T) {
	p := grown(t, maxRun)
	p.stoodStill(7)
	if p.length != 1 || !p.isSlow(7) {
		t.Fatalf("runs have %d messages, and its key is slow: %v", p.length, p.isSlow(7))
	}
	for range quickRuns {
		p.observe(1, 0, 1, false, true)
	}
	if p.length != 1 {
		t.Errorf("runs have %d messages before %d were quick again", p.length, quickRuns)
	}
}

// Otherwise a stream of which now and then a message stands still would hold up other keys again and again.
func TestPaceNeedsTwiceAsManyQuickRunsAfterEachThatStoodStill(t *testing.T) {
	p := newPace()
	for needed := int32(2 * quickRuns); needed <= 2*mostQuick; needed *= 2 {
		p.stoodStill(7)
		for range min(needed, mostQuick) {
			p.observe(1, 0, 1, false, true)
			if p.length != 1 {
				t.Fatalf("runs have %d messages before %d were quick again", p.length, min(needed, mostQuick))
			}
		}
		p.observe(1, 0, 1, false, true)
		if p.length != 2 {
			t.Fatalf("runs have %d messages after %d that were quick", p.length, min(needed, mostQuick)+1)
		}
	}
}

func TestPaceForgetsWhatStoodStillLongAgo(t *testing.T) {
	p := newPace()
	for p.needed < mostQuick {
		p.stoodStill(7)
	}
	p.length = 8 // it never gets longer: messages take too long
	for range 8 * mostQuick {
		p.observe(p.length, time.Duration(p.length)*runTime/10, 1, false, true)
		if p.length < 2 {
			t.Fatalf("runs have %d messages", p.length)
		}
	}
	if p.needed != quickRuns {
		t.Errorf("%d quick messages are needed before runs get longer, want %d", p.needed, quickRuns)
	}
	p.stoodStill(7)
	if p.needed != 2*quickRuns || p.sound != 0 {
		t.Errorf("%d quick messages are needed before runs get longer, want %d", p.needed, 2*quickRuns)
	}
}

func TestPaceASlowMessageInBetweenBeginsTheCountAnew(t *testing.T) {
	p := newPace()
	for range 3 * quickRuns {
		for range quickRuns {
			p.observe(1, 0, 1, false, true)
		}
		p.observe(1, slowTime, 2, false, true)
	}
	if p.length != 1 {
		t.Errorf("runs have %d messages", p.length)
	}
}

func TestPaceKnowsSlowKeysUntilTheyAreQuickAgain(t *testing.T) {
	p := newPace()
	if p.isSlow(5) {
		t.Error("a key is slow from the start")
	}
	p.observe(1, slowTime, 5, false, true)
	if !p.isSlow(5) || p.isSlow(6) || p.isSlow(5+slowPlaces) {
		t.Error("the key whose message was slow, and no other, is slow")
	}
	p.observe(1, stillTime, 5, true, true) // alone, and not quick
	if !p.isSlow(5) {
		t.Error("a message that was not quick makes its key quick")
	}
	p.observe(1, quickTime, 5, true, true)
	if p.isSlow(5) {
		t.Error("a quick message leaves its key slow")
	}
}

func TestPaceMessagesWithoutOrderAreNeverOfASlowKey(t *testing.T) {
	p := newPace()
	p.observe(1, slowTime, 0, false, true)
	if p.isSlow(0) {
		t.Error("the hash 0 is no key")
	}
}

// Keys that were slow once and never come again must not keep all others from mail runs.
func TestSlowKeysThatAreSilentAreForgottenWhereTheyAreTooMany(t *testing.T) {
	var sk slowKeys
	var busy busyKeys
	few, many := uint64(busy.room()), uint64(busy.room()+1)
	for hash := uint64(1); hash <= few; hash++ {
		sk.add(hash)
	}
	for range 3 * silentSpell {
		if busy.clear(); !sk.addTo(&busy) || busy.n != int(few) {
			t.Fatalf("of %d slow keys %d are busy", few, busy.n)
		}
	}
	sk.add(many)
	inVain := 0
	for busy.clear(); !sk.addTo(&busy); busy.clear() {
		if inVain++; inVain > 2*silentSpell {
			t.Fatal("none is forgotten")
		}
		sk.measured(1, false)
		sk.measured(2, false)
	}
	if inVain != 2*silentSpell {
		t.Errorf("some are forgotten after %d times, want %d", inVain, 2*silentSpell)
	}
	for hash := uint64(1); hash <= many; hash++ {
		if heard := hash <= 2; sk.has(hash) != heard || busy.has(hash) != heard {
			t.Errorf("key %d: slow %v, busy %v", hash, sk.has(hash), busy.has(hash))
		}
	}
	if sk.n != 2 {
		t.Errorf("%d keys are slow, want 2", sk.n)
	}
}

func TestPaceARunOfASlowKeyDoesNotChangeTheLength(t *testing.T) {
	p := grown(t, 8)
	p.observe(1, time.Second, 5, true, true)
	if p.length != 8 {
		t.Errorf("runs have %d messages", p.length)
	}
}

func TestPaceLetsOneOfTheLongestRunsBeOut(t *testing.T) {
	long, shorter := grown(t, maxRun), grown(t, maxRun/2)
	if n := long.most(4, false); n != 1 {
		t.Errorf("%d of the longest runs may be out", n)
	}
	if n := shorter.most(4, false); n <= 4 {
		t.Errorf("%d of shorter ones may be out on 4 processors", n)
	}
}

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
	s.free(100, 100, 1)
	wantSlots(t, s, 0, 0, 0)
}

func TestSlotsARunTakesOneHoweverLongItIs(t *testing.T) {
	s := newSlots(BackpressureOptions{Capacity: 2})
	if a, b, c := s.take(128), s.take(128), s.take(128); a != 1 || b != 1 || c != 0 {
		t.Errorf("three runs got %d, %d and %d of 2", a, b, c)
	}
	wantSlots(t, s, 0, 2, 2)
	s.free(1, 1, 1)
	wantSlots(t, s, 1, 1, 2) // kept for the next run
	if s.take(128) != 1 {
		t.Error("what it kept is not there")
	}
	wantSlots(t, s, 0, 2, 2)
	s.free(2, 2, 1)
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
	s.free(3, 3, 1)
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
	s.free(1, 1, 1)
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
		s.free(1, 1, 1)
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

func TestSlotsAreKeptForATurnOfEachStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPressureController(BackpressureOptions{Capacity: 1})
		s := &slots{p: p}
		s.take(1)
		for range 5 { // long before anybody asks
			s.free(1, 1, 3)
			s.take(1)
		}
		asked := 0
		ask := func() {
			go func() {
				a, err := p.Acquire(t.Context())
				if err != nil {
					t.Error(err)
				}
				asked++
				a.Release()
			}()
			synctest.Wait()
		}
		for range 3 {
			ask()
		}
		// The first is served at once, and its slot goes on to the others, and then back to s, which has asked behind them.
		s.free(1, 1, 3)
		synctest.Wait()
		if asked != 3 {
			t.Fatalf("%d of 3 who asked had a slot", asked)
		}
		s.take(1)
		asked = 0
		ask()
		for turn := 1; turn <= 3; turn++ {
			s.free(1, 1, 3)
			synctest.Wait()
			if want := turn / 3; asked != want {
				t.Errorf("after %d turns of 3 streams %d who asked had a slot, want %d", turn, asked, want)
			}
			s.take(1)
		}
		ask()
		s.turns = 2
		s.free(0, 0, 2) // a run that had no slot
		if s.turns != 2 {
			t.Errorf("after no more turns %d of 2 are counted", s.turns)
		}
		s.unused(1)
		synctest.Wait()
		if asked != 2 {
			t.Error("a slot that was not used is kept from who asks")
		}
	})
}

// Where nothing is refused: what many runs at once have given back is not needed by a few that are quick.
func TestSlotsThatNoRunHasTakenGoToWhoAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPressureController(BackpressureOptions{Capacity: 3})
		s := &slots{p: p}
		for range 3 {
			s.take(1)
		}
		for range 2 {
			go func() {
				if _, err := p.Acquire(t.Context()); err != nil {
					t.Error(err)
				}
			}()
		}
		synctest.Wait()
		s.free(3, 1, 100)
		s.take(1)
		s.count(50)
		wantSlots(t, s, 2, 1, 3)
		s.count(0)
		synctest.Wait()
		wantSlots(t, s, 0, 1, 3)
	})
}

func TestSlotsWhereMessagesMayBeRefusedAreFreeAtOnce(t *testing.T) {
	s := newSlots(BackpressureOptions{Policy: BackpressureHardReject, Capacity: 3})
	for range 3 {
		s.reserve()
	}
	s.take(3)
	if !s.p.rejects() {
		t.Error("it accepts more than there are slots")
	}
	s.freeAtOnce(2, 1) // one has been taken back, and is ready
	wantSlots(t, s, 1, 1, 2)
	if s.p.rejects() {
		t.Error("it rejects though a slot is free")
	}
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
		a.free(1, 1, 1)
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
					s.free(runs[i][0], runs[i][0], 1)
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
				s.free(n, n, 1)
			}
			s.count(0)
			s.trim(0)
		}
		if p.inUse.Load() != 0 || p.queued.Load() != 0 {
			t.Fatalf("%d are in use in the end, %d lack one", p.inUse.Load(), p.queued.Load())
		}
		for range o.Capacity {
			if !p.try(1) {
				t.Fatal("one is lost")
			}
		}
		if p.try(1) {
			t.Fatal("there is one more than before")
		}
	})
}

func TestBusyKeysIsASetOfAFew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b busyKeys
		in := map[uint64]bool{}
		for _, hash := range rapid.SliceOfN(rapid.Uint64Range(1, 200), 0, 60).Draw(t, "hashes") {
			hash *= 32 // many share a place
			room := len(in) < len(b.list)/2
			if ok := b.add(hash); ok != room {
				t.Fatalf("add() = %v with %d in it", ok, len(in))
			}
			if room {
				in[hash] = true
			}
		}
		for hash := uint64(1); hash <= 200*32; hash++ {
			if b.has(hash) != in[hash] {
				t.Fatalf("has(%d) = %v", hash, b.has(hash))
			}
		}
		if b.has(0) {
			t.Fatal("a message without order is of a busy key")
		}
		b.clear()
		for hash := range in {
			if b.has(hash) {
				t.Fatal("it is not empty")
			}
		}
	})
}

func TestBusyKeysAreSomeAndNoMore(t *testing.T) {
	var b busyKeys
	for i := range uint64(len(b.list) / 2) {
		if !b.add(i*64 + 1) {
			t.Fatalf("there is no room for %d", i+1)
		}
	}
	if b.add(3) {
		t.Error("it takes more than half of its places: to look for one takes long")
	}
}

// Messages that come quickly are run as they were received, until one does something else.
func TestMessageAfterManyQuickOnesMayDoAnything(t *testing.T) {
	const before, between, after = 5000, 300, 3000
	all := uint64(before + 1 + between + 1 + after)
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		do     func(attempt int) error
		key    func() // of it
		action FailureAction
		want   Summary // Unsettled and Committed apart; zero if the stream fails
		kind   FailureKind
		ran    string // the attempts of it and of the later one of its key
	}{
		"succeed":        {want: Summary{Received: all, Succeeded: all}, ran: "x1 x2"},
		"stand still":    {do: func(int) error { time.Sleep(time.Hour); return nil }, want: Summary{Received: all, Succeeded: all}, ran: "x1 x2"},
		"fail at first":  {do: failsOnce(broken), want: Summary{Received: all, Succeeded: all, Retried: 1}, ran: "x1 x1 x2"},
		"fail and skip":  {do: func(int) error { return Permanent(broken) }, action: SkipMessage, want: Summary{Received: all, Succeeded: all - 1, Failed: 1}, ran: "x1 x2"},
		"skip its key":   {do: func(int) error { return Permanent(broken) }, action: SkipKey, want: Summary{Received: all, Succeeded: all - 2, Failed: 1, Rejected: 1}, ran: "x1"},
		"fail":           {do: func(int) error { return Permanent(broken) }, kind: FailureHandlerError, ran: "x1"},
		"panic":          {do: func(int) error { panic(broken) }, kind: FailureInternal, ran: "x1"},
		"Goexit":         {do: func(int) error { runtime.Goexit(); return nil }, kind: FailureInternal, ran: "x1"},
		"have no key":    {key: func() { panic(broken) }, kind: FailureInternal},
		"stand and fail": {do: func(int) error { time.Sleep(time.Hour); return Permanent(broken) }, action: SkipKey, want: Summary{Received: all, Succeeded: all - 2, Failed: 1, Rejected: 1}, ran: "x1"},
	} {
		for _, maxPending := range []int{300, 1024, 0} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var mu sync.Mutex
					last := map[string]uint64{}
					var ran []string
					handle := func(_ context.Context, m Message[string]) error {
						mu.Lock()
						if seq := last[m.Key]; m.Seq < seq || m.Seq == seq && m.Attempt == 1 {
							t.Errorf("message %d of key %q runs after %d", m.Seq, m.Key, seq)
						}
						last[m.Key] = m.Seq
						if m.Value[0] == 'x' {
							ran = append(ran, m.Value)
						}
						mu.Unlock()
						if m.Value == "x1" && c.do != nil {
							return c.do(m.Attempt)
						}
						return nil
					}
					f, err := New(handle, func(v string) string {
						if v == "x1" && c.key != nil {
							c.key()
						}
						return v[:1]
					}, Options{
						Ordering: OrderingOptions{Mode: OrderingKeyedFIFO}, MaxPending: maxPending, MaxPendingBytes: 1 << 30,
						Retry:     RetryOptions{MaxAttempts: 2, Backoff: time.Second},
						OnFailure: func(context.Context, *Failure) FailureAction { return c.action },
					})
					if err != nil {
						t.Fatal(err)
					}
					n := 0
					sum, err := f.Run(t.Context(), func() (string, error) {
						n++
						switch n {
						case before + 1:
							return "x1", nil
						case before + 1 + between + 1:
							return "x2", nil
						case int(all) + 1:
							return "", io.EOF
						}
						return string(rune('a' + n%20)), nil
					})
					synctest.Wait()
					if bytes := f.receiver.bytes.total.Load(); bytes != 0 {
						t.Errorf("%d bytes are left", bytes)
					}
					if sum.Received != sum.Succeeded+sum.Failed+sum.Rejected+sum.Dropped {
						t.Errorf("%+v does not add up", sum)
					}
					if got := strings.Join(ran, " "); got != c.ran {
						t.Errorf("of the key %q has run, want %q", got, c.ran)
					}
					if ClassifyFailure(err) != c.kind {
						t.Fatalf("Run() = %v, want %v", err, c.kind)
					}
					if c.kind == FailureNone {
						if c.want.Committed = all; sum.Unsettled != nil || sum.Committed != all {
							t.Errorf("committed %d, unsettled %v", sum.Committed, sum.Unsettled)
						}
						sum.Unsettled = nil
						if got := sum; got.Succeeded != c.want.Succeeded || got.Failed != c.want.Failed || got.Rejected != c.want.Rejected || got.Retried != c.want.Retried {
							t.Errorf("Run() = %+v, want %+v", got, c.want)
						}
					} else if sum.Failed == 0 || sum.Committed > before {
						t.Errorf("Run() = %+v", sum)
					}
				})
			})
		}
	}
}

func failsOnce(err error) func(int) error {
	return func(attempt int) error {
		if attempt == 1 {
			return err
		}
		return nil
	}
}

type contextKey struct{}

type otherKey struct{}

// An attempt's context is what context.WithTimeoutCause would have made, whatever is asked first, and whenever.
func TestAttemptContextIsAContextWithATimeout(t *testing.T) {
	asks := map[string]func(context.Context) context.Context{
		"nothing before": func(c context.Context) context.Context { return c },
		"Done":           func(c context.Context) context.Context { c.Done(); return c },
		"Err":            func(c context.Context) context.Context { _ = c.Err(); return c },
		"a child": func(c context.Context) context.Context {
			child, cancel := context.WithCancel(c)
			context.AfterFunc(child, cancel)
			return child
		},
		"a child with values": func(c context.Context) context.Context { return context.WithValue(c, otherKey{}, "b") },
	}
	for name, ask := range asks {
		for _, end := range []string{"timeout", "parent", "return"} {
			t.Run(name+", "+end, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					why := errors.New("why")
					parent, cancel := context.WithCancelCause(context.WithValue(t.Context(), contextKey{}, 7))
					defer cancel(nil)
					c := new(contextSlab).new(parent, time.Second)
					ctx := ask(c)
					if at, ok := ctx.Deadline(); !ok || !at.Equal(time.Now().Add(time.Second)) {
						t.Errorf("Deadline() = %v, %v", at, ok)
					}
					if ctx.Value(contextKey{}) != 7 || ctx.Err() != nil || context.Cause(ctx) != nil {
						t.Errorf("value %v, error %v, cause %v", ctx.Value(contextKey{}), ctx.Err(), context.Cause(ctx))
					}
					var err, cause error
					switch end {
					case "timeout":
						time.Sleep(time.Second)
						err, cause = context.DeadlineExceeded, ErrAttemptTimeout
					case "parent":
						cancel(why)
						err, cause = context.Canceled, why
					case "return":
						c.end()
						err, cause = context.Canceled, context.Canceled
					}
					synctest.Wait()
					if ctx.Err() != err || context.Cause(ctx) != cause {
						t.Errorf("after its end: error %v, cause %v, want %v, %v", ctx.Err(), context.Cause(ctx), err, cause)
					}
					select {
					case <-ctx.Done():
					default:
						t.Error("it is not done")
					}
					if ctx.Value(contextKey{}) != 7 {
						t.Error("its values are gone")
					}
					c.end()
				})
			})
		}
	}
}

func TestAttemptContextThatNobodyAsksHasNoTimer(t *testing.T) {
	c := new(contextSlab).new(t.Context(), time.Hour)
	if c.Value(contextKey{}) != nil || c.Err() != nil {
		t.Error("it says something that nobody has said")
	}
	if c.real != nil {
		t.Error("it has become a real context")
	}
}

func TestAttemptContextOfAnEarlierDeadlineHasThat(t *testing.T) {
	parent, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := new(contextSlab).new(parent, time.Hour)
	want, _ := parent.Deadline()
	if at, ok := c.Deadline(); !ok || !at.Equal(want) {
		t.Errorf("Deadline() = %v, %v, want %v", at, ok, want)
	}
}

func TestPaceSaysWhatAShardRunsItself(t *testing.T) {
	quick := func(p *pace) { p.observe(quickRuns, quickRuns*swiftTime/2, 0, false, false) }
	for name, c := range map[string]struct {
		told  func(*pace)
		n     int32
		waits bool
		want  bool
	}{
		"nothing is known":                    {func(*pace) {}, 1, false, false},
		"messages are quick":                  {quick, 128, true, true},
		"too few were":                        {func(p *pace) { p.observe(quickRuns-1, swiftTime, 0, false, false) }, 1, false, false},
		"the clock stands still":              {func(p *pace) { p.observe(quickRuns, 0, 0, false, false) }, 1, false, false},
		"one was slow":                        {func(p *pace) { quick(p); p.observe(2, 2*stillTime, 0, false, false); p.each = 0 }, 1, false, false},
		"one stood still":                     {func(p *pace) { quick(p); p.stoodStill(7) }, 1, false, false},
		"one was slow, alone":                 {func(p *pace) { quick(p); p.observe(1, time.Second, 7, true, false) }, 1, false, true},
		"a microsecond each, few":             {func(p *pace) { p.each = time.Microsecond; p.swift = quickRuns }, 4, false, true},
		"a microsecond each, many":            {func(p *pace) { p.each = time.Microsecond; p.swift = quickRuns }, 5, false, false},
		"a microsecond each, and others wait": {func(p *pace) { p.each = time.Microsecond; p.swift = quickRuns }, 1, true, false},
	} {
		p := newPace()
		c.told(&p)
		if got := p.own(c.n, c.waits, 2); got != c.want {
			t.Errorf("%s: own(%d, %v) = %v", name, c.n, c.waits, got)
		}
	}
	p := newPace()
	if quick(&p); !p.own(256, true, 2) || p.own(256, true, 4) || !p.own(256, false, 4) || !p.own(16, true, 4) {
		t.Error("on four processors others that wait run beside long runs, and only there")
	}
}

func TestPaceHesitatesMoreEachTimeThatAShardWasHeldUp(t *testing.T) {
	p := newPace()
	for _, want := range []int32{2 * quickRuns, 4 * quickRuns} {
		p.observe(p.needed, time.Microsecond, 0, false, false)
		p.heldUp(p.needed, 2*stillTime)
		if !p.own(1, false, 2) {
			t.Error("a run that took no longer than it may was one too long")
		}
		p.heldUp(1, 3*stillTime)
		p.observe(1, 3*stillTime, 0, false, false)
		if p.needed != want || p.own(1, false, 2) {
			t.Errorf("%d quick messages are needed, want %d", p.needed, want)
		}
	}
}

// The timer comes only now and then: a message that has stood still and is done before it does was once forgotten, and sixteen
// quick ones later the next could hold up its shard.
func TestShardThatWasHeldUpHesitatesThoughTheTimerHasNotSeenIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := mustNewInside(t, func(_ context.Context, m Message[string]) error {
			time.Sleep(lookTime - 1)
			return nil
		}, nil, Options{})
		values := make(chan string)
		s := f.Start(t.Context(), FromChan(t.Context(), values))
		synctest.Wait()
		SetOwnRuns(f)
		synctest.Wait()
		values <- "slow"
		time.Sleep(time.Second)
		f.receiver.mu.Lock()
		i := slices.IndexFunc(f.receiver.shards, func(sh *shard[string]) bool { return sh != nil })
		sh := f.receiver.shards[i]
		f.receiver.mu.Unlock()
		onShard(sh, func(sh *shard[string]) {
			if p := &sh.pace; p.needed != 2*quickRuns || p.swift > 0 {
				t.Errorf("%d quick messages are needed, and there were %d", p.needed, p.swift)
			}
			sh.blind = 0
			sh.lookAgain(sh.clock())
			again := sh.blind
			sh.blind = 0
			sh.lookAgain(sh.clock())
			if again != lookRuns || sh.blind != 0 {
				t.Errorf("a shard that is never idle looks at long runs after %d and %d more", lookRuns-again, lookRuns-sh.blind)
			}
		})
		close(values)
		if _, err := s.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestPaceIsHandedOnUnlessAKeyIsSlow(t *testing.T) {
	p := newPace()
	p.observe(quickRuns, time.Microsecond, 0, false, false)
	if next := p.next(); !next.own(1, false, 2) {
		t.Error("the next shard must find out again that messages are quick")
	}
	p.needed *= 2
	p.observe(quickRuns, time.Microsecond, 0, false, false)
	if next := p.next(); !next.own(1, false, 2) {
		t.Error("the next shard must find out again that messages are quick, of which more are needed")
	}
	p.slow.add(7)
	if next := p.next(); next.isSlow(7) || next.slow.n != 0 || next.own(1, false, 2) || next.length != 1 || next.needed != p.needed {
		t.Errorf("the next shard begins with %+v", next)
	}
}

func TestLeadIsLentForATermOfItsOwn(t *testing.T) {
	var l lead[int]
	l.armed.Store(true)
	first := l.lend(5)
	if !l.keep(first) || l.keep(first) {
		t.Error("the lead is kept twice, or not at all")
	}
	if second := l.lend(5); second == first || l.keep(first) || !l.keep(second) {
		t.Errorf("term %d is kept by who was lent %d", second, first)
	}
	l.stop()
}

// The alarm stays where it is when what it was set for is gone. That must not keep what comes earlier from being done.
func TestWorkersAndMemoryAreGivenBackAlthoughTheAlarmIsSetForLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := mustNewInside(t, func(_ context.Context, m Message[string]) error {
			if m.Value == "late" {
				return errors.New("no")
			}
			time.Sleep(time.Microsecond)
			return nil
		}, func(s string) string { return s }, Options{
			Ordering: OrderingOptions{Mode: OrderingKeyedFIFO},
			Retry:    RetryOptions{MaxAttempts: 2, Backoff: time.Hour, MaxBackoff: time.Hour},
		})
		f.receiver.shards = f.receiver.shards[:1]
		start := func(first string) (chan string, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			values := make(chan string, 1)
			values <- first
			f.Start(ctx, FromChan(ctx, values))
			return values, cancel
		}
		_, endLate := start("late")
		values, end := start("a")
		defer end()
		time.Sleep(time.Second)
		endLate()
		time.Sleep(time.Second)
		values <- "b"
		time.Sleep(time.Second)
		f.receiver.mu.Lock()
		sh := f.receiver.shards[0]
		f.receiver.mu.Unlock()
		onShard(sh, func(sh *shard[string]) {
			if len(sh.crew.idle) > 0 || sh.hoards() {
				t.Errorf("%d workers are idle after a second, and memory is kept: %v", len(sh.crew.idle), sh.hoards())
			}
		})
	})
}

func TestPaceHasShorterRunsIfTheFirstMessageOfALongOneIsSlowAndStopsIt(t *testing.T) {
	p := newPace()
	p.length = maxRun
	p.observe(1, 3*stillTime, 0, false, true)
	if p.stopped(3 * stillTime); p.length != maxRun/2 {
		t.Errorf("runs have up to %d messages, want half of %d", p.length, maxRun)
	}
	if p.stopped(runTime); p.length != maxRun/2 {
		t.Errorf("after a quick one runs have up to %d messages, want %d still", p.length, maxRun/2)
	}
}

// Each time that a leader is replaced there is one worker more.
func TestWorkersThatHaveLedDoNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 50
		var f *Flow[string]
		f = mustNewInside(t, func(context.Context, Message[string]) error {
			f.Stats()
			return nil
		}, nil, Options{})
		f.receiver.shards = f.receiver.shards[:1]
		values := make(chan string)
		s := f.Start(t.Context(), FromChan(t.Context(), values))
		synctest.Wait()
		for range n {
			SetOwnRuns(f)
			synctest.Wait()
			values <- ""
			synctest.Wait()
		}
		onShard(f.receiver.shards[0], func(sh *shard[string]) {
			if len(sh.crew.idle) > 1 {
				t.Errorf("%d workers are idle after %d messages, want one at most", len(sh.crew.idle), n)
			}
		})
		close(values)
		if _, err := s.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// Between the look whether a batch has lingered for long enough and the look for what is due, time passes. A batch that had
// become due by then once had no alarm, and waited for whatever happened next.
func TestBatchThatIsDueByTheTimeTheAlarmIsSetBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, calls := make(chan int), 0
		f, err := NewBatch(func(context.Context, []Message[int], []error) error {
			calls++
			return nil
		}, nil, Options{Backpressure: BackpressureOptions{Capacity: 1}, Batch: BatchOptions{Linger: time.Minute}})
		if err != nil {
			t.Fatal(err)
		}
		s := f.Start(t.Context(), FromChan(t.Context(), source))
		source <- 1
		time.Sleep(time.Second) // it lingers
		var due, armed time.Duration
		onShard(f.receiver.shards[0], func(sh *shard[int]) {
			sh.alarm.stop()
			sh.alarm.at = 0
			due = sh.clock()
			sh.batches.due = due
			sh.arm()
			armed = sh.alarm.at
		})
		synctest.Wait()
		if armed != due || calls != 1 {
			t.Errorf("the alarm was set to %v, want %v, and %d calls were made", armed, due, calls)
		}
		close(source)
		if _, err := s.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestBatchThatIsDueAndLacksASlotWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, start := make(chan int), time.Now()
		var mu sync.Mutex
		var calls []time.Duration
		f, err := NewBatch(func(context.Context, []Message[int], []error) error {
			mu.Lock()
			calls = append(calls, time.Since(start))
			n := len(calls)
			mu.Unlock()
			switch n {
			case 1:
				return errors.New("again")
			case 2:
				time.Sleep(time.Second)
			}
			return nil
		}, nil, Options{
			Ordering:     OrderingOptions{Mode: OrderingNone},
			Backpressure: BackpressureOptions{Capacity: 1}, Batch: BatchOptions{Linger: 50 * time.Millisecond},
			Retry: RetryOptions{MaxAttempts: 2, Backoff: 10 * time.Millisecond},
		})
		if err != nil {
			t.Fatal(err)
		}
		s := f.Start(t.Context(), FromChan(t.Context(), source))
		source <- 1
		time.Sleep(51 * time.Millisecond) // its call has failed, and waits for the next try without a slot
		source <- 2                       // lingers until that has the slot
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(calls) != 3 || calls[2] != calls[1]+time.Second {
			t.Errorf("calls at %v, want the third as soon as the second is over", calls)
		}
		close(source)
		if _, err := s.Wait(); err != nil {
			t.Error(err)
		}
	})
}
