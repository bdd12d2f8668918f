package partition

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

// log is a partition's messages in memory.
type log struct {
	messages []Message[string]
	err      error // at the end, in place of waiting
}

// logOf has values at the positions 10, 20, …; the first letter of each is its key, and one that ends with "!" can't be
// decoded.
func logOf(values ...string) *log {
	l := &log{}
	for i, v := range values {
		m := Message[string]{Position: uint64(10 * (i + 1)), Key: v[:1], Value: v, Raw: []byte(v)}
		if strings.HasSuffix(v, "!") {
			m.Value, m.Err = "", &DecodeError{m.Position, errors.New("nonsense")}
		}
		l.messages = append(l.messages, m)
	}
	return l
}

// source reads l behind a position.
func (l *log) source(after uint64) *logSource { return &logSource{l, after} }

type logSource struct {
	l    *log
	last uint64
}

func (s *logSource) Next(ctx context.Context) (Message[string], error) {
	for _, m := range s.l.messages {
		if m.Position > s.last {
			s.last = m.Position
			return m, ctx.Err()
		}
	}
	if s.l.err != nil {
		return Message[string]{}, s.l.err
	}
	<-ctx.Done()
	return Message[string]{}, ctx.Err()
}

var errGone = errors.New("not held")

// hold is a Tenure, and keeps the dead letters.
type hold struct {
	lost    atomic.Bool
	mu      sync.Mutex
	marks   []uint64
	letters []DeadLetter
	fails   int // how many stores of letters fail first
}

func (h *hold) Check() error {
	if h.lost.Load() {
		return errGone
	}
	return nil
}

func (h *hold) Suspect(_ context.Context, position uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.marks = append(h.marks, position)
	return h.Check()
}

// marked reports whether a message is marked.
func (h *hold) marked() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.marks) > 0 && h.marks[len(h.marks)-1] > 0
}

func (h *hold) Store(_ context.Context, l DeadLetter) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fails > 0 {
		h.fails--
		return errors.New("no answer")
	}
	h.letters = append(h.letters, l)
	return nil
}

// trial is a run of a log.
type trial struct {
	*Run[string]
	hold   *hold
	mu     sync.Mutex
	done   []string
	events []Event
}

func (tr *trial) did(v string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.done = append(tr.done, v)
}

func (tr *trial) all() []string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return slices.Clone(tr.done)
}

func (tr *trial) count(kind EventKind) (n int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, e := range tr.events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// begin runs l. What handler does without an error is done.
func begin(
	t *testing.T, l *log, o flow.Options, change func(*Assignment[string]), handler func(tr *trial, v string) error,
) *trial {
	t.Helper()
	tr := &trial{hold: &hold{}}
	r, err := NewRunner(func(_ context.Context, m flow.Message[string]) error {
		if handler != nil {
			if err := handler(tr, m.Value); err != nil {
				return err
			}
		}
		tr.did(m.Value)
		return nil
	}, Options{Flow: o, Quarantine: 2, Poison: 2, Isolation: NewIsolation(time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	a := Assignment[string]{Source: l.source(0), Tenure: tr.hold, Observe: func(e Event) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		tr.events = append(tr.events, e)
	}}
	if change != nil {
		change(&a)
	}
	ctx, cancel := context.WithCancel(context.Background())
	tr.Run = r.Start(ctx, a)
	t.Cleanup(func() { cancel(); _, _ = tr.Wait() })
	synctest.Wait()
	return tr
}

func skip(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }

func bubble(t *testing.T, test func(t *testing.T)) { t.Helper(); synctest.Test(t, test) }

func TestProgressOfARunIsInPositionsOfTheLog(t *testing.T) {
	bubble(t, func(t *testing.T) {
		finish := make(chan struct{})
		tr := begin(t, logOf("a1", "b1", "a2", "c1"), flow.Options{}, nil, func(_ *trial, v string) error {
			if v == "b1" {
				<-finish
			}
			return nil
		})
		if p := tr.Progress(); !p.Equal(newProgress(40, []uint64{20})) {
			t.Errorf("%+v", p)
		}
		close(finish)
		synctest.Wait()
		if p := tr.Progress(); !p.Equal(newProgress(40, nil)) {
			t.Errorf("%+v", p)
		}
	})
}

func TestAHolderRunsWhatTheOneBeforeHasNotSettled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := logOf("a1", "b1", "c1", "d1", "e1")
		tr := begin(t, l, flow.Options{}, func(a *Assignment[string]) {
			a.Progress = newProgress(40, []uint64{20, 40})
			a.Source = l.source(19)
		}, nil)
		got := tr.all()
		slices.Sort(got)
		if !slices.Equal(got, []string{"b1", "d1", "e1"}) {
			t.Errorf("done: %v", got)
		}
	})
}

