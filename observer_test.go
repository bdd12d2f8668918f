package flow_test

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
	"example.com/flow/internal/testkit"
)

func TestEventsOfAStreamThatGoesWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := new(testkit.EventLog), testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{Observer: p.Observe}), "a1", "b1")
		testkit.Advance(time.Second)
		s.Finish(t, "a1")
		testkit.Advance(2 * time.Second)
		s.Finish(t, "b1")
		c.End()
		sum, _ := c.Result(t)
		want := []flow.Event{
			{Kind: flow.EventStreamStart, Stream: 1},
			{Kind: flow.EventAttempt, Stream: 1, Seq: 1, Key: "a", Attempt: 1},
			{Kind: flow.EventSuccess, Stream: 1, Seq: 1, Key: "a", Attempt: 1, Took: time.Second},
			{Kind: flow.EventAttempt, Stream: 1, Seq: 2, Key: "b", Attempt: 1, Waited: time.Second},
			{Kind: flow.EventSuccess, Stream: 1, Seq: 2, Key: "b", Attempt: 1, Waited: time.Second, Took: 2 * time.Second},
			{Kind: flow.EventStreamEnd, Stream: 1, Took: 3 * time.Second, Summary: sum},
		}
		if got := p.All(); !reflect.DeepEqual(got, want) {
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
		"the handler fails":          {func() error { return testkit.ErrHandler }, nothing, before + "Failure4 Attempt5 Success5", 1, time.Second},
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
			synctest.Test(t, func(t *testing.T) {
				p := new(testkit.EventLog)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var f *flow.Flow[string]
				f = testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
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
						p.Observe(ctx, e)
						c.observer(e)
					},
					OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
				})
				sum, err := f.Run(ctx, testkit.Given("a1", "a2", "a3", "a4", "a5"))
				got := strings.TrimSuffix(strings.TrimPrefix(p.Kinds(), "StreamStart "), " StreamEnd")
				// What the end of the stream drops is told of while the handler that it cancels returns.
				if other := strings.TrimSuffix(c.want, "Failure4 Drop5") + "Drop5 Failure4"; got != c.want && (name != "the stream ends under it" || got != other) {
					t.Errorf("events are %s\nwant       %s", got, c.want)
				}
				testkit.CheckConserved(t, sum)
				for _, e := range p.All() {
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
	synctest.Test(t, func(t *testing.T) {
		p, s := new(testkit.EventLog), testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{
			Observer: p.Observe, Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Minute, Multiplier: 2},
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction {
				time.Sleep(time.Hour)
				return flow.SkipMessage
			},
		}), "a1")
		for range 3 {
			testkit.Advance(time.Second)
			s.Fail(t, "a1", testkit.ErrHandler)
			testkit.Advance(2 * time.Minute)
		}
		testkit.Advance(time.Hour)
		if got := p.Kinds(); got != "StreamStart Attempt1 Retry1 Attempt1 Retry1 Attempt1 Failure1" {
			t.Fatalf("events are %s", got)
		}
		for i, e := range p.Of(flow.EventRetry) {
			if e.Attempt != i+1 || e.Delay != time.Duration(i+1)*time.Minute || e.Failure == nil || e.Failure.Err != testkit.ErrHandler ||
				e.Failure.Attempts != i+1 || e.Failure.Kind != flow.FailureHandlerError || e.Took <= 0 || e.Settled {
				t.Errorf("retry %d is %+v", i+1, e)
			}
		}
		for i, e := range p.Of(flow.EventAttempt) {
			if e.Attempt != i+1 || e.Failure != nil || e.Waited != 0 {
				t.Errorf("attempt %d is %+v", i+1, e)
			}
		}
		e := p.Of(flow.EventFailure)[0]
		if e.Attempt != 3 || e.Took != time.Second || !e.Settled || e.Failure.Err != testkit.ErrHandler || e.Failure.Attempts != 3 || e.Stack != nil {
			t.Errorf("failure is %+v, want that of the third attempt after OnFailure", e)
		}
		c.End()
		c.Result(t)
	})
}

func TestAnAttemptsTimeIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := new(testkit.EventLog), testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{
			Observer: p.Observe, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
		}), "a1")
		testkit.Advance(time.Second)
		s.Fail(t, "a1", testkit.ErrHandler)
		c.Cancel(nil) // while it waits for its next try
		c.End()
		c.Result(t)
		if got := p.Of(flow.EventRetry)[0].Took; got != time.Second {
			t.Errorf("the attempt took %v, want 1s", got)
		}
		if e := p.Of(flow.EventFailure)[0]; e.Took != 0 || e.Attempt != 1 {
			t.Errorf("failure is %+v: the attempt's time was told of with EventRetry", e)
		}
	})
}

// The time is that of the attempt that crashed, not of the one before.
func TestTimeOfAnAttemptThatCrashesIsItsOwn(t *testing.T) {
	for how, crash := range crashes {
		for name, o := range map[string]flow.Options{
			"keyed":      {Ordering: testkit.Keyed},
			"on receipt": {Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1}},
		} {
			synctest.Test(t, func(t *testing.T) {
				p := new(testkit.EventLog)
				o.Observer, o.Retry = p.Observe, flow.RetryOptions{MaxAttempts: 3, Backoff: time.Minute}
				f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
					time.Sleep(time.Duration(m.Attempt) * time.Second)
					if m.Attempt == 2 {
						crash()
					}
					return testkit.ErrHandler
				}, o)
				_, err := f.Run(t.Context(), testkit.Given("a1"))
				testkit.FailureOf(t, err, flow.FailureInternal)
				retries, failures := p.Of(flow.EventRetry), p.Of(flow.EventFailure)
				if len(retries) != 1 || retries[0].Took != time.Second || len(failures) != 1 || failures[0].Took != 2*time.Second {
					t.Errorf("%s, %s: retries %+v, failures %+v; want one each, after 1s and 2s", how, name, retries, failures)
				}
			})
		}
	}
}

func TestEventsOfRefusalsDropsAndTheStreamsFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := new(testkit.EventLog), testkit.NewManualHandler()
		skip := flow.SkipMessage
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{
			Observer: p.Observe, Ordering: flow.OrderingOptions{Capacity: 1},
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return skip },
		}), "a1", "a2", "a3")
		synctest.Wait()
		skip = flow.FailStream
		c.Send("a4")
		sum, err := c.Result(t)
		rejects := p.Of(flow.EventReject)
		if len(rejects) != 2 || rejects[0].Seq != 3 || !rejects[0].Settled || rejects[1].Seq != 4 || rejects[1].Settled ||
			rejects[1].Failure.Kind != flow.FailureOrdering || rejects[0].Attempt != 0 {
			t.Errorf("refusals are %+v", rejects)
		}
		if got := p.Of(flow.EventDrop); len(got) != 1 || got[0].Seq != 2 || got[0].Key != "a" || got[0].Failure != nil {
			t.Errorf("drops are %+v", got)
		}
		if got := p.Of(flow.EventFailure); len(got) != 1 || got[0].Seq != 1 || got[0].Settled || got[0].Failure == nil {
			t.Errorf("failures are %+v: the running one was cancelled", got)
		}
		end := p.Of(flow.EventStreamEnd)
		if len(end) != 1 || error(end[0].Failure) != err || !reflect.DeepEqual(end[0].Summary, sum) || end[0].Seq != 0 {
			t.Errorf("the end is %+v, want %+v, %v", end, sum, err)
		}
	})
}

