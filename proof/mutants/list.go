package main

import "slices"

// mutants are the bugs: what a concurrent pipeline gets wrong, and what this one once got wrong.
var mutants = slices.Concat(orderBugs, slotBugs, wakeBugs, endBugs, boundBugs, leaseBugs, spreadBugs, onceBugs)

// orderBugs break who runs after whom.
var orderBugs = []mutant{
	bug("no ordering wait", "KeyedFIFORunsOneMessageOfAKey|FIFORunsOneMessageOfAStream",
		"turns.go", "	if m.hash, ordered = s.place(m.key); !ordered {", "	if m.hash, ordered = s.place(m.key); !ordered || true {"),
	bug("two runners on one lane", "KeyedFIFORunsOneMessageOfAKey|FIFORunsOneMessageOfAStream",
		"lane.go", "	l.tail = t\n	l.n++\n	return false, \"\"", "	l.tail = t\n	l.n++\n	return l.n == 3, \"\""),
	bug("lane evicted while in use", "KeyedFIFORunsOneMessageOfAKey|ScopeFlow",
		"lane.go", "(l.hash != hash || l.name != name)", "(l.hash != hash || l.name != name || l.n == 1)"),
	bug("lane that gives up its last keeps it as its tail", "PlaceAfterACancelledWaiters",
		"lane.go", "			l.tail = t.prev\n", "			_ = t.prev\n"),
	bug("another stream's turn is forgotten", "ScopeFlow",
		"carry.go", "	if other != nil {\n		other.turnCame()\n	}\n", "	_ = other\n"),
	bug("a turn that comes to a waiter who gives up is lost", "CancelledWaiterGivesUp|TurnIsNotLost",
		"order.go", "	case <-ctx.Done():\n		w.release()\n", "	case <-ctx.Done():\n"),
	bug("a direct caller's turn is released twice", "FIFOCalledDirectly",
		"order.go", "	if w.over.Swap(true) {", "	if w.over.Swap(true) && false {"),
	bug("retry lets the key go on", "AllAttemptsOfAMessageComeBefore|MessageWaitingForItsNextTry",
		"park.go", "	s.restLocked(m)\n	m.pressured = false\n", `	s.restLocked(m)
	m.pressured = false
	if m.lane != nil {
		if next := s.leaveLocked(m); next != nil {
			if mine, ok := next.owner.(*message[T]); ok && mine.s == s {
				s.turnLocked(mine)
			}
		}
	}
`),
	bug("a place that is given up is still counted", "CancelledPlaceIsNoLongerCounted",
		"lane.go", "	case l.head != t:\n		tb.bounds.unreserve()\n", "	case l.head != t:\n"),
	bug("order bound off by one", "AdmitRefusesWhenCalled|Resolver|Model",
		"lane.go", "		if n >= limit {", "		if n > limit {"),
	bug("key bound off by one", "Model|AdmitRefusesWhenCalled",
		"lane.go", "l.n-1 >= kc", "l.n-1 > kc"),
	bug("a message used again remembers the last one's journey", "MaxAttemptsCounts|ReplayingTheEvents|Model",
		"message.go", "	m.journey = journey[T]{}\n", ""),
}

