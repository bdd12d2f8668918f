package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/credentials/insecure"
)

func TestMain(m *testing.M) {
	if os.Getenv(asProgram)+os.Getenv(underParent) != "" {
		main() // exits
	}
	goleak.VerifyTestMain(m)
}

const yes = "state equals a sequential replay: yes\n"

// lockedBuffer may be read while run writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// try runs the program.
func try(t *testing.T, ctx context.Context, stdin string, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e lockedBuffer
	code = run(ctx, args, strings.NewReader(stdin), &o, &e)
	return code, o.String(), e.String()
}

// await waits until ok, for as long as a slow machine may take.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestStateEqualsASequentialReplayUnderEveryFlag(t *testing.T) {
	all := []string{
		"-records 1000",
		"-records 1 -restart",
		"-records 1000 -streams 7",
		"-records 1000 -kill",
		"-records 300 -batch 1",
		"-records 1 -kill",
		"-records 500 -batch 7 -fail 0.3",
		"-records 500 -batch 5 -mode fifo -fail 0.1 -slow device-5 -slow-by 2ms",
		"-records 300 -kill -fail 0.1 -streams 2 -batch 1",
		"-records 500 -mode fifo",
		"-records 500 -mode fifo -fail 0.1 -streams 3",
		"-records 300 -capacity 1",
		"-records 300 -capacity 0",
		"-records 300 -policy queue -capacity 2",
		"-records 300 -policy soft -capacity 2",
		"-records 300 -policy signal -capacity 2",
		"-records 300 -policy hard -capacity 4",
		"-records 500 -slow device-3 -slow-by 5ms",
		"-records 500 -fail 0.5",
		"-records 100 -devices 20 -fail 0.9",
		"-records 1000 -restart -grace 1m -fail 0.1 -streams 2 -slow device-5 -slow-by 2ms",
		"-in testdata/packages.log -key 5 -bad skip -restart",
	}
	if testing.Short() {
		all = all[:3]
	}
	for _, args := range all {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			code, out, errs := try(t, context.Background(), "", strings.Fields(args)...)
			if code != exitOK || !strings.HasSuffix(out, yes) {
				t.Errorf("exit code %d\n%s%s", code, out, errs)
			}
		})
	}
}

// The first lines say what is about to happen, the last what else there is: all of it fits a narrow terminal.
func TestFirstLinesSayWhatRunsAndTheLastOneWhatToTry(t *testing.T) {
	code, out, errs := try(t, context.Background(), "", "-records", "500")
	lines := strings.Split(strings.TrimSpace(errs), "\n")
	first := regexp.MustCompile(`^server 127\.0\.0\.1:\d+, a temporary database$`)
	if code != exitOK || !first.MatchString(lines[0]) || lines[1] != "500 records of 100 devices; device-7 is slow: 30ms each" ||
		!strings.HasPrefix(lines[len(lines)-1], "try next: -kill") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
	for l := range strings.Lines(out + errs) {
		width := 60
		if strings.Contains(l, "/500 records") { // progress, of a run that takes long; on a terminal it is a bar that fits
			width = 80
		}
		if len(l) > width {
			t.Errorf("does not fit %d columns: %s", width, l)
		}
	}
}

func TestNoYesWhereNothingRan(t *testing.T) {
	for _, c := range []struct {
		args, stdin string
		code        int
	}{
		{"-records 0", "", exitOK},
		{"-in - -key 1", "\n\n", exitOK},
		{"-in - -key 9 -bad skip", "a b\n", exitOK},
		{"-in - -key 9", "a b\n", exitFailed},
	} {
		code, out, errs := try(t, context.Background(), c.stdin, strings.Fields(c.args)...)
		if code != c.code || strings.Contains(out, "yes") || !strings.Contains(out, "replay: nothing to compare") {
			t.Errorf("%s: exit code %d\n%s%s", c.args, code, out, errs)
		}
	}
}

