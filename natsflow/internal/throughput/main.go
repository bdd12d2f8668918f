// Command throughput compares workers with the same reading without any of their promises: one ordered consumer a
// partition, whose messages are counted and nothing else. Both read the same stream, in turns, from a cold start.
//
//	go run ./internal/throughput -messages 200000 -rounds 5 -replicas 1
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
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
type config struct{ messages, rounds, replicas, partitions, keys, size int }

func main() {
	natstest.Serve()
	var c config
	flag.IntVar(&c.messages, "messages", 200_000, "messages in the stream")
	flag.IntVar(&c.rounds, "rounds", 5, "rounds of each")
	flag.IntVar(&c.replicas, "replicas", 1, "servers, and copies of each message: 1 or 3")
	flag.IntVar(&c.partitions, "partitions", 8, "partitions")
	flag.IntVar(&c.keys, "keys", 512, "keys")
	flag.IntVar(&c.size, "size", 200, "bytes a message")
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
	rates, costs := map[string][]float64{}, map[string][]float64{}
	ways := []struct {
		name string
		read func(context.Context) error
	}{{"ordered consumers", b.bare}, {"worker", b.worker}}
	for round := range c.rounds + 1 { // the first is to warm up
		for _, way := range ways {
			if err := b.forget(ctx); err != nil {
				return err
			}
			began, busy := time.Now(), cpu()
			if err := way.read(ctx); err != nil {
				return fmt.Errorf("%s: %w", way.name, err)
			}
			if round > 0 {
				rates[way.name] = append(rates[way.name], float64(c.messages)/time.Since(began).Seconds())
				costs[way.name] = append(costs[way.name], float64((cpu()-busy).Nanoseconds())/float64(c.messages)/1000)
			}
		}
	}
	fmt.Printf("R%d, %d messages of %d bytes, %d partitions, %d keys; load %s\n", c.replicas, c.messages, c.size, c.partitions, c.keys, load())
	for _, way := range ways {
		all := rates[way.name]
		fmt.Printf("  %-18s median %6.0f/s, from %.0f to %.0f; %.1f µs of this process's CPU a message\n",
			way.name, median(all), slices.Min(all), slices.Max(all), median(costs[way.name]))
	}
	fmt.Printf("  the worker's median is %.2f of the ordered consumers'\n", median(rates["worker"])/median(rates["ordered consumers"]))
	return nil
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

// bare reads the stream by hand.
func (b *bench) bare(ctx context.Context) error {
	var all sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(b.messages))
	failed := make(chan error, b.partitions)
	done := make(chan struct{})
	var iterators []jetstream.MessagesContext
	for p := range b.partitions {
		c, err := b.js.OrderedConsumer(ctx, b.topic.Name, jetstream.OrderedConsumerConfig{FilterSubjects: []string{b.topic.Name + "." + strconv.Itoa(p)}})
		if err != nil {
			return err
		}
		it, err := c.Messages(jetstream.PullExpiry(5*time.Second), jetstream.PullHeartbeat(time.Second))
		if err != nil {
			return err
		}
		iterators = append(iterators, it)
		all.Go(func() {
			for {
				if _, err := it.Next(); err != nil {
					failed <- err
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
