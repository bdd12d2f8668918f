package flow

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Each test here is about two steps that must be one, or must come in this order: what comes between them is too short
// to be met by chance, so the test holds a lock that one of them takes, or puts the steps one after the other itself.

// The last look into the inbox comes after attended is false, as the receiver looks at that after putting something there:
// one of the two sees the other. Neither takes a lock that the test could hold, so the two meet often.
func TestMessageThatComesAsTheLastLookIsTakenIsSeen(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, nil, Options{})
	s := f.receiver.newStream(t.Context(), nil)
	defer s.cancel(nil)
	s.startFn = func() error { return nil }
	const rounds = 100_000
	var begun, put atomic.Int64
	wait := func(n *atomic.Int64, round int64) {
		for spins := 0; n.Load() < round; spins++ {
			if spins > 100 {
				runtime.Gosched()
			}
		}
	}
	trusts := false // the receiver, in that somebody attends
	go func() {
		for round := int64(1); round <= rounds; round++ {
			wait(&begun, round)
			s.put(&arrival[int]{seq: uint64(round)}, weight{})
			trusts = s.attended.Load()
			put.Store(round)
		}
	}()
	for round := int64(1); round <= rounds; round++ {
		s.mu.Lock()
		for p := &s.inbox.parts[0]; s.inbox.fillLocked(p); {
			s.inbox.takeLocked(p)
		}
		s.starting = false
		s.mu.Unlock()
		s.attended.Store(true)
		begun.Store(round)
		for range round % 512 { // the receiver's way to its look is longer
			begun.Load()
		}
		s.mu.Lock()
		s.startLocked()
		starts := s.starting
		s.mu.Unlock()
		wait(&put, round)
		if trusts && !starts {
			t.Fatal("a message lies in the inbox, and nobody comes for it")
		}
	}
}

// A receiver joins those who wait for bytes, and only then looks whether it has to: what is taken off looks for waiters
// afterwards.
func TestBytesThatComeFreeAsAReceiverJoinsTheWaitersAreSeen(t *testing.T) {
	for range 20 {
		w := newByteWindow(1)
		w.add(1)
		space, joined := make(chan struct{}, 1), make(chan bool)
		w.mu.Lock() // the joining has to wait
		go func() { joined <- w.join(space) }()
		for range 100 {
			runtime.Gosched()
		}
		w.sub(1) // nobody is there to be woken yet
		w.mu.Unlock()
		if <-joined {
			t.Fatal("it waits for room that is there")
		}
	}
}

func TestBytesAreCountedBeforeAWorkerCanTakeTheirMessage(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[string]) error { return nil }, nil, Options{MaxPendingBytes: 10})
	s := f.receiver.newStream(t.Context(), nil)
	defer s.cancel(nil)
	if direct, shut := s.put(&arrival[string]{seq: 1}, weight{size: 3}); direct || shut {
		t.Fatal("the inbox takes nothing")
	}
	if n := s.r.bytes.bytes.Load(); n != 3 {
		t.Errorf("a message of 3 bytes lies in the inbox, %d bytes are counted", n)
	}
}

// A slot is counted off before it is given back: else whoever gets it makes one more than there are, and HardReject
// refuses for a slot that is free. The semaphore panics over a slot that nobody has, so what came before that can be seen.
func TestNoSlotIsCountedTwice(t *testing.T) {
	p := NewPressureController(BackpressureOptions{Capacity: 1})
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a slot that nobody has was given back")
			}
		}()
		p.giveBack()
	}()
	if n := p.inUse.Load(); n != -1 {
		t.Errorf("the slot was given back before it was counted off: %d in use", n)
	}
}

// ended is a member that notes that it was ended.
type ended struct{ told atomic.Bool }

func (m *ended) stop(bool)                  { m.told.Store(true) }
func (m *ended) close()                     { m.told.Store(true) }
func (m *ended) cut() (int, uint64, string) { return 0, 0, "" }

// To be let in and to be known are one step: who comes as the end begins is refused or ended.
func TestNobodyEntersUnseenByTheEnd(t *testing.T) {
	for range 20 {
		c := NewShutdownCoordinator(ShutdownOptions{})
		m := new(ended)
		var entered bool
		inTurn(&c.mu, func() { entered = c.enter(m) }, func() { _ = c.Close() })
		if entered && !m.told.Load() {
			t.Fatal("one is under way that the end knows nothing of")
		}
	}
}

