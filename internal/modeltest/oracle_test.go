package modeltest_test

import (
	"context"
	"fmt"
	"slices"
	"time"

	"example.com/flow"
)

// oracle is the plain model of a Flow: it says what a move must lead to. Where the contract leaves a choice (which of
// those that wait gets the free slot) it follows what was seen, after checking that it was one of the legal choices.
type oracle struct {
	script
	now       time.Duration
	streams   []*modelStream
	lanes     map[string][]*modelMessage // those that wait for a turn and, first, the one whose turn it is
	end       modelEnd
	tokens    float64 // of the retry budget
	instant   int     // attempts that took no time, one after the other
	seen      *sight  // what the last move led to
	calls     []*modelCall
	groups    []*modelGroup
	inCallEnd int             // callEnded runs, so often
	later     []*modelMessage // refused by what came of a call
	asked     []askedOf       // of OnFailure, that it must have led to
	swept     bool            // the move ended a stream
	wrong     []string
}

type modelStream struct {
	n         int
	all       []*modelMessage
	pending   int
	skipped   map[string]uint64
	failure   flow.FailureKind // the first that ended it
	cancelled bool             // Run's own context has ended
	over      bool             // what does not run will not
	stopping  bool             // a shutdown reads it no further
	inRecv    bool             // or waits for room, if that is missing
	reading   bool             // it was in recv when the simulation last came to rest, and has been ever since
	eof       bool
	done      bool
	used      time.Duration
	notSure   uint64 // of the dropped, in this move
	sum       flow.Summary
}

type modelMessage struct {
	item
	st       *modelStream
	seq      uint64
	lane     string // "": it has no order
	state    modelState
	attempts int
	due      time.Duration
	began    time.Duration // the last attempt
	cause    error         // why the last attempt's context has ended, if it has

	call      *modelCall    // of a batch, that it is in
	could     time.Duration // when it could first have begun, and 1; 0: not yet
	untouched bool          // it came back from a call that did not attempt it
}

type modelState int

const (
	waits modelState = iota // for its turn
	ready                   // it has its turn and lacks a slot
	runsNow
	leaves // its handler has ended, or it was refused: its slot may be another's already
	parked // until its next try is due
	held   // in a batch, between two calls
	finished
)

// load is what bounds are checked against.
type load struct{ running, lacking int }

func (o *oracle) load() (l load) {
	for m := range o.pending() {
		switch m.state {
		case runsNow:
			l.running++
		case ready:
			l.lacking++
		}
	}
	if o.Batches {
		l.running = len(o.calls)
	}
	return l
}

func (o *oracle) pending() func(func(*modelMessage) bool) {
	return func(yield func(*modelMessage) bool) {
		for _, st := range o.streams {
			for _, m := range st.all {
				if m.state != finished && !yield(m) {
					return
				}
			}
		}
	}
}

func (o *oracle) failf(format string, args ...any) {
	o.wrong = append(o.wrong, fmt.Sprintf(format, args...))
}

func (o *oracle) limited() bool {
	return o.Options.Backpressure.Capacity > 0 && o.Options.Backpressure.Policy <= flow.BackpressureHardReject
}

func (o *oracle) open() {
	st := &modelStream{n: len(o.streams), skipped: map[string]uint64{}, used: o.now}
	o.streams = append(o.streams, st)
	if o.end.begun {
		st.failure, st.over, st.done = flow.FailureShutdown, true, true
		return
	}
	st.inRecv = true
}

func (st *modelStream) lives() bool { return st.failure == flow.FailureNone && !st.cancelled }

func (o *oracle) maxPending() int {
	if o.Options.MaxPending > 0 {
		return o.Options.MaxPending
	}
	return 1024
}

// room says whether st may be read.
func (o *oracle) room(st *modelStream) bool {
	return st.pending < o.maxPending() && o.roomForBytes(st)
}

// roomForBytes says whether st may be read as far as MaxPendingBytes goes: below it, or at it below the stream's share, or
// at twice it with nothing.
func (o *oracle) roomForBytes(st *modelStream) bool {
	var all, own int64
	for m := range o.pending() {
		all += int64(m.Bytes)
		if m.st == st {
			own += int64(m.Bytes)
		}
	}
	limit := o.Options.MaxPendingBytes
	return limit <= 0 || all < limit || own == 0 || all < 2*limit && own*int64(len(o.underWay())) < limit
}

func (m *modelMessage) isSkipped() bool {
	from, ok := m.st.skipped[m.Key]
	return ok && m.seq > from
}

