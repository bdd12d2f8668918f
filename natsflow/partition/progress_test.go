package partition

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// positions draws ascending positions, near each other or far apart.
func positions(t *rapid.T, name string, least, most int) []uint64 {
	var all []uint64
	last := uint64(0)
	step := rapid.OneOf(rapid.Uint64Range(1, 3), rapid.Uint64Range(1, 1<<40))
	for _, s := range rapid.SliceOfN(step, least, most).Draw(t, name) {
		last += s
		all = append(all, last)
	}
	return all
}

func TestProgressSurvivesItsBinaryFormWhenItFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		open := positions(t, "open", 0, 100)
		top := rapid.Uint64Range(0, 1<<50).Draw(t, "top")
		if len(open) > 0 {
			top += open[len(open)-1]
		}
		p := newProgress(top, open)
		b, err := p.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var q Progress
		if err := q.UnmarshalBinary(b); err != nil || !q.Equal(p) {
			t.Fatalf("%+v became %+v (%v)", p, q, err)
		}
	})
}

func TestProgressThatDoesNotFitOnlyUnsettles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		open := positions(t, "open", 500, 3000)
		p := newProgress(rapid.Uint64Range(1<<60, math.MaxUint64).Draw(t, "top"), open)
		b, _ := p.MarshalBinary()
		if len(b) > maxProgress {
			t.Fatalf("%d bytes", len(b))
		}
		var q Progress
		if err := q.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		if q.Frontier != p.Frontier || q.Top > p.Top {
			t.Fatalf("%d to %d became %d to %d", p.Frontier, p.Top, q.Frontier, q.Top)
		}
		for _, position := range append(slices.Clone(open), p.Top, q.Top, q.Top+1, p.Frontier) {
			if q.Settled(position) && !p.Settled(position) {
				t.Fatalf("%d has become settled", position)
			}
		}
	})
}

// A progress of every window's size that users are likely to choose fits as a whole: eight partitions of even load.
func TestProgressOfTheDefaultWindowFits(t *testing.T) {
	var open []uint64
	for i := range uint64(DefaultWindow) {
		open = append(open, 1<<40+i*8*2)
	}
	p := newProgress(1<<41, open)
	b, _ := p.MarshalBinary()
	var q Progress
	if err := q.UnmarshalBinary(b); err != nil || !q.Equal(p) {
		t.Fatalf("%d bytes are not all of it: %v", len(b), err)
	}
}

func TestProgressRefusesWhatItCannotHaveWritten(t *testing.T) {
	for name, data := range map[string][]byte{
		"nothing":            {},
		"a cut number":       {0x80},
		"a long form":        {0x81, 0x00},
		"beyond the top":     {5, 6},
		"a distance of 0":    {5, 1, 0},
		"an overflow":        {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02},
		"more than it takes": make([]byte, maxProgress+1),
	} {
		p := Progress{Frontier: 7, Top: 7}
		if err := p.UnmarshalBinary(data); err == nil || p.Frontier != 7 {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestProgressSaysWhatIsSettled(t *testing.T) {
	p := newProgress(10, []uint64{4, 7})
	for position, want := range map[uint64]bool{0: false, 1: true, 3: true, 4: false, 5: true, 6: true, 7: false, 8: true, 10: true, 11: false} {
		if p.Settled(position) != want {
			t.Errorf("Settled(%d) = %v", position, !want)
		}
	}
}

func FuzzProgress(f *testing.F) {
	f.Add([]byte{10, 3, 2})
	f.Fuzz(func(t *testing.T, data []byte) {
		var p Progress
		if p.UnmarshalBinary(data) != nil {
			return
		}
		b, _ := p.MarshalBinary()
		if !slices.Equal(b, data) {
			t.Errorf("%x is %+v, which is %x", data, p, b)
		}
	})
}
