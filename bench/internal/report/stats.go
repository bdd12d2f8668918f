package report

import (
	"math"
	"slices"
)

// Median is the middle one, or the mean of the two middle ones; NaN of none.
func Median(list []float64) float64 { return Quantile(list, 0.5) }

// Quantile interpolates between the two nearest.
func Quantile(list []float64, q float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(list))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// Spread is how far the middle half lies apart, as a part of the median.
func Spread(list []float64) float64 {
	return (Quantile(list, 0.75) - Quantile(list, 0.25)) / Median(list)
}

// Ratio is the median of the rounds' own ratios: what slowed a whole round down is in both of a pair.
func Ratio(of, to []float64) float64 {
	var each []float64
	for i := range min(len(of), len(to)) {
		if of[i] > 0 && to[i] > 0 {
			each = append(each, of[i]/to[i])
		}
	}
	return Median(each)
}

// Rotated turns a list by n places: who comes first, with a cold machine, takes turns.
func Rotated[T any](list []T, n int) []T {
	if len(list) == 0 {
		return nil
	}
	n %= len(list)
	return append(slices.Clone(list[n:]), list[:n]...)
}
