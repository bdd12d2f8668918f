package partition

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"
)

// Over any number of holders, each of which settles some of what it reads in any order, commits now and then and dies or
// hands over, every message is run until it is settled in the record, none that the record calls settled is run again, and
// each holder is given exactly the complement of what the one before had committed.
func TestEachHolderRunsExactlyWhatTheRecordDoesNotCallSettled(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log := positions(t, "log", 0, 60)
		window := rapid.IntRange(1, 20).Draw(t, "window")
		record := Progress{}
		for range 50 {
			l := NewLedger(record, window)
			next, _ := slices.BinarySearch(log, record.Frontier+1)
			settled := map[uint64]bool{} // flow's numbers
			at := map[uint64]uint64{}
			running := []uint64{} // flow's numbers
			seq := uint64(0)
			died := false
			for step := range rapid.IntRange(1, 80).Draw(t, "steps") {
				switch rapid.IntRange(0, 5).Draw(t, "step") {
				case 0, 1, 2: // read
					if next == len(log) || len(l.open) >= window {
						continue
					}
					position := log[next]
					next++
					run, lost := l.Read(position)
					if len(lost) > 0 {
						t.Fatalf("%v are lost", lost)
					}
					if run == record.Settled(position) && position <= l.before || !run && position > l.before {
						t.Fatalf("%d is to run: %v, with the record %+v", position, run, record)
					}
					if run {
						seq++
						at[seq] = position
						running = append(running, seq)
					}
				case 3: // settle
					if len(running) > 0 {
						i := rapid.IntRange(0, len(running)-1).Draw(t, "which")
						settled[running[i]] = true
						running = slices.Delete(running, i, i+1)
					}
				case 4: // commit
					p := l.Progress(func(s uint64) bool { return settled[s] })
					for s, position := range at {
						if p.Settled(position) != settled[s] {
							t.Fatalf("%d is settled: %v", position, p.Settled(position))
						}
					}
					if p.Frontier < record.Frontier {
						t.Fatalf("the frontier goes back from %d to %d", record.Frontier, p.Frontier)
					}
					for _, position := range log {
						if record.Settled(position) && !p.Settled(position) {
							t.Fatalf("%d is settled no more: %+v became %+v", position, record, p)
						}
					}
					record = p
					l.Committed(p)
				case 5:
					died = step > 20
				}
				if died {
					break
				}
			}
			if !died { // a hand-over
				record = l.Progress(func(s uint64) bool { return settled[s] })
			}
			if len(log) == 0 || record.Frontier >= log[len(log)-1] {
				return
			}
		}
	})
}

func TestAWindowFullOfUncommittedMessagesHoldsTheReaderBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLedger(Progress{}, 4)
		all := func(uint64) bool { return true }
		for i := range uint64(4) {
			if err := l.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.Read(10 + i)
		}
		ctx, cancel := context.WithCancel(t.Context())
		waited := make(chan error, 1)
		go func() { waited <- l.Wait(ctx) }()
		synctest.Wait()
		p := l.Progress(all) // settled, but the record does not say so
		select {
		case err := <-waited:
			t.Fatalf("Wait returned %v", err)
		default:
		}
		l.Committed(p)
		if err := <-waited; err != nil {
			t.Error(err)
		}
		for i := range uint64(4) {
			l.Read(20 + i)
		}
		go func() { waited <- l.Wait(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-waited; err == nil {
			t.Error("Wait returned nil when its context had ended")
		}
	})
}

func TestAKeyThatIsStuckLeavesRoomForOthers(t *testing.T) {
	l := NewLedger(Progress{}, 2)
	l.Read(1) // stuck
	for i := uint64(2); i < 1000; i++ {
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Read(i)
		p := l.Progress(func(s uint64) bool { return s > 1 })
		if p.Frontier != 0 || p.Top != i || len(p.Unsettled) != 1 {
			t.Fatalf("%+v after %d", p, i)
		}
		l.Committed(p)
	}
}

func TestWhatTheLogHasLostIsReportedOnceAndSettled(t *testing.T) {
	l := NewLedger(newProgress(10, []uint64{3, 5, 6, 9}), 10)
	none := func(uint64) bool { return false }
	if run, lost := l.Read(5); !run || !slices.Equal(lost, []uint64{3}) {
		t.Fatalf("%v, %v", run, lost)
	}
	if run, lost := l.Read(12); !run || !slices.Equal(lost, []uint64{6, 9}) {
		t.Fatalf("%v, %v", run, lost)
	}
	if p := l.Progress(none); !p.Equal(newProgress(12, []uint64{5, 12})) {
		t.Errorf("%+v", p)
	}
}
