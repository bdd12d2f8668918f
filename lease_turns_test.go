package flow

import (
	"context"
	"errors"
	"io"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A lease began with a whole chunk, and only who looks out could see that it was slow, which on busy cores is late.
func TestLeasesGrowWhileTheyAreFastAndEndWhenTheyAreSlow(t *testing.T) {
	s, c := leasedFor(t, 1, nil, strings.Split(strings.Repeat("abcdefghij", 26), "")...)
	for _, want := range []int{1, 2, 4, 8, 16, 32, 64, 1, chunkSize} { // what is left of the first chunk is 1
		k := c.leased
		if got := int(k.end.Load()) - k.start; got != want {
			t.Fatalf("the lease is for %d messages, want %d", got, want)
		}
		last := k.start + want - 1
		k.at.Store(int64(last))
		s.mu.Lock()
		s.starting = true // nobody else comes
		s.mu.Unlock()
		if want == chunkSize {
			break
		}
		c.checkIn(last, true, s.clock()+time.Hour) // it took no time
	}
	for _, n := range []int{chunkSize, 1} { // the first may have been slow by chance
		k := c.leased
		if k == nil || int(k.end.Load())-k.start != n {
			t.Fatalf("there is no lease for %d messages", n)
		}
		c.checkIn(k.start+n-1, true, s.clock()-time.Hour)
	}
	if s.pace.mode != paceSlow || c.leased != nil || c.m == nil {
		t.Errorf("mode %v, leased %p: after two slow leases there is another", s.pace.mode, c.leased)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready.n == 0 {
		t.Error("nothing is sorted into lanes")
	}
}

// A message that was tried again at once, over and over, came before all that lay in the inbox.
func TestMessageTriedAgainAtOnceLetsOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for name, b := range map[string]BackpressureOptions{
		"one slot": {Capacity: 1}, "two slots": {Capacity: 2}, "unlimited": {},
	} {
		for _, mode := range []OrderingMode{OrderingKeyedFIFO, OrderingNone} {
			t.Run(name+"/"+mode.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const limit = 300_000
					var mu sync.Mutex
					tries, before, other := 0, 0, false
					f := mustNewInside(t, func(_ context.Context, m Message[string]) error {
						mu.Lock()
						defer mu.Unlock()
						if m.Key == "b" {
							other = true
							return nil
						}
						if tries++; other || tries == limit {
							return nil
						}
						return errors.New("again")
					}, func(s string) string { return s }, Options{
						Ordering: OrderingOptions{Mode: mode}, Backpressure: b, Retry: RetryOptions{MaxAttempts: math.MaxInt},
					})
					list := []string{"a", "b"}
					sum, err := f.Run(t.Context(), func() (string, error) {
						if len(list) == 0 {
							return "", io.EOF
						}
						v := list[0]
						list = list[1:]
						for v == "b" && before < 100 { // a goes round when it comes
							runtime.Gosched()
							mu.Lock()
							before = tries
							mu.Unlock()
						}
						return v, nil
					})
					if err != nil || sum.Succeeded != 2 {
						t.Errorf("%+v, %v", sum, err)
					}
					// The receiver may lose its processor, for 10 ms, on its way from recv with b.
					if n := tries - before; n > limit/2 {
						t.Errorf("b waited for %d tries of a", n)
					}
				})
			})
		}
	}
}