func TestNoAttemptBeginsOnceThePartitionIsNotHeld(t *testing.T) {
	bubble(t, func(t *testing.T) {
		asked := false
		o := flow.Options{Retry: flow.RetryOptions{MaxAttempts: 5, Backoff: time.Second}}
		o.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { asked = true; return flow.SkipMessage }
		attempts := 0
		tr := begin(t, logOf("a1", "a2"), o, func(a *Assignment[string]) { a.DeadLetters = a.Tenure.(*hold) },
			func(tr *trial, _ string) error {
				attempts++
				tr.hold.lost.Store(true)
				return errors.New("not yet")
			})
		time.Sleep(time.Minute)
		_, err := tr.Wait()
		if !errors.Is(err, errGone) || attempts != 1 || asked || len(tr.hold.letters) > 0 || tr.count(EventRefused) == 0 {
			t.Errorf("%v after %d attempts; OnFailure was asked: %v; %d dead letters", err, attempts, asked, len(tr.hold.letters))
		}
		if p := tr.Progress(); p.Frontier >= 10 {
			t.Errorf("%+v", p)
		}
	})
}

func TestOnFailureIsNotAskedOnceThePartitionIsNotHeld(t *testing.T) {
	bubble(t, func(t *testing.T) {
		asked := false
		o := flow.Options{OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { asked = true; return flow.SkipMessage }}
		tr := begin(t, logOf("a1"), o, nil, func(tr *trial, _ string) error {
			tr.hold.lost.Store(true)
			return errors.New("never")
		})
		if _, err := tr.Wait(); !errors.Is(err, errGone) || asked || tr.Progress().Settled(10) {
			t.Errorf("%v; asked: %v", err, asked)
		}
	})
}

func TestADeadLetterIsStoredBeforeItsMessageIsSettledHoweverOftenThatFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tr := begin(t, logOf("a1", "a2"), flow.Options{OnFailure: skip}, func(a *Assignment[string]) {
			h := a.Tenure.(*hold)
			h.fails = 10
			a.DeadLetters = h
		}, func(_ *trial, v string) error {
			if v == "a1" {
				return errors.New("never")
			}
			return nil
		})
		if p := tr.Progress(); p.Settled(10) || len(tr.all()) > 0 {
			t.Errorf("%+v, done %v", p, tr.all())
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if p := tr.Progress(); p.Frontier != 20 || len(tr.hold.letters) != 1 || !slices.Equal(tr.all(), []string{"a2"}) {
			t.Errorf("%+v, %d letters, done %v", p, len(tr.hold.letters), tr.all())
		}
		if n := tr.count(EventDeadLetter); n != 11 {
			t.Errorf("%d events", n)
		}
	})
}

func TestADeadLetterThatCannotBeStoredEndsWithTheHold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tr := begin(t, logOf("a1"), flow.Options{OnFailure: skip}, func(a *Assignment[string]) {
			h := a.Tenure.(*hold)
			h.fails = 1 << 30
			a.DeadLetters = h
		}, func(*trial, string) error { return errors.New("never") })
		time.Sleep(time.Minute)
		tr.hold.lost.Store(true)
		time.Sleep(time.Minute)
		tried := tr.count(EventDeadLetter)
		time.Sleep(time.Minute)
		if n := tr.count(EventDeadLetter); n > tried {
			t.Fatalf("%d tries after the loss", n-tried)
		}
		if _, err := tr.Wait(); !errors.Is(err, errGone) {
			t.Errorf("%v", err)
		}
		if tr.Progress().Settled(10) {
			t.Error("it is settled")
		}
	})
}

func TestSuspectsRunOneAtATimeMarkedBeforeAndUnmarkedAfter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var running atomic.Int32
		tr := begin(t, logOf("a1", "b1", "c1", "d1", "e1"), flow.Options{}, func(a *Assignment[string]) {
			a.Deaths = Deaths{Count: 2, Doubt: 40, Reach: 3}
		}, func(tr *trial, v string) error {
			if n := running.Add(1); n > 1 && v < "d" {
				t.Errorf("%d run", n)
			}
			if marked := tr.hold.marked(); marked != (v < "d") {
				t.Errorf("%s is marked: %v", v, marked)
			}
			time.Sleep(time.Second)
			running.Add(-1)
			return nil
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(tr.all()) != 5 || len(tr.hold.marks) != 6 || tr.count(EventSuspect) != 3 || tr.count(EventReplayed) != 3 {
			t.Errorf("done %v, marks %v, %d suspects, %d replayed", tr.all(), tr.hold.marks, tr.count(EventSuspect), tr.count(EventReplayed))
		}
		if position, known := tr.Doubted(); !known || position != 30 {
			t.Errorf("in doubt up to %d, %v", position, known)
		}
	})
}

