package flow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

// tape is an Observer that keeps what it hears.
type tape struct {
	mu     sync.Mutex
	events []flow.Event
}

func (p *tape) observe(_ context.Context, e flow.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
}

// all is what was heard once everything has come to rest.
func (p *tape) all() []flow.Event {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

// kinds is what was heard, in order: the kind, and the message's Seq.
func (p *tape) kinds() string {
	var words []string
	for _, e := range p.all() {
		word := strings.TrimPrefix(e.Kind.String(), "Event")
		if e.Seq > 0 {
			word = fmt.Sprint(word, e.Seq)
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// only is the events of kind.
func (p *tape) only(kind flow.EventKind) []flow.Event {
	return slices.DeleteFunc(p.all(), func(e flow.Event) bool { return e.Kind != kind })
}

// replay makes each stream's Summary of the events of its messages.
func (p *tape) replay() map[uint64]flow.Summary {
	streams := map[uint64]flow.Summary{}
	outcomes := map[[2]uint64]int{}
	for _, e := range p.all() {
		s := streams[e.Stream]
		settled := e.Settled
		switch e.Kind {
		case flow.EventAttempt:
			if e.Attempt > 1 {
				s.Retried++
			}
			streams[e.Stream] = s
			continue
		case flow.EventSuccess:
			s.Succeeded, settled = s.Succeeded+1, true
		case flow.EventFailure:
			s.Failed++
		case flow.EventReject:
			s.Rejected++
		case flow.EventDrop:
			s.Dropped++
		default:
			streams[e.Stream] = s
			continue
		}
		if outcomes[[2]uint64{e.Stream, e.Seq}]++; outcomes[[2]uint64{e.Stream, e.Seq}] > 1 {
			panic(fmt.Sprintf("two outcomes of message %d of stream %d", e.Seq, e.Stream))
		}
		s.Received++
		if !settled {
			s.Unsettled = append(s.Unsettled, e.Seq)
		}
		streams[e.Stream] = s
	}
	delete(streams, 0) // of EventShutdown
	for id, s := range streams {
		slices.Sort(s.Unsettled)
		s.Last = s.Received
		if s.Committed = s.Received; len(s.Unsettled) > 0 {
			s.Committed = s.Unsettled[0] - 1
		}
		streams[id] = s
	}
	return streams
}

func TestEventsOfAStreamThatGoesWell(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, s := new(tape), newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{Observer: p.observe}), "a1", "b1")
		pass(time.Second)
		s.finish(t, "a1")
		pass(2 * time.Second)
		s.finish(t, "b1")
		c.End()
		sum, _ := c.result(t)
		want := []flow.Event{
			{Kind: flow.EventStreamStart, Stream: 1},
			{Kind: flow.EventAttempt, Stream: 1, Seq: 1, Key: "a", Attempt: 1},
			{Kind: flow.EventSuccess, Stream: 1, Seq: 1, Key: "a", Attempt: 1, Took: time.Second},
			{Kind: flow.EventAttempt, Stream: 1, Seq: 2, Key: "b", Attempt: 1, Waited: time.Second},
			{Kind: flow.EventSuccess, Stream: 1, Seq: 2, Key: "b", Attempt: 1, Waited: time.Second, Took: 2 * time.Second},
			{Kind: flow.EventStreamEnd, Stream: 1, Took: 3 * time.Second, Summary: sum},
		}
		if got := p.all(); !reflect.DeepEqual(got, want) {
			t.Errorf("events are\n%+v\nwant\n%+v", got, want)
		}
	})
}

