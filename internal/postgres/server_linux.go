package postgres

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Server is a PostgreSQL server of one's own: on a free port of the loopback interface, with its files in a temporary
// folder.
type Server struct {
	DSN     string // of its superuser, with the password
	Version string // as in "15.14"
	Port    int

	dir    string
	cancel context.CancelFunc // has it shut down
	exited chan struct{}
	err    error // with which it exited; once exited
	output bytes.Buffer
}

const (
	startTimeout = time.Minute
	// A fast shutdown ends the sessions and writes a checkpoint, which takes a second at most. One that takes longer than
	// this is killed.
	stopTimeout = 20 * time.Second
)

// Start starts a server and returns when it answers. The settings are those of postgresql.conf, as in "fsync=off". The
// error says what is missing. The end of ctx ends the start, and afterwards has no effect: Stop ends the server, and so
// does the end of this process, however it ends; but a killed process leaves the folder behind.
func Start(ctx context.Context, settings ...string) (*Server, error) {
	bin, err := installed()
	if err != nil {
		return nil, err
	}
	s := &Server{exited: make(chan struct{})}
	if s.dir, err = os.MkdirTemp("", "flow-postgres-"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.start(ctx, bin, settings); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	if err := s.await(ctx, bin); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// installed returns the folder with the programs of the newest version.
func installed() (bin string, err error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		return "", errors.New("no PostgreSQL in /usr/lib/postgresql (Debian: apt-get install postgresql)")
	}
	version := func(program string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(program))))
		return n
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })
	return filepath.Dir(newest), nil
}

// start makes the database and starts the server.
func (s *Server) start(ctx context.Context, bin string, settings []string) error {
	attr, err := s.attributes()
	if err != nil {
		return err
	}
	// Whoever is a superuser runs programs on this machine. So a password keeps its other users out.
	password, file := rand.Text(), filepath.Join(s.dir, "password")
	if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
		return err
	}
	if c := attr.Credential; c != nil {
		for _, path := range []string{s.dir, file} {
			if err := os.Chown(path, int(c.Uid), int(c.Gid)); err != nil {
				return err
			}
		}
	}
	data := filepath.Join(s.dir, "data")
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", "flow", "-A", "scram-sha-256",
		"--pwfile="+file, "--no-sync", "-E", "UTF8", "--locale=C")
	initdb.SysProcAttr, initdb.Dir = attr, s.dir
	initdb.Cancel = func() error { return initdb.Process.Signal(syscall.SIGINT) } // so that it ends its own processes
	initdb.WaitDelay = stopTimeout
	if out, err := initdb.CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("initdb: %w: %s", err, strings.Join(lines[max(0, len(lines)-3):], "; "))
	}
	if s.Port, err = freePort(); err != nil {
		return err
	}
	s.DSN = (&url.URL{
		Scheme: "postgres", User: url.UserPassword("flow", password), Path: "postgres", RawQuery: "sslmode=disable",
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)),
	}).String()
	args := []string{"-D", data, "-p", strconv.Itoa(s.Port), "-k", s.dir, "-c", "listen_addresses=127.0.0.1"}
	for _, setting := range settings {
		args = append(args, "-c", setting)
	}
	version, err := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return err
	}
	if fields := strings.Fields(string(version)); len(fields) > 2 { // postgres (PostgreSQL) 15.14 (Debian …)
		s.Version = fields[2]
	}
	return s.run(filepath.Join(bin, "postgres"), args, attr)
}

// attributes are those of the processes: a group of their own, so that a Ctrl-C in the terminal is this process's to
// deal with, and an end together with it. PostgreSQL refuses to run as root: then it runs as the user postgres, or
// nobody.
func (s *Server) attributes() (*syscall.SysProcAttr, error) {
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGINT}
	if os.Getuid() != 0 {
		return attr, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return nil, err
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return attr, nil
}

// freePort is one that nobody listens on.
func freePort() (int, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return lis.Addr().(*net.TCPAddr).Port, lis.Close()
}

// run runs the server in a goroutine, until it exits.
func (s *Server) run(program string, args []string, attr *syscall.SysProcAttr) error {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr, cmd.Dir = attr, s.dir
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) } // a fast shutdown
	cmd.WaitDelay = stopTimeout
	started := make(chan error)
	go func() {
		// The kernel takes the end of the thread that has started a process for the end of its parent: see Pdeathsig.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		if s.err = cmd.Wait(); ctx.Err() != nil && cmd.ProcessState.Success() {
			s.err = nil // Wait says that the context was the reason
		}
		close(s.exited)
	}()
	err := <-started
	if err != nil {
		cancel()
	}
	return err
}

// await returns when the server answers.
func (s *Server) await(ctx context.Context, bin string) error {
	for {
		cmd := exec.CommandContext(ctx, filepath.Join(bin, "pg_isready"), "-q", "-h", "127.0.0.1", "-p", strconv.Itoa(s.Port))
		err := cmd.Run()
		if err == nil {
			return nil
		}
		if _, said := errors.AsType[*exec.ExitError](err); !said && ctx.Err() == nil {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-s.exited:
			return errors.New("the PostgreSQL server has exited at once")
		case <-ctx.Done():
			return fmt.Errorf("the PostgreSQL server does not answer: %w", context.Cause(ctx))
		}
	}
}

// Stop ends the server, with what is connected to it, and removes its folder. The error has the server's last words, if
// it did not end well.
func (s *Server) Stop() error {
	s.cancel()
	<-s.exited
	err := s.err
	if err != nil {
		err = fmt.Errorf("the PostgreSQL server: %w: %s", err, bytes.TrimSpace(s.output.Bytes()))
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}
