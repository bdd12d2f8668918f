// Command throughput compares workers with the same reading without any of their promises: the client library's ordered
// consumers, one a partition, whose messages are counted and nothing else, once by its iterator and once by its callback. All
// read the same stream with the same pulls over one connection, in turns, from a cold start. It prints the medians of the
// rounds, and of the ratios within each round; and what a message costs: this process's processor time, that of the
// servers, and what is allocated.
//
//	go run ./internal/throughput -messages 400000 -rounds 9 -replicas 1
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"example.com/flow"
	"example.com/flow/natsflow"
	"example.com/flow/natsflow/internal/natstest"
)

// config is what is measured.
type config struct {
	messages, rounds, replicas, partitions, keys, size int
	profile                                            string
}

func main() {
	natstest.Serve()
	var c config
	flag.IntVar(&c.messages, "messages", 400_000, "messages in the stream")
	flag.IntVar(&c.rounds, "rounds", 5, "rounds of each")
	flag.IntVar(&c.replicas, "replicas", 1, "servers, and copies of each message: 1 or 3")
	flag.IntVar(&c.partitions, "partitions", 8, "partitions")
	flag.IntVar(&c.keys, "keys", 512, "keys")
	flag.IntVar(&c.size, "size", 200, "bytes a message")
	flag.StringVar(&c.profile, "profile", "", "a file for the CPU profile of the worker in the last round")
	flag.Parse()
	if err := run(c); err != nil {
		fmt.Fprintln(os.Stderr, "throughput:", err)
		os.Exit(1)
	}
}

// bench is the stream that is read.
type bench struct {
	config
	js    jetstream.JetStream
	topic natsflow.Topic
}

func run(c config) error {
	dir, err := os.MkdirTemp("", "throughput")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cluster, err := natstest.Launch(dir, c.replicas)
	if err != nil {
		return err
	}
	defer cluster.Close()
	b := &bench{config: c, topic: natsflow.Topic{Name: "rate", Partitions: c.partitions, Replicas: c.replicas, MaxAge: time.Hour}}
	if b.js, err = natstest.Dial(cluster.URLs()); err != nil {
		return err
	}
	defer b.js.Conn().Close()
	ctx := context.Background()
	if err := natsflow.Ensure(ctx, b.js, b.topic); err != nil {
		return err
	}
	if err := b.fill(ctx); err != nil {
		return err
	}
	ways := []*way{{name: "iterator", read: b.iterator}, {name: "callback", read: b.callback}, {name: "worker", read: b.worker}}
	for round := range c.rounds + 1 { // the first is to warm up
		for i := range ways {
			w := ways[(i+round)%len(ways)]
			if err := b.forget(ctx); err != nil {
				return err
			}
			stop := func() {}
			if w.name == "worker" && round == c.rounds && c.profile != "" {
				if stop, err = profile(c.profile); err != nil {
					return err
				}
			}
			before, began := usageOf(cluster), time.Now()
			if err := w.read(ctx); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			took, after := time.Since(began), usageOf(cluster)
			stop()
			if n := float64(c.messages); round > 0 {
				w.rates = append(w.rates, n/took.Seconds())
				w.own = append(w.own, (after.own-before.own).Seconds()*1e6/n)
				w.servers = append(w.servers, (after.servers-before.servers).Seconds()*1e6/n)
				w.allocs = append(w.allocs, float64(after.allocs-before.allocs)/n)
				w.bytes = append(w.bytes, float64(after.bytes-before.bytes)/n)
			}
		}
	}
	fmt.Printf("R%d, %d messages of %d bytes, %d partitions, %d keys, %d rounds; load %s\n",
		c.replicas, c.messages, c.size, c.partitions, c.keys, c.rounds, load())
	for _, w := range ways {
		fmt.Printf("  %-8s %6.0f/s (%.0f to %.0f); a message: %.1f µs here and %.1f in the servers, %.0f bytes in %.1f allocations\n",
			w.name, median(w.rates), slices.Min(w.rates), slices.Max(w.rates), median(w.own), median(w.servers), median(w.bytes), median(w.allocs))
	}
	worker := ways[2]
	for _, w := range ways[:2] {
		var rates, costs []float64
		for i := range w.rates {
			rates = append(rates, worker.rates[i]/w.rates[i])
			costs = append(costs, (w.own[i]+w.servers[i])/(worker.own[i]+worker.servers[i]))
		}
		fmt.Printf("  the worker's rate is %.2f of the %s's (%.2f to %.2f), by processor time %.2f\n",
			median(rates), w.name, slices.Min(rates), slices.Max(rates), median(costs))
	}
	return nil
}

