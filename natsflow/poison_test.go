package natsflow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"example.com/flow"
	"example.com/flow/natsflow/internal/effects"
	"example.com/flow/natsflow/partition"
)

// mortal is an engine of one process, which can die: then nothing that the process does goes anywhere.
type mortal struct {
	engine[string]
	once sync.Once
	gone chan struct{} // closed when the process dies
}

func (m *mortal) die() { m.once.Do(func() { close(m.gone) }) }

func (m *mortal) isDead() bool {
	select {
	case <-m.gone:
		return true
	default:
		return false
	}
}

// silence blocks a dead process until ctx ends.
func (m *mortal) silence(ctx context.Context) error {
	if !m.isDead() {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (m *mortal) bucket(ctx context.Context) (bucket, error) {
	b, err := m.engine.bucket(ctx)
	return mortalBucket{b, m}, err
}

func (m *mortal) source(p int, after uint64) source[string] {
	return mortalSource{m.engine.source(p, after), m}
}

func (m *mortal) dead(p int, epoch uint64) partition.DeadLetters {
	return mortalLetters{m.engine.dead(p, epoch), m}
}

type mortalBucket struct {
	bucket
	m *mortal
}

func (b mortalBucket) get(ctx context.Context, p int) ([]byte, uint64, error) {
	if err := b.m.silence(ctx); err != nil {
		return nil, 0, err
	}
	return b.bucket.get(ctx, p)
}

func (b mortalBucket) put(ctx context.Context, p int, value []byte, revision uint64) (uint64, error) {
	if err := b.m.silence(ctx); err != nil {
		return 0, err
	}
	return b.bucket.put(ctx, p, value, revision)
}

func (b mortalBucket) beat(ctx context.Context, worker string) error {
	if err := b.m.silence(ctx); err != nil {
		return err
	}
	return b.bucket.beat(ctx, worker)
}

func (b mortalBucket) leave(ctx context.Context, worker string) error {
	if err := b.m.silence(ctx); err != nil {
		return err
	}
	return b.bucket.leave(ctx, worker)
}

type mortalSource struct {
	source[string]
	m *mortal
}

func (s mortalSource) Next(ctx context.Context) (partition.Message[string], error) {
	m, err := s.source.Next(ctx)
	if dead := s.m.silence(ctx); dead != nil {
		return m, dead
	}
	return m, err
}

type mortalLetters struct {
	partition.DeadLetters
	m *mortal
}

func (l mortalLetters) Store(ctx context.Context, letter partition.DeadLetter) error {
	if err := l.m.silence(ctx); err != nil {
		return err
	}
	return l.DeadLetters.Store(ctx, letter)
}

// village is processes that die of some messages and are started anew.
type village struct {
	*fleet
	killers map[string]bool // the messages that kill whoever runs them
	over    chan struct{}   // closed when the test is: handlers of the dead end then
	all     sync.WaitGroup
	mu      sync.Mutex
	deaths  int
	living  []*mortal
	poison  []string // what OnFailure was told is poison
}

func newVillage(t testing.TB, partitions int, o WorkerOptions, killers ...string) *village {
	v := &village{killers: map[string]bool{}, over: make(chan struct{})}
	for _, k := range killers {
		v.killers[k] = true
	}
	o.DeadLetter = true
	o.Flow.OnFailure = func(_ context.Context, f *flow.Failure) flow.FailureAction {
		poison, ok := errors.AsType[*PoisonError](f.Err)
		if !ok || poison.Deaths < defaultPoison {
			t.Errorf("OnFailure is told %v", f)
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		v.poison = append(v.poison, f.Value.(string))
		return flow.SkipMessage
	}
	v.fleet = newFleet(t, partitions, o)
	return v
}

// settle starts a process that is started anew whenever it has died, until ctx ends.
func (v *village) settle(ctx context.Context, name string) {
	v.all.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			m := &mortal{engine: v.e, gone: make(chan struct{})}
			v.mu.Lock()
			v.living = append(v.living, m)
			v.mu.Unlock()
			life, cancel := context.WithCancel(context.Background())
			v.all.Go(func() { v.live(life, m, fmt.Sprintf("%s.%d", name, i)) })
			select {
			case <-m.gone:
				v.mu.Lock()
				v.deaths++
				v.living = slices.DeleteFunc(v.living, func(other *mortal) bool { return other == m })
				v.mu.Unlock()
				v.all.Go(func() { <-v.over; cancel() })
				time.Sleep(100 * time.Millisecond)
			case <-ctx.Done():
				cancel()
			}
		}
	})
}

func (v *village) live(ctx context.Context, m *mortal, name string) {
	w, err := newWorker(m, v.topic, func(ctx context.Context, msg flow.Message[string]) error {
		time.Sleep(5 * time.Millisecond)
		if v.killers[msg.Value] {
			m.die()
		}
		time.Sleep(5 * time.Millisecond)
		if m.isDead() {
			<-v.over
			return errTest
		}
		from, _ := FromContext(ctx)
		v.store.Apply(effects.Effect{Value: msg.Value, Seq: from.Seq, Epoch: from.Epoch, Worker: name})
		return nil
	}, v.o)
	if err != nil {
		v.t.Fatal(err)
	}
	if err := w.Run(ctx); err != nil {
		v.t.Error(err)
	}
}

// end has everything come to its end.
func (v *village) end(stop func()) {
	stop()
	close(v.over)
	v.all.Wait()
	time.Sleep(time.Minute)
}

