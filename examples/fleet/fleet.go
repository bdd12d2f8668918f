package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"example.com/flow/natsflow"
)

const (
	gateways   = 2
	workers    = 3
	partitions = 12
)

// config is what the flags say.
type config struct {
	nats     string
	replicas int
	messages int
	pause    time.Duration
}

// The topic goes to the other processes as a text.

func formatTopic(t natsflow.Topic) string { return t.Name + "," + strconv.Itoa(t.Replicas) }

func parseTopic(s string) (natsflow.Topic, error) {
	name, replicas, _ := strings.Cut(s, ",")
	n, err := strconv.Atoi(replicas)
	return natsflow.Topic{Name: name, Partitions: partitions, Replicas: n}, err
}

// fleet is all processes, and what the conductor sees of them.
type fleet struct {
	config
	each     int // messages of a sender
	js       jetstream.JetStream
	topic    natsflow.Topic
	ledger   *ledger
	servers  []*process // none if they are the user's
	gateways []*process
	workers  []*process
	senders  []*process
	show     *display
	faults   atomic.Int32
}

// conduct starts the fleet, lets faults befall it, and says what has come of it.
func (c config) conduct(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &fleet{config: c, each: c.messages / senders, ledger: &ledger{devices: map[string]entry{}}}
	dir, err := os.MkdirTemp("", "flow-fleet")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	defer f.stop()
	if err := f.start(ctx, dir); err != nil {
		return err
	}
	f.show = newDisplay(f)
	err = f.watch(ctx)
	f.show.close()
	if err != nil {
		return err
	}
	return f.report()
}

// start starts all processes.
func (f *fleet) start(ctx context.Context, dir string) error {
	url := f.nats
	if url == "" {
		var err error
		if url, err = f.startServers(dir); err != nil {
			return err
		}
	}
	var err error
	if f.js, err = connect(url); err != nil {
		return err
	}
	f.topic = natsflow.Topic{Name: "fleet-" + nuid.Next(), Partitions: partitions, Replicas: f.replicas}
	if err := f.ensure(ctx, url); err != nil {
		return err
	}
	ledgerAddress, err := f.ledger.serve(ctx)
	if err != nil {
		return err
	}
	addresses, err := freeAddresses(gateways)
	if err != nil {
		return err
	}
	topic := formatTopic(f.topic)
	for i, address := range addresses {
		f.gateways = append(f.gateways, &process{name: fmt.Sprint("gateway ", i), args: []string{"gateway", url, topic, address}})
	}
	for i := range workers {
		f.workers = append(f.workers, &process{name: fmt.Sprint("worker ", i), args: []string{"worker", url, topic, ledgerAddress}})
	}
	for i := range senders {
		f.senders = append(f.senders, &process{name: fmt.Sprint("sender ", i)})
	}
	// The last message is sent a pause after the last fault.
	length := f.pause
	for _, fault := range f.plan() {
		length += f.pause + fault.takes
	}
	for i, p := range f.senders {
		p.args = []string{"sender", strconv.Itoa(i), strconv.Itoa(f.each), (length / time.Duration(f.each)).String(), strings.Join(addresses, ",")}
	}
	for _, p := range f.clients() {
		if err := p.start(); err != nil {
			return err
		}
	}
	return nil
}

// startServers starts as many servers as there are replicas, and returns their addresses.
func (f *fleet) startServers(dir string) (url string, err error) {
	addresses, err := freeAddresses(2 * f.replicas)
	if err != nil {
		return "", err
	}
	routes := strings.Join(addresses[f.replicas:], ",")
	for i, address := range addresses[:f.replicas] {
		name := strconv.Itoa(i)
		p := &process{name: "server " + name, args: []string{"server", address, filepath.Join(dir, name), addresses[f.replicas+i], routes}}
		f.servers = append(f.servers, p)
		if err := p.start(); err != nil {
			return "", err
		}
	}
	return strings.Join(addresses[:f.replicas], ","), nil
}

// ensure makes the topic, once the servers can.
func (f *fleet) ensure(ctx context.Context, url string) error {
	patience := 5 * time.Second
	if f.nats == "" {
		patience = 20 * time.Second // they have just been started, and several have yet to find each other
	}
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		err := fmt.Errorf("no NATS server answers at %s", url)
		if f.js.Conn().IsConnected() {
			if err = natsflow.Ensure(ctx, f.js, f.topic); err == nil || f.nats != "" {
				return err
			}
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return cmp.Or(context.Cause(ctx), err)
		}
	}
}

// clients are all processes but the servers.
func (f *fleet) clients() []*process { return slices.Concat(f.gateways, f.workers, f.senders) }

// freeAddresses are addresses that nobody listened on a moment ago.
func freeAddresses(n int) (list []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		list = append(list, l.Addr().String())
	}
	return list, nil
}

