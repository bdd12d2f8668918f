package flow

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"
)

// stateSteps are what may happen to a run, by name; each reports whether it has changed anything.
var stateSteps = []struct {
	name string
	do   func(*runState) bool
}{
	{"end of the source", func(s *runState) bool {
		before := s.phase()
		s.inputEnded()
		return s.phase() != before
	}},
	{"shutdown with drain", func(s *runState) bool { return s.stop(true) }},
	{"shutdown without drain", func(s *runState) bool { return s.stop(false) }},
	{"failure", func(s *runState) bool { return s.fail(&Failure{Kind: FailureHandlerError}) }},
	{"all finished", func(s *runState) bool { return s.finishedAll() }},
}

// inPhase returns a run in the phase, as it comes there.
func inPhase(p phase) *runState {
	s := new(runState)
	switch p {
	case phaseOpen:
	case phaseFinishing:
		s.inputEnded()
	case phaseDraining:
		s.stop(true)
	case phaseAborting:
		s.fail(&Failure{Kind: FailureInternal})
	case phaseDone:
		s.inputEnded()
		s.finishedAll()
	}
	return s
}

func TestRunStateMovesForwardOnly(t *testing.T) {
	to := map[phase][]phase{ // by the steps in their order
		phaseOpen:      {phaseFinishing, phaseDraining, phaseAborting, phaseAborting, phaseOpen},
		phaseFinishing: {phaseFinishing, phaseDraining, phaseAborting, phaseAborting, phaseDone},
		phaseDraining:  {phaseDraining, phaseDraining, phaseAborting, phaseAborting, phaseDone},
		phaseAborting:  {phaseAborting, phaseAborting, phaseAborting, phaseAborting, phaseDone},
		phaseDone:      {phaseDone, phaseDone, phaseDone, phaseDone, phaseDone},
	}
	if len(to) != int(phaseDone)+1 {
		t.Fatalf("%d phases in the table", len(to))
	}
	for from := phaseOpen; from <= phaseDone; from++ {
		for i, step := range stateSteps {
			t.Run(fmt.Sprintf("%v, then %s", from, step.name), func(t *testing.T) {
				s, want := inPhase(from), to[from][i]
				if got := s.phase(); got != from {
					t.Fatalf("it begins in %v", got)
				}
				changed := step.do(s)
				if s.phase() != want {
					t.Errorf("the phase is %v, want %v", s.phase(), want)
				}
				if s.at != s.phase() {
					t.Errorf("the mirror says %v of %v", s.phase(), s.at)
				}
				if changed != (want != from) {
					t.Errorf("it reports a change: %v", changed)
				}
			})
		}
	}
}

func TestRunStateKeepsTheFirstFailure(t *testing.T) {
	s := new(runState)
	first, second := &Failure{Kind: FailureHandlerError}, &Failure{Kind: FailureInternal}
	if !s.fail(first) || s.fail(second) {
		t.Error("the second failure counts")
	}
	s.finishedAll()
	if s.fail(second) {
		t.Error("a failure after the end counts")
	}
	if f, _ := s.reason(); f != first {
		t.Errorf("the reason is %v", f)
	}
}

func TestRunStateHasOneFirstFailureOfMany(t *testing.T) {
	s := new(runState)
	var all sync.WaitGroup
	firsts := make(chan *Failure, 16)
	for range cap(firsts) {
		all.Go(func() {
			if f := (&Failure{Kind: FailureHandlerError}); s.fail(f) {
				firsts <- f
			}
		})
	}
	all.Wait()
	if f, _ := s.reason(); len(firsts) != 1 || f != <-firsts {
		t.Errorf("%d failures were the first", len(firsts))
	}
}

func TestRunStateAFailureAfterAShutdownWithoutDrainIsTheReason(t *testing.T) {
	s := new(runState)
	s.stop(false)
	f := &Failure{Kind: FailureHandlerError}
	if !s.fail(f) {
		t.Error("it does not count")
	}
	if got, stopping := s.reason(); got != f || !stopping {
		t.Errorf("reason() = %v, %v", got, stopping)
	}
}

func TestRunStateResult(t *testing.T) {
	failure := &Failure{Kind: FailureHandlerError, Err: errors.New("broken")}
	cancelled := &Failure{Kind: FailureContextCancelled}
	for name, c := range map[string]struct {
		steps        func(*runState)
		settled      bool
		contextEnded *Failure
		want         FailureKind // FailureNone: it ended well
	}{
		"end of the source":                            {(*runState).inputEnded, true, nil, FailureNone},
		"a failure before the end of the source":       {func(s *runState) { s.fail(failure); s.inputEnded() }, true, nil, FailureHandlerError},
		"a failure after it":                           {func(s *runState) { s.inputEnded(); s.fail(failure) }, true, nil, FailureHandlerError},
		"a failure and the end of the context":         {func(s *runState) { s.fail(failure) }, false, cancelled, FailureHandlerError},
		"drain":                                        {func(s *runState) { s.stop(true) }, true, nil, FailureShutdown},
		"drain with the end of the source in it":       {func(s *runState) { s.stop(true); s.inputEnded() }, true, nil, FailureNone},
		"drain after the end of the source":            {func(s *runState) { s.inputEnded(); s.stop(true) }, true, nil, FailureNone},
		"drain with something unsettled":               {func(s *runState) { s.inputEnded(); s.stop(true) }, false, nil, FailureShutdown},
		"shutdown that dropped something":              {func(s *runState) { s.inputEnded(); s.stop(false) }, false, nil, FailureShutdown},
		"shutdown that found everything done":          {func(s *runState) { s.inputEnded(); s.stop(false) }, true, nil, FailureNone},
		"end of the context as the last message fails": {(*runState).inputEnded, false, cancelled, FailureContextCancelled},
		"end of the context after the last message":    {(*runState).inputEnded, true, cancelled, FailureNone},
	} {
		t.Run(name, func(t *testing.T) {
			s := new(runState)
			c.steps(s)
			s.finishedAll()
			got := FailureNone
			if f := s.result(c.settled, func() *Failure { return c.contextEnded }); f != nil {
				got = f.Kind
			}
			if got != c.want {
				t.Errorf("the result is %v, want %v", got, c.want)
			}
		})
	}
}

