package flow_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
)

// TestStressStuckOnesDelayNobody has some keys stuck for good, in their handlers or before their next try, among others
// that take any time up to ten microseconds. Every message of those runs, in whatever way they go.
func TestStressStuckOnesDelayNobody(t *testing.T) {
	skipIfShort(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	live(t, func(seed uint64) error { return newStuckLife(seed).live() })
}

// stuckLife is a stream whose messages are their keys. Those of "b1" and so on block, and those of "p1" wait for a try
// that does not come.
type stuckLife struct {
	*rand.Rand
	opts    flow.Options
	blocked int
	parked  int
	odds    int           // every so many-th message is of one of those
	keys    int           // how many others there are
	each    time.Duration // what their messages take
	pause   time.Duration // of the source, each so often
	pauseAt int

	sent atomic.Int64 // messages of the others; all of them once end is set
	done atomic.Int64
	end  atomic.Pointer[context.CancelFunc]
}

func newStuckLife(seed uint64) *stuckLife {
	l := &stuckLife{Rand: rand.New(rand.NewPCG(seed, 0))}
	pick := func(of ...int) int { return of[l.IntN(len(of))] }
	runtime.GOMAXPROCS(1 + l.IntN(6))
	l.blocked, l.parked = l.IntN(4), pick(0, 0, 2, 64, 100)
	l.odds, l.keys = pick(2, 10, 100), 1+l.IntN(300)
	l.each = time.Duration(pick(0, 300, 1000, 3000, 9000))
	l.pause, l.pauseAt = time.Duration(pick(0, 1000, 10_000, 100_000)), pick(10, 100, 10_000)
	l.opts = flow.Options{
		Ordering:   flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		MaxPending: pick(-1, 1024),
		Retry:      flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
	}
	if l.IntN(3) > 0 {
		l.opts.Backpressure.Capacity = l.blocked + 1 + l.IntN(4)
	}
	return l
}

func (l *stuckLife) handle(ctx context.Context, m flow.Message[string]) error {
	switch m.Key[0] {
	case 'b':
		<-ctx.Done()
		return ctx.Err()
	case 'p':
		return errors.New("later")
	}
	for from := time.Now(); time.Since(from) < l.each; { // it computes
	}
	l.done.Add(1)
	l.endIfDone()
	return nil
}

// endIfDone ends the stream when all has run that can.
func (l *stuckLife) endIfDone() {
	if end := l.end.Load(); end != nil && l.done.Load() == l.sent.Load() {
		(*end)()
	}
}

func (l *stuckLife) live() error {
	f, err := flow.New(l.handle, func(key string) string { return key }, l.opts)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hangs := time.AfterFunc(20*time.Second, cancel)
	n, odd, total := 0, 0, l.IntN(1500)
	_, _ = f.Run(ctx, func() (string, error) {
		if n++; n > total {
			l.end.Store(&cancel)
			l.endIfDone()
			<-ctx.Done()
			return "", ctx.Err()
		}
		if n%l.pauseAt == 0 {
			for from := time.Now(); time.Since(from) < l.pause; {
				runtime.Gosched()
			}
			flow.SetRunLength(f, 1<<l.IntN(8))
		}
		if all := l.blocked + l.parked; all > 0 && odd < 800 && l.IntN(l.odds) == 0 {
			odd++
			if k := l.IntN(all); k < l.blocked {
				return fmt.Sprint("b", k), nil
			} else {
				return fmt.Sprint("p", k), nil
			}
		}
		l.sent.Add(1)
		return fmt.Sprint(l.IntN(l.keys)), nil
	})
	if !hangs.Stop() {
		return fmt.Errorf("%d of %d have run beside %d blocked and %d parked keys, on %d processors, with %+v",
			l.done.Load(), l.sent.Load(), l.blocked, l.parked, runtime.GOMAXPROCS(0), l.opts)
	}
	return nil
}

// Messages that come quickly are run as they were received. One of a key that is busy elsewhere must not hold up what lies
// behind it there.
func TestMessageOfABusyKeyHoldsUpNothingThatWasReceivedAfterIt(t *testing.T) {
	for _, maxPending := range []int{256, 1024, 4096} {
		t.Run(fmt.Sprint(maxPending), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const rounds, quick = 60, 3000
				var ran atomic.Int64
				f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
					if m.Key == "slow" {
						time.Sleep(time.Hour)
					} else {
						ran.Add(1)
					}
					return nil
				}, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}, MaxPending: maxPending})
				var values []string
				for range rounds {
					for i := range quick {
						values = append(values, string(rune('a'+i%26)))
					}
					values = append(values, "slow")
				}
				c := start(t, f, append(values, "last")...)
				c.End()
				time.Sleep(rounds * time.Millisecond) // each that stands still may hold up the others once
				if n := ran.Load(); n != rounds*quick+1 {
					t.Errorf("%d of %d messages of quick keys have run", n, rounds*quick+1)
				}
				time.Sleep(rounds * time.Hour)
				if sum, err := c.result(t); err != nil || sum.Succeeded != rounds*(quick+1)+1 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
			})
		})
	}
}
