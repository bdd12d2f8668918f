package sessionsql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"example.com/flow/sessionsql"
)

// The databases of the tests: a SQLite file each, and one PostgreSQL server for all of them, of the binaries that are
// installed. PostgreSQL refuses to run as root: then it runs as the user postgres, or nobody.

// postgresDSN is empty if there is no PostgreSQL; postgresMissing says why.
var postgresDSN, postgresMissing string

// envDSN names the database for a child process of the tests.
const envDSN = "FLOW_SESSIONSQL_DSN"

func TestMain(m *testing.M) {
	if os.Getenv(envDSN) != "" { // a child that one of the tests has started
		os.Exit(m.Run())
	}
	stop, err := startPostgres()
	if err != nil {
		postgresMissing = err.Error()
	}
	code := m.Run()
	if stop != nil {
		stop()
	}
	os.Exit(code)
}

func startPostgres() (stop func(), err error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return nil, errors.New("no PostgreSQL in /usr/lib/postgresql (Debian: apt-get install postgresql)")
	}
	slices.Sort(found)
	bin := filepath.Dir(found[len(found)-1])
	dir, err := os.MkdirTemp("", "flow-postgres")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	attr := &syscall.SysProcAttr{}
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			if u, err = user.Lookup("nobody"); err != nil {
				return nil, err
			}
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			return nil, err
		}
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := lis.Addr().(*net.TCPAddr).Port
	_ = lis.Close()

	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "flow", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
	initdb.SysProcAttr, initdb.Dir = attr, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-p", strconv.Itoa(port), "-k", dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "deadlock_timeout=100ms")
	server.SysProcAttr, server.Dir = attr, dir
	if err := server.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = server.Process.Signal(syscall.SIGINT) // a fast shutdown
		_ = server.Wait()
		_ = os.RemoveAll(dir)
	}
	dsn := fmt.Sprintf("postgres://flow@127.0.0.1:%d/postgres?sslmode=disable", port)
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		stop()
		return nil, err
	}
	defer func() { _ = db.Close() }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if err = db.Ping(); err == nil {
			postgresDSN = dsn
			return stop, nil
		}
		if time.Now().After(deadline) {
			stop()
			return nil, fmt.Errorf("the server does not answer: %w", err)
		}
	}
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
