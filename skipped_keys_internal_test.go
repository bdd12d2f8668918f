package flow

import (
	"slices"
	"strings"
	"testing"
	"unsafe"
)

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
