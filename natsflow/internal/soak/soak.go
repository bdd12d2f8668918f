package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"example.com/flow"
	"example.com/flow/natsflow"
	"example.com/flow/natsflow/internal/effects"
	"example.com/flow/natsflow/internal/natstest"
)

const (
	senders     = 32              // of messages; each has keys of its own
	settleLimit = 3 * time.Minute // how long after the last message all must be done
	tryAgain    = 50 * time.Millisecond
)

// soak is one run.
type soak struct {
	config
	cluster *natstest.Cluster
	js      jetstream.JetStream
	topic   natsflow.Topic
	store   effects.Store
	workers []*process

	mu     sync.Mutex
	stored map[string]time.Time // when each message was acknowledged
	faults map[string]int
}

func run(c config) (ok bool, err error) {
	if c.Keys%senders != 0 {
		return false, fmt.Errorf("-keys is %d: it must be a multiple of %d", c.Keys, senders)
	}
	dir, err := os.MkdirTemp("", "soak")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s := &soak{config: c, stored: map[string]time.Time{}, faults: map[string]int{}}
	if s.cluster, err = natstest.Launch(dir, c.Replicas); err != nil {
		return false, err
	}
	defer s.cluster.Close()
	if s.js, err = natstest.Dial(s.cluster.URLs()); err != nil {
		return false, err
	}
	defer s.js.Conn().Close()
	s.topic = natsflow.Topic{Name: "soak", Partitions: c.Partitions, Replicas: c.Replicas}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := natsflow.Ensure(ctx, s.js, s.topic); err != nil {
		return false, err
	}
	address, stop, err := s.store.Serve()
	if err != nil {
		return false, err
	}
	defer stop()
	for i := range c.Workers {
		p := &process{spec: workerSpec{
			Name: "w" + strconv.Itoa(i+1), URLs: s.cluster.URLs(), Effects: address, Topic: s.topic,
			Lease: c.Lease, Handler: c.Handler, Verbose: c.Verbose,
		}}
		if err := p.start(); err != nil {
			return false, err
		}
		s.workers = append(s.workers, p)
		defer func() { p.end(syscall.SIGKILL) }()
	}
	if err := s.await(ctx); err != nil {
		return false, err
	}
	began := time.Now()
	published := make(chan struct{})
	go func() { defer close(published); s.publish(ctx) }()
	s.breakThings(published)
	for end := time.Now().Add(settleLimit); s.store.Done() < c.Messages && time.Now().Before(end); {
		time.Sleep(tryAgain)
	}
	took := time.Since(began)
	time.Sleep(c.Lease) // who was frozen may wake up now
	for _, p := range s.workers {
		p.end(syscall.SIGTERM)
	}
	return s.report(took)
}

// await waits until the workers share all partitions.
func (s *soak) await(ctx context.Context) error {
	w, err := natsflow.NewWorker(s.js, s.topic, codec, func(context.Context, flow.Message[string]) error { return nil }, natsflow.WorkerOptions{})
	if err != nil {
		return err
	}
	for end := time.Now().Add(settleLimit); time.Now().Before(end); time.Sleep(tryAgain) {
		states, err := w.Partitions(ctx)
		holders := map[string]bool{}
		for _, p := range states {
			holders[p.Holder] = true
		}
		if err == nil && !holders[""] && len(holders) == min(s.Workers, s.topic.Partitions) {
			return nil
		}
	}
	return errors.New("the workers do not share the partitions")
}

// publish stores all messages, those of a key one after the other, at the rate. What is not acknowledged is sent again.
func (s *soak) publish(ctx context.Context) {
	var all sync.WaitGroup
	for i := range senders {
		all.Go(func() {
			tick := time.NewTicker(time.Second * senders / time.Duration(s.Rate))
			defer tick.Stop()
			for n := i; n < s.Messages; n += senders {
				<-tick.C
				key := "k" + strconv.Itoa(n%s.Keys)
				value := key + "/" + strconv.Itoa(n/s.Keys+1)
				for s.put(ctx, key, value) != nil && ctx.Err() == nil {
					time.Sleep(tryAgain)
				}
			}
		})
	}
	all.Wait()
}

