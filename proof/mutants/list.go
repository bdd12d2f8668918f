package main

import "slices"

// mutants are the bugs: what a concurrent pipeline gets wrong, and what this one once got wrong.
var mutants = slices.Concat(orderBugs, slotBugs, wakeBugs, endBugs, boundBugs, onceBugs)

// orderBugs break who runs after whom.
var orderBugs = []mutant{
	bug("two runners on one lane", "KeyedFIFORunsOneMessageOfAKey|FIFORunsOneMessageOfAStream",
		"lane.go", "	l.tail = t\n	l.n++\n	return false, \"\"", "	l.tail = t\n	l.n++\n	return l.n == 3, \"\""),
	bug("lane evicted while in use", "KeyedFIFORunsOneMessageOfAKey|ScopeFlow",
		"lane.go", "(l.hash != hash || l.name != name)", "(l.hash != hash || l.name != name || l.n == 1)"),
	bug("lane that gives up its last keeps it as its tail", "PlaceAfterACancelledWaiters",
		"lane.go", "			l.tail = t.prev\n", "			_ = t.prev\n"),
	bug("a turn that comes to a waiter who gives up is lost", "CancelledWaiterGivesUp|TurnIsNotLost",
		"order.go", "	case <-ctx.Done():\n		w.release()\n", "	case <-ctx.Done():\n"),
	bug("a direct caller's turn is released twice", "FIFOCalledDirectly",
		"order.go", "	if w.over.Swap(true) {", "	if w.over.Swap(true) && false {"),
	bug("a place that is given up is still counted", "CancelledPlaceIsNoLongerCounted",
		"lane.go", "	case l.head != t:\n		tb.bounds.unreserve()\n", "	case l.head != t:\n"),
	bug("order bound off by one", "AdmitRefusesWhenCalled|Resolver|Model",
		"lane.go", "		if n >= limit {", "		if n > limit {"),
	bug("key bound off by one", "Model|AdmitRefusesWhenCalled",
		"lane.go", "l.n-1 >= kc", "l.n-1 > kc"),
}

// slotBugs break how many run.
var slotBugs = []mutant{
	bug("slot leaked when cancel races admit", "TurnThatComesAfterClose",
		"gate.go", "	if !a.run() {\n		a.giveBack()\n", "	if !a.run() {\n"),
	bug("slot released twice", "ReleaseOfAnAdmissionTwice",
		"gate.go", "	if over {\n		return\n	}\n	a.giveBack()", "	_ = over\n	a.giveBack()"),
	bug("slot counted until after its release", "NoSlotIsCountedTwice",
		"pressure.go", "		p.inUse.Add(-1) // before the release: whoever gets the slot must not see it counted twice\n		p.slots.Release(1)\n",
		"		p.slots.Release(1)\n		p.inUse.Add(-1)\n"),
	bug("queue bound off by one", "QueueCapacityIsCounted",
		"pressure.go", "		if n >= limit {", "		if n > limit {"),
}

// wakeBugs leave somebody asleep.
var wakeBugs = []mutant{}

// endBugs end a stream, or the Flow, in the wrong way.
var endBugs = []mutant{
	bug("an Observer that hangs is not waited for", "Shutdown|Model",
		"shutdown.go", "	c.closing, c.telling = true, c.began != nil\n", "	c.closing, c.telling = true, false\n"),
	bug("what still runs when Shutdown returns is nobody's", "Shutdown|Model",
		"shutdown.go", "	if c.failure == nil && !c.isIdle() {", "	if c.failure == nil && c.isIdle() {"),
	bug("a refused message in OnFailure is not cut off", "Shutdown",
		"stream.go", "m.runs() || m.asks() || seq", "m.runs() || seq"),
	bug("shutdown that misses a starting stream", "NobodyEntersUnseen",
		"shutdown.go", "	defer c.mu.Unlock()\n	if c.closing {\n		return false\n	}\n	c.comers++\n", `	closing := c.closing
	c.mu.Unlock()
	if closing {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.comers++
`),
	bug("the last to leave does not tell the shutdown", "TestDrainRunsAll|TestShutdown",
		"shutdown.go", "	if c.closing && len(c.members) == 0 && !c.telling {", "	if c.closing && len(c.members) == 1 && !c.telling {"),
}

