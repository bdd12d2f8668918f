package flowtest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/flow"
)

func TestOrderingResolverAcceptsTheBuiltInOnes(t *testing.T) {
	t.Run("FIFO", func(t *testing.T) {
		TestOrderingResolver(t, func() flow.OrderingResolver { return flow.NewFIFO(flow.OrderingOptions{}) })
	})
	t.Run("KeyedFIFO", func(t *testing.T) {
		TestOrderingResolver(t, func() flow.OrderingResolver { return flow.NewKeyedFIFO(flow.OrderingOptions{}) })
	})
}

func TestOrderingResolverAcceptsAPlainOne(t *testing.T) {
	TestOrderingResolver(t, func() flow.OrderingResolver { return newPlain(bugNone) })
}

func TestOrderingResolverRefusesBrokenOnes(t *testing.T) {
	for _, c := range []struct {
		bug  bug
		want string // the property that must catch it
	}{
		{bugNoTurns, "one holder of a key at a time"},
		{bugKeepsTurn, "release passes the turn on"},
		{bugReleasesOthers, "release twice is harmless"},
		{bugIgnoresContext, "a wait ends with its context"},
		{bugLeaksOnCancel, "a cancelled wait leaves nothing taken"},
		{bugWaitsAfterClose, "close refuses waiting and later callers"},
		{bugServesAfterClose, "close refuses waiting and later callers"},
		{bugPanicsOnSecondClose, "close twice and release after close are harmless"},
		{bugRefusesAll, "a receiver runs its stream through it"},
		{bugNilRelease, "release passes the turn on"},
		{bugEndsTurnWithContext, "a turn does not end with its context"},
	} {
		i := slices.IndexFunc(properties, func(p property) bool { return p.name == c.want })
		if i < 0 {
			t.Fatalf("there is no property %q", c.want)
		}
		if err := checkRecovered(properties[i], c.bug); err == nil {
			t.Errorf("bug %d passes %q", c.bug, c.want)
		}
	}
}

func checkRecovered(p property, b bug) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = errors.New("panicked")
		}
	}()
	return p.check(func() flow.OrderingResolver { return newPlain(b) }, 200*time.Millisecond)
}

func TestPropertiesEachHaveABrokenResolverThatFailsThem(t *testing.T) {
	for _, p := range properties {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			caught := false
			for b := bugNone + 1; b < bugs && !caught; b++ {
				caught = checkRecovered(p, b) != nil
			}
			if !caught {
				t.Error("no broken resolver fails it")
			}
		})
	}
}

func TestOrderingResolverRefusesAConstructorThatReturnsNil(t *testing.T) {
	err := properties[0].check(func() flow.OrderingResolver { return nil }, time.Second)
	if err == nil || !strings.Contains(err.Error(), "nil") {
		t.Errorf("check() = %v, want an error about nil", err)
	}
}

type bug int

const (
	bugNone bug = iota
	bugNoTurns
	bugKeepsTurn
	bugReleasesOthers
	bugIgnoresContext
	bugLeaksOnCancel
	bugWaitsAfterClose
	bugServesAfterClose
	bugPanicsOnSecondClose
	bugRefusesAll
	bugNilRelease
	bugEndsTurnWithContext
	bugs
)

// plain is a resolver of one channel a key, as a user might write it, with one bug.
type plain struct {
	bug  bug
	mu   sync.Mutex
	keys map[string]chan struct{}
	shut chan struct{}
	once sync.Once
}

func newPlain(b bug) *plain {
	return &plain{bug: b, keys: map[string]chan struct{}{}, shut: make(chan struct{})}
}

var errShut = errors.New("shut")

func (p *plain) Wait(ctx context.Context, key string) (flow.ReleaseFunc, error) {
	p.mu.Lock()
	turn := p.keys[key]
	if turn == nil {
		turn = make(chan struct{}, 1)
		p.keys[key] = turn
	}
	p.mu.Unlock()
	done, shut := ctx.Done(), (<-chan struct{})(p.shut)
	switch p.bug {
	case bugNoTurns:
		return func() {}, nil
	case bugRefusesAll:
		return nil, errShut
	case bugIgnoresContext:
		done = nil
	case bugWaitsAfterClose:
		shut = nil
	}
	select {
	case <-shut:
		if p.bug == bugServesAfterClose {
			return func() {}, nil
		}
		return nil, errShut
	default:
	}
	select {
	case turn <- struct{}{}:
	case <-done:
		if p.bug == bugLeaksOnCancel {
			go func() {
				select {
				case turn <- struct{}{}:
				case <-p.shut:
				}
			}()
		}
		return nil, ctx.Err()
	case <-shut:
		return nil, errShut
	}
	if p.bug == bugNilRelease {
		return nil, nil
	}
	release := func() {
		select {
		case <-turn:
		default:
		}
	}
	switch p.bug {
	case bugKeepsTurn:
		return func() {}, nil
	case bugReleasesOthers:
		return release, nil
	}
	release = sync.OnceFunc(release)
	if p.bug == bugEndsTurnWithContext {
		context.AfterFunc(ctx, release)
	}
	return release, nil
}

func (p *plain) Close() {
	if p.bug == bugPanicsOnSecondClose {
		close(p.shut)
		return
	}
	p.once.Do(func() { close(p.shut) })
}
