package sessionsql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
	"example.com/flow/sessionsql"
	"google.golang.org/grpc/metadata"
)

// newFlow is a Flow of strings that keeps its sessions in a store, as each process has one.
func newFlow(t testing.TB, store flow.SessionStore, h flow.Handler[string], change ...func(*flow.Options)) *flow.Flow[string] {
	t.Helper()
	o := flow.Options{
		Ordering: flow.OrderingOptions{Mode: flow.OrderingNone}, Sessions: &flow.SessionOptions{Store: store},
		Backpressure: flow.BackpressureOptions{Capacity: 8},
	}
	for _, c := range change {
		c(&o)
	}
	f, err := flow.New(h, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// run runs a whole stream of a session.
func run(t testing.TB, f *flow.Flow[string], name string, values ...string) (flow.Summary, error) {
	t.Helper()
	source := flowtest.NewSource(t, values...)
	source.End()
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("flow-session", name))
	return f.Run(ctx, source.Recv)
}

// messages takes a session and returns the messages of a stream that is over: as handlers that are late have them.
func messages(t testing.TB, db database, name string, values ...string) []flow.Message[string] {
	t.Helper()
	var mu sync.Mutex
	var all []flow.Message[string]
	fail := errors.New("not settled")
	f := newFlow(t, db.store(t), func(_ context.Context, m flow.Message[string]) error {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, m)
		return fail
	}, func(o *flow.Options) {
		o.Retry = flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour} // they are all seen before one ends the stream
	})
	ctx, cancel := context.WithCancel(metadata.NewIncomingContext(t.Context(), metadata.Pairs("flow-session", name)))
	defer cancel()
	source := flowtest.NewSource(t, values...)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = f.Run(ctx, source.Recv)
	}()
	for {
		mu.Lock()
		n := len(all)
		mu.Unlock()
		if n == len(values) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	slices.SortFunc(all, func(a, b flow.Message[string]) int { return int(a.Seq) - int(b.Seq) })
	return all
}

// inTx runs do in a transaction and commits it unless do fails.
func (d database) inTx(ctx context.Context, o *sql.TxOptions, do func(tx *sql.Tx) error) error {
	tx, err := d.BeginTx(ctx, o)
	if err != nil {
		return err
	}
	if err := do(tx); err != nil {
		_ = tx.Rollback()
		return err
	}
	return tx.Commit()
}

// once is a handler whose effect is the message's value, exactly once.
func (d database) once(s *sessionsql.Store) flow.Handler[string] {
	return func(ctx context.Context, m flow.Message[string]) error {
		return d.inTx(ctx, nil, func(tx *sql.Tx) error {
			first, err := sessionsql.Once(ctx, tx, s, m)
			if !first || err != nil {
				return err
			}
			return d.effect(ctx, tx, m.Value)
		})
	}
}

func wantEffects(t testing.TB, db database, want ...string) {
	t.Helper()
	if got := db.effects(t); !slices.Equal(got, want) {
		t.Fatalf("effects are %v, want %v", got, want)
	}
}

func TestOnceNotesAMessageOnce(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		s := db.store(t)
		m := messages(t, db, "n", "a", "b")
		ctx := t.Context()
		for i, want := range []bool{true, false} {
			err := db.inTx(ctx, nil, func(tx *sql.Tx) error {
				first, err := sessionsql.Once(ctx, tx, s, m[0])
				if first != want {
					t.Errorf("time %d: first is %v", i, first)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		// What is rolled back was not noted.
		rolledBack := errors.New("rolled back")
		for range 2 {
			err := db.inTx(ctx, nil, func(tx *sql.Tx) error {
				first, err := sessionsql.Once(ctx, tx, s, m[1])
				if !first || err != nil {
					t.Errorf("first is %v, %v", first, err)
				}
				return rolledBack
			})
			if !errors.Is(err, rolledBack) {
				t.Fatal(err)
			}
		}
	})
}

func TestOnceNeedsASession(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		err := db.inTx(t.Context(), nil, func(tx *sql.Tx) error {
			first, err := sessionsql.Once(t.Context(), tx, db.store(t), flow.Message[string]{Seq: 1})
			if first {
				t.Error("it is first")
			}
			return err
		})
		if err == nil || !strings.Contains(err.Error(), "session") {
			t.Error(err)
		}
	})
}

