package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"example.com/flow"
	"example.com/flow/sessionsql"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

// serverTask is a server process: until SIGTERM it stores what it gets.
type serverTask struct {
	Database string
	Once     bool // effects are noted by sessionsql
	Memory   bool // sessions are kept in memory
	Lose     bool // a fault: some messages are said to be stored and are not
}

const (
	maxPendingBytes = 1 << 20
	maxStreams      = 64 // at once, by far
)

// pendingBound is what a server may have received and not finished.
const pendingBound = 2*maxPendingBytes + maxStreams*messageSize

// patient is how long somebody who has time waits for the database's lock.
const patient = 30 * time.Second

// openDatabase opens the database of servers, and of whoever looks at it, with what makes a commit outlive its process
// and its machine.
func openDatabase(file string, wait time.Duration) (*sql.DB, error) {
	source := url.URL{Scheme: "file", Path: file, RawQuery: url.Values{
		"_pragma": {fmt.Sprintf("busy_timeout(%d)", wait.Milliseconds()), "journal_mode(WAL)", "synchronous(FULL)"},
		"_txlock": {"immediate"},
	}.Encode()}
	db, err := sql.Open("sqlite", source.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1) // SQLite has one writer: the others better wait here than poll there
	return db, nil
}

// The effects, in the order in which they happened: number is the message's in its session, content and key are what it
// says. That a number is there once is not for the table to see to.
const createEffects = `CREATE TABLE IF NOT EXISTS effects (
	id INTEGER PRIMARY KEY, session TEXT, number INTEGER, content INTEGER, key INTEGER)`

// server is the service and what it needs.
type server struct {
	testpb.UnimplementedTestServiceServer
	task     serverTask
	out      *speaker
	db       *sql.DB
	sessions *sessionsql.Store
	flow     *flow.Flow[*request]

	pending    atomic.Int64 // bytes
	highest    atomic.Int64 // of pending
	saveFailed atomic.Int64
}

func (t *serverTask) run(out *speaker, terminate <-chan os.Signal) error {
	s := &server{task: *t, out: out}
	err := s.open()
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, s.db.Close())
	}
	srv := grpc.NewServer()
	testpb.RegisterTestServiceServer(srv, s)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	out.say(statement{Address: lis.Addr().String()})

	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-tick.C:
			out.say(statement{Pending: s.highest.Load(), SaveFailed: int(s.saveFailed.Swap(0))})
		case <-terminate:
			running = false
		}
	}
	err = s.flow.Shutdown(context.Background())
	srv.Stop() // no stream is left
	return errors.Join(err, <-served, s.db.Close())
}

func (s *server) open() (err error) {
	if s.db, err = openDatabase(s.task.Database, patient); err != nil {
		return err
	}
	if _, err = s.db.Exec(createEffects); err != nil {
		return err
	}
	if s.sessions, err = sessionsql.New(s.db, sessionsql.Options{Dialect: sessionsql.SQLite}); err != nil {
		return err
	}
	if err := s.sessions.CreateTables(context.Background()); err != nil {
		return err
	}
	sessions := &flow.SessionOptions{Store: s.sessions}
	if s.task.Memory {
		sessions.Store = nil
	}
	s.flow, err = flow.NewBatch(s.store, orderingKey, flow.Options{
		Ordering:        flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		Backpressure:    flow.BackpressureOptions{Capacity: 2},
		Retry:           flow.RetryOptions{MaxAttempts: 3, Backoff: 10 * time.Millisecond},
		Shutdown:        flow.ShutdownOptions{DrainOnClose: true, GracePeriod: 10 * time.Second},
		MaxPendingBytes: maxPendingBytes,
		Observer:        s.see,
		Sessions:        sessions,
	})
	return err
}

// StreamingInputCall implements the service.
func (s *server) StreamingInputCall(stream grpc.ClientStreamingServer[request, reply]) error {
	p := &pending{of: s}
	defer p.forget()
	sum, err := s.flow.Run(context.WithValue(stream.Context(), pendingKey{}, p), func() (*request, error) {
		r, err := stream.Recv()
		if err == nil {
			p.add()
		}
		return r, err
	})
	if err != nil {
		return err
	}
	return stream.SendAndClose(&reply{AggregatedPayloadSize: int32(sum.Received)})
}

// store is the handler: it stores a batch in a transaction.
func (s *server) store(ctx context.Context, batch []flow.Message[*request], errs []error) error {
	// A moment in which no lock is held, so that a process can be stopped in it and be deposed by another one.
	time.Sleep(rand.N(4 * time.Millisecond))
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	var first []bool
	if s.task.Once {
		if first, err = sessionsql.OnceAll(ctx, tx, s.sessions, batch, errs); err != nil {
			return err
		}
	}
	insert, err := tx.PrepareContext(ctx, "INSERT INTO effects (session, number, content, key) VALUES (?, ?, ?, ?)")
	if err != nil {
		return err
	}
	defer func() { _ = insert.Close() }()
	stored, refused := 0, 0
	for i, m := range batch {
		number, key := content(m.Value)
		switch {
		case errs[i] != nil:
			refused++
			continue
		case s.task.Once && !first[i], s.task.Lose && number%97 == 0:
			continue
		}
		if _, err := insert.ExecContext(ctx, m.Session().ID.Name, int64(m.Seq), int64(number), key); err != nil {
			return err
		}
		stored++
	}
	if refused > 0 {
		s.out.say(statement{Refused: refused})
	}
	return s.commit(ctx, tx, stored)
}

// commit commits, and says how much of a call is stored that was cancelled meanwhile: that may run again.
func (s *server) commit(ctx context.Context, tx *sql.Tx, stored int) error {
	err := tx.Commit()
	if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		s.out.say(statement{Cut: stored})
	}
	return err
}

// see is the Flow's Observer.
func (s *server) see(ctx context.Context, e flow.Event) {
	switch e.Kind {
	case flow.EventSuccess, flow.EventFailure, flow.EventReject, flow.EventDrop, flow.EventDuplicate:
		ctx.Value(pendingKey{}).(*pending).remove()
	case flow.EventSaveFailed:
		s.saveFailed.Add(1)
	}
	if e.Failure != nil && e.Failure.Kind == flow.FailureInternal {
		s.out.wrong("%v", fmt.Errorf("stream %d: %w, %s", e.Stream, e.Failure, e.Stack))
	}
}

// pending counts what a stream has received and not finished, from a moment before the Flow does to a moment before the
// Flow no longer does.
type pending struct {
	of *server

	mu       sync.Mutex
	messages int64
	over     bool
}

type pendingKey struct{}

func (p *pending) add() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over { // it came too late for the Flow to take it on
		return
	}
	p.messages++
	now := p.of.pending.Add(messageSize)
	for h := p.of.highest.Load(); now > h && !p.of.highest.CompareAndSwap(h, now); h = p.of.highest.Load() {
	}
}

func (p *pending) remove() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.messages--
	p.of.pending.Add(-messageSize)
}

func (p *pending) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.of.pending.Add(-p.messages * messageSize)
}
