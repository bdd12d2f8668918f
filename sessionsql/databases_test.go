package sessionsql_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"example.com/flow/internal/postgres"
	"example.com/flow/sessionsql"
)

// The databases of the tests: a SQLite file each, and one PostgreSQL server for all of them, of the binaries that are
// installed.

// postgresDSN is empty if there is no PostgreSQL; postgresMissing says why.
var postgresDSN, postgresMissing string

// envDSN names the database for a child process of the tests.
const envDSN = "FLOW_SESSIONSQL_DSN"

func TestMain(m *testing.M) {
	if os.Getenv(envDSN) != "" { // a child that one of the tests has started
		os.Exit(m.Run())
	}
	server, err := postgres.Start(context.Background(), "fsync=off", "deadlock_timeout=100ms")
	if err != nil {
		postgresMissing = err.Error()
		os.Exit(m.Run())
	}
	postgresDSN = server.DSN
	code := m.Run()
	if err := server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// database is one that a test has to itself.
type database struct {
	*sql.DB
	dialect sessionsql.Dialect
	table   string
}

var tables atomic.Int64

// onEach runs test on each kind of database.
func onEach(t *testing.T, test func(t *testing.T, db database)) {
	t.Helper()
	t.Run("SQLite", func(t *testing.T) { test(t, onSQLite(t)) })
	t.Run("PostgreSQL", func(t *testing.T) { test(t, onPostgres(t)) })
}

func onSQLite(t *testing.T) database {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sessions.db")
	return opened(t, "sqlite", "file:"+path+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)", sessionsql.SQLite)
}

func onPostgres(t *testing.T) database {
	t.Helper()
	if postgresDSN == "" {
		t.Skip("PostgreSQL is not tested:", postgresMissing)
	}
	return opened(t, "pgx", postgresDSN, sessionsql.PostgreSQL)
}

func opened(t *testing.T, driver, dsn string, dialect sessionsql.Dialect) database {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	d := database{DB: db, dialect: dialect, table: fmt.Sprint("sessions_", tables.Add(1))}
	if err := d.store(t).CreateTables(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.exec(t, "CREATE TABLE "+d.table+"_effects (value TEXT NOT NULL)")
	return d
}

// store is a Store in the database, as each process has its own.
func (d database) store(t testing.TB) *sessionsql.Store {
	t.Helper()
	s, err := sessionsql.New(d.DB, sessionsql.Options{Dialect: d.dialect, Table: d.table})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (d database) exec(t testing.TB, text string, args ...any) {
	t.Helper()
	if _, err := d.ExecContext(context.Background(), text, args...); err != nil {
		t.Fatal(err)
	}
}

// count is how many rows a table has.
func (d database) count(t testing.TB, table string) (n int) {
	t.Helper()
	if err := d.QueryRow("SELECT count(*) FROM " + d.table + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// effects is what handlers have done, in order of the values.
func (d database) effects(t testing.TB) (values []string) {
	t.Helper()
	rows, err := d.Query("SELECT value FROM " + d.table + "_effects ORDER BY value")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			t.Fatal(err)
		}
		values = append(values, v)
	}
	return values
}

// effect does what a handler does.
func (d database) effect(ctx context.Context, tx *sql.Tx, value string) error {
	mark := "$1"
	if d.dialect == sessionsql.SQLite {
		mark = "?"
	}
	_, err := tx.ExecContext(ctx, "INSERT INTO "+d.table+"_effects (value) VALUES ("+mark+")", value)
	return err
}