func TestRunStateNamesItsPhases(t *testing.T) {
	seen := map[string]bool{}
	for p := phaseOpen; p <= phaseDone; p++ {
		seen[p.String()] = true
	}
	if len(seen) != 5 || !seen["draining"] || phase(9).String() == "" {
		t.Errorf("the names are %v, and %v", seen, phase(9))
	}
}

func TestLedgerCountsEachOutcomeInItsPlace(t *testing.T) {
	for name, c := range map[string]struct {
		as      outcome
		settled bool // as OnFailure said
		want    Summary
	}{
		"succeeded":            {outcomeSucceeded, false, Summary{Received: 1, Succeeded: 1, Committed: 1}},
		"failed":               {outcomeFailed, false, Summary{Received: 1, Failed: 1, Unsettled: []uint64{1}}},
		"failed and skipped":   {outcomeFailed, true, Summary{Received: 1, Failed: 1, Committed: 1}},
		"rejected":             {outcomeRejected, false, Summary{Received: 1, Rejected: 1, Unsettled: []uint64{1}}},
		"rejected and skipped": {outcomeRejected, true, Summary{Received: 1, Rejected: 1, Committed: 1}},
		"dropped":              {outcomeDropped, false, Summary{Received: 1, Dropped: 1, Unsettled: []uint64{1}}},
	} {
		for attempts := range 4 {
			t.Run(fmt.Sprintf("%s after %d attempts", name, attempts), func(t *testing.T) {
				l := newLedger(1)
				l.accept(1)
				l.finish(1, attempts, c.as, c.settled)
				c.want.Retried, c.want.Last = uint64(max(0, attempts-1)), 1
				if got := l.summary(); !reflect.DeepEqual(got, c.want) {
					t.Errorf("summary() = %+v, want %+v", got, c.want)
				}
			})
		}
	}
}

func TestLedgerAMessageWithoutAnOutcomeIsABug(t *testing.T) {
	defer func() {
		if v := fmt.Sprint(recover()); !strings.HasPrefix(v, "bug: ") {
			t.Errorf("it panics with %q", v)
		}
	}()
	l := newLedger(1)
	var m message[int]
	l.accept(1)
	l.finish(1, 1, m.outcome, true)
}

func TestLedgerOfNothing(t *testing.T) {
	l := newLedger(1)
	if got := l.summary(); !reflect.DeepEqual(got, Summary{}) || l.pending() != 0 || l.committed(0) != 0 {
		t.Errorf("%+v, %d pending, %d committed", got, l.pending(), l.committed(0))
	}
}

// Whatever finishes in whatever order: nothing is lost, and Committed, which never goes back, and Progress are exact.
func TestLedgerMatchesAList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLedger(1)
		type entry struct{ finished, settled bool }
		var list []entry // by Seq less 1
		before := uint64(0)
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			var pending []uint64
			for i, e := range list {
				if !e.finished {
					pending = append(pending, uint64(i+1))
				}
			}
			if len(pending) == 0 || rapid.Bool().Draw(t, "accept") {
				list = append(list, entry{})
				l.accept(uint64(len(list)))
				continue
			}
			seq := rapid.SampledFrom(pending).Draw(t, "seq")
			as := outcome(rapid.IntRange(int(outcomeSucceeded), int(outcomeDropped)).Draw(t, "outcome"))
			settled := as != outcomeDropped && rapid.Bool().Draw(t, "settled")
			l.finish(seq, 1, as, settled)
			list[seq-1] = entry{finished: true, settled: settled || as == outcomeSucceeded}

			var open []uint64
			pending = nil
			for i, e := range list {
				if !e.finished {
					pending = append(pending, uint64(i+1))
				}
				if !e.settled {
					open = append(open, uint64(i+1))
				}
			}
			first, committed := uint64(0), uint64(len(list))
			if len(pending) > 0 {
				first = pending[0]
			}
			if len(open) > 0 {
				committed = open[0] - 1
			}
			if got := l.committed(first); got != committed || got < before {
				t.Fatalf("committed %d after %d, want %d", got, before, committed)
			}
			before = committed
			if l.received != l.finished()+l.pending() || l.pending() != uint64(len(pending)) {
				t.Fatalf("%d received, %d finished, %d pending, want %d", l.received, l.finished(), l.pending(), len(pending))
			}
			if highest, got := l.unsettled(pending); highest != uint64(len(list)) || !slices.Equal(got, open) {
				t.Fatalf("unsettled() = %d, %v, want %d, %v", highest, got, len(list), open)
			}
		}
	})
}

func TestLedgersSummaryIsACopyInOrder(t *testing.T) {
	l := newLedger(1)
	for seq := range uint64(3) {
		l.accept(seq + 1)
	}
	l.finish(3, 1, outcomeFailed, false)
	l.finish(1, 1, outcomeDropped, false)
	l.finish(2, 1, outcomeSucceeded, false)
	sum := l.summary()
	if !slices.Equal(sum.Unsettled, []uint64{1, 3}) || sum.Committed != 0 {
		t.Errorf("summary() = %+v", sum)
	}
	sum.Unsettled[0] = 99
	if again := l.summary(); again.Unsettled[0] != 1 {
		t.Errorf("a change of one Summary shows in the next: %+v", again)
	}
}