// way is a way to read the stream, and what it took in each round.
type way struct {
	name                               string
	read                               func(context.Context) error
	rates, own, servers, allocs, bytes []float64
}

// usage is what was used so far.
type usage struct {
	own, servers  time.Duration
	allocs, bytes uint64
}

func usageOf(c *natstest.Cluster) usage {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{own: cpu(), servers: c.CPU(), allocs: m.Mallocs, bytes: m.TotalAlloc}
}

func profile(file string) (stop func(), err error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close()
	}, nil
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// cpu is the time that this process has been busy.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// load is the machine's load average.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil || len(b) < 4 {
		return "unknown"
	}
	return string(b[:4])
}

// fill stores the messages.
func (b *bench) fill(ctx context.Context) error {
	data := make([]byte, b.size)
	for n := range b.messages {
		k := n % b.keys
		m := &nats.Msg{
			Subject: b.topic.Name + "." + strconv.Itoa(k%b.partitions),
			Header:  nats.Header{"Flow-Key": {url.PathEscape("k" + strconv.Itoa(k))}},
			Data:    data,
		}
		for {
			_, err := b.js.PublishMsgAsync(m)
			if err == nil {
				break
			}
			if !errors.Is(err, jetstream.ErrTooManyStalledMsgs) {
				return err
			}
		}
	}
	<-b.js.PublishAsyncComplete()
	s, err := b.js.Stream(ctx, b.topic.Name)
	if err != nil {
		return err
	}
	if got := s.CachedInfo().State.Msgs; got != uint64(b.messages) {
		return fmt.Errorf("%d of %d messages are stored", got, b.messages)
	}
	return nil
}

// forget makes the progress of workers forgotten.
func (b *bench) forget(ctx context.Context) error {
	if err := b.js.DeleteStream(ctx, "KV_"+b.topic.Name+"_lease"); err != nil {
		return err
	}
	return natsflow.Ensure(ctx, b.js, b.topic)
}

const (
	pullExpiry    = 5 * time.Second
	pullHeartbeat = time.Second
)

func (b *bench) consumer(ctx context.Context, p int) (jetstream.Consumer, error) {
	return b.js.OrderedConsumer(ctx, b.topic.Name, jetstream.OrderedConsumerConfig{FilterSubjects: []string{b.topic.Name + "." + strconv.Itoa(p)}})
}

// iterator reads the stream by the client library's iterators.
func (b *bench) iterator(ctx context.Context) error {
	var all sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(b.messages))
	done := make(chan struct{})
	var iterators []jetstream.MessagesContext
	for p := range b.partitions {
		c, err := b.consumer(ctx, p)
		if err != nil {
			return err
		}
		it, err := c.Messages(jetstream.PullExpiry(pullExpiry), jetstream.PullHeartbeat(pullHeartbeat))
		if err != nil {
			return err
		}
		iterators = append(iterators, it)
		all.Go(func() {
			for {
				if _, err := it.Next(); err != nil { // it was stopped
					return
				}
				if left.Add(-1) == 0 {
					close(done)
				}
			}
		})
	}
	<-done
	for _, it := range iterators {
		it.Stop()
	}
	all.Wait()
	return nil
}

// callback reads the stream by the client library's callbacks.
func (b *bench) callback(ctx context.Context) error {
	var left atomic.Int64
	left.Store(int64(b.messages))
	done := make(chan struct{})
	for p := range b.partitions {
		c, err := b.consumer(ctx, p)
		if err != nil {
			return err
		}
		it, err := c.Consume(func(jetstream.Msg) {
			if left.Add(-1) == 0 {
				close(done)
			}
		}, jetstream.PullExpiry(pullExpiry), jetstream.PullHeartbeat(pullHeartbeat))
		if err != nil {
			return err
		}
		defer it.Stop()
	}
	<-done
	return nil
}

// worker reads the stream by a worker whose handler does nothing.
func (b *bench) worker(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var left atomic.Int64
	left.Store(int64(b.messages))
	w, err := natsflow.NewWorker(b.js, b.topic, natsflow.Codec[[]byte]{
		Key:       func([]byte) string { return "" },
		Marshal:   func(b []byte) ([]byte, error) { return b, nil },
		Unmarshal: func(b []byte) ([]byte, error) { return b, nil },
	}, func(context.Context, flow.Message[[]byte]) error {
		if left.Add(-1) == 0 {
			cancel()
		}
		return nil
	}, natsflow.WorkerOptions{})
	if err != nil {
		return err
	}
	return w.Run(ctx)
}
