package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
	pb "example.com/flow/examples/minimal/readingspb"
	"example.com/flow/internal/postgres"
)

// installed is the server of the tests that don't ask for one of their own; nil if there is none to start.
var (
	installed *postgres.Server
	missing   error
)

func TestMain(m *testing.M) {
	installed, missing = postgres.Start(context.Background(), "fsync=off")
	code := m.Run()
	if installed != nil {
		_ = installed.Stop()
	}
	os.Exit(code)
}

// opened is a database in the server of the tests.
func opened(t *testing.T) *database {
	t.Helper()
	if missing != nil {
		t.Skip(missing)
	}
	db, err := openDatabase(t.Context(), &config{dsn: installed.DSN, calls: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// schemas are those of the example that the server of the tests has.
func schemas(t *testing.T) (names []string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), installed.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(t.Context(), "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'flow\\_example%'")
	if err == nil {
		names, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// fits fails t if a line is longer than a terminal is wide.
func fits(t *testing.T, text string) {
	t.Helper()
	for line := range strings.SplitSeq(text, "\n") {
		if utf8.RuneCountInString(line) > 80 {
			t.Errorf("longer than 80 columns: %q", line)
		}
	}
}

func TestExampleStartsItsOwnServerAndLeavesNothing(t *testing.T) {
	if missing != nil {
		t.Skip(missing)
	}
	tmp := t.TempDir()
	if err := os.Chmod(filepath.Dir(tmp), 0o755); err != nil { // a server that runs as another user must come through
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", tmp)
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"-readings", "6000"}, &out, &errs); code != exitOK {
		t.Fatalf("exit code %d: %s%s", code, &out, &errs)
	}
	for _, want := range []string{
		"a temporary one on port", "6000 readings of 500 devices over 4 streams; 1 are too cold", "5999 in ", "1 row by row",
		"dead letters  1\n", "tables equal a sequential replay: yes\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
	fits(t, out.String())
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDSNNamesTheServerAndItsSchemaIsDropped(t *testing.T) {
	if missing != nil {
		t.Skip(missing)
	}
	for _, flags := range [][]string{{"-batch", "1"}, {"-batch", "7", "-calls", "1"}, {"-batch", "1000", "-calls", "16"}} {
		var out, errs bytes.Buffer
		args := append([]string{"-dsn", installed.DSN, "-readings", "1000"}, flags...)
		if code := run(t.Context(), args, &out, &errs); code != exitOK {
			t.Fatalf("%v: exit code %d: %s%s", flags, code, &out, &errs)
		}
		if strings.Contains(out.String(), installed.DSN) || !strings.Contains(out.String(), "of -dsn") {
			t.Errorf("%v: the password is shown, or the server is not:\n%s", flags, &out)
		}
		fits(t, out.String())
	}
	if left := schemas(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestInterruptLeavesNothing(t *testing.T) {
	if missing != nil {
		t.Skip(missing)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	began := make(chan struct{})
	go func() {
		defer close(began)
		for deadline := time.Now().Add(time.Minute); len(schemas(t)) == 0 && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		interrupt()
	}()
	var out, errs bytes.Buffer
	args := []string{"-dsn", installed.DSN, "-readings", "200000", "-batch", "1", "-calls", "1"}
	code := run(ctx, args, &out, &errs)
	<-began
	if code != exitFailed || errs.String() != "postgres: interrupted\n" {
		t.Errorf("exit code %d: %s%s", code, &out, &errs)
	}
	if left := schemas(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestConnectionsThatBreakLoseNothing(t *testing.T) {
	db := opened(t)
	st := &store{pool: db.pool}
	s, err := startServer(&config{batch: 16, calls: 2}, st)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.stop() }()
	stop := make(chan struct{})
	broken := 0
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := pgx.Connect(t.Context(), installed.DSN)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close(context.Background()) }()
		for broken < 5 {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			var n int
			err := conn.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
				WHERE query LIKE '%unnest%' AND state <> 'idle' AND query NOT LIKE '%COMMIT%' AND pid <> pg_backend_pid()`).Scan(&n)
			if err != nil {
				t.Error(err)
				return
			}
			broken += n
		}
	}()
	in := newInput(20_000)
	_, err = send(t.Context(), s.addr, in)
	close(stop)
	<-ended
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d connections were broken", broken)
	if differs, err := st.differences(t.Context(), in); err != nil || differs != "" {
		t.Errorf("the tables differ: %q, %v", differs, err)
	}
}

func messages(readings ...*pb.Reading) (batch []flow.Message[*pb.Reading]) {
	for i, r := range readings {
		batch = append(batch, flow.Message[*pb.Reading]{Seq: uint64(i + 1), Key: r.GetDevice(), Value: r})
	}
	return batch
}

func TestRefusedRowIsAloneAndHoldsItsDevice(t *testing.T) {
	db := opened(t)
	st := &store{pool: db.pool}
	batch := messages(
		&pb.Reading{Device: "oven", Celsius: 180}, &pb.Reading{Device: "fridge", Celsius: 5},
		&pb.Reading{Device: "oven", Celsius: tooCold}, &pb.Reading{Device: "oven", Celsius: 190},
		&pb.Reading{Device: "fridge", Celsius: 4})
	errs := make([]error, len(batch))
	if err := st.handle(t.Context(), batch, errs); err != nil {
		t.Fatal(err)
	}
	if !isRefused(errs[2]) {
		t.Errorf("the row that is too cold: %v", errs[2])
	}
	if !errors.Is(errs[3], flow.ErrNotAttempted) {
		t.Errorf("the one behind it: %v, want ErrNotAttempted", errs[3])
	}
	if errs[0] != nil || errs[1] != nil || errs[4] != nil {
		t.Errorf("the others: %v", errs)
	}
	in := &input{replay: map[string][]float64{"oven": {180}, "fridge": {5, 4}}}
	if differs, err := st.differences(t.Context(), in); err != nil || differs != "" {
		t.Errorf("the tables differ: %q, %v", differs, err)
	}
}

// What an outage has stopped is sent again; a dead letter is what no other try can help.
func TestOutageMakesNoDeadLetters(t *testing.T) {
	for _, c := range []struct {
		err  error
		want flow.FailureAction
	}{
		{fmt.Errorf("db: %w", context.DeadlineExceeded), flow.FailStream},
		{status.Error(codes.ResourceExhausted, "quota"), flow.FailStream},
		{status.Error(codes.InvalidArgument, "malformed"), flow.SkipMessage},
		{flow.Permanent(context.DeadlineExceeded), flow.SkipMessage},
	} {
		s := new(server)
		got := s.deadLetter(t.Context(), &flow.Failure{Kind: flow.FailureHandlerError, Seq: 1, Err: c.err})
		if got != c.want || s.letters.Load() == 1 != (c.want == flow.SkipMessage) {
			t.Errorf("%v: %v with %d dead letters, want %v", c.err, got, s.letters.Load(), c.want)
		}
	}
}

func TestLastOfADeviceIsItsLatest(t *testing.T) {
	db := opened(t)
	st := &store{pool: db.pool}
	for _, batch := range [][]flow.Message[*pb.Reading]{
		messages(&pb.Reading{Device: "a", Celsius: 1}, &pb.Reading{Device: "b", Celsius: 2}, &pb.Reading{Device: "a", Celsius: 3}),
		messages(&pb.Reading{Device: "b", Celsius: 4}, &pb.Reading{Device: "b", Celsius: 5}),
	} {
		if err := st.handle(t.Context(), batch, make([]error, len(batch))); err != nil {
			t.Fatal(err)
		}
	}
	in := &input{replay: map[string][]float64{"a": {1, 3}, "b": {2, 4, 5}}}
	if differs, err := st.differences(t.Context(), in); err != nil || differs != "" {
		t.Errorf("the tables differ: %q, %v", differs, err)
	}
}

// The check can say no.
func TestDifferencesAreFound(t *testing.T) {
	db := opened(t)
	st := &store{pool: db.pool}
	batch := messages(&pb.Reading{Device: "a", Celsius: 1}, &pb.Reading{Device: "a", Celsius: 2}, &pb.Reading{Device: "b", Celsius: 3})
	if err := st.handle(t.Context(), batch, make([]error, 3)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		replay map[string][]float64
		want   string
	}{
		{map[string][]float64{"a": {1, 2}, "b": {3}}, ""},
		{map[string][]float64{"a": {2, 1}, "b": {3}}, "the history of a"},
		{map[string][]float64{"a": {1, 2}, "b": {3, 3}}, "the history of b"},
		{map[string][]float64{"a": {1, 2}}, "the history of b"},
		{map[string][]float64{"a": {1, 2}, "b": {3}, "c": {4}}, "2 devices instead of 3"},
	} {
		if got, err := st.differences(t.Context(), &input{replay: c.replay}); got != c.want || err != nil {
			t.Errorf("%v: %q, %v, want %q", c.replay, got, err, c.want)
		}
	}
	if _, err := db.pool.Exec(t.Context(), "UPDATE latest SET celsius = 1 WHERE device = 'a'"); err != nil {
		t.Fatal(err)
	}
	in := &input{replay: map[string][]float64{"a": {1, 2}, "b": {3}}}
	if got, err := st.differences(t.Context(), in); got != "the latest of a" || err != nil {
		t.Errorf("%q, %v, want the latest of a", got, err)
	}
}

func TestWrongFlagsAreNamed(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-batch 0", "-batch must be from 1 to 100000 (got 0)"},
		{"-calls 1001", "-calls must be from 1 to 1000 (got 1001)"},
		{"-readings -1", "-readings must be from 1 to 1000000 (got -1)"},
		{"-rows 5", "-rows"},
		{"now", `unexpected argument "now"`},
		{"-dsn nonsense", "-dsn: "},
	} {
		var out, errs bytes.Buffer
		code := run(t.Context(), strings.Fields(c.args), &out, &errs)
		if code != exitUsage || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%s: exit code %d, %q; want %q", c.args, code, &errs, c.want)
		}
	}
}

func TestHelpIsOnStdoutAndFits(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"-h"}, &out, &errs); code != exitOK || errs.Len() > 0 {
		t.Errorf("exit code %d, on stderr %q", code, &errs)
	}
	for _, flag := range []string{"-dsn", "-readings", "-batch", "-calls"} {
		if !strings.Contains(out.String(), "\n  "+flag+" ") {
			t.Errorf("%s is not in the help", flag)
		}
	}
	fits(t, out.String())
}

func TestInputIsTheSameEachTime(t *testing.T) {
	a, b := newInput(6000), newInput(6000)
	for i := range a.readings {
		if !slices.EqualFunc(a.readings[i], b.readings[i], func(x, y *pb.Reading) bool {
			return x.GetDevice() == y.GetDevice() && x.GetCelsius() == y.GetCelsius()
		}) {
			t.Errorf("stream %d differs", i)
		}
	}
	if a.cold != 1 {
		t.Errorf("%d are too cold, want 1", a.cold)
	}
}