// What lies in the mailbox has no Seq in the ledger yet, and is not settled all the same.
func TestLedgersProgressKnowsWhatIsNotLinedUp(t *testing.T) {
	l := newLedger(1)
	l.accept(1)
	l.finish(1, 1, outcomeSucceeded, false)
	if highest, open := l.unsettled([]uint64{2, 3}); highest != 3 || !slices.Equal(open, []uint64{2, 3}) {
		t.Errorf("unsettled() = %d, %v", highest, open)
	}
}

// A stream that goes on with what another has left begins with a later Seq, and may leave some out.
func TestLedgerOfASeqThatBeginsLater(t *testing.T) {
	l := newLedger(11)
	if sum := l.summary(); sum.Committed != 10 || sum.Received != 0 {
		t.Errorf("summary() = %+v before anything is received", sum)
	}
	l.accept(11)
	l.accept(14)
	if l.committed(11) != 10 {
		t.Errorf("committed %d, want 10", l.committed(11))
	}
	l.finish(11, 1, outcomeSucceeded, false)
	l.finish(14, 1, outcomeFailed, false)
	if sum := l.summary(); sum.Received != 2 || sum.Last != 14 || sum.Committed != 13 || !slices.Equal(sum.Unsettled, []uint64{14}) {
		t.Errorf("summary() = %+v", sum)
	}
	l.succeed(5, 19)
	if sum := l.summary(); sum.Received != 7 || sum.Succeeded != 6 || sum.Last != 19 {
		t.Errorf("summary() = %+v", sum)
	}
}

func TestSkippedKeysCoverWhatComesBehind(t *testing.T) {
	var k skippedKeys
	if k.covers("a", 1) || k.len() != 0 {
		t.Error("an empty one covers something")
	}
	for _, seq := range []uint64{5, 3, 9} { // refused on receipt before an earlier one has failed
		if !k.add("a", seq, streamSkips) {
			t.Fatal("no room for a key")
		}
	}
	for seq, want := range map[uint64]bool{2: false, 3: false, 4: true, 5: true, 10: true} {
		if k.covers("a", seq) != want {
			t.Errorf("covers %d: %v, want %v", seq, !want, want)
		}
	}
	if k.covers("b", 10) || k.covers("", 10) {
		t.Error("another key is covered")
	}
	if !k.add("", 1, streamSkips) || !k.covers("", 2) {
		t.Error("the empty key is none")
	}
	if all := slices.Sorted(k.all()); !slices.Equal(all, []string{"", "a"}) {
		t.Errorf("all are %q", all)
	}
}