// Whichever messages kill, at the head or in the middle, several, and in several partitions of one process: each is found
// after some deaths, is dead-lettered, and never runs again; no other message is blamed or lost; and nothing is out of order.
func TestPoisonIsFoundAndNoInnocentMessageIsBlamed(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const keys, each, partitions = 6, 8, 3
		var values []string
		for i := range each {
			for k := range keys {
				values = append(values, fmt.Sprintf("k%d/%d", k, i+1))
			}
		}
		killers := rapid.SliceOfNDistinct(rapid.SampledFrom(values), 0, 3, rapid.ID[string]).Draw(rt, "killers")
		workers := rapid.IntRange(1, 3).Draw(rt, "workers")
		kills := rapid.IntRange(0, 1).Draw(rt, "kills") // of an innocent process, while whatever runs in it
		late := rapid.IntRange(0, len(values)).Draw(rt, "late")
		synctest.Test(t, func(t *testing.T) {
			v := newVillage(t, partitions, WorkerOptions{Lease: 2 * time.Second, Commit: 50 * time.Millisecond}, killers...)
			ctx, stop := context.WithCancel(context.Background())
			v.e.store(partitions, values[:late]...)
			for i := range workers {
				v.settle(ctx, fmt.Sprint("w", i))
			}
			time.Sleep(300 * time.Millisecond)
			v.e.store(partitions, values[late:]...)
			innocent := slices.DeleteFunc(slices.Clone(values), func(s string) bool { return v.killers[s] })
			for i := range 3000 {
				if v.store.Done() == len(innocent) && v.lettersNow() == len(killers) {
					break
				}
				if i == 60 && kills > 0 {
					v.mu.Lock()
					if len(v.living) > 0 {
						v.living[0].die()
					}
					v.mu.Unlock()
				}
				time.Sleep(100 * time.Millisecond)
			}
			var letters []string
			for _, l := range v.e.letters {
				letters = append(letters, string(l.Raw))
			}
			slices.Sort(letters)
			if want := slices.Sorted(maps.Keys(v.killers)); !slices.Equal(letters, want) {
				t.Errorf("dead letters %v, want %v", letters, want)
			}
			j := v.store.Judge(innocent)
			if len(j.Lost)+len(j.Guarded)+len(j.Reordered) > 0 {
				t.Errorf("%v", j)
			}
			if most := len(killers)*(defaultQuarantine+defaultPoison) + kills; v.deaths > most {
				t.Errorf("%d deaths of %d killers", v.deaths, len(killers))
			}
			v.end(stop)
		})
	})
}

func (v *village) lettersNow() int {
	v.e.mu.Lock()
	defer v.e.mu.Unlock()
	return len(v.e.letters)
}

// A partition whose last message is not the stream's last, or is purged: a death is forgotten all the same.
func TestTheDeathOfAnIdlePartitionsHolderIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 2, WorkerOptions{Lease: 2 * time.Second, Commit: 50 * time.Millisecond})
		ctx, stop := context.WithCancel(context.Background())
		v.settle(ctx, "w")
		first, last := "a/1", "b/1"
		if partitionOf("a", 2) == partitionOf("b", 2) {
			t.Fatal("both keys are in one partition")
		}
		v.e.store(2, first)
		v.e.store(2, last)
		for i := range 4 {
			time.Sleep(5 * time.Second)
			if i == 2 {
				v.e.mu.Lock()
				v.e.purged = 2
				v.e.mu.Unlock()
			}
			v.mu.Lock()
			v.living[0].die()
			v.mu.Unlock()
		}
		time.Sleep(5 * time.Second)
		all := v.log.of(EventDied)
		if len(all) != 8 {
			t.Errorf("%d deaths were seen, want 4 of each partition", len(all))
		}
		for _, e := range all {
			if e.Deaths != 1 {
				t.Errorf("partition %d: the %d. death in a row", e.Partition, e.Deaths)
			}
		}
		v.end(stop)
	})
}

// One death in good days is forgotten when all that was under way then is settled: a second one, much later, does not bring
// quarantine upon the partition.
func TestADeathIsForgottenWhenWhatWasUnderWayIsSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 2, WorkerOptions{Lease: 2 * time.Second, Commit: 50 * time.Millisecond})
		ctx, stop := context.WithCancel(context.Background())
		v.settle(ctx, "w")
		time.Sleep(time.Second)
		n := 0
		for range 4 {
			for range 20 {
				n++
				v.e.store(2, fmt.Sprintf("a/%d", n), fmt.Sprintf("b/%d", n))
			}
			time.Sleep(25 * time.Millisecond) // some are under way
			v.mu.Lock()
			v.living[0].die()
			v.mu.Unlock()
			time.Sleep(5 * time.Second)
			if v.store.Done() != 2*n {
				t.Fatalf("%d of %d are done", v.store.Done(), 2*n)
			}
			n++
			v.e.store(2, fmt.Sprintf("a/%d", n), fmt.Sprintf("b/%d", n)) // what comes later is not in doubt
			time.Sleep(time.Second)
		}
		for _, e := range v.log.of(EventDied) {
			if e.Deaths != 1 {
				t.Errorf("the %d. death in a row", e.Deaths)
			}
		}
		if all := v.log.of(EventSuspect); len(all) > 0 {
			t.Errorf("%d messages run alone", len(all))
		}
		v.end(stop)
	})
}
