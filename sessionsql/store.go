package sessionsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	"example.com/flow"
)

// Options say where the sessions are.
type Options struct {
	Dialect Dialect // which database it is; there is no default
	// Table is that of the sessions, maybe with its schema. "" means flow_sessions. The other one's name ends in _done. Each kind
	// of upload needs one of its own: see flow.SessionOptions.Store. With PostgreSQL it is at most 58 bytes long behind the
	// schema.
	Table string
}

// Store is a flow.SessionStore in a database. It is safe for concurrent use, by any number of processes.
type Store struct {
	db      *sql.DB
	dialect Dialect
	table   string
}

var _ flow.SessionStore = (*Store)(nil)

// PostgreSQL cuts longer names at maxName bytes, so that the two tables would be one, or both those of another Store.
const (
	maxName  = 63
	maxTable = maxName - len(doneSuffix)
)

var tableName = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]*\.)?[A-Za-z_][A-Za-z0-9_]*$`)

// New returns a Store in db, which stays the caller's to close. It does not touch the database.
func New(db *sql.DB, o Options) (*Store, error) {
	if o.Table == "" {
		o.Table = "flow_sessions"
	}
	switch {
	case db == nil:
		return nil, errors.New("sessionsql: db must not be nil")
	case o.Dialect != SQLite && o.Dialect != PostgreSQL:
		return nil, fmt.Errorf("sessionsql: Options.Dialect must be SQLite or PostgreSQL (got %v)", o.Dialect)
	case !tableName.MatchString(o.Table):
		return nil, fmt.Errorf("sessionsql: Options.Table must be letters, digits and underscores, maybe behind a schema (got %q)", o.Table)
	case o.Dialect == PostgreSQL && len(o.Table)-strings.Index(o.Table, ".")-1 > maxTable:
		return nil, fmt.Errorf("sessionsql: Options.Table must be at most %d bytes long behind the schema, so that PostgreSQL does not cut "+
			"the names (got %q)", maxTable, o.Table)
	}
	return &Store{db: db, dialect: o.Dialect, table: o.Table}, nil
}

func (s *Store) query(text string) string { return s.dialect.query(text, s.table) }

// createLock is the advisory lock of CreateTables in PostgreSQL: "flowsess" as a number.
const createLock = 0x666c6f7773657373

// CreateTables makes the tables that are not there yet. Any number of processes may call it at once.
func (s *Store) CreateTables(ctx context.Context) (err error) {
	if s.dialect == PostgreSQL {
		// IF NOT EXISTS is not atomic there: of two transactions that find no table one fails, with unique_violation or
		// duplicate_table. So they make their tables one after the other.
		err = s.transact(ctx, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(createLock)); err != nil {
				return err
			}
			return s.createTables(ctx, tx)
		})
	} else {
		err = s.createTables(ctx, s.db) // each in a transaction of its own, since one that has read may fail when it writes
	}
	if err != nil {
		return fmt.Errorf("sessionsql: create tables: %w", err)
	}
	return nil
}

// execer is what both a database and a transaction can do.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func (s *Store) createTables(ctx context.Context, in execer) error {
	for _, text := range []string{
		`CREATE TABLE IF NOT EXISTS {sessions} (
			session TEXT PRIMARY KEY, -- flow.SessionID.String
			version BIGINT NOT NULL,  -- +1 with each Save
			fence BIGINT NOT NULL,    -- of the state, for Once to compare
			used BIGINT NOT NULL,     -- when it was saved last, in milliseconds since 1970, for Forget
			state {bytes} NOT NULL    -- flow.SessionState.MarshalBinary
		)`,
		`CREATE TABLE IF NOT EXISTS {done} (
			session TEXT NOT NULL,
			seq BIGINT NOT NULL, -- its effect is there; it is deleted when it is committed
			PRIMARY KEY (session, seq)
		)`,
	} {
		if _, err := in.ExecContext(ctx, s.query(text)); err != nil {
			return err
		}
	}
	return nil
}

// Load implements flow.SessionStore.
func (s *Store) Load(ctx context.Context, id flow.SessionID) (state flow.SessionState, version uint64, err error) {
	var data []byte
	row := s.db.QueryRowContext(ctx, s.query(`SELECT version, state FROM {sessions} WHERE session = $1`), id.String())
	switch err := row.Scan(&version, &data); {
	case errors.Is(err, sql.ErrNoRows):
		return state, 0, nil
	case err != nil:
		return state, 0, fmt.Errorf("sessionsql: load: %w", err)
	}
	if err := state.UnmarshalBinary(data); err != nil {
		return flow.SessionState{}, 0, fmt.Errorf("sessionsql: load: %w", err)
	}
	return state, version, nil
}

// Save implements flow.SessionStore. It also deletes what Once has noted of the messages that are committed. A Save that
// changes the Fence waits until all transactions have ended in which Once has compared it.
func (s *Store) Save(
	ctx context.Context, id flow.SessionID, state flow.SessionState, version uint64,
) (next uint64, err error) {
	data, err := state.MarshalBinary()
	if err != nil {
		return 0, fmt.Errorf("sessionsql: save: %w", err)
	}
	if state.Fence > math.MaxInt64 {
		return 0, fmt.Errorf("sessionsql: save: a fence must be at most %d (got %d)", uint64(math.MaxInt64), state.Fence)
	}
	save := saving{Store: s, id: id.String(), fence: int64(state.Fence), data: data, used: time.Now()}
	err = s.transact(ctx, func(tx *sql.Tx) (err error) {
		if version == 0 {
			next, err = save.insert(ctx, tx)
		} else {
			next, err = save.replace(ctx, tx, version)
		}
		if err != nil {
			return err
		}
		committed := int64(min(state.Progress.Committed(), math.MaxInt64))
		_, err = tx.ExecContext(ctx, s.query(`DELETE FROM {done} WHERE session = $1 AND seq <= $2`), save.id, committed)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("sessionsql: save: %w", err)
	}
	return next, nil
}

// transact runs do in a transaction. In PostgreSQL it is READ COMMITTED, whatever the default is: after a wait for a lock
// it sees what the other has done.
func (s *Store) transact(ctx context.Context, do func(*sql.Tx) error) error {
	var o sql.TxOptions
	if s.dialect == PostgreSQL {
		o.Isolation = sql.LevelReadCommitted
	}
	tx, err := s.db.BeginTx(ctx, &o)
	if err != nil {
		return err
	}
	if err := do(tx); err != nil {
		return errors.Join(err, ignoreDone(tx.Rollback()))
	}
	return tx.Commit()
}

// ignoreDone returns err unless it says that ctx has ended the transaction already.
func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// saving is one Save.
type saving struct {
	*Store
	id    string
	fence int64
	data  []byte
	used  time.Time
}

// insert makes a session that is not known. Its first version is the time, so that none comes again after Forget.
func (s *saving) insert(ctx context.Context, tx *sql.Tx) (next uint64, err error) {
	first := s.used.UnixNano()
	done, err := one(tx.ExecContext(ctx, s.query(
		`INSERT INTO {sessions} (session, version, fence, used, state) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`),
		s.id, first, s.fence, s.used.UnixMilli(), s.data))
	if err != nil {
		return 0, err
	}
	if !done {
		return 0, flow.ErrSessionMoved
	}
	return uint64(first), nil
}

// replace saves a next version. That of the same holder does not touch what Once locks; one that changes the Fence locks
// the row first, and so waits for whoever has compared it.
func (s *saving) replace(ctx context.Context, tx *sql.Tx, version uint64) (next uint64, err error) {
	if version > math.MaxInt64-1 {
		return 0, flow.ErrSessionMoved
	}
	done, err := one(tx.ExecContext(ctx, s.query(
		`UPDATE {sessions} SET version = $3 + 1, used = $4, state = $5 WHERE session = $1 AND fence = $2 AND version = $3`),
		s.id, s.fence, int64(version), s.used.UnixMilli(), s.data))
	if done || err != nil {
		return version + 1, err
	}
	var current int64
	row := tx.QueryRowContext(ctx, s.query(`SELECT version FROM {sessions} WHERE session = $1 [[FOR UPDATE]]`), s.id)
	switch err := row.Scan(&current); {
	case errors.Is(err, sql.ErrNoRows), err == nil && uint64(current) != version:
		return 0, flow.ErrSessionMoved
	case err != nil:
		return 0, err
	}
	done, err = one(tx.ExecContext(ctx, s.query(
		`UPDATE {sessions} SET version = $3 + 1, fence = $2, used = $4, state = $5 WHERE session = $1 AND version = $3`),
		s.id, s.fence, current, s.used.UnixMilli(), s.data))
	switch {
	case err != nil:
		return 0, err
	case !done:
		return 0, flow.ErrSessionMoved
	}
	return version + 1, nil
}

// one reports whether a statement has changed a row.
func one(r sql.Result, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n == 1, err
}

// Forget deletes the sessions that were not saved for longer than idle, with all that Once has noted of them, and returns
// how many. A client that comes back to one is told that it is lost; its effects may happen again. A session that is
// written is saved each time that its progress has changed: idle should be longer than the longest upload may stand
// still, in days rather than in hours.
func (s *Store) Forget(ctx context.Context, idle time.Duration) (n int, err error) {
	if idle < 0 {
		return 0, fmt.Errorf("sessionsql: forget: idle must not be negative (got %v)", idle)
	}
	before := time.Now().Add(-idle).UnixMilli()
	ids, err := s.idleSince(ctx, before)
	for _, id := range ids {
		if err != nil {
			break
		}
		var gone bool
		err = s.transact(ctx, func(tx *sql.Tx) (err error) {
			// It may have been saved meanwhile. Waits for the transactions of Once that are under way.
			gone, err = one(tx.ExecContext(ctx, s.query(`DELETE FROM {sessions} WHERE session = $1 AND used < $2`), id, before))
			if !gone || err != nil {
				return err
			}
			_, err = tx.ExecContext(ctx, s.query(`DELETE FROM {done} WHERE session = $1`), id)
			return err
		})
		if gone && err == nil {
			n++
		}
	}
	if err != nil {
		return n, fmt.Errorf("sessionsql: forget: %w", err)
	}
	return n, nil
}

func (s *Store) idleSince(ctx context.Context, before int64) (ids []string, err error) {
	rows, err := s.db.QueryContext(ctx, s.query(`SELECT session FROM {sessions} WHERE used < $1`), before)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}
