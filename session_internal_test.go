package flow

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"
)

// inMemory is a memory whose sessions are written as "owner/name".
type inMemory struct {
	*sessionMemory
	t rapid.TB
}

func newInMemory(t rapid.TB, most int, idle time.Duration) inMemory {
	return inMemory{NewSessionMemory(most, idle).(*sessionMemory), t}
}

// save saves a new session, or the current version of a known one.
func (m inMemory) save(owner, name string) {
	m.t.Helper()
	id := SessionID{owner, name}
	_, version, _ := m.Load(context.Background(), id)
	if _, err := m.Save(context.Background(), id, SessionState{Epoch: 1}, version); err != nil {
		m.t.Fatalf("%v: %v", id, err)
	}
}

// knows says whether it has the session, without touching it.
func (m inMemory) knows(owner, name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sessions[SessionID{owner, name}] != nil
}

func TestSessionMemoryRefusesImpossibleBounds(t *testing.T) {
	for want, make := range map[string]func(){
		"flow: NewSessionMemory: most must not be negative (got -1)":   func() { NewSessionMemory(-1, 0) },
		"flow: NewSessionMemory: idle must not be negative (got -1ns)": func() { NewSessionMemory(0, -1) },
	} {
		func() {
			defer func() {
				if got := recover(); got != want {
					t.Errorf("panic is %v, want %q", got, want)
				}
			}()
			make()
		}()
	}
	m := newInMemory(t, 0, 0)
	if m.most != 100_000 || m.idle != 24*time.Hour {
		t.Errorf("defaults are %d and %v", m.most, m.idle)
	}
}

func TestSessionMemorySavesTheCurrentVersionOnly(t *testing.T) {
	ctx, id := context.Background(), SessionID{"o", "n"}
	m := NewSessionMemory(0, 0)
	if s, v, err := m.Load(ctx, id); v != 0 || err != nil || s.Epoch != 0 {
		t.Fatalf("an unknown session is %+v, %d, %v", s, v, err)
	}
	if _, err := m.Save(ctx, id, SessionState{}, 1); !errors.Is(err, ErrSessionMoved) {
		t.Fatalf("a version of what is not there: %v", err)
	}
	v1, err := m.Save(ctx, id, SessionState{Epoch: 1, GivenUp: []string{"k"}}, 0)
	if err != nil || v1 == 0 {
		t.Fatal(v1, err)
	}
	v2, err := m.Save(ctx, id, SessionState{Epoch: 2, GivenUp: []string{"k"}}, v1)
	if err != nil || v2 == v1 {
		t.Fatal(v2, err)
	}
	for _, old := range []uint64{0, v1, v2 + 1} {
		if _, err := m.Save(ctx, id, SessionState{Epoch: 9}, old); !errors.Is(err, ErrSessionMoved) {
			t.Errorf("version %d is accepted, the current one is %d: %v", old, v2, err)
		}
	}
	s, v, err := m.Load(ctx, id)
	if err != nil || v != v2 || s.Epoch != 2 {
		t.Fatal(s, v, err)
	}
	s.GivenUp[0] = "changed by who loaded it"
	if s, _, _ := m.Load(ctx, id); s.GivenUp[0] != "k" {
		t.Error("what Load returned is the store's own")
	}
}

func TestSessionMemoryGivesNoVersionTwice(t *testing.T) {
	m := newInMemory(t, 1, 0)
	m.save("o", "a")
	_, v, _ := m.Load(context.Background(), SessionID{"o", "a"})
	m.save("o", "b") // displaces a
	m.save("o", "a")
	if _, err := m.Save(context.Background(), SessionID{"o", "a"}, SessionState{}, v); !errors.Is(err, ErrSessionMoved) {
		t.Error("the version of a session that was forgotten fits the one that came after it")
	}
}

func TestFloodEvictsTheFlooder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newInMemory(t, 10, 0)
		for i := range 3 {
			m.save("quiet", fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		for i := range 1000 {
			m.save("flood", fmt.Sprint(i))
			if len(m.sessions) > 10 {
				t.Fatalf("%d sessions are kept", len(m.sessions))
			}
		}
		for i := range 3 {
			if !m.knows("quiet", fmt.Sprint(i)) {
				t.Errorf("quiet/%d had to go for the flooder's", i)
			}
		}
		for i := range 1000 {
			if got, want := m.knows("flood", fmt.Sprint(i)), i >= 993; got != want {
				t.Fatalf("flood/%d is kept: %v", i, got)
			}
		}
	})
}

