package natsflow

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"example.com/flow"
	"example.com/flow/natsflow/internal/natstest"
)

// An operator who purges what is not settled is told so: by the worker that has the messages' numbers, or that sees that
// nobody has settled what the stream begins behind.
func TestWhatAnOperatorHasPurgedIsReported(t *testing.T) {
	var j journal
	var l eventLog
	o := quick
	o.Observer = l.observe
	stuck := make(chan struct{})
	h := func(ctx context.Context, m flow.Message[string]) error {
		if m.Value == "a/2" {
			select {
			case <-stuck:
			case <-ctx.Done():
			}
			return ctx.Err()
		}
		j.add(m.Value)
		return nil
	}
	w := mustWorker(t, h, o)
	publish(t, w.js, w.topic, "a/1", "a/2", "a/3")
	publish(t, w.js, w.topic, sequence(3, "b", "c", "d")...)
	w.options.Flow.Shutdown.GracePeriod = time.Millisecond
	stop := runWorker(t, w)
	await(t, "all but a/2 and a/3 is done", func() bool { return len(j.all()) == 10 })
	await(t, "it is committed", func() bool {
		states, err := w.Partitions(t.Context())
		return err == nil && states[partitionOf("a", 4)].Unsettled >= 2
	})
	stop()
	if n := len(l.of(EventMissing)); n > 0 {
		t.Fatalf("%d are missing", n)
	}
	s, err := w.js.Stream(t.Context(), w.topic.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context()); err != nil { // a/2 and a/3, which are known, and nothing else
		t.Fatal(err)
	}
	stop = runWorker(t, another(t, w, h))
	await(t, "both are reported", func() bool { return len(l.of(EventMissing)) >= 2 })
	publish(t, w.js, w.topic, "a/4")
	await(t, "it goes on", func() bool { return slices.Contains(j.all(), "a/4") })
	await(t, "the record counts them", func() bool {
		states, err := w.Partitions(t.Context())
		return err == nil && states[partitionOf("a", 4)].Missing == 2 && states[partitionOf("a", 4)].Lag == 0
	})
	stop()
	// What no worker has ever seen.
	before := len(l.of(EventMissing))
	publish(t, w.js, w.topic, "a/5", "b/4")
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	runWorker(t, another(t, w, h))
	await(t, "the gap is reported", func() bool { return len(l.of(EventMissing)) > before })
	if e := l.of(EventMissing)[before]; e.Last != 15 || e.Seq > 14 || e.Seq < 13 {
		t.Errorf("%+v", e)
	}
}

func TestPurgesOfWhatIsSettledAreNoLoss(t *testing.T) {
	var j journal
	var l eventLog
	o := quick
	o.Observer = l.observe
	h := func(_ context.Context, m flow.Message[string]) error { j.add(m.Value); return nil }
	w := mustWorker(t, h, o)
	publish(t, w.js, w.topic, sequence(10, "a", "b", "c", "d")...)
	stop := runWorker(t, w)
	await(t, "all is settled", settledAll(t, w))
	stop()
	s, err := w.js.Stream(t.Context(), w.topic.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	publish(t, w.js, w.topic, sequence(1, "e", "f", "g", "h")...)
	runWorker(t, another(t, w, h))
	await(t, "the new ones are done", func() bool { return len(j.all()) == 44 })
	if all := l.of(EventMissing); len(all) > 0 {
		t.Errorf("%+v", all)
	}
}

func TestAStreamThatWasMadeAnewStopsItsPartitions(t *testing.T) {
	var j journal
	var l eventLog
	o := quick
	o.Observer = l.observe
	h := func(_ context.Context, m flow.Message[string]) error { j.add(m.Value); return nil }
	w := mustWorker(t, h, o)
	publish(t, w.js, w.topic, sequence(5, "a", "b", "c", "d")...)
	stop := runWorker(t, w)
	await(t, "all is settled", settledAll(t, w))
	stop()
	if err := w.js.DeleteStream(t.Context(), w.topic.Name); err != nil {
		t.Fatal(err)
	}
	if err := Ensure(t.Context(), w.js, w.topic); err != nil {
		t.Fatal(err)
	}
	publish(t, w.js, w.topic, "a/1")
	runWorker(t, another(t, w, h))
	await(t, "it stops", func() bool { return len(l.of(EventStopped)) > 0 })
	if e := l.of(EventStopped)[0]; !strings.Contains(e.Err.Error(), "made anew") {
		t.Errorf("%v", e.Err)
	}
}

// What is settled is purged, not before it is as old as Dedupe, and nothing else.
func TestWhatIsSettledIsPurged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, WorkerOptions{Lease: 4 * time.Second})
		f.e.dedupe = time.Minute
		f.e.store(2, sequence(10, "a", "b", "c", "d")...)
		leave := f.join("w")
		time.Sleep(f.e.dedupe - time.Second)
		f.e.mu.Lock()
		if len(f.e.purges) > 0 {
			t.Errorf("purged up to %v within Dedupe", f.e.purges)
		}
		f.e.mu.Unlock()
		time.Sleep(2*sweepEvery + time.Second)
		f.e.mu.Lock()
		purged := f.e.purges[0] + f.e.purges[1]
		most := max(f.e.purges[0], f.e.purges[1])
		f.e.mu.Unlock()
		if most != 40 || purged < 70 {
			t.Errorf("purged up to %v", f.e.purges)
		}
		leave()
	})
	js := natstest.Connect(t, natstest.Embedded(t)) // and by the server
	topic := Topic{Name: "test", Partitions: 4, Replicas: 1, Dedupe: 100 * time.Millisecond}
	if err := Ensure(t.Context(), js, topic); err != nil {
		t.Fatal(err)
	}
	w, err := NewWorker(js, topic, words, func(context.Context, flow.Message[string]) error { return nil }, quick)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, w.js, w.topic, sequence(10, "a", "b")...)
	time.Sleep(topic.Dedupe)
	for p := range 4 {
		if all, err := w.engine.purge(t.Context(), p, 10); err != nil || !all {
			t.Fatal(all, err)
		}
	}
	s, err := w.js.Stream(t.Context(), w.topic.Name)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(">"))
	if err != nil || info.State.Msgs != 10 || info.State.FirstSeq != 11 {
		t.Errorf("%+v, %v", info.State, err)
	}
	lasts := map[int]uint64{partitionOf("a", 4): 19, partitionOf("b", 4): 20}
	for p := range 4 {
		if first, last, err := w.engine.bounds(t.Context(), p); first != 11 || last != lasts[p] || err != nil {
			t.Errorf("partition %d is bounded by %d and %d, %v", p, first, last, err)
		}
	}
}

