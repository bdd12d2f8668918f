package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"example.com/flow"
	pb "example.com/flow/examples/ingest/ingestpb"
)

// asProgram makes a process of the test's binary be the program instead.
const asProgram = "INGEST_TEST_AS_PROGRAM"

// process is a server in a process of its own.
type process struct {
	*exec.Cmd
	addr      string
	out, errs lockedBuffer
}

func startProcess(t *testing.T, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{Cmd: exec.Command(self, args...)}
	p.Env = append(os.Environ(), asProgram+"=1")
	p.Stdout, p.Stderr = &p.out, &p.errs
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
	})
	await(t, "the server's address", func() bool {
		m := regexp.MustCompile(`serving on (\S+),`).FindStringSubmatch(p.out.String())
		if m != nil {
			p.addr = m[1]
		}
		return m != nil
	})
	return p
}

// sigterm is what an operator does: a signal, and the exit code.
func (p *process) sigterm(t *testing.T) (code int) {
	t.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	select {
	case err := <-ended:
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
	case <-time.After(2 * time.Minute):
		_ = p.Process.Kill()
		<-ended
		t.Fatalf("the server does not end: %s", p.errs.String())
	}
	return p.ProcessState.ExitCode()
}

// flood is an upload that sends until the server ends it, and what its client knows then.
type flood struct {
	upload string
	sent   []*pb.Record
	count  atomic.Int64
	told   flow.Progress
}

func (f *flood) run(c *client) error {
	stream, err := c.api.Upload(context.Background())
	if err != nil {
		return err
	}
	filling := strings.Repeat(" ", 1000) // few records fill the windows: most of what is sent is with the server
	fleet(20, 1<<30, func(key, text string) bool {
		r := &pb.Record{Upload: f.upload, Line: uint64(len(f.sent) + 1), Key: key, Text: text + filling}
		f.sent = append(f.sent, r) // before Send: one that failed may have arrived
		f.count.Add(1)
		err = stream.Send(r)
		return err == nil
	})
	if !errors.Is(err, io.EOF) {
		return err
	}
	_, err = stream.CloseAndRecv()
	if status.Code(err) != codes.Unavailable || flow.ClassifyFailure(err) != flow.FailureShutdown {
		return err
	}
	var ok bool
	if f.told, ok = flow.ProgressFromTrailer(stream.Trailer()); !ok {
		return errors.New("no progress in the trailer")
	}
	if len(stream.Trailer().Get("flow-progress-bin")) > 0 { // is there only when what was received is not all settled
		return errors.New("the server ended with records that it had received and not stored")
	}
	return nil
}

// resume sends the rest.
func (f *flood) resume(c *client) error {
	stream, err := c.api.Upload(context.Background())
	if err != nil {
		return err
	}
	for r := range flow.Rest(f.told, slices.Values(f.sent)) {
		if err := stream.Send(r); err != nil {
			break // the answer says why
		}
	}
	_, err = stream.CloseAndRecv()
	return err
}

// A server under load, with a client that watches its health, gets SIGTERM: it exits with 0, which it does only if nothing
// was cut off; and what its clients were told is stored is stored, once and in order, and nothing else.
func TestSIGTERMUnderLoadExitsWithZeroAndWhatClientsWereToldIsTrue(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	if runtime.GOOS == "windows" {
		t.Skip("no SIGTERM on Windows")
	}
	file := filepath.Join(t.TempDir(), "x.db")
	args := []string{"-serve", "127.0.0.1:0", "-db", file, "-grace", "1m", "-slow", device(3), "-slow-by", "2ms", "-fail", "0.05"}
	first := startProcess(t, args...)
	c, err := dial(first.addr, insecure.NewCredentials(), 0, 0, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.close() }()
	watcher, err := c.health.Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := watcher.Recv(); r.GetStatus() != healthpb.HealthCheckResponse_SERVING || err != nil {
		t.Fatalf("health is %v, %v, want SERVING", r, err)
	}
	floods := make([]*flood, 4)
	var g errgroup.Group
	for i := range floods {
		floods[i] = &flood{upload: strconv.Itoa(i)}
		g.Go(func() error { return floods[i].run(c) })
	}
	await(t, "load", func() bool {
		return !slices.ContainsFunc(floods, func(f *flood) bool { return f.count.Load() < 500 })
	})
	code := first.sigterm(t)
	if err := g.Wait(); err != nil {
		t.Errorf("an upload ended with %v, want a shutdown", err)
	}
	if r, err := watcher.Recv(); r.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING || err != nil {
		t.Errorf("health is %v, %v, want NOT_SERVING", r, err)
	}
	if code != exitOK {
		t.Errorf("the server's exit code is %d: %s", code, first.errs.String())
	}
	st, err := openStore(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range floods {
		told, all := replay{}, uint64(0)
		for i, r := range f.sent {
			if f.told.Settled(uint64(i + 1)) {
				told.add(r.GetKey(), r.GetText())
				all++
			}
		}
		t.Logf("upload %s: %d sent, %d stored by what its client was told", f.upload, len(f.sent), all)
		if all == 0 || all == uint64(len(f.sent)) {
			t.Error("that is no server under load: none or all of what was sent was stored when it ended")
		}
		states, err := st.states(t.Context(), f.upload)
		if err != nil {
			t.Fatal(err)
		}
		if differs := told.difference(states); differs != "" {
			t.Errorf("upload %s: the client was told otherwise: %s", f.upload, differs)
		}
	}
	if err := st.close(); err != nil {
		t.Fatal(err)
	}

	args[1] = first.addr
	second := startProcess(t, args...)
	if err := c.await(t.Context(), serverWait); err != nil {
		t.Fatal(err)
	}
	for _, f := range floods {
		if err := f.resume(c); err != nil {
			t.Fatal(err)
		}
		want := replay{}
		for _, r := range f.sent {
			want.add(r.GetKey(), r.GetText())
		}
		if differs, err := c.check(t.Context(), serverWait, f.upload, want); differs != "" || err != nil {
			t.Errorf("upload %s, resumed: %s, %v", f.upload, differs, err)
		}
	}
	if code := second.sigterm(t); code != exitOK {
		t.Errorf("the second server's exit code is %d: %s", code, second.errs.String())
	}
}

// started is the program in a process of its own, with folders of its own for temporary files.
type started struct {
	*exec.Cmd
	folders   string
	out, errs lockedBuffer
	ended     chan error
}

func start(t *testing.T, args ...string) *started {
	t.Helper()
	p := prepare(t, args...)
	p.begin(t)
	return p
}

func prepare(t *testing.T, args ...string) *started {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("no such signals on Windows")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &started{Cmd: exec.Command(self, args...), folders: t.TempDir(), ended: make(chan error, 1)}
	p.Env = append(os.Environ(), asProgram+"=1", "TMPDIR="+p.folders)
	p.Stdout, p.Stderr = &p.out, &p.errs
	return p
}

func (p *started) begin(t *testing.T) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.Wait() }()
	t.Cleanup(func() { _ = p.Process.Kill() })
}

