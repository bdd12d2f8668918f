package flow

import (
	"cmp"
	"context"
	"io"
	"runtime"
	"strconv"
	"strings"
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
		p.giveBack(1)
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

// Each test here is a bug that was. Those that need to see inside are here; the others are beside their promise, and the
// model's are scripts.

func mustNewInside[T any](t testing.TB, h Handler[T], key OrderingKeyFunc[T], o Options) *Flow[T] {
	t.Helper()
	f, err := New(h, key, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// enterShard has s enter a shard. No reader and no Run are there: what comes, and the end, are the test's.
func enterShard[T any](s *stream[T]) *shard[T] {
	s.r.enter(s)
	return s.sh.Load()
}

// onShard calls f on the goroutine of sh, between two of its steps, and waits for it.
func onShard[T any](sh *shard[T], f func(sh *shard[T])) {
	called := make(chan struct{})
	sh.events <- event[T]{do: func() {
		defer close(called)
		f(sh)
	}}
	<-called
}

// receives puts n messages into the mailbox of s. No shard is told.
func receives[T any](s *stream[T], n int) {
	for range n {
		e := entry[T]{seq: s.box.total() + 1}
		e.hash, _ = s.order.place("")
		s.box.put(&e, &s.r.chunks)
	}
}

// endsWell is endStream, and looks that n messages have succeeded by then.
func endsWell[T any](t testing.TB, s *stream[T], n uint64) {
	t.Helper()
	endStream(s)
	if c := s.backlog.ledger.counts; c.Succeeded != n {
		t.Errorf("%d have succeeded, want %d", c.Succeeded, n)
	}
}

// endStream ends s, of which nothing runs any more, as the end of its source does.
func endStream[T any](s *stream[T]) {
	s.state.inputEnded()
	s.tell()
	<-s.done
}

// A key that came later waited until an earlier one's lane was empty: the inbox was sorted only when nothing was ready.
func TestAKeyThatComesLaterDoesNotWaitForAnEarlierOnesLane(t *testing.T) {
	for keys := range 3 {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			var waited time.Duration
			f := mustNewInside(t, func(_ context.Context, m Message[string]) error {
				if m.Key == "late" {
					waited = time.Since(start)
				}
				time.Sleep(time.Millisecond)
				return nil
			}, func(s string) string { return s }, Options{
				Ordering:     OrderingOptions{Mode: OrderingKeyedFIFO},
				Backpressure: BackpressureOptions{Capacity: 1},
			})
			n := 0
			_, err := f.Run(t.Context(), func() (string, error) {
				n++
				switch {
				case n <= 500:
					return string(rune('a' + n%(keys+1))), nil
				case n == 501:
					time.Sleep(5 * time.Millisecond)
					return "late", nil
				}
				return "", io.EOF
			})
			if err != nil {
				t.Fatal(err)
			}
			// Two rounds of the keys that there are.
			if limit := 5*time.Millisecond + time.Duration(2*keys+3)*time.Millisecond; waited > limit {
				t.Errorf("with %d keys, a late one, received after 5ms, ran after %v, want at most %v", keys+1, waited, limit)
			}
		})
	}
}

// A worker that took the last ready message, and then was stuck, did not wake the receiver for the room there was.
func TestTheReceiverReadsOnWhenTheLastReadyMessageIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		p := NewPressureController(BackpressureOptions{Capacity: 2})
		r := NewReceiver(NewGate(NewKeyedFIFO(OrderingOptions{}), p, nil),
			NewEngine(func(_ context.Context, m Message[string]) error {
				switch m.Key {
				case "a":
					time.Sleep(time.Second)
				case "b":
					<-gate
				}
				return nil
			}, RetryOptions{}))
		r.maxPending = 16
		first, err := p.Acquire(t.Context()) // one slot is a direct caller's
		if err != nil {
			t.Fatal(err)
		}
		go func() { // and another asks, behind the stream
			time.Sleep(500 * time.Millisecond)
			second, _ := p.Acquire(t.Context())
			<-gate
			second.Release()
		}()
		n, done := 0, make(chan error, 1)
		go func() {
			_, err := r.Receive(t.Context(), func() (string, error) {
				n++
				switch {
				case n == 1:
					return "a", nil
				case n <= 16:
					return "b", nil
				case n == 17:
					return "c", nil
				}
				return "", io.EOF
			}, func(s string) string { return s })
			done <- err
		}()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n < 17 {
			t.Errorf("recv was called %d times: 15 of 16 are pending and the stream is not read", n)
		}
		close(gate)
		first.Release()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// hasty is a member that leaves while it is being cut.
type hasty struct{ c *ShutdownCoordinator }

func (*hasty) stop(bool) {}
func (*hasty) close()    {}
func (m *hasty) cut() (int, uint64, string) {
	m.c.leave(m)
	time.Sleep(time.Second)
	return 1, 1, "k"
}

// Of two Shutdowns one could return nil while the other was still counting what it had cut off.
func TestAllShutdownsReturnTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewShutdownCoordinator(ShutdownOptions{GracePeriod: time.Minute})
		c.enter(&hasty{c})
		var all sync.WaitGroup
		var errs [2]error
		for i := range errs {
			all.Go(func() { errs[i] = c.Shutdown(context.Background()) })
		}
		all.Wait()
		if errs[0] == nil || errs[0] != errs[1] {
			t.Errorf("two Shutdowns returned %v and %v, want the same error", errs[0], errs[1])
		}
	})
}

