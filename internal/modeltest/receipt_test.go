package modeltest_test

import (
	"fmt"

	"example.com/flow"
)

// deliver is told what recv was given to return.
func (o *oracle) deliver(st *modelStream, it item) {
	st.reading = false
	if it.Last || st.over || st.stopping {
		st.inRecv = false // for good
	}
	switch {
	case it.Last: // counts even when what recv still returns is nobody's
		o.sourceEnded(st, it.How)
	case st.inRecv:
		o.receive(st, it)
	}
}

func (o *oracle) sourceEnded(st *modelStream, how ending) {
	switch how {
	case endWell:
		st.eof = true
	case endContextError:
		o.fail(st, flow.FailureContextCancelled)
	default:
		o.fail(st, flow.FailureInternal)
	}
}

func (o *oracle) receive(st *modelStream, it item) {
	st.used = o.now
	m := &modelMessage{item: it, st: st, seq: st.sum.Received + 1}
	st.sum.Received++
	st.pending++
	st.all = append(st.all, m)
	m.lane = o.lane(m)
	if kind := o.refusal(m); kind != flow.FailureNone {
		o.refuse(m, kind)
		return
	}
	if m.lane == "" {
		o.turn(m)
		return
	}
	o.lanes[m.lane] = append(o.lanes[m.lane], m)
	if o.lanes[m.lane][0] == m {
		o.turn(m)
	}
}

// refusal is the kind of failure with which m is refused on receipt, if it is.
func (o *oracle) refusal(m *modelMessage) flow.FailureKind {
	kinds := o.refusals(m, o.load())
	for _, kind := range kinds {
		if o.seen.asked[askedOf{m.st.n, m.seq, kind}] > 0 {
			return kind
		}
	}
	if len(kinds) > 0 {
		return kinds[0]
	}
	return flow.FailureNone
}

// lane is the name of m's lane; "" if it has no order.
func (o *oracle) lane(m *modelMessage) string {
	scope := "flow"
	if o.Options.Ordering.Scope == flow.ScopeStream {
		scope = fmt.Sprint(m.st.n)
	}
	switch {
	case o.Options.Ordering.Mode == flow.OrderingNone, o.Options.Ordering.UnorderedEmptyKey && m.Key == "":
		return ""
	case o.Options.Ordering.Mode == flow.OrderingFIFO:
		return scope
	}
	return scope + "/" + m.Key
}

// refusals are the kinds of failure with which m may be refused on receipt; none: it must be accepted.
func (o *oracle) refusals(m *modelMessage, l load) (kinds []flow.FailureKind) {
	p, ord := o.Options.Backpressure, o.Options.Ordering
	lane := o.lanes[m.lane]
	first := m.lane == "" || len(lane) == 0
	exhausted := o.limited() && l.running >= p.Capacity
	switch {
	case m.isSkipped():
	case p.Policy == flow.BackpressureHardReject && exhausted,
		first && p.QueueCapacity > 0 && exhausted && l.lacking >= p.QueueCapacity:
		kinds = append(kinds, flow.FailureBackpressure)
	}
	behind := 0
	for _, lane := range o.lanes {
		if ord.Scope == flow.ScopeFlow || lane[0].st == m.st {
			behind += max(0, len(lane)-1)
		}
	}
	if !first && (ord.Capacity > 0 && behind >= ord.Capacity || ord.KeyCapacity > 0 && len(lane)-1 >= ord.KeyCapacity) {
		kinds = append(kinds, flow.FailureOrdering)
	}
	return kinds
}
