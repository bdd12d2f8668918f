package natsflow

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"example.com/flow/natsflow/partition"
)

// member is one Run of a worker: it shows the others that it lives, watches them, and takes its share of the partitions. Its
// fields are used by run alone, but for those that never change.
type member[T any] struct {
	worker  *Worker[T]
	id      string
	bucket  bucket
	runner  *partition.Runner[T]
	times   times
	sweeper *sweeper

	board *board
	known bool // all that is in the bucket was seen once
	held  map[int]*holding[T]
	ended chan *holding[T] // those that hold nothing any more
}

func newMember[T any](w *Worker[T], b bucket, r *partition.Runner[T]) *member[T] {
	m := &member[T]{
		worker: w, id: workerID(), bucket: b, runner: r, held: map[int]*holding[T]{}, ended: make(chan *holding[T]),
		times: times{lease: w.options.Lease, commit: w.options.Commit},
	}
	m.sweeper = newSweeper(m.purge)
	m.board = newBoard(m.id, w.topic.Partitions, m.times.lease)
	return m
}

var errConnectionClosed = errors.New("natsflow: the connection to the servers was closed")

// run works until ctx ends, and then until everything is handed over.
func (m *member[T]) run(ctx context.Context) error {
	life, stop := context.WithCancel(context.WithoutCancel(ctx)) // of what goes on while partitions are handed over
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	sight, changes := make(chan bool), make(chan change)
	begun := make(chan struct{})
	all.Go(func() { m.beat(ctx, life, sight, begun) })
	all.Go(func() {
		<-begun // what the watch finds of others is compared with what was written last: that is of now then
		m.watch(life, changes)
	})
	all.Go(func() { m.tidy(life) })
	if m.worker.topic.MaxAge == 0 {
		all.Go(func() { m.sweeper.run(life) })
	}
	timer := time.NewTimer(m.times.lease)
	defer timer.Stop()
	ctxDone, over := ctx.Done(), false // a context that never ends has no Done
	for !over || len(m.held) > 0 {
		select {
		case <-ctxDone:
			ctxDone, over = nil, true
			for _, h := range m.held {
				h.handOver(m.worker.options.Flow.Shutdown.GracePeriod)
			}
		case c := <-changes:
			m.known = m.known || c.known
			m.board.see(c, time.Now())
		case visible := <-sight:
			if visible {
				m.board.recovered(time.Now())
			} else {
				m.board.outage()
			}
		case h := <-m.ended:
			delete(m.held, h.partition)
		case <-timer.C:
		}
		switch {
		case over:
		case m.worker.engine.closed():
			for _, h := range m.held {
				h.handOver(m.times.lease)
			}
			for len(m.held) > 0 {
				delete(m.held, (<-m.ended).partition)
			}
			return errConnectionClosed
		default:
			m.balance(life)
			timer.Reset(m.board.wait(time.Now()))
		}
	}
	return nil
}

// balance hands over what is too much, and claims what is free and lacking.
func (m *member[T]) balance(life context.Context) {
	if !m.known {
		return
	}
	now := time.Now()
	m.board.forget(now)
	n := 0
	for _, h := range m.held {
		if !h.leaving {
			n++
		}
	}
	lacking := m.board.share(n, now) - n
	for _, h := range m.held {
		if lacking >= 0 {
			break
		}
		if !h.leaving {
			h.handOver(0)
			lacking++
		}
	}
	for _, p := range rand.Perm(m.worker.topic.Partitions) { // by chance: else all would try the same one
		if m.held[p] != nil {
			continue
		}
		// What is left behind by a dead worker is taken by whoever sees it first, beyond his share if need be: the one who
		// lacks it may have come later, and would wait for a Lease of his own. And what this worker has left behind itself
		// waits for nobody else.
		reason := m.board.claimable(p, now)
		if reason == ReasonExpired || reason == ReasonResumed || reason == ReasonFree && lacking > 0 {
			m.hold(life, p, reason)
			lacking--
		}
	}
}

// beat shows the others that this worker lives, until ctx ends; then that it has left. It tells when the bucket is not to be
// reached, and when it is again. It closes begun when it has beaten once, or failed to.
func (m *member[T]) beat(ctx, life context.Context, sight chan<- bool, begun chan<- struct{}) {
	tick := time.NewTicker(m.times.renew())
	defer tick.Stop()
	visible := true
	for {
		attempt, cancel := context.WithTimeout(life, m.times.answer())
		err := m.bucket.beat(attempt, m.id)
		cancel()
		if begun != nil {
			close(begun)
			begun = nil
		}
		if now := err == nil; now != visible {
			visible = now
			select {
			case sight <- now:
			case <-life.Done():
				return
			}
		}
		select {
		case <-tick.C:
		case <-life.Done(): // of the connection, before ctx
			return
		case <-ctx.Done():
			attempt, cancel := context.WithTimeout(life, m.times.answer())
			_ = m.bucket.leave(attempt, m.id) // else it is seen to be silent
			cancel()
			return
		}
	}
}

// watchPause is before a broken watch is made anew.
const watchPause = 100 * time.Millisecond

// watch tells what is in the bucket and what changes. A watch that breaks, or in which this worker's own beats don't show
// for a whole Lease, is made anew.
func (m *member[T]) watch(life context.Context, changes chan<- change) {
	for life.Err() == nil {
		m.watchOnce(life, changes)
		pause(life, watchPause)
	}
}

func (m *member[T]) watchOnce(life context.Context, changes chan<- change) {
	news, stop, err := m.bucket.watch(life)
	if err != nil {
		return
	}
	defer stop()
	silence := time.NewTimer(m.times.lease)
	defer silence.Stop()
	for {
		select {
		case c, ok := <-news:
			if !ok {
				return
			}
			if c.worker == m.id {
				silence.Reset(m.times.lease)
			}
			select {
			case changes <- c:
			case <-life.Done():
				return
			}
		case <-silence.C:
			return
		case <-life.Done():
			return
		}
	}
}

// tidyEvery is how often what workers have left in the bucket is removed: each Run has a name of its own, so there would be
// more and more of it. What is older than that is no living worker's, unless Lease is of that order; then its next beat
// shows it again.
const tidyEvery = time.Hour

// tidy removes what workers have left in the bucket that were killed, or have left in order.
func (m *member[T]) tidy(life context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		attempt, cancel := context.WithTimeout(life, m.times.lease)
		_ = m.bucket.tidy(attempt, tidyEvery) // else next time, or another worker
		cancel()
		select {
		case <-tick.C:
		case <-life.Done():
			return
		}
	}
}

// purge removes of a partition what its record calls settled, as far as it may be removed by now. all reports that this was all
// of it.
func (m *member[T]) purge(ctx context.Context, p int) (all bool, err error) {
	value, _, err := m.bucket.get(ctx, p)
	if err != nil {
		return false, err
	}
	frontier, err := frontierIn(value)
	if err != nil || frontier == 0 {
		return true, err
	}
	return m.worker.engine.purge(ctx, p, frontier)
}
