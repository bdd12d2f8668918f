package natsflow

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/natsflow/internal/natstest"
	"example.com/flow/natsflow/partition"
)

// sweeps is a sweeper of which a test says when it sweeps.
type sweeps struct {
	t *testing.T
	*sweeper
	now    time.Time
	down   error // of each purge
	purged map[int][]uint64
}

func newSweeps(t *testing.T, keep time.Duration) *sweeps {
	s := &sweeps{t: t, now: time.Now(), purged: map[int][]uint64{}}
	s.sweeper = newSweeper(keep, func(_ context.Context, partition int, frontier uint64) error {
		s.purged[partition] = append(s.purged[partition], frontier)
		return s.down
	})
	return s
}

// after sweeps so long after the sweep before, and compares what is purged.
func (s *sweeps) after(d time.Duration, want map[int]uint64) {
	s.t.Helper()
	s.now = s.now.Add(d)
	s.sweep(s.t.Context(), s.now)
	if !maps.EqualFunc(s.purged, want, func(a []uint64, b uint64) bool { return slices.Equal(a, []uint64{b}) }) {
		s.t.Errorf("purged %v, want %v", s.purged, want)
	}
	clear(s.purged)
}

// Each renewal of a lease says again how far the partition is: an idle one is purged once.
func TestWhatIsPurgedIsNotPurgedAgain(t *testing.T) {
	s := newSweeps(t, 0)
	s.committed(0, 0)
	s.committed(1, 7)
	s.after(0, map[int]uint64{1: 7})
	s.committed(1, 7)
	s.after(0, nil)
	s.committed(1, 8)
	s.down = errors.New("down")
	s.after(0, map[int]uint64{1: 8})
	s.down = nil
	s.after(0, map[int]uint64{1: 8}) // what has failed is tried again
	s.committed(1, 8)
	s.after(0, nil)
}

func TestNothingIsPurgedThatWasSettledWithinDedupe(t *testing.T) {
	s := newSweeps(t, time.Minute)
	s.committed(1, 5)
	s.after(time.Second, nil)
	s.committed(1, 7)
	s.committed(2, 9)
	s.after(30*time.Second, nil)
	s.after(29*time.Second, nil)
	s.committed(1, 8)
	s.after(time.Second, map[int]uint64{1: 5})
	s.after(time.Hour, map[int]uint64{1: 8, 2: 9}) // and not 7 before 8
	s.after(time.Hour, nil)
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
	w, err := NewWorker(js, topic, words, func(context.Context, flow.Message[string]) error { return nil }, quick)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	sweeper := newSweeper(topic.Dedupe, w.engine.purge)
	sweeper.committed(0, 20)
	sweeper.sweep(t.Context(), now)
	sweeper.sweep(t.Context(), now.Add(topic.Dedupe-time.Second))
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
	sweeper.sweep(t.Context(), now.Add(topic.Dedupe))
	if n := len(storedMessages(t, js, topic.Name)); n != 10 {
		t.Errorf("%d messages are left, want the 10 that nobody has settled", n)
	}
}

// An operator has deleted a partition's record since it was noted, or both that and the stream, and messages wait again.
func TestWhatBeginsAnewIsNotPurgedAsItWasSettledBefore(t *testing.T) {
	e := newFakeEngine()
	w, err := newWorker(e, Topic{Name: "t", Partitions: 2}, func(context.Context, flow.Message[string]) error { return nil }, quick)
	if err != nil {
		t.Fatal(err)
	}
	m := newMember(w, e.bucket_, w.runner)
	progress, _ := partition.Progress{Frontier: 5, Top: 5}.MarshalBinary()
	if _, err := e.bucket_.put(t.Context(), 0, record{Progress: progress}.marshal(), 0); err != nil {
		t.Fatal(err)
	}
	for p := range 2 { // the second has no record
		if err := m.purge(t.Context(), p, 10); err != nil {
			t.Error(err)
		}
	}
	if want := map[int]uint64{0: 5}; !maps.Equal(e.purges, want) {
		t.Errorf("purged %v, want %v", e.purges, want)
	}
}