func TestSkippedKeysAreLimitedInNumberAndBytes(t *testing.T) {
	long := strings.Repeat("x", 10)
	for _, c := range []struct {
		name  string
		limit skipLimit
		keys  string
		want  string // + it was added, - it was not
	}{
		{"as many as there may be", skipLimit{2, 100}, "a b", "++"},
		{"one more", skipLimit{2, 100}, "a b c", "++-"},
		{"one that is there is not one more", skipLimit{2, 100}, "a b a b", "++++"},
		{"as many bytes as there may be", skipLimit{9, 12}, long + " bb", "++"},
		{"a byte more", skipLimit{9, 12}, long + " bbb", "+-"},
		{"what did not fit is not counted", skipLimit{9, 12}, long + " bbb bb c", "+-+-"},
		{"one that is there takes no more bytes", skipLimit{9, 10}, long + " " + long, "++"},
		{"one that is too long alone", skipLimit{9, 9}, long, "-"},
	} {
		var k skippedKeys
		got := ""
		for i, key := range strings.Fields(c.keys) {
			switch added := k.add(key, uint64(i), c.limit); {
			case added != k.covers(key, 100):
				t.Errorf("%s: %s was added: %v, and is covered: %v", c.name, key, added, !added)
			case added:
				got += "+"
			default:
				got += "-"
			}
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestSkippedKeysAreCopies(t *testing.T) {
	line := strings.Repeat("x", 1<<20)
	var k skippedKeys
	k.add(line[:2], 1, streamSkips)
	for key := range k.all() {
		if unsafe.StringData(key) == unsafe.StringData(line) {
			t.Error("a key of two bytes keeps a mebibyte")
		}
	}
}

// place is a turn that notes that it has come.
type place struct {
	turn
	mem  lane
	came int
}

func (p *place) turnCame() { p.came++ }

func newPlace(home turnHome) *place {
	p := new(place)
	p.owner, p.spare, p.home = p, &p.mem, home
	return p
}

// homeOf notes whose turns were handed over to it.
type homeOf struct{ got []turnOwner }

func (h *homeOf) handOver(o turnOwner) { h.got = append(h.got, o) }

// orderOf is the order of a stream whose Gate has r.
func orderOf(r OrderingResolver, id uint64) *streamOrder {
	o := new(streamOrder)
	o.init(context.Background(), id, r)
	return o
}

// enqueue puts p into the lane of key.
func enqueue(o *streamOrder, key string, p *place) (first bool, why reason) {
	hash, _ := o.place(key)
	return o.join(key, hash, &p.turn)
}

func leave(o *streamOrder, key string, p *place, home turnHome) *turn {
	hash, _ := o.place(key)
	return o.leave(&p.turn, hash, home)
}

func TestStreamOrderKnowsWhatItsResolverAsksFor(t *testing.T) {
	own := resolverOf(func(context.Context, string) (ReleaseFunc, error) { return nil, nil })
	option := func(o OrderingOptions) OrderingResolver {
		return &resolverOption{OrderingResolver: own, local: newLaneResolver(o)}
	}
	keyed := OrderingOptions{Mode: OrderingKeyedFIFO}
	for name, c := range map[string]struct {
		r                                    OrderingResolver
		ordered, emptyOrdered, oneLane       bool
		decides, refuses, asksKey, asksEmpty bool
	}{
		"none":                   {r: nil},
		"FIFO":                   {r: NewFIFO(OrderingOptions{}), ordered: true, emptyOrdered: true, oneLane: true},
		"keyed":                  {r: NewKeyedFIFO(keyed), ordered: true, emptyOrdered: true},
		"keyed, empty unordered": {r: NewKeyedFIFO(OrderingOptions{UnorderedEmptyKey: true}), ordered: true},
		"with a Capacity":        {r: NewKeyedFIFO(OrderingOptions{Capacity: 1}), ordered: true, emptyOrdered: true, decides: true, refuses: true},
		"with a KeyCapacity":     {r: NewKeyedFIFO(OrderingOptions{KeyCapacity: 1}), ordered: true, emptyOrdered: true, decides: true, refuses: true},
		"of the Flow":            {r: NewKeyedFIFO(OrderingOptions{Scope: ScopeFlow}), ordered: true, emptyOrdered: true, decides: true},
		"FIFO of the Flow":       {r: NewFIFO(OrderingOptions{Scope: ScopeFlow}), ordered: true, emptyOrdered: true, oneLane: true, decides: true},
		"a caller's in a Gate":   {r: own, ordered: true, emptyOrdered: true, decides: true, asksKey: true, asksEmpty: true},
		"a caller's option":      {r: option(keyed), ordered: true, emptyOrdered: true, decides: true, asksKey: true, asksEmpty: true},
		"a caller's beside FIFO": {r: option(OrderingOptions{}), ordered: true, emptyOrdered: true, oneLane: true, decides: true, asksKey: true, asksEmpty: true},
		"a caller's, empty unordered": {r: option(OrderingOptions{Mode: OrderingKeyedFIFO, UnorderedEmptyKey: true}),
			ordered: true, decides: true, asksKey: true},
	} {
		t.Run(name, func(t *testing.T) {
			o := orderOf(c.r, 7)
			a, aOrdered := o.place("a")
			b, _ := o.place("b")
			empty, emptyOrdered := o.place("")
			if aOrdered != c.ordered || emptyOrdered != c.emptyOrdered || (a != 0) != c.ordered || (empty != 0) != c.emptyOrdered {
				t.Errorf("ordered: %v, and %v without a key; hashes %d and %d", aOrdered, emptyOrdered, a, empty)
			}
			if o.ordered("a") != c.ordered || o.ordered("") != c.emptyOrdered {
				t.Error("ordered says otherwise than place")
			}
			if c.ordered && (a == b) != c.oneLane {
				t.Errorf("hashes of two keys: %d, %d", a, b)
			}
			if o.decidesOnReceipt() != c.decides || o.refuses() != c.refuses {
				t.Errorf("decides on receipt: %v, refuses: %v", o.decidesOnReceipt(), o.refuses())
			}
			if o.asks(a) != c.asksKey || o.asks(empty) != c.asksEmpty {
				t.Errorf("asks: %v, and %v without a key", o.asks(a), o.asks(empty))
			}
			o.end() // also without anybody to ask
		})
	}
}

// resolverOf is a Wait that is a whole resolver.
type resolverOf func(context.Context, string) (ReleaseFunc, error)

func (f resolverOf) Wait(ctx context.Context, key string) (ReleaseFunc, error) { return f(ctx, key) }
func (resolverOf) Close()                                                      {}

func TestStreamOrderFIFOsOfDifferentStreamsHaveDifferentHashes(t *testing.T) {
	r := NewFIFO(OrderingOptions{})
	seen := map[uint64]bool{}
	for id := uint64(1); id <= 1000; id++ {
		hash, _ := orderOf(r, id).place("")
		seen[hash] = true
	}
	if len(seen) != 1000 || seen[0] {
		t.Errorf("%d hashes of 1000 streams", len(seen))
	}
}

func TestStreamOrderLanesOfItsOwnAreItsOwn(t *testing.T) {
	r := NewKeyedFIFO(OrderingOptions{})
	one, two := orderOf(r, 1), orderOf(r, 2)
	a, b, c := newPlace(nil), newPlace(nil), newPlace(nil)
	for p, o := range map[*place]*streamOrder{a: one, b: two} {
		if first, why := enqueue(o, "k", p); !first || why != "" {
			t.Fatalf("join() = %v, %q", first, why)
		}
	}
	if first, _ := enqueue(one, "k", c); first {
		t.Error("two of a key have their turn")
	}
	hash, _ := one.place("k")
	if !one.isHead(&a.turn, hash) || one.isHead(&c.turn, hash) {
		t.Error("isHead is wrong")
	}
	if next := leave(one, "k", a, nil); next != &c.turn || c.came != 0 {
		t.Errorf("leave() = %p, want %p, whose owner is not told by it", next, &c.turn)
	}
	if next := leave(one, "k", c, nil); next != nil {
		t.Error("somebody is left")
	}
}

func TestStreamOrderPlacesAreUsedAgain(t *testing.T) {
	o := orderOf(NewKeyedFIFO(OrderingOptions{}), 1)
	places := []*place{newPlace(nil), newPlace(nil), newPlace(nil)}
	for range 5 {
		a, b, c := places[0], places[1], places[2]
		enqueue(o, "k", a)
		enqueue(o, "k", b)
		if leave(o, "k", a, nil) != &b.turn {
			t.Fatal("the turn goes to nobody")
		}
		if first, _ := enqueue(o, "other", a); !first {
			t.Fatal("it waits in a lane of its own")
		}
		enqueue(o, "k", c)
		leave(o, "k", b, nil)
		leave(o, "k", c, nil)
		leave(o, "other", a, nil)
		places = []*place{c, a, b}
	}
	if o.own.lanes != 0 {
		t.Errorf("%d lanes are left", o.own.lanes)
	}
}

func TestStreamOrderTurnsThatComeWaitNoMore(t *testing.T) {
	o := orderOf(NewKeyedFIFO(OrderingOptions{Capacity: 1}), 1)
	last := newPlace(nil)
	enqueue(o, "k", last)
	for range 5 {
		next := newPlace(nil)
		if first, why := enqueue(o, "k", next); first || why != "" {
			t.Fatalf("join() = %v, %q", first, why)
		}
		leave(o, "k", last, nil)
		last = next
	}
}

func TestStreamOrderCancelledWaitGivesItsPlaceUp(t *testing.T) {
	for name, r := range map[string]OrderingResolver{
		"own": NewKeyedFIFO(OrderingOptions{Capacity: 5}), "shared": NewKeyedFIFO(OrderingOptions{Capacity: 5, Scope: ScopeFlow}),
	} {
		t.Run(name, func(t *testing.T) {
			o, home := orderOf(r, 1), new(homeOf)
			a, b, c := newPlace(home), newPlace(home), newPlace(home)
			for _, p := range []*place{a, b, c} {
				enqueue(o, "k", p)
			}
			hash, _ := o.place("k")
			o.cancelWait(&b.turn, hash)
			o.cancelWait(&b.turn, hash) // in no lane
			o.cancelWait(&a.turn, hash) // it has its turn: that is ended by leave
			if !o.isHead(&a.turn, hash) {
				t.Fatal("the first has lost its turn")
			}
			if next := leave(o, "k", a, home); next != &c.turn {
				t.Errorf("leave() = %p, want %p", next, &c.turn)
			}
		})
	}
}

func TestStreamOrderSharedTurnsGoToTheHomeOfWhoWaits(t *testing.T) {
	r := NewKeyedFIFO(OrderingOptions{Scope: ScopeFlow})
	one, two := orderOf(r, 1), orderOf(r, 2)
	home, other := new(homeOf), new(homeOf)
	a, b, c, direct, e := newPlace(home), newPlace(home), newPlace(other), newPlace(nil), newPlace(home)
	if first, _ := enqueue(one, "k", a); !first {
		t.Fatal("the first has to wait")
	}
	for _, p := range []*place{b, c, direct, e} {
		if first, _ := enqueue(two, "k", p); first {
			t.Fatal("two have their turn, of different streams")
		}
	}
	hash, _ := one.place("k")
	if one.shared.follower(&a.turn, hash) != &b.turn || one.shared.follower(&b.turn, hash) != nil {
		t.Error("who follows at home is wrong")
	}
	if next := leave(one, "k", a, home); next != &b.turn {
		t.Errorf("the turn of one at home is not returned: %p", next)
	}
	if next := leave(one, "k", b, home); next != nil || len(other.got) != 1 || other.got[0] != c {
		t.Errorf("the turn of another home comes here: %p; there are %d", next, len(other.got))
	}
	if next := leave(two, "k", c, other); next != nil || direct.came != 1 {
		t.Errorf("a direct caller was told %d times", direct.came)
	}
	if next := leave(two, "k", direct, nil); next != nil || len(home.got) != 1 || home.got[0] != e {
		t.Errorf("what a direct caller leaves is not handed over")
	}
	if len(home.got) != 1 || a.came+b.came+c.came+e.came > 0 {
		t.Error("somebody was told twice")
	}
}

func TestStreamOrderBoundsOfAStreamAreItsOwn(t *testing.T) {
	r := NewKeyedFIFO(OrderingOptions{Capacity: 1})
	for _, o := range []*streamOrder{orderOf(r, 1), orderOf(r, 2)} {
		enqueue(o, "k", newPlace(nil))
		if _, why := enqueue(o, "k", newPlace(nil)); why != "" {
			t.Errorf("the first that waits is refused: %s", why)
		}
		third := newPlace(nil)
		if _, why := enqueue(o, "k", third); why != reasonOrderFull || third.lane != nil {
			t.Errorf("the second that waits: %q", why)
		}
	}
	shared := NewKeyedFIFO(OrderingOptions{Capacity: 1, Scope: ScopeFlow})
	one, two := orderOf(shared, 1), orderOf(shared, 2)
	enqueue(one, "k", newPlace(nil))
	enqueue(one, "k", newPlace(nil))
	if _, why := enqueue(two, "k", newPlace(nil)); why != reasonOrderFull {
		t.Errorf("the second that waits in the Flow: %q", why)
	}
}

func TestExternalOrderAnswersOnceHoweverItEnds(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		wait    func(context.Context, string) (ReleaseFunc, error)
		turn    bool
		crashed bool
		err     error
	}{
		"a turn":   {wait: func(context.Context, string) (ReleaseFunc, error) { return func() {}, nil }, turn: true},
		"an error": {wait: func(context.Context, string) (ReleaseFunc, error) { return nil, broken }, err: broken},
		"a panic":  {wait: func(context.Context, string) (ReleaseFunc, error) { panic(broken) }, crashed: true},
		"a Goexit": {wait: func(context.Context, string) (ReleaseFunc, error) { runtime.Goexit(); return nil, nil }, crashed: true},
		"never mind": {wait: func(ctx context.Context, _ string) (ReleaseFunc, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, err: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := orderOf(resolverOf(c.wait), 1)
				var mu sync.Mutex
				var answers []error
				var turns int
				o.external.turn("k", func(release ReleaseFunc, err error) {
					mu.Lock()
					defer mu.Unlock()
					answers = append(answers, err)
					if release != nil {
						turns++
					}
				})
				synctest.Wait()
				o.end()
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				switch {
				case len(answers) != 1:
					t.Fatalf("%d answers", len(answers))
				case (turns == 1) != c.turn, panicked(answers[0]) != c.crashed, c.err != nil && !errors.Is(answers[0], c.err):
					t.Errorf("%d turns, and the answer %v", turns, answers[0])
				}
			})
		})
	}
}

