package flow

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"
)

// post puts values into b.
func post(t testing.TB, b *mailbox[int], pool *sync.Pool, values ...int) (told int) {
	t.Helper()
	for _, v := range values {
		ok, tell := b.put(&entry[int]{value: v}, pool)
		if !ok {
			t.Fatalf("%d is not received", v)
		}
		if tell {
			told++
		}
	}
	return told
}

// collect returns the values of the chunks that b gives, and gives all of them back.
func collect(b *mailbox[int], pool *sync.Pool) (values []int) {
	var l backlog[int]
	for e := l.next(b, pool); e != nil; e = l.next(b, pool) {
		values = append(values, e.value)
	}
	return values
}

func TestMailboxGivesWhatWasReceivedInItsOrder(t *testing.T) {
	for _, n := range []int{0, 1, 2, 5, 6, 63, 64, 65, 200, 1000} {
		var b mailbox[int]
		var pool sync.Pool
		for round := range 3 { // with chunks that were used before
			want := make([]int, n)
			for i := range want {
				want[i] = round*n + i
			}
			post(t, &b, &pool, want...)
			if got := collect(&b, &pool); fmt.Sprint(got) != fmt.Sprint(want) && n > 0 || len(got) != n {
				t.Fatalf("of %d in round %d it gives %v", n, round, got)
			}
		}
		if b.total() != uint64(3*n) {
			t.Errorf("%d in total, want %d", b.total(), 3*n)
		}
	}
}

// The reader tells the shard once, and again after the shard has found nothing.
func TestMailboxHasTheShardToldWhenItMayNotLook(t *testing.T) {
	var b mailbox[int]
	var pool sync.Pool
	if told := post(t, &b, &pool, 1, 2, 3); told != 1 {
		t.Errorf("the shard is told %d times of three messages", told)
	}
	first := b.take(nil, &pool)
	if told := post(t, &b, &pool, 4); told != 0 {
		t.Error("the shard is told though it is bound to look again")
	}
	next := b.take(first, &pool)
	if next == nil || next.list[0].value != 4 {
		t.Fatalf("what came meanwhile is not there: %v", next)
	}
	if b.take(next, &pool) != nil {
		t.Fatal("there is something left")
	}
	if told := post(t, &b, &pool, 5, 6); told != 1 {
		t.Errorf("the shard, which has found nothing, is told %d times", told)
	}
}

func TestMailboxThatIsClosedReceivesNothing(t *testing.T) {
	var b mailbox[int]
	var pool sync.Pool
	post(t, &b, &pool, 1)
	b.close()
	if ok, tell := b.put(&entry[int]{value: 2}, &pool); ok || tell {
		t.Errorf("put() = %v, %v", ok, tell)
	}
	if got := collect(&b, &pool); len(got) != 1 || b.total() != 1 {
		t.Errorf("it gives %v of %d", got, b.total())
	}
}

func TestMailboxShowsAllThatLiesInIt(t *testing.T) {
	var b mailbox[int]
	var pool sync.Pool
	want := 0
	for v := range 150 {
		post(t, &b, &pool, v)
		want += v
	}
	sum, last := 0, -1
	b.visit(func(e *entry[int]) {
		if e.value <= last {
			t.Errorf("%d comes after %d", e.value, last)
		}
		sum, last = sum+e.value, e.value
	})
	if sum != want || len(collect(&b, &pool)) != 150 {
		t.Errorf("it shows %d, want %d", sum, want)
	}
}

// A stream with little pending has one small chunk, which it uses again and again.
func TestMailboxWithLittlePendingKeepsOneSmallChunk(t *testing.T) {
	var b mailbox[int]
	var pool sync.Pool
	post(t, &b, &pool, 1)
	small := b.first
	if n := cap(small.list); n != chunkLength[int](smallChunk) || n >= chunkLength[int](fullChunk) {
		t.Errorf("the first chunk has room for %d", n)
	}
	collect(&b, &pool)
	post(t, &b, &pool, 2)
	if b.first != small {
		t.Error("the small chunk was not given back")
	}
	collect(&b, &pool)
	if n := testing.AllocsPerRun(100, func() {
		post(t, &b, &pool, 3)
		var l backlog[int]
		for l.next(&b, &pool) != nil {
		}
	}); n != 0 {
		t.Errorf("a lone message costs %v allocations", n)
	}
}

// A burst leaves nothing with the stream: its chunks are in the pool, which is the garbage collector's.
func TestMailboxKeepsNothingOfABurst(t *testing.T) {
	var b mailbox[int]
	var pool sync.Pool
	for round := range 4 {
		values := make([]int, 1000)
		post(t, &b, &pool, values...)
		if got := len(collect(&b, &pool)); got != 1000 {
			t.Fatalf("%d in round %d", got, round)
		}
		if b.first != nil || b.last != nil || b.spare != nil {
			t.Errorf("after round %d chunks are left", round)
		}
	}
}