// A stream whose worker thinks that somebody asks for a slot gives its own up after every message.
func TestCallerWhoseWaitIsOverAsksNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPressureController(BackpressureOptions{Capacity: 1, QueueCapacity: 2})
		first, err := p.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var waiters sync.WaitGroup
		for _, ctx := range []context.Context{t.Context(), ctx} {
			waiters.Go(func() {
				if a, err := p.Acquire(ctx); err == nil {
					a.Release()
				}
			})
		}
		want := func(when string, asking, queued, inUse int64) {
			t.Helper()
			synctest.Wait()
			if p.asking.Load() != asking || p.queued.Load() != queued || p.inUse.Load() != inUse {
				t.Errorf("%s: %d ask, %d lack, %d are in use; want %d, %d, %d",
					when, p.asking.Load(), p.queued.Load(), p.inUse.Load(), asking, queued, inUse)
			}
		}
		want("while two wait", 2, 2, 1)
		cancel()
		want("when one gave up", 1, 1, 1)
		first.Release()
		waiters.Wait()
		want("when the other has had its slot", 0, 0, 0)
	})
}

// A stream that had failed, and of which everything had finished, was ended before its mailbox was closed: what recv returned
// just then was put where nobody looked any more.
func TestMessageThatComesAsItsFailedStreamEndsIsNotLost(t *testing.T) {
	for range 20 {
		source := make(chan string)
		f := mustNewInside(t, func(context.Context, Message[string]) error { return nil }, nil, Options{})
		s := f.receiver.newStream(t.Context(), nil)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = s.end(s.beginAndRun(FromChan(t.Context(), source)))
		}()
		for s.sh.Load() == nil {
			runtime.Gosched()
		}
		var put bool
		sh, flushed := s.sh.Load(), make(chan struct{})
		inTurn(&s.box.mu, func() {
			sh.events <- event[string]{do: func() {
				s.state.fail(&Failure{Kind: FailureInternal}) // who fails it has yet to close the mailbox
				sh.touch(s)
				sh.flush()
				close(flushed)
			}}
			<-flushed
		}, func() { put, _ = s.box.put(&entry[string]{seq: 1}, &f.receiver.chunks) })
		s.box.close()
		s.tell()
		<-ended
		close(source) // for the reader
		if put && s.backlog.ledger.finished() != 1 {
			t.Fatal("a message was received and has not come to its end")
		}
	}
}

