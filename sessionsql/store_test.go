package sessionsql_test

import (
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/sessionsql"
)

func TestNewRefusesWhatCantBe(t *testing.T) {
	db := new(sql.DB)
	for want, make := range map[string]func() (*sessionsql.Store, error){
		"db must not be nil": func() (*sessionsql.Store, error) {
			return sessionsql.New(nil, sessionsql.Options{Dialect: sessionsql.SQLite})
		},
		"Options.Dialect must be SQLite or PostgreSQL (got Dialect(0))": func() (*sessionsql.Store, error) {
			return sessionsql.New(db, sessionsql.Options{})
		},
		`Options.Table must be letters, digits and underscores, maybe behind a schema (got "a; DROP TABLE b")`: func() (*sessionsql.Store, error) {
			return sessionsql.New(db, sessionsql.Options{Dialect: sessionsql.PostgreSQL, Table: "a; DROP TABLE b"})
		},
	} {
		if _, err := make(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if _, err := sessionsql.New(db, sessionsql.Options{Dialect: sessionsql.PostgreSQL, Table: "uploads.sessions"}); err != nil {
		t.Error(err)
	}
}

// PostgreSQL cuts names at 63 bytes: both tables would be one, or that of another Store.
func TestNewRefusesATableThatLeavesNoRoomForTheOthersName(t *testing.T) {
	db := new(sql.DB)
	for _, schema := range []string{"", "uploads."} {
		fits := schema + strings.Repeat("t", 58)
		if _, err := sessionsql.New(db, sessionsql.Options{Dialect: sessionsql.PostgreSQL, Table: fits}); err != nil {
			t.Error(err)
		}
		want := fmt.Sprintf("Options.Table must be at most 58 bytes long behind the schema, so that PostgreSQL does not cut the names (got %q)", fits+"t")
		if _, err := sessionsql.New(db, sessionsql.Options{Dialect: sessionsql.PostgreSQL, Table: fits + "t"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		if _, err := sessionsql.New(db, sessionsql.Options{Dialect: sessionsql.SQLite, Table: fits + "t"}); err != nil {
			t.Error("SQLite cuts no names:", err)
		}
	}
}

func TestTheLongestTableNameWorks(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		db.table += strings.Repeat("t", 58-len(db.table))
		s := db.store(t)
		if err := s.CreateTables(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Save(t.Context(), flow.SessionID{Name: "n"}, aState(1), 0); err != nil {
			t.Fatal(err)
		}
		if db.count(t, "") != 1 || db.count(t, "_done") != 0 {
			t.Error("the two tables are one")
		}
	})
}

// aState is one in which everything is set.
func aState(committed uint64) flow.SessionState {
	return flow.SessionState{
		Epoch: 3, Fence: 5, GivenUp: []string{"a", "", "\xff\x00"},
		Progress: flow.Summary{Received: committed + 3, Committed: committed, Unsettled: []uint64{committed + 1, committed + 3}}.Progress(),
	}
}

func TestStoreSavesTheCurrentVersionOnly(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		ctx, s := t.Context(), db.store(t)
		for _, id := range []flow.SessionID{
			{Owner: "o", Name: "n"}, {Name: "n"}, {Owner: "o/n"}, {Owner: "\x00\xff%", Name: strings.Repeat("~", 128)},
		} {
			if state, v, err := s.Load(ctx, id); v != 0 || err != nil || !reflect.DeepEqual(state, flow.SessionState{}) {
				t.Fatalf("an unknown session is %+v, %d, %v", state, v, err)
			}
			if _, err := s.Save(ctx, id, aState(1), 7); !errors.Is(err, flow.ErrSessionMoved) {
				t.Fatalf("a version of what is not there: %v", err)
			}
			v1, err := s.Save(ctx, id, aState(1), 0)
			if err != nil || v1 == 0 {
				t.Fatal(v1, err)
			}
			v2, err := s.Save(ctx, id, aState(2), v1)
			if err != nil || v2 == v1 {
				t.Fatal(v2, err)
			}
			taken := aState(3)
			taken.Fence, taken.Epoch = 6, 4
			v3, err := s.Save(ctx, id, taken, v2)
			if err != nil || v3 == v2 {
				t.Fatal(v3, err)
			}
			for _, old := range []uint64{0, v1, v2, v3 + 1, 1<<64 - 1} {
				for _, state := range []flow.SessionState{aState(9), taken} {
					if _, err := s.Save(ctx, id, state, old); !errors.Is(err, flow.ErrSessionMoved) {
						t.Errorf("version %d is accepted, the current one is %d: %v", old, v3, err)
					}
				}
			}
			if state, v, err := db.store(t).Load(ctx, id); err != nil || v != v3 || !reflect.DeepEqual(state, taken) {
				t.Errorf("%+v, %d, %v", state, v, err)
			}
		}
	})
}

func TestStoreLetsOneOfManyWin(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		ctx, id := t.Context(), flow.SessionID{Name: "n"}
		const writers, rounds = 6, 10
		var mu sync.Mutex
		won := 0
		for round := range rounds {
			_, version, err := db.store(t).Load(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			wins := 0
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					state := aState(uint64(round))
					state.Fence += uint64(w % 2) // those that take it, and those that hold it
					_, err := db.store(t).Save(ctx, id, state, version)
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						wins++
					case !errors.Is(err, flow.ErrSessionMoved):
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if wins != 1 {
				t.Fatalf("in round %d there were %d winners", round, wins)
			}
			won += wins
		}
		if won != rounds {
			t.Errorf("%d wins in %d rounds", won, rounds)
		}
	})
}

