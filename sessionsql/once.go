package sessionsql

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"example.com/flow"
)

var errNoSession = errors.New("sessionsql: a message without a session can't be noted: its client has asked for none")

// Once notes the message in the handler's own transaction, which is one of the Store's database. first is true for the
// first time: do the effect in the same transaction, and commit. It is false if the effect is there already, because an
// earlier transaction was committed whose answer nobody heard: return nil, with or without a commit.
//
// So the effect happens exactly once for each number of a session, whoever is killed, in every ordering mode, and also if
// an unknown commit is tried again. It does not hold for effects outside of the transaction, after [Store.Forget], and
// for a database that was restored from a backup.
//
// A stream whose session was taken meanwhile, in another process maybe, gets an error that is flow.ErrSessionMoved and
// permanent: roll back. Until the transaction ends, nobody else can take the session, also when the host is dead that began
// it: the package's documentation names the settings that end it then. After any other error too the transaction is to be
// rolled back; with REPEATABLE READ or SERIALIZABLE it may be one of serialization, to be tried again as such.
func Once[T any](ctx context.Context, tx *sql.Tx, s *Store, m flow.Message[T]) (first bool, err error) {
	session := m.Session()
	if session.ID.Name == "" {
		return false, flow.Permanent(errNoSession)
	}
	id := session.ID.String()
	if err := s.compareFence(ctx, tx, id, session.Fence); err != nil {
		return false, err
	}
	if first, err = one(tx.ExecContext(ctx, s.query(
		`INSERT INTO {done} (session, seq) VALUES ($1, $2) ON CONFLICT DO NOTHING`), id, int64(m.Seq))); err != nil {
		return false, fmt.Errorf("sessionsql: once: %w", err)
	}
	return first, nil
}

// compareFence locks the session against a change of its Fence, and compares it.
func (s *Store) compareFence(ctx context.Context, tx *sql.Tx, id string, fence uint64) error {
	if s.dialect == SQLite {
		// One transaction writes at a time, so a statement that may write is the lock, also if there is nothing to delete. A
		// transaction that has only read would fail when it comes to write, if another has written meanwhile.
		if _, err := tx.ExecContext(ctx, s.query(`DELETE FROM {done} WHERE session = ''`)); err != nil {
			return fmt.Errorf("sessionsql: once: %w", err)
		}
	}
	var current int64
	row := tx.QueryRowContext(ctx, s.query(`SELECT fence FROM {sessions} WHERE session = $1 [[FOR KEY SHARE]]`), id)
	switch err := row.Scan(&current); {
	case errors.Is(err, sql.ErrNoRows), err == nil && uint64(current) != fence:
		return flow.Permanent(fmt.Errorf("sessionsql: once: %w", flow.ErrSessionMoved))
	case err != nil:
		return fmt.Errorf("sessionsql: once: %w", err)
	}
	return nil
}

// OnceAll is Once for a batch: first[i] says whether the effect of batch[i] is to be done. errs is the BatchHandler's: a
// message whose session was taken meanwhile, or that has none, gets its error there, and so is not first. It passes over
// messages that have an error already. The error that it returns is of the database: roll back and return it.
//
// It locks sessions in one order, so that batches side by side don't deadlock.
func OnceAll[T any](
	ctx context.Context, tx *sql.Tx, s *Store, batch []flow.Message[T], errs []error,
) (first []bool, err error) {
	if len(errs) != len(batch) {
		return nil, fmt.Errorf("sessionsql: errs must be as long as batch (got %d and %d)", len(errs), len(batch))
	}
	var notes []note
	for i, m := range batch {
		session := m.Session()
		switch {
		case errs[i] != nil:
		case session.ID.Name == "":
			errs[i] = flow.Permanent(errNoSession)
		default:
			notes = append(notes, note{session.ID.String(), m.Seq, session.Fence, i})
		}
	}
	slices.SortFunc(notes, func(a, b note) int { return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.seq, b.seq)) })
	notes, err = s.compareFences(ctx, tx, notes, errs)
	if err != nil {
		return nil, err
	}
	first = make([]bool, len(batch))
	for part := range slices.Chunk(notes, maxRows) {
		if err := s.insert(ctx, tx, part, first); err != nil {
			return nil, fmt.Errorf("sessionsql: once: %w", err)
		}
	}
	return first, nil
}

// note is a message that is to be noted.
type note struct {
	id    string
	seq   uint64
	fence uint64
	at    int // in the batch
}

// compareFences returns the notes, which are sorted, of the sessions that are still theirs.
func (s *Store) compareFences(ctx context.Context, tx *sql.Tx, notes []note, errs []error) (held []note, err error) {
	type holder struct {
		id    string
		fence uint64
	}
	verdicts := map[holder]error{} // two streams of one session may be in a batch: the one that lost it, and the next
	for _, n := range notes {
		h := holder{n.id, n.fence}
		verdict, known := verdicts[h]
		if !known {
			verdict = s.compareFence(ctx, tx, n.id, n.fence)
			if verdict != nil && !errors.Is(verdict, flow.ErrSessionMoved) {
				return nil, verdict
			}
			verdicts[h] = verdict
		}
		if errs[n.at] = verdict; verdict == nil {
			held = append(held, n)
		}
	}
	return held, nil
}

// maxRows is how many rows one statement inserts: databases bound its parameters.
const maxRows = 500

// insert notes what is not noted yet, and says so in first.
func (s *Store) insert(ctx context.Context, tx *sql.Tx, notes []note, first []bool) (err error) {
	var text strings.Builder
	text.WriteString(`INSERT INTO {done} (session, seq) VALUES `)
	var args []any
	at := make(map[note]int, len(notes))
	for i, n := range notes {
		if i > 0 {
			text.WriteString(", ")
		}
		fmt.Fprintf(&text, "($%d, $%d)", len(args)+1, len(args)+2)
		args = append(args, n.id, int64(n.seq))
		at[note{id: n.id, seq: n.seq}] = n.at
	}
	text.WriteString(` ON CONFLICT DO NOTHING RETURNING session, seq`)
	rows, err := tx.QueryContext(ctx, s.query(text.String()), args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var id string
		var seq int64
		if err := rows.Scan(&id, &seq); err != nil {
			return err
		}
		first[at[note{id: id, seq: uint64(seq)}]] = true
	}
	return rows.Err()
}