// A worker had claimed the message of a mail run, and left it alone since its stream had ended. That message was ready
// then, and waited for a slot, which other streams' handlers had, only to be dropped.
func TestMessageThatAMailRunLeavesToItsEndNeedsNoSlot(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, nil, Options{})
	s := f.receiver.newStream(t.Context(), nil)
	sh := enterShard(s)
	receives(s, 1)
	onShard(sh, func(sh *shard[int]) {
		s.backlog.fetch(&s.box, &sh.r.chunks)
		r := sh.mailRun(s, s.backlog.fetched(maxMail))
		sh.runs.long = append(sh.runs.long, r)
		r.at.Store(0) // its worker claims the message,
		s.state.fail(&Failure{Kind: FailureInternal})
		s.cancel(nil)
		sh.attend(s)
		sh.mailBack(r) // and finds that the stream is over
		if sh.nready > 0 || s.backlog.ledger.counts.Dropped != 1 {
			t.Errorf("%d messages of a stream that has been swept are ready, %d are dropped", sh.nready, s.backlog.ledger.counts.Dropped)
		}
	})
	s.tell()
	<-s.done
}

// The context of a stream has ended, and nobody is to be told of what waits in its lane for a caller's own resolver: each
// message ends at once. Once each did so in the call that ended the one before it, on a stack as deep as the lane is long.
func TestLongLaneOfAnEndedContextNeedsNoDeepStack(t *testing.T) {
	const n = 100_000
	running, finish := make(chan struct{}), make(chan struct{})
	f := mustNewInside(t, func(context.Context, Message[int]) error {
		close(running)
		<-finish
		return nil
	}, nil, Options{Ordering: OrderingOptions{Resolver: NewFIFO(OrderingOptions{})}})
	ctx, cancel := context.WithCancel(t.Context())
	s := f.receiver.newStream(ctx, nil)
	sh := enterShard(s)
	receives(s, n)
	s.tell()
	<-running
	cancel()
	before, after := stackInUse(), uint64(0)
	close(finish)
	for finished := uint64(0); finished < n; {
		onShard(sh, func(sh *shard[int]) { finished, after = s.backlog.ledger.finished(), stackInUse() })
	}
	if after > before+8<<20 {
		t.Errorf("stacks have grown by %d MiB", (after-before)>>20)
	}
	endStream(s)
	if counts := s.backlog.ledger.counts; counts.Succeeded != 1 || counts.Dropped != n-1 {
		t.Errorf("%d succeeded and %d were dropped", counts.Succeeded, counts.Dropped)
	}
}

func stackInUse() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.StackInuse
}

// An Admission whose wait a Close has ended, and which has yet to leave, was cut off as if a drain had let it wait.
func TestAdmissionThatCloseHasRefusedIsNotCutOff(t *testing.T) {
	for name, refuse := range map[string]func(*admission){
		"Close": (*admission).close, "Shutdown without drain": func(a *admission) { a.stop(false) },
	} {
		refused := &admission{key: "a", cancel: func(error) {}}
		refuse(refused)
		refused.stop(true)
		if n, _, _ := refused.cut(); n != 0 {
			t.Errorf("%s: %d is cut off of a wait that was over", name, n)
		}
		runs := &admission{key: "a", cancel: func(error) {}}
		runs.run()
		refuse(runs)
		if n, _, key := runs.cut(); n != 1 || key != "a" {
			t.Errorf("%s: %d of %q is cut off of one that runs", name, n, key)
		}
	}
	waits := &admission{key: "a", cancel: func(error) {}}
	waits.stop(true)
	if n, _, _ := waits.cut(); n != 1 || waits.run() {
		t.Errorf("%d is cut off of one that waits in a drain", n)
	}
}

