// Package natstest starts NATS servers for tests and commands of natsflow, on loopback: one inside the process, or one or
// three as processes of their own, which can be killed, stopped, woken and started again.
//
// Servers in processes of their own are the running binary itself: its main, or TestMain, must call [Serve] first.
package natstest

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// envServer is set in a process that is to be a server: name, port, port of the cluster, ports of its other members, and
// folder, with commas between.
const envServer = "NATSFLOW_TEST_SERVER"

const startLimit = 20 * time.Second

// Serve returns at once, unless this process was started to be a server: then it is one, and exits when it is told to by
// SIGTERM.
func Serve() {
	spec := os.Getenv(envServer)
	if spec == "" {
		return
	}
	if err := serve(spec); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(spec string) error {
	parts := strings.SplitN(spec, ",", 5)
	o := options(parts[0], parts[4])
	o.Port, _ = strconv.Atoi(parts[1])
	if parts[2] != "" {
		port, _ := strconv.Atoi(parts[2])
		o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port, NoAdvertise: true}
		for other := range strings.SplitSeq(parts[3], " ") {
			o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: "127.0.0.1:" + other})
		}
	}
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	s, err := start(o)
	if err != nil {
		return err
	}
	// A server whose parent was killed ends too: nobody would end it else.
	parent := os.Getppid()
	for {
		select {
		case <-terminate:
			s.LameDuckShutdown()
			s.WaitForShutdown()
			return nil
		case <-time.After(time.Second):
			if os.Getppid() != parent {
				s.Shutdown()
				return nil
			}
		}
	}
}

func options(name, folder string) *server.Options {
	return &server.Options{
		ServerName: name, Host: "127.0.0.1", Port: server.RANDOM_PORT,
		JetStream: true, StoreDir: folder, JetStreamMaxMemory: 1 << 30, JetStreamMaxStore: 8 << 30,
		NoSigs: true, NoLog: true, LameDuckDuration: 2 * time.Second, LameDuckGracePeriod: 100 * time.Millisecond,
	}
}

func start(o *server.Options) (*server.Server, error) {
	s, err := server.NewServer(o)
	if err != nil {
		return nil, err
	}
	s.Start()
	if !s.ReadyForConnections(startLimit) {
		s.Shutdown()
		return nil, fmt.Errorf("natstest: the server is not ready after %v", startLimit)
	}
	return s, nil
}

// Embedded starts a server inside the process, which ends with the test, and returns its address.
func Embedded(t testing.TB) string {
	t.Helper()
	s, err := start(options("embedded", t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	return s.ClientURL()
}

// Connect connects to the servers, comes back to them whenever it can, and waits until JetStream answers. The connection is
// closed with the test.
func Connect(t testing.TB, urls string, more ...nats.Option) jetstream.JetStream {
	t.Helper()
	js, err := Dial(urls, more...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(js.Conn().Close)
	return js
}

// Dial is Connect without a test.
func Dial(urls string, more ...nats.Option) (jetstream.JetStream, error) {
	nc, err := nats.Connect(urls, append([]nats.Option{
		nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1),
		nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(20*time.Millisecond, 20*time.Millisecond),
	}, more...)...)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err == nil {
		err = await(func() error { return ready(js) })
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return js, nil
}

// folderOf is the folder of a server's files.
func folderOf(dir string, node int) string { return filepath.Join(dir, "n"+strconv.Itoa(node)) }