// slotBugs break how many run.
var slotBugs = []mutant{
	bug("slot not released on panic", "WedgesNothing",
		"carry.go", "				c.s.crashed(m, err)\n", "				c.s.crashed(m, err)\n				c.slot = false\n"),
	bug("slot not released on Goexit", "WedgesNothing|EverythingMayExit",
		"carry.go", "		again := *c\n", "		again := carrier[T]{s: c.s, m: c.m}\n"),
	bug("panic not recovered", "WedgesNothing",
		"carry.go", "			crash = newPanicError(recover())\n", "			crash = newPanicError(nil)\n"),
	bug("slot leaked when cancel races admit", "TurnThatComesAfterClose",
		"gate.go", "	if !a.run() {\n		a.giveBack()\n", "	if !a.run() {\n"),
	bug("slot leaked when a worker comes too late", "SlotThatComesTooLate",
		"worker.go", "	case !found:\n		c.slot = false\n		s.slots--\n		s.r.gate.pressure.giveBack()\n", "	case !found:\n		c.slot = false\n"),
	bug("slot released twice", "ReleaseOfAnAdmissionTwice",
		"gate.go", "	if over {\n		return\n	}\n	a.giveBack()", "	_ = over\n	a.giveBack()"),
	bug("slot counted until after its release", "NoSlotIsCountedTwice",
		"pressure.go", "		p.inUse.Add(-1) // before the release: whoever gets the slot must not see it counted twice\n		p.slots.Release(1)\n",
		"		p.slots.Release(1)\n		p.inUse.Add(-1)\n"),
	bug("retry holds its slot", "WaitingForTheNextTryHoldsNoSlot|MessageWaitingForItsNextTry",
		"carry.go", "		m.step = stepPark\n	case stepSuccess:", "		time.Sleep(m.delay)\n		m.step = stepAttempt\n	case stepSuccess:"),
	bug("queue bound off by one", "QueueCapacityIsCounted",
		"pressure.go", "		if n >= limit {", "		if n > limit {"),
	bug("a place in the queue is kept by a caller who gave up", "CancelledPlace|CancelledAcquire|CancelledCaller",
		"pressure.go", "	p.asking.Add(-1)\n	p.lack(-1)\n	return false, err", "	p.asking.Add(-1)\n	if err == nil {\n		p.lack(-1)\n	}\n	return false, err"),
	bug("a place in the queue is kept by a stream that ended", "PlaceInTheQueueIsFreeAgain",
		"stream.go", "	s.r.gate.pressure.lack(-max(0, s.ready.n-s.coming))\n", ""),
	bug("window bound off by one", "StreamIsReadUpToMaxPendingAhead",
		"window.go", "min(uint64(s.r.maxPending)-pending, ", "min(uint64(s.r.maxPending)-pending+1, "),
	bug("an execution under a soft policy is counted for ever", "SoftAllow|Pressure",
		"carry.go", "	m.state = stateHeld\n	s.r.gate.pressure.end()\n", "	m.state = stateHeld\n"),
	bug("no worker yields to another stream", "Delays|ShareCapacity",
		"worker.go", "	return others > 0\n", "	return others < 0\n"),
}

// wakeBugs leave somebody asleep.
var wakeBugs = []mutant{
	bug("lost wakeup on the last message", "LastLookIsTaken",
		"worker.go", "			s.attended.Store(false)\n			if !s.inbox.some.Load() {\n				return\n			}\n",
		"			if !s.inbox.some.Load() {\n				s.attended.Store(false)\n				return\n			}\n"),
	bug("nobody attends to the inbox", "KeyedFIFORunsOneMessageOfAKey|Model",
		"receive.go", "			if !s.attended.Load() {\n", "			if in.seq == 1 && !s.attended.Load() {\n"),
	bug("the end of the input is not looked at", "StreamWithoutMessagesIsNil",
		"receive.go", "		s.input = true\n		s.checkDoneLocked()\n", "		s.input = true\n"),
	bug("the last finish is not looked at", "RunReturnsWhenAll",
		"carry.go", "	wake := s.roomLocked()\n	s.checkDoneLocked()\n", "	wake := s.roomLocked()\n"),
	bug("a finish makes no room", "WhatFinishesMakesRoom",
		"carry.go", "	wake := s.roomLocked()\n	s.checkDoneLocked()\n	s.mu.Unlock()\n	if wake {", "	wake := s.roomLocked()\n	s.checkDoneLocked()\n	s.mu.Unlock()\n	if wake && false {"),
	bug("a worker that yields does not line up again", "ShareCapacity|Delays",
		"carry.go", "	if c.m = m; c.back {\n		c.m = c.lineUp()\n	}\n", "	c.m = m\n"),
	bug("bytes are looked at before joining those who wait", "BytesThatComeFreeAsAReceiver",
		"window.go", `	w.mu.Lock()
	w.waiters[space] = struct{}{}
	w.waits.Store(int64(len(w.waiters)))
	w.mu.Unlock()
	return w.full()
`, `	full := w.full()
	w.mu.Lock()
	w.waiters[space] = struct{}{}
	w.waits.Store(int64(len(w.waiters)))
	w.mu.Unlock()
	return full
`),
	bug("bytes that come free wake nobody", "OneStreamsFinishLetsAnother",
		"window.go", "	if w.bytes.Add(-n) >= w.limit || w.waits.Load() == 0 {", "	if w.bytes.Add(-n) >= 0 {"),
	bug("a due try is queued and nobody comes", "BackoffIsTheDelay",
		"park.go", "	m.step = stepAttempt\n	s.pushLocked(m)\n	s.startLocked()\n", "	m.step = stepAttempt\n	s.pushLocked(m)\n"),
}

