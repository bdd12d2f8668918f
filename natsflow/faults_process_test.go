package natsflow

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"example.com/flow/natsflow/internal/effects"
	"example.com/flow/natsflow/internal/natstest"
)

// envWorker is set in a process that is to be a worker of the script: a workerSpec.
const envWorker = "NATSFLOW_TEST_WORKER"

// workerSpec is what such a process is to do.
type workerSpec struct {
	Name    string // who it is
	URL     string // of the server
	Topic   Topic
	Effects string // address of the store of effects
	Fault   string // "die" or "freeze"; "" for none
	Step    step   // before which step
	Lease   time.Duration
}

// serveWorker returns at once, unless this process was started to be a worker: then it is one until SIGTERM, and exits.
func serveWorker() {
	text := os.Getenv(envWorker)
	if text == "" {
		return
	}
	var spec workerSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		panic(err)
	}
	if err := spec.run(); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func init() { serveWorker() } // before there is a test

func (spec workerSpec) run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fmt.Println("ready") // to be asked to end
	js, err := natstest.Dial(spec.URL)
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	remote, err := effects.Dial(spec.Effects)
	if err != nil {
		return err
	}
	defer remote.Close()
	s := &steps{before: func(at step) error {
		if at != spec.Step {
			return nil
		}
		fmt.Println("step")
		switch spec.Fault {
		case "die":
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		case "freeze":
			_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
			time.Sleep(time.Millisecond) // the signal may take a moment
		}
		return nil
	}}
	o := scriptOptions(WorkerOptions{Lease: spec.Lease, Commit: 10 * time.Millisecond})
	o.Observer = func(e PartitionEvent) {
		switch e.Kind {
		case EventClaimed:
			fmt.Println("claimed")
		case EventLost:
			fmt.Println(lineLost)
		}
	}
	w, err := NewWorker(js, spec.Topic, words, s.scripted(func(o Origin, v string) error {
		return remote.Apply(effects.Effect{Seq: o.Seq, Epoch: o.Epoch, Value: v, Worker: spec.Name})
	}), o)
	if err != nil {
		return err
	}
	s.between(w)
	return w.Run(ctx)
}

// serveEffects lets other processes write to e, until the test ends.
func serveEffects(t testing.TB, e *effects.Store) (address string) {
	t.Helper()
	address, stop, err := e.Serve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return address
}

const lineLost = "lost"

// process is a worker in a process of its own.
type process struct {
	cmd   *exec.Cmd
	lines chan string // what it says; closed when it is gone
	lost  atomic.Bool // it has lost the partition, as one may that is slow: its record is then left as it is
	asked sync.Once   // to end: a second SIGTERM would kill it when it has ended but not exited
}

func start(t testing.TB, spec workerSpec) *process {
	t.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(os.Args[0], "-test.run=^$"), lines: make(chan string, 1000)}
	p.cmd.Env = append(os.Environ(), envWorker+"="+string(text))
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			if s.Text() == lineLost {
				p.lost.Store(true)
			}
			p.lines <- s.Text()
		}
		_ = p.cmd.Wait()
		close(p.lines)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		for range p.lines {
		}
	})
	return p
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// terminate asks the process to end.
func (p *process) terminate() { p.asked.Do(func() { p.signal(syscall.SIGTERM) }) }

// await waits for a line that begins so. It returns false if the process is gone before.
func (p *process) await(prefix string, within time.Duration) (line string, ok bool) {
	end := time.After(within)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				return "", false
			}
			if strings.HasPrefix(line, prefix) {
				return line, true
			}
			if strings.HasPrefix(line, "failed") {
				return line, false
			}
		case <-end:
			return "", false
		}
	}
}

// finish asks the process to end, and waits until it has. One that does not shows what its goroutines do.
func (p *process) finish(t testing.TB) {
	t.Helper()
	p.terminate()
	if line, ok := p.await("never", 30*time.Second); strings.HasPrefix(line, "failed") || ok {
		t.Errorf("a worker says %q", line)
	}
	select {
	case <-p.lines: // closed
	default:
		p.signal(syscall.SIGQUIT)
		p.await("never", 5*time.Second)
	}
	if state := p.cmd.ProcessState; state == nil || !state.Success() {
		t.Errorf("a worker ended with %v", state)
	}
}

// hits counts before which kinds of steps faults have come.
type hits struct {
	mu   sync.Mutex
	seen map[string]int
}

func (h *hits) add(kind string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.seen == nil {
		h.seen = map[string]int{}
	}
	h.seen[kind]++
}

