package natsflow

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/flowclient"
	"example.com/flow/natsflow/internal/natstest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// Gateways in processes of their own, which are killed and stopped while Senders upload.

// envGateway is set in a process that is to be a gateway: the port that it listens on, and the addresses of the servers.
const envGateway = "NATSFLOW_TEST_GATEWAY"

var processTopic = Topic{Name: "uploads", Partitions: 8, Replicas: 1}

// serveGatewayProcess returns at once, unless this process was started to be a gateway.
func serveGatewayProcess() {
	port, urls, ok := strings.Cut(os.Getenv(envGateway), " ")
	if !ok {
		return
	}
	if err := runGatewayProcess("127.0.0.1:"+port, urls); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runGatewayProcess(address, urls string) error {
	js, err := natstest.Dial(urls)
	if err != nil {
		return err
	}
	gw, err := NewGateway(js, processTopic, Proto(keyOf))
	if err != nil {
		return err
	}
	f, err := flow.NewBatch(gw.Store, nil, flow.Options{
		Sessions:     &flow.SessionOptions{Store: gw.Sessions(), SaveEvery: 100 * time.Millisecond},
		Backpressure: flow.BackpressureOptions{Capacity: 8},
		Batch:        flow.BatchOptions{MaxMessages: 64},
	})
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	testpb.RegisterTestServiceServer(server, &gatewayServer{flow: f})
	parent := os.Getppid()
	go func() { // nobody else would end it
		for os.Getppid() == parent {
			time.Sleep(time.Second)
		}
		os.Exit(0)
	}()
	return server.Serve(lis)
}

// gatewayProcess is such a process, and a client of it.
type gatewayProcess struct {
	port int
	urls string
	cmd  *exec.Cmd
	testpb.TestServiceClient
}

func startGatewayProcess(t *testing.T, urls string) *gatewayProcess {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gatewayProcess{port: l.Addr().(*net.TCPAddr).Port, urls: urls}
	_ = l.Close()
	g.start(t)
	quick := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", g.port), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	g.TestServiceClient = testpb.NewTestServiceClient(conn)
	t.Cleanup(func() {
		_ = conn.Close()
		g.kill()
	})
	return g
}

func (g *gatewayProcess) start(t *testing.T) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	g.cmd = exec.Command(exe)
	g.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", envGateway, g.port, g.urls))
	g.cmd.Stderr = os.Stderr
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (g *gatewayProcess) kill() {
	_ = g.cmd.Process.Kill()
	_ = g.cmd.Wait() // it was killed
}

func (g *gatewayProcess) signal(s syscall.Signal) { _ = g.cmd.Process.Signal(s) }

func TestGatewaysAreKilledAndStoppedWhileSendersUpload(t *testing.T) {
	perUpload, uploads := 1500, 4
	if testing.Short() {
		perUpload = 600
	}
	url := natstest.Embedded(t)
	js := natstest.Connect(t, url)
	if err := Ensure(t.Context(), js, processTopic); err != nil {
		t.Fatal(err)
	}
	gateways := []*gatewayProcess{startGatewayProcess(t, url), startGatewayProcess(t, url)}
	var sent, streams atomic.Int64
	var senders sync.WaitGroup
	want := map[string]int{}
	for u := range uploads {
		name := fmt.Sprintf("u%d", u)
		want[name] = perUpload
		senders.Go(func() {
			next := u
			s, err := flowclient.New(func(ctx context.Context, opts ...grpc.CallOption) (grpc.ClientStreamingClient[request, reply], error) {
				next++ // whatever has become of the last one, another is tried
				return gateways[next%len(gateways)].StreamingInputCall(ctx, opts...)
			}, flowclient.Options{
				Session: name, MaxBuffered: 512, MaxStreamAge: 300 * time.Millisecond, AnswerTimeout: 3 * time.Second, HeaderTimeout: time.Second,
				Backoff: 20 * time.Millisecond, MaxBackoff: 200 * time.Millisecond,
			})
			if err != nil {
				t.Error(err)
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
			defer cancel()
			if _, err := s.Resume(ctx); err != nil {
				t.Error(err)
			}
			for i := range perUpload {
				if err := s.Send(ctx, requestOf(name, i+1)); err != nil {
					t.Errorf("%s: %v", name, err)
					break
				}
				sent.Add(1)
				time.Sleep(2 * time.Millisecond) // so that there is time for faults
			}
			if err := s.Close(ctx); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			streams.Add(int64(s.Stats().Streams))
		})
	}
	done := make(chan struct{})
	go func() {
		senders.Wait()
		close(done)
	}()
	faults := 0
	for g, over := 0, false; !over; g = 1 - g {
		select {
		case <-done:
			over = true
			continue
		case <-time.After(250 * time.Millisecond):
		}
		switch faults++; faults % 4 {
		case 1, 2:
			gateways[g].kill()
			time.Sleep(50 * time.Millisecond)
			gateways[g].start(t)
		default:
			gateways[g].signal(syscall.SIGSTOP)
			time.Sleep(1200 * time.Millisecond)
			gateways[g].signal(syscall.SIGCONT)
		}
	}
	t.Logf("%d messages, %d faults, %d streams", sent.Load(), faults, streams.Load())
	if faults == 0 {
		t.Error("the uploads were over before the first fault")
	}
	wantUploads(t, storedMessages(t, js, processTopic.Name), want)
}