// laneUse opens and closes lanes of a table.
type laneUse struct {
	laneTable
	open []*place
	made int
}

func (u *laneUse) come(n int) {
	for range n {
		u.made++
		p := newPlace(nil)
		u.join(fmt.Sprint(u.made), uint64(u.made), &p.turn)
		u.open = append(u.open, p)
	}
}

func (u *laneUse) leaves(n int) {
	for _, p := range u.open[len(u.open)-n:] {
		u.leave(&p.turn)
	}
	u.open = u.open[:len(u.open)-n]
}

// A table that was large once, and always had some lane, stayed so, and its stream had no mail runs any more.
func TestLaneTableThatIsMostlyEmptyForLongBecomesSmall(t *testing.T) {
	u := laneUse{laneTable: laneTable{bounds: newLaneResolver(OrderingOptions{}).flow}}
	u.come(10_000)
	u.leaves(9_990)
	large := len(u.buckets)
	for range 2 * large {
		u.come(1)
		u.leaves(1)
	}
	if n := len(u.buckets); n > 2*idleBuckets {
		t.Errorf("%d lanes have %d buckets, of %d", u.lanes, n, large)
	}
	var busy busyKeys
	if !u.hashesInto(&busy) || busy.n != 10 {
		t.Errorf("%d busy keys are found, want 10", busy.n)
	}
	for _, p := range u.open {
		if l := u.find(p.lane.name, p.lane.hash); l != p.lane {
			t.Errorf("lane %q is lost", p.lane.name)
		}
	}
}

