//go:build linux

package postgres

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// envChild has the test binary be a program that starts a server.
const envChild = "FLOW_POSTGRES_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(envChild) == "" {
		os.Exit(m.Run())
	}
	s, err := Start(context.Background())
	if err != nil {
		panic(err)
	}
	if _, err := os.Stdout.WriteString(s.dir + " " + strconv.Itoa(s.Port) + "\n"); err != nil {
		panic(err)
	}
	select {}
}

// needsServer skips a test where there is none to start. It takes some seconds to make a database.
func needsServer(t *testing.T) {
	t.Helper()
	if _, err := installed(); err != nil {
		t.Skip(err)
	}
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Parallel()
}

func started(t *testing.T, settings ...string) *Server {
	t.Helper()
	needsServer(t)
	s, err := Start(t.Context(), settings...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Server) answers() bool {
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)))
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

// ask runs a query by psql, with this DSN.
func ask(t *testing.T, dsn, query string) (string, error) {
	t.Helper()
	bin, err := installed()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "psql"), "-w", "-At", dsn, "-c", query).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func TestServerAnswersAndStopLeavesNothing(t *testing.T) {
	s := started(t, "fsync=off")
	if out, err := ask(t, s.DSN, "SHOW fsync"); err != nil || out != "off" {
		t.Errorf("the setting is %q, %v, want off", out, err)
	}
	if out, err := ask(t, s.DSN, "SHOW server_version"); err != nil || !strings.HasPrefix(out, s.Version+" ") && out != s.Version {
		t.Errorf("Version is %q, the server says %q, %v", s.Version, out, err)
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is there: %v", err)
	}
	if s.answers() {
		t.Error("somebody still listens")
	}
}

func TestServerWantsItsPassword(t *testing.T) {
	s := started(t)
	defer func() { _ = s.Stop() }()
	dsn, err := url.Parse(s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	dsn.User = url.User(dsn.User.Username())
	if out, err := ask(t, dsn.String(), "SELECT 1"); err == nil || !strings.Contains(out, "no password") {
		t.Errorf("without a password: %q, %v", out, err)
	}
}

func TestStartSaysWhyTheServerExited(t *testing.T) {
	needsServer(t)
	s, err := Start(t.Context(), "no_such_setting=1")
	if err == nil {
		_ = s.Stop()
		t.Fatal("it started")
	}
	if !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("%v does not name the setting", err)
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	needsServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := Start(ctx); err == nil {
		_ = s.Stop()
		t.Fatal("it started")
	}
}

// A program that is killed takes its server with it.
func TestServerEndsWithItsProgram(t *testing.T) {
	needsServer(t)
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), envChild+"=1")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := out.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	dir, port, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	defer func() { _ = os.RemoveAll(dir) }()
	s := &Server{}
	if s.Port, err = strconv.Atoi(port); err != nil || !s.answers() {
		t.Fatalf("no server at %q: %v", port, err)
	}
	if err := child.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	for deadline := time.Now().Add(time.Minute); s.answers(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server outlives its program")
		}
	}
}
