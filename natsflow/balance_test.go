package natsflow

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
	"pgregory.net/rapid"

	"example.com/flow"
	"example.com/flow/natsflow/internal/effects"
)

// fleet is workers over a fakeEngine, in a bubble.
type fleet struct {
	t     testing.TB
	e     *fakeEngine
	o     WorkerOptions
	topic Topic
	log   eventLog

	mu      sync.Mutex
	running map[int]string // by partition, which worker's handler runs; to see overlaps
	store   effects.Store
	handler time.Duration
}

func newFleet(t testing.TB, partitions int, o WorkerOptions) *fleet {
	f := &fleet{t: t, e: newFakeEngine(), o: o, running: map[int]string{}, handler: time.Millisecond}
	f.topic = Topic{Name: "fleet", Partitions: partitions, Replicas: 1}
	f.o.Observer = f.log.observe
	return f
}

// join starts a worker, and returns what has it leave, which waits.
func (f *fleet) join(name string) (leave func()) {
	w, err := newWorker(f.e, f.topic, func(ctx context.Context, m flow.Message[string]) error {
		from, _ := FromContext(ctx)
		f.mu.Lock()
		if by := f.running[from.Partition]; by != "" && by != name {
			f.t.Errorf("%s begins %s while %s runs something of partition %d", name, m.Value, by, from.Partition)
		}
		f.running[from.Partition] = name
		f.mu.Unlock()
		time.Sleep(f.handler)
		f.store.Apply(effects.Effect{Value: m.Value, Seq: from.Seq, Epoch: from.Epoch, Worker: name})
		f.mu.Lock()
		f.running[from.Partition] = ""
		f.mu.Unlock()
		return nil
	}, f.o)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := w.Run(ctx); err != nil {
			f.t.Error(err)
		}
	}()
	return func() { cancel(); <-over }
}

// holders counts the partitions by their holders, as the bucket says.
func (f *fleet) holders() (counts []int) {
	synctest.Wait()
	f.e.bucket_.mu.Lock()
	defer f.e.bucket_.mu.Unlock()
	held := map[string]int{}
	for _, c := range f.e.bucket_.cells {
		r, err := parseRecord(c.value)
		if err != nil {
			f.t.Fatal(err)
		}
		if r.Holder != "" {
			held[r.Holder]++
		}
	}
	for _, n := range held {
		counts = append(counts, n)
	}
	slices.Sort(counts)
	return counts
}

func TestPartitionsAreSharedEvenlyWhoeverComesAndGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 8, WorkerOptions{Lease: 4 * time.Second})
		want := func(counts ...int) {
			t.Helper()
			time.Sleep(time.Second)
			if got := f.holders(); !slices.Equal(got, counts) {
				t.Fatalf("holders %v, want %v", got, counts)
			}
		}
		a := f.join("a")
		want(8)
		b := f.join("b")
		want(4, 4)
		c := f.join("c")
		want(2, 3, 3)
		d := f.join("d")
		want(2, 2, 2, 2)
		a()
		want(2, 3, 3)
		moved := len(f.log.of(EventReleased))
		time.Sleep(10 * time.Second)
		if n := len(f.log.of(EventReleased)); n != moved {
			t.Errorf("%d partitions move though nobody comes or goes", n-moved)
		}
		b()
		c()
		want(8)
		d()
		want()
	})
}

func TestWorkersBeyondThePartitionsWaitForTheirs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, WorkerOptions{Lease: 4 * time.Second})
		leave := []func(){f.join("a"), f.join("b"), f.join("c")}
		time.Sleep(time.Second)
		if got := f.holders(); !slices.Equal(got, []int{1, 1}) {
			t.Fatalf("holders %v", got)
		}
		leave[0]()
		leave[1]()
		time.Sleep(time.Second)
		if got := f.holders(); !slices.Equal(got, []int{2}) {
			t.Fatalf("holders %v", got)
		}
		leave[2]()
	})
}