func TestCommitUnknown(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		s := db.store(t)
		handler := db.once(s)
		var mu sync.Mutex
		tries := map[uint64]int{}
		f := newFlow(t, s, func(ctx context.Context, m flow.Message[string]) error {
			if err := handler(ctx, m); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if tries[m.Seq]++; tries[m.Seq] == 1 {
				return errors.New("the connection broke in the commit")
			}
			return nil
		}, func(o *flow.Options) { o.Retry.MaxAttempts = 2 })
		sum, err := run(t, f, "n", "a", "b", "c")
		if err != nil || sum.Committed != 3 || sum.Retried != 3 {
			t.Fatalf("%+v, %v", sum, err)
		}
		wantEffects(t, db, "a", "b", "c")
		if n := db.count(t, "_done"); n != 0 {
			t.Errorf("%d notes are left of what is committed", n)
		}
	})
}

// killed is the Store of a process that is killed: from then on nothing of it reaches the database.
type killed struct {
	flow.SessionStore
	saves int // that are still done
}

func (k *killed) Save(ctx context.Context, id flow.SessionID, s flow.SessionState, version uint64) (uint64, error) {
	if k.saves--; k.saves < 0 {
		return 0, errors.New("killed")
	}
	return k.SessionStore.Save(ctx, id, s, version)
}

func TestKillBetweenCommitAndSave(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		f := newFlow(t, &killed{db.store(t), 1}, db.once(db.store(t)))
		if sum, err := run(t, f, "n", "a", "b", "c"); err != nil || sum.Committed != 3 {
			t.Fatalf("%+v, %v", sum, err)
		}
		if n := db.count(t, "_done"); n != 3 {
			t.Fatalf("%d are noted", n)
		}
		f = newFlow(t, db.store(t), db.once(db.store(t)))
		sum, err := run(t, f, "n", "a", "b", "c", "d")
		if err != nil || sum.Committed != 4 || sum.Duplicates != 0 || sum.Succeeded != 4 {
			t.Fatalf("%+v, %v", sum, err)
		}
		wantEffects(t, db, "a", "b", "c", "d")
		if n := db.count(t, "_done"); n != 0 {
			t.Errorf("%d notes are left of what is committed", n)
		}
	})
}

func TestDeposedAfterPrune(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		late := messages(t, db, "n", "a", "b") // a process that has them and hangs
		if sum, err := run(t, newFlow(t, db.store(t), db.once(db.store(t))), "n", "a", "b"); err != nil || sum.Succeeded != 2 {
			t.Fatalf("%+v, %v", sum, err)
		}
		if n := db.count(t, "_done"); n != 0 {
			t.Fatalf("%d notes are left: nothing was pruned", n)
		}
		for _, m := range late {
			err := db.once(db.store(t))(t.Context(), m)
			if !errors.Is(err, flow.ErrSessionMoved) {
				t.Errorf("a deposed process does %q: %v", m.Value, err)
			}
		}
		wantEffects(t, db, "a", "b")
	})
}

// In PostgreSQL a transaction that sees the past must not take an outdated Fence for the current one.
func TestDeposedAfterPruneInEveryIsolation(t *testing.T) {
	db := onPostgres(t)
	var want []string
	for i, level := range []sql.IsolationLevel{
		sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable,
		sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable,
	} {
		name := fmt.Sprint("n", i)
		want = append(want, name)
		saves := i / 3 // of the holder, before it is deposed: then the row that the past shows is not the one that was locked
		t.Run(fmt.Sprint(level, " after ", saves, " Saves"), func(t *testing.T) {
			ctx, s := t.Context(), db.store(t)
			late := messages(t, db, name, name)
			tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: level})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			var n int
			if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM "+db.table).Scan(&n); err != nil { // its snapshot is taken
				t.Fatal(err)
			}
			for range saves {
				id := flow.SessionID{Name: name}
				state, version, err := s.Load(ctx, id)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.Save(ctx, id, state, version); err != nil {
					t.Fatal(err)
				}
			}
			if sum, err := run(t, newFlow(t, s, db.once(s)), name, name); err != nil || sum.Succeeded != 1 {
				t.Fatalf("%+v, %v", sum, err)
			}
			first, err := sessionsql.Once(ctx, tx, s, late[0])
			if err == nil || first {
				t.Errorf("a deposed process does it again: %v, %v", first, err)
			}
			if level == sql.LevelReadCommitted && !errors.Is(err, flow.ErrSessionMoved) {
				t.Errorf("it is not told why: %v", err)
			}
		})
	}
	wantEffects(t, db, want...)
}

