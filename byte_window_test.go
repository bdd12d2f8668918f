package flow

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// windowTable is a byteWindow whose members, called by letters, do what a text says:
//
//	+a     joins           -a     leaves
//	a+3    reads 3 bytes   a-3    finishes them
//	a?     waits           a!     stops waiting
type windowTable struct {
	*byteWindow
	members map[string]*byteShare
	wakes   map[string]chan struct{}
}

func newWindowTable(bound int64) *windowTable {
	return &windowTable{newByteWindow(bound), map[string]*byteShare{}, map[string]chan struct{}{}}
}

func (w *windowTable) do(steps string) {
	for step := range strings.FieldsSeq(steps) {
		name, n := step[:1], int64(0)
		switch {
		case name == "+":
			name = step[1:]
			w.wakes[name] = make(chan struct{}, 1)
			w.members[name] = w.join(w.wakes[name])
		case name == "-":
			name = step[1:]
			w.members[name].leave()
			delete(w.members, name)
		case step[1:] == "?":
			w.members[name].wait()
		case step[1:] == "!":
			w.members[name].stopWaiting()
		default:
			if _, err := fmt.Sscan(step[1:], &n); err != nil {
				panic(err)
			}
			if n > 0 {
				w.members[name].add(n)
			} else {
				w.members[name].sub(-n)
			}
		}
	}
}

// that returns the members of which has holds, sorted and joined.
func (w *windowTable) that(has func(name string) bool) string {
	var names []string
	for name := range w.members {
		if has(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, "")
}

func (w *windowTable) readers() string {
	return w.that(func(name string) bool { return w.members[name].mayRead() })
}

// woken returns who was woken since it was called last.
func (w *windowTable) woken() string { return w.that(w.wasWoken) }

func (w *windowTable) wasWoken(name string) bool {
	select {
	case <-w.wakes[name]:
		return true
	default:
		return false
	}
}

func TestByteWindowSaysWhoMayRead(t *testing.T) {
	for _, c := range []struct {
		name  string
		bound int64
		steps string
		want  string
	}{
		{"below the bound everybody", 10, "+a +b a+9", "ab"},
		{"alone at the bound nobody", 10, "+a a+10", ""},
		{"at the bound one that has nothing", 10, "+a +b a+10", "b"},
		{"at the bound one below its share", 10, "+a +b a+10 b+4", "b"},
		{"at the bound not one that has its share", 10, "+a +b a+10 b+5", ""},
		{"a share that is no whole number counts exactly", 10, "+a +b +c a+10 b+3 c+4", "b"},
		{"who comes makes shares smaller", 10, "+a +b a+10 b+4 +c", "c"},
		{"who leaves makes shares larger", 10, "+a +b +c a+10 b+4 -c", "b"},
		{"one message far above the bound is one member's", 10, "+a +b a+1000", "b"},
		{"at twice the bound one that has nothing", 10, "+a a+10 +b b+10 +c +d c+2", "d"},
		{"just below twice the bound one below its share too", 12, "+a a+12 +b b+6 +c c+4 +d d+1", "d"},
		{"more members than bytes", 2, "+a +b +c a+2 b+1", "c"},
		{"messages of no size", 2, "+a +b a+2", "b"},
		{"what finishes makes room", 10, "+a +b a+10 b+5 a-1 b-1", "b"},
		{"the largest bound", math.MaxInt64, "+a +b a+1", "ab"},
		{"the largest bound, full", math.MaxInt64, "+a +b a+9223372036854775807", "b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWindowTable(c.bound)
			w.do(c.steps)
			if got := w.readers(); got != c.want {
				t.Errorf("%q may read, want %q", got, c.want)
			}
		})
	}
}

func TestByteWindowWakesWhomAChangeConcerns(t *testing.T) {
	for _, c := range []struct {
		name  string
		bound int64
		steps string
		then  string
		want  string
	}{
		{"below the bound the longest waiting", 10, "+a +b +c +d a+3 b+3 c+3 d+5 b? a? c?", "d-5", "b"},
		{"which wakes the next", 10, "+a +b +c +d a+3 b+3 c+3 d+5 b? a? c?", "d-5 b!", "ab"},
		{"nobody else while the total stays below", 10, "+a +b +c +d a+3 b+3 c+2 d+5 b? a?", "d-4 d-1", "b"},
		{"nobody by a finish above the bound", 10, "+a +b +c a+9 b+9 b?", "a-1", ""},
		{"one that falls below its share itself", 10, "+a +b +c a+9 b+9 b? a?", "b-7", "b"},
		{"one that has nothing left", 10, "+a +b a+30 b+9 b?", "b-9", "b"},
		{"those whose share grows as another leaves", 10, "+a +b +c a+10 b+4 a? b?", "-c", "b"},
		{"those below their share when it is below twice the bound", 12, "+a a+12 +b b+6 +c c+4 +d d+2 a? d?", "b-1", "d"},
		{"all when it falls from above twice the bound to below the bound", 6, "+a +b +c a+2 b+1 c+20 a? b?", "c-20", "ab"},
		{"nobody who has stopped waiting", 10, "+a +b a+5 b+5 b? a? b! a!", "b-1", ""},
		{"the next of one that stops waiting for another reason", 10, "+a +b a+5 b+5 b? a?", "a-1 b!", "ab"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWindowTable(c.bound)
			w.do(c.steps)
			if early := w.woken(); early != "" {
				t.Fatalf("%q woken before anything has changed", early)
			}
			w.do(c.then)
			if got := w.woken(); got != c.want {
				t.Errorf("%q woken, want %q", got, c.want)
			}
		})
	}
}

