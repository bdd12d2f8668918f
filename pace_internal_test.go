package flow

import (
	"testing"
	"time"
)

const (
	quickTime = stillTime / 100
	slowTime  = time.Millisecond
)

// grown returns a pace whose runs have the length, as they come to have it.
func grown(t *testing.T, length int32) pace {
	t.Helper()
	p := newPace()
	for range 10 * maxRun {
		if p.length == length {
			return p
		}
		p.observe(p.length, quickTime*time.Duration(p.length), 1, false, true)
	}
	t.Fatalf("runs of %d messages never come; they have %d", length, p.length)
	return p
}

func TestPaceBeginsWithRunsOfOneMessage(t *testing.T) {
	p := newPace()
	for range quickRuns {
		if p.length != 1 {
			t.Fatalf("runs have %d messages before %d were quick", p.length, quickRuns)
		}
		p.observe(1, 0, 1, false, true)
	}
	p.observe(1, 0, 1, false, true)
	if p.length != 2 {
		t.Errorf("runs have %d messages after %d that were quick", p.length, quickRuns+1)
	}
}

func TestPaceGrowsWhileRunsAreQuick(t *testing.T) {
	p := grown(t, 2)
	for want := int32(4); want <= maxRun; want *= 2 {
		p.observe(p.length, 0, 1, false, true)
		if p.length != want {
			t.Fatalf("runs have %d messages, want %d", p.length, want)
		}
	}
	p.observe(p.length, 0, 1, false, true)
	if p.length != maxRun {
		t.Errorf("runs have %d messages, more than %d", p.length, maxRun)
	}
}

func TestPaceLooksAtWhatARunTook(t *testing.T) {
	for name, c := range map[string]struct {
		n    int32
		took time.Duration
		more bool
		want int32
	}{
		"quick":                               {16, runTime / 4, true, 32},
		"half of the time":                    {16, runTime / 2, true, 32},
		"more than half of the time":          {16, runTime/2 + 16, true, 16},
		"all of the time":                     {16, runTime, true, 16},
		"too long":                            {16, 2 * runTime, true, 8},
		"quick, and nothing else waited":      {16, 0, false, 16},
		"quick, and shorter than it may be":   {8, 0, true, 16},
		"short, and too long for its length":  {4, runTime, true, 8},
		"short, but its messages are in time": {4, runTime / 8, true, 16},
	} {
		t.Run(name, func(t *testing.T) {
			p := grown(t, 16)
			p.observe(c.n, c.took, 1, false, c.more)
			if p.length != c.want {
				t.Errorf("runs have %d messages, want %d", p.length, c.want)
			}
		})
	}
}

func TestPaceNeverHasRunsOfLessThanOneMessage(t *testing.T) {
	p := grown(t, 4)
	for range 8 {
		p.observe(2, time.Second, 1, false, true)
	}
	if p.length != 1 {
		t.Errorf("runs have %d messages", p.length)
	}
}

func TestPaceBeginsAnewAfterARunThatStoodStill(t *testing.T) {
	p := grown(t, maxRun)
	p.stoodStill(7)
	if p.length != 1 || !p.isSlow(7) {
		t.Fatalf("runs have %d messages, and its key is slow: %v", p.length, p.isSlow(7))
	}
	for range quickRuns {
		p.observe(1, 0, 1, false, true)
	}
	if p.length != 1 {
		t.Errorf("runs have %d messages before %d were quick again", p.length, quickRuns)
	}
}

// Otherwise a stream of which now and then a message stands still would hold strangers up again and again.
func TestPaceNeedsTwiceAsManyQuickRunsAfterEachThatStoodStill(t *testing.T) {
	p := newPace()
	for needed := int32(2 * quickRuns); needed <= 2*mostQuick; needed *= 2 {
		p.stoodStill(7)
		for range min(needed, mostQuick) {
			p.observe(1, 0, 1, false, true)
			if p.length != 1 {
				t.Fatalf("runs have %d messages before %d were quick again", p.length, min(needed, mostQuick))
			}
		}
		p.observe(1, 0, 1, false, true)
		if p.length != 2 {
			t.Fatalf("runs have %d messages after %d that were quick", p.length, min(needed, mostQuick)+1)
		}
	}
	for p.length < maxRun {
		p.observe(p.length, 0, 1, false, true)
	}
	p.stoodStill(7)
	for range 2*quickRuns + 1 {
		p.observe(1, 0, 1, false, true)
	}
	if p.length != 2 {
		t.Errorf("runs have %d messages: what stood still long ago still counts", p.length)
	}
}

func TestPaceASlowMessageInBetweenBeginsTheCountAnew(t *testing.T) {
	p := newPace()
	for range 3 * quickRuns {
		for range quickRuns {
			p.observe(1, 0, 1, false, true)
		}
		p.observe(1, slowTime, 2, false, true)
	}
	if p.length != 1 {
		t.Errorf("runs have %d messages", p.length)
	}
}

func TestPaceKnowsSlowKeysUntilTheyAreQuickAgain(t *testing.T) {
	p := newPace()
	if p.isSlow(5) {
		t.Error("a key is slow from the start")
	}
	p.observe(1, slowTime, 5, false, true)
	if !p.isSlow(5) || p.isSlow(6) || p.isSlow(5+slowKeys) {
		t.Error("the key whose message was slow, and no other, is slow")
	}
	p.observe(1, stillTime, 5, true, true) // alone, and not quick
	if !p.isSlow(5) {
		t.Error("a message that was not quick makes its key quick")
	}
	p.observe(1, quickTime, 5, true, true)
	if p.isSlow(5) {
		t.Error("a quick message leaves its key slow")
	}
}

func TestPaceMessagesWithoutOrderAreNeverOfASlowKey(t *testing.T) {
	p := newPace()
	p.observe(1, slowTime, 0, false, true)
	if p.isSlow(0) {
		t.Error("the hash 0 is no key")
	}
}

func TestPaceARunOfASlowKeyDoesNotChangeTheLength(t *testing.T) {
	p := grown(t, 8)
	p.observe(1, time.Second, 5, true, true)
	if p.length != 8 {
		t.Errorf("runs have %d messages", p.length)
	}
}

func TestPaceLetsOneOfTheLongestRunsBeOut(t *testing.T) {
	long, shorter := grown(t, maxRun), grown(t, maxRun/2)
	if n := long.most(4, false); n != 1 {
		t.Errorf("%d of the longest runs may be out", n)
	}
	if n := shorter.most(4, false); n <= 4 {
		t.Errorf("%d of shorter ones may be out on 4 processors", n)
	}
}