// turn says what becomes of m now that its turn has come.
func (o *oracle) turn(m *modelMessage) {
	switch {
	case m.state == runsNow: // it raced with the end of the Flow
	case m.st.over:
		o.drop(m)
	case m.isSkipped() && o.Batches:
		o.refuseLater(m)
	case m.isSkipped():
		o.dispatchOf(m.st) // what got the slot before m, should it end the stream, had ended it
		o.refuse(m, flow.FailureOrdering)
	default:
		m.state = ready
	}
}

func (o *oracle) refuse(m *modelMessage, kind flow.FailureKind) {
	o.finish(m, &m.st.sum.Rejected, o.decide(m, kind))
}

// decide asks OnFailure about m, and ends the stream if that must be. settled: m was skipped.
func (o *oracle) decide(m *modelMessage, kind flow.FailureKind) (settled bool) {
	m.state = leaves // nobody else ends it
	verdict := flow.FailStream
	if o.OnFailure && m.st.lives() {
		o.asked = append(o.asked, askedOf{m.st.n, m.seq, kind})
		verdict = m.Verdict
	}
	if from, ok := m.st.skipped[m.Key]; verdict == flow.SkipKey && m.lane != "" && (!ok || m.seq < from) {
		m.st.skipped[m.Key] = m.seq
	}
	settled = verdict != flow.FailStream
	if (!settled || flow.IsTerminal(kind)) && !m.st.cancelled {
		o.fail(m.st, kind)
	}
	return settled
}

// finish counts m and lets the next of its lane go on.
func (o *oracle) finish(m *modelMessage, outcome *uint64, settled bool) {
	st := m.st
	m.state = finished
	*outcome++
	st.pending--
	st.used = o.now
	st.sum.Retried += uint64(max(0, m.attempts-1))
	if !settled {
		st.sum.Unsettled = append(st.sum.Unsettled, m.seq)
		slices.Sort(st.sum.Unsettled)
	}
	lane := o.lanes[m.lane]
	at := slices.Index(lane, m)
	if at < 0 {
		return
	}
	lane = slices.Delete(lane, at, at+1)
	if o.lanes[m.lane] = lane; len(lane) == 0 {
		delete(o.lanes, m.lane)
	} else if next := lane[0]; at == 0 && (!o.Batches || next.state == waits || next.state == parked && next.isSkipped()) {
		o.turn(next)
	}
}

// fail ends st with kind unless it has failed before.
func (o *oracle) fail(st *modelStream, kind flow.FailureKind) {
	if st.failure != flow.FailureNone || st.done {
		return
	}
	st.failure = kind
	why := error(&flow.Failure{Kind: kind})
	if st.cancelled {
		why = context.Canceled
	}
	o.sweep(st)
	if o.Batches {
		o.endCalls(st, why)
		return
	}
	for _, m := range st.all {
		if m.state == runsNow {
			o.contextEnded(m, why)
		}
	}
}

// sweep ends all messages of st that do not run, now and for good.
func (o *oracle) sweep(st *modelStream) {
	o.swept = true
	st.over = true
	for _, m := range slices.Backward(st.all) { // the first of a lane last, so that no turn comes
		switch m.state {
		case waits, ready:
			if m.attempts == 0 {
				o.drop(m)
				break
			}
			fallthrough
		case parked, held:
			o.takeOut(m)
			o.finish(m, &st.sum.Failed, false)
		}
	}
}

// drop ends m, which never ran. A message that follows one whose key was skipped may have got its turn by the same end before
// its stream noticed: in another stream's lane, or when the stream's own context ended. Then it is rejected.
func (o *oracle) drop(m *modelMessage) {
	if m.attempts > 0 { // it was tried in a batch
		o.finish(m, &m.st.sum.Failed, false)
		return
	}
	if m.isSkipped() && (m.st.cancelled || o.Options.Ordering.Scope == flow.ScopeFlow) {
		a := askedOf{m.st.n, m.seq, flow.FailureOrdering}
		if o.seen.asked[a] > 0 {
			o.asked = append(o.asked, a)
			o.finish(m, &m.st.sum.Rejected, m.Verdict != flow.FailStream)
			return
		}
		m.st.notSure++
	}
	o.finish(m, &m.st.sum.Dropped, false)
}

// followRejected finds out which of the dropped ones count as rejected. OnFailure was not asked about them.
func (o *oracle) followRejected() {
	more := o.seen.stats.Total.Rejected
	for _, st := range o.streams {
		more -= st.sum.Rejected
	}
	for _, st := range o.streams {
		n := min(more, st.notSure)
		if got := o.seen.returned[st.n]; got != nil {
			n = min(n, got.sum.Rejected-st.sum.Rejected)
		}
		more -= n
		st.sum.Rejected += n
		st.sum.Dropped -= n
		st.notSure = 0
	}
}