func TestDropsOfAShutdownAreToldInOrderOfReceipt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := new(testkit.EventLog), testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			Observer: p.Observe, Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{Capacity: 1},
		})
		c := testkit.Start(t, f, "a1", "a2", "b1", "c1", "b2", "a3", "d1")
		go func() { _ = f.Shutdown(context.Background()) }()
		s.Finish(t, "a1")
		sum, _ := c.Result(t)
		drops := p.Of(flow.EventDrop)
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
	synctest.Test(t, func(t *testing.T) {
		p := new(testkit.EventLog)
		f := testkit.New(t, func(context.Context, flow.Message[string]) error { return nil }, flow.Options{
			Ordering: testkit.Keyed,
			Observer: func(ctx context.Context, e flow.Event) {
				p.Observe(ctx, e)
				if e.Kind == flow.EventSuccess {
					panic("observer")
				}
			},
		})
		sum, err := testkit.Start(t, f, "a1").Result(t)
		testkit.FailureOf(t, err, flow.FailureInternal)
		if len(p.Of(flow.EventSuccess)) != 1 || len(p.Of(flow.EventFailure)) != 0 || sum.Failed != 1 {
			t.Errorf("%d successes and %d failures are told of %+v", len(p.Of(flow.EventSuccess)), len(p.Of(flow.EventFailure)), sum)
		}
	})
}

func TestEventOfPressureComesBeforeItsAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := new(testkit.EventLog), testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{Observer: p.Observe, Ordering: testkit.Keyed, Backpressure: flow.BackpressureOptions{
			Policy: flow.BackpressureSoftAllowWithSignal, Capacity: 1}}), "a1")
		synctest.Wait()
		c.Send("b1")
		if got := p.Kinds(); got != "StreamStart Attempt1 Pressure2 Attempt2" {
			t.Errorf("events are %s", got)
		}
		if m := s.Attempts(); m[0].Pressured || !m[1].Pressured {
			t.Errorf("messages are %+v, want the second pressured", m)
		}
		c.End()
		s.FinishAll(t)
	})
}

func TestRefusedStreamHasAStartAndAnEndAndShutdownIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(testkit.EventLog)
		f := testkit.New(t, testkit.Succeed, flow.Options{Observer: p.Observe})
		_ = f.Shutdown(t.Context())
		_ = f.Close()
		_ = f.Shutdown(t.Context())
		_, err := f.Run(t.Context(), testkit.Given("a1"))
		testkit.FailureOf(t, err, flow.FailureShutdown)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, _ = f.Run(ctx, testkit.Given("a1"))
		if got := p.Kinds(); got != "Shutdown StreamStart StreamEnd StreamStart StreamEnd" {
			t.Errorf("events are %s", got)
		}
		for i, e := range p.Of(flow.EventStreamEnd) {
			if e.Failure == nil || e.Stream != uint64(i+1) || !reflect.DeepEqual(e.Summary, flow.Summary{}) {
				t.Errorf("end %d is %+v", i+1, e)
			}
		}
	})
}

func explode() { panic("secret") }

func TestStackOfAPanicReachesTheObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(testkit.EventLog)
		f := testkit.New(t, func(context.Context, flow.Message[string]) error { explode(); return nil }, flow.Options{Observer: p.Observe})
		_, _ = f.Run(t.Context(), testkit.Given("a1"))
		for _, kind := range []flow.EventKind{flow.EventFailure, flow.EventStreamEnd} {
			e := p.Of(kind)[0]
			if !bytes.Contains(e.Stack, []byte("explode")) || !strings.Contains(e.Failure.Err.Error(), "secret") {
				t.Errorf("%v: failure %v with stack %q", kind, e.Failure.Err, e.Stack)
			}
		}
	})
}

