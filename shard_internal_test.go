package flow

import (
	"context"
	"fmt"
	"runtime"
	"slices"
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
