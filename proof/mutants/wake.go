package main

// wakeBugs leave somebody asleep.
var wakeBugs = []mutant{
	bug("a shard is told of its first mail only", "Mailbox|KeyedFIFORunsOneMessageOfAKey|FIFORunsOneMessageOfAStream|OrderingKeeps",
		"mailbox.go", "	tell = !b.told\n", "	tell = !b.told && b.received == 1\n"),
	bug("a shard that finds nothing is not told again", "Mailbox|KeyedFIFORunsOneMessageOfAKey|FIFORunsOneMessageOfAStream|OrderingKeeps",
		"mailbox.go", "		b.told = false\n", ""),
	bug("mail is announced once", "KeyedFIFORunsOneMessageOfAKey|FIFORunsOneMessageOfAStream|OrderingKeeps",
		"receiver.go", "		if tell {\n", "		if tell && rd.seq == 1 {\n"),
	bug("the end of the source is not told", "StreamWithoutMessagesIsNil",
		"receiver.go", "		rd.s.tell()\n", ""),
	bug("the last finish is not looked at", "RunReturnsWhenAll",
		"dispatch.go", `	b.bytes += m.size
	sh.touch(s)
`, "	b.bytes += m.size\n"),
	bug("a finish makes no room", "WhatFinishesMakesRoom|StreamIsReadUpTo",
		"shard.go", "			sh.makeRoom(s)\n", ""),
	bug("little room is never told of", "LittleRoom",
		"shard.go", "		sh.owed = append(sh.owed, s)\n", ""),
	bug("a reader is owed room, and sleeps on", "LittleRoom",
		"shard.go", `		s.window.wake()
		sh.owed[i] = nil`, "		sh.owed[i] = nil"),
	bug("a try that is due does not come", "BackoffIs",
		"shard.go", "		sh.resume(m)\n", "		_ = m\n"),
	bug("the alarm is not set for a try", "BackoffIs|TestRetry|WaitsForASlot",
		"shard.go", "	consider(sh.backoff.next())\n", ""),
	bug("an alarm that fired unheard is taken for set", "Alarm",
		"shard.go", `		a.at = 0
	}
	forNothing`, `	}
	forNothing`),
	bug("an alarm that is set is not set for an earlier time", "Alarm",
		"shard.go", "	if a.at > 0 && a.at <= at && ", "	if a.at > 0 && "),
	bug("an alarm that is about to fire for nothing fires", "Alarm",
		"shard.go", "forNothing := a.at > now", "forNothing := a.at > now+lookTime"),
	bug("an alarm is put off long before it fires", "Alarm",
		"shard.go", "a.at > now && a.at-now < lookTime/2 && ", "a.at > now && "),
	bug("an alarm that has rung is taken for set", "Alarm|BackoffIs",
		"shard.go", "rang() { a.at = 0 }", "rang() { a.fired.Load() }"),
	bug("an alarm for what is overdue does not fire", "AlarmForWhatIsOverdue",
		"shard.go", "d := max(0, at-now); a.timer == nil", "d := at - now; d > 0 && a.timer == nil"),
	bug("nobody looks whether a run stands still", "OrderingLets|StressStuck|MessageOfABusyKey",
		"shard.go", "	consider(now+lookTime, len(sh.runs.long) > 0)\n", ""),
	bug("a verdict is not given", "HardReject",
		"dispatch.go", "		s.verdict.give(b.ledger.received)\n", ""),
	bug("a reader waits for its verdict until the shard is idle", "VerdictDoesNotWait",
		"dispatch.go", "		if s.verdict.isAsked() {", "		if s.verdict.isAsked() && open == nil {"),
	bug("a verdict is asked for of the message before", "Refus|HardReject|QueueCapacity|OnFailureDecidesOnReceipt",
		"receiver.go", "s.verdict.ask(rd.seq + 1)", "s.verdict.ask(rd.seq)"),
	bug("a verdict is given for the next message only", "Verdict",
		"receiver.go", "asked > 0 && asked <= seq", "asked > 0 && asked < seq"),
	bug("a reader does not wait for the verdict", "Refus|HardReject|QueueCapacity",
		"receiver.go", "			s.verdict.await(s.done)\n", ""),
	bug("after a refusal nothing is lined up any more", "HardReject|Refus",
		"dispatch.go", "		b.refusing = false\n", ""),
	bug("a turn that another shard hands over is forgotten", "GateShares|GateHands",
		"shard.go", "			sh.grant(m)\n", "			_ = m\n"),
	bug("a shard sleeps while it is handed a turn", "GateShares|GateHands",
		"dispatch.go", `	select {
	case sh.events <- event[T]{}:
	default: // it is not asleep, and looks before it is
	}
`, ""),
	bug("a stream is not told of its shutdown", "TestShutdown|Drain",
		"stream.go", `	if s.state.stop(drain) {
		s.tell()
	}
`, "	s.state.stop(drain)\n"),
	bug("a shard is not told of a failure", "RunReturnsAtOnce|RunReturnsWhenItsContextEnds",
		"stream.go", `can see why
		s.tell()
`, "can see why\n"),
	bug("the end of Run's context is missed while recv is blocked", "RunReturnsWhenItsContextEnds",
		"stream.go", `		s.awaitRecv()
		s.fail(contextFailure(s.parent))
`, "		s.awaitRecv()\n"),
	bug("a stream with more mail loses its turn", "KeyedFIFORunsOneMessageOfAKey|FIFORunsOneMessageOfAStream|OrderingKeeps|Model|OrderingAccounts|AfterManyQuick",
		"dispatch.go", "		if b.inMail = more; more {", "		if b.inMail = more; more && full() {"),
	bug("idle workers stay", "WorkersLeave|IdleStreamCosts|WaitingMessageCosts",
		"worker.go", "idle for longest\n		close(w.runs)\n", "idle for longest\n		_ = w.runs\n"),
}
