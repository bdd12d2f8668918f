package partition

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"example.com/flow"
)

// Assignment is a partition that was taken, as its record says.
type Assignment[T any] struct {
	Source   Source[T]
	Tenure   Tenure
	Progress Progress
	Deaths   Deaths
	First    uint64 // the lowest position that the log still has
	// DeadLetters store what OnFailure skips, before that is settled; also poison, without an OnFailure. nil means none.
	DeadLetters DeadLetters
	// Context returns a handler's context, which says where the message comes from.
	Context func(ctx context.Context, m *Message[T], replayed bool) context.Context
	// Observe is told what happens, from many goroutines. nil means nobody.
	Observe func(Event)
}

// Run is a partition under way. It is safe for concurrent use.
type Run[T any] struct {
	runner *Runner[T]
	Assignment[T]
	tenure  Tenure
	ledger  *Ledger
	reading context.Context // ends when nothing more is to be read
	stop    context.CancelFunc
	stream  *flow.Stream
	due     chan struct{} // has an element once enough is settled for a commit not to wait
	fresh   atomic.Int64  // messages settled since Progress was last asked
	doubted atomic.Uint64 // the position of the last message that may be in doubt, once that is known

	recvs sync.Mutex // held by recv, for which flow does not wait
	over  bool       // nobody reads the source any more; guarded by recvs
	mu    sync.Mutex
	ended error // why the run has ended, if it was not flow that knows
}

// Start begins to run the partition. The end of ctx ends it at once, with its cause; Stop ends it gracefully.
func (r *Runner[T]) Start(ctx context.Context, a Assignment[T]) *Run[T] {
	run := &Run[T]{runner: r, Assignment: a, tenure: a.Tenure, ledger: NewLedger(a.Progress, r.window), due: make(chan struct{}, 1)}
	run.missing(run.ledger.Missing(a.First))
	run.reading, run.stop = context.WithCancel(ctx)
	run.stream = r.flow.Start(ctx, run.recv)
	return run
}

// recv reads the next message that is to run.
func (run *Run[T]) recv() (*delivery[T], error) {
	run.recvs.Lock()
	defer run.recvs.Unlock()
	for {
		if run.over || run.ledger.Wait(run.reading) != nil {
			return nil, io.EOF
		}
		m, err := run.Source.Next(run.reading)
		if run.reading.Err() != nil {
			return nil, io.EOF // what was read is not settled, so the next holder reads it again
		}
		if err != nil {
			return nil, err
		}
		wanted, lost := run.ledger.Read(m.Position)
		run.missing(lost)
		if wanted {
			return run.deliver(m), nil
		}
	}
}

func (run *Run[T]) missing(lost []uint64) {
	for _, position := range lost {
		run.observe(Event{Kind: EventMissing, Position: position})
	}
}

// settled notes that one more message is settled. Half a window of them is worth a commit: while the other half is still
// to run, the reader gets room again in time.
func (run *Run[T]) settled() {
	if run.fresh.Add(1) < int64(run.runner.window+1)/2 {
		return
	}
	select {
	case run.due <- struct{}{}:
	default:
	}
}

// deliver prepares a message for flow.
func (run *Run[T]) deliver(m Message[T]) *delivery[T] {
	rank := run.ledger.Received() - 1
	if rank+1 == uint64(run.Deaths.Reach) {
		run.doubted.Store(m.Position)
	}
	d := &delivery[T]{Message: m, run: run, refusal: m.Err, inDoubt: run.Deaths.InDoubt(m.Position, rank)}
	if !d.inDoubt {
		return d
	}
	run.observe(Event{Kind: EventReplayed, Position: m.Position, Key: m.Key})
	if n := run.Deaths.Of(m.Position); d.refusal == nil && n >= run.runner.options.Poison {
		d.refusal = &PoisonError{m.Position, n}
	}
	d.suspect = run.Deaths.Count >= run.runner.options.Quarantine
	return d
}

// check asks whether the partition is still held, for what is about to happen to d.
func (run *Run[T]) check(d *delivery[T]) error {
	err := run.tenure.Check()
	if err != nil {
		run.observe(Event{Kind: EventRefused, Position: d.Position, Key: d.Key, Err: err})
	}
	return err
}

// stale returns err, marked as not worth another try if the partition is lost.
func (run *Run[T]) stale(err error) error {
	if run.tenure.Check() != nil {
		return flow.Permanent(err)
	}
	return err
}

func (run *Run[T]) contextOf(ctx context.Context, d *delivery[T]) context.Context {
	if run.Context == nil {
		return ctx
	}
	return run.Context(ctx, &d.Message, d.inDoubt)
}

func (run *Run[T]) observe(e Event) {
	if run.Observe != nil {
		run.Observe(e)
	}
}

// end notes why the run ends, where flow's failure would not say it.
func (run *Run[T]) end(err error) {
	run.mu.Lock()
	defer run.mu.Unlock()
	if run.ended == nil {
		run.ended = err
	}
}

// Progress returns what is settled of the partition.
func (run *Run[T]) Progress() Progress {
	run.fresh.Store(0)
	settled := run.stream.Progress() // before the ledger is asked: what it has read since counts as unsettled
	return run.ledger.Progress(settled.Settled)
}

// Committed notes that the record says p, which makes room in the window.
func (run *Run[T]) Committed(p Progress) { run.ledger.Committed(p) }

// Due has an element when a commit should not wait any longer.
func (run *Run[T]) Due() <-chan struct{} { return run.due }

// Doubted returns the position beyond which no message can be in doubt, and whether that is known yet.
func (run *Run[T]) Doubted() (position uint64, known bool) {
	position = run.doubted.Load()
	return position, position > 0
}

// Stop ends the run gracefully: nothing more is read, what waits is left to the next holder, and what runs finishes. It
// does not wait.
func (run *Run[T]) Stop() {
	run.stream.Stop() // first: at the end of the source flow would run all that waits
	run.stop()
}

// Wait blocks until nothing of the partition runs any more. It returns nil after Stop, the cause if the context of the run
// has ended, and else why the partition can't go on; again says that it can, since the message that ended flow's run, by a
// panic, was skipped by OnFailure: then the caller starts it again from Progress.
func (run *Run[T]) Wait() (again bool, err error) {
	_, err = run.stream.Wait()
	stopped := run.reading.Err() != nil
	run.stop()
	run.recvs.Lock()
	run.over = true
	run.recvs.Unlock()
	run.mu.Lock()
	defer run.mu.Unlock()
	f, _ := errors.AsType[*flow.Failure](err)
	switch {
	case run.ended != nil:
		return false, run.ended
	case f == nil || stopped && f.Kind == flow.FailureShutdown:
		return false, nil
	case f.Seq > 0:
		if d, ok := f.Value.(*delivery[T]); ok {
			return d.skipped, fmt.Errorf("message %d: %w", d.Position, f.Err) // f names it by flow's number
		}
	}
	return false, f.Err // the source's, or the context's
}