// What the table says of the last record is counted from the upload's start, as the total is.
func TestLastRecordIsNotAfterTheUpload(t *testing.T) {
	cfg, err := parse([]string{"-records", "200", "-slow", "none"})
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode(cfg, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // as if the server had been there for some time
	var out, errs lockedBuffer
	start := time.Now()
	j := &job{cfg: cfg, t: newTerminal(&out, &errs), addr: n.current().addr}
	if err := j.run(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); n.metrics.others.last > took {
		t.Errorf("the last record came after %v, and all took %v", n.metrics.others.last, took)
	}
	if err := n.stop(); err != nil {
		t.Error(err)
	}
}

// A file whose first page says that its format is one to read only is read-only for whoever opens it, root too.
func TestReadOnlyDatabaseIsFoundAtTheStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.db")
	if code, _, errs := try(t, context.Background(), "", "-records", "1", "-db", file); code != exitOK {
		t.Fatal(errs)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	const writeVersion = 18 // where the header has the version of the format that writing needs
	_, err = f.WriteAt([]byte{9}, writeVersion)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	code, out, errs := try(t, context.Background(), "", "-records", "1", "-db", file)
	if code != exitFailed || out != "" || !strings.Contains(errs, "x.db: attempt to write a readonly database") || strings.Contains(errs, "server 127") {
		t.Errorf("exit code %d, %q, %s", code, out, errs)
	}
}

func TestWithoutOrderTheCheckSaysNo(t *testing.T) {
	code, out, _ := try(t, context.Background(), "", "-mode", "none", "-devices", "2", "-records", "2000")
	if code != exitFailed || !strings.Contains(out, `state equals a sequential replay: no (key "device-1": its `) {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

func TestEachRecordIsStoredOnceThroughARestartAndAKill(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	for flags, streams := range map[string]string{
		"-restart":       "[2-9]", // it may be that all was read before
		"-kill":          "[3-9]", // device-7's was cut off, at least
		"-kill -batch 1": "[3-9]",
	} {
		t.Run(flags, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "x.db")
			args := append(strings.Fields(flags), "-records", "2000", "-streams", "2", "-grace", "1m", "-db", file)
			code, out, errs := try(t, context.Background(), "", args...)
			if code != exitOK || !strings.HasSuffix(out, yes) || !regexp.MustCompile(`\nstreams +(`+streams+`|\d\d+), `).MatchString(out) {
				t.Fatalf("exit code %d\n%s%s", code, out, errs)
			}
			wantRecords(t, file, 2000)
		})
	}
}

// wantRecords checks that so many records are stored, each once.
func wantRecords(t *testing.T, file string, want int) {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var records, lines int
	if err := db.QueryRow("SELECT count(*), count(DISTINCT line) FROM records").Scan(&records, &lines); err != nil {
		t.Fatal(err)
	}
	if records != want || lines != want {
		t.Errorf("%d records of %d lines are stored, want %d of each", records, lines, want)
	}
}

func TestSlowKeyIsShownBesideTheOthers(t *testing.T) {
	_, out, _ := try(t, context.Background(), "", "-slow", "device-3", "-slow-by", "20ms", "-records", "1000")
	if !regexp.MustCompile(`\n +device-3 +all other keys\nrecords stored +\d+ +\d+\n`).MatchString(out) {
		t.Fatalf("%s", out)
	}
	handler := regexp.MustCompile(`handler p50, p99 +(\S+), \S+ +\S+, \S+`).FindStringSubmatch(out)
	if handler == nil {
		t.Fatalf("%s", out)
	}
	if p50, err := time.ParseDuration(handler[1]); err != nil || p50 < 20*time.Millisecond {
		t.Errorf("the slow key's handler took %v\n%s", p50, out)
	}
}

func TestInterruptStoresWhatWasSent(t *testing.T) {
	stdin, keyboard := io.Pipe()
	defer keyboard.Close()
	ctx, interrupt := context.WithCancel(context.Background())
	var out, errs lockedBuffer
	code := make(chan int)
	file := filepath.Join(t.TempDir(), "x.db")
	go func() { code <- run(ctx, []string{"-in", "-", "-key", "1", "-db", file}, stdin, &out, &errs) }()
	for range 100 {
		_, _ = io.WriteString(keyboard, "a x\nb y\n")
	}
	interrupt()
	if c := <-code; c != exitFailed {
		t.Errorf("exit code %d, want %d", c, exitFailed)
	}
	if !strings.Contains(errs.String(), "interrupted before the end of the input") ||
		!regexp.MustCompile(`replay: as far as it got \(\d+ records\); the upload failed\n$`).MatchString(out.String()) {
		t.Errorf("%s%s", out.String(), errs.String())
	}
}

// serving is a server process, as far as a test can have one.
type serving struct {
	addr      string
	terminate context.CancelFunc
	code      chan int
	out, errs lockedBuffer
}

func startServing(t *testing.T, args ...string) *serving {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &serving{terminate: cancel, code: make(chan int, 1)}
	go func() { s.code <- run(ctx, args, nil, &s.out, &s.errs) }()
	await(t, "the server's address", func() bool {
		m := regexp.MustCompile(`serving on (\S+),`).FindStringSubmatch(s.out.String())
		if m != nil {
			s.addr = m[1]
		}
		return m != nil || len(s.code) > 0
	})
	if s.addr == "" {
		t.Fatalf("the server did not start: %s", s.errs.String())
	}
	t.Cleanup(cancel)
	return s
}

func TestServerTerminatedUnderLoadLosesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.db")
	first := startServing(t, "-serve", "127.0.0.1:0", "-grace", "1m", "-db", file)
	stdin, feed := io.Pipe()
	var out, errs lockedBuffer
	code := make(chan int, 1)
	go func() {
		code <- run(context.Background(), []string{"-connect", first.addr, "-in", "-", "-key", "1"}, stdin, &out, &errs)
	}()
	send := func(n int) {
		for i := range n {
			_, _ = io.WriteString(feed, device(i%17)+" reports\n")
		}
	}
	send(1000)
	first.terminate()
	go func() {
		send(1010)
		feed.Close()
	}()
	if c := <-first.code; c != exitOK {
		t.Errorf("the server's exit code is %d: %s", c, first.errs.String())
	}
	second := startServing(t, "-serve", first.addr, "-db", file)
	if c := <-code; c != exitOK || !strings.HasSuffix(out.String(), yes) || !strings.Contains(out.String(), "2010 of 17 keys") {
		t.Errorf("exit code %d\n%s%s", c, out.String(), errs.String())
	}
	for _, m := range regexp.MustCompile(`(\d+) records  `).FindAllStringSubmatch(errs.String(), -1) {
		if n, err := strconv.Atoi(m[1]); err != nil || n > 2010 { // though some were sent twice
			t.Errorf("the live line says that %s records of 2010 are sent", m[1])
		}
	}
	second.terminate()
	if c := <-second.code; c != exitOK || !strings.Contains(second.out.String(), "all keys") {
		t.Errorf("the second server's exit code is %d: %s%s", c, second.out.String(), second.errs.String())
	}
}

