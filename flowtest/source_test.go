package flowtest_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"example.com/flow/flowtest"
)

func TestSourceReturnsWhatWasSentAndThenItsEnd(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		end  func(*flowtest.Source[int])
		want error
	}{
		{"end", (*flowtest.Source[int]).End, io.EOF},
		{"fail", func(s *flowtest.Source[int]) { s.Fail(broken) }, broken},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := flowtest.NewSource(t, 1)
			s.Send(2, 3)
			c.end(s)
			s.Fail(errors.New("too late"))
			for want := 1; want <= 3; want++ {
				if got, err := s.Recv(); got != want || err != nil {
					t.Fatalf("Recv() = %d, %v, want %d, nil", got, err, want)
				}
			}
			if got, err := s.Recv(); got != 0 || err != c.want {
				t.Errorf("Recv() = %d, %v, want 0, %v", got, err, c.want)
			}
			if got := s.Received(); got != 3 {
				t.Errorf("Received() = %d, want 3", got)
			}
		})
	}
}

func TestSourceBlocksWhileItHasNothingOrIsStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := flowtest.NewSource[int](t)
		received := func() int { synctest.Wait(); return s.Received() }
		go func() {
			for _, err := s.Recv(); err == nil; _, err = s.Recv() {
			}
		}()
		s.Send(1)
		if got := received(); got != 1 {
			t.Fatalf("received %d after one Send, want 1", got)
		}
		s.Stall()
		s.Send(2)
		if got := received(); got != 1 {
			t.Fatalf("received %d while stalled, want 1", got)
		}
		s.Resume()
		if got := received(); got != 2 {
			t.Fatalf("received %d after Resume, want 2", got)
		}
	}) // the bubble ends: Recv that still waits has ended too
}

func TestSourceReportsWhatGRPCForbids(t *testing.T) {
	report := func(misuse func(*flowtest.Source[int])) int {
		var n int
		synctest.Test(t, func(t *testing.T) {
			r := &recorder{TB: t}
			misuse(flowtest.NewSource[int](r))
			synctest.Wait()
			n = r.errors
		})
		return n
	}
	for _, c := range []struct {
		name   string
		misuse func(*flowtest.Source[int])
		want   int
	}{
		{"proper use", func(s *flowtest.Source[int]) { s.Send(1); s.End(); _, _ = s.Recv(); _, _ = s.Recv() }, 0},
		{"again after its error", func(s *flowtest.Source[int]) { s.End(); _, _ = s.Recv(); _, _ = s.Recv() }, 1},
		{"two at once", func(s *flowtest.Source[int]) {
			go func() { _, _ = s.Recv() }()
			go func() { _, _ = s.Recv() }()
			synctest.Wait()
			s.Send(1, 2)
		}, 1},
		{"send after the end", func(s *flowtest.Source[int]) { s.End(); s.Send(1) }, 1},
		{"fail without an error", func(s *flowtest.Source[int]) { s.Fail(nil) }, 1},
	} {
		if got := report(c.misuse); got != c.want {
			t.Errorf("%s: %d failures reported, want %d", c.name, got, c.want)
		}
	}
}

// A test that has made the mistake ends, and says so, instead of hanging.
func TestSourceThatFailsWithNilEndsWithAnErrorThatSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := flowtest.NewSource(&recorder{TB: t}, 1)
		s.Fail(nil)
		if got, err := s.Recv(); got != 1 || err != nil {
			t.Errorf("Recv() = %d, %v, want what was sent", got, err)
		}
		if _, err := s.Recv(); err == nil || !strings.Contains(err.Error(), "err must not be nil") {
			t.Errorf("Recv() = %v, want an error that names the mistake", err)
		}
	})
}

func TestSourceLeavesTheValuesItWasGivenAlone(t *testing.T) {
	all := []int{1, 2, 3}
	s := flowtest.NewSource(t, all[:1]...)
	s.Send(9)
	all[0] = 7
	s.End()
	var got []int
	for v, err := s.Recv(); err == nil; v, err = s.Recv() {
		got = append(got, v)
	}
	if !slices.Equal(all, []int{7, 2, 3}) || !slices.Equal(got, []int{1, 9}) {
		t.Errorf("the caller's values are %v, and what was received is %v", all, got)
	}
}

// recorder counts the failures that a test would have.
type recorder struct {
	testing.TB
	errors int
}

func (r *recorder) Helper()      {}
func (r *recorder) Error(...any) { r.errors++ }
