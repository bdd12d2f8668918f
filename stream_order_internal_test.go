package flow

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// place is a turn that notes that it has come.
type place struct {
	turn
	mem  lane
	came int
}

func (p *place) turnCame() { p.came++ }

func newPlace(home turnHome) *place {
	p := new(place)
	p.owner, p.spare, p.home = p, &p.mem, home
	return p
}

// homeOf notes whose turns were handed over to it.
type homeOf struct{ got []turnOwner }

func (h *homeOf) handOver(o turnOwner) { h.got = append(h.got, o) }

// orderOf is the order of a stream whose Gate has r.
func orderOf(r OrderingResolver, id uint64) *streamOrder {
	o := new(streamOrder)
	o.init(context.Background(), id, r)
	return o
}

// enqueue puts p into the lane of key.
func enqueue(o *streamOrder, key string, p *place) (first bool, why reason) {
	hash, _ := o.place(key)
	return o.join(key, hash, &p.turn)
}

func leave(o *streamOrder, key string, p *place, home turnHome) *turn {
	hash, _ := o.place(key)
	return o.leave(&p.turn, hash, home)
}

func TestStreamOrderKnowsWhatItsResolverAsksFor(t *testing.T) {
	own := resolverOf(func(context.Context, string) (ReleaseFunc, error) { return nil, nil })
	option := func(o OrderingOptions) OrderingResolver {
		return &resolverOption{OrderingResolver: own, local: newLaneResolver(o)}
	}
	keyed := OrderingOptions{Mode: OrderingKeyedFIFO}
	for name, c := range map[string]struct {
		r                                    OrderingResolver
		ordered, emptyOrdered, oneLane       bool
		decides, refuses, asksKey, asksEmpty bool
	}{
		"none":                   {r: nil},
		"FIFO":                   {r: NewFIFO(OrderingOptions{}), ordered: true, emptyOrdered: true, oneLane: true},
		"keyed":                  {r: NewKeyedFIFO(keyed), ordered: true, emptyOrdered: true},
		"keyed, empty unordered": {r: NewKeyedFIFO(OrderingOptions{UnorderedEmptyKey: true}), ordered: true},
		"with a Capacity":        {r: NewKeyedFIFO(OrderingOptions{Capacity: 1}), ordered: true, emptyOrdered: true, decides: true, refuses: true},
		"with a KeyCapacity":     {r: NewKeyedFIFO(OrderingOptions{KeyCapacity: 1}), ordered: true, emptyOrdered: true, decides: true, refuses: true},
		"of the Flow":            {r: NewKeyedFIFO(OrderingOptions{Scope: ScopeFlow}), ordered: true, emptyOrdered: true, decides: true},
		"FIFO of the Flow":       {r: NewFIFO(OrderingOptions{Scope: ScopeFlow}), ordered: true, emptyOrdered: true, oneLane: true, decides: true},
		"a caller's in a Gate":   {r: own, ordered: true, emptyOrdered: true, decides: true, asksKey: true, asksEmpty: true},
		"a caller's option":      {r: option(keyed), ordered: true, emptyOrdered: true, decides: true, asksKey: true, asksEmpty: true},
		"a caller's beside FIFO": {r: option(OrderingOptions{}), ordered: true, emptyOrdered: true, oneLane: true, decides: true, asksKey: true, asksEmpty: true},
		"a caller's, empty unordered": {r: option(OrderingOptions{Mode: OrderingKeyedFIFO, UnorderedEmptyKey: true}),
			ordered: true, decides: true, asksKey: true},
	} {
		t.Run(name, func(t *testing.T) {
			o := orderOf(c.r, 7)
			a, aOrdered := o.place("a")
			b, _ := o.place("b")
			empty, emptyOrdered := o.place("")
			if aOrdered != c.ordered || emptyOrdered != c.emptyOrdered || (a != 0) != c.ordered || (empty != 0) != c.emptyOrdered {
				t.Errorf("ordered: %v, and %v without a key; hashes %d and %d", aOrdered, emptyOrdered, a, empty)
			}
			if o.ordered("a") != c.ordered || o.ordered("") != c.emptyOrdered {
				t.Error("ordered says otherwise than place")
			}
			if c.ordered && (a == b) != c.oneLane {
				t.Errorf("hashes of two keys: %d, %d", a, b)
			}
			if o.decidesOnReceipt() != c.decides || o.refuses() != c.refuses {
				t.Errorf("decides on receipt: %v, refuses: %v", o.decidesOnReceipt(), o.refuses())
			}
			if o.asks(a) != c.asksKey || o.asks(empty) != c.asksEmpty {
				t.Errorf("asks: %v, and %v without a key", o.asks(a), o.asks(empty))
			}
			o.end() // also without anybody to ask
		})
	}
}

