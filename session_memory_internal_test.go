package flow

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

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
