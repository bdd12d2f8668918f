package flowtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
)

// TestOrderingResolver checks that what newResolver makes does what a Gate and a Receiver need of an OrderingResolver,
// as fstest.TestFS does for file systems. Each property is a subtest with a resolver of its own, which is closed at its
// end. It runs in real time, so that it fits resolvers that keep their locks elsewhere, and gives each answer ten seconds
// to come.
//
// It does not check that the callers of a key get their turns in the order of their coming, since a Receiver asks for
// one message of a key and stream at a time; nor that different keys run side by side.
func TestOrderingResolver(t *testing.T, newResolver func() flow.OrderingResolver) {
	for _, p := range properties {
		t.Run(p.name, func(t *testing.T) {
			if err := p.check(newResolver, 10*time.Second); err != nil {
				t.Error(err)
			}
		})
	}
}

// property is one thing that a resolver must do. The check returns what it did instead.
type property struct {
	name string
	test func(*exam) error
}

func (p property) check(newResolver func() flow.OrderingResolver, patience time.Duration) error {
	r := newResolver()
	if r == nil {
		return errors.New("the constructor returned nil")
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel() // whoever still waits when the check has failed
	return p.test(&exam{ctx: ctx, r: r, patience: patience})
}

var properties = []property{
	{"one holder of a key at a time", (*exam).oneHolder},
	{"release passes the turn on", (*exam).passesOn},
	{"release twice is harmless", (*exam).releaseTwice},
	{"a wait ends with its context", (*exam).cancelledWait},
	{"a cancelled wait leaves nothing taken", (*exam).nothingTaken},
	{"close refuses those who wait and those who come", (*exam).refusesAfterClose},
	{"close twice and release after close are harmless", (*exam).closeTwice},
	{"a receiver runs its stream through it", (*exam).receives},
}

// exam is one property's try of one resolver.
type exam struct {
	ctx      context.Context
	r        flow.OrderingResolver
	patience time.Duration
}

// answer is what Wait returned.
type answer struct {
	release flow.ReleaseFunc
	err     error
}

// ask calls Wait in the background.
func (e *exam) ask(ctx context.Context, key string) <-chan answer {
	came := make(chan answer, 1)
	go func() {
		release, err := e.r.Wait(ctx, key)
		came <- answer{release, err}
	}()
	return came
}

// turn is the answer to an ask that must succeed.
func (e *exam) turn(came <-chan answer, what string) (flow.ReleaseFunc, error) {
	select {
	case a := <-came:
		switch {
		case a.err != nil:
			return nil, fmt.Errorf("%s: Wait returned %w, want a turn", what, a.err)
		case a.release == nil:
			return nil, fmt.Errorf("%s: Wait returned neither an error nor a ReleaseFunc", what)
		}
		return a.release, nil
	case <-time.After(e.patience):
		return nil, fmt.Errorf("%s: Wait has not returned after %v", what, e.patience)
	}
}

// refusal is the answer to an ask that must fail.
func (e *exam) refusal(came <-chan answer, what string) error {
	select {
	case a := <-came:
		if a.err == nil {
			return fmt.Errorf("%s: Wait gave a turn, want an error", what)
		}
		return nil
	case <-time.After(e.patience):
		return fmt.Errorf("%s: Wait has not returned after %v", what, e.patience)
	}
}

// waits says that an ask has not been answered after a short while.
func (e *exam) waits(came <-chan answer, what string) error {
	select {
	case a := <-came:
		return errors.Join(fmt.Errorf("%s: Wait returned, want it to block", what), a.err)
	case <-time.After(min(e.patience/10, 50*time.Millisecond)):
		return nil
	}
}

func (e *exam) oneHolder() error {
	const callers, turns = 8, 50
	keys := []string{"", "a", "b"}
	holders := make([]atomic.Int64, len(keys))
	errs := make(chan error, callers)
	for range callers {
		go func() {
			errs <- func() error {
				for range turns {
					k := rand.IntN(len(keys))
					release, err := e.turn(e.ask(e.ctx, keys[k]), "many callers")
					if err != nil {
						return err
					}
					n := holders[k].Add(1)
					time.Sleep(time.Duration(rand.IntN(20)) * time.Microsecond)
					holders[k].Add(-1)
					release()
					if n > 1 {
						return fmt.Errorf("%d callers held the turn of key %q at once", n, keys[k])
					}
				}
				return nil
			}()
		}()
	}
	var all error
	for range callers {
		all = errors.Join(all, <-errs)
	}
	return all
}

func (e *exam) passesOn() error {
	release, err := e.turn(e.ask(e.ctx, "a"), "the first caller")
	if err != nil {
		return err
	}
	second := e.ask(e.ctx, "a")
	if err := e.waits(second, "a second caller while the first holds the turn"); err != nil {
		return err
	}
	release()
	release, err = e.turn(second, "the second caller after the first's release")
	if err != nil {
		return err
	}
	release()
	return nil
}

func (e *exam) releaseTwice() error {
	first, err := e.turn(e.ask(e.ctx, "a"), "the first caller")
	if err != nil {
		return err
	}
	first()
	second, err := e.turn(e.ask(e.ctx, "a"), "the second caller")
	if err != nil {
		return err
	}
	first() // must not be taken for the second's
	third := e.ask(e.ctx, "a")
	if err := e.waits(third, "a third caller while the second holds the turn and the first released twice"); err != nil {
		return err
	}
	second()
	release, err := e.turn(third, "the third caller")
	if err != nil {
		return err
	}
	release()
	return nil
}

func (e *exam) cancelledWait() error {
	release, err := e.turn(e.ask(e.ctx, "a"), "the first caller")
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	second := e.ask(ctx, "a")
	if err := e.waits(second, "a second caller"); err != nil {
		return err
	}
	cancel()
	return e.refusal(second, "a waiting caller whose context ended")
}

func (e *exam) nothingTaken() error {
	for range 20 {
		release, err := e.turn(e.ask(e.ctx, "a"), "the holder")
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(e.ctx)
		loser, other := e.ask(ctx, "a"), e.ask(e.ctx, "a")
		time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
		var both sync.WaitGroup // the cancel races the turn's coming
		both.Go(cancel)
		both.Go(release)
		both.Wait()
		select {
		case a := <-loser:
			if a.err == nil {
				a.release() // the turn was faster
			}
		case <-time.After(e.patience):
			return fmt.Errorf("a cancelled caller: Wait has not returned after %v", e.patience)
		}
		release, err = e.turn(other, "a caller beside one that was cancelled")
		if err != nil {
			return err
		}
		release()
	}
	return nil
}

func (e *exam) refusesAfterClose() error {
	release, err := e.turn(e.ask(e.ctx, "a"), "the first caller")
	if err != nil {
		return err
	}
	defer release()
	second := e.ask(e.ctx, "a")
	if err := e.waits(second, "a second caller"); err != nil {
		return err
	}
	e.r.Close()
	if err := e.refusal(second, "a caller that waits while the resolver is closed"); err != nil {
		return err
	}
	return e.refusal(e.ask(e.ctx, "b"), "a caller after Close")
}

func (e *exam) closeTwice() error {
	release, err := e.turn(e.ask(e.ctx, "a"), "the first caller")
	if err != nil {
		return err
	}
	e.r.Close()
	e.r.Close()
	release()
	release()
	return nil
}

func (e *exam) receives() error {
	const messages = 60
	var mu sync.Mutex
	var wrong error
	last := map[string]uint64{}
	handler := func(_ context.Context, m flow.Message[int]) error {
		mu.Lock()
		defer mu.Unlock()
		if m.Seq <= last[m.Key] {
			wrong = errors.Join(wrong, fmt.Errorf("message %d of key %q ran after message %d", m.Seq, m.Key, last[m.Key]))
		}
		last[m.Key] = m.Seq
		return nil
	}
	n := 0
	recv := func() (int, error) {
		if n++; n > messages {
			return 0, io.EOF
		}
		return n, nil
	}
	key := func(v int) string { return string(rune('a' + v%3)) }
	receiver := flow.NewReceiver(flow.NewGate(e.r, nil, nil), flow.NewEngine(handler, flow.RetryOptions{}))
	ctx, cancel := context.WithTimeout(e.ctx, e.patience)
	defer cancel()
	sum, err := receiver.Receive(ctx, recv, key)
	if err != nil {
		return fmt.Errorf("a stream of %d messages: %w (%d ran)", messages, err, sum.Succeeded)
	}
	mu.Lock()
	defer mu.Unlock()
	return wrong
}