func TestSessionMemoryEvictsTheLongestIdleOfEqualOwners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newInMemory(t, 3, 0)
		for _, owner := range []string{"a", "b", "c"} {
			m.save(owner, "1")
			time.Sleep(time.Second)
		}
		m.save("a", "1") // now b's is the longest idle
		m.save("d", "1")
		if m.knows("b", "1") || !m.knows("a", "1") || !m.knows("c", "1") || !m.knows("d", "1") {
			t.Errorf("kept: %v", m.sessions)
		}
		if len(m.owners) != 3 || len(m.eldest) != 3 {
			t.Errorf("%d owners are kept, %d with an idle session", len(m.owners), len(m.eldest))
		}
	})
}

func TestInUseIsNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newInMemory(t, 2, time.Hour)
		used := SessionID{"o", "used"}
		m.use(used) // before there is any, as a stream does
		m.use(used) // by a second one, which waits for the first
		m.save("o", "used")
		for i := range 10 {
			m.save("o", fmt.Sprint(i))
		}
		time.Sleep(48 * time.Hour)
		m.save("o", "x")
		if !m.knows("o", "used") {
			t.Fatal("a session in use was forgotten")
		}
		m.unuse(used)
		time.Sleep(48 * time.Hour)
		m.save("o", "x")
		if !m.knows("o", "used") {
			t.Fatal("a session that is still in use by one stream was forgotten")
		}
		m.unuse(used)
		time.Sleep(time.Hour)
		m.save("o", "y")
		if !m.knows("o", "used") {
			t.Fatal("idle is counted from before its use")
		}
		time.Sleep(time.Second)
		m.save("o", "z")
		if m.knows("o", "used") || len(m.inUse) != 0 {
			t.Fatal("it stays for ever")
		}
	})
}

func TestSessionMemoryGrowsBeyondItsBoundOnlyByWhatIsInUse(t *testing.T) {
	m := newInMemory(t, 2, 0)
	for i := range 5 {
		m.use(SessionID{"o", fmt.Sprint(i)})
		m.save("o", fmt.Sprint(i))
	}
	if len(m.sessions) != 5 {
		t.Fatalf("%d of 5 sessions in use are kept", len(m.sessions))
	}
	for i := range 5 {
		m.unuse(SessionID{"o", fmt.Sprint(i)})
	}
	if len(m.sessions) != 2 {
		t.Errorf("%d sessions are kept", len(m.sessions))
	}
}

// TestSessionMemoryMatchesAModel compares it with the rules, written down plainly.
func TestSessionMemoryMatchesAModel(t *testing.T) {
	type kept struct{ since time.Time }
	outer := t
	rapid.Check(t, func(t *rapid.T) {
		synctest.Test(outer, func(*testing.T) {
			const most, idle = 4, 10 * time.Second
			m := newInMemory(t, most, idle)
			model := map[SessionID]*kept{}
			uses := map[SessionID]int{}
			expire := func() {
				for id, k := range model {
					if uses[id] == 0 && time.Since(k.since) > idle {
						delete(model, id)
					}
				}
			}
			evict := func(newcomer SessionID) {
				for len(model) > most {
					count := map[string]int{}
					for id := range model {
						count[id.Owner]++
					}
					var victim SessionID
					for id, k := range model {
						if uses[id] > 0 || id == newcomer {
							continue
						}
						v := model[victim]
						if v == nil || count[id.Owner] > count[victim.Owner] ||
							count[id.Owner] == count[victim.Owner] && k.since.Before(v.since) {
							victim = id
						}
					}
					if model[victim] == nil {
						return
					}
					delete(model, victim)
				}
			}
			draw := func() SessionID {
				return SessionID{rapid.StringOfN(rapid.RuneFrom([]rune("ABC")), 1, 1, 1).Draw(t, "owner"),
					rapid.StringOfN(rapid.RuneFrom([]rune("abc")), 1, 1, 1).Draw(t, "name")}
			}
			t.Repeat(map[string]func(*rapid.T){
				"save": func(t *rapid.T) {
					id := draw()
					m.save(id.Owner, id.Name)
					expire()
					if model[id] == nil {
						model[id] = &kept{}
						evict(id)
					}
					model[id].since = time.Now()
				},
				"use": func(t *rapid.T) {
					id := draw()
					expire()
					m.use(id)
					uses[id]++
				},
				"unuse": func(t *rapid.T) {
					id := draw()
					if uses[id] == 0 {
						return
					}
					m.unuse(id)
					if uses[id]--; uses[id] > 0 {
						return
					}
					if model[id] != nil {
						model[id].since = time.Now()
					}
					expire()
					evict(SessionID{})
				},
				"": func(t *rapid.T) {
					time.Sleep(time.Duration(rapid.IntRange(1, 4000).Draw(t, "ms")) * time.Millisecond)
					if len(m.sessions) != len(model) {
						t.Fatalf("kept %d, the model has %d", len(m.sessions), len(model))
					}
					for id := range model {
						if m.sessions[id] == nil {
							t.Fatalf("%v is missing", id)
						}
					}
				},
			})
		})
	})
}

