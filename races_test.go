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

// A member of a byteWindow registers, and only then looks whether it has to wait: what is taken off looks for registered
// members afterwards.
func TestBytesThatComeFreeAsAReaderRegistersAreSeen(t *testing.T) {
	for range 20 {
		w := newByteWindow(1)
		s := w.join(make(chan struct{}, 1))
		s.add(1)
		must := make(chan bool)
		w.mu.Lock() // the registering has to wait
		go func() { must <- s.wait() }()
		for range 100 {
			runtime.Gosched()
		}
		s.sub(1) // nobody is there to be woken yet
		w.mu.Unlock()
		if <-must {
			t.Fatal("it waits for room that is there")
		}
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

// The context of a stream has ended while its reader was on its way from one recv to its wait for room: there is no recv
// that could say why.
func TestReaderThatBeginsToWaitUnderAnEndedContextEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, nil, Options{MaxPending: 1})
		ctx, cancel := context.WithCancel(t.Context())
		s := f.receiver.newStream(ctx, nil)
		defer s.cancel(nil)
		cancel()
		rd := &reader[int]{s: s, seq: 1}
		if rd.awaitRoom() {
			t.Error("it reads on")
		}
		if failure, _ := s.state.reason(); failure == nil || failure.Kind != FailureContextCancelled {
			t.Errorf("the stream's failure is %v", failure)
		}
	})
}

// A message failed for the shutdown, and the one behind it, of the same key and in the same run, ran: the shard had yet to
// recall it.
func TestNothingStartsOnceAShutdownWithoutDrainHasCome(t *testing.T) {
	called := false
	f := mustNewInside(t, func(context.Context, Message[int]) error { called = true; return nil }, nil, Options{})
	s := f.receiver.newStream(t.Context(), nil)
	defer s.cancel(nil)
	s.state.stop(false)
	m := &message[int]{stream: s}
	(&worker[int]{}).attempt(m)
	if called || m.outcome != outcomeDropped || s.ctx.Err() != nil {
		t.Errorf("the handler was called: %v, outcome %v, context %v", called, m.outcome, s.ctx.Err())
	}
}
