package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	"example.com/flow"
	"example.com/flow/sessionsql"
)

// audit reads the effects while they come, in the order in which they came, and holds them against what the senders send
// and were told.
type audit struct {
	part     part
	uploads  []*upload
	wrong    func(format string, args ...any)
	db       *sql.DB
	lock     *sql.DB // the same database, to look whether it is locked
	sessions *sessionsql.Store

	mu      sync.Mutex
	last    int64 // id of the last effect read
	ledgers map[string]*ledger
	unsaved int // effects of which nobody knew any more when a server was killed
}

// ledger is what is known of the effects of a session.
type ledger struct {
	effects  int
	distinct int
	seen     []bool   // by number
	content  []uint64 // by key: the highest so far
	checked  uint64   // up to which what was acknowledged is known to be there
}

func newAudit(r *run) (*audit, error) {
	a := &audit{part: r.part, uploads: r.uploads, wrong: r.wrong, ledgers: map[string]*ledger{}}
	for _, u := range r.uploads {
		a.ledgers[u.name] = &ledger{seen: make([]bool, r.part.messages+1), content: make([]uint64, r.part.keys)}
	}
	var err error
	if a.db, err = openDatabase(r.database, patient); err != nil {
		return nil, err
	}
	if a.lock, err = openDatabase(r.database, 0); err != nil {
		return nil, errors.Join(err, a.db.Close())
	}
	if _, err = a.db.Exec(createEffects); err == nil {
		a.sessions, err = sessionsql.New(a.db, sessionsql.Options{Dialect: sessionsql.SQLite})
	}
	if err == nil {
		err = a.sessions.CreateTables(context.Background())
	}
	if err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

func (a *audit) close() error { return errors.Join(a.db.Close(), a.lock.Close()) }

// unlocked reports whether nobody writes to the database.
func (a *audit) unlocked() bool {
	tx, err := a.lock.Begin()
	return err == nil && tx.Rollback() == nil
}

// look reads what has come. What was acknowledged before must be there.
func (a *audit) look() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lookLocked()
}

func (a *audit) lookLocked() error {
	acknowledged := make([]*settled, len(a.uploads))
	for i, u := range a.uploads {
		acknowledged[i] = u.acknowledged()
	}
	if err := a.readLocked(); err != nil {
		return err
	}
	for i, u := range a.uploads {
		if err := a.ledgers[u.name].covers(acknowledged[i]); err != nil {
			a.wrong("%s: %v", u.name, err)
		}
	}
	return nil
}

func (a *audit) readLocked() (err error) {
	rows, err := a.db.Query("SELECT id, session, number, content, key FROM effects WHERE id > ? ORDER BY id", a.last)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var session string
		var number, content uint64
		var key uint32
		if err := rows.Scan(&a.last, &session, &number, &content, &key); err != nil {
			return err
		}
		l := a.ledgers[session]
		if l == nil || number < 1 || number >= uint64(len(l.seen)) || key >= uint32(len(l.content)) {
			a.wrong("an effect that nobody sent: session %q, number %d, key %d", session, number, key)
			continue
		}
		l.add(number, content, key, a.part.kind == withOnce, func(format string, args ...any) {
			a.wrong(session+": "+format, args...)
		})
	}
	return rows.Err()
}

// add takes an effect. Where it happens once it comes once, and the first ones of a key come in order in any case.
func (l *ledger) add(number, content uint64, key uint32, once bool, wrong func(format string, args ...any)) {
	l.effects++
	if content != number {
		wrong("message %d came under the number %d", content, number)
	}
	if l.seen[number] && once {
		wrong("message %d has two effects", number)
	}
	if !l.seen[number] {
		l.seen[number] = true
		l.distinct++
		if content < l.content[key] {
			wrong("key %d is out of order: message %d came after %d", key, content, l.content[key])
		}
	}
	l.content[key] = max(l.content[key], content)
}

// covers checks that all is there that was acknowledged.
func (l *ledger) covers(s *settled) error {
	through := s.through()
	for n := l.checked + 1; n <= through; n++ {
		if !l.seen[n] {
			l.checked = through // once is enough
			return fmt.Errorf("message %d was acknowledged, and is absent", n)
		}
	}
	l.checked = max(l.checked, through)
	open := s.Unsettled
	for n := through + 1; n <= s.Taken; n++ {
		if len(open) > 0 && open[0] == n {
			open = open[1:]
		} else if !l.seen[n] {
			return fmt.Errorf("message %d was acknowledged, and is absent", n)
		}
	}
	return nil
}

// addUnsaved counts the effects of which nobody knows any more, now that the only server was killed: those since the last
// Save, or, where sessions are in memory, since what the client has heard.
func (a *audit) addUnsaved() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.lookLocked(); err != nil {
		return err
	}
	for _, u := range a.uploads {
		known := u.acknowledged().through()
		settled := func(n uint64) bool { return n <= known }
		if a.part.kind != inMemory {
			state, _, err := a.sessions.Load(context.Background(), flow.SessionID{Name: u.name})
			if err != nil {
				return err
			}
			known, settled = state.Progress.Committed(), state.Progress.Settled
		}
		seen := a.ledgers[u.name].seen
		for n := known + 1; n < uint64(len(seen)); n++ {
			if seen[n] && !settled(n) {
				a.unsaved++
			}
		}
	}
	return nil
}

// totals are the sums over all sessions.
func (a *audit) totals() (effects, distinct, unsaved int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.ledgers {
		effects += l.effects
		distinct += l.distinct
	}
	return effects, distinct, a.unsaved
}

// recount has the database count for itself.
func (a *audit) recount() (effects, distinct int, err error) {
	err = a.db.QueryRow(`SELECT coalesce(sum(n), 0), count(*) FROM (SELECT count(*) AS n FROM effects GROUP BY session, number)`).
		Scan(&effects, &distinct)
	return effects, distinct, err
}
