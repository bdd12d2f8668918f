package modeltest_test

import (
	"errors"
	"reflect"

	"example.com/flow"
)

// sight is what was seen of a Flow since the last move.
type sight struct {
	starts   map[startOf]bool // of handlers; the value says whether the oracle has accounted for it
	calls    []seenCall       // of handlers of batches
	asked    map[askedOf]int  // OnFailure
	inRecv   []bool
	running  map[run]error // the handlers, and why their contexts have ended, if they have
	returned []*result
	shutdown []error // of the calls that have returned
	stats    flow.Stats
	told     int // EventShutdown
}

type run struct {
	stream int
	seq    uint64
}

type startOf struct {
	run
	attempt   int
	pressured bool
}

type askedOf struct {
	stream int
	seq    uint64
	kind   flow.FailureKind
}

type result struct {
	sum flow.Summary
	err error
}

func (o *oracle) find(stream int, seq uint64) *modelMessage {
	for _, m := range o.streams[stream].all {
		if m.seq == seq {
			return m
		}
	}
	return nil
}

// dispatch gives slots to those that were seen to start, and had their turn.
func (o *oracle) dispatch() {
	for _, st := range o.streams {
		o.dispatchOf(st)
	}
}

func (o *oracle) dispatchOf(st *modelStream) {
	if o.Batches {
		o.dispatchCalls()
		return
	}
	for s, accounted := range o.seen.starts {
		if accounted || s.stream != st.n || o.limited() && o.load().running >= o.Options.Backpressure.Capacity {
			continue
		}
		if m := o.find(s.stream, s.seq); m != nil && m.state == ready && s.attempt == m.attempts+1 {
			o.start(m, s)
		}
	}
}

// settle says what follows of a move, and compares it with what was seen.
func (o *oracle) settle() {
	o.dispatch()
	o.followRejected()
	for _, st := range o.streams {
		if !st.done && st.pending == 0 && (!st.inRecv || st.stopping || st.over) {
			st.done = true
			st.sum.Committed, st.sum.Last = st.sum.Received, st.sum.Received
			if len(st.sum.Unsettled) > 0 {
				st.sum.Committed = st.sum.Unsettled[0] - 1
			}
		}
	}
	o.compare()
}

func (o *oracle) compare() {
	for s, accounted := range o.seen.starts {
		if !accounted {
			o.failf("handler started: %+v, which has not got its turn", s)
		}
	}
	l := o.load()
	if o.Batches {
		o.compareCalls()
	}
	switch free := o.Options.Backpressure.Capacity - l.running; {
	case o.limited() && free < 0:
		o.failf("%d run, which is more than the capacity", l.running)
	case !o.Batches && l.lacking > 0 && (!o.limited() || free > 0):
		o.failf("%d wait although they have their turn and there is a slot", l.lacking)
	}
	o.comparePressured(l)
	asked := map[askedOf]int{}
	for _, a := range o.asked {
		asked[a]++
	}
	if !reflect.DeepEqual(asked, o.seen.asked) {
		o.failf("OnFailure was asked %v, want %v", o.seen.asked, asked)
	}
	o.compareRunning()
	for i, st := range o.streams {
		o.compareStream(st, o.seen.inRecv[i], o.seen.returned[i])
	}
	o.compareStats()
	o.compareShutdown()
}

// comparePressured counts: those that started in one move may have come in any order, after what the move ended.
func (o *oracle) comparePressured(l load) {
	p := o.Options.Backpressure
	got, want := 0, 0
	for s := range o.seen.starts {
		if s.pressured {
			got++
		}
	}
	if p.Policy == flow.BackpressureSoftAllowWithSignal {
		want = max(0, min(len(o.seen.starts), l.running-p.Capacity))
	}
	if got != want && !o.swept { // else what started may have met what ended
		o.failf("%d of %d started under pressure, want %d", got, len(o.seen.starts), want)
	}
}

func (o *oracle) compareStream(st *modelStream, inRecv bool, got *result) {
	switch {
	case !st.done && (st.over || st.stopping):
		st.inRecv = inRecv // whether it was there when its stream ended is its own business
	case !st.done && inRecv != (st.inRecv && (st.reading || o.room(st))):
		o.failf("stream %d: in recv: %v with %d pending", st.n, inRecv, st.pending)
	}
	st.reading = inRecv
	switch {
	case got == nil && st.done:
		o.failf("stream %d: Run has not returned", st.n)
	case got != nil && !st.done:
		o.failf("stream %d: Run has returned %+v, %v with %d pending", st.n, got.sum, got.err, st.pending)
	case got != nil:
		if !reflect.DeepEqual(got.sum, st.sum) {
			o.failf("stream %d: Summary %+v, want %+v", st.n, got.sum, st.sum)
		}
		if kind := flow.ClassifyFailure(got.err); kind != st.result() {
			o.failf("stream %d: Run's error is %v (%v), want %v", st.n, kind, got.err, st.result())
		}
	}
}

func (st *modelStream) result() flow.FailureKind {
	switch {
	case st.failure != flow.FailureNone:
		return st.failure
	case st.eof && len(st.sum.Unsettled) == 0:
		return flow.FailureNone
	}
	return flow.FailureShutdown
}

func (o *oracle) compareStats() {
	want := flow.Stats{Streams: len(o.underWay()), Capacity: o.Options.Backpressure.Capacity}
	keys := map[string]bool{}
	for m := range o.pending() {
		keys[m.Key] = true
		if want.Waiting++; m.state == runsNow {
			want.Waiting--
			want.InFlight++
		}
	}
	want.ActiveKeys, want.Calls = len(keys), want.InFlight
	if o.Batches {
		want.Calls = len(o.calls)
	}
	for _, st := range o.streams {
		want.Total.Succeeded += st.sum.Succeeded
		want.Total.Failed += st.sum.Failed
		want.Total.Rejected += st.sum.Rejected
		want.Total.Dropped += st.sum.Dropped
		want.Total.Retried += st.sum.Retried
		want.Total.Received += st.sum.Received - uint64(st.pending)
	}
	if got := o.seen.stats; !reflect.DeepEqual(got, want) {
		o.failf("Stats %+v, want %+v", got, want)
	}
}

func (o *oracle) compareShutdown() {
	e := &o.end
	over := !o.busy() || e.cutting && o.now >= e.cutAt+cutWait
	cutOff := e.cutOff.CutOff > 0
	if over {
		e.waiting = false
	}
	if n := len(o.seen.shutdown); !over && n > 0 && e.waiting && n == e.calls || over && n != e.calls {
		o.failf("%d of %d calls of Shutdown have returned; must they: %v", n, e.calls, over)
	}
	for _, err := range o.seen.shutdown {
		var got *flow.ShutdownError
		switch {
		case !cutOff && !e.late && err != nil:
			o.failf("Shutdown: %v, want nil", err)
		case (cutOff || e.late) && (!errors.As(err, &got) || got.CutOff > e.cutOff.CutOff || got.CutOff < e.cutOff.CutOff-e.slack ||
			e.slack == 0 && (got.Seq != e.cutOff.Seq || got.Key != e.cutOff.Key) || !errors.Is(err, e.cutOff.Err)):
			o.failf("Shutdown: %v (key %q), want %v", err, cutKeyOf(got), &e.cutOff)
		}
	}
	if want := e.begun && o.Observer; (o.seen.told == 1) != want || o.seen.told > 1 {
		o.failf("%d times EventShutdown, want it: %v", o.seen.told, want)
	}
}

func cutKeyOf(e *flow.ShutdownError) string {
	if e == nil {
		return ""
	}
	return e.Key
}