func TestIdleSessionsTakeAtMost512BytesEach(t *testing.T) {
	const n = 100_000
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	ctx := context.Background()
	for _, owners := range []int{1, n} {
		before := heap()
		m := NewSessionMemory(n, 0)
		for i := range n {
			id := SessionID{fmt.Sprintf("tenant-%06d", i%owners), fmt.Sprintf("%032x", i)}
			m.(*sessionMemory).use(id)
			v, err := m.Save(ctx, id, SessionState{Epoch: 1, Fence: 1}, 0)
			if err != nil {
				t.Fatal(err)
			}
			progress := Summary{Received: 1000, Committed: 1000}.Progress()
			if _, err := m.Save(ctx, id, SessionState{Epoch: 1, Fence: 1, Progress: progress}, v); err != nil {
				t.Fatal(err)
			}
			m.(*sessionMemory).unuse(id)
		}
		each := (heap() - before) / n
		if kept := len(m.(*sessionMemory).sessions); kept != n || each > 512 {
			t.Errorf("%d idle sessions of %d owners take %d bytes each", kept, owners, each)
		}
		t.Logf("%d owners: %d bytes each", owners, each)
		runtime.KeepAlive(m)
	}
}

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
		ends: func(f *Failure) {
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

func TestSettledBeforeJoinsStoreAndClient(t *testing.T) {
	stored := func(received uint64, unsettled ...uint64) Progress {
		return Progress{received: received, unsettled: unsettled}
	}
	for _, c := range []struct {
		name   string
		stored Progress
		first  uint64
		skip   []uint64
		want   string // last, holes, ahead
	}{
		{"nothing is known", Progress{}, 1, nil, "0 [] []"},
		{"what the store has", stored(9, 3, 7), 1, nil, "9 [3 7] []"},
		{"below the first all counts as settled", stored(9, 3, 7), 5, nil, "9 [7] []"},
		{"a hole is the first", stored(9, 3, 7), 3, nil, "9 [3 7] []"},
		{"the store is older than the client", stored(9, 3, 7), 20, nil, "19 [] []"},
		{"the store is gone", Progress{}, 20, nil, "19 [] []"},
		{"a hole is given up", stored(9, 3, 7), 1, []uint64{7}, "9 [3] []"},
		{"a settled one is given up", stored(9, 3, 7), 1, []uint64{4}, "9 [3 7] []"},
		{"the last one is given up", stored(9, 3), 1, []uint64{9}, "9 [3] []"},
		{"the next one is given up", stored(9, 3), 1, []uint64{10}, "10 [3] []"},
		{"the next ones are given up", stored(9), 1, []uint64{10, 11, 13}, "11 [] [13]"},
		{"one is given up ahead", stored(9), 1, []uint64{11}, "9 [] [11]"},
		{"one is given up very far ahead", stored(9), 1, []uint64{1 << 62}, "9 [] [4611686018427387904]"},
		{"the first itself is given up", Progress{}, 20, []uint64{20}, "20 [] []"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := mergeSettled(c.stored, c.first, c.skip)
			if got := fmt.Sprint(b.last, b.holes, b.ahead); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// TestSettledBeforeMatchesASet compares it with a plain set of numbers, from the merge through a stream of any length to
// the merge of the next one.
func TestSettledBeforeMatchesASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const top = 40
		set := map[uint64]bool{}
		var progress Progress
		for range rapid.IntRange(1, 4).Draw(t, "streams") {
			first := rapid.Uint64Range(1, top).Draw(t, "first")
			skip := rapid.SliceOfNDistinct(rapid.Uint64Range(first, top), 0, 5, rapid.ID).Draw(t, "skip")
			slices.Sort(skip)
			b := mergeSettled(progress, first, skip)
			for seq := range first {
				set[seq] = true
			}
			highest := first - 1
			last := max(progress.received, highest) // the highest number known of: above it a skip may be told again
			for _, seq := range skip {
				if set[seq] = true; seq == last+1 {
					last = seq
				}
			}
			n := rapid.Uint64Range(0, top-highest).Draw(t, "received")
			var open []uint64
			committed := highest
			for range n {
				highest++
				if b.settled(highest) != set[highest] {
					t.Fatalf("%d is settled: %v, want %v (%+v)", highest, b.settled(highest), set[highest], b)
				}
				if !set[highest] {
					if set[highest] = rapid.Bool().Draw(t, "settles"); !set[highest] {
						open = append(open, highest)
					}
				}
				if len(open) == 0 {
					committed = highest
				}
			}
			last = max(last, highest)
			for slices.Contains(skip, last+1) {
				last++
			}
			progress = b.progress(highest, open)
			want := uint64(0)
			for set[want+1] && want < last {
				want++
			}
			if got := b.through(committed, highest); got != want || progress.Committed() != want {
				t.Fatalf("committed is %d and %d, want %d (%+v)", got, progress.Committed(), want, b)
			}
			if progress.received != last {
				t.Fatalf("knows of 1 to %d, want %d", progress.received, last)
			}
			for seq := uint64(1); seq <= last; seq++ {
				if progress.Settled(seq) != set[seq] {
					t.Fatalf("%d is settled: %v, want %v in %+v", seq, progress.Settled(seq), set[seq], progress)
				}
			}
			for seq := range set { // what is told ahead and not reached is forgotten: the client says it again
				if seq > last {
					delete(set, seq)
				}
			}
		}
	})
}

func TestHolesStayBoundedFromStreamToStream(t *testing.T) {
	const pending = 100
	var p Progress
	for stream := range 50 {
		b := mergeSettled(p, p.Committed()+1, nil)
		// The stream reads what it can while none of it settles: as many as may be pending.
		var open []uint64
		highest := b.first - 1
		for len(open) < pending {
			if highest++; !b.settled(highest) {
				open = append(open, highest)
			}
		}
		// All but every tenth of them settles.
		open = slices.DeleteFunc(open, func(seq uint64) bool { return seq%10 != uint64(stream%10) })
		p = b.progress(highest, open)
		if n := len(p.unsettled); n > pending {
			t.Fatalf("after stream %d there are %d holes", stream, n)
		}
	}
}

// contender is a stream that wants the one session of a test.
type contender struct {
	table  *sessionTable
	turn   *sessionTurn
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{}
	why    *Failure // why it has not got the session
}

const testTakeover = 10 * time.Second

// contend enters with an epoch, 0 for a claim, and waits in the background.
func contend(t *testing.T, table *sessionTable, epoch uint64) *contender {
	t.Helper()
	c := &contender{table: table, done: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancelCause(t.Context())
	c.turn = &sessionTurn{
		id: SessionID{"o", "n"}, epoch: epoch, came: make(chan struct{}), end: func(f *Failure) { c.cancel(f) },
	}
	go func() {
		defer close(c.done)
		if c.why = table.enter(c.turn); c.why == nil {
			c.why = table.wait(c.ctx, c.turn, testTakeover)
		}
		if c.why != nil {
			table.leave(c.turn)
		}
	}()
	synctest.Wait()
	return c
}

// state says what became of it: "waits", "holds", "ended" by a next one while it holds, or the code of the refusal and the
// epoch that it names.
func (c *contender) state() string {
	synctest.Wait()
	select {
	case <-c.done:
	default:
		return "waits"
	}
	why := c.why
	text := "holds"
	if why != nil {
		text = "refused"
	} else if why = endOfContext(c.ctx); why != nil {
		text = "ended"
	} else {
		return text
	}
	text += " " + why.GRPCStatus().Code().String()
	if e := sessionErrorOf(why); e != nil && e.epoch > 0 {
		if !errors.Is(why, ErrSessionMoved) {
			panic("it moved and is no ErrSessionMoved")
		}
		text += fmt.Sprint(" ", e.epoch)
	}
	return text
}

func (c *contender) want(t *testing.T, state string) {
	t.Helper()
	if got := c.state(); got != state {
		t.Fatalf("it is %q, want %q", got, state)
	}
}

// begin has the holder learn its epoch.
func (c *contender) begin(epoch uint64) { c.table.began(c.turn, epoch) }

func (c *contender) leave() {
	c.table.leave(c.turn)
	synctest.Wait()
}

// inTable runs test in a bubble and sees to it that nothing stays in the table.
func inTable(t *testing.T, test func(t *testing.T, table *sessionTable)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		table := newSessionTable()
		test(t, table)
		if len(table.slots) > 0 {
			t.Errorf("%d sessions stay in the table", len(table.slots))
		}
	})
}