func TestByteWindowShowsRoomThatCameBeforeTheWaitBegan(t *testing.T) {
	w := newWindowTable(10)
	w.do("+a +b a+6 b+6")
	if !w.members["a"].wait() {
		t.Fatal("a need not wait")
	}
	w.do("a! b-6")
	if w.members["a"].wait() {
		t.Error("a waits for room that is there")
	}
}

// In whatever order members read, finish, come and go: the total stays below twice the bound and one message a member,
// and nobody waits who may read and is told by nobody.
func TestByteWindowHoldsItsTotalAndForgetsNobody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bound := rapid.Int64Range(1, 40).Draw(t, "bound")
		w := newWindowTable(bound)
		pending := map[string][]int64{}
		waits := map[string]bool{}
		names := strings.Split("abcdefgh", "")
		read := func(name string) {
			n := rapid.Int64Range(0, 15).Draw(t, "n")
			w.members[name].add(n)
			pending[name] = append(pending[name], n)
		}
		awake := func() { // those who were woken look again, one after the other, and maybe read before the next looks
			for again := true; again; {
				again = false
				for _, name := range rapid.Permutation(names).Draw(t, "order") {
					if s := w.members[name]; s != nil && waits[name] && w.wasWoken(name) {
						again = true
						s.stopWaiting()
						if waits[name] = false; s.mayRead() && rapid.Bool().Draw(t, "reads") {
							read(name)
						} else if waits[name] = s.wait(); !waits[name] {
							s.stopWaiting()
						}
					}
				}
			}
		}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			name := rapid.SampledFrom(names).Draw(t, "name")
			s := w.members[name]
			switch step := rapid.SampledFrom([]string{"read", "read", "read", "finish", "finish", "go"}).Draw(t, "step"); {
			case s == nil:
				w.do("+" + name)
			case step == "read" && !waits[name]:
				if !s.mayRead() {
					if waits[name] = s.wait(); !waits[name] {
						t.Fatalf("%s must not read, and need not wait", name)
					}
					break
				}
				read(name)
			case step == "finish" && len(pending[name]) > 0:
				s.sub(pending[name][0])
				pending[name] = pending[name][1:]
			case step == "go" && len(pending[name]) == 0:
				if waits[name] {
					waits[name] = false
					s.stopWaiting()
				}
				w.do("-" + name)
			}
			awake()
			excess := int64(0)
			for _, sizes := range pending {
				if len(sizes) > 0 {
					excess += sizes[len(sizes)-1]
				}
			}
			if total := w.total.Load(); total > 2*bound+excess {
				t.Fatalf("%d bytes are pending, more than 2 x %d and one message each (%d)", total, bound, excess)
			}
			for name := range w.members {
				if waits[name] && w.members[name].mayRead() {
					t.Fatalf("%s waits, and may read", name)
				}
			}
		}
	})
}

// Real goroutines: one that is not woken leaves its bubble at a standstill.
func TestByteWindowWakesReadersOfAnySchedule(t *testing.T) {
	for _, bound := range []int64{1, 10, 100} {
		synctest.Test(t, func(t *testing.T) {
			w := newByteWindow(bound)
			var members sync.WaitGroup
			for i := range 8 {
				members.Go(func() {
					var finishing sync.WaitGroup
					wake := make(chan struct{}, 1)
					for range 20 { // comes and goes
						s := w.join(wake)
						for n := range int64(50) {
							for !s.mayRead() {
								if s.wait() {
									<-wake
								}
								s.stopWaiting()
							}
							s.add(n % 7)
							finishing.Go(func() {
								if i%2 == 0 {
									time.Sleep(time.Duration(n) * time.Nanosecond)
								}
								s.sub(n % 7)
							})
						}
						finishing.Wait()
						s.leave()
					}
				})
			}
			members.Wait()
			if w.total.Load() != 0 || w.members.Load() != 0 || w.waits.Load() != 0 || w.first != nil || w.last != nil {
				t.Errorf("left: %d bytes, %d members, %d waiting", w.total.Load(), w.members.Load(), w.waits.Load())
			}
		})
	}
}
