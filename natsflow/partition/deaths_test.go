package partition

import (
	"encoding/json"
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestDeathsFindOutWhoKills(t *testing.T) {
	const poison = 2
	rapid.Check(t, func(t *rapid.T) {
		killers := map[uint64]bool{}
		n := rapid.Uint64Range(1, 30).Draw(t, "messages")
		for range rapid.IntRange(0, 3).Draw(t, "killers") {
			killers[rapid.Uint64Range(1, n).Draw(t, "killer")] = true
		}
		window := rapid.IntRange(1, 40).Draw(t, "window")
		quarantine := rapid.IntRange(1, 3).Draw(t, "quarantine")
		var d Deaths
		settled := uint64(0)
		deaths := 0
		var blamed []uint64
		for settled < n {
			// A holder: it reads what is not settled, in order, and runs it, or dies of it.
			d.Held(window)
			died := false
			first := settled
			for position := settled + 1; position <= n && !died; position++ {
				rank := position - first - 1
				inDoubt := d.InDoubt(position, rank)
				if rank+1 == uint64(d.Reach) {
					d.NotBeyond(position)
				}
				suspect := inDoubt && d.Count >= quarantine
				if suspect && d.Of(position) >= poison {
					blamed = append(blamed, position)
				} else {
					if suspect {
						d.Suspect = position
					}
					died = killers[position]
				}
				if !died {
					d.Suspect = 0
					settled = position
					if suspect || position%7 == 0 { // else the commit is late
						d.Settled(newProgress(settled, nil))
					}
				}
			}
			if died {
				if deaths++; deaths > len(killers)*(quarantine+poison) {
					t.Fatalf("%d deaths of %d killers: %+v", deaths, len(killers), d)
				}
				d.Died()
				d.NotBeyond(n)
			}
		}
		for _, position := range blamed {
			if !killers[position] {
				t.Fatalf("%d is innocent", position)
			}
		}
		if len(blamed) != len(killers) {
			t.Fatalf("%v are blamed, %v kill", blamed, killers)
		}
	})
}

func TestAMessageIsInDoubtOnlyIfADeadHolderMayHaveHadIt(t *testing.T) {
	var d Deaths
	d.Held(3)
	if d.InDoubt(1, 0) {
		t.Error("in doubt though nobody died")
	}
	d.Died()
	d.Held(3)
	if !d.InDoubt(math.MaxUint64, 2) || d.InDoubt(5, 3) {
		t.Error("in doubt are the first three, wherever they are")
	}
	d.NotBeyond(10)
	if !d.InDoubt(10, 2) || d.InDoubt(11, 2) {
		t.Error("what was stored after the death is not in doubt")
	}
	d.Settled(newProgress(9, nil))
	if d.Count != 1 {
		t.Error("cleared too early")
	}
	d.Settled(newProgress(10, nil))
	if d.Count != 0 || d.Doubt != 0 {
		t.Errorf("not cleared: %+v", d)
	}
}

// A holder with a small window after one with a large window does not shorten what is in doubt.
func TestTheReachOfADoubtIsThatOfItsLargestWindow(t *testing.T) {
	var d Deaths
	d.Held(100)
	d.Died()
	d.Held(2)
	if !d.InDoubt(1, 99) {
		t.Error("forgotten")
	}
	d.NotBeyond(50)
	d.Settled(newProgress(50, nil))
	d.Held(2)
	if d.Reach != 2 {
		t.Errorf("Reach = %d", d.Reach)
	}
}

func TestBlameIsKeptByMessageAndForgottenWhenThatIsSettled(t *testing.T) {
	var d Deaths
	for _, suspect := range []uint64{5, 3, 5, 0, 9} {
		before := d
		d.Suspect = suspect
		d.Died()
		if before.Of(5) > d.Of(5) {
			t.Error("blame is lost")
		}
	}
	if d.Of(5) != 2 || d.Of(3) != 1 || d.Of(9) != 1 || d.Of(4) != 0 || d.Count != 5 || d.Suspect != 0 {
		t.Errorf("%+v", d)
	}
	b, err := json.Marshal(d)
	var same Deaths
	if err != nil || json.Unmarshal(b, &same) != nil || same.Of(5) != 2 || same.Doubt != d.Doubt {
		t.Errorf("%s, %v", b, err)
	}
	d.Settled(newProgress(9, []uint64{5}))
	if d.Of(5) != 2 || d.Of(3) != 0 || d.Of(9) != 0 {
		t.Errorf("%+v", d)
	}
}