// In FIFO the messages that lie there when the first has run may go out in one run, whatever they do: what is told of them is
// the same. The fourth of five is the one that something happens to.
func TestEventsOfMessagesOfOneRun(t *testing.T) {
	type moment struct {
		kind flow.EventKind
		seq  uint64
	}
	crashes := func(at moment, how func()) func(flow.Event) {
		return func(e flow.Event) {
			if e.Kind == at.kind && e.Seq == at.seq {
				how()
			}
		}
	}
	nothing := func(flow.Event) {}
	attempted, succeeded := moment{flow.EventAttempt, 4}, moment{flow.EventSuccess, 4}
	before := "Attempt1 Success1 Attempt2 Success2 Attempt3 Success3 Attempt4 "
	for name, c := range map[string]struct {
		fourth   func() error
		observer func(flow.Event)
		want     string
		attempts int           // of the fourth's failure
		took     time.Duration // that is told with it
	}{
		"all goes well":              {nil, nothing, before + "Success4 Attempt5 Success5", 0, 0},
		"the handler fails":          {func() error { return errHandler }, nothing, before + "Failure4 Attempt5 Success5", 1, time.Second},
		"the handler panics":         {func() error { panic("secret") }, nothing, before + "Failure4 Drop5", 1, time.Second},
		"the handler exits":          {func() error { runtime.Goexit(); return nil }, nothing, before + "Failure4 Drop5", 1, time.Second},
		"a panic at EventAttempt":    {nil, crashes(attempted, func() { panic("secret") }), before + "Failure4 Drop5", 0, 0},
		"a Goexit at EventAttempt":   {nil, crashes(attempted, runtime.Goexit), before + "Failure4 Drop5", 0, 0},
		"a panic at EventSuccess":    {nil, crashes(succeeded, func() { panic("secret") }), before + "Success4 Drop5", 1, time.Second},
		"a Goexit at EventSuccess":   {nil, crashes(succeeded, runtime.Goexit), before + "Success4 Drop5", 1, time.Second},
		"somebody looks meanwhile":   {nil, nothing, before + "Success4 Attempt5 Success5", 0, 0},
		"the stream ends under it":   {func() error { return context.Canceled }, nothing, before + "Failure4 Drop5", 1, time.Second},
		"the stream ends between it": {func() error { return nil }, nothing, before + "Success4 Drop5", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := new(tape)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var f *flow.Flow[string]
				f = mustNew(t, func(_ context.Context, m flow.Message[string]) error {
					time.Sleep(time.Second / 2)
					if name == "somebody looks meanwhile" && m.Seq == 4 {
						snap := f.Snapshot(1)
						if len(snap.Running) != 1 || snap.Running[0].Seq != 4 || snap.Running[0].Age != time.Second/2 {
							t.Errorf("4 has run for half a second, and seen to run is %+v", snap.Running)
						}
					}
					time.Sleep(time.Second / 2)
					if m.Seq == 4 {
						if strings.HasPrefix(name, "the stream ends") {
							cancel()
						}
						if c.fourth != nil {
							return c.fourth()
						}
					}
					return nil
				}, flow.Options{
					Observer: func(ctx context.Context, e flow.Event) {
						p.observe(ctx, e)
						c.observer(e)
					},
					OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
				})
				sum, err := f.Run(ctx, given("a1", "a2", "a3", "a4", "a5"))
				got := strings.TrimSuffix(strings.TrimPrefix(p.kinds(), "StreamStart "), " StreamEnd")
				// What the end of the stream drops is told of while the handler that it cancels returns.
				if other := strings.TrimSuffix(c.want, "Failure4 Drop5") + "Drop5 Failure4"; got != c.want && (name != "the stream ends under it" || got != other) {
					t.Errorf("events are %s\nwant       %s", got, c.want)
				}
				conserved(t, sum)
				for _, e := range p.all() {
					n := time.Duration(e.Seq)
					switch {
					case e.Seq == 0 || e.Kind == flow.EventDrop:
					case e.Waited != (n-1)*time.Second:
						t.Errorf("%v of %d says that it waited for %v", e.Kind, n, e.Waited)
					case e.Kind == flow.EventSuccess && e.Took != time.Second:
						t.Errorf("success of %d says that it took %v", n, e.Took)
					case e.Kind == flow.EventFailure && (e.Took != c.took || e.Attempt != c.attempts || e.Failure.Attempts != c.attempts):
						t.Errorf("failure is %+v, want that of %d attempts that took %v", e, c.attempts, c.took)
					}
				}
				if fault := new(flow.Failure); errors.As(err, &fault) && fault.Kind == flow.FailureInternal && fault.Attempts != c.attempts {
					t.Errorf("Run() = %+v, want the failure of %d attempts", fault, c.attempts)
				}
			})
		})
	}
}

func TestEventsOfRetriesAndOfAFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, s := new(tape), newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{
			Observer: p.observe, Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Minute, Multiplier: 2},
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction {
				time.Sleep(time.Hour)
				return flow.SkipMessage
			},
		}), "a1")
		for range 3 {
			pass(time.Second)
			s.fail(t, "a1", errHandler)
			pass(2 * time.Minute)
		}
		pass(time.Hour)
		if got := p.kinds(); got != "StreamStart Attempt1 Retry1 Attempt1 Retry1 Attempt1 Failure1" {
			t.Fatalf("events are %s", got)
		}
		for i, e := range p.only(flow.EventRetry) {
			if e.Attempt != i+1 || e.Delay != time.Duration(i+1)*time.Minute || e.Failure == nil || e.Failure.Err != errHandler ||
				e.Failure.Attempts != i+1 || e.Failure.Kind != flow.FailureHandlerError || e.Took <= 0 || e.Settled {
				t.Errorf("retry %d is %+v", i+1, e)
			}
		}
		for i, e := range p.only(flow.EventAttempt) {
			if e.Attempt != i+1 || e.Failure != nil || e.Waited != 0 {
				t.Errorf("attempt %d is %+v", i+1, e)
			}
		}
		e := p.only(flow.EventFailure)[0]
		if e.Attempt != 3 || e.Took != time.Second || !e.Settled || e.Failure.Err != errHandler || e.Failure.Attempts != 3 || e.Stack != nil {
			t.Errorf("failure is %+v, want that of the third attempt after OnFailure", e)
		}
		c.End()
		c.result(t)
	})
}

func TestAnAttemptsTimeIsToldOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, s := new(tape), newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{
			Observer: p.observe, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
		}), "a1")
		pass(time.Second)
		s.fail(t, "a1", errHandler)
		c.cancel(nil) // while it waits for its next try
		c.End()
		c.result(t)
		if got := p.only(flow.EventRetry)[0].Took; got != time.Second {
			t.Errorf("the attempt took %v, want 1s", got)
		}
		if e := p.only(flow.EventFailure)[0]; e.Took != 0 || e.Attempt != 1 {
			t.Errorf("failure is %+v: the attempt's time was told of with EventRetry", e)
		}
	})
}

// With retries no message runs under a lease; the time is that of the attempt that crashed, not of the one before.
func TestTimeOfAnAttemptThatCrashesIsItsOwn(t *testing.T) {
	for how, crash := range crashes {
		for name, o := range map[string]flow.Options{
			"keyed":      {Ordering: keyed},
			"on receipt": {Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1}},
		} {
			bubble(t, func(t *testing.T) {
				p := new(tape)
				o.Observer, o.Retry = p.observe, flow.RetryOptions{MaxAttempts: 3, Backoff: time.Minute}
				f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
					time.Sleep(time.Duration(m.Attempt) * time.Second)
					if m.Attempt == 2 {
						crash()
					}
					return errHandler
				}, o)
				_, err := f.Run(t.Context(), given("a1"))
				failureOf(t, err, flow.FailureInternal)
				retries, failures := p.only(flow.EventRetry), p.only(flow.EventFailure)
				if len(retries) != 1 || retries[0].Took != time.Second || len(failures) != 1 || failures[0].Took != 2*time.Second {
					t.Errorf("%s, %s: retries %+v, failures %+v; want one each, after 1s and 2s", how, name, retries, failures)
				}
			})
		}
	}
}

