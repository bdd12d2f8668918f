package flow

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// scriptedStore is a store whose calls do what the test says, and what they say they did.
type scriptedStore struct {
	SessionStore

	mu   sync.Mutex
	save func(ctx context.Context) error // nil: does what a store does. An error is returned after it was done
	lazy bool                            // such an error is returned before anything was done
	log  []string
}

// scripts has Save do as it says from now on.
func (s *scriptedStore) scripts(lazy bool, save func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lazy, s.save = lazy, save
}

// enters notes a call and returns what it is to do.
func (s *scriptedStore) enters(call string) (lazy bool, save func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, call)
	return s.lazy, s.save
}

func (s *scriptedStore) Load(ctx context.Context, id SessionID) (SessionState, uint64, error) {
	s.enters("load")
	return s.SessionStore.Load(ctx, id)
}

func (s *scriptedStore) Save(ctx context.Context, id SessionID, state SessionState, version uint64) (uint64, error) {
	lazy, save := s.enters(fmt.Sprint("save ", state.Progress.Committed()))
	if lazy && save != nil {
		if err := save(ctx); err != nil {
			return 0, err
		}
	}
	next, err := s.SessionStore.Save(ctx, id, state, version)
	if !lazy && save != nil && err == nil {
		if err := save(ctx); err != nil {
			return 0, err
		}
	}
	return next, err
}

// said returns the log and begins a new one.
func (s *scriptedStore) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.log = nil }()
	return strings.Join(s.log, ", ")
}

// saving is a saver whose stream the test plays.
type saving struct {
	*sessionSaver
	store *scriptedStore

	mu       sync.Mutex
	progress Progress
	failures []error
	told     *Failure // how the stream is to end
}

var savedID = SessionID{"o", "n"}

func newSaving(t *testing.T) *saving {
	t.Helper()
	v := &saving{store: &scriptedStore{SessionStore: NewSessionMemory(0, 0)}}
	state := SessionState{Epoch: 3, Fence: 5}
	version, err := v.store.Save(t.Context(), savedID, state, 0)
	if err != nil {
		t.Fatal(err)
	}
	v.sessionSaver = &sessionSaver{
		calls: sessionCalls{v.store, testTakeover}, id: savedID, every: time.Second,
		view: func() (Progress, []string) {
			v.mu.Lock()
			defer v.mu.Unlock()
			return v.progress, nil
		},
		failed: func(err error) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.failures = append(v.failures, err)
		},
		moved: func(f *Failure) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.told = f
		},
	}
	v.ctx, v.cancel = context.WithCancelCause(context.Background())
	v.start(state, version)
	time.Sleep(2 * time.Second) // nothing has changed: it is at rest
	v.store.said()
	return v
}

// settles has the stream settle all up to n, as one that has received a message.
func (v *saving) settles(n uint64) { v.has(Progress{received: n}) }

func (v *saving) has(p Progress) {
	v.mu.Lock()
	v.progress = p
	v.mu.Unlock()
	v.touch()
}

func (v *saving) want(t *testing.T, log string, failures int) {
	t.Helper()
	synctest.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	if got := v.store.said(); got != log {
		t.Errorf("the store saw %q, want %q", got, log)
	}
	if len(v.failures) != failures {
		t.Errorf("%d failures are told, want %d: %v", len(v.failures), failures, v.failures)
	}
}

// take has another Flow take the session.
func (v *saving) take(t *testing.T, epoch uint64) {
	t.Helper()
	state, version, _ := v.store.SessionStore.Load(t.Context(), savedID)
	state.Epoch, state.Fence = epoch, state.Fence+1
	if _, err := v.store.SessionStore.Save(t.Context(), savedID, state, version); err != nil {
		t.Fatal(err)
	}
}

func inBubble(t *testing.T, test func(t *testing.T)) { t.Helper(); synctest.Test(t, test) }

func TestSaverSavesOnChangeOnly(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newSaving(t)
		time.Sleep(time.Hour)
		v.want(t, "", 0)
		v.settles(1)
		v.settles(2)
		time.Sleep(time.Second - 1)
		v.want(t, "", 0)
		time.Sleep(time.Nanosecond)
		v.want(t, "save 2", 0)
		time.Sleep(time.Hour)
		v.want(t, "", 0)

		v.has(Progress{received: 4, unsettled: []uint64{3}})
		time.Sleep(3 * time.Second)
		v.want(t, "save 2", 0)
		v.mu.Lock()
		v.progress = Progress{received: 4} // and no message comes any more
		v.mu.Unlock()
		time.Sleep(time.Second)
		v.want(t, "save 4", 0)
		if lost, version := v.finish(); lost != nil || version == 0 {
			t.Error(lost, version)
		}
		v.want(t, "", 0)
	})
}