// endBugs end a stream, or the Flow, in the wrong way.
var endBugs = []mutant{
	bug("first failure overwritten", "FirstFailureEndsTheStream",
		"stream.go", "	first := s.failure == nil && !s.isDone\n", "	first := !s.isDone\n"),
	bug("committed off by one", "CommittedAndUnsettled",
		"stream.go", "		sum.Committed = sum.Unsettled[0] - 1\n", "		sum.Committed = sum.Unsettled[0]\n"),
	bug("drain that cancels", "DrainRunsAll",
		"stream.go", "	if !drain && !s.isDone {", "	if !s.isDone {"),
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
		"shutdown.go", "	delete(c.members, m)\n	if c.closing && len(c.members) == 0 {", "	delete(c.members, m)\n	if c.closing && len(c.members) == 1 {"),
	bug("a shutdown reads on", "ShutdownReadsStreamsNoFurther",
		"stream.go", "	s.closed.Store(true)\n	s.inbox.close()\n	s.stopping, s.draining = true, drain\n", "	s.stopping, s.draining = true, drain\n"),
	bug("a shutdown waits for a silent client", "TestShutdownReadsStreamsNoFurther|TestShutdown",
		"stream.go", "	if (s.input || s.stopping || s.over.Load()) && !s.isDone", "	if (s.input || s.over.Load()) && !s.isDone"),
	bug("header not sent", "HeaderIsSent",
		"stream.go", "	if s.inCall && s.ctx.Err() == nil {", "	if s.inCall && s.id > 1<<40 {"),
	{name: "header sent after the first message", run: "HeaderIsSent", edits: []edit{
		{"carry.go", "	s.sendHeader()\n", "	defer s.sendHeader()\n"},
		{"serve.go", "	s.sendHeader()\n", "	defer s.sendHeader()\n"},
	}},
	bug("recv called after its error", "RecvIsNotCalledAgain",
		"receive.go", "			in.ended(err)\n			break\n", "			in.ended(err)\n			continue\n"),
	bug("a message received after the end", "WhileItsKeyIsAskedFor",
		"inbox.go", "	if b.shut {\n		return false\n	}\n	b.received++\n", "	b.received++\n"),
	{name: "a handler starts on a dead context", run: "NoHandlerStarts", edits: []edit{
		{"carry.go", "	if s.ctx.Err() != nil { // a slot that a cancelled handler left must not start the next one", "	if s.ctx == nil {"},
		{"serve.go", "		if s.ctx.Err() != nil { // as in attempt", "		if s.ctx == nil {"},
	}},
	bug("the context ends before its cause is known", "ReasonIsSetDown",
		"stream.go", "	s.mu.Lock()\n	first := s.failure == nil && !s.isDone\n", "	s.cancel(f)\n	s.mu.Lock()\n	first := s.failure == nil && !s.isDone\n"),
	bug("a waiting try is forgotten at the end", "WaitForTheNextTryIsCutShort|CutsATrysWait",
		"stream.go", "		case m.state == stateParked:", "		case m.state == stateParked && m.parking == nil:"),
	bug("a try whose timer was stopped comes all the same", "TryWhoseStreamEnded",
		"stream.go", "			m.parking.m, m.parking = nil, nil\n", "			m.parking = nil\n"),
	bug("what lies in the inbox is forgotten at the end", "Dropped|Model",
		"stream.go", "	for m := s.arriveLocked(); m != nil; m = s.arriveLocked() {\n		m.cutShort(kind)\n", "	for m := s.arriveLocked(); m != nil && false; m = s.arriveLocked() {\n		m.cutShort(kind)\n"),
	bug("a Goexit ends its carrier", "EverythingMayExit",
		"carry.go", "		c.s.carriers.Go(again.run)\n", "		_ = again\n"),
	bug("a failure waits for a silent client", "RunReturnsWhenItsContextEnds",
		"stream.go", "		s.overLocked()\n		s.checkDoneLocked()\n	}\n	s.mu.Unlock()\n	if first {", "		s.overLocked()\n	}\n	s.mu.Unlock()\n	if first {"),
	bug("the shutdown's end of a wait for a resolver is missed", "ShutdownEndsTheWaitForAnOwn",
		"stream.go", "	if s.own != nil {\n		s.own.end()\n	}\n	s.carriers", "	s.carriers"),
	bug("an end of the context beats recv's own word", "StatusOfRecv|Oversized",
		"stream.go", "	if !s.input && s.waiting == waitNothing && !s.isDone && s.failure == nil {", "	if s.waiting > waitBytes {"),
}