// A stream had entered its shard by the time that it was looked at as one that is in none: of its long run the first message
// had finished, and was shown as the one that runs.
func TestSnapshotOfAStreamThatEntersItsShardShowsWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its clock stands still, and the shard does not look by itself
		f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, func(int) string { return "" }, Options{
			Ordering: OrderingOptions{Mode: OrderingKeyedFIFO},
		})
		r := f.receiver
		s := r.newStream(t.Context(), nil)
		sh := enterShard(s)
		receives(s, 2)
		out := sh.runs.new(runExecute)
		onShard(sh, func(sh *shard[int]) {
			for range 2 {
				m := sh.accept(s, s.backlog.next(&s.box, &r.chunks))
				s.order.join(m.key, m.hash, &m.turn)
				out.add(m)
			}
			out.end = 2
			sh.runs.long = append(sh.runs.long, out)
			out.list[0].outcome, out.list[0].attempts, out.list[0].step = outcomeSucceeded, 1, stepFinished
			out.at.Store(0)
		})
		synctest.Wait()
		out.at.Store(1) // its worker is at the second
		c := snapshotBuilder[int]{index: map[string]int{}}
		c.running = topN[RunningMessage]{n: 2, compare: func(a, b RunningMessage) int { return cmp.Compare(a.Seq, b.Seq) }}
		c.visit(r, nil, []*stream[int]{s})
		if running := c.running.take(); len(running) != 1 || running[0].Seq != 2 || c.stats.Total.Succeeded != 1 {
			t.Errorf("it shows %+v, and %d that succeeded", running, c.stats.Total.Succeeded)
		}
		onShard(sh, func(sh *shard[int]) {
			sh.runs.forget(out)
			out.list[1].abort(FailureContextCancelled)
			sh.settle(out.list[1])
		})
		endStream(s)
	})
}

// Streams had ended while they had something ready, or in their mailboxes, and a shard that had no slot kept all of them.
func TestShardWithoutASlotKeepsNoStreamThatHasEnded(t *testing.T) {
	const n = 1000
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, nil, Options{
		Backpressure: BackpressureOptions{Capacity: 1},
	})
	f.receiver.shards = f.receiver.shards[:1] // all of them share it
	taken, err := f.receiver.gate.pressure.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waits := f.receiver.newStream(t.Context(), nil)
	sh := enterShard(waits)
	receives(waits, 1)
	onShard(sh, func(sh *shard[int]) {
		sh.attend(waits)
		sh.lineUp(nil, 0, 1)
	})
	for i := range n {
		s := f.receiver.newStream(t.Context(), nil)
		enterShard(s)
		receives(s, 1+i%2)
		onShard(sh, func(sh *shard[int]) {
			sh.attend(s)
			sh.lineUp(nil, 0, 1) // so that one message is ready, and another in the mailbox
		})
		s.fail(&Failure{Kind: FailureInternal})
		<-s.done
	}
	kept := 0
	onShard(sh, func(sh *shard[int]) { kept = sh.mail.len() + sh.turns.len() })
	if kept > 4 {
		t.Errorf("it keeps %d streams, of which one waits", kept)
	}
	taken.Release()
	endStream(waits)
}

// A FIFO lane holds messages of many keys, and a run takes what is behind its messages: the message of a skipped key once
// joined it by that.
func TestSkippedKeyDoesNotRunBehindAnother(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, nil, Options{
		Ordering: OrderingOptions{Mode: OrderingFIFO},
	})
	s := f.receiver.newStream(t.Context(), nil)
	sh := enterShard(s)
	receives(s, 2)
	onShard(sh, func(sh *shard[int]) {
		r := sh.runs.new(runExecute)
		sh.receive(s, s.backlog.next(&s.box, &sh.r.chunks), r)
		s.backlog.skipped.add("", 1, streamSkips)
		sh.receive(s, s.backlog.next(&s.box, &sh.r.chunks), r)
		if len(r.list) != 1 {
			t.Errorf("the run has %d messages, want the one that came before its key was skipped", len(r.list))
		}
		r.list[0].outcome = outcomeSucceeded
		sh.settle(r.list[0])
		sh.runs.reuse(r)
	})
	endStream(s)
	if c := s.backlog.ledger.counts; c.Succeeded != 1 || c.Rejected != 1 {
		t.Errorf("%d succeeded and %d were rejected, want 1 and 1", c.Succeeded, c.Rejected)
	}
}