func TestHoldersSavesDisturbNoTransaction(t *testing.T) {
	db := onPostgres(t)
	for i, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		t.Run(level.String(), func(t *testing.T) {
			ctx, s, id := t.Context(), db.store(t), flow.SessionID{Name: fmt.Sprint("h", i)}
			m := messages(t, db, id.Name, "a")
			err := db.inTx(ctx, &sql.TxOptions{Isolation: level}, func(tx *sql.Tx) error {
				var n int
				if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM "+db.table).Scan(&n); err != nil {
					return err
				}
				state, version, err := s.Load(ctx, id)
				if err != nil {
					return err
				}
				if version, err = s.Save(ctx, id, state, version); err != nil {
					return err
				}
				if first, err := sessionsql.Once(ctx, tx, s, m[0]); !first || err != nil {
					t.Errorf("first is %v, %v", first, err)
				}
				_, err = s.Save(ctx, id, state, version)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// waitsForLock waits until a backend of PostgreSQL waits for a lock in a statement on the test's tables.
func waitsForLock(t *testing.T, db database) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		var n int
		err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%'`, db.table).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			return
		}
	}
	t.Fatal("nobody waits for a lock")
}

func TestTakingSaveWaitsForTransactionsUnderWay(t *testing.T) {
	db := onPostgres(t)
	for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		t.Run(level.String(), func(t *testing.T) {
			ctx, s, id := t.Context(), db.store(t), flow.SessionID{Name: fmt.Sprint("w", int(level))}
			m := messages(t, db, id.Name, "a")
			tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: level})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			if first, err := sessionsql.Once(ctx, tx, s, m[0]); !first || err != nil {
				t.Fatal(first, err)
			}
			// The holder's own Save waits for nobody.
			state, version, err := s.Load(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			if version, err = s.Save(ctx, id, state, version); err != nil {
				t.Fatal(err)
			}
			// That of another process does.
			state.Fence++
			saved := make(chan error, 1)
			go func() {
				_, err := db.store(t).Save(ctx, id, state, version)
				saved <- err
			}()
			waitsForLock(t, db)
			// And whoever comes after it waits for it: its Fence is outdated when it comes to compare it.
			late := make(chan error, 1)
			go func() { late <- db.once(s)(ctx, m[0]) }()
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := <-saved; err != nil {
				t.Fatal(err)
			}
			if err := <-late; err != nil && !errors.Is(err, flow.ErrSessionMoved) {
				t.Errorf("the late one: %v", err)
			}
			if err := db.once(s)(ctx, m[0]); !errors.Is(err, flow.ErrSessionMoved) {
				t.Errorf("the deposed one: %v", err)
			}
		})
	}
	if n := db.count(t, "_effects"); n != 0 {
		t.Errorf("%d effects of messages that were noted already", n)
	}
}

// TestDeposedByAnotherProcess has a second process take the session while a handler of this one hangs.
func TestDeposedByAnotherProcess(t *testing.T) {
	db := onPostgres(t)
	hangs, wake := make(chan struct{}, 8), make(chan struct{})
	handler := db.once(db.store(t))
	f := newFlow(t, db.store(t), func(ctx context.Context, m flow.Message[string]) error {
		hangs <- struct{}{}
		<-wake // as after SIGSTOP
		return handler(context.WithoutCancel(ctx), m)
	})
	type result struct {
		sum flow.Summary
		err error
	}
	deposed := make(chan result, 1)
	go func() {
		sum, err := run(t, f, "n", "a", "b", "c")
		deposed <- result{sum, err}
	}()
	for range 3 {
		<-hangs
	}
	child := exec.Command(os.Args[0], "-test.run=^TestChildProcess$", "-test.v")
	child.Env = append(os.Environ(), envDSN+"="+postgresDSN, "FLOW_SESSIONSQL_TABLE="+db.table)
	out, err := child.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestChildProcess") {
		t.Fatalf("the other process: %v\n%s", err, out)
	}
	close(wake)
	if r := <-deposed; r.err == nil || r.sum.Succeeded > 0 {
		t.Errorf("the deposed process: %+v, %v", r.sum, r.err)
	}
	wantEffects(t, db, "a", "b", "c")
}

