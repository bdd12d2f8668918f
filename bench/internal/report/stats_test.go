package report

import (
	"math"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		list []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{5, 1, 3}, 3}, {[]float64{4, 1, 2, 3}, 2.5}, {[]float64{1, 1, 1, 100}, 1}} {
		if got := Median(c.list); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.list, got, c.want)
		}
	}
	if !math.IsNaN(Median(nil)) {
		t.Error("the median of nothing is a number")
	}
}

func TestMedianLeavesItsListAsItIs(t *testing.T) {
	list := []float64{3, 1, 2}
	Median(list)
	if !slices.Equal(list, []float64{3, 1, 2}) {
		t.Errorf("now %v", list)
	}
}

func TestQuantileInterpolates(t *testing.T) {
	if got := Quantile([]float64{0, 10}, 0.25); got != 2.5 {
		t.Errorf("got %v, want 2.5", got)
	}
	if got := Quantile([]float64{1, 2, 3, 4, 5}, 1); got != 5 {
		t.Errorf("got %v, want 5", got)
	}
}

func TestRatioPairsRounds(t *testing.T) {
	// The second round ran on a machine half as fast: the ratio does not see it.
	if got := Ratio([]float64{50, 100, 50}, []float64{100, 200, 100}); got != 0.5 {
		t.Errorf("got %v, want 0.5", got)
	}
	if !math.IsNaN(Ratio([]float64{1}, nil)) {
		t.Error("a ratio to nothing is a number")
	}
}

func TestSpread(t *testing.T) {
	if got := Spread([]float64{9, 10, 11}); got != 0.1 {
		t.Errorf("got %v, want 0.1", got)
	}
}

func TestRotatedGivesEachItsTurnToBeFirst(t *testing.T) {
	list := []string{"a", "b", "c"}
	first := ""
	for round := range 3 {
		first += Rotated(list, round)[0]
	}
	if first != "abc" || !slices.Equal(Rotated(list, 4), []string{"b", "c", "a"}) {
		t.Errorf("first %q, by four %v", first, Rotated(list, 4))
	}
}
