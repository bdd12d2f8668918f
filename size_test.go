package flow

import (
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"
)

type (
	measured struct{ n, _, _, _ int }
	measurer interface{ Size() int }
	line     string
	packet   []byte
)

func (m measured) Size() int { return m.n }

func sizeAndAllocs[T any](t *testing.T, v T) (size int, allocs float64) {
	t.Helper()
	of := sizeFunc[T]()
	if of == nil {
		t.Fatalf("a %T has no size", v)
	}
	return of(v), testing.AllocsPerRun(100, func() { of(v) })
}

func TestSizeOfAMessageIsTakenWithoutAnAllocation(t *testing.T) {
	for name, size := range map[string]func(*testing.T) (int, float64){
		"string":                 func(t *testing.T) (int, float64) { return sizeAndAllocs(t, "12345") },
		"a string type":          func(t *testing.T) (int, float64) { return sizeAndAllocs(t, line("12345")) },
		"bytes":                  func(t *testing.T) (int, float64) { return sizeAndAllocs(t, []byte("12345")) },
		"a bytes type":           func(t *testing.T) (int, float64) { return sizeAndAllocs(t, packet("12345")) },
		"a struct with Size":     func(t *testing.T) (int, float64) { return sizeAndAllocs(t, measured{n: 5}) },
		"a pointer with Size":    func(t *testing.T) (int, float64) { return sizeAndAllocs(t, &measured{n: 5}) },
		"an interface with Size": func(t *testing.T) (int, float64) { return sizeAndAllocs[measurer](t, measured{n: 5}) },
		"proto":                  func(t *testing.T) (int, float64) { return sizeAndAllocs(t, wrapperspb.String("123")) },
	} {
		if n, allocs := size(t); n != 5 || allocs != 0 {
			t.Errorf("%s: size %d by %v allocations, want 5 by none", name, n, allocs)
		}
	}
}
