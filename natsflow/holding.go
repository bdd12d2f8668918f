package natsflow

import (
	"context"
	"sync"
	"time"

	"example.com/flow"
	"example.com/flow/natsflow/partition"
)

// holding is a partition that a member claims, runs, and hands over or loses, each on a goroutine of its own.
type holding[T any] struct {
	member    *member[T]
	partition int
	reason    string // why it may be claimed
	highest   uint64 // up to which some partition is settled, as was last seen
	tenure    *tenure
	epoch     uint64

	leaving bool          // it was told to hand over; the member's
	leave   chan struct{} // closed then
	grace   time.Duration // how long its handlers may go on then; written before leave is closed
}

// hold begins to hold a partition. It is the member's to call.
func (m *member[T]) hold(life context.Context, p int, reason string) {
	h := &holding[T]{member: m, partition: p, reason: reason, highest: m.board.frontier(), leave: make(chan struct{})}
	m.held[p] = h
	c := m.board.cells[p]
	go func() {
		h.run(life, c)
		m.ended <- h // the member waits for all of them
	}()
}

// handOver has the partition handed over: nothing of it starts any more. What runs may take so long, or with 0 as long as
// it takes. It is the member's to call.
func (h *holding[T]) handOver(grace time.Duration) {
	if !h.leaving {
		h.leaving, h.grace = true, grace
		close(h.leave)
	}
}

// claimPause is before a claim that has failed may be tried again: by then the watch has told why.
const claimPause = 100 * time.Millisecond

// run is the whole hold, from the record as it was last seen.
func (h *holding[T]) run(life context.Context, c cell) {
	m := h.member
	died := h.reason == ReasonExpired
	t := claim(life, m.bucket, h.partition, c, m.id, died, m.runner.Window(), m.times, m.worker.telling.put)
	if t == nil {
		pause(life, claimPause)
		return
	}
	h.tenure, h.epoch, t.committed = t, t.lease.claimed(), m.sweeper.committed
	var guard sync.WaitGroup
	guard.Go(t.guard)
	defer guard.Wait()
	defer t.end()
	defer m.sweeper.left(h.partition)
	h.observe(PartitionEvent{Kind: EventClaimed, Reason: h.reason})
	if died {
		h.observe(PartitionEvent{Kind: EventDied, Deaths: t.rec.Deaths.Count})
	}
	a, err := h.assignment()
	var r *partition.Run[T]
	for again := true; again && err == nil && !h.left() && t.Check() == nil; {
		r, again, err = h.serve(a)
		if again && t.commit(t.ctx, r, r.Progress(), func(*record) {}) == nil {
			a.Progress, err = r.Progress(), nil
		}
	}
	if err != nil && !h.left() && t.Check() == nil {
		h.stopped(r, err)
	}
	if t.Check() == nil && h.release(r) == nil {
		h.observe(PartitionEvent{Kind: EventReleased})
		return
	}
	h.observe(PartitionEvent{Kind: EventLost, Err: ErrLeaseLost})
}

func (h *holding[T]) left() bool {
	select {
	case <-h.leave:
		return true
	default:
		return false
	}
}

func (h *holding[T]) observe(e PartitionEvent) {
	e.Partition, e.Epoch = h.partition, h.epoch
	h.member.worker.telling.put(e)
}

// release gives the partition, with what of r is settled if it was run at all, to whoever wants it.
func (h *holding[T]) release(r *partition.Run[T]) error {
	free := func(rec *record) { rec.Holder = "" }
	if r == nil {
		return h.tenure.write(h.tenure.ctx, free)
	}
	return h.tenure.commit(h.tenure.ctx, r, r.Progress(), free)
}

