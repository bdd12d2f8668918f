package sessionsql_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"

	_ "modernc.org/sqlite"

	"example.com/flow"
	"example.com/flow/sessionsql"
	"google.golang.org/grpc/metadata"
)

// A handler whose row is there once, also if the process is killed between its commit and what flow saves.
func ExampleOnce() {
	ctx := context.Background()
	db, err := sql.Open("sqlite", "file:once?mode=memory&cache=shared&_pragma=busy_timeout(10000)")
	if err != nil {
		log.Fatal(err)
	}
	store, err := sessionsql.New(db, sessionsql.Options{Dialect: sessionsql.SQLite})
	if err != nil {
		log.Fatal(err)
	}
	if err := store.CreateTables(ctx); err != nil {
		log.Fatal(err)
	}
	if _, err := db.ExecContext(ctx, "CREATE TABLE readings (value TEXT)"); err != nil {
		log.Fatal(err)
	}

	handler := func(ctx context.Context, m flow.Message[string]) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		first, err := sessionsql.Once(ctx, tx, store, m)
		if !first || err != nil {
			return err // nil: it is done already
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO readings (value) VALUES (?)", m.Value); err != nil {
			return err
		}
		return tx.Commit()
	}
	f, err := flow.New(handler, nil, flow.Options{Sessions: &flow.SessionOptions{Store: store}})
	if err != nil {
		log.Fatal(err)
	}

	// Under gRPC the client sends the header flow-session, and Run is given its stream.
	upload := func(values ...string) {
		client := metadata.NewIncomingContext(ctx, metadata.Pairs("flow-session", "upload-7"))
		ch := make(chan string, len(values))
		for _, v := range values {
			ch <- v
		}
		close(ch)
		sum, err := f.Run(client, flow.FromChan(client, ch))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("committed:", sum.Committed, "duplicates:", sum.Duplicates)
	}
	upload("21.5", "22.0")
	upload("21.5", "22.0", "22.5") // it has not heard the answer, and sends all of it again

	var n int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM readings").Scan(&n); err != nil {
		log.Fatal(err)
	}
	fmt.Println("rows:", n)
	_ = db.Close()
	// Output:
	// committed: 2 duplicates: 0
	// committed: 3 duplicates: 2
	// rows: 3
}