// A worker dies, or is frozen and wakes when another has finished, before each step that can be seen of it. Nothing is
// lost, no key is out of order, what is repeated is repeated in order and only by the crash, and a guarded effect
// happens once and in order.
func TestWorkerMayDieOrFreezeAtAnyStep(t *testing.T) {
	urls := natstest.Embedded(t)
	js := natstest.Connect(t, urls)
	for _, deaths := range []int{0, defaultQuarantine} {
		all := scriptSteps(t, deaths)
		stride := 1
		if deaths > 0 { // many are alike
			stride = 4
		}
		if testing.Short() {
			stride = 9
		}
		for _, fault := range []string{"die", "freeze"} {
			var h hits
			t.Run(fmt.Sprintf("%s/deaths=%d", fault, deaths), func(t *testing.T) {
				sideBySide(t, len(all), stride, 10, func(i int) string { return fmt.Sprintf("%s/%d", all[i].Kind, all[i].N) }, func(t *testing.T, i int) {
					topic, values := scriptTopic(t, js, fmt.Sprintf("%s%d-%d", fault, deaths, i), deaths)
					tryFault(t, urls, topic, values, fault, all[i], &h)
					for _, c := range topic.streams() {
						_ = js.DeleteStream(context.Background(), c.Name)
					}
				})
			})
			want := []string{
				"claim sent", "claim answered", "message received", "handler entered", "effect applied", "commit sent",
				"commit answered", "dead letter sent", "dead letter answered", "release sent", "release answered",
			}
			if deaths > 0 {
				want = []string{"mark sent", "mark answered", "commit sent", "commit answered"}
			}
			for _, kind := range want {
				if h.seen[kind] == 0 && !testing.Short() {
					t.Errorf("no worker has come to %s before %q: %v", fault, kind, h.seen)
				}
			}
		}
	}
}

// scriptSteps are the steps that the script takes without a fault. Another run may take some more or fewer of a kind: as
// many commits as there is time for.
func scriptSteps(t *testing.T, deaths int) (all []step) {
	t.Helper()
	js := natstest.Connect(t, natstest.Embedded(t))
	topic, values := scriptTopic(t, js, "count", deaths)
	var e effects.Store
	s := &steps{before: func(at step) error { all = append(all, at); return nil }}
	w, err := NewWorker(js, topic, words, s.scripted(func(o Origin, v string) error {
		e.Apply(effects.Effect{Seq: o.Seq, Epoch: o.Epoch, Value: v})
		return nil
	}), scriptOptions(WorkerOptions{Lease: 5 * time.Second, Commit: 10 * time.Millisecond}))
	if err != nil {
		t.Fatal(err)
	}
	plain := another(t, w, (&steps{}).scripted(nil))
	s.between(w)
	stop := runWorker(t, w)
	await(t, "all is settled", settledAll(t, plain))
	stop()
	if j := e.Judge(values); len(j.Lost)+len(j.Guarded)+j.Repeated > 0 {
		t.Fatalf("without a fault: %v", j)
	}
	return all
}

// faultLease is short, so that the test is: and long enough for a busy machine.
const faultLease = 800 * time.Millisecond

func tryFault(t *testing.T, urls string, topic Topic, values []string, fault string, at step, h *hits) {
	var e effects.Store
	spec := workerSpec{Name: "first", URL: urls, Topic: topic, Effects: serveEffects(t, &e), Fault: fault, Step: at, Lease: faultLease}
	js := natstest.Connect(t, urls)
	w, err := NewWorker(js, topic, words, (&steps{}).scripted(nil), WorkerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	settled := settledAll(t, w)
	first := start(t, spec)
	finished := make(chan struct{})
	go func() { // the last steps come when it is asked to end
		for !settled() {
			select {
			case <-t.Context().Done():
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
		close(finished)
		first.terminate()
	}()
	_, hit := first.await("step", 30*time.Second)
	kind := at.Kind
	if hit {
		h.add(kind)
	}
	spec.Name, spec.Fault, spec.Step = "second", "", step{}
	second := start(t, spec)
	if line, ok := second.await("claimed", 30*time.Second); !ok {
		t.Fatalf("%s before %q: the second worker does not claim the partition: %q", fault, kind, line)
	}
	await(t, "all is settled after "+kind, func() bool { return settled() && e.Done() == len(values) })
	if fault == "freeze" && hit {
		first.signal(syscall.SIGCONT)
		<-finished
		first.finish(t)
	}
	second.finish(t)
	j := e.Judge(values)
	// A zombie may end the one attempt of each key that it was frozen in.
	stale := 0
	if fault == "freeze" {
		stale = len(scriptKeys)
	}
	if len(j.Lost)+len(j.Reordered)+len(j.Guarded) > 0 || j.Stale > stale {
		t.Errorf("%s before %q: %v\n%v", fault, kind, j, &e)
	}
	letters := deadOf(t, w)
	if len(letters) == 0 || slices.ContainsFunc(letters, func(m *jetstream.RawStreamMsg) bool { return string(m.Data) != failsEver }) {
		t.Errorf("%s before %q: dead letters %v", fault, kind, letters)
	}
	states, err := w.Partitions(t.Context())
	if err != nil || states[0].Lag > 0 || states[0].Holder != "" && !second.lost.Load() || states[0].Stopped != "" || states[0].Missing != 0 {
		t.Errorf("%s before %q: %+v, %v", fault, kind, states, err)
	}
}