func TestServerThatCutsRecordsOffSaysSo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	s := startServing(t, "-serve", "127.0.0.1:0", "-batch", "1", "-grace", "200ms", "-slow", "a", "-slow-by", "1h")
	stdin, feed := io.Pipe()
	clientCode := make(chan int, 1)
	var out, errs lockedBuffer
	ctx, interrupt := context.WithCancel(context.Background())
	go func() {
		clientCode <- run(ctx, []string{"-connect", s.addr, "-in", "-", "-key", "1"}, stdin, &out, &errs)
	}()
	_, _ = io.WriteString(feed, "b 1\na 1\nb 2\n")
	await(t, "b's records", func() bool { return strings.Contains(s.errs.String(), "2 records") })
	s.terminate()
	if c := <-s.code; c != exitFailed || !strings.Contains(s.errs.String(), "cut off 1 unfinished messages") {
		t.Errorf("exit code %d: %s", c, s.errs.String())
	}
	next := startServing(t, "-serve", s.addr) // a new database: the check is to see that what was stored is lost, but for what is behind a record that was not
	interrupt()
	feed.Close()
	if c := <-clientCode; c != exitFailed || !strings.Contains(out.String(), `replay: no (key "b": 1 records stored, 2 sent)`) {
		t.Errorf("exit code %d\n%s%s", c, out.String(), errs.String())
	}
	next.terminate()
	<-next.code
}