func TestEventsOfRefusalsDropsAndTheStreamsFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, s := new(tape), newStage()
		skip := flow.SkipMessage
		c := start(t, mustNew(t, s.handle, flow.Options{
			Observer: p.observe, Ordering: flow.OrderingOptions{Capacity: 1},
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return skip },
		}), "a1", "a2", "a3")
		synctest.Wait()
		skip = flow.FailStream
		c.Send("a4")
		sum, err := c.result(t)
		rejects := p.only(flow.EventReject)
		if len(rejects) != 2 || rejects[0].Seq != 3 || !rejects[0].Settled || rejects[1].Seq != 4 || rejects[1].Settled ||
			rejects[1].Failure.Kind != flow.FailureOrdering || rejects[0].Attempt != 0 {
			t.Errorf("refusals are %+v", rejects)
		}
		if got := p.only(flow.EventDrop); len(got) != 1 || got[0].Seq != 2 || got[0].Key != "a" || got[0].Failure != nil {
			t.Errorf("drops are %+v", got)
		}
		if got := p.only(flow.EventFailure); len(got) != 1 || got[0].Seq != 1 || got[0].Settled || got[0].Failure == nil {
			t.Errorf("failures are %+v: the running one was cancelled", got)
		}
		end := p.only(flow.EventStreamEnd)
		if len(end) != 1 || error(end[0].Failure) != err || !reflect.DeepEqual(end[0].Summary, sum) || end[0].Seq != 0 {
			t.Errorf("the end is %+v, want %+v, %v", end, sum, err)
		}
	})
}

func TestDropsOfAShutdownAreToldInOrderOfReceipt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, s := new(tape), newStage()
		f := mustNew(t, s.handle, flow.Options{
			Observer: p.observe, Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
		})
		c := start(t, f, "a1", "a2", "b1", "c1", "b2", "a3", "d1")
		go func() { _ = f.Shutdown(context.Background()) }()
		s.finish(t, "a1")
		sum, _ := c.result(t)
		drops := p.only(flow.EventDrop)
		for i, e := range drops {
			if e.Seq != uint64(i+2) {
				t.Errorf("the drops told are %+v", drops)
				break
			}
		}
		if len(drops) != 6 || sum.Dropped != 6 {
			t.Errorf("%d drops are told of %d", len(drops), sum.Dropped)
		}
	})
}

func TestObserverThatPanicsOnASuccessHearsNoOtherOutcome(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := new(tape)
		f := mustNew(t, func(context.Context, flow.Message[string]) error { return nil }, flow.Options{
			Ordering: keyed,
			Observer: func(ctx context.Context, e flow.Event) {
				p.observe(ctx, e)
				if e.Kind == flow.EventSuccess {
					panic("observer")
				}
			},
		})
		sum, err := start(t, f, "a1").result(t)
		failureOf(t, err, flow.FailureInternal)
		if len(p.only(flow.EventSuccess)) != 1 || len(p.only(flow.EventFailure)) != 0 || sum.Failed != 1 {
			t.Errorf("%d successes and %d failures are told of %+v", len(p.only(flow.EventSuccess)), len(p.only(flow.EventFailure)), sum)
		}
	})
}

func TestEventOfPressureComesBeforeItsAttempt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, s := new(tape), newStage()
		c := start(t, mustNew(t, s.handle, flow.Options{Observer: p.observe, Ordering: keyed, Backpressure: flow.BackpressureOptions{
			Policy: flow.BackpressureSoftAllowWithSignal, Capacity: 1}}), "a1")
		synctest.Wait()
		c.Send("b1")
		if got := p.kinds(); got != "StreamStart Attempt1 Pressure2 Attempt2" {
			t.Errorf("events are %s", got)
		}
		if m := s.attempts(); m[0].Pressured || !m[1].Pressured {
			t.Errorf("messages are %+v, want the second pressured", m)
		}
		c.End()
		s.finishAll(t)
	})
}

func TestRefusedStreamHasAStartAndAnEndAndShutdownIsToldOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := new(tape)
		f := mustNew(t, succeed, flow.Options{Observer: p.observe})
		_ = f.Shutdown(t.Context())
		_ = f.Close()
		_ = f.Shutdown(t.Context())
		_, err := f.Run(t.Context(), given("a1"))
		failureOf(t, err, flow.FailureShutdown)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, _ = f.Run(ctx, given("a1"))
		if got := p.kinds(); got != "Shutdown StreamStart StreamEnd StreamStart StreamEnd" {
			t.Errorf("events are %s", got)
		}
		for i, e := range p.only(flow.EventStreamEnd) {
			if e.Failure == nil || e.Stream != uint64(i+1) || !reflect.DeepEqual(e.Summary, flow.Summary{}) {
				t.Errorf("end %d is %+v", i+1, e)
			}
		}
	})
}

