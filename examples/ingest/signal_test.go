package main

import (
	"context"
	"errors"
	"io"
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
	if runtime.GOOS == "windows" {
		t.Skip("no SIGTERM on Windows")
	}
	file := filepath.Join(t.TempDir(), "x.db")
	args := []string{"-serve", "127.0.0.1:0", "-db", file, "-grace", "1m", "-slow", device(3), "-slow-by", "2ms", "-fail", "0.05"}
	first := startProcess(t, args...)
	c, err := dial(first.addr, insecure.NewCredentials(), t.Logf)
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
