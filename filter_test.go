package flow

import (
	"fmt"
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
			if !f.mayHave(key) {
				t.Fatalf("the filter does not know of %q's lane", key)
			}
		}
	})
}

func TestFilterTellsStrangers(t *testing.T) {
	r := newLaneResolver(OrderingOptions{Mode: OrderingKeyedFIFO})
	for _, end := range []string{"", "/gauge"} {
		tb := laneTable{bounds: r.bounds()}
		key := func(i int) string { return fmt.Sprintf("device-%04d%s", i, end) }
		for i := range maxFilterLanes {
			hash, _ := r.place(key(i * 100))
			tb.join(key(i*100), hash, &turn{spare: new(lane)})
		}
		var f laneFilter
		f.set(&tb)
		passed := 0
		for i := range 10_000 {
			if f.mayHave(key(i)) {
				passed++
			}
		}
		if passed > 2500 {
			t.Errorf("of 10,000 keys like %s, %d pass for some of the %d that have lanes", key(0), passed, maxFilterLanes)
		}
	}
}
