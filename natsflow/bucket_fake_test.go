package natsflow

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

var (
	errOutOfSight = errors.New("the bucket is not to be reached")
	errConflict   = errors.New("wrong last revision")
)

// fakeBucket is a bucket in memory, in a bubble. trouble says what becomes of each request. It is safe for concurrent use.
type fakeBucket struct {
	trouble func(what string) trouble

	mu       sync.Mutex
	revision uint64
	cells    map[int]fakeCell
	workers  map[string]time.Time // when each has beaten last
	last     time.Time            // when somebody has
	watches  map[*fakeWatch]struct{}
	put_     func(p int, r record, revision uint64) // is told each write, in its order
}

type fakeCell struct {
	value    []byte
	revision uint64
}

// trouble is what happens to a request: it is answered after delay; or not, with an error, and then it is still done or
// not; or done only after late.
type trouble struct {
	delay time.Duration
	fails bool
	done  bool          // though it fails
	late  time.Duration // it is done so much after it failed
}

func newFakeBucket() *fakeBucket {
	return &fakeBucket{cells: map[int]fakeCell{}, workers: map[string]time.Time{}, watches: map[*fakeWatch]struct{}{}}
}

// request does what there is to do, in trouble or not.
func (b *fakeBucket) request(ctx context.Context, what string, do func() error) error {
	var t trouble
	if b.trouble != nil {
		t = b.trouble(what)
	}
	if t.delay > 0 {
		pause(ctx, t.delay)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	switch {
	case !t.fails:
		return do()
	case t.late > 0:
		time.AfterFunc(t.late, func() { _ = do() })
	case t.done:
		_ = do()
	}
	return errOutOfSight
}

func (b *fakeBucket) get(ctx context.Context, p int) (value []byte, revision uint64, err error) {
	var cell fakeCell // not the results: what is done late must not write to them
	err = b.request(ctx, "get", func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		cell = b.cells[p]
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return cell.value, cell.revision, nil
}

func (b *fakeBucket) put(ctx context.Context, p int, value []byte, revision uint64) (uint64, error) {
	var got uint64 // not a result: what is done late must not write to it
	err := b.request(ctx, "put", func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.cells[p].revision != revision {
			return errConflict
		}
		b.revision++
		got = b.revision
		b.cells[p] = fakeCell{value, got}
		if b.put_ != nil {
			r, err := parseRecord(value)
			if err != nil {
				panic(err)
			}
			b.put_(p, r, got)
		}
		b.tellLocked(change{partition: p, value: value, revision: got})
		return nil
	})
	if err != nil {
		return 0, err
	}
	return got, nil
}

func (b *fakeBucket) beat(ctx context.Context, worker string) error {
	return b.request(ctx, "beat", func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.revision++
		b.last = time.Now()
		b.workers[worker] = b.last
		b.tellLocked(change{partition: -1, worker: worker})
		return nil
	})
}

func (b *fakeBucket) leave(ctx context.Context, worker string) error {
	return b.request(ctx, "leave", func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.workers, worker)
		b.tellLocked(change{partition: -1, worker: worker, gone: true})
		return nil
	})
}

// tidy does nothing: what workers have left does not matter in a bubble.
func (b *fakeBucket) tidy(context.Context, time.Duration) error { return nil }

// fakeWatch is the news for one watcher, in order.
type fakeWatch struct {
	mu   sync.Mutex
	news []change
	more chan struct{}
}

func (w *fakeWatch) add(c change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.news = append(w.news, c)
	select {
	case w.more <- struct{}{}:
	default:
	}
}

func (w *fakeWatch) take() (all []change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all, w.news = w.news, nil
	return all
}

func (b *fakeBucket) tellLocked(c change) {
	for w := range b.watches {
		w.add(c)
	}
}

func (b *fakeBucket) watch(ctx context.Context) (<-chan change, func(), error) {
	ctx, stop := context.WithCancel(ctx)
	w := &fakeWatch{more: make(chan struct{}, 1)}
	b.mu.Lock()
	for p, c := range b.cells {
		w.add(change{partition: p, value: c.value, revision: c.revision})
	}
	for worker, at := range b.workers {
		w.add(change{partition: -1, worker: worker, age: b.last.Sub(at)})
	}
	w.add(change{partition: -1, known: true})
	b.watches[w] = struct{}{}
	b.mu.Unlock()
	changes := make(chan change)
	go func() {
		defer close(changes)
		defer func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			delete(b.watches, w)
		}()
		for {
			for _, c := range w.take() {
				if b.trouble != nil {
					pause(ctx, b.trouble("watch").delay)
				}
				select {
				case changes <- c:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-w.more:
			case <-ctx.Done():
				return
			}
		}
	}()
	return changes, stop, nil
}

// moody is trouble by chance: so many of a hundred requests fail, each in one of the three ways, and others are late.
func moody(r *rand.Rand, percent int, longest time.Duration) func(string) trouble {
	var mu sync.Mutex
	return func(what string) trouble {
		mu.Lock()
		defer mu.Unlock()
		t := trouble{delay: time.Duration(r.Int64N(int64(longest)))}
		if what != "watch" && r.IntN(100) < percent {
			t.fails, t.done = true, r.IntN(2) == 0
			if r.IntN(3) == 0 {
				t.late = time.Duration(r.Int64N(int64(10 * longest)))
			}
		}
		return t
	}
}