func TestMailboxOfABusyStreamUsesItsChunksAgainAndKeepsNoneWhenItIsIdle(t *testing.T) {
	var b mailbox[int]
	var pool sync.Pool
	post(t, &b, &pool, make([]int, 200)...)
	first := b.take(nil, &pool)
	for first.next != nil { // full ones
		first = first.next
	}
	post(t, &b, &pool, make([]int, 200)...)
	rest := b.take(first, &pool)
	if b.spare != first {
		t.Fatal("a busy stream gives a chunk away")
	}
	for last := rest; last != nil; last = rest {
		rest = last.next
		b.take(last, &pool)
	}
	if b.spare != nil {
		t.Error("an idle stream keeps a chunk")
	}
}

func TestMailboxChunksGivenBackHoldNoMessage(t *testing.T) {
	var b mailbox[*int]
	var pool sync.Pool
	for range 3 {
		b.put(&entry[*int]{value: new(int)}, &pool)
	}
	k := b.take(nil, &pool)
	for i := range k.list {
		k.list[i] = entry[*int]{} // as accept does
	}
	b.take(k, &pool)
	if len(b.small.list) != 0 || b.small.next != nil {
		t.Errorf("the chunk that was given back has %d entries", len(b.small.list))
	}
	for _, e := range b.small.list[:cap(b.small.list)] {
		if e.value != nil {
			t.Error("it keeps a message alive")
		}
	}
}

// Any mix of receiving and taking gives each message once, in order, and tells the shard whenever it sleeps.
func TestMailboxMatchesAList(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var b mailbox[int]
		var pool sync.Pool
		var l backlog[int]
		sent, taken, asleep := 0, 0, true
		for range rapid.IntRange(0, 50).Draw(rt, "steps") {
			if rapid.Bool().Draw(rt, "put") {
				for range rapid.IntRange(1, 150).Draw(rt, "messages") {
					ok, tell := b.put(&entry[int]{value: sent}, &pool)
					if !ok || tell != asleep {
						rt.Fatalf("put() = %v, %v while the shard sleeps: %v", ok, tell, asleep)
					}
					sent++
					asleep = false
				}
				continue
			}
			for range rapid.IntRange(1, 150).Draw(rt, "looks") {
				e := l.next(&b, &pool)
				if e == nil {
					if taken != sent {
						rt.Fatalf("%d of %d are there", taken, sent)
					}
					asleep = true
					break
				}
				if e.value != taken {
					rt.Fatalf("%d comes, want %d", e.value, taken)
				}
				taken++
			}
		}
	})
}

func TestWindowRoom(t *testing.T) {
	for _, c := range []struct {
		limit              int64
		received, finished uint64
		room, batch        uint64
	}{
		{1, 0, 0, 1, 1},
		{1, 1, 0, 0, 1},
		{1, 5, 5, 1, 1},
		{16, 10, 0, 6, 2},
		{16, 16, 0, 0, 2},
		{16, 20, 5, 1, 2},
		{1024, 1024, 1, 1, 128},
		{unboundedPending, 1 << 40, 0, unboundedPending - 1<<40, unboundedPending / 8},
	} {
		var w window
		w.init(c.limit)
		w.finished.Store(c.finished)
		if room, batch := w.room(c.received), w.batch(); room != c.room || batch != c.batch {
			t.Errorf("with %d received and %d finished of %d: room for %d, by batches of %d; want %d, %d",
				c.received, c.finished, c.limit, room, batch, c.room, c.batch)
		}
	}
}

func TestWindowWakesOnlyWhoWaits(t *testing.T) {
	var w window
	w.init(1)
	w.wake()
	if len(w.space) != 0 {
		t.Error("a reader is woken that does not wait")
	}
	w.waiting.Store(true)
	w.wake()
	w.wake() // it has been woken already: that must not block
	w.signal()
	if len(w.space) != 1 {
		t.Errorf("%d tokens", len(w.space))
	}
}

func TestVerdictIsGivenOnceItsMessageIsLinedUp(t *testing.T) {
	v := &verdict{given: make(chan struct{}, 1)}
	v.give(3) // nobody asks
	v.ask(4)
	v.give(3)
	if len(v.given) != 0 {
		t.Error("it is given for a message before")
	}
	v.give(4)
	if len(v.given) != 1 {
		t.Error("it is not given")
	}
	v.give(5) // once only: that would block
	v.await(nil)
	v.ask(5)
	v.give(7)
	v.await(nil)
}

func TestVerdictIsNotAwaitedBeyondTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &verdict{given: make(chan struct{}, 1)}
		over := make(chan struct{})
		v.ask(1)
		var returned atomic.Bool
		go func() {
			v.await(over)
			returned.Store(true)
		}()
		synctest.Wait()
		if returned.Load() {
			t.Error("it returns without a verdict")
		}
		close(over)
		synctest.Wait()
		if !returned.Load() {
			t.Error("it waits on")
		}
	})
}