// assignment is what is to be run. It blocks until the stream has said where it begins and ends, or the hold is over.
func (h *holding[T]) assignment() (a partition.Assignment[T], err error) {
	t := h.tenure
	a = partition.Assignment[T]{Tenure: t, Deaths: t.rec.Deaths, Context: h.context, Observe: h.told}
	if a.Progress, err = t.rec.progress(); err != nil {
		return a, err
	}
	if h.member.worker.options.DeadLetter {
		a.DeadLetters = h.member.worker.engine.dead(h.partition, h.epoch)
	}
	stop := make(chan struct{})
	var renewing sync.WaitGroup
	renewing.Go(func() { t.idle(stop) })
	defer renewing.Wait()
	defer close(stop)
	for t.Check() == nil && !h.left() {
		ctx, cancel := context.WithTimeout(t.ctx, t.times.answer())
		first, last, err := h.member.worker.engine.bounds(ctx, h.partition)
		cancel()
		if err == nil {
			a.First = first
			a.Deaths = t.doubtedTo(max(last, a.Progress.Top)) // what is stored later can't have been under way when the holder before died
			h.compare(a.Progress, first)
			break
		}
		pause(t.ctx, writePause)
	}
	return a, nil
}

// compare looks whether the stream has lost something that nobody had settled. What it has lost between messages that were
// settled, or before anybody knew of it, it can't tell.
func (h *holding[T]) compare(p partition.Progress, first uint64) {
	if first <= p.Frontier+1 || first <= h.highest+1 {
		return
	}
	highest := h.highest
	for p := range h.member.worker.topic.Partitions { // what was last seen may be old
		ctx, cancel := context.WithTimeout(h.tenure.ctx, h.tenure.times.answer())
		value, _, err := h.member.bucket.get(ctx, p)
		cancel()
		if err != nil {
			return
		}
		if frontier, err := frontierIn(value); err == nil {
			highest = max(highest, frontier)
		}
		if first <= highest+1 {
			return
		}
	}
	h.observe(PartitionEvent{Kind: EventMissing, Seq: highest + 1, Last: first - 1})
}

// context is that of a handler.
func (h *holding[T]) context(ctx context.Context, m *partition.Message[T], replayed bool) context.Context {
	return &originContext[T]{ctx, h, m, replayed}
}

// told passes an event of the run on.
func (h *holding[T]) told(e partition.Event) {
	kinds := [...]EventKind{
		partition.EventRefused: EventRefused, partition.EventReplayed: EventReplayed, partition.EventSuspect: EventSuspect,
		partition.EventPoison: EventPoison, partition.EventDeadLetter: EventDeadLetter, partition.EventMissing: EventMissing,
	}
	if e.Kind == partition.EventMissing {
		h.tenure.missing.Add(1)
	}
	h.observe(PartitionEvent{Kind: kinds[e.Kind], Seq: e.Position, Last: e.Position, Key: e.Key, Err: e.Err})
}

// serve runs the partition until it is to be handed over, is lost, or can't go on, for the reason in err. again says that it
// can go on all the same: see partition.Run.Wait.
func (h *holding[T]) serve(a partition.Assignment[T]) (r *partition.Run[T], again bool, err error) {
	t := h.tenure
	ctx, cancel := context.WithCancelCause(t.ctx)
	defer cancel(nil)
	s := h.member.worker.engine.source(h.partition, a.Progress.Frontier)
	defer s.close()
	a.Source = s
	r = h.member.runner.Start(ctx, a)
	stop := make(chan struct{})
	var keeping sync.WaitGroup
	keeping.Go(func() { t.keep(r, stop) })
	defer keeping.Wait()
	defer close(stop)
	over := make(chan struct{})
	go func() {
		defer close(over)
		again, err = r.Wait()
	}()
	select {
	case <-over:
		return r, again, err
	case <-h.leave:
	}
	r.Stop()
	var late <-chan time.Time
	if h.grace > 0 {
		timer := time.NewTimer(h.grace)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-over:
	case <-late:
		cancel(flow.ErrGracePeriod)
		<-over
	}
	return r, false, nil
}

// maxStopped bounds the text in a record.
const maxStopped = 512

// stopped holds the partition without running it, until it is to be handed over or is lost: others would only stop at the
// same message.
func (h *holding[T]) stopped(r *partition.Run[T], why error) {
	text := why.Error()
	text = text[:min(len(text), maxStopped)]
	note := func(rec *record) { rec.Stopped = text }
	var err error
	if r != nil {
		err = h.tenure.commit(h.tenure.ctx, r, r.Progress(), note)
	} else {
		err = h.tenure.write(h.tenure.ctx, note)
	}
	if err != nil {
		return
	}
	h.observe(PartitionEvent{Kind: EventStopped, Err: why})
	h.tenure.idle(h.leave)
}