// signal sends it once the program has said what it is sent for.
func (p *started) signal(t *testing.T, s os.Signal, said string) {
	t.Helper()
	await(t, said, func() bool { return strings.Contains(p.errs.String(), said) })
	if err := p.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// code is the exit code, within less than what anything that is waited for would take.
func (p *started) code(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.ProcessState.ExitCode()
	case <-time.After(30 * time.Second):
		t.Fatalf("the program does not end: %s%s", p.out.String(), p.errs.String())
		return 0
	}
}

func (p *started) left(t *testing.T) (files []string) {
	t.Helper()
	_ = filepath.WalkDir(p.folders, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != p.folders {
			files = append(files, path)
		}
		return nil
	})
	return files
}

func TestSecondSignalEndsTheProgramAtOnceAndLeavesNothingBehind(t *testing.T) {
	for _, s := range [][2]syscall.Signal{
		{syscall.SIGINT, syscall.SIGINT}, {syscall.SIGTERM, syscall.SIGTERM}, {syscall.SIGHUP, syscall.SIGTERM},
	} {
		t.Run(s[0].String()+" and "+s[1].String(), func(t *testing.T) {
			t.Parallel()
			p := start(t, "-slow-by", "1h", "-grace", "1h")
			p.signal(t, s[0], "/20000 records")
			p.signal(t, s[1], "interrupted: finishing")
			if code := p.code(t); code != exitFailed || !strings.Contains(p.errs.String(), "ended by a second signal") {
				t.Errorf("exit code %d: %s", code, p.errs.String())
			}
			if left := p.left(t); len(left) > 0 || strings.Contains(p.out.String(), "yes") {
				t.Errorf("left behind: %v; said %s", left, p.out.String())
			}
		})
	}
}

func TestHangupFinishesWhatWasSent(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	p := prepare(t, "-in", "-", "-key", "1")
	keyboard, err := p.StdinPipe() // stays open: the input has no end
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = keyboard.Close() }()
	p.begin(t)
	go func() {
		for i := range 500 {
			_, _ = fmt.Fprintf(keyboard, "%s %d\n", device(i%17), i)
		}
	}()
	p.signal(t, syscall.SIGHUP, " records  ")
	if code := p.code(t); code != exitFailed || !regexp.MustCompile(`replay: as far as it got \(\d+ records\)`).MatchString(p.out.String()) {
		t.Errorf("exit code %d: %s%s", code, p.out.String(), p.errs.String())
	}
	if left := p.left(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFirstSignalEndsTheProgramWhileItOpensAFIFO(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := exec.Command("mkfifo", fifo).Run(); err != nil {
		t.Skip("no FIFO can be made: ", err)
	}
	p := start(t, "-in", fifo, "-key", "1")
	p.signal(t, syscall.SIGTERM, "input "+fifo)
	if code := p.code(t); code != exitFailed || !strings.Contains(p.errs.String(), "interrupted before the end of the input") {
		t.Errorf("exit code %d: %s%s", code, p.out.String(), p.errs.String())
	}
	if left := p.left(t); len(left) > 0 || p.out.String() != "" {
		t.Errorf("left behind: %v; said %s", left, p.out.String())
	}
}

// As in a pipe to a program that has seen enough.
func TestOutputThatNobodyReadsLeavesNothingBehind(t *testing.T) {
	p := prepare(t, "-records", "100", "-slow", "none")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Stdout = w
	_ = r.Close()
	p.begin(t)
	_ = w.Close()
	if code := p.code(t); code != exitOK || len(p.left(t)) > 0 {
		t.Errorf("exit code %d, left behind: %v: %s", code, p.left(t), p.errs.String())
	}
}

// A server in a process of its own does not outlive the program that has started it.
func TestServerProcessEndsWithItsParent(t *testing.T) {
	p := start(t, "-kill", "-records", "1000000", "-slow-by", "1h", "-grace", "1s")
	p.signal(t, syscall.SIGKILL, " in process ")
	p.code(t)
	m := regexp.MustCompile(`server (\S+) in process \d+`).FindStringSubmatch(p.errs.String())
	if m == nil {
		t.Fatal(p.errs.String())
	}
	await(t, "the end of the server", func() bool {
		conn, err := net.Dial("tcp", m[1])
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
}