// A deploy that replaces one worker after the other leaves no message waiting for longer than what runs takes.
func TestARollingDeployDelaysNoKeyForLongerThanItsHandlersTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 8, WorkerOptions{Lease: 15 * time.Second})
		f.handler = 200 * time.Millisecond
		leave := []func(){f.join("a0"), f.join("b0"), f.join("c0")}
		time.Sleep(time.Second)
		stored := map[string]time.Time{}
		var values []string
		for i := range 120 {
			for k := range 10 {
				v := fmt.Sprintf("k%d/%d", k, i+1)
				stored[v] = time.Now()
				f.e.store(8, v)
				values = append(values, v)
			}
			if i%20 == 10 {
				n := i / 20 % 3
				leave[n]()
				leave[n] = f.join(fmt.Sprintf("%c%d", 'a'+n, i))
			}
			time.Sleep(500 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		if j := f.store.Judge(values); len(j.Lost)+len(j.Reordered)+j.Repeated+len(j.Guarded) > 0 {
			t.Errorf("%v", j)
		}
		for _, e := range f.store.All() {
			if wait := e.At.Sub(stored[e.Value]); wait > 700*time.Millisecond { // two handlers, the claim and its pauses
				t.Errorf("%s waited for %v", e.Value, wait)
			}
		}
		for _, l := range leave {
			l()
		}
	})
}

// When nobody reaches the bucket for longer than a Lease, everything stands still, and when it is there again everything goes
// on with the same holders: nobody is taken for dead.
func TestAnOutageOfTheBucketLooksLikeNoDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 8, WorkerOptions{Lease: 4 * time.Second})
		var out sync.Mutex
		down := false
		f.e.bucket_.trouble = func(string) trouble {
			out.Lock()
			defer out.Unlock()
			return trouble{fails: down}
		}
		leave := []func(){f.join("a"), f.join("b"), f.join("c")}
		time.Sleep(5 * time.Second)
		set := func(v bool) { out.Lock(); defer out.Unlock(); down = v }
		for _, outage := range []time.Duration{time.Second, 5 * time.Second, time.Minute} {
			set(true)
			time.Sleep(outage)
			before := f.store.Done()
			f.e.store(8, fmt.Sprintf("a%v/1", outage))
			time.Sleep(time.Second)
			if n := f.store.Done(); outage > 4*time.Second && n > before {
				t.Errorf("a message runs without a lease, after an outage of %v", outage)
			}
			set(false)
			time.Sleep(8 * time.Second)
			if n := f.store.Done(); n != before+1 {
				t.Errorf("%d messages are done after an outage of %v, want %d", n, outage, before+1)
			}
			if got := f.holders(); !slices.Equal(got, []int{2, 3, 3}) {
				t.Errorf("holders %v after an outage of %v", got, outage)
			}
		}
		if died := f.log.of(EventDied); len(died) > 0 {
			t.Errorf("%d are taken for dead: %+v", len(died), died[0])
		}
		for _, l := range leave {
			l()
		}
	})
}

// What was done in an outage and could not be committed runs again, also where its worker lives: Origin says so.
func TestWhatCouldNotBeCommittedInAnOutageIsReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1, WorkerOptions{Lease: 4 * time.Second})
		var down atomic.Bool
		f.e.bucket_.trouble = func(string) trouble { return trouble{fails: down.Load()} }
		leave := f.join("w")
		f.e.store(1, "a/1")
		time.Sleep(time.Second)
		down.Store(true)
		f.e.store(1, "a/2", "b/1")
		time.Sleep(10 * time.Second)
		down.Store(false)
		time.Sleep(10 * time.Second)
		if n := f.store.Done(); n != 3 {
			t.Errorf("%d messages are done, want 3", n)
		}
		var replayed []string
		for _, e := range f.log.of(EventReplayed) {
			replayed = append(replayed, fmt.Sprint(e.Key, " ", e.Seq))
		}
		if want := []string{"a 2", "b 3"}; !slices.Equal(replayed, want) {
			t.Errorf("replayed are %v, want %v", replayed, want)
		}
		f.e.store(1, "c/1")
		time.Sleep(time.Second)
		if n := len(f.log.of(EventReplayed)) + 10*len(f.log.of(EventDied)) + 10*len(f.log.of(EventSuspect)); n != 2 {
			t.Errorf("what was stored later is replayed, or somebody has died: %+v", f.log.all)
		}
		leave()
	})
}