func TestForgetDeletesWhatIsIdle(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		ctx, s := t.Context(), db.store(t)
		var versions []uint64
		for i := range 3 {
			v, err := s.Save(ctx, flow.SessionID{Name: fmt.Sprint(i)}, aState(1), 0)
			if err != nil {
				t.Fatal(err)
			}
			versions = append(versions, v)
			db.exec(t, fmt.Sprintf("INSERT INTO %s_done (session, seq) VALUES ('/%d', 7)", db.table, i))
		}
		db.exec(t, "UPDATE "+db.table+" SET used = used - 7200000 WHERE session <> '/1'") // two hours ago
		if _, err := s.Forget(ctx, -1); err == nil {
			t.Error("a negative time is accepted")
		}
		if n, err := s.Forget(ctx, 3*time.Hour); n != 0 || err != nil {
			t.Errorf("%d are forgotten that were idle for less, %v", n, err)
		}
		if n, err := s.Forget(ctx, time.Hour); n != 2 || err != nil {
			t.Errorf("%d are forgotten, want 2; %v", n, err)
		}
		if db.count(t, "") != 1 || db.count(t, "_done") != 1 {
			t.Errorf("%d sessions and %d notes are left", db.count(t, ""), db.count(t, "_done"))
		}
		if _, v, err := s.Load(ctx, flow.SessionID{Name: "0"}); v != 0 || err != nil {
			t.Errorf("version is %d, %v", v, err)
		}
		// Whoever still holds it has moved on, also when it has been made again.
		if _, err := s.Save(ctx, flow.SessionID{Name: "0"}, aState(1), versions[0]); !errors.Is(err, flow.ErrSessionMoved) {
			t.Error(err)
		}
		if _, err := s.Save(ctx, flow.SessionID{Name: "0"}, aState(1), 0); err != nil {
			t.Error(err)
		}
		if _, err := s.Save(ctx, flow.SessionID{Name: "0"}, aState(1), versions[0]); !errors.Is(err, flow.ErrSessionMoved) {
			t.Error("a version of a forgotten session has come again")
		}
	})
}

func TestSaveDeletesWhatIsCommitted(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		ctx, s, id := t.Context(), db.store(t), flow.SessionID{Name: "n"}
		v, err := s.Save(ctx, id, aState(0), 0)
		if err != nil {
			t.Fatal(err)
		}
		for seq := range 10 {
			db.exec(t, fmt.Sprintf("INSERT INTO %s_done (session, seq) VALUES ('/n', %d), ('/other', %d)", db.table, seq+1, seq+1))
		}
		if _, err := s.Save(ctx, id, aState(4), v); err != nil {
			t.Fatal(err)
		}
		if n := db.count(t, "_done"); n != 16 {
			t.Errorf("%d of 20 are left, want 16", n)
		}
	})
}

func TestCreateTablesAgainChangesNothing(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		s := db.store(t)
		if _, err := s.Save(t.Context(), flow.SessionID{Name: "n"}, aState(1), 0); err != nil {
			t.Fatal(err)
		}
		if err := s.CreateTables(t.Context()); err != nil {
			t.Fatal(err)
		}
		if db.count(t, "") != 1 {
			t.Error("the session is gone")
		}
	})
}

// Processes that are started together all make the tables.
func TestCreateTablesMayBeCalledByManyAtOnce(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		const callers, rounds = 16, 10
		for round := range rounds {
			own := db
			own.table = fmt.Sprintf("%s_together_%d", db.table, round)
			start := make(chan struct{})
			var wg sync.WaitGroup
			for range callers {
				s := own.store(t)
				wg.Go(func() {
					<-start
					if err := s.CreateTables(t.Context()); err != nil {
						t.Errorf("round %d: %v", round, err)
					}
				})
			}
			close(start)
			wg.Wait()
			if own.count(t, "") != 0 || own.count(t, "_done") != 0 {
				t.Error("the new tables are not empty")
			}
		}
	})
}

func TestLoadOfARuinedStateIsAnError(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		s := db.store(t)
		if _, err := s.Save(t.Context(), flow.SessionID{Name: "n"}, aState(1), 0); err != nil {
			t.Fatal(err)
		}
		empty := "''"
		if db.dialect == sessionsql.SQLite {
			empty = "x''"
		}
		db.exec(t, "UPDATE "+db.table+" SET state = "+empty)
		if _, v, err := s.Load(t.Context(), flow.SessionID{Name: "n"}); err == nil || v != 0 {
			t.Errorf("version %d, %v", v, err)
		}
	})
}
