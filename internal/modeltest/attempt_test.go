package modeltest_test

import (
	"reflect"
	"time"

	"example.com/flow"
)

// The oracle's part about the attempts of a message: their contexts, their ends and what comes of those.

func (o *oracle) start(m *modelMessage, s startOf) {
	o.seen.starts[s] = true
	m.state = runsNow
	m.attempts++
	m.began, m.cause = o.now, nil
}

// timed says whether the time of m's attempt runs.
func (o *oracle) timed(m *modelMessage) bool {
	return o.Options.Retry.AttemptTimeout > 0 && m.state == runsNow && m.cause == nil && !o.Batches
}

// contextEnded says that the context of m, which runs, has ended: if it had not before, why is the cause, and a handler
// that heeds it returns.
func (o *oracle) contextEnded(m *modelMessage, why error) {
	if m.cause != nil {
		return
	}
	if m.cause = why; !m.IgnoresContext {
		o.ended(m, endByContext)
	}
}

// ended says that m's handler has ended so.
func (o *oracle) ended(m *modelMessage, how ending) {
	st := m.st
	if o.instant++; m.began < o.now {
		o.instant = 0
	}
	switch {
	case how == endWell:
		o.give()
		o.finish(m, &st.sum.Succeeded, true)
	case how == endByContext:
		o.finish(m, &st.sum.Failed, false)
	case how == endPanic, how == endGoexit:
		o.finish(m, &st.sum.Failed, o.decide(m, flow.FailureInternal))
	case !st.lives() && (how == endContextError || how == endByTimeout && m.seq%2 == 0):
		// DeadlineExceeded may be the stream's, and so takes no token; ErrAttemptTimeout is the attempt's. Which of them the
		// handler returns goes by the message: see ending.returned.
		o.finish(m, &st.sum.Failed, false)
	case how == endPermanent, how == endByCode, !o.retries(m):
		o.finish(m, &st.sum.Failed, o.decide(m, flow.FailureHandlerError))
	case st.over:
		o.finish(m, &st.sum.Failed, false)
	default:
		delay := o.delay(m.attempts)
		if m.state, m.due = parked, o.now+delay; delay == 0 {
			m.state = ready
		}
	}
}

// takesNoTime says that attempts may soon have taken no time for so long that two messages come to one worker: if the first of
// them stands still the other waits for a moment, of which the oracle knows nothing.
func (o *oracle) takesNoTime() bool {
	n := o.instant
	for m := range o.pending() {
		if m.state == runsNow && m.began == o.now {
			n++
		}
	}
	return n > 8 && !o.Batches
}

// delay is the time before the try after the n-th.
func (o *oracle) delay(n int) time.Duration {
	r := o.Options.Retry
	delay := r.Backoff
	for range n - 1 {
		delay *= time.Duration(max(1, r.Multiplier))
	}
	if r.MaxBackoff > 0 {
		delay = min(delay, r.MaxBackoff)
	}
	return delay
}

// give puts tokens back for a success.
func (o *oracle) give() {
	b := o.Options.Retry.Budget
	o.tokens = min(o.tokens+b.TokenRatio, b.MaxTokens)
}

// retries takes the token of an attempt of m that has failed and is worth retrying, and says whether it will be retried.
func (o *oracle) retries(m *modelMessage) bool {
	o.tokens = max(o.tokens-1, 0)
	most := o.Options.Retry.Budget.MaxTokens
	return m.attempts < o.Options.Retry.MaxAttempts && (most == 0 || o.tokens > most/2)
}

func (o *oracle) compareRunning() {
	running := map[run]error{}
	for _, c := range o.calls {
		for _, m := range c.list {
			m.cause = c.cause
		}
	}
	for m := range o.pending() {
		if m.state == runsNow {
			running[run{m.st.n, m.seq}] = m.cause
		}
	}
	for id, want := range running {
		want, _ := want.(*flow.Failure)
		got, _ := o.seen.running[id].(*flow.Failure)
		if want != nil && got != nil && got.Kind == want.Kind {
			running[id] = got // which failure of that kind it is, simulation.checkCauses looks at
		}
	}
	if !reflect.DeepEqual(running, o.seen.running) {
		o.failf("running, and why the contexts have ended: %v, want %v", o.seen.running, running)
	}
}