// TestChildProcess is the other process of TestDeposedByAnotherProcess.
func TestChildProcess(t *testing.T) {
	dsn := os.Getenv(envDSN)
	if dsn == "" {
		t.Skip("it is started by TestDeposedByAnotherProcess")
	}
	pool, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pool.Close() }()
	db := database{DB: pool, dialect: sessionsql.PostgreSQL, table: os.Getenv("FLOW_SESSIONSQL_TABLE")}
	sum, err := run(t, newFlow(t, db.store(t), db.once(db.store(t))), "n", "a", "b", "c")
	if err != nil || sum.Succeeded != 3 {
		t.Fatalf("%+v, %v", sum, err)
	}
}

func TestOnceAllTellsWhichAreFirst(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		ctx, s := t.Context(), db.store(t)
		batch := slices.Concat(messages(t, db, "z", "z1", "z2"), messages(t, db, "a", "a1", "a2", "a3"))
		if err := db.once(s)(ctx, batch[3]); err != nil { // a2 is there
			t.Fatal(err)
		}
		moved := messages(t, db, "m", "m1")
		if _, err := run(t, newFlow(t, s, db.once(s)), "m"); err != nil { // somebody else claims it
			t.Fatal(err)
		}
		batch = slices.Concat(batch, moved, []flow.Message[string]{{Seq: 1, Value: "none"}}, messages(t, db, "f", "f1"))
		errs := make([]error, len(batch))
		failed := errors.New("failed before")
		errs[7] = failed
		err := db.inTx(ctx, nil, func(tx *sql.Tx) error {
			first, err := sessionsql.OnceAll(ctx, tx, s, batch, errs)
			if want := []bool{true, true, true, false, true, false, false, false}; !reflect.DeepEqual(first, want) {
				t.Errorf("first is %v, want %v", first, want)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, err := range errs {
			switch {
			case i == 5 && !errors.Is(err, flow.ErrSessionMoved), i == 6 && err == nil, i == 7 && err != failed, i < 5 && err != nil:
				t.Errorf("the error of message %d is %v", i, err)
			}
		}
		if n := db.count(t, "_done"); n != 5 {
			t.Errorf("%d are noted, want 5", n)
		}
		if _, err := sessionsql.OnceAll(ctx, nil, s, batch, nil); err == nil {
			t.Error("errs that are too short are accepted")
		}
	})
}

func TestOnceAllNotesMoreThanAStatementTakes(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		ctx, s := t.Context(), db.store(t)
		m := messages(t, db, "n", "a")[0]
		var batch []flow.Message[string]
		for i := range 1201 {
			m.Seq = uint64(i + 1)
			batch = append(batch, m)
		}
		for _, want := range []bool{true, false} {
			err := db.inTx(ctx, nil, func(tx *sql.Tx) error {
				first, err := sessionsql.OnceAll(ctx, tx, s, batch, make([]error, len(batch)))
				if slices.Contains(first, !want) || len(first) != len(batch) {
					t.Errorf("not all of %d are %v", len(first), want)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestTwoSessionsTwoBatches(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		ctx, s := t.Context(), db.store(t)
		const rounds = 40
		var values []string
		for i := range rounds {
			values = append(values, fmt.Sprint(i))
		}
		// Each batch has messages of both, in opposite orders.
		a, b := messages(t, db, "a", values...), messages(t, db, "b", values...)
		var wg sync.WaitGroup
		for side := range 2 {
			wg.Go(func() {
				for i := side; i < rounds; i += 2 {
					batch := []flow.Message[string]{a[i], b[i]}
					if side == 1 {
						batch = []flow.Message[string]{b[i], a[i]}
					}
					err := db.inTx(ctx, nil, func(tx *sql.Tx) error {
						first, err := sessionsql.OnceAll(ctx, tx, s, batch, make([]error, 2))
						if err == nil && slices.Contains(first, false) {
							t.Errorf("first is %v", first)
						}
						return err
					})
					if err != nil {
						t.Errorf("batch %d: %v", i, err)
					}
				}
			})
		}
		wg.Wait()
		if n := db.count(t, "_done"); n != 2*rounds {
			t.Errorf("%d are noted, want %d", n, 2*rounds)
		}
	})
}
