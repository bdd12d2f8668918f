package testkit

import (
	"errors"
	"slices"
	"testing"

	"example.com/flow"
	"google.golang.org/grpc/status"
)

// FailureOf returns err's Failure. It fails the test if err has none, or one of another kind.
func FailureOf(t testing.TB, err error, kind flow.FailureKind) *flow.Failure {
	t.Helper()
	f, ok := errors.AsType[*flow.Failure](err)
	if !ok || f.Kind != kind {
		t.Fatalf("error is %v (%T), want a Failure of kind %v", err, err, kind)
	}
	return f
}

// CheckConserved checks what holds of every Summary: each message is counted once, and Committed and Unsettled fit.
func CheckConserved(t testing.TB, s flow.Summary) {
	t.Helper()
	if s.Received != s.Succeeded+s.Failed+s.Rejected+s.Dropped+s.Duplicates {
		t.Errorf("not conserved: %+v", s)
	}
	if n := uint64(len(s.Unsettled)); n == 0 && s.Committed != s.Last || n > 0 && s.Committed != s.Unsettled[0]-1 {
		t.Errorf("committed is wrong: %+v", s)
	}
	if !slices.IsSorted(s.Unsettled) {
		t.Errorf("unsettled is not ascending: %+v", s)
	}
}

// Detail returns the first detail of st that is a D, or the zero value if there is none.
func Detail[D any](st *status.Status) (d D) {
	for _, any := range st.Details() {
		if d, ok := any.(D); ok {
			return d
		}
	}
	return d
}

// CountsDiffer reports whether the counts of a and b differ by outcome or retries.
func CountsDiffer(a, b flow.Summary) bool {
	return a.Succeeded != b.Succeeded || a.Failed != b.Failed || a.Rejected != b.Rejected || a.Dropped != b.Dropped ||
		a.Retried != b.Retried
}