// A foreign publisher's message, without headers, has the key that its value says.
func TestAMessageWithoutHeadersHasTheKeyOfItsValue(t *testing.T) {
	seen := make(chan flow.Message[string], 1)
	w := mustWorker(t, func(ctx context.Context, m flow.Message[string]) error {
		if o, _ := FromContext(ctx); o.Session != "" || o.Number != 0 {
			t.Errorf("%+v", o)
		}
		seen <- m
		return nil
	}, quick)
	if _, err := w.js.Publish(t.Context(), w.topic.subject(1), []byte("key/1")); err != nil {
		t.Fatal(err)
	}
	runWorker(t, w)
	select {
	case m := <-seen:
		if m.Key != "key" {
			t.Errorf("%+v", m)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not run")
	}
}

func TestACodecThatPanicsIsADecodeError(t *testing.T) {
	js, topic := topicOf(t, 1)
	bad := words
	bad.Unmarshal = func([]byte) (string, error) { panic("oh") }
	o := quick
	failures := make(chan *flow.Failure, 1)
	o.Flow.OnFailure = func(_ context.Context, f *flow.Failure) flow.FailureAction {
		failures <- f
		return flow.SkipMessage
	}
	w, err := NewWorker(js, topic, bad, func(context.Context, flow.Message[string]) error { return nil }, o)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, js, topic, "a/1")
	runWorker(t, w)
	select {
	case f := <-failures:
		if !strings.Contains(f.Err.Error(), "can't be decoded: panic: oh") {
			t.Errorf("%v", f.Err)
		}
	case <-time.After(20 * time.Second):
		t.Error("OnFailure is not asked")
	}
}

// An operator who deletes a partition's record has it run from the start of the stream again.
func TestAPartitionWhoseRecordIsDeletedBeginsAnew(t *testing.T) {
	var j journal
	h := func(_ context.Context, m flow.Message[string]) error { j.add(m.Value); return nil }
	w := mustWorker(t, h, quick)
	publish(t, w.js, w.topic, "a/1", "a/2")
	stop := runWorker(t, w)
	await(t, "all is settled", settledAll(t, w))
	stop()
	kv, err := w.js.KeyValue(t.Context(), w.topic.leaseBucket())
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Delete(t.Context(), leaseKey(partitionOf("a", 4))); err != nil {
		t.Fatal(err)
	}
	runWorker(t, another(t, w, h))
	await(t, "it is run again", func() bool { return len(j.all()) == 4 })
	await(t, "all is settled again", settledAll(t, w))
}

// A record that somebody has overwritten stops its partition and hides none of the others.
func TestARecordThatCanNotBeReadStopsItsPartitionOnly(t *testing.T) {
	var j journal
	w := mustWorker(t, func(_ context.Context, m flow.Message[string]) error { j.add(m.Value); return nil }, quick)
	kv, err := w.js.KeyValue(t.Context(), w.topic.leaseBucket())
	if err != nil {
		t.Fatal(err)
	}
	broken := partitionOf("a", 4)
	if _, err := kv.Put(t.Context(), leaseKey(broken), []byte("no record")); err != nil {
		t.Fatal(err)
	}
	publish(t, w.js, w.topic, sequence(1, "a", "b", "c", "d", "e", "f")...)
	runWorker(t, w)
	await(t, "the others run", func() bool {
		states, err := w.Partitions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range states {
			if s.Partition == broken {
				if s.Stopped == "" || s.Holder != "" {
					t.Fatalf("the broken one is shown as %+v", s)
				}
			} else if s.Holder == "" || s.Lag > 0 || s.Stopped != "" {
				return false
			}
		}
		return true
	})
	if slices.Contains(j.all(), "a/1") {
		t.Error("a message of the broken partition has run")
	}
}
