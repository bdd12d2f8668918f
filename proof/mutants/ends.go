package main

// endBugs end a stream, or the Flow, in the wrong way.
var endBugs = []mutant{
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
		"shutdown.go", "	delete(c.members, m)\n	c.checkIdleLocked()\n", "	delete(c.members, m)\n"),
	bug("the end of a stream does not say that its session was refused", "EndSaysHow",
		"session_stream.go", "	case !s.asked || s.taken:\n", "	case s.session == nil || s.taken:\n"),
	bug("Owner goes on after a Close", "OwnerIsCancelled",
		"session_stream.go", "s.r.sessions.ask(s.ctx)", "s.r.sessions.ask(s.parent)"),
	bug("the first failure is overwritten", "FirstFailureEndsTheStream|RunState",
		"run.go", "	if s.failure != nil || s.at == phaseDone {", "	if s.at == phaseDone {"),
	bug("a failure after the end counts", "RunState",
		"run.go", "	if s.failure != nil || s.at == phaseDone {", "	if s.failure != nil {"),
	bug("a shutdown moves an end that has begun", "RunState",
		"run.go", `	if s.at >= phaseAborting {
		return false
	}
	before`, `	if s.at >= phaseDone {
		return false
	}
	before`),
	bug("a drain that drops", "DrainRunsAll|RunState",
		"run.go", "	if drain {\n", "	if !drain {\n"),
	bug("a shutdown is not the reason", "RunState|ShutdownWithoutDrain",
		"run.go", "	s.stopping = true\n", ""),
	bug("the end of the source ends a drain", "RunState",
		"run.go", `	if s.at == phaseOpen {
		s.moveLocked(phaseFinishing)`, `	if s.at != phaseDone {
		s.moveLocked(phaseFinishing)`),
	bug("an end of the source that comes in a drain is forgotten", "RunState|StreamWhoseEndArrives",
		"run.go", "	s.eof = true\n", "	s.eof = s.at == phaseOpen\n"),
	bug("a stream is over while it is read", "RunState",
		"run.go", "	if s.at == phaseOpen || s.at == phaseDone {", "	if s.at == phaseDone {"),
	bug("a shutdown that dropped something ended well", "RunState|ShutdownWithoutDrain",
		"run.go", "	case s.eof && allSettled:", "	case s.eof:"),
	bug("the end of a context is taken for a shutdown", "RunState",
		"run.go", "	if f := contextEnded(); f != nil {", "	if f := contextEnded(); f != nil && f.Kind == FailureShutdown {"),
	bug("the phase is known under the lock only", "RunState",
		"run.go", "	s.seen.Store(uint32(to))\n", ""),
	bug("committed off by one", "Committed|Ledger",
		"message.go", "return min(firstPending, l.firstOpen) - 1", "return min(firstPending, l.firstOpen)"),
	bug("the last that is unsettled is taken for the first", "Committed|Ledger",
		"message.go", "l.firstOpen = min(l.firstOpen, seq)", "l.firstOpen = seq"),
	bug("a first try counts as retried", "Ledger",
		"message.go", "uint64(attempts - 1)", "uint64(attempts)"),
	bug("all are committed but the last", "Ledger|Committed",
		"message.go", "firstPending = l.highest + 1", "firstPending = l.highest"),
	bug("what is unsettled is told as it came", "Ledger",
		"message.go", "	slices.Sort(sum.Unsettled)\n", ""),
	bug("a Summary is changed through another", "Ledger",
		"message.go", "	sum.Unsettled = slices.Clone(sum.Unsettled)\n", ""),
	bug("a refusal is counted as a failure", "Ledger|HardReject",
		"message.go", "		l.counts.Rejected++\n", "		l.counts.Failed++\n"),
	bug("what is pending is settled", "Ledger|Progress",
		"message.go", "	open = slices.Concat(l.counts.Unsettled, pending)\n", "	open = slices.Clone(l.counts.Unsettled)\n"),
	bug("a shutdown reads on", "ShutdownReadsStreamsNoFurther|MailboxOfAStopped",
		"stream.go", `	s.box.close()
	if s.state.stop(drain) {`, "	if s.state.stop(drain) {"),
	bug("a stream ends with mail unread", "RunReturnsWhenAll|OrderingAccounts|KeyedFIFORunsOneMessageOfAKey|FIFORunsOneMessageOfAStream|OrderingKeeps",
		"shard.go", "s.state.phase() != phaseOpen && s.box.closeAt(finished)", "s.state.phase() != phaseOpen && b.live.first == nil"),
	bug("a stream that has failed is ended before its mailbox is closed", "ComesAsItsFailedStreamEnds",
		"mailbox.go", "	b.shut = true\n	return true", "	return true"),
	bug("what lies in the mailbox is forgotten at the end", "Dropped|Drops|Model",
		"shard.go", "e != nil; e = b.next(&s.box, &sh.r.chunks) {", "e != nil && kind < 0; e = b.next(&s.box, &sh.r.chunks) {"),
	bug("a try that waits is forgotten at the end", "WaitForTheNextTryIsCutShort|CutsATrysWait",
		"shard.go", "			sh.backoff.remove(m)\n", `			m = before
			continue
`),
	bug("what runs is dropped at the end", "FailureCancelsTheOther|NoHandlerOutlives|FirstFailure",
		"shard.go", "		case stateOut, stateAsking: // they come back", "		case stateAsking: // it comes back"),
	bug("who asks a resolver is dropped at the end", "OwnResolver",
		"shard.go", "		case stateOut, stateAsking: // they come back", "		case stateOut: // it comes back"),
	bug("an end leaves a run to its worker", "ShutdownDropsWhat|BehindAHandlerThat|OrderingAccounts|ShutdownWithoutDrain",
		"shard.go", "	sh.recallAll(s)\n", ""),
	bug("what was ready is counted on after the end", "Shutdown|Failure|FirstFailure",
		"shard.go", "	sh.nready -= b.ready.n\n", ""),
	bug("drops are told in the wrong order", "DropsOfAShutdown",
		"shard.go", "		r.list[i], r.list[j] = r.list[j], r.list[i]\n", "		_ = r.list[j]\n"),
	bug("the header is sent after the first message", "HeaderIsSent",
		"worker.go", "	s.sendHeader(nil)\n	if s.isOver() {", "	defer s.sendHeader(nil)\n	if s.isOver() {"),
	bug("recv is called after its error", "RecvIsNotCalledAgain",
		"receiver.go", `			rd.ended(err)
			break
`, `			rd.ended(err)
			continue
`),
	bug("a message is received after the end", "WhileItsKeyIsAskedFor|Mailbox",
		"mailbox.go", "	if b.shut {\n", "	if b.shut && b.received > 1<<40 {\n"),
	bug("a handler starts on a dead context", "NoHandlerStarts|NothingStartsOnce",
		"worker.go", "	if s.isOver() { // also of a slot", "	if s.ctx == nil { // also of a slot"),
	bug("a context ends without its cause", "FailureCancelsTheOther",
		"stream.go", "		s.cancel(f) // after", "		s.cancel(nil) // after"),
	bug("nobody waits for what recv says of the context's end", "StatusOfRecv|Oversized",
		"stream.go", `		s.awaitRecv()
		s.fail`, "		s.fail"),
	bug("the end of the context beats recv's own word", "StatusOfRecv|Oversized",
		"receiver.go", "	if ended && (!f.said().stated || f.Kind == FailureContextCancelled) {", "	if ended {"),
	bug("a message that comes after the context's end is received", "MessageThatComesAfter",
		"receiver.go", `		rd.in = inNone
		if s.parent.Err() != nil {`, `		rd.in = inNone
		if s.parent == nil {`),
	bug("what a failure cuts short is the shutdown's", "WaitForTheNextTryIsCutShort|FailureOfAnother|Dropped",
		"stream.go", `	return FailureContextCancelled
}`, `	return FailureShutdown
}`),
	bug("what never ran has failed", "Dropped|Drops|FirstFailure|Shutdown",
		"message.go", `	if m.attempts == 0 {
		m.outcome, m.step = outcomeDropped`, `	if m.attempts < 0 {
		m.outcome, m.step = outcomeDropped`),
	bug("a panic that is skipped does not end its stream", "TerminalKind",
		"stream.go", "m.settled && !IsTerminal(kind)", "m.settled"),
	bug("a try that a shutdown cuts short ends its stream", "ShutdownThatCutsATrysWait",
		"stream.go", "	if kind == FailureContextCancelled || kind == FailureShutdown || m.settled &&", "	if kind == FailureContextCancelled || m.settled &&"),
	bug("the end of the context comes to OnFailure", "ContextAndShutdownFailuresNever|OnFailureIsNever",
		"stream.go", "	if kind == FailureContextCancelled || kind == FailureShutdown || s.r.onFailure == nil || s.ctx.Err() != nil {", "	if kind < 0 || s.r.onFailure == nil {"),
	bug("a stream that is over is waited for by the shutdown", "TestShutdown|DrainRunsAll",
		"stream.go", `	if entered {
		s.r.gate.shutdown.leave(s)`, `	if !entered {
		s.r.gate.shutdown.leave(s)`),
	bug("the total forgets streams", "Stats",
		"stream.go", "	s.r.total.add(sum)\n", ""),
	bug("a stream that is over is shown", "Stats",
		"stream.go", "	delete(s.r.streams, s)\n", ""),
	bug("a cut forgets what runs", "CutOff|GracePeriod",
		"stream.go", "if draining || m.runs() || m.asks() || seq == mailed ||", "if draining || m.asks() || m != nil && seq == mailed ||"),
	bug("a cut forgets what a drain waits for", "CutOff|GracePeriod|Drain",
		"stream.go", "if draining || m.runs() ||", "if draining && m == nil || m.runs() ||"),
	bug("the end of a wait for a resolver is missed", "ShutdownEndsTheWait",
		"shard.go", `	s.order.end()
	s.window.signal()
`, "	s.window.signal()\n"),
	bug("a shutdown that drains is not heard by who waits in Admit", "ShutdownRefusesCallersWhoWait",
		"gate.go", `	if !drain {
		a.close()
	}
`, "	a.close()\n"),
	bug("a wait for as long as there is is over at once", "Centuries|UntilItIsFull",
		"shard.go", "min(d, math.MaxInt64-now)", "max(d, math.MinInt64+now)"),
	bug("a message is settled whose key can't be noted as skipped", "SkipKeyIsBounded",
		"dispatch.go", "		m.settled = m.settled && s.session == nil\n", ""),
	bug("a message is acknowledged whose key is not saved as skipped", "IsNotAcknowledged",
		"session_stream.go", ".upTo(s.toldUpTo())", ""),
	bug("a message is blamed for a session that has moved", "FailsSinceASessionMoved",
		"batch_run.go", " || c.hasMoved(s)", ""),
	bug("a message is blamed for a session of which nothing is known", "SeesTheSessionMoved",
		"session_table.go", "			s.unknown = true\n			s.ends(storeFailure(err))\n", "			_ = err\n"),
}