// resolverOf is a Wait that is a whole resolver.
type resolverOf func(context.Context, string) (ReleaseFunc, error)

func (f resolverOf) Wait(ctx context.Context, key string) (ReleaseFunc, error) { return f(ctx, key) }
func (resolverOf) Close()                                                      {}

func TestStreamOrderFIFOsOfDifferentStreamsHaveDifferentHashes(t *testing.T) {
	r := NewFIFO(OrderingOptions{})
	seen := map[uint64]bool{}
	for id := uint64(1); id <= 1000; id++ {
		hash, _ := orderOf(r, id).place("")
		seen[hash] = true
	}
	if len(seen) != 1000 || seen[0] {
		t.Errorf("%d hashes of 1000 streams", len(seen))
	}
}

func TestStreamOrderLanesOfItsOwnAreItsOwn(t *testing.T) {
	r := NewKeyedFIFO(OrderingOptions{})
	one, two := orderOf(r, 1), orderOf(r, 2)
	a, b, c := newPlace(nil), newPlace(nil), newPlace(nil)
	for p, o := range map[*place]*streamOrder{a: one, b: two} {
		if first, why := enqueue(o, "k", p); !first || why != "" {
			t.Fatalf("join() = %v, %q", first, why)
		}
	}
	if first, _ := enqueue(one, "k", c); first {
		t.Error("two of a key have their turn")
	}
	hash, _ := one.place("k")
	if !one.isHead(&a.turn, hash) || one.isHead(&c.turn, hash) {
		t.Error("isHead is wrong")
	}
	if next := leave(one, "k", a, nil); next != &c.turn || c.came != 0 {
		t.Errorf("leave() = %p, want %p, whose owner is not told by it", next, &c.turn)
	}
	if next := leave(one, "k", c, nil); next != nil {
		t.Error("somebody is left")
	}
}

func TestStreamOrderPlacesAreUsedAgain(t *testing.T) {
	o := orderOf(NewKeyedFIFO(OrderingOptions{}), 1)
	places := []*place{newPlace(nil), newPlace(nil), newPlace(nil)}
	for range 5 {
		a, b, c := places[0], places[1], places[2]
		enqueue(o, "k", a)
		enqueue(o, "k", b)
		if leave(o, "k", a, nil) != &b.turn {
			t.Fatal("the turn goes to nobody")
		}
		if first, _ := enqueue(o, "other", a); !first {
			t.Fatal("it waits in a lane of its own")
		}
		enqueue(o, "k", c)
		leave(o, "k", b, nil)
		leave(o, "k", c, nil)
		leave(o, "other", a, nil)
		places = []*place{c, a, b}
	}
	if o.own.lanes != 0 {
		t.Errorf("%d lanes are left", o.own.lanes)
	}
}

func TestStreamOrderTurnsThatComeWaitNoMore(t *testing.T) {
	o := orderOf(NewKeyedFIFO(OrderingOptions{Capacity: 1}), 1)
	last := newPlace(nil)
	enqueue(o, "k", last)
	for range 5 {
		next := newPlace(nil)
		if first, why := enqueue(o, "k", next); first || why != "" {
			t.Fatalf("join() = %v, %q", first, why)
		}
		leave(o, "k", last, nil)
		last = next
	}
}

func TestStreamOrderCancelledWaitGivesItsPlaceUp(t *testing.T) {
	for name, r := range map[string]OrderingResolver{
		"own": NewKeyedFIFO(OrderingOptions{Capacity: 5}), "shared": NewKeyedFIFO(OrderingOptions{Capacity: 5, Scope: ScopeFlow}),
	} {
		t.Run(name, func(t *testing.T) {
			o, home := orderOf(r, 1), new(homeOf)
			a, b, c := newPlace(home), newPlace(home), newPlace(home)
			for _, p := range []*place{a, b, c} {
				enqueue(o, "k", p)
			}
			hash, _ := o.place("k")
			o.cancelWait(&b.turn, hash)
			o.cancelWait(&b.turn, hash) // in no lane
			o.cancelWait(&a.turn, hash) // it has its turn: that is ended by leave
			if !o.isHead(&a.turn, hash) {
				t.Fatal("the first has lost its turn")
			}
			if next := leave(o, "k", a, home); next != &c.turn {
				t.Errorf("leave() = %p, want %p", next, &c.turn)
			}
		})
	}
}

