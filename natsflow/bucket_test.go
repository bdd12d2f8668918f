package natsflow

import (
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/flow/natsflow/internal/natstest"
	"github.com/nats-io/nats.go/jetstream"
)

// leasesOf is the bucket of the leases, by this connection.
func leasesOf(t *testing.T, js jetstream.JetStream, topic Topic) bucket {
	t.Helper()
	b, err := jetStream[string]{js, topic, words}.bucket(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A watch that ends while there is much to tell leaves nobody behind who waits to tell it.
func TestAWatchThatEndsEarlyLeavesNothingRunning(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	b := leasesOf(t, js, topic)
	for p := range 600 { // more than the client library has room for
		if _, err := b.put(t.Context(), p, record{Holder: "somebody"}.marshal(), 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		changes, stop, err := b.watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		<-changes
		time.Sleep(50 * time.Millisecond) // all the others arrive
		stop()
	}
	await(t, "the library's goroutines have ended", func() bool {
		stacks := make([]byte, 1<<20)
		return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "WatchFiltered")
	})
}

// Who was dead before a watch began is not told to live: how old its last beat is, the servers' clock says.
func TestAWatchTellsHowOldTheBeatsAreThatItFinds(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	b := leasesOf(t, js, topic)
	const lease = 300 * time.Millisecond
	for _, worker := range []string{"dead", "alive", "gone"} {
		if err := b.beat(t.Context(), worker); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(lease)
	for _, err := range []error{b.beat(t.Context(), "alive"), b.leave(t.Context(), "gone")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second one is a watch that was made anew
		changes, stop, err := b.watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ages := map[string]time.Duration{}
		for c := range changes {
			if c.known {
				break
			}
			ages[c.worker] = c.age
		}
		if len(ages) != 3 || ages["dead"] < lease || ages["alive"] >= ages["dead"] {
			t.Errorf("ages %v", ages)
		}
		if err := b.beat(t.Context(), "dead"); err != nil { // it was not, after all
			t.Fatal(err)
		}
		if c := <-changes; c.worker != "dead" || c.age != 0 {
			t.Errorf("%+v", c)
		}
		stop()
		time.Sleep(lease)
		if err := b.beat(t.Context(), "alive"); err != nil {
			t.Fatal(err)
		}
	}
}

// Each Run of a worker has a name of its own, which it leaves in the bucket when it is killed, and a note that it has left when
// it is not.
func TestWhatWorkersHaveLeftInTheBucketIsRemoved(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	b := leasesOf(t, js, topic)
	changes, stop, err := b.watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, worker := range []string{"killed", "left"} {
		if err := b.beat(t.Context(), worker); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.leave(t.Context(), "left"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.put(t.Context(), 0, record{Holder: "killed"}.marshal(), 0); err != nil {
		t.Fatal(err)
	}
	var seen []string
	told := func(last string) {
		for c := range changes {
			if c.known {
				continue
			}
			if seen = append(seen, c.worker); c.worker == last {
				return
			}
		}
	}
	told("") // of the lease: what is purged before the server has sent it to a watch, that is never told
	subjects := func() []string {
		stream, err := js.Stream(t.Context(), "KV_"+topic.leaseBucket())
		if err != nil {
			t.Fatal(err)
		}
		info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter(">"))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for subject := range info.State.Subjects {
			names = append(names, strings.TrimPrefix(subject, "$KV."+topic.leaseBucket()+"."))
		}
		slices.Sort(names)
		return names
	}
	for _, c := range []struct {
		age  time.Duration
		want []string
	}{
		{time.Hour, []string{"lease.0", "worker.killed", "worker.left"}},
		{0, []string{"lease.0"}},
	} {
		if err := b.tidy(t.Context(), c.age); err != nil {
			t.Fatal(err)
		}
		if got := subjects(); !slices.Equal(got, c.want) {
			t.Errorf("older than %v: %v are left, want %v", c.age, got, c.want)
		}
	}
	if err := b.beat(t.Context(), "after"); err != nil {
		t.Fatal(err)
	}
	told("after")
	seen = slices.Compact(seen) // what has changed before it was told is told once
	if want := []string{"killed", "left", "", "after"}; !slices.Equal(seen, want) {
		t.Errorf("a watch has told of %q, want %q", seen, want)
	}
}
