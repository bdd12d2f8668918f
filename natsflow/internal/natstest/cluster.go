package natstest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Cluster is one server, or several that are a cluster, each a process of its own. Its methods are safe for concurrent use.
type Cluster struct {
	dir   string
	ports []int
	specs []string

	mu    sync.Mutex
	procs []*process
}

// process is one life of a server.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// Start starts so many servers and waits until they answer. They are killed when the test ends.
func Start(t testing.TB, nodes int) *Cluster {
	t.Helper()
	c, err := Launch(t.TempDir(), nodes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Launch is Start without a test: the files are in dir, and the caller closes the Cluster.
func Launch(dir string, nodes int) (*Cluster, error) {
	ports, err := freePorts(2 * nodes)
	if err != nil {
		return nil, err
	}
	c := &Cluster{dir: dir, ports: ports[:nodes], procs: make([]*process, nodes)}
	for i := range nodes {
		var own string
		var others []string
		if nodes > 1 {
			own = strconv.Itoa(ports[nodes+i])
			for j := range nodes {
				if j != i {
					others = append(others, strconv.Itoa(ports[nodes+j]))
				}
			}
		}
		c.specs = append(c.specs, fmt.Sprintf("n%d,%d,%s,%s,%s", i, ports[i], own, strings.Join(others, " "), folderOf(dir, i)))
		if err := c.Run(i); err != nil {
			c.Close()
			return nil, err
		}
	}
	js, err := Dial(c.URLs())
	if err != nil {
		c.Close()
		return nil, err
	}
	js.Conn().Close()
	return c, nil
}

// freePorts are ports that nobody listened on a moment ago.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// Nodes is how many servers there are.
func (c *Cluster) Nodes() int { return len(c.ports) }

// URLs are the addresses of all servers, as nats.Connect takes them.
func (c *Cluster) URLs() string {
	urls := make([]string, 0, len(c.ports))
	for i := range c.ports {
		urls = append(urls, c.URL(i))
	}
	return strings.Join(urls, ",")
}

// URL is the address of one server.
func (c *Cluster) URL(node int) string { return "nats://127.0.0.1:" + strconv.Itoa(c.ports[node]) }

// Run starts a server that does not run, with the files that it had before. It does not wait until it answers.
func (c *Cluster) Run(node int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), envServer+"="+c.specs[node])
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // it was killed
		close(p.done)
	}()
	c.procs[node] = p
	return nil
}

func (c *Cluster) signal(node int, s syscall.Signal) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.procs[node]
	_ = p.cmd.Process.Signal(s) // it may have ended already
	return p
}

// Kill kills a server, and waits until it is dead.
func (c *Cluster) Kill(node int) { <-c.signal(node, syscall.SIGKILL).done }

// Terminate asks a server to leave in order, and waits until it has.
func (c *Cluster) Terminate(node int) { <-c.signal(node, syscall.SIGTERM).done }

// Stop freezes a server, until Continue, and waits until none of its threads runs.
func (c *Cluster) Stop(node int) {
	p := c.signal(node, syscall.SIGSTOP)
	for {
		select {
		case <-p.done:
			return
		default:
		}
		if isStopped(p.cmd.Process.Pid) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// isStopped reports whether a process is stopped, all of it. Where that can't be seen, it is taken for granted.
func isStopped(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return true
	}
	for _, file := range threads {
		data, err := os.ReadFile(file)
		_, state, ok := strings.Cut(string(data), ") ")
		if err == nil && ok && !strings.HasPrefix(state, "T") {
			return false
		}
	}
	return true
}

// Continue wakes a server that Stop has frozen.
func (c *Cluster) Continue(node int) { c.signal(node, syscall.SIGCONT) }

// Close kills all servers.
func (c *Cluster) Close() {
	for i := range c.procs {
		c.mu.Lock()
		p := c.procs[i]
		c.mu.Unlock()
		if p != nil {
			c.Kill(i)
		}
	}
}

// Leader is the server that leads a stream, once there is one.
func (c *Cluster) Leader(js jetstream.JetStream, stream string) (node int, err error) {
	if len(c.ports) == 1 {
		return 0, nil
	}
	err = await(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		info := s.CachedInfo()
		if info.Cluster == nil || info.Cluster.Leader == "" {
			return errNoLeader
		}
		_, err = fmt.Sscanf(info.Cluster.Leader, "n%d", &node)
		return err
	})
	return node, err
}

var errNoLeader = errors.New("natstest: no leader")

// StepDown has a stream's leader give up its leadership.
func StepDown(js jetstream.JetStream, stream string) error {
	_, err := js.Conn().Request("$JS.API.STREAM.LEADER.STEPDOWN."+stream, nil, 2*time.Second)
	return err
}

// ready asks whether JetStream answers.
func ready(js jetstream.JetStream) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := js.AccountInfo(ctx)
	return err
}

// await tries until it succeeds, for startLimit at most.
func await(try func() error) error {
	deadline := time.Now().Add(startLimit)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}