func TestSessionTableEndsTheEarlierStreamOfTheSameWriter(t *testing.T) {
	inTable(t, func(t *testing.T, table *sessionTable) {
		first := contend(t, table, 0)
		first.want(t, "holds")
		first.begin(7)
		second := contend(t, table, 7)
		first.want(t, "ended Aborted 7")
		second.want(t, "waits")
		third := contend(t, table, 7)
		second.want(t, "refused Aborted 7")
		third.want(t, "waits")
		first.leave()
		third.want(t, "holds")
		third.begin(7)
		third.leave()
	})
}

func TestSessionTableEndsTheWriterForAClaim(t *testing.T) {
	inTable(t, func(t *testing.T, table *sessionTable) {
		writer := contend(t, table, 7)
		writer.begin(7)
		claim := contend(t, table, 0)
		writer.want(t, "ended FailedPrecondition 8")
		claim.want(t, "waits")
		back := contend(t, table, 7) // the writer, which has not heard of the claim
		back.want(t, "refused FailedPrecondition 8")
		claim.want(t, "waits")
		again := contend(t, table, 0) // the claim whose answer was lost
		claim.want(t, "refused FailedPrecondition 8")
		writer.leave()
		again.want(t, "holds")
		again.begin(8)
		back = contend(t, table, 7)
		back.want(t, "refused FailedPrecondition 8")
		again.want(t, "holds")
		again.leave()
	})
}