// boundBugs break the retry budget, the attempt's time and the bytes.
var boundBugs = []mutant{
	bug("budget that never empties", "Budget|Model",
		"retry.go", "return max(t-1, 0)", "return max(t, 0)"),
	bug("budget that owes tokens", "Budget",
		"retry.go", "return max(t-1, 0)", "return t - 1"),
	bug("budget that saves more than its tokens", "Budget|Model",
		"retry.go", "return min(t+b.opts.TokenRatio, b.opts.MaxTokens)", "return t + b.opts.TokenRatio"),
	bug("budget's threshold off by one", "Budget|Model",
		"retry.go", "> b.opts.MaxTokens/2", ">= b.opts.MaxTokens/2"),
	bug("once: what is not worth retrying takes a token", "Budget|Model",
		"retry.go", "	if last && e.budget == nil || !e.retry.worthRetrying(f) {", "	if last && e.budget == nil || !e.retry.worthRetrying(f) && (e.budget == nil || e.budget.take() || true) {"),
	bug("the last attempt takes no token", "Budget|Model",
		"retry.go", "	if last && e.budget == nil || ", "	if last || "),
	bug("an attempt's time is never over", "AttemptTimeout|Model",
		"retry.go", "	if e.retry.AttemptTimeout <= 0 {", "	if e.retry.AttemptTimeout >= 0 {"),
	bug("an attempt's end loses its cause", "AttemptTimeout|Model",
		"retry.go", "context.WithTimeoutCause(ctx, e.retry.AttemptTimeout, ErrAttemptTimeout)", "context.WithTimeout(ctx, e.retry.AttemptTimeout)"),
	bug("nil after the attempt's time is a failure", "AttemptTimeout|Model",
		"retry.go", "	defer cancel()\n	return e.handler(ctx, m)\n", "	defer cancel()\n	if err := e.handler(ctx, m); err != nil {\n		return err\n	}\n	return context.Cause(ctx)\n"),
	bug("an own error of a handler is taken for its context's end", "ErrorUnderAContext",
		"retry.go", "return code == codes.Canceled", "return code != codes.Canceled"),
	bug("bytes bound off by one", "Bytes|Model",
		"window.go", "w.bytes.Load() >= w.limit", "w.bytes.Load() > w.limit"),
	bug("a caller asks for ever", "CallerWhoseWaitIsOver",
		"pressure.go", "	p.asking.Add(-1)\n", ""),
}

