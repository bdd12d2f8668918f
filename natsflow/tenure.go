package natsflow

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"example.com/flow/natsflow/partition"
)

// tenure is a worker's hold of one partition, from the claim to the release or the loss. It writes the record: one write at
// a time, each with all that the record says. It is safe for concurrent use.
type tenure struct {
	partition int
	bucket    bucket
	times     times
	observe   func(PartitionEvent)
	committed func(partition int, frontier uint64) // is told what the record says
	lease     *lease
	missing   atomic.Uint64 // messages that the stream has lost and the record does not count yet

	ctx    context.Context // the handlers': it ends with ErrLeaseLost when the partition is lost
	cancel context.CancelCauseFunc

	writing sync.Mutex // for as long as a write takes; it guards what follows
	rec     record
	writes  uint64    // how many were begun: no two have a number in common, nor what was read of one says anything of another
	sent    time.Time // when the last write that is done was sent
}

// times are the durations that leases live by.
type times struct {
	lease  time.Duration // WorkerOptions.Lease
	commit time.Duration // WorkerOptions.Commit
}

// term is how long a holder may go on after it sent its last renewal.
func (t times) term() time.Duration { return t.lease * 3 / 4 }

// renew is after how long without a write the lease is renewed.
func (t times) renew() time.Duration { return t.lease / 4 }

// answer is how long the answer to a write or a read is waited for.
func (t times) answer() time.Duration { return t.lease / 4 }

// claim takes the partition whose record was last seen as c, for holder. It returns nil if another was quicker.
func claim(
	ctx context.Context, b bucket, p int, c cell, holder string, died bool, window int, ts times, observe func(PartitionEvent),
) *tenure {
	r := c.record
	switch {
	case died:
		r.Deaths.Died()
	case r.Holder != "": // it lives, and has lost sight of the bucket
		r.Deaths.Lost()
	}
	r.Deaths.Suspect = 0
	r.Deaths.Held(window)
	r.Holder, r.Claim, r.Stopped = holder, rand.Text(), ""
	t := &tenure{
		partition: p, bucket: b, times: ts, observe: observe, committed: func(int, uint64) {}, rec: r,
		lease: newLease(r.Claim, c.revision, ts.term(), time.Now()),
	}
	t.ctx, t.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if t.write(ctx, func(*record) {}) != nil {
		t.cancel(ErrLeaseLost)
		return nil
	}
	return t
}

// Check implements partition.Tenure.
func (t *tenure) Check() error {
	if t.ctx.Err() != nil || !t.lease.valid(time.Now()) {
		return ErrLeaseLost
	}
	return nil
}

// Suspect implements partition.Tenure.
func (t *tenure) Suspect(ctx context.Context, position uint64) error {
	return t.write(ctx, func(r *record) { r.Deaths.Suspect = position })
}

// writePause is before a write is tried again.
const writePause = 20 * time.Millisecond

// write brings a change into the record, and returns when that is done. Its error means that the partition is lost, or
// that ctx has ended: then it isn't known whether the change is in the record.
func (t *tenure) write(ctx context.Context, change func(*record)) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	next := t.rec
	change(&next)
	t.writes++
	next.Write, next.Epoch = t.writes, t.lease.claimed()
	value := next.marshal()
	first := time.Now()
	for {
		if !t.lease.mayWrite(time.Now()) {
			t.lose()
			return ErrLeaseLost
		}
		revision, err := t.put(ctx, value)
		if err == nil {
			t.lease.written(revision, first)
			t.rec, t.sent = next, first
			return nil
		}
		if epoch := t.lease.claimed(); epoch > 0 { // another was quicker to claim: that is no trouble
			t.observe(PartitionEvent{Kind: EventCommitted, Partition: t.partition, Epoch: epoch, Err: err})
		}
		switch t.inquire(ctx, next.Write, first) {
		case verdictWritten:
			t.rec, t.sent = next, first
			return nil
		case verdictLost:
			t.lose()
			return ErrLeaseLost
		}
		pause := time.NewTimer(writePause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		}
	}
}

func (t *tenure) put(ctx context.Context, value []byte) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, t.times.answer())
	defer cancel()
	return t.bucket.put(ctx, t.partition, value, t.lease.expects())
}

