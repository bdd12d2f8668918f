package modeltest_test

import (
	"math/bits"
	"slices"
	"time"

	"example.com/flow"
)

// The oracle's part about batches: which messages may be in a call together, and what comes of a call's end. Which of those
// that may be in it are, it follows, as it does for slots.

// modelCall is a call of the handler with a batch, or what is left of one between two of its parts.
type modelCall struct {
	list     []*modelMessage
	parts    [][]*modelMessage // to be called next, in the same slot; the last comes first
	began    time.Duration
	cause    error // why its context has ended, if it has
	returned bool

	isolating       bool             // it is a part of one that has failed as a whole for the last time
	failures, limit int              // of parts, in a row
	kind            flow.FailureKind // with which it has failed as a whole
	delay           time.Duration    // before what it holds is called again
}

// modelGroup is a batch that has failed as a whole, and waits to be called again as it is.
type modelGroup struct {
	list []*modelMessage
	due  time.Duration
}

// seenCall is a call that was seen to begin.
type seenCall struct {
	starts    []startOf
	accounted bool
}

func (c *modelCall) ignoresContext() bool {
	return slices.ContainsFunc(c.list, func(m *modelMessage) bool { return m.IgnoresContext })
}

// before is what m stands behind in its lane; nil: it has its turn.
func (o *oracle) before(m *modelMessage) *modelMessage {
	lane := o.lanes[m.lane]
	if i := slices.Index(lane, m); i > 0 {
		return lane[i-1]
	}
	return nil
}

// dispatchCalls accounts for the calls that were seen to begin, and may.
func (o *oracle) dispatchCalls() {
	for o.dispatchCall(true) || o.dispatchCall(false) {
	}
}

// dispatchCall accounts for a call that was seen to begin, and may; in haste only for one that may not any more when a
// stream has ended by what is refused later.
func (o *oracle) dispatchCall(haste bool) bool {
	for i := range o.seen.calls {
		c := &o.seen.calls[i]
		if c.accounted || len(o.calls) >= o.Options.Backpressure.Capacity || haste && !o.hurries(c) {
			continue
		}
		if list := o.mayCall(c); list != nil {
			o.calls = append(o.calls, o.callBegins(c, &modelCall{}, list))
			return true
		}
	}
	return false
}

// hurries says whether c has messages of a stream of which something is refused later.
func (o *oracle) hurries(c *seenCall) bool {
	return slices.ContainsFunc(c.starts, func(s startOf) bool {
		return slices.ContainsFunc(o.later, func(m *modelMessage) bool { return m.st.n == s.stream })
	})
}

// racedCalls is raced for calls.
func (o *oracle) racedCalls() {
	for i := range o.seen.calls {
		s := &o.seen.calls[i]
		var list []*modelMessage
		for _, start := range s.starts {
			m := o.find(start.stream, start.seq)
			if m != nil && m.state != runsNow && m.state != finished && start.attempt == m.attempts+1 {
				list = append(list, m)
			}
		}
		if s.accounted || len(list) < len(s.starts) {
			continue
		}
		for _, m := range list {
			o.takeOut(m)
		}
		o.calls = append(o.calls, o.callBegins(s, &modelCall{}, list))
	}
}

// mayCall returns the messages of a call if it may begin now, apart from its slot: of a group as it is, or each has its turn
// or stands directly behind one that is in the call before it.
func (o *oracle) mayCall(c *seenCall) (list []*modelMessage) {
	for _, s := range c.starts {
		m := o.find(s.stream, s.seq)
		if m == nil || m.st.over || s.attempt != m.attempts+1 {
			return nil
		}
		list = append(list, m)
	}
	if list[0].state == held {
		i := slices.IndexFunc(o.groups, func(g *modelGroup) bool { return g.due <= o.now && slices.Equal(g.list, list) })
		if i < 0 {
			return nil
		}
		o.groups = slices.Delete(o.groups, i, i+1)
		return list
	}
	for i, m := range list {
		switch before := o.before(m); {
		case m.state == ready:
		case m.state == waits && !m.isSkipped() && slices.Contains(list[:i], before):
		default:
			return nil
		}
	}
	return list
}

// callBegins begins the call of list that was seen as s.
func (o *oracle) callBegins(s *seenCall, c *modelCall, list []*modelMessage) *modelCall {
	s.accounted = true
	c.list, c.began, c.cause, c.returned = list, o.now, nil, false
	for _, m := range list {
		m.state, m.call, m.could, m.untouched = runsNow, c, 0, false
		m.attempts++
	}
	return c
}