// inTurn has two functions ask for mu, one after the other, while it is held, and hands it over as long as both run: a
// mutex for which somebody has waited too long goes to who has waited longest. So if the first takes it twice, the
// second comes in between.
func inTurn(mu *sync.Mutex, first, second func()) {
	const long = 2 * time.Millisecond // more than the millisecond after which sync.Mutex is handed over
	var both sync.WaitGroup
	mu.Lock()
	both.Go(first)
	time.Sleep(long)
	both.Go(second)
	time.Sleep(long)
	mu.Unlock()
	mu.Lock() // before the first has woken up: now it has waited too long
	time.Sleep(long)
	mu.Unlock()
	both.Wait()
}

// A waiter's turn either comes or was given up. The steps that are tried here are those of a sweep and of the one who
// leaves the lane, which get its lock as in TestNobodyEntersUnseenByTheEnd.
func TestTurnInASharedLaneIsGivenUpOrComes(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, nil,
		Options{Ordering: OrderingOptions{Scope: ScopeFlow}})
	s := f.receiver.newStream(t.Context(), nil)
	defer s.cancel(nil)
	for range 20 {
		s.mu.Lock()
		first, second := s.acceptLocked(&arrival[int]{seq: 1}, weight{}), s.acceptLocked(&arrival[int]{seq: 2}, weight{})
		s.joinLocked(first)
		s.joinLocked(second)
		shard := s.shared.shard(first.hash)
		var gaveUp bool
		var next *turn
		inTurn(&shard.mu,
			func() { gaveUp = s.giveUpPlaceLocked(second) },
			func() { next = shard.leave(&first.turn) })
		if came := next == &second.turn; came == gaveUp {
			t.Fatalf("its turn came: %v, and was given up: %v", came, gaveUp)
		}
		if next != nil {
			shard.leave(next)
		}
		s.retireLocked(first)
		s.retireLocked(second)
		s.mu.Unlock()
	}
}

// Whoever sees the stream's context ended can see why.
func TestReasonIsSetDownBeforeTheContextEnds(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, nil, Options{})
	s := f.receiver.newStream(t.Context(), nil)
	s.mu.Lock() // the reason has to wait
	failed := make(chan struct{})
	go func() {
		defer close(failed)
		s.close()
	}()
	time.Sleep(5 * time.Millisecond)
	if s.ctx.Err() != nil && s.failure == nil {
		t.Error("the context has ended and nobody can say why")
	}
	s.mu.Unlock()
	<-failed
	if s.ctx.Err() == nil {
		t.Error("the context has not ended")
	}
}

// A timer may fire although it is stopped: its message has been brought to its end, and may be another by then.
func TestTryWhoseStreamEndedAsItCameDueDoesNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, nil, Options{})
		s := f.receiver.newStream(t.Context(), nil)
		defer s.cancel(nil)
		s.mu.Lock()
		m := s.acceptLocked(&arrival[int]{seq: 1}, weight{})
		p := &parking[int]{m: m, timer: time.AfterFunc(time.Hour, func() {})}
		m.state, m.parking = stateParked, p
		s.over.Store(true)
		s.mu.Unlock()
		if err := s.sweep(); err != nil {
			t.Error(err)
		}
		s.unpark(p)
		if s.finished != 1 || s.ready.n != 0 {
			t.Errorf("%d finished and %d to run, want 1 and 0", s.finished, s.ready.n)
		}
	})
}

// The context of a stream ended while its receiver was on its way from one recv to its wait for room: that was taken for a
// blocked recv, which gets 50 ms to say why, though there was none.
func TestReceiverThatBeginsToWaitUnderAnEndedContextEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, nil, Options{MaxPending: 1})
		ctx, cancel := context.WithCancel(t.Context())
		s := f.receiver.newStream(ctx, nil)
		defer s.cancel(nil)
		s.inbox.count()
		cancel()
		s.contextEnded()
		in := &intake[int]{s: s, seq: 1}
		if in.awaitRoom() {
			t.Error("it reads on")
		}
		if s.failure == nil || s.failure.Kind != FailureContextCancelled {
			t.Errorf("the stream's failure is %v", s.failure)
		}
		_ = s.carriers.Wait()
		s.grace.Stop()
	})
}

// A worker under lease finished a message after the receiver had counted, and before it had the worker look at the stream.
// So it was taken for woken, but that worker did not look before its next message had finished, and that could be stuck.
func TestReceiverSeesTheRoomThatCameAsItBeganToWait(t *testing.T) {
	s, c := leased(t, nil, "a", "b", "c")
	s.r.maxPending = 3
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen, s.waiting = 3, waitRoom
	if s.hurryLocked() || c.leased.end.Load() != 1 {
		t.Errorf("the worker looks at the stream before message %d, want 1", c.leased.end.Load())
	}
	c.leased.end.Store(3)
	c.leased.at.Store(1)
	if !s.hurryLocked() {
		t.Error("the receiver waits for room that is there")
	}
}