// inquire asks the bucket what has become of a write whose answer was an error: it may say that another has the partition,
// or that an earlier write, whose answer was lost, was done after all.
func (t *tenure) inquire(ctx context.Context, write uint64, first time.Time) verdict {
	ctx, cancel := context.WithTimeout(ctx, t.times.answer())
	defer cancel()
	value, revision, err := t.bucket.get(ctx, t.partition)
	if err != nil || revision == 0 {
		return verdictUnknown
	}
	r, err := parseRecord(value)
	if err != nil {
		return verdictUnknown
	}
	return t.lease.found(r, revision, write, first)
}

// lose ends the hold: nothing starts any more, and the handlers' contexts end.
func (t *tenure) lose() {
	t.lease.lose()
	t.cancel(ErrLeaseLost)
}

// guard loses the partition when its lease is over, until the tenure ends. A write may hang meanwhile.
func (t *tenure) guard() {
	timer := time.NewTimer(time.Until(t.lease.until()))
	defer timer.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-timer.C:
		}
		left := time.Until(t.lease.until())
		if left <= 0 {
			t.lose()
			return
		}
		timer.Reset(left)
	}
}

// running is what a tenure needs of a partition under way.
type running interface {
	Progress() partition.Progress
	Committed(partition.Progress)
	Due() <-chan struct{}
	Doubted() (position uint64, known bool)
}

// commit writes p, which is what of run is settled.
func (t *tenure) commit(ctx context.Context, run running, p partition.Progress, change func(*record)) error {
	began := time.Now()
	packed, _ := p.MarshalBinary()
	if err := p.UnmarshalBinary(packed); err != nil { // as much of it as the record will say
		panic("bug: a progress can't be read: " + err.Error())
	}
	doubted, known := run.Doubted()
	missing := t.missing.Load()
	err := t.write(ctx, func(r *record) {
		r.Progress = packed
		r.Missing += missing
		if known {
			r.Deaths.NotBeyond(doubted)
		}
		r.Deaths.Settled(p)
		change(r)
	})
	if err == nil {
		run.Committed(p)
		t.missing.Add(-missing)
		t.committed(t.partition, p.Frontier)
		t.observe(PartitionEvent{
			Kind: EventCommitted, Partition: t.partition, Epoch: t.lease.claimed(), Seq: p.Frontier, Took: time.Since(began),
		})
	}
	return err
}

// keep renews the lease and commits what there is of run, until stop is closed or the partition is lost.
func (t *tenure) keep(run running, stop <-chan struct{}) {
	tick := time.NewTicker(t.times.commit)
	defer tick.Stop()
	last := t.recorded()
	for {
		select {
		case <-stop:
			return
		case <-t.ctx.Done():
			return
		case <-tick.C:
		case <-run.Due():
		}
		now := run.Progress()
		if now.Equal(last) && time.Since(t.lastSent()) < t.times.renew() {
			continue
		}
		if t.commit(t.ctx, run, now, func(*record) {}) != nil {
			return
		}
		last = now
	}
}

// lastSent is when the last write that is done was sent.
func (t *tenure) lastSent() time.Time {
	t.writing.Lock()
	defer t.writing.Unlock()
	return t.sent
}

// recorded is what the record calls settled.
func (t *tenure) recorded() partition.Progress {
	t.writing.Lock()
	defer t.writing.Unlock()
	p, _ := t.rec.progress() // it was read before
	return p
}

// doubtedTo notes that no message beyond position is in doubt. The record says so with the next write.
func (t *tenure) doubtedTo(position uint64) partition.Deaths {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.rec.Deaths.NotBeyond(position)
	return t.rec.Deaths
}

// idle renews the lease of a partition that has stopped, until stop is closed or the partition is lost.
func (t *tenure) idle(stop <-chan struct{}) {
	tick := time.NewTicker(t.times.renew())
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.ctx.Done():
			return
		case <-tick.C:
		}
		if t.write(t.ctx, func(*record) {}) != nil {
			return
		}
	}
}

// end frees what the tenure holds.
func (t *tenure) end() { t.cancel(errEnded) }

var errEnded = errors.New("natsflow: the partition was handed over")
