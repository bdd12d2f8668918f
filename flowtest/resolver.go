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
// to come. It does not work in testing/synctest bubbles, where there are no subtests.
//
// It does not check that the callers of a key get their turns in the order in which they called, since a Receiver asks for
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

// property is one thing that a resolver must do. Its test returns what the resolver did instead.
type property struct {
	name string
	test func(*suite) error
}

func (p property) check(newResolver func() flow.OrderingResolver, timeout time.Duration) error {
	r := newResolver()
	if r == nil {
		return errors.New("the constructor returned nil")
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel() // ends the calls of Wait that are still blocked when the test has failed
	return p.test(&suite{ctx: ctx, resolver: r, timeout: timeout})
}

var properties = []property{
	{"one holder of a key at a time", (*suite).oneHolder},
	{"release passes the turn on", (*suite).passesOn},
	{"release twice is harmless", (*suite).releaseTwice},
	{"a wait ends with its context", (*suite).cancelledWait},
	{"a cancelled wait leaves nothing taken", (*suite).nothingTaken},
	{"a turn does not end with its context", (*suite).outlivesContext},
	{"close refuses waiting and later callers", (*suite).refusesAfterClose},
	{"close twice and release after close are harmless", (*suite).closeTwice},
	{"a receiver runs its stream through it", (*suite).receives},
}

// suite is what the test of one property has: a resolver of its own, and how long each answer may take.
type suite struct {
	ctx      context.Context
	resolver flow.OrderingResolver
	timeout  time.Duration
}

// answer is what Wait returned.
type answer struct {
	release flow.ReleaseFunc
	err     error
}

// wait calls Wait in the background.
func (s *suite) wait(ctx context.Context, key string) <-chan answer {
	answers := make(chan answer, 1)
	go func() {
		release, err := s.resolver.Wait(ctx, key)
		answers <- answer{release, err}
	}()
	return answers
}

// acquire returns the ReleaseFunc of a Wait that must succeed.
func (s *suite) acquire(answers <-chan answer, what string) (flow.ReleaseFunc, error) {
	select {
	case a := <-answers:
		switch {
		case a.err != nil:
			return nil, fmt.Errorf("%s: Wait returned %w, want a turn", what, a.err)
		case a.release == nil:
			return nil, fmt.Errorf("%s: Wait returned neither an error nor a ReleaseFunc", what)
		}
		return a.release, nil
	case <-time.After(s.timeout):
		return nil, fmt.Errorf("%s: Wait has not returned after %v", what, s.timeout)
	}
}

// pass waits for a turn that must come, and ends it at once.
func (s *suite) pass(answers <-chan answer, what string) error {
	release, err := s.acquire(answers, what)
	if err == nil {
		release()
	}
	return err
}

// wantRefused returns nil if a Wait fails, as it must.
func (s *suite) wantRefused(answers <-chan answer, what string) error {
	select {
	case a := <-answers:
		if a.err == nil {
			return fmt.Errorf("%s: Wait gave a turn, want an error", what)
		}
		return nil
	case <-time.After(s.timeout):
		return fmt.Errorf("%s: Wait has not returned after %v", what, s.timeout)
	}
}

// wantBlocked returns nil if a Wait has not returned after a short while.
func (s *suite) wantBlocked(answers <-chan answer, what string) error {
	select {
	case a := <-answers:
		return errors.Join(fmt.Errorf("%s: Wait returned, want it to block", what), a.err)
	case <-time.After(min(s.timeout/10, 50*time.Millisecond)):
		return nil
	}
}

func (s *suite) oneHolder() error {
	const callers, turns = 8, 50
	keys := []string{"", "a", "b"}
	holders := make([]atomic.Int64, len(keys))
	errs := make(chan error, callers)
	for range callers {
		go func() {
			errs <- func() error {
				for range turns {
					k := rand.IntN(len(keys))
					release, err := s.acquire(s.wait(s.ctx, keys[k]), "many callers")
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

func (s *suite) passesOn() error {
	release, err := s.acquire(s.wait(s.ctx, "a"), "the first caller")
	if err != nil {
		return err
	}
	second := s.wait(s.ctx, "a")
	if err := s.wantBlocked(second, "a second caller while the first holds the turn"); err != nil {
		return err
	}
	release()
	return s.pass(second, "the second caller after the first's release")
}

func (s *suite) releaseTwice() error {
	first, err := s.acquire(s.wait(s.ctx, "a"), "the first caller")
	if err != nil {
		return err
	}
	first()
	second, err := s.acquire(s.wait(s.ctx, "a"), "the second caller")
	if err != nil {
		return err
	}
	first() // must not be taken for the second's
	third := s.wait(s.ctx, "a")
	if err := s.wantBlocked(third, "a third caller while the second holds the turn and the first released twice"); err != nil {
		return err
	}
	second()
	return s.pass(third, "the third caller")
}

func (s *suite) cancelledWait() error {
	release, err := s.acquire(s.wait(s.ctx, "a"), "the first caller")
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	second := s.wait(ctx, "a")
	if err := s.wantBlocked(second, "a second caller"); err != nil {
		return err
	}
	cancel()
	return s.wantRefused(second, "a waiting caller whose context ended")
}

func (s *suite) nothingTaken() error {
	for range 20 {
		release, err := s.acquire(s.wait(s.ctx, "a"), "the holder")
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(s.ctx)
		loser, other := s.wait(ctx, "a"), s.wait(s.ctx, "a")
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
		case <-time.After(s.timeout):
			return fmt.Errorf("a cancelled caller: Wait has not returned after %v", s.timeout)
		}
		if err := s.pass(other, "a caller beside one that was cancelled"); err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) outlivesContext() error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	first, err := s.acquire(s.wait(ctx, "a"), "the first caller")
	if err != nil {
		return err
	}
	second := s.wait(s.ctx, "a")
	cancel()
	if err := s.wantBlocked(second, "a second caller while the first, whose context has ended, holds the turn"); err != nil {
		return err
	}
	first()
	return s.pass(second, "the second caller after the first's release")
}

func (s *suite) refusesAfterClose() error {
	release, err := s.acquire(s.wait(s.ctx, "a"), "the first caller")
	if err != nil {
		return err
	}
	defer release()
	second := s.wait(s.ctx, "a")
	if err := s.wantBlocked(second, "a second caller"); err != nil {
		return err
	}
	s.resolver.Close()
	if err := s.wantRefused(second, "a caller that waits while the resolver is closed"); err != nil {
		return err
	}
	return s.wantRefused(s.wait(s.ctx, "b"), "a caller after Close")
}

func (s *suite) closeTwice() error {
	release, err := s.acquire(s.wait(s.ctx, "a"), "the first caller")
	if err != nil {
		return err
	}
	s.resolver.Close()
	s.resolver.Close()
	release()
	release()
	return nil
}

func (s *suite) receives() error {
	const messages = 60
	var order OrderChecker[string]
	handler := func(_ context.Context, m flow.Message[int]) error {
		_ = order.Enter(m.Key, m.Seq, m.Attempt)
		order.Leave(m.Key)
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
	receiver := flow.NewReceiver(flow.NewGate(s.resolver, nil, nil), flow.NewEngine(handler, flow.RetryOptions{}))
	ctx, cancel := context.WithTimeout(s.ctx, s.timeout)
	defer cancel()
	sum, err := receiver.Receive(ctx, recv, key)
	if err != nil {
		return fmt.Errorf("a stream of %d messages: %w (%d ran)", messages, err, sum.Succeeded)
	}
	return order.Err()
}