// onceBugs were in the library.
var onceBugs = []mutant{
	bug("once: two-step giveUp of a shared lane", "TurnInASharedLane",
		"turns.go", "		return s.shared.shard(m.hash).giveUp(&m.turn)\n", `		sh := s.shared.shard(m.hash)
		sh.mu.Lock()
		waits := m.lane != nil && m.lane.head != &m.turn
		sh.mu.Unlock()
		if waits {
			sh.leave(&m.turn)
		}
		return waits
`),
	bug("once: a panic between two messages is taken for one's", "CrashOfRecv|MethodsPanic",
		"receive.go", "		if in.in == placeRecv {\n", "		if in.in == placeRecv && false {\n"),
	bug("once: panic(nil) that recover does not show", "PanicWithNil",
		"carry.go", "		if !returned {\n", "		if !returned && errGoexit == nil {\n"),
	bug("once: an error is asked when somebody looks", "TakenOnce",
		"cause.go", "	if f.cause != nil && f.cause.of == f {\n", "	if f.cause != nil && f.cause.of != f {\n"),
	bug("once: a typed nil is handed on", "MethodsPanic",
		"cause.go", "	if !readable || !sound || conduct == conductUnsafe {\n", "	if !sound {\n"),
	bug("once: a negative delay", "DelayIsNeverNegative",
		"retry.go", "	if d > 0 && o.Multiplier > 1 {", "	if o.Multiplier > 1 {"),
	bug("once: an attempt that crashes took no time", "TimeOfAnAttempt|EventsOf",
		"tell.go", "		defer func() { *took = s.clock() - from }()\n	}\n	return s.r.engine.attempt(s.ctx, m)\n", "		err := s.r.engine.attempt(s.ctx, m)\n		*took = s.clock() - from\n		return err\n	}\n	return s.r.engine.attempt(s.ctx, m)\n"),
	bug("once: the ErrorInfo of a flow behind this one stands for this one's", "ErrorInfoOfAFlowBehind",
		"status.go", "(d.UnmarshalTo(&info) != nil || info.GetDomain() == errorDomain)", "d.UnmarshalTo(&info) != nil"),
	bug("once: Admit let in after Close", "TurnThatComesAfterClose",
		"gate.go", "	a.running = !a.refused\n	return a.running\n", "	a.running = true\n	return true\n"),
	bug("once: ready messages taken after the stream is over", "NothingIsTakenOnce",
		"worker.go", "return s.ready.n > s.coming && !s.over.Load() }", "return s.ready.n > s.coming }"),
	{name: "once: bytes counted after put", run: "BytesAreCountedBefore", edits: []edit{
		{"inbox.go", "		if w.size > 0 {\n			r.bytes.add(w.size)\n		}\n", ""},
		{"receive.go", "		default:\n			in.seq++\n", "		default:\n			in.seq++\n			if in.weight.size > 0 {\n				s.r.bytes.add(in.weight.size)\n			}\n"},
	}},
	bug("once: roomLocked not asked in arrive", "ReceiverReadsOn",
		"worker.go", "	if s.roomLocked() { // this may have been the last that was ready\n		s.wakeReceiver()\n	}\n", ""),
	bug("once: a key waits until an earlier one's lane is empty", "AKeyThatComesLater|KeyWithEndless",
		"turns.go", "	if s.rounds && s.round <= 0 && (", "	if s.rounds && s.ready.n == 0 && ("),
	bug("once: a Goexit in OnFailure on receipt taken for one in recv", "CrashOfOnFailureOnReceipt",
		"receive.go", "	switch in.in {\n", "	switch in.in | placeRecv {\n"),
	bug("once: a Shutdown returns before another has counted", "AllShutdownsReturn",
		"shutdown.go", "		<-c.judged\n", "		_ = c.judged\n"),
}