func TestSessionTableLowerEpochDisturbsNobody(t *testing.T) {
	inTable(t, func(t *testing.T, table *sessionTable) {
		holder := contend(t, table, 7)
		contend(t, table, 6).want(t, "refused FailedPrecondition 7")
		holder.want(t, "holds")
		waiter := contend(t, table, 9) // the server has forgotten
		holder.want(t, "ended FailedPrecondition 9")
		contend(t, table, 8).want(t, "refused FailedPrecondition 9")
		waiter.want(t, "waits")
		holder.leave()
		waiter.want(t, "holds")
		waiter.leave()
	})
}

func TestSessionTableLetsABeginningClaimLearnItsEpoch(t *testing.T) {
	inTable(t, func(t *testing.T, table *sessionTable) {
		claim := contend(t, table, 0)
		deposed := contend(t, table, 7)
		claim.want(t, "holds") // it may well be the seven's own
		deposed.want(t, "waits")
		claim.begin(8)
		deposed.want(t, "refused FailedPrecondition 8")
		claim.want(t, "holds")
		claim.leave()

		claim = contend(t, table, 0)
		above := contend(t, table, 7)
		claim.begin(1) // the store has forgotten
		claim.want(t, "ended FailedPrecondition 7")
		claim.leave()
		above.want(t, "holds")
		above.leave()

		claim = contend(t, table, 0)
		next := contend(t, table, 0)
		claim.want(t, "ended FailedPrecondition 1")
		contend(t, table, 7).want(t, "refused FailedPrecondition 8")
		claim.leave()
		next.want(t, "holds")
		next.leave()
	})
}