// Silence in an outage says nothing of anybody, but who was dead before is dead behind it: else partitions are given back to
// him that nobody takes.
func TestAnOutageBringsNobodyToLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lease = 4 * time.Second
		f := newFleet(t, 8, WorkerOptions{Lease: lease})
		var down atomic.Bool
		f.e.bucket_.trouble = func(string) trouble { return trouble{fails: down.Load()} }
		leave := []func(){f.join("a"), f.join("b")}
		if err := f.e.bucket_.beat(t.Context(), "dead"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * lease)
		moved := len(f.log.of(EventReleased))
		down.Store(true)
		time.Sleep(lease / 2)
		down.Store(false)
		time.Sleep(3 * lease)
		if n := len(f.log.of(EventReleased)) - moved; n > 0 {
			t.Errorf("%d partitions are given back", n)
		}
		if got := f.holders(); !slices.Equal(got, []int{4, 4}) {
			t.Errorf("holders %v", got)
		}
		for _, l := range leave {
			l()
		}
	})
}

// Whatever the bucket does to requests, no two workers run one partition at once, nothing is lost or out of order, the
// guarded effects are exact, and of each partition's record the writes are those of a register: claims deepen the epoch, a
// deposed holder writes nothing, and the frontier never goes back.
func TestWorkersOverAMoodyBucketRunEachPartitionOneAtATime(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		percent := rapid.IntRange(0, 30).Draw(rt, "percent")
		synctest.Test(t, func(t *testing.T) {
			const partitions = 3
			r := rand.New(rand.NewPCG(seed, 1))
			f := newFleet(t, partitions, WorkerOptions{Lease: 2 * time.Second, Commit: 100 * time.Millisecond})
			f.e.bucket_.trouble = moody(r, percent, 30*time.Millisecond)
			var h history
			f.e.bucket_.put_ = h.written
			var values []string
			leave := []func(){f.join("a"), f.join("b")}
			for i := range 40 {
				for k := range 4 {
					v := fmt.Sprintf("k%d/%d", k, i+1)
					values = append(values, v)
					f.e.store(partitions, v)
				}
				time.Sleep(50 * time.Millisecond)
				if i%15 == 7 {
					leave = append(leave, f.join(fmt.Sprint("w", i)))
					leave[0]()
					leave = leave[1:]
				}
			}
			for range 600 {
				if f.store.Done() == len(values) {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			for _, l := range leave {
				l()
			}
			if j := f.store.Judge(values); len(j.Lost)+len(j.Reordered)+len(j.Guarded) > 0 {
				t.Errorf("%v", j)
			}
			h.check(t)
			time.Sleep(time.Second) // for late writes
		})
	})
}

// history is the writes of records, as the bucket has done them.
type history struct {
	mu  sync.Mutex
	ops map[int][]porcupine.Operation
}

// recordWrite is one of them.
type recordWrite struct {
	claim    string
	write    uint64
	frontier uint64
	revision uint64
}

func (h *history) written(p int, r record, revision uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ops == nil {
		h.ops = map[int][]porcupine.Operation{}
	}
	progress, err := r.progress()
	if err != nil {
		panic(err)
	}
	n := int64(len(h.ops[p]))
	h.ops[p] = append(h.ops[p], porcupine.Operation{
		Input: recordWrite{r.Claim, r.Write, progress.Frontier, revision}, Call: 2 * n, Return: 2*n + 1,
	})
}

// registerModel is a partition's record: claims and writes of the holder, in the order of revisions.
var registerModel = porcupine.Model{
	Init: func() any { return recordWrite{} },
	Step: func(from, input, _ any) (bool, any) {
		was, is := from.(recordWrite), input.(recordWrite)
		claims := is.write == 1 && is.claim != was.claim
		continues := is.claim == was.claim && is.write > was.write
		return (claims || continues) && is.revision > was.revision && is.frontier >= was.frontier, is
	},
}

func (h *history) check(t testing.TB) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p, ops := range h.ops {
		if !porcupine.CheckOperations(registerModel, ops) {
			t.Errorf("the writes of partition %d are not those of one holder at a time: %v", p, ops)
		}
	}
}

