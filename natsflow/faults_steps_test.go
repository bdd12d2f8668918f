package natsflow

import (
	"context"
	"errors"
	"sync"
	"time"

	"example.com/flow"
	"example.com/flow/natsflow/partition"
)

// step is one thing that a worker does that can be seen from outside: what is written and read, and what its handlers do.
type step struct {
	Kind string
	N    int // of its kind, from 1
}

// steps numbers what a worker does. before is called before each step, one at a time, and may end, freeze or delay the
// process; an error of it stands for the step's.
type steps struct {
	before func(at step) error
	late   sync.WaitGroup // writes that are still under way though their error was returned

	mu sync.Mutex
	n  map[string]int
}

func (s *steps) at(kind string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == nil {
		s.n = map[string]int{}
	}
	s.n[kind]++
	if s.before == nil {
		return nil
	}
	return s.before(step{kind, s.n[kind]})
}

var (
	errLost = errors.New("the answer was lost")
	errLate = errors.New("the answer was lost, and the write is done later")
)

const lateBy = 30 * time.Millisecond // later than the next try of the same write

// between puts s between w and the servers.
func (s *steps) between(w *Worker[string]) { w.engine = steppedEngine{w.engine, s} }

type steppedEngine struct {
	engine[string]
	s *steps
}

func (e steppedEngine) bucket(ctx context.Context) (bucket, error) {
	b, err := e.engine.bucket(ctx)
	return steppedBucket{b, e.s}, err
}

func (e steppedEngine) source(p int, after uint64) source[string] {
	return steppedSource{e.engine.source(p, after), e.s}
}

func (e steppedEngine) dead(p int, epoch uint64) partition.DeadLetters {
	return steppedDead{e.engine.dead(p, epoch), e.s}
}

// steppedBucket numbers the writes of records, and the reads after those that fail. Beats and the watch are not numbered:
// they come by the clock.
type steppedBucket struct {
	bucket
	s *steps
}

func (b steppedBucket) put(ctx context.Context, p int, value []byte, revision uint64) (uint64, error) {
	r, err := parseRecord(value)
	if err != nil {
		return 0, err
	}
	kind := "commit"
	switch {
	case r.Epoch == 0:
		kind = "claim"
	case r.Holder == "":
		kind = "release"
	case r.Deaths.Suspect != 0:
		kind = "mark"
	}
	switch err := b.s.at(kind + " sent"); {
	case errors.Is(err, errLate):
		b.s.late.Go(func() {
			time.Sleep(lateBy)
			_, _ = b.bucket.put(context.WithoutCancel(ctx), p, value, revision)
		})
		return 0, err
	case err != nil:
		return 0, err
	}
	got, err := b.bucket.put(ctx, p, value, revision)
	if err != nil {
		return got, err
	}
	return got, b.s.at(kind + " answered")
}

func (b steppedBucket) get(ctx context.Context, p int) ([]byte, uint64, error) {
	value, revision, err := b.bucket.get(ctx, p)
	if err == nil {
		err = b.s.at("record read")
	}
	return value, revision, err
}

type steppedSource struct {
	source[string]
	s *steps
}

func (s steppedSource) Next(ctx context.Context) (partition.Message[string], error) {
	m, err := s.source.Next(ctx)
	if err == nil {
		_ = s.s.at("message received")
	}
	return m, err
}

type steppedDead struct {
	partition.DeadLetters
	s *steps
}

func (d steppedDead) Store(ctx context.Context, letter partition.DeadLetter) error {
	if err := d.s.at("dead letter sent"); err != nil {
		return err
	}
	if err := d.DeadLetters.Store(ctx, letter); err != nil {
		return err
	}
	return d.s.at("dead letter answered")
}

// What becomes of the messages of the script, by value.
const (
	failsOnce = "b/2"
	failsEver = "c/3"
)

var errScript = errors.New("as the script says")

// scripted is a handler of the script, whose effect is apply.
func (s *steps) scripted(apply func(o Origin, value string) error) flow.Handler[string] {
	return func(ctx context.Context, m flow.Message[string]) error {
		_ = s.at("handler entered")
		if m.Value == failsEver || m.Value == failsOnce && m.Attempt == 1 {
			return errScript
		}
		o, _ := FromContext(ctx)
		if err := apply(o, m.Value); err != nil {
			return err
		}
		_ = s.at("effect applied")
		return nil
	}
}

// scriptOptions are those of the script's workers.
func scriptOptions(o WorkerOptions) WorkerOptions {
	o.DeadLetter = true
	o.Flow.Retry = flow.RetryOptions{MaxAttempts: 2}
	o.Flow.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }
	return o
}

// scriptKeys are the keys of the script, each with messages 1 to scriptEach.
var scriptKeys = []string{"a", "b", "c"}

const scriptEach = 4
