package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"

	"example.com/flow"
	pb "example.com/flow/examples/ingest/ingestpb"
	"example.com/flow/sessionsql"

	_ "modernc.org/sqlite" // the driver "sqlite": no cgo, no server
)

// store keeps the records and, for each key of each upload, the last state; and the sessions, in the same database, which
// is what makes each record be stored once. It trusts its caller for the order, and has no other way to recognize a record
// that it has: one that were run twice would be in it twice, for the check to find.
type store struct {
	db                *sql.DB
	sessions          *sessionsql.Store
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
	// What is committed outlives the process. With NORMAL the machine's sudden end may take the last of it, and so what
	// clients were told is stored: FULL is for that, and makes each transaction dearer.
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
	if err == nil {
		s.sessions, err = sessionsql.New(db, sessionsql.Options{Dialect: sessionsql.SQLite})
	}
	if err == nil {
		err = s.sessions.CreateTables(context.Background())
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

// add stores what has no error yet of a batch, and moves the states of its keys on, all in one transaction. A record that
// is stored already, because its client or an earlier process did not live to hear of it, is passed over: Once says so. If
// the session of a record has gone over to another process, that is its error.
func (s *store) add(ctx context.Context, batch []flow.Message[*pb.Record], errs []error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	first, err := s.once(ctx, tx, batch, errs)
	if err != nil {
		return err
	}
	type key struct{ upload, key string }
	states := map[key]state{}
	for i, m := range batch {
		if !first[i] {
			continue
		}
		r := m.Value
		k := key{r.GetUpload(), r.GetKey()}
		st, known := states[k]
		if !known {
			var hash []byte
			err := tx.Stmt(s.read).QueryRowContext(ctx, k.upload, k.key).Scan(&st.records, &hash)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			copy(st.hash[:], hash)
		}
		states[k] = st.next(r.GetText())
		if _, err := tx.Stmt(s.record).ExecContext(ctx, k.upload, r.GetLine(), k.key, r.GetText()); err != nil {
			return err
		}
	}
	for k, st := range states {
		if _, err := tx.Stmt(s.set).ExecContext(ctx, k.upload, k.key, st.records, st.hash[:]); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// once is sessionsql.OnceAll, which notes what is stored, and reports which records are to be stored. Those of clients
// that ask for no session are: they are told what is settled in trailers, and not if their connection breaks.
func (s *store) once(ctx context.Context, tx *sql.Tx, batch []flow.Message[*pb.Record], errs []error) (first []bool, err error) {
	first = make([]bool, len(batch))
	var noted []flow.Message[*pb.Record]
	var at []int
	for i, m := range batch {
		switch {
		case errs[i] != nil:
		case m.Session() == flow.Session{}:
			first[i] = true
		default:
			noted, at = append(noted, m), append(at, i)
		}
	}
	notedErrs := make([]error, len(noted))
	notedFirst, err := sessionsql.OnceAll(ctx, tx, s.sessions, noted, notedErrs)
	for j, i := range at {
		if err == nil {
			first[i], errs[i] = notedFirst[j], notedErrs[j]
		}
	}
	return first, err
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
