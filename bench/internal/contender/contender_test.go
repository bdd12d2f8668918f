package contender

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"example.com/flow/bench/internal/load"
)

// run has c handle n messages, some of them slowly, and returns the breaches of order.
func run(t *testing.T, c Contender, n int) uint64 {
	t.Helper()
	list, slots := load.Stream(load.Keys64, n)
	check := load.NewChecker(slots)
	e := c.Start(func(m *load.Message) {
		check.Begin(m)
		switch {
		case m.Seq%512 == 0:
			time.Sleep(50 * time.Microsecond)
		case m.Seq%16 == 0:
			runtime.Gosched()
		}
		check.End(m)
	}, 64, 4096)
	e.Run(load.Source(list))
	e.Close()
	if check.Done() != uint64(n) {
		t.Errorf("%d of %d messages were handled", check.Done(), n)
	}
	return check.Breaches()
}

func TestContendersHandleAllAndKeepTheOrderThatTheyPromise(t *testing.T) {
	for _, c := range All {
		t.Run(c.Name, func(t *testing.T) {
			if n := run(t, c, 20_000); n > 0 && c.Order != "none" {
				t.Errorf("order was broken %d times", n)
			}
		})
	}
}

func TestAContenderThatBreaksOrderIsCaught(t *testing.T) {
	careless := Contender{Name: "a goroutine a message", Order: "key", Start: func(h Handler, _, _ int) Executor {
		var wg sync.WaitGroup
		return pushing(func(m *load.Message) { wg.Go(func() { h(m) }) }, wg.Wait)
	}}
	if run(t, careless, 20_000) == 0 {
		t.Error("no breach was seen")
	}
}
