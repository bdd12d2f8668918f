package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// stored is what a server would tell that had run these records, "key text" each, in this order.
func stored(records ...string) []keyState {
	r := replay{}
	for _, rec := range records {
		key, text, _ := strings.Cut(rec, " ")
		r.add(key, text)
	}
	var all []keyState
	for _, key := range slices.Sorted(maps.Keys(r)) {
		all = append(all, keyState{key, r[key]})
	}
	return all
}

func TestReplayNamesTheFirstKeyThatDiffers(t *testing.T) {
	want := replay{}
	for _, rec := range [][2]string{{"a", "1"}, {"b", "1"}, {"a", "2"}, {"b", "2"}, {"c", "1"}} {
		want.add(rec[0], rec[1])
	}
	for name, c := range map[string]struct {
		got  []keyState
		want string
	}{
		"equal":              {stored("a 1", "b 1", "a 2", "b 2", "c 1"), ""},
		"other keys between": {stored("c 1", "b 1", "b 2", "a 1", "a 2"), ""},
		"order":              {stored("a 1", "b 2", "a 2", "b 1", "c 1"), `key "b": its 2 records were stored in another order`},
		"twice":              {stored("a 1", "a 1", "b 1", "a 2", "b 2", "c 1"), `key "a": 3 records stored, 2 sent`},
		"lost":               {stored("a 1", "b 1", "a 2", "c 1"), `key "b": 1 records stored, 2 sent`},
		"key lost":           {stored("a 1", "b 1", "b 2", "a 2"), `key "c": 0 records stored, 1 sent`},
		"all lost":           {nil, `key "a": 0 records stored, 2 sent`},
		"foreign":            {stored("a 1", "b 1", "a 2", "b 2", "c 1", "d 1"), `key "d" is stored and was not sent`},
	} {
		if got := want.difference(c.got); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
