package natsflow

import (
	"context"
	"errors"
	"maps"
	"testing"
)

// Each renewal of a lease says again how far the partition is: an idle one is purged once.
func TestWhatIsPurgedIsNotPurgedAgain(t *testing.T) {
	down := errors.New("down")
	var err error
	purged := map[int][]uint64{}
	s := newSweeper(func(_ context.Context, partition int, frontier uint64) error {
		purged[partition] = append(purged[partition], frontier)
		return err
	})
	sweep := func(want map[int][]uint64) {
		t.Helper()
		s.sweep(t.Context())
		if !maps.EqualFunc(purged, want, func(a, b []uint64) bool { return len(a) == 1 && len(b) == 1 && a[0] == b[0] }) {
			t.Errorf("purged %v, want %v", purged, want)
		}
		clear(purged)
	}
	s.committed(0, 0)
	s.committed(1, 7)
	sweep(map[int][]uint64{1: {7}})
	s.committed(1, 7)
	sweep(nil)
	s.committed(1, 8)
	err = down
	sweep(map[int][]uint64{1: {8}})
	err = nil
	sweep(map[int][]uint64{1: {8}}) // what has failed is tried again
	s.committed(1, 8)
	sweep(nil)
}