// endCalls ends the contexts of the calls all of whose streams have ended early, of which st is one.
func (o *oracle) endCalls(st *modelStream, why error) {
	for _, c := range slices.Clone(o.calls) {
		if c.returned || !slices.ContainsFunc(c.list, func(m *modelMessage) bool { return m.st == st }) ||
			slices.ContainsFunc(c.list, func(m *modelMessage) bool { return m.st.lives() }) || c.cause != nil {
			continue
		}
		if c.cause = why; !c.ignoresContext() {
			o.callEnded(c, endByContext, nil)
		}
	}
}

// refuseLater refuses m, whose key was skipped. It does not wait for that, nor does its slot: what got that before m, should
// it end the stream, had ended it.
func (o *oracle) refuseLater(m *modelMessage) {
	m.state = leaves
	o.later = append(o.later, m)
	if o.inCallEnd == 0 {
		o.refuseAll()
	}
}

func (o *oracle) callIsOver() {
	if o.inCallEnd--; o.inCallEnd == 0 {
		o.refuseAll()
	}
}

// refuseAll refuses those of different lanes in the order in which that was seen: each ends by itself. What else is refused
// when one of them ends its stream comes after all that gets its turn by it.
func (o *oracle) refuseAll() {
	place := func(m *modelMessage) int {
		switch {
		case o.seen.asked[askedOf{m.st.n, m.seq, flow.FailureOrdering}] == 0: // its stream had ended
			return 2
		case m.Verdict == flow.FailStream:
			return 1
		}
		return 0
	}
	for len(o.later) > 0 {
		m := slices.MinFunc(o.later, func(a, b *modelMessage) int { return place(a) - place(b) })
		o.later = slices.DeleteFunc(o.later, func(other *modelMessage) bool { return other == m })
		o.dispatchCalls()
		o.inCallEnd++
		o.refuse(m, flow.FailureOrdering)
		o.inCallEnd--
	}
}

// fate is what comes of a message by the end of a call.
type fate struct {
	outcome *uint64 // nil: it is not finished
	settled bool
	next    modelState // of one that is not finished
	delay   time.Duration
}

// callEnded says that the handler has ended so: how is the call's end as a whole, and if it went well each has the ends of
// its messages, in turns.
func (o *oracle) callEnded(c *modelCall, how ending, each []ending) {
	o.inCallEnd++
	defer o.callIsOver()
	c.returned = true
	ends := make([]ending, len(c.list))
	failed, untouched := 0, 0
	for i := range ends {
		if how == endWell && len(each) > 0 {
			ends[i] = each[i%len(each)]
		}
		switch ends[i] {
		case endWell:
		case endNotAttempted:
			untouched++
		default:
			failed++
		}
	}
	if untouched == len(ends) {
		how = endNotAttempted
	}
	fates := make([]fate, len(c.list))
	var verdict callVerdict
	if how == endWell {
		if c.failures = 0; failed == 0 {
			o.give()
		}
		charged := c.isolating
		for i, m := range c.list {
			fates[i] = o.fateOf(m, ends[i], &charged)
		}
	} else {
		c.kind = flow.FailureHandlerError
		if how == endPanic || how == endGoexit {
			c.kind = flow.FailureInternal
		}
		verdict, c.delay = o.verdictOf(c, how)
		for i, m := range c.list {
			fates[i] = o.fateInWhole(c, m, verdict)
		}
	}
	o.settleCall(c, fates)
	o.goOn(c, verdict)
}

// fateOf is what comes of a message by its own end in a call that went well.
func (o *oracle) fateOf(m *modelMessage, how ending, charged *bool) fate {
	st := m.st
	switch {
	case how == endWell:
		m.state = leaves
		return fate{outcome: &st.sum.Succeeded, settled: true}
	case how == endNotAttempted:
		if m.attempts--; !st.over {
			m.untouched = true
			return fate{next: ready}
		}
		m.state = leaves
		if m.attempts == 0 {
			return fate{outcome: &st.sum.Dropped}
		}
		return fate{outcome: &st.sum.Failed}
	case !st.lives():
		m.state = leaves
		return fate{outcome: &st.sum.Failed}
	case !o.retriesCall(m.attempts, how, charged):
		return fate{outcome: &st.sum.Failed, settled: o.decide(m, flow.FailureHandlerError)}
	case st.over:
		m.state = leaves
		return fate{outcome: &st.sum.Failed}
	}
	return fate{next: parked, delay: o.delay(m.attempts)}
}

