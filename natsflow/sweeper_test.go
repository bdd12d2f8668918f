package natsflow

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/natsflow/internal/natstest"
	"example.com/flow/natsflow/partition"
	"github.com/nats-io/nats.go"
)

// Each renewal of a lease says again how far the partition is: an idle one is purged once.
func TestWhatIsPurgedIsNotPurgedAgain(t *testing.T) {
	all, down := true, error(nil)
	var purged []int
	s := newSweeper(func(_ context.Context, partition int) (bool, error) {
		purged = append(purged, partition)
		return all, down
	})
	sweep := func(want ...int) {
		t.Helper()
		s.sweep(t.Context())
		if slices.Sort(purged); !slices.Equal(purged, want) {
			t.Errorf("purged %v, want %v", purged, want)
		}
		purged = nil
	}
	s.committed(0, 0)
	s.committed(1, 7)
	s.committed(2, 5)
	sweep(1, 2)
	s.committed(1, 7)
	sweep()
	s.committed(1, 8)
	down = errors.New("down")
	sweep(1)
	down, all = nil, false
	sweep(1) // what has failed is tried again
	all = true
	sweep(1) // what was too young, too
	s.committed(1, 8)
	sweep()
	s.committed(1, 3) // an operator has had it begin anew
	sweep(1)
	sweep()
	s.committed(1, 4)
	s.left(1) // whoever has it now sweeps it
	sweep()
	s.committed(1, 4)
	sweep(1)
}

// A server that is started learns the ids of the messages that it has, so those that may come again must be there, also
// when workers are done with them.
func TestWhatIsSettledIsStoredOnceWithinDedupeThoughTheServerIsStartedAnew(t *testing.T) {
	c := natstest.Start(t, 1)
	js := natstest.Connect(t, c.URLs())
	_, topic := testTopic(t, js, nil)
	if _, err := run(newFlow(t, newGateway(t, js, topic), nil), "s", 1, requests("u", 1, 20)...); err != nil {
		t.Fatal(err)
	}
	purge := func(wantAll bool) {
		t.Helper()
		if all, err := (jetStream[string]{js, topic, words}).purge(t.Context(), 0, 20); all != wantAll || err != nil {
			t.Errorf("all is purged: %v, %v", all, err)
		}
	}
	purge(false) // they are settled by now
	if n := len(storedMessages(t, js, topic.Name)); n != 20 {
		t.Fatalf("%d messages are left of 20 that are younger than Dedupe", n)
	}
	kv, err := js.KeyValue(t.Context(), topic.sessionsBucket())
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Purge(t.Context(), sessionKey(flow.SessionID{Name: "s"})); err != nil { // as if its gateway was killed before it said so
		t.Fatal(err)
	}
	c.Terminate(0)
	if err := c.Run(0); err != nil {
		t.Fatal(err)
	}
	js = natstest.Connect(t, c.URLs())
	if _, err := run(newFlow(t, newGateway(t, js, topic), nil), "s", 1, requests("u", 1, 30)...); err != nil {
		t.Fatal(err)
	}
	wantUploads(t, storedMessages(t, js, topic.Name), map[string]int{"u": 30})
	topic.Dedupe = time.Millisecond
	purge(true)
	if n := len(storedMessages(t, js, topic.Name)); n != 10 {
		t.Errorf("%d messages are left, want the 10 that nobody has settled", n)
	}
}

// A record that an operator has deleted calls nothing settled, whatever it has said before.
func TestWhatBeginsAnewIsNotPurgedAsItWasSettledBefore(t *testing.T) {
	e := newFakeEngine()
	w, err := newWorker(e, Topic{Name: "t", Partitions: 2}, func(context.Context, flow.Message[string]) error { return nil }, quick)
	if err != nil {
		t.Fatal(err)
	}
	e.store(1, "a/1", "a/2", "a/3", "a/4", "a/5", "a/6")
	m := newMember(w, e.bucket_, w.runner)
	progress, _ := partition.Progress{Frontier: 5, Top: 5}.MarshalBinary()
	if _, err := e.bucket_.put(t.Context(), 0, record{Progress: progress}.marshal(), 0); err != nil {
		t.Fatal(err)
	}
	for p := range 2 { // the second has no record
		m.sweeper.committed(p, 6)
	}
	m.sweeper.sweep(t.Context())
	if want := map[int]uint64{0: 5}; !maps.Equal(e.purges, want) || len(m.sweeper.due) > 0 {
		t.Errorf("purged %v, want %v; due is %v", e.purges, want, m.sweeper.due)
	}
}

// A purge up to position 0 takes all of a subject in servers before 2.14.2.
func TestNoPurgeIsAskedForWhereNothingMayBePurged(t *testing.T) {
	url := natstest.Embedded(t)
	proxy := natstest.NewProxy(t, url)
	_, topic := testTopic(t, natstest.Connect(t, url), nil)
	js := natstest.Connect(t, proxy.URL(), nats.IgnoreDiscoveredServers())
	purges := make(chan string, 16)
	proxy.OnFrame(func(f natstest.Frame) natstest.Fate {
		if strings.Contains(f.Subject, ".STREAM.PURGE.") {
			purges <- f.Subject
		}
		return natstest.Pass
	})
	e := jetStream[string]{js, topic, words}
	for _, wantAll := range []bool{true, false} { // nothing is stored, and then all is young
		if all, err := e.purge(t.Context(), 0, 3); all != wantAll || err != nil {
			t.Errorf("all is purged: %v, %v", all, err)
		}
		publish(t, js, topic, "a/1", "a/2", "a/3")
	}
	e.topic.Dedupe = time.Millisecond
	time.Sleep(10 * time.Millisecond)
	for range 2 { // and then all is purged
		if all, err := e.purge(t.Context(), 0, 3); !all || err != nil {
			t.Errorf("all is purged: %v, %v", all, err)
		}
	}
	if n := len(purges); n != 1 {
		t.Errorf("%d purges were asked for, want 1", n)
	}
}
