package flow

import (
	"testing"

	"pgregory.net/rapid"
)

// A key that has a lane and is not seen to would run beside the one that has its turn.
func TestFilterMissesNoLane(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newLaneResolver(OrderingOptions{Mode: OrderingKeyedFIFO})
		tb := laneTable{bounds: r.bounds()}
		keys := rapid.SliceOfNDistinct(rapid.StringN(0, 20, 20), 0, 2*maxFilterLanes, rapid.ID).Draw(t, "keys")
		for _, key := range keys {
			hash, _ := r.place(key)
			tb.join(key, hash, &turn{spare: new(lane)})
		}
		var f laneFilter
		f.set(&tb)
		for _, key := range keys {
			hash, _ := r.place(key)
			if !f.mayHave(key) || !f.mayHaveHash(hash) {
				t.Fatalf("the filter does not know of %q's lane", key)
			}
		}
	})
}

// Each filter is to let most strangers pass by itself: the first where keys end in different ways, the second always.
func TestFilterTellsStrangers(t *testing.T) {
	r := newLaneResolver(OrderingOptions{Mode: OrderingKeyedFIFO})
	for name, c := range map[string]struct {
		key   func(i int) string
		first bool
	}{
		"device-0001":       {func(i int) string { return "device-" + digits(i) }, true},
		"1":                 {digits, true},
		"0001@example.com":  {func(i int) string { return digits(i) + "@example.com" }, false},
		"device-0001/gauge": {func(i int) string { return "device-" + digits(i) + "/gauge" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			tb := laneTable{bounds: r.bounds()}
			for i := range maxFilterLanes {
				hash, _ := r.place(c.key(i))
				tb.join(c.key(i), hash, &turn{spare: new(lane)})
			}
			var f laneFilter
			f.set(&tb)
			const strangers = 4096
			first, second := 0, 0
			for i := range strangers {
				key := c.key(maxFilterLanes + i)
				hash, _ := r.place(key)
				if f.mayHave(key) {
					first++
				}
				if f.mayHaveHash(hash) {
					second++
				}
			}
			if c.first && first > strangers/4 || second > strangers/4 {
				t.Errorf("of %d strangers %d pass for known by their end and %d by their hash", strangers, first, second)
			}
		})
	}
	var none laneFilter
	if none.set(&laneTable{}); none.mayHave("a") {
		t.Error("a filter of no lanes knows a key")
	}
}

func digits(i int) string {
	return string([]byte{'0' + byte(i/1000%10), '0' + byte(i/100%10), '0' + byte(i/10%10), '0' + byte(i%10)})
}