// With a key that is always slow there is always a lane. A table that had become large kept its stream from mail runs, whose
// ordinary runs then kept the table large.
func TestAFewLanesInALargeTableAreBusyKeys(t *testing.T) {
	u := laneUse{laneTable: laneTable{bounds: newLaneResolver(OrderingOptions{}).flow}}
	var busy busyKeys
	few := busy.room()
	u.come(10_000)
	u.leaves(10_000 - few - 1)
	if u.hashesInto(&busy) {
		t.Errorf("%d lanes are few", u.lanes)
	}
	u.leaves(1)
	busy.clear()
	if !u.hashesInto(&busy) || busy.n != few {
		t.Errorf("%d busy keys are found, want %d", busy.n, few)
	}
	for _, p := range u.open {
		if l := u.find(p.lane.name, p.lane.hash); l != p.lane || !busy.has(p.lane.hash) {
			t.Errorf("lane %q is lost", p.lane.name)
		}
	}
}

// One that is full and nearly empty in turns keeps its size: to grow anew each time would cost more than it spares.
func TestLaneTableThatIsFullAgainAndAgainKeepsItsSize(t *testing.T) {
	u := laneUse{laneTable: laneTable{bounds: newLaneResolver(OrderingOptions{}).flow}}
	u.come(1001)
	large := &u.buckets[0]
	for range 20 {
		u.leaves(1000)
		u.come(1000)
		if &u.buckets[0] != large {
			t.Fatal("it was made anew")
		}
	}
}

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

