// Command gatebench measures how fast a Gateway stores messages, beside a bare fast batch of orbit's jetstreamext, on
// servers that it starts itself. Both store the same messages with the same ids, in turns; what is printed are the medians
// of all rounds and of the ratios within each round, and the processor time that this process takes for a message.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"example.com/flow"
	"example.com/flow/natsflow"
	"example.com/flow/natsflow/internal/natstest"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"google.golang.org/grpc/metadata"
)

func main() {
	natstest.Serve()
	nodes := flag.Int("nodes", 1, "servers: 1 or 3, which is the number of replicas too")
	n := flag.Int("n", 50_000, "messages a round, over all uploads")
	uploads := flag.Int("uploads", 1, "uploads at once")
	size := flag.Int("size", 200, "bytes of a message")
	rounds := flag.Int("rounds", 5, "rounds of each")
	batch := flag.Int("batch", 1024, "Batch.MaxMessages")
	capacity := flag.Int("capacity", 16, "Backpressure.Capacity")
	pending := flag.Int("pending", 4096, "MaxPending of each stream")
	flag.Parse()
	b := bench{nodes: *nodes, n: *n / *uploads, uploads: *uploads, size: *size, batch: *batch, pending: *pending, capacity: *capacity}
	if err := b.run(*rounds); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type bench struct {
	nodes, n, uploads, size, batch, pending, capacity int
	js                                                jetstream.JetStream
	topic                                             natsflow.Topic
	codec                                             natsflow.Codec[string]
}

func (b *bench) run(rounds int) error {
	dir, err := os.MkdirTemp("", "gatebench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cluster, err := natstest.Launch(dir, b.nodes)
	if err != nil {
		return err
	}
	defer cluster.Close()
	if b.js, err = natstest.Dial(cluster.URLs()); err != nil {
		return err
	}
	defer b.js.Conn().Close()
	b.topic = natsflow.Topic{Name: "uploads", Partitions: 8, Replicas: b.nodes}
	if err := natsflow.Ensure(context.Background(), b.js, b.topic); err != nil {
		return err
	}
	b.codec = natsflow.Codec[string]{
		Key:       func(s string) string { key, _, _ := strings.Cut(s, "/"); return key },
		Marshal:   func(s string) ([]byte, error) { return []byte(s), nil },
		Unmarshal: func(d []byte) (string, error) { return string(d), nil },
	}
	var bare, gateway, ratios, bareCPU, gatewayCPU []float64
	for round := range rounds {
		ways := []struct {
			do         func(name string) error
			rates, cpu *[]float64
		}{{b.bare, &bare, &bareCPU}, {b.gateway, &gateway, &gatewayCPU}}
		if round%2 == 1 {
			slices.Reverse(ways)
		}
		for i, w := range ways {
			began, used := time.Now(), processorTime()
			if err := w.do(fmt.Sprintf("r%d-%d", round, i)); err != nil {
				return err
			}
			*w.rates = append(*w.rates, float64(b.n*b.uploads)/time.Since(began).Seconds())
			*w.cpu = append(*w.cpu, float64((processorTime()-used).Microseconds())/float64(b.n*b.uploads))
		}
		ratios = append(ratios, gateway[round]/bare[round])
		fmt.Printf("round %d: bare %6.0f/s  gateway %6.0f/s  %.2f\n", round, bare[round], gateway[round], ratios[round])
	}
	fmt.Printf("%d node(s), %d upload(s), %d B: bare fast batch %.0f/s, gateway %.0f/s, ratio %.2f; %.1f and %.1f µs of this process a message\n",
		b.nodes, b.uploads, b.size, median(bare), median(gateway), median(ratios), median(bareCPU), median(gatewayCPU))
	return nil
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// value is the i-th message of an upload.
func (b *bench) value(i int) string {
	s := "device-" + strconv.Itoa(i%64) + "/" + strconv.Itoa(i) + "/"
	return s + strings.Repeat("x", max(b.size-len(s), 0))
}

// each runs all uploads at once.
func (b *bench) each(do func(upload int) error) error {
	errs := make([]error, b.uploads)
	var all sync.WaitGroup
	for u := range b.uploads {
		all.Go(func() { errs[u] = do(u) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// bare publishes what a gateway would.
func (b *bench) bare(name string) error {
	return b.each(func(u int) error {
		p, err := jetstreamext.NewFastPublisher(b.js, jetstreamext.FastPublishFlowControl{
			Flow: 100, MaxOutstandingAcks: 3, AckTimeout: 30 * time.Second,
		})
		if err != nil {
			return err
		}
		for i := range b.n {
			v := b.value(i)
			m := &nats.Msg{
				Subject: b.topic.Name + "." + strconv.Itoa(i%8),
				Header: nats.Header{
					jetstream.MsgIDHeader: {fmt.Sprintf("/%s-%d/%d", name, u, i+1)},
					"Flow-Key":            {b.codec.Key(v)},
				},
				Data: []byte(v),
			}
			if i == b.n-1 {
				_, err = p.CommitMsg(context.Background(), m)
			} else {
				_, err = p.AddMsg(m)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// gateway runs the uploads through a Flow, with sessions.
func (b *bench) gateway(name string) error {
	gw, err := natsflow.NewGateway(b.js, b.topic, b.codec)
	if err != nil {
		return err
	}
	f, err := flow.NewBatch(gw.Store, nil, flow.Options{
		Sessions:     &flow.SessionOptions{Store: gw.Sessions()},
		Backpressure: flow.BackpressureOptions{Capacity: b.capacity},
		Batch:        flow.BatchOptions{MaxMessages: b.batch},
		MaxPending:   b.pending,
	})
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return b.each(func(u int) error {
		ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("flow-session", fmt.Sprintf("%s-%d", name, u)))
		i := 0
		_, err := f.Run(ctx, func() (string, error) {
			if i == b.n {
				return "", io.EOF
			}
			i++
			return b.value(i - 1), nil
		})
		return err
	})
}
