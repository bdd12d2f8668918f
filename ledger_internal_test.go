package flow

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

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