// A mail run leaves the messages of skipped keys alone, and there is none where it can't know them by their lane.
func TestMailRunLeavesSkippedKeysAlone(t *testing.T) {
	for _, test := range []struct {
		name    string
		mode    OrderingMode
		skipped int
		may     bool
	}{
		{"keyed", OrderingKeyedFIFO, 1, true},
		{"keyed, many keys", OrderingKeyedFIFO, 33, false},
		{"FIFO", OrderingFIFO, 1, false},
		{"no order", OrderingNone, 1, false},
		{"FIFO without", OrderingFIFO, 0, true},
	} {
		f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, func(int) string { return "" }, Options{
			Ordering: OrderingOptions{Mode: test.mode},
		})
		s := f.receiver.newStream(t.Context(), nil)
		sh := enterShard(s)
		onShard(sh, func(sh *shard[int]) {
			for i := range test.skipped {
				s.backlog.skipped.add(strconv.Itoa(i), 1, streamSkips)
			}
			var busy busyKeys
			may := sh.mayMail(s) && sh.busyKeys(s, &busy)
			if hash, _ := s.order.place("0"); may && busy.has(hash) != (test.skipped > 0) {
				t.Errorf("%s: the run does not leave the skipped key alone", test.name)
			}
			if may != test.may {
				t.Errorf("%s: there may be a mail run: %v, want %v", test.name, may, test.may)
			}
		})
		endStream(s)
	}
}

// A caller's own resolver gives each message a turn to itself: none may go together with the one before it in its lane, whose
// turn ends with it.
func TestMessageBehindAnotherAsksTheCallersOwnResolver(t *testing.T) {
	var asked atomic.Int64
	resolver := resolverOf(func(context.Context, string) (ReleaseFunc, error) {
		asked.Add(1)
		return func() {}, nil
	})
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, func(int) string { return "" }, Options{
		Ordering: OrderingOptions{Mode: OrderingKeyedFIFO, Resolver: resolver},
	})
	s := f.receiver.newStream(t.Context(), func(int) string { return "" })
	sh := enterShard(s)
	receives(s, 2)
	onShard(sh, func(sh *shard[int]) {
		r := sh.runs.new(runExecute)
		m := sh.accept(s, s.backlog.next(&s.box, &sh.r.chunks))
		s.order.join(m.key, m.hash, &m.turn)
		r.add(m) // it has been answered, and is in the run that is being filled
		sh.receive(s, s.backlog.next(&s.box, &sh.r.chunks), r)
		if len(r.list) != 1 {
			t.Error("the one behind it has joined its run")
		}
		m.outcome = outcomeSucceeded
		sh.settle(m)
		sh.runs.reuse(r)
	})
	endStream(s)
	if asked.Load() != 1 {
		t.Errorf("the resolver was asked %d times for the one behind, want once", asked.Load())
	}
}

// Two messages were queued, and have just been sent. Another was refused then, as if they were still waiting.
func TestQueueHasRoomAsSoonAsWhatWaitedThereIsSent(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, nil, Options{
		Ordering:     OrderingOptions{Mode: OrderingNone},
		Backpressure: BackpressureOptions{Capacity: 2, QueueCapacity: 2},
	})
	p := f.receiver.gate.pressure
	if !p.try(2) {
		t.Fatal("there are no slots")
	}
	s := f.receiver.newStream(t.Context(), nil)
	sh := enterShard(s)
	receives(s, 2)
	onShard(sh, func(sh *shard[int]) {
		sh.attend(s)
		sh.lineUpDirect()
		if sh.slots.short != 2 || p.queued.Load() != 2 {
			t.Errorf("%d wait for a slot, want 2", p.queued.Load())
		}
		receives(s, 1)
		sh.attend(s)
		p.giveBack(2)
		sh.pace.length = 2
		sh.sendAll()
		if s.backlog.refusing {
			t.Error("the third is refused")
		}
	})
	endsWell(t, s, 3)
}