func TestPoisonDoesNotRunAndIsOnFailuresToJudge(t *testing.T) {
	for name, c := range map[string]struct {
		onFailure func(context.Context, *flow.Failure) flow.FailureAction
		letters   bool
		settled   bool
	}{
		"without an OnFailure it stops the partition": {nil, false, false},
		"without an OnFailure it is a dead letter":    {nil, true, true},
		"OnFailure skips it":                          {skip, false, true},
		"OnFailure skips it as a dead letter":         {skip, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				tr := begin(t, logOf("a1", "a2"), flow.Options{OnFailure: c.onFailure}, func(a *Assignment[string]) {
					a.Deaths = Deaths{Count: 4, Doubt: 40, Reach: 10, Blamed: []Blame{{10, 2}}}
					if c.letters {
						a.DeadLetters = a.Tenure.(*hold)
					}
				}, nil)
				if slices.Contains(tr.all(), "a1") || slices.Contains(tr.all(), "a2") != c.settled {
					t.Errorf("done: %v", tr.all())
				}
				if tr.Progress().Settled(10) != c.settled || (len(tr.hold.letters) == 1) != c.letters {
					t.Errorf("%+v, letters %v", tr.Progress(), tr.hold.letters)
				}
				if !c.settled {
					_, err := tr.Wait()
					if poison, ok := errors.AsType[*PoisonError](err); !ok || poison.Position != 10 || poison.Deaths != 2 {
						t.Errorf("%v", err)
					}
				}
			})
		})
	}
}

func TestWhatCannotBeDecodedIsOnFailuresToJudgeInItsTurn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var told any
		o := flow.Options{OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
			told = f.Value
			return flow.SkipMessage
		}}
		tr := begin(t, logOf("a1", "a!", "a3"), o, nil, func(_ *trial, v string) error {
			if told != nil != (v == "a3") {
				t.Errorf("%s runs when OnFailure was told %v", v, told)
			}
			return nil
		})
		if b, ok := told.([]byte); !ok || string(b) != "a!" || !slices.Equal(tr.all(), []string{"a1", "a3"}) {
			t.Errorf("OnFailure was told %v; done %v", told, tr.all())
		}
	})
}

func TestObserverIsToldOfTheCallersValues(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var value any
		o := flow.Options{OnFailure: skip, Observer: func(_ context.Context, e flow.Event) {
			if e.Kind == flow.EventFailure {
				value = e.Failure.Value
			}
		}}
		begin(t, logOf("a1"), o, nil, func(*trial, string) error { return errors.New("never") })
		if value != "a1" {
			t.Errorf("%v", value)
		}
	})
}

func TestASourceThatBreaksStopsThePartitionAndSaysWhy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := logOf("a1")
		l.err = errors.New("the log is gone")
		tr := begin(t, l, flow.Options{}, nil, nil)
		if again, err := tr.Wait(); again || !errors.Is(err, l.err) {
			t.Errorf("%v, %v", again, err)
		}
	})
}

func TestAfterAPanicARunMayGoOnAgainIfThatWasSkipped(t *testing.T) {
	for _, skipped := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			o := flow.Options{OnFailure: func(context.Context, *flow.Failure) flow.FailureAction {
				if skipped {
					return flow.SkipMessage
				}
				return flow.FailStream
			}}
			tr := begin(t, logOf("a1", "a2"), o, nil, func(_ *trial, v string) error {
				if v == "a1" {
					panic("oh")
				}
				return nil
			})
			again, err := tr.Wait()
			if again != skipped || err == nil || tr.Progress().Settled(10) != skipped {
				t.Errorf("%v, %v, %+v", again, err, tr.Progress())
			}
		})
	}
}

func TestTheCauseOfTheContextsEndIsThatOfTheRuns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, err := NewRunner(func(ctx context.Context, _ flow.Message[string]) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}, Options{Quarantine: 2, Poison: 2, Isolation: NewIsolation(time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		run := r.Start(ctx, Assignment[string]{Source: logOf("a1", "b1").source(0), Tenure: &hold{}})
		synctest.Wait()
		cancel(errGone)
		if _, err := run.Wait(); !errors.Is(err, errGone) {
			t.Errorf("%v", err)
		}
		if p := run.Progress(); p.Frontier >= 10 {
			t.Errorf("%+v", p)
		}
	})
}

func TestACommitIsDueWhenHalfOfTheWindowIsSettled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var values []string
		for i := range 100 {
			values = append(values, fmt.Sprintf("%c%d", 'a'+i%20, i))
		}
		tr := begin(t, logOf(values...), flow.Options{MaxPending: 10}, nil, nil)
		for committed := uint64(0); committed < 1000; {
			select {
			case <-tr.Due():
			case <-time.After(time.Hour):
				t.Fatalf("no commit is due after %d", committed)
			}
			synctest.Wait()
			p := tr.Progress()
			if p.Frontier > committed+100 {
				t.Fatalf("from %d to %d: more than the window", committed, p.Frontier)
			}
			committed = p.Frontier
			tr.Committed(p)
			synctest.Wait()
		}
	})
}

func TestAStuckHandlerKeepsASuspectWaitingAndOthersGoing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i := NewIsolation(time.Second)
		if err := i.Shared(t.Context()); err != nil { // stuck
			t.Fatal(err)
		}
		alone := make(chan error, 1)
		go func() { alone <- i.Alone(t.Context()) }()
		for range 20 {
			time.Sleep(300 * time.Millisecond)
			began := time.Now()
			if err := i.Shared(t.Context()); err != nil || time.Since(began) > time.Second {
				t.Fatalf("%v after %v", err, time.Since(began))
			}
			i.Leave()
		}
		i.Leave()
		if err := <-alone; err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if i.Shared(ctx) == nil || i.Alone(ctx) == nil {
			t.Error("somebody came in")
		}
		i.LeaveAlone()
	})
}
