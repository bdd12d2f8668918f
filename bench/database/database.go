package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5/pgxpool"
	_ "modernc.org/sqlite"

	"example.com/flow/internal/postgres"
)

// row is what a message becomes.
type row struct {
	key     string
	seq     int64 // of its key, ascending
	payload []byte
}

// database is one that rows are stored in.
type database struct {
	name  string
	calls int // transactions at once, for those that have many rows
	alone int // for those that have one
	open  func(ctx context.Context, dir string, connections int) (sink, error)
}

// databases are measured as they come, with nothing tuned but what their names say.
var databases = []*database{
	{"SQLite FULL", 1, 1, sqlite("FULL")},
	{"SQLite NORMAL", 1, 1, sqlite("NORMAL")},
	{"PostgreSQL", 4, 32, openPostgres},
}

// sink is a table that rows are stored in.
type sink interface {
	// insert stores rows in one transaction.
	insert(ctx context.Context, rows []row) error
	// check returns how many rows are stored, and how many of them are not behind those of their key that came before.
	check(ctx context.Context) (stored, disordered int, err error)
	close() error
}

const disorder = `SELECT count(*), count(CASE WHEN seq <= before THEN 1 END) FROM
	(SELECT seq, lag(seq) OVER (PARTITION BY key ORDER BY id) AS before FROM rows) AS r`

// sqliteSink is a file. It has one connection, since SQLite has one writer: the others better wait here than spin there.
type sqliteSink struct {
	db   *sql.DB
	stmt *sql.Stmt
}

func sqlite(synchronous string) func(context.Context, string, int) (sink, error) {
	return func(ctx context.Context, dir string, _ int) (sink, error) {
		db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "rows.db")+
			"?_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=synchronous("+synchronous+")")
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(1)
		s := &sqliteSink{db: db}
		_, err = db.ExecContext(ctx, "CREATE TABLE rows (id INTEGER PRIMARY KEY, key TEXT NOT NULL, seq INTEGER NOT NULL, payload BLOB NOT NULL)")
		if err == nil {
			s.stmt, err = db.PrepareContext(ctx, "INSERT INTO rows (key, seq, payload) VALUES (?, ?, ?)")
		}
		if err != nil {
			return nil, errors.Join(err, db.Close())
		}
		return s, nil
	}
}

func (s *sqliteSink) insert(ctx context.Context, rows []row) error {
	if len(rows) == 1 { // a statement is a transaction
		_, err := s.stmt.ExecContext(ctx, rows[0].key, rows[0].seq, rows[0].payload)
		return err
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	stmt := tx.StmtContext(ctx, s.stmt)
	for _, r := range rows {
		if _, err := stmt.ExecContext(ctx, r.key, r.seq, r.payload); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func (s *sqliteSink) check(ctx context.Context) (stored, disordered int, err error) {
	err = s.db.QueryRowContext(ctx, disorder).Scan(&stored, &disordered)
	return stored, disordered, err
}

func (s *sqliteSink) close() error { return errors.Join(s.stmt.Close(), s.db.Close()) }

// postgresSink is a table in a server of its own.
type postgresSink struct {
	server *postgres.Server
	pool   *pgxpool.Pool
}

func openPostgres(ctx context.Context, _ string, connections int) (sink, error) {
	server, err := postgres.Start(ctx)
	if err != nil {
		return nil, err
	}
	s := &postgresSink{server: server}
	conf, err := pgxpool.ParseConfig(server.DSN)
	if err == nil {
		conf.MaxConns = int32(connections)
		s.pool, err = pgxpool.NewWithConfig(ctx, conf)
	}
	if err != nil {
		return nil, errors.Join(err, server.Stop())
	}
	_, err = s.pool.Exec(ctx, `CREATE TABLE rows (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key TEXT NOT NULL,
		seq BIGINT NOT NULL, payload BYTEA NOT NULL)`)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *postgresSink) insert(ctx context.Context, rows []row) error {
	if len(rows) == 1 { // a statement is a transaction
		_, err := s.pool.Exec(ctx, "INSERT INTO rows (key, seq, payload) VALUES ($1, $2, $3)", rows[0].key, rows[0].seq, rows[0].payload)
		return err
	}
	keys, seqs, payloads := make([]string, len(rows)), make([]int64, len(rows)), make([][]byte, len(rows))
	for i, r := range rows {
		keys[i], seqs[i], payloads[i] = r.key, r.seq, r.payload
	}
	_, err := s.pool.Exec(ctx, `INSERT INTO rows (key, seq, payload)
		SELECT key, seq, payload FROM unnest($1::text[], $2::bigint[], $3::bytea[]) WITH ORDINALITY AS r (key, seq, payload, place)
		ORDER BY place`, keys, seqs, payloads)
	return err
}

func (s *postgresSink) check(ctx context.Context) (stored, disordered int, err error) {
	err = s.pool.QueryRow(ctx, disorder).Scan(&stored, &disordered)
	return stored, disordered, err
}

func (s *postgresSink) close() error {
	s.pool.Close()
	return s.server.Stop()
}

// opened opens the database in a temporary folder, which is removed by the returned function.
func (d *database) opened(ctx context.Context, connections int) (s sink, closed func() error, err error) {
	dir, err := os.MkdirTemp("", "flow-bench-")
	if err != nil {
		return nil, nil, err
	}
	if s, err = d.open(ctx, dir, connections); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", d.name, err), os.RemoveAll(dir))
	}
	return s, func() error { return errors.Join(s.close(), os.RemoveAll(dir)) }, nil
}