func TestSessionTableTakeoverTimesOut(t *testing.T) {
	inTable(t, func(t *testing.T, table *sessionTable) {
		holder := contend(t, table, 7)
		waiter := contend(t, table, 7)
		time.Sleep(testTakeover - 1)
		waiter.want(t, "waits")
		time.Sleep(time.Nanosecond)
		waiter.want(t, "refused Unavailable")
		if detailOfRetry(waiter.why) == 0 {
			t.Error("it is not told when to try again")
		}
		next := contend(t, table, 7)
		holder.leave()
		next.want(t, "holds")
		next.leave()
	})
}

func TestSessionTableWaitEndsWithItsStream(t *testing.T) {
	inTable(t, func(t *testing.T, table *sessionTable) {
		holder := contend(t, table, 7)
		waiter := contend(t, table, 7)
		waiter.cancel(&Failure{Kind: FailureShutdown, Err: reasonShutdown})
		waiter.want(t, "refused Unavailable")
		if waiter.why.Kind != FailureShutdown {
			t.Errorf("refused with %v", waiter.why)
		}
		waiter = contend(t, table, 7)
		waiter.cancel(nil)
		waiter.want(t, "refused Canceled")
		holder.leave()
	})
}

func TestSessionTableKeepsSessionsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newSessionTable()
		a := contend(t, table, 7)
		b := &sessionTurn{id: SessionID{"p", "n"}, epoch: 7, came: make(chan struct{})}
		if f := table.enter(b); f != nil {
			t.Fatal(f)
		}
		if f := table.wait(t.Context(), b, testTakeover); f != nil {
			t.Fatal(f)
		}
		a.want(t, "holds")
	})
}

// detailOfRetry is the delay of the RetryInfo in f's status, in seconds.
func detailOfRetry(f *Failure) int64 {
	for _, d := range f.GRPCStatus().Details() {
		if info, ok := d.(interface{ GetRetryDelay() *durationpb.Duration }); ok {
			return info.GetRetryDelay().GetSeconds()
		}
	}
	return 0
}

func TestSessionRequestIsRead(t *testing.T) {
	for _, c := range []struct {
		name string
		md   metadata.MD
		want string
	}{
		{"no session: the others mean nothing", metadata.Pairs("flow-start", "x", "flow-skip", "", "flow-epoch", "0"), "not asked"},
		{"a name alone claims", metadata.Pairs("flow-session", "n"), "{n 1 0 []}"},
		{"all of it", metadata.Pairs("flow-session", "n", "flow-start", "7", "flow-epoch", "3", "flow-skip", "7,9,4611686018427387904"),
			"{n 7 3 [7 9 4611686018427387904]}"},
		{"the longest name", metadata.Pairs("flow-session", strings.Repeat("~", 128)), "{" + strings.Repeat("~", 128) + " 1 0 []}"},
		{"the highest start", metadata.Pairs("flow-session", "!", "flow-start", "4611686018427387904"), "{! 4611686018427387904 0 []}"},
		{"as many skips as there may be", metadata.Pairs("flow-session", "n", "flow-skip", numbers(64)),
			"{n 1 0 [" + strings.ReplaceAll(numbers(64), ",", " ") + "]}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, asked, err := parseSessionRequest(c.md)
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprint(r)
			if !asked {
				got = "not asked"
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// numbers is 1 to n, joined by commas.
func numbers(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprint(i+1))
	}
	return strings.Join(list, ",")
}

func TestMalformedHeadersAreRefusedByName(t *testing.T) {
	const secret = "secret-name"
	for header, values := range map[string][]string{
		"flow-session": {"", " ", "a b", "é", "a\x7f", "a\x00", secret + "\n", strings.Repeat("x", 129)},
		"flow-start":   {"", "0", "-1", "+1", "01", " 1", "1.0", "1e3", "0x1", "one", "4611686018427387905", "18446744073709551616", strings.Repeat("9", 9999)},
		"flow-epoch":   {"", "0", "-1", "+1", "01", "x", "18446744073709551616"},
		"flow-skip":    {"", ",", "5,", ",5", "5,,6", "4", "5,5", "6,5", "5, 6", "0", "-5", "4611686018427387905", numbers(65), strings.Repeat(",", 100_000)},
	} {
		for _, value := range values {
			md := metadata.Pairs("flow-session", secret, "flow-start", "5")
			md.Set(header, value)
			_, asked, err := parseSessionRequest(md)
			if !asked || err == nil {
				t.Errorf("%s %.40q is accepted", header, value)
				continue
			}
			f := malformedFailure(err)
			st := f.GRPCStatus()
			if st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), header) || len(st.Message()) > 200 {
				t.Errorf("%s %.40q is refused with %v", header, value, st)
			}
			if strings.Contains(st.String(), secret) || strings.Contains(f.Error(), secret) {
				t.Errorf("the name is in %v", f)
			}
		}
	}
	for _, header := range []string{"flow-session", "flow-start", "flow-epoch", "flow-skip"} {
		md := metadata.Pairs("flow-session", secret)
		md.Set(header, "5", "5")
		if _, asked, err := parseSessionRequest(md); !asked || err == nil || !strings.Contains(err.Error(), header+" must not come twice") {
			t.Errorf("%s twice: %v", header, err)
		}
	}
}