// callVerdict says what becomes of a call that has failed as a whole.
type callVerdict int

const (
	failsEach callVerdict = iota
	together
	halved
	outage
)

// verdictOf decides about a call that has failed as a whole.
func (o *oracle) verdictOf(c *modelCall, how ending) (callVerdict, time.Duration) {
	n, attempts := len(c.list), 0
	for _, m := range c.list {
		if m.st.lives() && !m.st.over {
			attempts = max(attempts, m.attempts)
		}
	}
	if c.isolating {
		if c.failures++; c.failures >= c.limit {
			return outage, 0
		}
		if n > 1 {
			return halved, 0
		}
	}
	charged := c.isolating
	if attempts > 0 && how != endPanic && how != endGoexit && o.retriesCall(attempts, how, &charged) {
		return together, o.delay(attempts)
	}
	if n > 1 && !o.Options.Batch.NoIsolation {
		c.isolating, c.failures, c.limit = true, 0, 4*bits.Len(uint(n-1))
		return halved, 0
	}
	return failsEach, 0
}

// retriesCall takes the token of a call that has failed, unless it was taken already, and says whether what failed so after
// so many attempts is tried again.
func (o *oracle) retriesCall(attempts int, how ending, charged *bool) bool {
	if how == endPermanent || how == endByCode {
		return false
	}
	most := o.Options.Retry.Budget.MaxTokens
	last := attempts >= o.Options.Retry.MaxAttempts
	if !*charged {
		o.tokens, *charged = max(o.tokens-1, 0), true
	}
	return !last && (most == 0 || o.tokens > most/2)
}

// fateInWhole is what comes of a message by the end of a call that has failed as a whole.
func (o *oracle) fateInWhole(c *modelCall, m *modelMessage, verdict callVerdict) fate {
	st := m.st
	switch {
	case !st.lives():
		m.state = leaves
		return fate{outcome: &st.sum.Failed}
	case verdict == failsEach || verdict == outage:
		return fate{outcome: &st.sum.Failed, settled: o.decide(m, c.kind)}
	case st.over:
		m.state = leaves
		return fate{outcome: &st.sum.Failed}
	}
	return fate{next: held}
}

// settleCall brings the messages of a call to what comes of them: first those that are at their end.
func (o *oracle) settleCall(c *modelCall, fates []fate) {
	list := c.list
	c.list = nil
	for i, f := range fates {
		if f.outcome != nil {
			list[i].call = nil
			o.finish(list[i], f.outcome, f.settled)
		}
	}
	var holds []*modelMessage
	for i, f := range fates {
		m := list[i]
		switch {
		case f.outcome != nil:
		case m.st.over: // by what came of another
			m.call = nil
			if m.attempts == 0 {
				o.drop(m)
			} else {
				o.finish(m, &m.st.sum.Failed, false)
			}
		case f.next == held:
			m.state = held
			holds = append(holds, m)
		case f.next == parked && f.delay > 0:
			m.call = nil
			m.state, m.due = parked, o.now+f.delay
		default:
			m.call = nil
			o.resume(m)
		}
	}
	c.list = holds
}

// resume has m, which is neither waiting for time nor in a call, wait for its turn.
func (o *oracle) resume(m *modelMessage) {
	if m.state = waits; o.before(m) == nil {
		o.turn(m)
	}
}

// goOn has what c still holds be called again, and gives its slot back if nothing is left.
func (o *oracle) goOn(c *modelCall, verdict callVerdict) {
	holds := c.list
	c.list = nil
	switch {
	case verdict == outage:
		for _, part := range slices.Backward(c.parts) {
			for _, m := range part {
				m.call = nil
				o.finish(m, &m.st.sum.Failed, o.decide(m, c.kind))
			}
		}
		c.parts = nil
	case len(holds) == 0:
	case verdict == together:
		for _, m := range holds {
			m.call = nil
		}
		o.groups = append(o.groups, &modelGroup{list: holds, due: o.now + c.delay})
	case verdict == halved:
		half := (len(holds) + 1) / 2
		if half < len(holds) {
			c.parts = append(c.parts, holds[half:])
		}
		c.parts = append(c.parts, holds[:half:half])
	}
	for len(c.parts) > 0 {
		last := len(c.parts) - 1
		part := c.parts[last]
		c.parts = c.parts[:last]
		list := o.screen(c, part)
		if len(list) == 0 {
			continue
		}
		if s := o.seenCallOf(list); s != nil {
			o.callBegins(s, c, list)
			return
		}
		if len(o.later) > 0 { // one of those has ended a stream before the call began
			c.parts = append(c.parts, list)
			o.refuseAll()
			continue
		}
		o.failf("no call of what is left of one that has failed: %v", runsOf(list))
	}
	o.calls = slices.DeleteFunc(o.calls, func(other *modelCall) bool { return other == c })
}