// What recv returns while a shutdown begins may be put before the reader has seen that.
func TestMailboxOfAStoppedStreamReceivesNothing(t *testing.T) {
	for _, drain := range []bool{false, true} {
		r := NewReceiver(NewGate(nil, nil, nil), NewEngine(func(context.Context, Message[int]) error { return nil }, RetryOptions{}))
		s := r.newStream(t.Context(), nil)
		s.stop(drain)
		if ok, _ := s.box.put(&entry[int]{seq: 1}, &r.chunks); ok {
			t.Errorf("with drain %v a message was received after the shutdown", drain)
		}
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

// The chunk of a stream with little pending was put among full ones when others had come behind it: so chunks of six became
// more and more of those that busy streams are given.
func TestMailboxLeavesOnlyFullChunksToOthers(t *testing.T) {
	var b mailbox[int]
	var pool sync.Pool
	post(t, &b, &pool, 1)
	small := b.first
	post(t, &b, &pool, make([]int, 200)...)
	if got := len(collect(&b, &pool)); got != 201 {
		t.Fatalf("it gives %d", got)
	}
	for {
		k, _ := pool.Get().(*chunk[int])
		if k == nil {
			break
		}
		if n := cap(k.list); n != chunkLength[int](fullChunk) {
			t.Errorf("a chunk with room for %d is among the full ones", n)
		}
	}
	post(t, &b, &pool, 2)
	if b.first != small {
		t.Error("the stream has not kept its own")
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

// windowTable is a byteWindow whose members, called by letters, do what a text says:
//
//	+a     joins           -a     leaves
//	a+3    reads 3 bytes   a-3    finishes them
//	a?     waits           a!     stops waiting
type windowTable struct {
	*byteWindow
	members map[string]*byteShare
	wakes   map[string]chan struct{}
}

func newWindowTable(bound int64) *windowTable {
	return &windowTable{newByteWindow(bound), map[string]*byteShare{}, map[string]chan struct{}{}}
}

func (w *windowTable) do(steps string) {
	for step := range strings.FieldsSeq(steps) {
		name, n := step[:1], int64(0)
		switch {
		case name == "+":
			name = step[1:]
			w.wakes[name] = make(chan struct{}, 1)
			w.members[name] = w.join(w.wakes[name])
		case name == "-":
			name = step[1:]
			w.members[name].leave()
			delete(w.members, name)
		case step[1:] == "?":
			w.members[name].wait()
		case step[1:] == "!":
			w.members[name].stopWaiting()
		default:
			if _, err := fmt.Sscan(step[1:], &n); err != nil {
				panic(err)
			}
			if n > 0 {
				w.members[name].add(n)
			} else {
				w.members[name].sub(-n)
			}
		}
	}
}

// that returns the members of which has holds, sorted and joined.
func (w *windowTable) that(has func(name string) bool) string {
	var names []string
	for name := range w.members {
		if has(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, "")
}

func (w *windowTable) readers() string {
	return w.that(func(name string) bool { return w.members[name].mayRead() })
}

// woken returns who was woken since it was called last.
func (w *windowTable) woken() string { return w.that(w.wasWoken) }

func (w *windowTable) wasWoken(name string) bool {
	select {
	case <-w.wakes[name]:
		return true
	default:
		return false
	}
}

func TestByteWindowSaysWhoMayRead(t *testing.T) {
	for _, c := range []struct {
		name  string
		bound int64
		steps string
		want  string
	}{
		{"below the bound everybody", 10, "+a +b a+9", "ab"},
		{"alone at the bound nobody", 10, "+a a+10", ""},
		{"at the bound one that has nothing", 10, "+a +b a+10", "b"},
		{"at the bound one below its share", 10, "+a +b a+10 b+4", "b"},
		{"at the bound not one that has its share", 10, "+a +b a+10 b+5", ""},
		{"a share that is no whole number counts exactly", 10, "+a +b +c a+10 b+3 c+4", "b"},
		{"who comes makes shares smaller", 10, "+a +b a+10 b+4 +c", "c"},
		{"who leaves makes shares larger", 10, "+a +b +c a+10 b+4 -c", "b"},
		{"one message far above the bound is one member's", 10, "+a +b a+1000", "b"},
		{"at twice the bound one that has nothing", 10, "+a a+10 +b b+10 +c +d c+2", "d"},
		{"just below twice the bound one below its share too", 12, "+a a+12 +b b+6 +c c+4 +d d+1", "d"},
		{"more members than bytes", 2, "+a +b +c a+2 b+1", "c"},
		{"messages of no size", 2, "+a +b a+2", "b"},
		{"what finishes makes room", 10, "+a +b a+10 b+5 a-1 b-1", "b"},
		{"the largest bound", math.MaxInt64, "+a +b a+1", "ab"},
		{"the largest bound, full", math.MaxInt64, "+a +b a+9223372036854775807", "b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWindowTable(c.bound)
			w.do(c.steps)
			if got := w.readers(); got != c.want {
				t.Errorf("%q may read, want %q", got, c.want)
			}
		})
	}
}

func TestByteWindowWakesWhomAChangeConcerns(t *testing.T) {
	for _, c := range []struct {
		name  string
		bound int64
		steps string
		then  string
		want  string
	}{
		{"below the bound the longest waiting", 10, "+a +b +c +d a+3 b+3 c+3 d+5 b? a? c?", "d-5", "b"},
		{"which wakes the next", 10, "+a +b +c +d a+3 b+3 c+3 d+5 b? a? c?", "d-5 b!", "ab"},
		{"nobody else while the total stays below", 10, "+a +b +c +d a+3 b+3 c+2 d+5 b? a?", "d-4 d-1", "b"},
		{"nobody by a finish above the bound", 10, "+a +b +c a+9 b+9 b?", "a-1", ""},
		{"one that falls below its share itself", 10, "+a +b +c a+9 b+9 b? a?", "b-7", "b"},
		{"one that has nothing left", 10, "+a +b a+30 b+9 b?", "b-9", "b"},
		{"those whose share grows as another leaves", 10, "+a +b +c a+10 b+4 a? b?", "-c", "b"},
		{"those below their share when it is below twice the bound", 12, "+a a+12 +b b+6 +c c+4 +d d+2 a? d?", "b-1", "d"},
		{"all when it falls from above twice the bound to below the bound", 6, "+a +b +c a+2 b+1 c+20 a? b?", "c-20", "ab"},
		{"nobody who has stopped waiting", 10, "+a +b a+5 b+5 b? a? b! a!", "b-1", ""},
		{"the next of one that stops waiting for another reason", 10, "+a +b a+5 b+5 b? a?", "a-1 b!", "ab"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWindowTable(c.bound)
			w.do(c.steps)
			if early := w.woken(); early != "" {
				t.Fatalf("%q woken before anything has changed", early)
			}
			w.do(c.then)
			if got := w.woken(); got != c.want {
				t.Errorf("%q woken, want %q", got, c.want)
			}
		})
	}
}

func TestByteWindowShowsRoomThatCameBeforeTheWaitBegan(t *testing.T) {
	w := newWindowTable(10)
	w.do("+a +b a+6 b+6")
	if !w.members["a"].wait() {
		t.Fatal("a need not wait")
	}
	w.do("a! b-6")
	if w.members["a"].wait() {
		t.Error("a waits for room that is there")
	}
}

// In whatever order members read, finish, come and go: the total stays below twice the bound and one message a member,
// and nobody waits who may read and is told by nobody.
func TestByteWindowHoldsItsTotalAndForgetsNobody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bound := rapid.Int64Range(1, 40).Draw(t, "bound")
		w := newWindowTable(bound)
		pending := map[string][]int64{}
		waits := map[string]bool{}
		names := strings.Split("abcdefgh", "")
		read := func(name string) {
			n := rapid.Int64Range(0, 15).Draw(t, "n")
			w.members[name].add(n)
			pending[name] = append(pending[name], n)
		}
		awake := func() { // those who were woken look again, one after the other, and maybe read before the next looks
			for again := true; again; {
				again = false
				for _, name := range rapid.Permutation(names).Draw(t, "order") {
					if s := w.members[name]; s != nil && waits[name] && w.wasWoken(name) {
						again = true
						s.stopWaiting()
						if waits[name] = false; s.mayRead() && rapid.Bool().Draw(t, "reads") {
							read(name)
						} else if waits[name] = s.wait(); !waits[name] {
							s.stopWaiting()
						}
					}
				}
			}
		}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			name := rapid.SampledFrom(names).Draw(t, "name")
			s := w.members[name]
			switch step := rapid.SampledFrom([]string{"read", "read", "read", "finish", "finish", "go"}).Draw(t, "step"); {
			case s == nil:
				w.do("+" + name)
			case step == "read" && !waits[name]:
				if !s.mayRead() {
					if waits[name] = s.wait(); !waits[name] {
						t.Fatalf("%s must not read, and need not wait", name)
					}
					break
				}
				read(name)
			case step == "finish" && len(pending[name]) > 0:
				s.sub(pending[name][0])
				pending[name] = pending[name][1:]
			case step == "go" && len(pending[name]) == 0:
				if waits[name] {
					waits[name] = false
					s.stopWaiting()
				}
				w.do("-" + name)
			}
			awake()
			excess := int64(0)
			for _, sizes := range pending {
				if len(sizes) > 0 {
					excess += sizes[len(sizes)-1]
				}
			}
			if total := w.total.Load(); total > 2*bound+excess {
				t.Fatalf("%d bytes are pending, more than 2 x %d and one message each (%d)", total, bound, excess)
			}
			for name := range w.members {
				if waits[name] && w.members[name].mayRead() {
					t.Fatalf("%s waits, and may read", name)
				}
			}
		}
	})
}

