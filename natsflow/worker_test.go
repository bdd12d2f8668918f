package natsflow

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
)

// quick are the times of tests in which nobody dies.
var quick = WorkerOptions{Lease: 2 * time.Second, Commit: 20 * time.Millisecond}

func mustWorker(t testing.TB, h flow.Handler[string], o WorkerOptions) *Worker[string] {
	t.Helper()
	js, topic := topicOf(t, 4)
	w, err := NewWorker(js, topic, words, h, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// another is a Worker beside w, with a handler of its own.
func another(t testing.TB, w *Worker[string], h flow.Handler[string]) *Worker[string] {
	t.Helper()
	v, err := NewWorker(w.js, w.topic, words, h, w.options)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func settledAll(t testing.TB, w *Worker[string]) func() bool {
	return func() bool {
		states, err := w.Partitions(t.Context())
		if err != nil {
			return false
		}
		return !slices.ContainsFunc(states, func(s PartitionState) bool { return s.Lag > 0 })
	}
}

func TestWorkerRunsEachKeyInOrderAndCommitsIt(t *testing.T) {
	var j journal
	w := mustWorker(t, func(ctx context.Context, m flow.Message[string]) error {
		o, ok := FromContext(ctx)
		if !ok || o.Seq == 0 || o.Epoch == 0 || o.Session != "a/b" || o.Number == 0 || o.Replayed || o.Stored.IsZero() {
			t.Errorf("origin %+v, %v", o, ok)
		}
		if o.Partition != partitionOf(m.Key, 4) {
			t.Errorf("%s is of partition %d", m.Key, o.Partition)
		}
		j.add(m.Value)
		return nil
	}, quick)
	keys := []string{"a", "b", "c", "d", "e", "f"}
	publish(t, w.js, w.topic, sequence(20, keys...)...)
	stop := runWorker(t, w)
	await(t, "all is committed", settledAll(t, w))
	for _, key := range keys {
		if got := j.of(key); !slices.Equal(got, sequence(20, key)) {
			t.Errorf("%s: %v", key, got)
		}
	}
	publish(t, w.js, w.topic, "a/21")
	await(t, "a late message is run", func() bool { return len(j.all()) == 121 })
	stop()
	states, err := w.Partitions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range states {
		if s.Holder != "" || s.Lag != 0 || s.Unsettled != 0 || s.Deaths != 0 || s.Last > 0 && s.Frontier < s.Last {
			t.Errorf("after the end: %+v", s)
		}
	}
}

func TestWorkersShareThePartitionsAndHandThemOverWithoutARepeat(t *testing.T) {
	var j journal
	slow := func(_ context.Context, m flow.Message[string]) error {
		time.Sleep(time.Millisecond)
		j.add(m.Value)
		return nil
	}
	w := mustWorker(t, slow, quick)
	keys := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}
	publish(t, w.js, w.topic, sequence(60, keys...)...)
	held := func() (holders map[string]int) {
		states, err := w.Partitions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		holders = map[string]int{}
		for _, s := range states {
			holders[s.Holder]++
		}
		return holders
	}
	stop1 := runWorker(t, w)
	await(t, "one holds all", func() bool { h := held(); return len(h) == 1 && h[""] == 0 })
	stop2 := runWorker(t, another(t, w, slow))
	await(t, "two hold two each", func() bool {
		h := held()
		for _, n := range h {
			if n != 2 {
				return false
			}
		}
		return len(h) == 2 && h[""] == 0
	})
	stop1()
	await(t, "the second holds all", func() bool { h := held(); return len(h) == 1 && h[""] == 0 })
	await(t, "all is settled", settledAll(t, w))
	stop2()
	for _, key := range keys {
		if got := j.of(key); !slices.Equal(got, sequence(60, key)) {
			t.Errorf("%s: %v", key, got)
		}
	}
}

func TestHandOverWaitsForWhatRunsAndStartsNothing(t *testing.T) {
	var j journal
	started, finish := make(chan string, 10), make(chan struct{})
	w := mustWorker(t, func(ctx context.Context, m flow.Message[string]) error {
		started <- m.Value
		<-finish
		if ctx.Err() != nil {
			t.Errorf("the context of what runs has ended: %v", context.Cause(ctx))
		}
		j.add(m.Value)
		return nil
	}, quick)
	publish(t, w.js, w.topic, sequence(3, "a")...)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- w.Run(ctx) }()
	<-started
	cancel()
	time.Sleep(2 * quick.Lease) // it holds the partition until the handler has returned
	if states, err := w.Partitions(t.Context()); err != nil || states[partitionOf("a", 4)].Holder == "" {
		t.Errorf("%+v, %v", states, err)
	}
	close(finish)
	if err := <-over; err != nil {
		t.Error(err)
	}
	if got := j.all(); !slices.Equal(got, []string{"a/1"}) {
		t.Errorf("done: %v", got)
	}
	runWorker(t, another(t, w, func(_ context.Context, m flow.Message[string]) error { j.add(m.Value); return nil }))
	await(t, "the rest is done", func() bool { return len(j.all()) == 3 })
	if got := j.all(); !slices.Equal(got, sequence(3, "a")) {
		t.Errorf("done: %v", got)
	}
}

func TestGracePeriodEndsTheContextsOfHandlersThatGoOn(t *testing.T) {
	o := quick
	o.Flow.Shutdown.GracePeriod = 50 * time.Millisecond
	started := make(chan string, 10)
	cause := make(chan error, 1)
	w := mustWorker(t, func(ctx context.Context, m flow.Message[string]) error {
		started <- m.Value
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return ctx.Err()
	}, o)
	publish(t, w.js, w.topic, "a/1")
	stop := runWorker(t, w)
	<-started
	stop()
	if err := <-cause; !errors.Is(err, flow.ErrGracePeriod) {
		t.Errorf("the cause is %v", err)
	}
}

var errTest = errors.New("not today")

func TestWithoutOnFailureAPartitionStopsAndSaysSoAndTheNextHolderTriesAgain(t *testing.T) {
	var j journal
	var l eventLog
	var broken atomic.Bool
	broken.Store(true)
	o := quick
	o.Observer = l.observe
	h := func(_ context.Context, m flow.Message[string]) error {
		if m.Value == "a/2" && broken.Load() {
			return errTest
		}
		j.add(m.Value)
		return nil
	}
	w := mustWorker(t, h, o)
	publish(t, w.js, w.topic, sequence(3, "a", "b", "c", "d")...)
	stop := runWorker(t, w)
	await(t, "it stops", func() bool { return len(l.of(EventStopped)) == 1 })
	states, err := w.Partitions(t.Context())
	if s := states[partitionOf("a", 4)]; err != nil || s.Stopped == "" || s.Holder == "" || s.Frontier >= s.Last {
		t.Errorf("%+v, %v", s, err)
	}
	if e := l.of(EventStopped)[0]; !errors.Is(e.Err, errTest) || e.Partition != partitionOf("a", 4) {
		t.Errorf("%+v", e)
	}
	time.Sleep(quick.Lease + quick.Lease/2) // it is renewed while it stands still
	if n := len(l.of(EventClaimed)); n != 4 {
		t.Errorf("%d claims", n)
	}
	broken.Store(false)
	stop()
	runWorker(t, another(t, w, h))
	await(t, "all is settled", settledAll(t, w))
	for _, key := range []string{"a", "b", "c", "d"} {
		if got := j.of(key); !slices.Equal(got, sequence(3, key)) {
			t.Errorf("%s: %v", key, got)
		}
	}
}

func TestOnFailureIsAskedWithTheMessageItsOriginAndTheBytesOfWhatCannotBeDecoded(t *testing.T) {
	var j journal
	o := quick
	o.DeadLetter = true
	o.Flow.Retry = flow.RetryOptions{MaxAttempts: 3}
	o.Flow.OnFailure = func(ctx context.Context, f *flow.Failure) flow.FailureAction {
		origin, ok := FromContext(ctx)
		if !ok || origin.Seq == 0 {
			t.Errorf("origin %+v, %v", origin, ok)
		}
		if decode, ok := errors.AsType[*DecodeError](f.Err); ok {
			b, isBytes := f.Value.([]byte)
			if !isBytes || string(b) != "garbage" || decode.Position != origin.Seq || f.Key != "a" {
				t.Errorf("%+v", f)
			}
		} else if f.Value != "a/2" || f.Attempts != 3 {
			t.Errorf("%+v", f)
		}
		return flow.SkipMessage
	}
	w := mustWorker(t, func(_ context.Context, m flow.Message[string]) error {
		if m.Value == "a/2" {
			return errTest
		}
		j.add(m.Value)
		return nil
	}, o)
	publish(t, w.js, w.topic, "a/1", "a/2")
	m, err := storedWord(w.topic, messageID{session: "x/y", number: 1}, "a/3")
	if err != nil {
		t.Fatal(err)
	}
	m.Data = []byte("garbage")
	if _, err := w.js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	publish(t, w.js, w.topic, "a/4")
	runWorker(t, w)
	await(t, "all is settled", settledAll(t, w))
	if got := j.all(); !slices.Equal(got, []string{"a/1", "a/4"}) {
		t.Errorf("done: %v", got)
	}
	letters := deadOf(t, w)
	if len(letters) != 2 || string(letters[0].Data) != "a/2" || string(letters[1].Data) != "garbage" {
		t.Fatalf("dead letters: %v", letters)
	}
	h := letters[0].Header
	if h.Get(headerKey) != "a" || h.Get(headerDeadAttempts) != "3" || h.Get(headerDeadSeq) != "2" || h.Get(headerDeadEpoch) == "" || h.Get(headerDeadReason) == "" {
		t.Errorf("header of a dead letter: %v", h)
	}
}

func TestAPanicThatOnFailureSkipsDoesNotStopThePartition(t *testing.T) {
	var j journal
	o := quick
	o.Flow.OnFailure = func(_ context.Context, f *flow.Failure) flow.FailureAction {
		if f.Kind != flow.FailureInternal {
			t.Errorf("%v", f)
		}
		return flow.SkipMessage
	}
	w := mustWorker(t, func(_ context.Context, m flow.Message[string]) error {
		if m.Value == "a/2" || m.Value == "b/3" {
			panic("oh")
		}
		j.add(m.Value)
		return nil
	}, o)
	publish(t, w.js, w.topic, sequence(5, "a", "b")...)
	runWorker(t, w)
	await(t, "all is settled", settledAll(t, w))
	for key, want := range map[string][]string{"a": {"a/1", "a/3", "a/4", "a/5"}, "b": {"b/1", "b/2", "b/4", "b/5"}} {
		if got := j.of(key); !slices.Equal(got, want) {
			t.Errorf("%s: %v", key, got)
		}
	}
}

func TestSkipKeyStopsThePartition(t *testing.T) {
	var l eventLog
	o := quick
	o.Observer = l.observe
	o.Flow.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey }
	w := mustWorker(t, func(context.Context, flow.Message[string]) error { return errTest }, o)
	publish(t, w.js, w.topic, "a/1")
	runWorker(t, w)
	await(t, "it stops", func() bool { return len(l.of(EventStopped)) == 1 })
	states, err := w.Partitions(t.Context())
	if s := states[partitionOf("a", 4)]; err != nil || s.Lag != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestStatsOfAWorkerAreOfAllItsPartitions(t *testing.T) {
	finish := make(chan struct{})
	o := quick
	o.Flow.Backpressure.Capacity = 3
	w := mustWorker(t, func(context.Context, flow.Message[string]) error { <-finish; return nil }, o)
	if s := w.Stats(); s.Capacity != 3 || s.Streams != 0 {
		t.Errorf("before Run: %+v", s)
	}
	publish(t, w.js, w.topic, sequence(2, "a", "b", "c", "d")...)
	for range 2 { // a Run after another
		stop := runWorker(t, w)
		await(t, "all partitions run, as much as there is capacity for", func() bool {
			s := w.Stats()
			return s.Streams == 4 && s.InFlight == 3 && s.Waiting == 5
		})
		close(finish)
		await(t, "all is settled", settledAll(t, w))
		stop()
		if s := w.Stats(); s.Streams != 0 || s.InFlight != 0 || s.Waiting != 0 {
			t.Errorf("after Run: %+v", s)
		}
		finish = make(chan struct{})
		publish(t, w.js, w.topic, sequence(2, "a", "b", "c", "d")...)
	}
}

// The largest message that a gateway takes can become a dead letter, whatever it failed with: else its key would wait for
// ever.
func TestTheLargestMessageFitsAsADeadLetter(t *testing.T) {
	o := quick
	o.DeadLetter = true
	o.Flow.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }
	w := mustWorker(t, func(context.Context, flow.Message[string]) error {
		return flow.Permanent(errors.New(strings.Repeat("é", maxReason)))
	}, o)
	gw := &Gateway[string]{js: w.js}
	m, err := storedWord(w.topic, messageID{session: "b", number: 1}, "a/1")
	if err != nil {
		t.Fatal(err)
	}
	value := "a/1" + strings.Repeat("x", int(w.js.Conn().MaxPayload())-deadLetterRoom-(m.Size()-len(m.Subject)))
	m.Data = []byte(value)
	if err := gw.fits(m); err != nil {
		t.Fatal(err)
	}
	if _, err := w.js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	runWorker(t, w)
	await(t, "it is settled", settledAll(t, w))
	letters := deadOf(t, w)
	if len(letters) != 1 || string(letters[0].Data) != value {
		t.Fatalf("%d letters", len(letters))
	}
	reason, err := url.PathUnescape(letters[0].Header.Get(headerDeadReason))
	if err != nil || !strings.HasPrefix(reason, "ééé") {
		t.Errorf("reason %q, %v", reason, err)
	}
}

func TestEscapedReasonIsCutBetweenEscapes(t *testing.T) {
	for room, want := range map[int]string{-1: "", 0: "", 1: "a", 2: "a", 3: "a", 4: "a%20", 5: "a%20b", 9: "a%20b"} {
		if got := escapedReason("a b", room); got != want {
			t.Errorf("%d: %q, want %q", room, got, want)
		}
	}
	if got := escapedReason(strings.Repeat("x", 2*maxReason), 4*maxReason); len(got) != maxReason {
		t.Errorf("%d bytes", len(got))
	}
}