// screen is what of part may still run: not what stands behind a message that is tried again by itself, and nothing of a
// key that was skipped.
func (o *oracle) screen(c *modelCall, part []*modelMessage) (list []*modelMessage) {
	for _, m := range part {
		switch before := o.before(m); {
		case m.st.over: // all streams end, and this one is about to
			m.call = nil
		case before != nil && before.call != c:
			m.state, m.call = waits, nil
		case m.isSkipped():
			m.call = nil
			o.refuseLater(m)
		default:
			list = append(list, m)
		}
	}
	return list
}

// seenCallOf is the call of list that was seen to begin, and is not accounted for; nil: there is none.
func (o *oracle) seenCallOf(list []*modelMessage) *seenCall {
	for i := range o.seen.calls {
		if s := &o.seen.calls[i]; !s.accounted && slices.EqualFunc(s.starts, list, func(s startOf, m *modelMessage) bool {
			return s.run == run{m.st.n, m.seq} && s.attempt == m.attempts+1
		}) {
			return s
		}
	}
	return nil
}

func runsOf(list []*modelMessage) (ids []run) {
	for _, m := range list {
		ids = append(ids, run{m.st.n, m.seq})
	}
	return ids
}

// mayBegin says whether m has its turn, or would be in a batch with those before it that has room for all of them.
func (o *oracle) mayBegin(m *modelMessage) bool {
	for m.state == waits && !m.isSkipped() {
		if m = o.before(m); m == nil {
			return false
		}
	}
	return m.state == ready
}

// takeOut has m, whose stream has ended, be held no longer.
func (o *oracle) takeOut(m *modelMessage) {
	is := func(other *modelMessage) bool { return other == m }
	for _, g := range o.groups {
		g.list = slices.DeleteFunc(g.list, is)
	}
	o.groups = slices.DeleteFunc(o.groups, func(g *modelGroup) bool { return len(g.list) == 0 })
	for _, c := range o.calls {
		for i := range c.parts {
			c.parts[i] = slices.DeleteFunc(c.parts[i], is)
		}
	}
	m.call = nil
}

// compareCalls says what is wrong about the calls that were seen to begin, and those that were not.
func (o *oracle) compareCalls() {
	for _, c := range o.seen.calls {
		if !c.accounted {
			o.failf("a call began that may not: %+v", c.starts)
		}
	}
	free := o.Options.Backpressure.Capacity - len(o.calls)
	if free < 0 {
		o.failf("%d calls, which is more than the capacity", len(o.calls))
	}
	if free <= 0 {
		return
	}
	for _, g := range o.groups {
		if g.due <= o.now {
			o.failf("%v are not called again although there is a slot", runsOf(g.list))
		}
	}
	lacking, startable, read := []*modelMessage(nil), 0, false
	for m := range o.pending() {
		if m.state == ready {
			lacking = append(lacking, m)
		}
		if o.mayBegin(m) {
			// In a shared lane one between them may have left since, which the batch that forms does not notice.
			if m.state == ready || o.Options.Ordering.Scope == flow.ScopeStream {
				startable++
			}
			read = read || o.seen.inRecv[m.st.n] && !m.st.eof && !m.st.over && !m.st.stopping
		}
	}
	b := o.Options.Batch
	most := b.MaxMessages
	if most == 0 {
		most = 256
	}
	for _, m := range lacking {
		if m.could == 0 {
			m.could = o.now + 1
		}
		switch {
		case b.Linger == 0, !read, m.attempts > 0, m.untouched, startable >= most, o.now >= m.could-1+b.Linger:
			o.failf("%v waits although it has its turn and there is a slot", run{m.st.n, m.seq})
		}
	}
}