// Real goroutines: one that is not woken leaves its bubble at a standstill.
func TestByteWindowWakesReadersOfAnySchedule(t *testing.T) {
	for _, bound := range []int64{1, 10, 100} {
		synctest.Test(t, func(t *testing.T) {
			w := newByteWindow(bound)
			var members sync.WaitGroup
			for i := range 8 {
				members.Go(func() {
					var finishing sync.WaitGroup
					wake := make(chan struct{}, 1)
					for range 20 { // comes and goes
						s := w.join(wake)
						for n := range int64(50) {
							for !s.mayRead() {
								if s.wait() {
									<-wake
								}
								s.stopWaiting()
							}
							s.add(n % 7)
							finishing.Go(func() {
								if i%2 == 0 {
									time.Sleep(time.Duration(n) * time.Nanosecond)
								}
								s.sub(n % 7)
							})
						}
						finishing.Wait()
						s.leave()
					}
				})
			}
			members.Wait()
			if w.total.Load() != 0 || w.members.Load() != 0 || w.waits.Load() != 0 || w.first != nil || w.last != nil {
				t.Errorf("left: %d bytes, %d members, %d waiting", w.total.Load(), w.members.Load(), w.waits.Load())
			}
		})
	}
}

type (
	measured struct{ n, _, _, _ int }
	measurer interface{ Size() int }
	line     string
	packet   []byte
)

func (m measured) Size() int { return m.n }

func sizeAndAllocs[T any](t *testing.T, v T) (size int, allocs float64) {
	t.Helper()
	of := sizeFunc[T]()
	if of == nil {
		t.Fatalf("a %T has no size", v)
	}
	return of(v), testing.AllocsPerRun(100, func() { of(v) })
}

func TestSizeOfAMessageIsTakenWithoutAnAllocation(t *testing.T) {
	for name, size := range map[string]func(*testing.T) (int, float64){
		"string":                 func(t *testing.T) (int, float64) { return sizeAndAllocs(t, "12345") },
		"a string type":          func(t *testing.T) (int, float64) { return sizeAndAllocs(t, line("12345")) },
		"bytes":                  func(t *testing.T) (int, float64) { return sizeAndAllocs(t, []byte("12345")) },
		"a bytes type":           func(t *testing.T) (int, float64) { return sizeAndAllocs(t, packet("12345")) },
		"a struct with Size":     func(t *testing.T) (int, float64) { return sizeAndAllocs(t, measured{n: 5}) },
		"a pointer with Size":    func(t *testing.T) (int, float64) { return sizeAndAllocs(t, &measured{n: 5}) },
		"an interface with Size": func(t *testing.T) (int, float64) { return sizeAndAllocs[measurer](t, measured{n: 5}) },
		"proto":                  func(t *testing.T) (int, float64) { return sizeAndAllocs(t, wrapperspb.String("123")) },
	} {
		if n, allocs := size(t); n != 5 || allocs != 0 {
			t.Errorf("%s: size %d by %v allocations, want 5 by none", name, n, allocs)
		}
	}
}