// A reader waits for its verdict until all before it is lined up: that must not take as long as all that can run before.
func TestVerdictDoesNotWaitForRunsToHaveRoom(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, func(int) string { return "" }, Options{
		Ordering: OrderingOptions{Mode: OrderingKeyedFIFO, KeyCapacity: 2},
	})
	s := f.receiver.newStream(t.Context(), nil)
	sh := enterShard(s)
	s.verdict.ask(3)
	receives(s, 3)
	onShard(sh, func(sh *shard[int]) {
		sh.attend(s)
		sh.lineUp(sh.runs.new(runExecute), 1, 1)
		if s.verdict.isAsked() {
			t.Errorf("%d of 3 messages are lined up, and the reader waits", s.backlog.ledger.received)
		}
	})
	endStream(s)
}

// What is to be refused, or is of a skipped key, must not wait in its mailbox for a slot, however long runs are by then.
func TestDirectStreamIsLinedUpThoughNothingCanRun(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, func(int) string { return "" }, Options{
		Ordering:     OrderingOptions{Mode: OrderingKeyedFIFO, KeyCapacity: 9},
		Backpressure: BackpressureOptions{Capacity: 1},
	})
	taken, err := f.receiver.gate.pressure.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := f.receiver.newStream(t.Context(), nil)
	sh := enterShard(s)
	receives(s, 5)
	onShard(sh, func(sh *shard[int]) {
		sh.pace.length = 2
		sh.attend(s)
		sh.dispatch()
		if n := s.backlog.ledger.received; n != 5 {
			t.Errorf("%d of 5 messages are lined up", n)
		}
	})
	taken.Release()
	endStream(s)
}

// A message that stands behind another of its lane in a run holds no slot: it runs in that of the one before it.
func TestMessageBehindAnotherHoldsNoSlot(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, func(int) string { return "" }, Options{
		Ordering:     OrderingOptions{Mode: OrderingKeyedFIFO},
		Backpressure: BackpressureOptions{Policy: BackpressureHardReject, Capacity: 2},
	})
	s := f.receiver.newStream(t.Context(), nil)
	sh := enterShard(s)
	receives(s, 3)
	onShard(sh, func(sh *shard[int]) {
		sh.pace.length = 8
		sh.attend(s)
		sh.sendAll()
		if len(sh.runs.long) != 1 || len(sh.runs.long[0].list) != 3 || sh.r.gate.pressure.inUse.Load() != 1 {
			t.Errorf("%d long runs are out, and hold %d slots; want one of 3 messages with 1", len(sh.runs.long), sh.r.gate.pressure.inUse.Load())
		}
	})
	endStream(s)
	if n := sh.r.gate.pressure.inUse.Load(); n != 0 {
		t.Errorf("%d slots are in use at the end", n)
	}
}

// A run of a hot key took more slots than it had heads, and until they were given back, what was received next was refused as if
// the queue were full.
func TestQueueIsEmptyBesideARunOfAHotKey(t *testing.T) {
	f := mustNewInside(t, func(context.Context, Message[int]) error { return nil }, func(int) string { return "" }, Options{
		Ordering:     OrderingOptions{Mode: OrderingKeyedFIFO},
		Backpressure: BackpressureOptions{Capacity: 2, QueueCapacity: 1},
	})
	s := f.receiver.newStream(t.Context(), nil)
	sh := enterShard(s)
	for i, key := range strings.Split("aaaaaaaaaaaaaaabc", "") {
		e := entry[int]{seq: uint64(i + 1), key: key}
		e.hash, _ = s.order.place(key)
		s.box.put(&e, &s.r.chunks)
	}
	onShard(sh, func(sh *shard[int]) {
		sh.pace.length = 8
		sh.attend(s)
		sh.sendAll()
		sh.lineUpDirect()
		if s.backlog.refusing {
			t.Error("a message is refused")
		}
	})
	endsWell(t, s, 17)
}