func TestStreamOrderSharedTurnsGoToTheHomeOfWhoWaits(t *testing.T) {
	r := NewKeyedFIFO(OrderingOptions{Scope: ScopeFlow})
	one, two := orderOf(r, 1), orderOf(r, 2)
	home, other := new(homeOf), new(homeOf)
	a, b, c, direct, e := newPlace(home), newPlace(home), newPlace(other), newPlace(nil), newPlace(home)
	if first, _ := enqueue(one, "k", a); !first {
		t.Fatal("the first has to wait")
	}
	for _, p := range []*place{b, c, direct, e} {
		if first, _ := enqueue(two, "k", p); first {
			t.Fatal("two have their turn, of different streams")
		}
	}
	hash, _ := one.place("k")
	if one.shared.follower(&a.turn, hash) != &b.turn || one.shared.follower(&b.turn, hash) != nil {
		t.Error("who follows at home is wrong")
	}
	if next := leave(one, "k", a, home); next != &b.turn {
		t.Errorf("the turn of one at home is not returned: %p", next)
	}
	if next := leave(one, "k", b, home); next != nil || len(other.got) != 1 || other.got[0] != c {
		t.Errorf("the turn of another home comes here: %p; there are %d", next, len(other.got))
	}
	if next := leave(two, "k", c, other); next != nil || direct.came != 1 {
		t.Errorf("a direct caller was told %d times", direct.came)
	}
	if next := leave(two, "k", direct, nil); next != nil || len(home.got) != 1 || home.got[0] != e {
		t.Errorf("what a direct caller leaves is not handed over")
	}
	if len(home.got) != 1 || a.came+b.came+c.came+e.came > 0 {
		t.Error("somebody was told twice")
	}
}

func TestStreamOrderBoundsOfAStreamAreItsOwn(t *testing.T) {
	r := NewKeyedFIFO(OrderingOptions{Capacity: 1})
	for _, o := range []*streamOrder{orderOf(r, 1), orderOf(r, 2)} {
		enqueue(o, "k", newPlace(nil))
		if _, why := enqueue(o, "k", newPlace(nil)); why != "" {
			t.Errorf("the first that waits is refused: %s", why)
		}
		third := newPlace(nil)
		if _, why := enqueue(o, "k", third); why != reasonOrderFull || third.lane != nil {
			t.Errorf("the second that waits: %q", why)
		}
	}
	shared := NewKeyedFIFO(OrderingOptions{Capacity: 1, Scope: ScopeFlow})
	one, two := orderOf(shared, 1), orderOf(shared, 2)
	enqueue(one, "k", newPlace(nil))
	enqueue(one, "k", newPlace(nil))
	if _, why := enqueue(two, "k", newPlace(nil)); why != reasonOrderFull {
		t.Errorf("the second that waits in the Flow: %q", why)
	}
}

func TestExternalOrderAnswersOnceHoweverItEnds(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		wait    func(context.Context, string) (ReleaseFunc, error)
		turn    bool
		crashed bool
		err     error
	}{
		"a turn":   {wait: func(context.Context, string) (ReleaseFunc, error) { return func() {}, nil }, turn: true},
		"an error": {wait: func(context.Context, string) (ReleaseFunc, error) { return nil, broken }, err: broken},
		"a panic":  {wait: func(context.Context, string) (ReleaseFunc, error) { panic(broken) }, crashed: true},
		"a Goexit": {wait: func(context.Context, string) (ReleaseFunc, error) { runtime.Goexit(); return nil, nil }, crashed: true},
		"never mind": {wait: func(ctx context.Context, _ string) (ReleaseFunc, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, err: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := orderOf(resolverOf(c.wait), 1)
				var mu sync.Mutex
				var answers []error
				var turns int
				o.external.turn("k", func(release ReleaseFunc, err error) {
					mu.Lock()
					defer mu.Unlock()
					answers = append(answers, err)
					if release != nil {
						turns++
					}
				})
				synctest.Wait()
				o.end()
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				switch {
				case len(answers) != 1:
					t.Fatalf("%d answers", len(answers))
				case (turns == 1) != c.turn, panicked(answers[0]) != c.crashed, c.err != nil && !errors.Is(answers[0], c.err):
					t.Errorf("%d turns, and the answer %v", turns, answers[0])
				}
			})
		})
	}
}
