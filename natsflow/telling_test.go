package natsflow

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
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
	if err := q.wait(time.Minute); err == nil {
		t.Error("the panic was forgotten")
	}
	if len(order) != each*n {
		t.Errorf("%d of %d were told", len(order), each*n)
	}
	if err := q.wait(time.Minute); err != nil {
		t.Errorf("told twice: %v", err)
	}
}

// toldWorker is a worker of one partition in a bubble, over a fakeEngine, with this Observer. Its Run has come so far that it
// waits; what it ends with is sent to over.
func toldWorker(t *testing.T, observer func(PartitionEvent)) (e *fakeEngine, end context.CancelFunc, over <-chan error) {
	t.Helper()
	e = newFakeEngine()
	w, err := newWorker(e, Topic{Name: "told", Partitions: 1, Replicas: 1}, func(context.Context, flow.Message[string]) error { return nil },
		WorkerOptions{Lease: 10 * time.Second, Observer: observer})
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	time.Sleep(time.Minute)
	return e, end, ended
}

func TestObserverThatHangsKeepsRunForOneLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		_, end, over := toldWorker(t, func(PartitionEvent) { <-release })
		ended := time.Now()
		end()
		err := <-over
		if err == nil || !strings.Contains(err.Error(), "Observer has not returned within 10s of the worker's end; ") {
			t.Errorf("Run: %v", err)
		}
		if took := time.Since(ended); took != 10*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestPanicOfTheObserverIsNotLostBehindAnotherErrorOfRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, end, over := toldWorker(t, func(PartitionEvent) { panic("no") })
		defer end()
		e.closed_.Store(true)
		if err := <-over; !errors.Is(err, errConnectionClosed) || !strings.Contains(err.Error(), "Observer has panicked: no") {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestEventsSayWhenTheyHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		release := make(chan struct{})
		var told []PartitionEvent
		q := telling{observer: func(e PartitionEvent) {
			<-release
			told = append(told, e)
		}}
		for range 3 {
			q.put(PartitionEvent{Kind: EventReplayed})
			time.Sleep(time.Second)
		}
		time.Sleep(time.Hour)
		close(release)
		if err := q.wait(time.Minute); err != nil {
			t.Fatal(err)
		}
		for i, e := range told {
			if after := e.Time.Sub(began); after != time.Duration(i)*time.Second {
				t.Errorf("event %d was %v after the beginning", i, after)
			}
		}
	})
}

// What does not fit is dropped and counted, and what says who holds the partition is the last to be.
func TestEventsBeyondTheBoundAreDroppedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var told []PartitionEvent
		q := telling{observer: func(e PartitionEvent) {
			<-release
			told = append(told, e)
		}}
		put := func(n int, kind EventKind) {
			for range n {
				q.put(PartitionEvent{Kind: kind})
			}
		}
		put(1, EventClaimed)
		synctest.Wait() // that is with the Observer and waits no more
		put(maxWaiting+5, EventReplayed)
		put(1, EventReleased)
		put(7, EventCommitted)
		put(maxWaiting+2, EventClaimed)
		if n := len(q.waiting); n != 2*maxWaiting {
			t.Errorf("%d events wait", n)
		}
		close(release)
		synctest.Wait()
		put(1, EventReplayed)
		if err := q.wait(time.Minute); err != nil {
			t.Fatal(err)
		}
		dropped := map[int]int{}
		for i, e := range told {
			if e.Dropped > 0 {
				dropped[i] = e.Dropped
			}
		}
		want := map[int]int{1 + maxWaiting: 5, 2 + maxWaiting: 7, 1 + 2*maxWaiting: 3}
		if len(told) != 2+2*maxWaiting || !maps.Equal(dropped, want) {
			t.Errorf("%d were told, dropped before which: %v, want %v", len(told), dropped, want)
		}
	})
}
