package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/flow/internal/postgres"
)

// database is a schema of one's own in a PostgreSQL server, and connections to it.
type database struct {
	pool    *pgxpool.Pool
	schema  string
	server  *postgres.Server // nil: it is the user's
	version string
}

const tables = `
CREATE TABLE history (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, device TEXT NOT NULL,
	celsius DOUBLE PRECISION NOT NULL CHECK (celsius >= -273.15));
CREATE TABLE latest (device TEXT PRIMARY KEY, celsius DOUBLE PRECISION NOT NULL)`

// closeTimeout is how long the user's server may take to drop the schema.
const closeTimeout = 10 * time.Second

// openDatabase makes the tables, in the server of -dsn or in one that it starts.
func openDatabase(ctx context.Context, cfg *config) (db *database, err error) {
	db = &database{schema: "flow_example_" + strings.ToLower(rand.Text()[:8])}
	dsn := cfg.dsn
	if dsn == "" {
		if db.server, err = postgres.Start(ctx); err != nil {
			return nil, fmt.Errorf("no -dsn, and none could be started: %w", err)
		}
		dsn = db.server.DSN
	}
	if err := db.connect(ctx, dsn, cfg.calls); err != nil {
		return nil, errors.Join(err, db.close())
	}
	return db, nil
}

func (db *database) connect(ctx context.Context, dsn string, connections int) error {
	conf, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return err
	}
	conf.ConnConfig.RuntimeParams["search_path"] = db.schema
	conf.MaxConns = int32(connections)
	pool, err := pgxpool.NewWithConfig(ctx, conf)
	if err != nil {
		return err
	}
	if err := pool.QueryRow(ctx, "SHOW server_version").Scan(&db.version); err != nil {
		pool.Close()
		return err
	}
	db.pool = pool
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "CREATE SCHEMA "+db.schema); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, tables)
		return err
	})
}

// String says in a line which server it is.
func (db *database) String() string {
	version, _, _ := strings.Cut(db.version, " ") // 15.14 (Debian …)
	if db.server == nil {
		return fmt.Sprintf("PostgreSQL %s of -dsn, schema %s", version, db.schema)
	}
	return fmt.Sprintf("PostgreSQL %s, a temporary one on port %d", version, db.server.Port)
}

// close leaves nothing behind, also when the program is interrupted.
func (db *database) close() (err error) {
	if db.pool != nil {
		if db.server == nil {
			ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
			defer cancel()
			_, err = db.pool.Exec(ctx, "DROP SCHEMA IF EXISTS "+db.schema+" CASCADE")
		}
		db.pool.Close()
	}
	if db.server != nil {
		err = errors.Join(err, db.server.Stop())
	}
	return err
}
