package natsflow

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
)

// An Observer that does not return for two Leases keeps nobody waiting, and is told everything in order afterwards.
func TestSlowObserverDelaysNoLease(t *testing.T) {
	var j journal
	var l eventLog
	release := make(chan struct{})
	o := quick
	o.Observer = func(e PartitionEvent) {
		<-release
		l.observe(e)
	}
	w := mustWorker(t, func(_ context.Context, m flow.Message[string]) error { j.add(m.Value); return nil }, o)
	values := sequence(10, "a", "b", "c", "d")
	publish(t, w.js, w.topic, values[:20]...)
	stop := runWorker(t, w)
	await(t, "the first are settled", settledAll(t, w))
	time.Sleep(2 * w.options.Lease)
	publish(t, w.js, w.topic, values[20:]...)
	await(t, "all are settled", settledAll(t, w))
	if got := len(l.of(EventClaimed)); got != 0 {
		t.Errorf("it was told %d events while it had not returned", got)
	}
	close(release)
	stop()
	last := map[int]PartitionEvent{}
	for _, e := range l.all {
		before, known := last[e.Partition]
		switch {
		case e.Kind == EventLost:
			t.Errorf("partition %d was lost", e.Partition)
		case known == (e.Kind == EventClaimed), before.Kind == EventReleased:
			t.Errorf("partition %d: %v after %v", e.Partition, e.Kind, before.Kind)
		case e.Kind == EventCommitted && before.Kind == EventCommitted && e.Seq < before.Seq:
			t.Errorf("partition %d: commit of %d after %d", e.Partition, e.Seq, before.Seq)
		}
		last[e.Partition] = e
	}
	for p, e := range last {
		if e.Kind != EventReleased {
			t.Errorf("the last of partition %d is %v", p, e.Kind)
		}
	}
	if len(last) != w.topic.Partitions {
		t.Errorf("%d partitions were told of", len(last))
	}
}

func TestPanicOfTheObserverIsRunsErrorAtItsEnd(t *testing.T) {
	for _, c := range []struct {
		name, want string
		end        func()
	}{
		{"panic", "Observer has panicked: no", func() { panic("no") }},
		{"Goexit", errObserverExited.Error(), runtime.Goexit},
	} {
		t.Run(c.name, func(t *testing.T) {
			var told atomic.Int32
			o := quick
			o.Observer = func(PartitionEvent) {
				told.Add(1)
				c.end()
			}
			w := mustWorker(t, func(context.Context, flow.Message[string]) error { return nil }, o)
			publish(t, w.js, w.topic, sequence(10, "a", "b", "c", "d")...)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			over := make(chan error)
			go func() { over <- w.Run(ctx) }()
			await(t, "all are settled", settledAll(t, w))
			cancel()
			if err := <-over; err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Run: %v", err)
			}
			if n := int(told.Load()); n < 3*w.topic.Partitions { // claimed, committed, released
				t.Errorf("it was told %d events", n)
			}
		})
	}
}

func TestEventsPutAtOnceAreAllTold(t *testing.T) {
	var order []int
	q := telling{observer: func(e PartitionEvent) { // by one goroutine at a time: the race detector would tell
		order = append(order, e.Partition)
		if e.Seq%7 == 0 {
			panic("no")
		}
	}}
	var all sync.WaitGroup
	const each, n = 100, 8
	for p := range n {
		all.Go(func() {
			for i := range each {
				q.put(PartitionEvent{Partition: p, Seq: uint64(i)})
			}
		})
	}
	all.Wait()
	if err := q.wait(); err == nil {
		t.Error("the panic was forgotten")
	}
	if len(order) != each*n {
		t.Errorf("%d of %d were told", len(order), each*n)
	}
	if err := q.wait(); err != nil {
		t.Errorf("told twice: %v", err)
	}
}
