package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"

	pb "example.com/flow/examples/ingest/ingestpb"

	_ "modernc.org/sqlite" // the driver "sqlite": no cgo, no server
)

// store keeps the records and, for each key of each upload, the last state. It trusts its caller for the order, and it
// does not recognize a record that it has already: a record that is run twice is in it twice, for the check to find.
type store struct {
	db                *sql.DB
	read, record, set *sql.Stmt
}

const schema = `
CREATE TABLE IF NOT EXISTS records (upload TEXT, line INTEGER, key TEXT, text TEXT);
CREATE TABLE IF NOT EXISTS states (upload TEXT, key TEXT, records INTEGER, hash BLOB, PRIMARY KEY (upload, key)) WITHOUT ROWID;`

func openStore(file string) (*store, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	source := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: url.Values{
		"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(NORMAL)"},
		"_txlock": {"immediate"},
	}.Encode()}
	db, err := sql.Open("sqlite", source.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1) // SQLite has one writer: the others better wait here than spin there
	s := &store{db: db}
	_, err = db.Exec(schema)
	prepare := func(to **sql.Stmt, query string) {
		if err == nil {
			*to, err = db.Prepare(query)
		}
	}
	if err == nil {
		err = tryWrite(db)
	}
	prepare(&s.read, "SELECT records, hash FROM states WHERE upload = ? AND key = ?")
	prepare(&s.record, "INSERT INTO records VALUES (?, ?, ?, ?)")
	prepare(&s.set, "INSERT INTO states VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET records = excluded.records, hash = excluded.hash")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", file, err), db.Close())
	}
	return s, nil
}

// tryWrite finds a database that can only be read: it says so when something is written, and not before.
func tryWrite(db *sql.DB) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	_, err = tx.Exec("INSERT INTO records VALUES ('', 0, '', '')")
	return err
}

func (s *store) close() error { return s.db.Close() }

// add stores r and moves the state of its key on, both or neither. Once begun it heeds no cancellation: a commit whose
// outcome nobody waits for would leave the client with a record that it can neither send again nor forget.
func (s *store) add(r *pb.Record) error {
	tx, err := s.db.BeginTx(context.Background(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	var st state
	var hash []byte
	err = tx.Stmt(s.read).QueryRow(r.GetUpload(), r.GetKey()).Scan(&st.records, &hash)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	copy(st.hash[:], hash)
	st = st.next(r.GetText())
	if _, err := tx.Stmt(s.record).Exec(r.GetUpload(), r.GetLine(), r.GetKey(), r.GetText()); err != nil {
		return err
	}
	if _, err := tx.Stmt(s.set).Exec(r.GetUpload(), r.GetKey(), st.records, st.hash[:]); err != nil {
		return err
	}
	return tx.Commit()
}

// states returns the last states of an upload, by key. It reads them all before it returns: a slow reader at the other
// end of a connection must not hold the database.
func (s *store) states(ctx context.Context, upload string) ([]keyState, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT key, records, hash FROM states WHERE upload = ? ORDER BY key", upload)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []keyState
	for rows.Next() {
		var k keyState
		var hash []byte
		if err := rows.Scan(&k.key, &k.records, &hash); err != nil {
			return nil, err
		}
		copy(k.hash[:], hash)
		all = append(all, k)
	}
	return all, rows.Err()
}