// stop ends what still runs, the server last, and deletes what was made in a server of the user's.
func (f *fleet) stop() {
	for _, p := range f.clients() {
		p.signal(syscall.SIGCONT, running)
	}
	for _, p := range slices.Concat(f.senders, f.gateways, f.workers) {
		p.end(5 * time.Second)
	}
	if f.js != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		for _, stream := range []string{"%s", "%s_dead", "KV_%s_lease", "KV_%s_sessions"} {
			_ = f.js.DeleteStream(ctx, fmt.Sprintf(stream, f.topic.Name)) // it may not be there
		}
		f.js.Conn().Close()
	}
	for _, p := range f.servers {
		p.end(5 * time.Second)
	}
}

// fault is one thing that befalls the fleet.
type fault struct {
	what  string
	takes time.Duration
	do    func() error
}

// killed is the death of a process, which is started again after a while.
func (f *fleet) killed(p *process) fault {
	away := f.pause / 4
	return fault{"kill -9 " + p.name, away, func() error {
		p.kill()
		time.Sleep(away)
		return p.start()
	}}
}

// frozen is a process that stands still, and goes on as if nothing had been.
func (f *fleet) frozen(p *process, long time.Duration) fault {
	return fault{fmt.Sprintf("kill -STOP %s, for %v", p.name, long), long, func() error {
		p.signal(syscall.SIGSTOP, stopped)
		time.Sleep(long)
		p.signal(syscall.SIGCONT, running)
		return nil
	}}
}

// replaced is a process that is asked to end, as with a new version.
func (f *fleet) replaced(p *process) fault {
	away := f.pause / 4
	return fault{"kill -TERM " + p.name + ", which hands over", away, func() error {
		_, l := p.now()
		p.signal(syscall.SIGTERM, stopped)
		<-l.ended
		time.Sleep(away)
		return p.start()
	}}
}

// plan is what happens, one after the other.
func (f *fleet) plan() []fault {
	list := []fault{
		f.killed(f.workers[0]), f.killed(f.gateways[0]), f.killed(f.senders[0]),
		f.frozen(f.workers[1], lease+lease/2), f.frozen(f.gateways[1], lease), f.replaced(f.workers[2]), f.killed(f.workers[1]),
	}
	if len(f.servers) > 0 {
		list = append(list, f.killed(f.servers[0]))
	}
	return append(list, f.killed(f.gateways[1]))
}

// befall has the faults happen.
func (f *fleet) befall(ctx context.Context) error {
	for _, fault := range f.plan() {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(f.pause):
		}
		f.show.event(fault.what)
		f.faults.Add(1)
		if err := fault.do(); err != nil {
			return err
		}
	}
	return nil
}

// standstill is for how long nothing must happen until there is no hope.
const standstill = 30 * time.Second

// watch lets the faults happen, and returns when all is done, or nothing more is.
func (f *fleet) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	faults := make(chan error, 1)
	var befalling sync.WaitGroup
	befalling.Go(func() { faults <- f.befall(ctx) })
	defer befalling.Wait()
	defer cancel()
	look := time.NewTicker(200 * time.Millisecond)
	defer look.Stop()
	over := false // all faults have happened
	moved, before := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-faults:
			if err != nil {
				return err
			}
			over = true
		case <-look.C:
		}
		counts := f.ledger.look()
		f.show.update(f.stored(), counts)
		if counts.applied != before {
			moved, before = time.Now(), counts.applied
		}
		if over && (f.ended() && counts.applied >= f.each*senders || time.Since(moved) > standstill) {
			return nil
		}
	}
}

// ended reports whether all senders have.
func (f *fleet) ended() bool {
	for _, p := range f.senders {
		if s, _ := p.now(); s != done {
			return false
		}
	}
	return true
}

// stored is how many messages are in the stream or were; 0 while the server can't be asked.
func (f *fleet) stored() int {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	s, err := f.js.Stream(ctx, f.topic.Name)
	if err != nil {
		return 0
	}
	return int(s.CachedInfo().State.LastSeq)
}

var errBroken = errors.New("a promise was broken")

// report says what has come of it.
func (f *fleet) report() error {
	c, stored, missing := f.ledger.look(), f.stored(), f.ledger.missing(f.each)
	fmt.Printf("\n%d messages sent, %d stored, %d done; %d faults\n", f.each*senders, stored, c.applied, f.faults.Load())
	fmt.Printf("%d repeats after a fault, without effect; longest wait of a device %v\n", c.refused, c.longest.Round(100*time.Millisecond))
	lost, twice, order := missing == 0 && c.wrong == 0, c.twice == 0 && stored == f.each*senders, c.wrong == 0
	if lost && twice && order {
		fmt.Println("nothing lost, nothing twice, in order: yes")
		return nil
	}
	fmt.Printf("missing %d, done twice %d, out of order %d\n", missing, c.twice, c.wrong)
	fmt.Println("nothing lost, nothing twice, in order: NO")
	return errBroken
}