func explode() { panic("secret") }

func TestStackOfAPanicReachesTheObserver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := new(tape)
		f := mustNew(t, func(context.Context, flow.Message[string]) error { explode(); return nil }, flow.Options{Observer: p.observe})
		_, _ = f.Run(t.Context(), given("a1"))
		for _, kind := range []flow.EventKind{flow.EventFailure, flow.EventStreamEnd} {
			e := p.only(kind)[0]
			if !bytes.Contains(e.Stack, []byte("explode")) || !strings.Contains(e.Failure.Err.Error(), "secret") {
				t.Errorf("%v: failure %v with stack %q", kind, e.Failure.Err, e.Stack)
			}
		}
	})
}

func TestObserverMayCallStatsAndClose(t *testing.T) {
	for kind := flow.EventStreamStart; kind <= flow.EventShutdown; kind++ {
		bubble(t, func(t *testing.T) {
			var f *flow.Flow[string]
			p := new(tape)
			f = mustNew(t, func(_ context.Context, m flow.Message[string]) error {
				time.Sleep(time.Second)
				if m.Key == "f" && m.Attempt < 3 {
					return errHandler
				}
				return nil
			}, flow.Options{
				Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, KeyCapacity: 1}, MaxPendingBytes: 100,
				Backpressure: flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureSoftAllowWithSignal},
				Retry:        flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second},
				OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
					if f.Kind == flow.FailureOrdering {
						return flow.SkipMessage
					}
					return flow.FailStream
				},
				Observer: func(ctx context.Context, e flow.Event) {
					p.observe(ctx, e)
					if f.Stats(); e.Kind == kind {
						_ = f.Close()
					}
				},
			})
			sum, _ := f.Run(t.Context(), given("a1", "b1", "a2", "a3", "f1", "f2"))
			conserved(t, sum)
			_ = f.Close()
			if len(p.only(kind)) == 0 && kind != flow.EventDrop {
				t.Errorf("%v was not told", kind)
			}
			if got := p.replay()[1]; !reflect.DeepEqual(got, sum) {
				t.Errorf("%v: the events make %+v, the Summary is %+v", kind, got, sum)
			}
		})
	}
}

func TestObserversTellsAllInOrder(t *testing.T) {
	var heard []string
	as := func(name string) flow.Observer {
		return func(_ context.Context, e flow.Event) { heard = append(heard, name+":"+e.Kind.String()) }
	}
	all := []flow.Observer{as("first"), nil, as("second"), as("third")}
	o := flow.Observers(all...)
	all[0] = nil // the list is copied
	f := mustNew(t, takes(0), flow.Options{Observer: o})
	if _, err := f.Run(t.Context(), given("a1")); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, kind := range []string{"EventStreamStart", "EventAttempt", "EventSuccess", "EventStreamEnd"} {
		want = append(want, "first:"+kind, "second:"+kind, "third:"+kind)
	}
	if !slices.Equal(heard, want) {
		t.Errorf("heard %q, want %q", heard, want)
	}
}

func TestObserversOfNoneIsNone(t *testing.T) {
	if flow.Observers() != nil || flow.Observers(nil, nil) != nil {
		t.Error("an Observer of none is not nil, and costs clock readings")
	}
}

func TestObserversPanicOfOneIsThePanicOfAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ran, toldBehind := false, false
		f := mustNew(t, func(context.Context, flow.Message[string]) error { ran = true; return nil }, flow.Options{
			Observer: flow.Observers(func(_ context.Context, e flow.Event) {
				if e.Kind == flow.EventAttempt {
					panic("the first Observer")
				}
			}, func(_ context.Context, e flow.Event) { toldBehind = toldBehind || e.Kind == flow.EventAttempt }),
		})
		_, err := f.Run(t.Context(), given("a1"))
		failureOf(t, err, flow.FailureInternal)
		if ran || toldBehind {
			t.Errorf("the handler ran: %v; the Observer behind was told: %v", ran, toldBehind)
		}
	})
}
