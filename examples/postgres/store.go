package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/flow"
	pb "example.com/flow/examples/minimal/readingspb"
)

// store keeps all readings of each device, and the latest.
type store struct {
	pool *pgxpool.Pool

	mu     sync.Mutex
	sizes  []int // of the batches
	stored int
	byRow  int // batches that were stored row by row
}

// handle is the BatchHandler: it stores all of batch in one transaction. A row that PostgreSQL refuses aborts the
// transaction, so the rows stand behind a SAVEPOINT. It is rolled back to, and then each row has a SAVEPOINT of its own.
// Any other error, such as a lost connection, undoes all of it, and flow calls again with the same batch.
//
// A commit whose answer gets lost may have happened, and then all of it is stored twice. Where that matters, a session
// and sessionsql.OnceAll in the same transaction keep it from happening.
func (s *store) handle(ctx context.Context, batch []flow.Message[*pb.Reading], errs []error) error {
	byRow := false
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		err := pgx.BeginFunc(ctx, tx, func(part pgx.Tx) error { return insert(ctx, part, batch) })
		if byRow = isRefused(err); byRow {
			return insertByRow(ctx, tx, batch, errs)
		}
		return err
	})
	if err == nil {
		s.note(len(batch), errs, byRow)
	}
	return err
}

// insertByRow stores what can be stored. The rows of a device that come behind a refused one are left alone: they come
// again, first in line, when it is decided what becomes of that one.
func insertByRow(ctx context.Context, tx pgx.Tx, batch []flow.Message[*pb.Reading], errs []error) error {
	refused := map[string]bool{}
	for i, m := range batch {
		if refused[m.Key] {
			errs[i] = flow.ErrNotAttempted
			continue
		}
		err := pgx.BeginFunc(ctx, tx, func(row pgx.Tx) error { return insert(ctx, row, batch[i:i+1]) })
		switch {
		case isRefused(err):
			errs[i], refused[m.Key] = flow.Permanent(err), true
		case err != nil:
			return err
		}
	}
	return nil
}

// insert stores rows with two statements, however many there are.
func insert(ctx context.Context, tx pgx.Tx, rows []flow.Message[*pb.Reading]) error {
	devices, celsius := make([]string, len(rows)), make([]float64, len(rows))
	for i, m := range rows {
		devices[i], celsius[i] = m.Value.GetDevice(), m.Value.GetCelsius()
	}
	if _, err := tx.Exec(ctx, `INSERT INTO history (device, celsius)
		SELECT device, celsius FROM unnest($1::text[], $2::float8[]) WITH ORDINALITY AS r (device, celsius, place)
		ORDER BY place`, devices, celsius); err != nil {
		return err
	}
	// An INSERT … ON CONFLICT "cannot affect row a second time", so only the last reading of each device is in it.
	seen := map[string]bool{}
	n := len(rows)
	for i := n - 1; i >= 0; i-- {
		if !seen[devices[i]] {
			seen[devices[i]] = true
			n--
			devices[n], celsius[n] = devices[i], celsius[i]
		}
	}
	_, err := tx.Exec(ctx, `INSERT INTO latest (device, celsius) SELECT * FROM unnest($1::text[], $2::float8[])
		ON CONFLICT (device) DO UPDATE SET celsius = EXCLUDED.celsius`, devices[n:], celsius[n:])
	return err
}

// isRefused reports whether a row is the reason, and not the database: its data, or a constraint.
func isRefused(err error) bool {
	refusal, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (refusal.Code[:2] == "22" || refusal.Code[:2] == "23")
}

func (s *store) note(size int, errs []error, byRow bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sizes = append(s.sizes, size)
	for _, err := range errs {
		if err == nil {
			s.stored++
		}
	}
	if byRow {
		s.byRow++
	}
}

func (s *store) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stored
}

// differences compares the tables with what a sequential run of the input would have left there. It is empty if they are
// equal.
func (s *store) differences(ctx context.Context, in *input) (string, error) {
	rows, err := s.pool.Query(ctx, `SELECT h.device, array_agg(h.celsius ORDER BY h.id), min(l.celsius)
		FROM history h LEFT JOIN latest l USING (device) GROUP BY h.device ORDER BY h.device`)
	if err != nil {
		return "", err
	}
	found, differs := 0, ""
	var device string
	var history []float64
	var latest *float64
	_, err = pgx.ForEachRow(rows, []any{&device, &history, &latest}, func() error {
		found++
		want := in.replay[device]
		switch {
		case differs != "":
		case !slices.Equal(history, want):
			differs = fmt.Sprintf("the history of %s", device)
		case latest == nil || *latest != want[len(want)-1]:
			differs = fmt.Sprintf("the latest of %s", device)
		}
		return nil
	})
	if differs == "" && found != len(in.replay) {
		differs = fmt.Sprintf("%d devices instead of %d", found, len(in.replay))
	}
	return differs, err
}