func TestSaverSavesAtTheEnd(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newSaving(t)
		v.settles(1)
		lost, version := v.finish()
		v.want(t, "save 1", 0)
		if _, current, _ := v.store.SessionStore.Load(t.Context(), savedID); lost != nil || version != current {
			t.Errorf("the version is %d, the store's is %d; %v", version, current, lost)
		}
		time.Sleep(time.Hour)
		v.want(t, "", 0)
	})
}

func TestSaverTriesAgainAfterALoad(t *testing.T) {
	for name, lazy := range map[string]bool{"the Save was done": false, "it was not": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				v := newSaving(t)
				v.store.scripts(lazy, func(context.Context) error { return errors.New("down") })
				v.settles(1)
				time.Sleep(time.Second)
				v.want(t, "save 1", 1)
				time.Sleep(time.Second)
				v.want(t, "load, save 1", 2)
				v.store.scripts(false, nil)
				time.Sleep(time.Second)
				v.want(t, "load, save 1", 2)
				v.settles(2)
				time.Sleep(time.Second)
				v.want(t, "save 2", 2)
				if lost, version := v.finish(); lost != nil || version == 0 {
					t.Error(lost, version)
				}
			})
		})
	}
}

func TestSaverFinishesAlthoughTheStoreFails(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newSaving(t)
		v.store.scripts(false, func(context.Context) error { return errors.New("down") })
		v.settles(1)
		if lost, version := v.finish(); lost != nil || version != 0 {
			t.Error(lost, version)
		}
		v.want(t, "save 1", 1)
	})
}

func TestSaverEndsAStreamWhoseSessionMoved(t *testing.T) {
	for _, c := range []struct {
		name  string
		epoch uint64
		want  string
	}{
		{"to a claim", 4, "FailedPrecondition 4"},
		{"to the writer's next stream in another process", 3, "Aborted 3"},
	} {
		for _, atEnd := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, ", seen at the end: ", atEnd), func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					v := newSaving(t)
					v.take(t, c.epoch)
					v.settles(1)
					if !atEnd {
						time.Sleep(time.Second)
						v.want(t, "save 1, load", 0)
						if v.told == nil {
							t.Fatal("the stream is not told")
						}
						v.settles(2)
						time.Sleep(time.Second)
					}
					lost, version := v.finish()
					if atEnd {
						v.want(t, "save 1, load", 0)
					} else {
						v.want(t, "", 0)
					}
					if lost == nil || lost != v.told || version != 0 || !errors.Is(lost, ErrSessionMoved) {
						t.Fatal(lost, version)
					}
					if got := fmt.Sprint(lost.GRPCStatus().Code(), " ", sessionErrorOf(lost).epoch); got != c.want {
						t.Errorf("ended with %s, want %s", got, c.want)
					}
				})
			})
		}
	}
}

func TestSaverWaitsForAHangingStoreOnlySoLong(t *testing.T) {
	for name, hang := range map[string]func(context.Context){
		"one that heeds its context":  func(ctx context.Context) { <-ctx.Done() },
		"one that doesn't":            func(context.Context) { time.Sleep(time.Hour) },
		"one that ends its goroutine": func(context.Context) { time.Sleep(testTakeover); runtime.Goexit() },
		"one that panics in the end":  func(context.Context) { time.Sleep(testTakeover); panic("broken") },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				v := newSaving(t)
				v.store.scripts(true, func(ctx context.Context) error { hang(ctx); return ctx.Err() })
				v.settles(1)
				began := time.Now()
				v.finish()
				if took := time.Since(began); took != testTakeover {
					t.Errorf("the end took %v", took)
				}
				v.want(t, "save 1", 1)

				v = newSaving(t)
				v.store.scripts(true, func(ctx context.Context) error { hang(ctx); return ctx.Err() })
				v.settles(1)
				time.Sleep(time.Second + testTakeover/2) // half of a Save that hangs
				began = time.Now()
				v.finish()
				if took := time.Since(began); took > testTakeover {
					t.Errorf("with a Save under way the end took %v", took)
				}
				time.Sleep(2 * time.Hour) // for the store's own goroutines
			})
		})
	}
}

func TestSaverHurriesWhenItsContextEnds(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newSaving(t)
		v.store.scripts(true, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		v.settles(1)
		time.AfterFunc(time.Second/2, func() { v.cancel(errStoreTimeout) })
		began := time.Now()
		v.finish()
		if took := time.Since(began); took != time.Second/2 {
			t.Errorf("the end took %v", took)
		}
	})
}
