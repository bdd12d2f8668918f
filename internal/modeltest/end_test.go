package modeltest_test

import (
	"context"
	"time"

	"example.com/flow"
)

// modelEnd is what the oracle knows of Shutdown and Close.
type modelEnd struct {
	begun    bool
	calls    int  // of Shutdown
	waiting  bool // one of them has not returned
	deadline time.Duration
	cutting  bool
	cutAt    time.Duration
	cutOff   flow.ShutdownError
	slack    int  // how many fewer may have been cut off, for what finished at the same time
	hanging  bool // the Observer that was told of the end
	freed    bool // it doesn't hang any more
	late     bool // something still ran cutWait after the cut
}

const cutWait = time.Second

func (o *oracle) underWay() (all []*modelStream) {
	for _, st := range o.streams {
		if !st.done {
			all = append(all, st)
		}
	}
	return all
}

func (o *oracle) shutdown() {
	drain := o.Options.Shutdown.DrainOnClose
	o.begin()
	o.end.waiting = true
	o.end.calls++
	for _, st := range o.underWay() {
		st.stopping = true
	}
	if !drain {
		o.raced()
		o.endAll(o.sweep)
	}
	if grace := o.Options.Shutdown.GracePeriod; grace > 0 && o.end.deadline == 0 {
		o.end.deadline = o.now + grace
	}
}

// begin is told that a Shutdown or Close has begun.
func (o *oracle) begin() {
	o.end.hanging = o.end.hanging || !o.end.begun && o.Hangs && !o.end.freed
	o.end.begun = true
}

// letGo has the Observer that hangs return.
func (o *oracle) letGo() { o.end.hanging, o.end.freed = false, true }

// busy says whether a Shutdown has something to wait for.
func (o *oracle) busy() bool { return len(o.underWay()) > 0 || o.end.hanging }

func (o *oracle) close() {
	o.begin()
	o.raced()
	o.endAll(o.shut)
}

// mayCut says whether somebody waits for what a cut would end.
func (o *oracle) mayCut() bool { return o.end.waiting && !o.end.cutting && o.busy() }

func (o *oracle) cut(why error) {
	if !o.mayCut() {
		return
	}
	o.end.cutting, o.end.cutAt, o.end.cutOff.Err = true, o.now, why
	drain := o.Options.Shutdown.DrainOnClose
	o.end.slack = o.raced()
	off := &o.end.cutOff
	for _, st := range o.underWay() {
		for _, m := range st.all {
			if m.state == runsNow || m.state == parked || m.state == held || drain && m.state != finished {
				if off.CutOff++; off.CutOff == 1 {
					off.Seq, off.Key = m.seq, m.Key
				}
			}
		}
	}
	off.CutOff += o.end.slack
	o.endAll(o.shut)
}

func (o *oracle) shut(st *modelStream) { o.fail(st, flow.FailureShutdown) }

// endAll ends all streams at once as far as each other's messages are concerned.
func (o *oracle) endAll(end func(*modelStream)) {
	all := o.underWay()
	for _, st := range all {
		st.over = true
	}
	for _, st := range all {
		end(st)
	}
}

// raced follows what was seen of messages whose turn, or slot, came because another stream was ended before theirs: the
// end of the Flow comes to one stream after the other.
func (o *oracle) raced() (rejected int) {
	if len(o.underWay()) < 2 {
		return 0
	}
	o.racedCalls()
	for s := range o.seen.starts {
		if m := o.find(s.stream, s.seq); m != nil && m.state != runsNow && m.state != finished && s.attempt == m.attempts+1 {
			o.start(m, s)
		}
	}
	for a := range o.seen.asked {
		if m := o.find(a.stream, a.seq); m != nil && m.state == waits && m.isSkipped() && a.kind == flow.FailureOrdering {
			rejected++
			o.refuse(m, a.kind)
		}
	}
	return rejected
}

// next is when something will happen by itself; 0: never.
func (o *oracle) next() (at time.Duration) {
	sooner := func(t time.Duration) {
		if t > o.now && (at == 0 || t < at) {
			at = t
		}
	}
	for m := range o.pending() {
		switch {
		case m.state == parked:
			sooner(m.due)
		case m.state == ready && m.could > 0:
			sooner(m.could - 1 + o.Options.Batch.Linger)
		case o.timed(m):
			sooner(m.began + o.Options.Retry.AttemptTimeout)
		}
	}
	for _, c := range o.calls {
		if limit := o.Options.Retry.AttemptTimeout; limit > 0 && c.cause == nil {
			sooner(c.began + limit)
		}
	}
	for _, g := range o.groups {
		sooner(g.due)
	}
	for _, st := range o.underWay() {
		if o.idles(st) {
			sooner(st.used + o.Options.IdleTimeout)
		}
	}
	if o.mayCut() {
		sooner(o.end.deadline)
	}
	if o.end.waiting && o.end.cutting {
		sooner(o.end.cutAt + cutWait)
	}
	return at
}

func (o *oracle) idles(st *modelStream) bool {
	return o.Options.IdleTimeout > 0 && !st.done && !st.over && st.inRecv && st.pending == 0
}

// passed says that the time has come to now, and nothing was due before.
func (o *oracle) passed(now time.Duration) {
	o.now = now
	for m := range o.pending() {
		switch {
		case m.state == parked && m.due == now && o.Batches:
			o.resume(m)
		case m.state == parked && m.due == now:
			m.state = ready
		case o.timed(m) && m.began+o.Options.Retry.AttemptTimeout == now:
			m.cause = flow.ErrAttemptTimeout // its handler returns later, if it heeds that: see simulation.pump
		}
	}
	for _, c := range o.calls {
		if limit := o.Options.Retry.AttemptTimeout; limit > 0 && c.cause == nil && c.began+limit == now {
			c.cause = flow.ErrAttemptTimeout
		}
	}
	for _, st := range o.underWay() {
		if o.idles(st) && st.used+o.Options.IdleTimeout == now {
			o.fail(st, flow.FailureContextCancelled)
		}
	}
	if o.end.deadline == now && now > 0 {
		o.cut(flow.ErrGracePeriod)
	}
	if o.end.cutting && o.end.cutAt+cutWait == now {
		o.end.late = o.busy()
	}
}

// cancel ends Run's own context.
func (o *oracle) cancel(st *modelStream) {
	st.cancelled = true
	if !st.done {
		o.fail(st, flow.FailureContextCancelled)
	}
}

func (o *oracle) cancelShutdown() { o.cut(context.Canceled) }

// mayWait says whether a moment may pass without anything else happening. An attempt that begins in its midst, as another
// stream ends, would be timed from there.
func (o *oracle) mayWait() bool {
	at := o.next()
	return o.Options.IdleTimeout == 0 && o.Options.Retry.AttemptTimeout == 0 && (at == 0 || at > o.now+tick)
}