func TestObserverMayCallStatsAndClose(t *testing.T) {
	for kind := flow.EventStreamStart; kind <= flow.EventShutdown; kind++ {
		synctest.Test(t, func(t *testing.T) {
			var f *flow.Flow[string]
			p := new(testkit.EventLog)
			f = testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
				time.Sleep(time.Second)
				if m.Key == "f" && m.Attempt < 3 {
					return testkit.ErrHandler
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
					p.Observe(ctx, e)
					if f.Stats(); e.Kind == kind {
						_ = f.Close()
					}
				},
			})
			sum, _ := f.Run(t.Context(), testkit.Given("a1", "b1", "a2", "a3", "f1", "f2"))
			testkit.CheckConserved(t, sum)
			_ = f.Close()
			if len(p.Of(kind)) == 0 && kind != flow.EventDrop {
				t.Errorf("%v was not told", kind)
			}
			if got := p.Replay()[1]; !reflect.DeepEqual(got, sum) {
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
	f := testkit.New(t, testkit.Takes(0), flow.Options{Observer: o})
	if _, err := f.Run(t.Context(), testkit.Given("a1")); err != nil {
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
	synctest.Test(t, func(t *testing.T) {
		ran, toldBehind := false, false
		f := testkit.New(t, func(context.Context, flow.Message[string]) error { ran = true; return nil }, flow.Options{
			Observer: flow.Observers(func(_ context.Context, e flow.Event) {
				if e.Kind == flow.EventAttempt {
					panic("the first Observer")
				}
			}, func(_ context.Context, e flow.Event) { toldBehind = toldBehind || e.Kind == flow.EventAttempt }),
		})
		_, err := f.Run(t.Context(), testkit.Given("a1"))
		testkit.FailureOf(t, err, flow.FailureInternal)
		if ran || toldBehind {
			t.Errorf("the handler ran: %v; the Observer behind was told: %v", ran, toldBehind)
		}
	})
}

// A message's memory is used again for a later one, whose events tell nothing of it.
func TestEventsOfAMessageTellNothingOfAnEarlierOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(testkit.EventLog)
		f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
			time.Sleep(time.Second)
			if m.Key == "a" {
				return errors.New("no")
			}
			return nil
		}, func(s string) string { return s[:1] }, flow.Options{
			Observer: p.Observe, Backpressure: flow.BackpressureOptions{Capacity: 1},
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		})
		if err != nil {
			t.Fatal(err)
		}
		source := flowtest.NewSource(t, "a1", "a2", "a3")
		s := f.Start(t.Context(), source.Recv)
		time.Sleep(5 * time.Second)
		source.Send("b4", "b5", "b6")
		synctest.Wait()
		s.Stop()
		_, _ = s.Wait()
		drops := 0
		for _, e := range p.All() {
			if e.Kind == flow.EventDrop {
				drops++
				if want := (flow.Event{Kind: flow.EventDrop, Stream: 1, Seq: e.Seq, Key: "b"}); !reflect.DeepEqual(e, want) {
					t.Errorf("the drop is\n%+v, want\n%+v", e, want)
				}
			}
		}
		if drops != 2 {
			t.Errorf("%d messages were dropped, want 2", drops)
		}
	})
}

func TestStartReturnsThoughTheObserverHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		f, err := flow.New(func(context.Context, flow.Message[string]) error { return nil }, nil, flow.Options{
			Observer: func(_ context.Context, e flow.Event) {
				if e.Kind == flow.EventStreamStart {
					<-hang
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		source := make(chan string)
		close(source)
		st := f.Start(t.Context(), flow.FromChan(t.Context(), source))
		if n := f.Stats().Streams; n != 1 {
			t.Errorf("%d streams are under way", n)
		}
		down := make(chan error, 1)
		go func() { down <- f.Shutdown(context.Background()) }()
		synctest.Wait()
		if len(down) > 0 {
			t.Error("Shutdown has returned while the Observer of a stream that began before runs")
		}
		close(hang)
		if _, err := st.Wait(); flow.ClassifyFailure(err) != flow.FailureShutdown {
			t.Errorf("the stream ends with %v", err)
		}
		if err := <-down; err != nil {
			t.Error(err)
		}
	})
}