// What -connect survives: a server that is killed and started again, and connections that are cut all the time.
func TestUploadGoesOnThroughAKillAndCuts(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	file := filepath.Join(t.TempDir(), "x.db")
	first := startProcess(t, "-serve", "127.0.0.1:0", "-db", file)
	stdin, feed := io.Pipe()
	var out, errs lockedBuffer
	code := make(chan int, 1)
	go func() {
		code <- run(context.Background(), []string{"-connect", cutter(t, first.addr), "-in", "-", "-key", "1"}, stdin, &out, &errs)
	}()
	send := func(from, to int) {
		for i := from; i < to; i++ {
			fmt.Fprintf(feed, "%s %d\n", device(i%17), i)
			if i%100 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
	send(0, 2000)
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // it was killed
	second := startProcess(t, "-serve", first.addr, "-db", file)
	send(2000, 3000)
	_ = feed.Close()
	if c := <-code; c != exitOK || !strings.HasSuffix(out.String(), yes) || !strings.Contains(out.String(), "3000 of 17 keys") ||
		!strings.Contains(errs.String(), "upload cut off (") {
		t.Errorf("exit code %d\n%s%s", c, out.String(), errs.String())
	}
	if c := second.sigterm(t); c != exitOK {
		t.Errorf("the second server's exit code is %d: %s", c, second.errs.String())
	}
	wantRecords(t, file, 3000)
}

// cutter returns the address of a proxy that cuts each connection to addr a moment after it was made.
func cutter(t *testing.T, addr string) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	serve := func(client net.Conn) {
		defer client.Close()
		server, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		cut := time.AfterFunc(200*time.Millisecond, func() { _ = errors.Join(client.Close(), server.Close()) })
		defer cut.Stop()
		all.Go(func() {
			_, _ = io.Copy(server, client)
			_ = server.Close()
		})
		_, _ = io.Copy(client, server)
	}
	all.Go(func() {
		for {
			client, err := lis.Accept()
			if err != nil {
				return
			}
			all.Go(func() { serve(client) })
		}
	})
	t.Cleanup(func() {
		_ = lis.Close()
		all.Wait()
	})
	return lis.Addr().String()
}

func TestServerProcessThatCantStartSaysWhy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none", "x.db")
	code, out, errs := try(t, context.Background(), "", "-kill", "-records", "10", "-db", file)
	if code != exitFailed || out != "" || !strings.Contains(errs, "ingest: the server: database "+file) {
		t.Errorf("exit code %d, %q, %s", code, out, errs)
	}
}

// The end of the input does not wait for room in a Sender, which there may be none of for long.
func TestInterruptEndsTheInputWhileASendWaits(t *testing.T) {
	cfg, err := parse([]string{"-records", "1000000"})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0") // nobody answers there
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	c, err := dial(lis.Addr().String(), insecure.NewCredentials(), 1, time.Second, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.close() }()
	in, closeInput, err := newInput(t.Context(), cfg, nil, "x", t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = closeInput() }()
	stop, interrupt := context.WithCancel(t.Context())
	fed := make(chan error, 1)
	go func() { fed <- in.feed(t.Context(), stop, c.senders) }()
	await(t, "a full Sender", func() bool { return c.stats().Taken == maxBuffered })
	interrupt()
	if err := <-fed; !errors.Is(err, errInterrupted) {
		t.Error(err)
	}
}

// The server stops, and then its address is taken: that is an error, and everything ends all the same.
func TestServerThatCantStartAgainEndsTheProgram(t *testing.T) {
	cfg, err := parse([]string{"-records", "200", "-slow", "none"})
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode(cfg, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var out, errs lockedBuffer
	j := &job{cfg: cfg, t: newTerminal(&out, &errs), addr: n.current().addr}
	j.middle = func() error {
		if err := n.current().stop(); err != nil {
			return err
		}
		somebodyElse, err := net.Listen("tcp", n.current().addr)
		if err != nil {
			return err
		}
		defer func() { _ = somebodyElse.Close() }()
		return n.restart()
	}
	if err := j.run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "restart: ") {
		t.Errorf("error %v\n%s%s", err, out.String(), errs.String())
	}
	if err := n.stop(); err != nil {
		t.Error(err)
	}
}