func (s *soak) put(ctx context.Context, key, value string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := s.js.PublishMsg(ctx, &nats.Msg{
		Subject: s.topic.Name + "." + strconv.Itoa(partitionOf(key, s.Partitions)),
		Header:  nats.Header{"Nats-Msg-Id": {"soak/" + value}, "Flow-Key": {url.PathEscape(key)}},
		Data:    []byte(value),
	}, jetstream.WithRetryAttempts(0))
	if err == nil {
		s.mu.Lock()
		s.stored[value] = time.Now()
		s.mu.Unlock()
	}
	return err
}

// partitionOf spreads keys over partitions. It need not be the gateway's way.
func partitionOf(key string, n int) int {
	h := 0
	for _, c := range key {
		h = h*31 + int(c)
	}
	return h % n
}

// breakThings breaks things by chance until all is published.
func (s *soak) breakThings(published <-chan struct{}) {
	names := slices.DeleteFunc(strings.Split(s.Faults, ","), func(name string) bool { return name == "" })
	for {
		select {
		case <-published:
			return
		case <-time.After(s.Every):
		}
		if len(names) == 0 {
			continue
		}
		name := names[rand.IntN(len(names))]
		if s.Verbose {
			fmt.Fprintln(os.Stderr, "fault:", name)
		}
		s.faults[name]++
		if err := faults[name](s); err != nil {
			fmt.Fprintf(os.Stderr, "fault %s: %v\n", name, err)
		}
	}
}

// faults are what can go wrong. Each ends with everything as it was.
var faults = map[string]func(s *soak) error{
	"kill": func(s *soak) error {
		p := s.someone()
		p.end(syscall.SIGKILL)
		time.Sleep(time.Second)
		return p.start()
	},
	"stop": func(s *soak) error {
		p := s.someone()
		p.signal(syscall.SIGSTOP)
		time.Sleep(s.Lease + 2*time.Second)
		p.signal(syscall.SIGCONT)
		return nil
	},
	"term": func(s *soak) error {
		p := s.someone()
		p.end(syscall.SIGTERM)
		time.Sleep(time.Second)
		return p.start()
	},
	"server": func(s *soak) error {
		node := rand.IntN(s.cluster.Nodes())
		s.cluster.Kill(node)
		time.Sleep(time.Second)
		return s.cluster.Run(node)
	},
	"step": func(s *soak) error {
		return errors.Join(natstest.StepDown(s.js, s.topic.Name), natstest.StepDown(s.js, "KV_"+s.topic.Name+"_lease"))
	},
	"roll": func(s *soak) error {
		for node := range s.cluster.Nodes() {
			s.cluster.Terminate(node)
			time.Sleep(200 * time.Millisecond)
			if err := s.cluster.Run(node); err != nil {
				return err
			}
			time.Sleep(4 * time.Second) // until it has caught up
		}
		return nil
	},
}

func faultNames() (names []string) {
	for name := range faults {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (s *soak) someone() *process { return s.workers[rand.IntN(len(s.workers))] }

// report prints what has become of all messages. It reports whether that is as it should be.
func (s *soak) report(took time.Duration) (ok bool, err error) {
	values := make([]string, 0, s.Messages)
	for n := range s.Messages {
		values = append(values, "k"+strconv.Itoa(n%s.Keys)+"/"+strconv.Itoa(n/s.Keys+1))
	}
	j := s.store.Judge(values)
	s.mu.Lock()
	defer s.mu.Unlock()
	var longest time.Duration
	seen := map[string]bool{}
	for _, e := range s.store.All() {
		if at, acked := s.stored[e.Value]; acked && !seen[e.Value] {
			longest = max(longest, e.At.Sub(at))
		}
		seen[e.Value] = true
	}
	fmt.Printf("R%d, %d workers, %d partitions, %d keys, lease %v: %d messages in %v, faults %v\n",
		s.Replicas, s.Workers, s.Partitions, s.Keys, s.Lease, s.Messages, took.Round(time.Second), s.faults)
	fmt.Printf("  %v\n  longest from stored to done: %v\n", j, longest.Round(time.Millisecond))
	return len(j.Lost)+len(j.Reordered)+len(j.Guarded) == 0, nil
}