// boundBugs break the retry budget, the attempt's time and the bytes.
var boundBugs = []mutant{
	bug("room for bytes that came before the wait is not seen", "ByteWindowShowsRoom",
		"byte_window.go", "	return !s.mayRead()\n", "	return true\n"),
	bug("bytes that come free wake nobody", "MaxPendingBytes|ByteWindow",
		"byte_window.go", "	case total < w.bound && before >= w.bound:", "	case total < 0:"),
	bug("who is woken for bytes wakes nobody else", "ByteWindow",
		"byte_window.go", "	if w.first != nil && w.total.Load() < w.bound {", "	if w.first != nil && w.total.Load() < 0 {"),
	bug("a stream that falls below its share is not woken", "MaxPendingBytes|ByteWindow",
		"byte_window.go", "	if s.waiting.Load() && s.mayRead() {", "	if s.waiting.Load() && s.mayRead() && total < 0 {"),
	bug("a stream whose share grows is not woken", "MaxPendingBytes|ByteWindow",
		"byte_window.go", "	w.members.Add(-1)\n	if w.waits.Load() > 0 {", "	w.members.Add(-1)\n	if w.waits.Load() < 0 {"),
	bug("a finish from above twice the bound wakes one", "ByteWindow",
		"byte_window.go", "	case total-w.bound < w.bound && before", "	case total >= w.bound && total-w.bound < w.bound && before"),
	bug("bytes bound off by one", "Bytes|Model",
		"byte_window.go", "	if total < w.bound {\n", "	if total <= w.bound {\n"),
	bug("a share of the bytes is the whole bound", "ByteWindow|MaxPendingBytes",
		"byte_window.go", "(w.bound-1)/max(1, w.members.Load()) + 1", "w.bound"),
	bug("shares of the bytes have no bound together", "ByteWindow|MaxPendingBytes",
		"byte_window.go", "own < w.share() && total-w.bound < w.bound\n", "own < w.share()\n"),
	bug("budget that never empties", "Budget|Model",
		"retry.go", "return max(t-1, 0)", "return max(t, 0)"),
	bug("budget that owes tokens", "Budget",
		"retry.go", "return max(t-1, 0)", "return t - 1"),
	bug("budget that saves more than its tokens", "Budget|Model",
		"retry.go", "return min(t+b.opts.TokenRatio, b.opts.MaxTokens)", "return t + b.opts.TokenRatio"),
	bug("budget's threshold off by one", "Budget|Model",
		"retry.go", "return max(t-1, 0) }) > b.opts.MaxTokens/2", "return max(t-1, 0) }) >= b.opts.MaxTokens/2"),
	bug("once: what is not worth retrying takes a token", "Budget|Model",
		"retry.go", "	if last && e.budget == nil || !e.retry.worthRetrying(f) {", "	if last && e.budget == nil || !e.retry.worthRetrying(f) && (e.budget == nil || e.budget.take() || true) {"),
	bug("the last attempt takes no token", "Budget|Model",
		"retry.go", "	if last && e.budget == nil || ", "	if last || "),
	bug("an attempt's time is never over", "AttemptTimeout|Model",
		"retry.go", "	if e.retry.AttemptTimeout <= 0 {", "	if e.retry.AttemptTimeout >= 0 {"),
	bug("an attempt's end loses its cause", "AttemptTimeout|Model",
		"attempt_context.go", "context.WithDeadlineCause(c.parent, c.deadline, ErrAttemptTimeout)", "context.WithDeadline(c.parent, c.deadline)"),
	bug("nil after the attempt's time is a failure", "AttemptTimeout|Model",
		"retry.go", "	defer ctx.end()\n	return e.handler(ctx, m)\n", "	defer ctx.end()\n	if err := e.handler(ctx, m); err != nil {\n		return err\n	}\n	return context.Cause(ctx)\n"),
	bug("an own error of a handler is taken for its context's end", "ErrorUnderAContext",
		"retry.go", "return code == codes.Canceled", "return code != codes.Canceled"),
	bug("a caller asks for ever", "CallerWhoseWaitIsOver",
		"pressure.go", "	p.asking.Add(-1)\n", ""),
}

// onceBugs were in the library.
var onceBugs = []mutant{
	bug("once: a panic between two messages is taken for one's", "CrashOfRecv|MethodsPanic",
		"reader.go", "	case inRecv:\n		rd.ended(err)\n	case inKey:\n", "	case inNone:\n		rd.ended(err)\n	case inKey, inRecv:\n"),
	bug("once: panic(nil) that recover does not show", "PanicWithNil",
		"worker.go", "		if !normal { // as in recovered\n", "		if !normal && errGoexit == nil {\n"),
	bug("once: an error is asked when somebody looks", "TakenOnce",
		"cause.go", "	if f.cause != nil && f.cause.of == f {\n		return f.cause\n", "	if f.cause != nil && f.cause.of != f {\n		return f.cause\n"),
	bug("once: a typed nil is handed on", "MethodsPanic",
		"cause.go", "	if !readable || !sound || conduct == conductUnsafe {\n", "	if !sound {\n"),
	bug("once: a negative delay", "DelayIsNeverNegative",
		"retry.go", "	if d > 0 && o.Multiplier > 1 {", "	if o.Multiplier > 1 {"),
	bug("once: the ErrorInfo of a flow behind this one stands for this one's", "ErrorInfoOfAFlowBehind",
		"status.go", "(d.UnmarshalTo(&info) != nil || info.GetDomain() == errorDomain)", "d.UnmarshalTo(&info) != nil"),
	bug("once: Admit let in after Close", "TurnThatComesAfterClose",
		"gate.go", "	a.running = !a.refused\n	return a.running\n", "	a.running = true\n	return true\n"),
	bug("once: a Shutdown returns before another has counted", "AllShutdownsReturn",
		"shutdown.go", "		<-c.judged\n", "		_ = c.judged\n"),
}
