package flow

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestSettledBeforeJoinsStoreAndClient(t *testing.T) {
	stored := func(received uint64, unsettled ...uint64) Progress {
		return Progress{received: received, unsettled: unsettled}
	}
	for _, c := range []struct {
		name   string
		stored Progress
		first  uint64
		skip   []uint64
		want   string // last, holes, ahead
	}{
		{"nothing is known", Progress{}, 1, nil, "0 [] []"},
		{"what the store has", stored(9, 3, 7), 1, nil, "9 [3 7] []"},
		{"below the first all counts as settled", stored(9, 3, 7), 5, nil, "9 [7] []"},
		{"a hole is the first", stored(9, 3, 7), 3, nil, "9 [3 7] []"},
		{"the store is older than the client", stored(9, 3, 7), 20, nil, "19 [] []"},
		{"the store is gone", Progress{}, 20, nil, "19 [] []"},
		{"a hole is given up", stored(9, 3, 7), 1, []uint64{7}, "9 [3] []"},
		{"a settled one is given up", stored(9, 3, 7), 1, []uint64{4}, "9 [3 7] []"},
		{"the last one is given up", stored(9, 3), 1, []uint64{9}, "9 [3] []"},
		{"the next one is given up", stored(9, 3), 1, []uint64{10}, "10 [3] []"},
		{"the next ones are given up", stored(9), 1, []uint64{10, 11, 13}, "11 [] [13]"},
		{"one is given up ahead", stored(9), 1, []uint64{11}, "9 [] [11]"},
		{"one is given up very far ahead", stored(9), 1, []uint64{1 << 62}, "9 [] [4611686018427387904]"},
		{"the first itself is given up", Progress{}, 20, []uint64{20}, "20 [] []"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := mergeSettled(c.stored, c.first, c.skip)
			if got := fmt.Sprint(b.last, b.holes, b.ahead); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// TestSettledBeforeMatchesASet compares it with a plain set of numbers, from the merge through a stream of any length to
// the merge of the next one.
func TestSettledBeforeMatchesASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const top = 40
		set := map[uint64]bool{}
		var progress Progress
		for range rapid.IntRange(1, 4).Draw(t, "streams") {
			first := rapid.Uint64Range(1, top).Draw(t, "first")
			skip := rapid.SliceOfNDistinct(rapid.Uint64Range(first, top), 0, 5, rapid.ID).Draw(t, "skip")
			slices.Sort(skip)
			b := mergeSettled(progress, first, skip)
			for seq := range first {
				set[seq] = true
			}
			highest := first - 1
			last := max(progress.received, highest) // the highest number known of: above it a skip may be told again
			for _, seq := range skip {
				if set[seq] = true; seq == last+1 {
					last = seq
				}
			}
			n := rapid.Uint64Range(0, top-highest).Draw(t, "received")
			var open []uint64
			committed := highest
			for range n {
				highest++
				if b.settled(highest) != set[highest] {
					t.Fatalf("%d is settled: %v, want %v (%+v)", highest, b.settled(highest), set[highest], b)
				}
				if !set[highest] {
					if set[highest] = rapid.Bool().Draw(t, "settles"); !set[highest] {
						open = append(open, highest)
					}
				}
				if len(open) == 0 {
					committed = highest
				}
			}
			last = max(last, highest)
			for slices.Contains(skip, last+1) {
				last++
			}
			progress = b.progress(highest, open)
			want := uint64(0)
			for set[want+1] && want < last {
				want++
			}
			if got := b.through(committed, highest); got != want || progress.Committed() != want {
				t.Fatalf("committed is %d and %d, want %d (%+v)", got, progress.Committed(), want, b)
			}
			if progress.received != last {
				t.Fatalf("knows of 1 to %d, want %d", progress.received, last)
			}
			for seq := uint64(1); seq <= last; seq++ {
				if progress.Settled(seq) != set[seq] {
					t.Fatalf("%d is settled: %v, want %v in %+v", seq, progress.Settled(seq), set[seq], progress)
				}
			}
			for seq := range set { // what is told ahead and not reached is forgotten: the client says it again
				if seq > last {
					delete(set, seq)
				}
			}
		}
	})
}

func TestHolesStayBoundedFromStreamToStream(t *testing.T) {
	const pending = 100
	var p Progress
	for stream := range 50 {
		b := mergeSettled(p, p.Committed()+1, nil)
		// The stream reads what it can while none of it settles: as many as may be pending.
		var open []uint64
		highest := b.first - 1
		for len(open) < pending {
			if highest++; !b.settled(highest) {
				open = append(open, highest)
			}
		}
		// All but every tenth of them settles.
		open = slices.DeleteFunc(open, func(seq uint64) bool { return seq%10 != uint64(stream%10) })
		p = b.progress(highest, open)
		if n := len(p.unsettled); n > pending {
			t.Fatalf("after stream %d there are %d holes", stream, n)
		}
	}
}