// A worker that dies and is started anew at once does not make its partitions wait for longer: the others take them when
// the Lease is over, though they are not theirs to keep.
func TestPartitionsOfADeadWorkerWaitForOneLeaseAlsoIfItComesBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lease = 4 * time.Second
		f := newFleet(t, 6, WorkerOptions{Lease: lease})
		leave := []func(){f.join("a"), f.join("b")}
		time.Sleep(time.Second)
		// One more, which has died: its record and its last beat are there.
		b := f.e.bucket_
		b.mu.Lock()
		for p := range 2 {
			c := b.cells[p]
			r, err := parseRecord(c.value)
			if err != nil {
				t.Fatal(err)
			}
			r.Holder, r.Claim, r.Write = "dead", "of the dead", 1
			b.revision++
			b.cells[p] = fakeCell{r.marshal(), b.revision}
			b.tellLocked(change{partition: p, value: r.marshal(), revision: b.revision})
		}
		b.workers["dead"], b.last = time.Now(), time.Now()
		b.tellLocked(change{partition: -1, worker: "dead"})
		b.mu.Unlock()
		died := time.Now()
		time.Sleep(lease / 2)
		leave = append(leave, f.join("back")) // it lacks two partitions, and sees them for the first time
		time.Sleep(time.Until(died.Add(lease + 200*time.Millisecond)))
		synctest.Wait()
		for p := range 2 {
			b.mu.Lock()
			value := b.cells[p].value
			b.mu.Unlock()
			r, err := parseRecord(value)
			if err != nil || r.Holder == "dead" {
				t.Errorf("partition %d is still of the dead: %+v, %v", p, r, err)
			}
		}
		if n := len(f.log.of(EventDied)); n != 2 {
			t.Errorf("%d deaths", n)
		}
		// It knows as well as the others who is dead, though it has not watched that one for a Lease: so none of them is free
		// until it does.
		if got := f.holders(); !slices.Equal(got, []int{2, 2, 2}) {
			t.Errorf("holders %v", got)
		}
		for _, l := range leave {
			l()
		}
	})
}

// A watch that is made anew tells of the last beat of each worker again, also of one that was killed long ago.
func TestAWatchMadeAnewBringsNobodyToLife(t *testing.T) {
	const lease = 4 * time.Second
	began := time.Now()
	b := newBoard("self", 2, lease)
	want := func(after time.Duration, share int) {
		t.Helper()
		if got := b.share(0, began.Add(after)); got != share {
			t.Errorf("after %v: %d partitions, want %d", after, got, share)
		}
	}
	b.see(change{partition: -1, worker: "peer"}, began)
	want(lease-1, 1)
	want(lease, 2)
	b.see(change{partition: -1, worker: "peer", age: lease}, began.Add(lease))
	want(lease, 2)
	b.see(change{partition: -1, worker: "other", age: lease - time.Second}, began.Add(lease))
	want(lease, 1) // it was silent for a shorter time
	want(lease+time.Second, 2)
	b.see(change{partition: -1, worker: "other"}, began.Add(lease+time.Second))
	b.see(change{partition: -1, worker: "other", age: lease - 1}, began.Add(lease+time.Second)) // by a clock that jumps
	want(2*lease, 1)
	b.forget(began.Add(3 * lease))
	b.outage()
	b.recovered(began.Add(4 * lease))
	b.see(change{partition: -1, worker: "other", age: 2 * lease}, began.Add(4*lease))
	want(4*lease, 2)
}

// What has been silent for a Lease is claimed at once, or when the bucket is in sight again: a worker that woke up for it would
// wake up again and again, for as long as nobody removes the name of one that was killed.
func TestWhatIsSilentIsNotWaitedForAgainAndAgain(t *testing.T) {
	const lease = 4 * time.Second
	began := time.Now()
	at := began.Add
	b := newBoard("self", 2, lease)
	b.recovered(began)
	b.see(change{partition: -1, worker: "peer"}, at(time.Second))
	b.see(change{partition: 1, value: record{Holder: "peer"}.marshal(), revision: 7}, at(2*time.Second))
	for _, c := range []struct{ now, want time.Duration }{
		{2 * time.Second, 3 * time.Second}, // until the peer is dead
		{5 * time.Second, time.Second},     // until its partition may be claimed
		{6 * time.Second, lease},
		{time.Hour, lease},
	} {
		if got := b.wait(at(c.now)); got != c.want {
			t.Errorf("after %v: %v, want %v", c.now, got, c.want)
		}
	}
	b.outage()
	if got := b.wait(at(time.Hour)); got != lease {
		t.Errorf("out of sight: %v", got)
	}
	b.recovered(at(time.Hour))
	if got := b.wait(at(time.Hour + time.Second)); got != lease-time.Second {
		t.Errorf("a second after an outage: %v", got)
	}
}