func TestHeaderAndTrailerStayWithin2KiB(t *testing.T) {
	// Distances that take five bytes each, more of them than ever fit, and the longest of all other values.
	p := Progress{received: math.MaxUint64 >> 1}
	for i := range 5000 {
		p.unsettled = append(p.unsettled, 1<<62+uint64(i)<<34)
	}
	for name, md := range map[string]metadata.MD{
		"header":  sessionHeader(math.MaxUint64, sessionKnown, p),
		"trailer": sessionTrailer(math.MaxUint64, p, math.MaxUint64),
	} {
		size := 0
		for key, values := range md {
			for _, value := range values {
				if strings.HasSuffix(key, "-bin") {
					value = base64.StdEncoding.EncodeToString([]byte(value))
				}
				size += len(key) + len(value) + 32 // as HTTP/2 counts a header
			}
		}
		if size > 2048 || size < 1900 {
			t.Errorf("the %s takes %d bytes", name, size)
		}
		got, ok := ProgressFromTrailer(md)
		if !ok || got.Committed() != p.Committed() || len(got.unsettled) < 200 {
			t.Errorf("the %s says %d, %v, with %d holes", name, got.Committed(), ok, len(got.unsettled))
		}
	}
}

func TestSessionTrailerSaysWhichMessageFailed(t *testing.T) {
	p := Progress{received: 7, unsettled: []uint64{5}}
	md := sessionTrailer(3, p, failedSeq(&Failure{Kind: FailureHandlerError, Seq: 5}))
	if got := fmt.Sprint(md.Get("flow-epoch"), md.Get("flow-committed"), md.Get("flow-failed")); got != "[3] [4] [5]" {
		t.Errorf("trailers are %s", got)
	}
	for _, f := range []*Failure{nil, {Kind: FailureInternal}, {Kind: FailureContextCancelled, Seq: 5}, {Kind: FailureShutdown, Seq: 5}} {
		if md := sessionTrailer(3, p, failedSeq(f)); len(md.Get("flow-failed")) > 0 {
			t.Errorf("%v is no message's own failure, and yet it is in %v", f, md)
		}
	}
}

// The first tick may come before start has returned: it uses the timer, which start has just made.
func TestSaverMayTickAtOnce(t *testing.T) {
	for range 200 {
		ticked := make(chan struct{}, 1)
		s := &sessionSaver{
			calls: sessionCalls{NewSessionMemory(0, 0), time.Second}, id: savedID, every: 1,
			view: func() (Progress, []string) {
				select {
				case ticked <- struct{}{}:
				default:
				}
				return Progress{received: 1, unsettled: []uint64{1}}, nil
			},
			failed: func(error) {}, ends: func(*Failure) {},
		}
		s.ctx, s.cancel = context.WithCancelCause(context.Background())
		s.start(SessionState{}, 0)
		<-ticked
		s.finish()
		s.cancel(nil)
	}
}

// A Close that comes when the stream is over has nothing to hurry: its timer held the session for another second.
func TestHurryAfterReleaseStartsNoTimer(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		of := newSessions(SessionOptions{})
		st, f := of.ask(metadata.NewIncomingContext(t.Context(), metadata.Pairs(headerSession, "a")))
		if f != nil {
			t.Fatal(f)
		}
		st.release()
		st.hurry()
		if st.deadline.timer != nil {
			t.Error("a timer was started")
		}
	})
}
