package main

// slotBugs break how many run.
var slotBugs = []mutant{
	bug("slot leaked when cancel races admit", "TurnThatComesAfterClose",
		"gate.go", "	if !a.run() {\n		a.giveBack()\n", "	if !a.run() {\n"),
	bug("slot released twice", "ReleaseOfAnAdmissionTwice",
		"gate.go", "	if over {\n		return\n	}\n	if a.gate", "	_ = over\n	if a.gate"),
	bug("a ReleaseFunc that panics keeps its admission under way", "WhoseReleasePanics",
		"gate.go", "		defer a.gate.shutdown.leave(a)\n	}\n	a.giveBack()\n", "		a.giveBack()\n		a.gate.shutdown.leave(a)\n		return\n	}\n	a.giveBack()\n"),
	bug("slot counted until after its release", "NoSlotIsCountedTwice",
		"pressure.go", "		p.inUse.Add(int64(-n)) // before the release: whoever gets a slot must not see it counted twice\n		p.slots.Release(int64(n))\n",
		"		p.slots.Release(int64(n))\n		p.inUse.Add(int64(-n))\n"),
	bug("queue bound off by one", "QueueCapacityIsCounted",
		"pressure.go", "		if n >= limit {", "		if n > limit {"),
	bug("a run that is back keeps its slot", "CapacityCounts|StaysWithinCapacity|Slots|GateShares",
		"dispatch.go", "	sh.ranIn(r.slots, int(k))\n", ""),
	bug("a slot that is free counts as in use", "CapacityCounts|StaysWithinCapacity|Slots|GateShares",
		"pressure.go", "	s.inUse -= n\n	s.spare += n\n", "	s.spare += n\n"),
	bug("a shard whose messages may be refused shares with nobody", "Delays",
		"dispatch.go", "		sh.slots.share(ran, streams)\n", "		_ = streams\n"),
	bug("a shard keeps its slots though others ask", "SlotsGoTo|Delays|DirectCallers",
		"pressure.go", "s.others(), s.spare)", "s.others()/2, s.spare)"),
	bug("shards share capacity instead of streams", "ShareCapacityEvenly",
		"dispatch.go", "	streams := max(1, sh.turns.len(), sh.mail.len())\n", "	streams := 1\n"),
	bug("what had no slot ends a round of turns", "TurnOfEachStream",
		"pressure.go", "s.p.slots == nil || n == 0 {", "s.p.slots == nil {"),
	bug("a slot that no run has taken is kept from others", "SlotsThatNoRunHasTaken",
		"pressure.go", "ready == 0 && s.others() > 0 {", "ready < 0 && s.others() > 0 {"),
	bug("a slot that is free counts as taken until the next dispatch", "FreeAtOnce",
		"pressure.go", "	s.trim(min(s.spare, ready))\n}\n\n// unused", "	_ = ready\n}\n\n// unused"),
	bug("turns of long ago count as turns", "TurnOfEachStream",
		"pressure.go", "min(s.turns, streams-1) + ran", "s.turns + ran"),
	bug("who asks first waits for a turn of all streams", "TurnOfEachStream",
		"pressure.go", "min(s.turns, streams-1) + ran", "0*s.turns + ran"),
	bug("a slot that was not used is kept from others", "Slots|DirectCallers",
		"pressure.go", "{ s.free(n, n, 1) }", "{ s.free(n, n, 100) }"),
	bug("a slot is given back in the books only", "CapacityCounts|StaysWithinCapacity|Slots|GateShares",
		"pressure.go", "		s.p.giveBack(n)\n", ""),
	bug("the queue is full of what has been sent", "QueueHasRoom",
		"dispatch.go", "		sh.slots.back(left)\n		sh.slots.count(sh.nready)\n", "		sh.slots.back(left)\n"),
	bug("what may be refused waits in its mailbox for a slot", "DirectStreamIsLinedUp",
		"dispatch.go", "		sh.lineUpDirect()\n		sent = sh.sendAll()", "		sent = sh.sendAll()"),
	bug("a slot is taken twice", "CapacityCounts|StaysWithinCapacity|Slots|GateShares",
		"pressure.go", `		s.spare--
		got = 1
`, "		got = 1\n"),
	bug("a run takes slots that no message has", "CapacityCounts|StaysWithinCapacity|Slots|GateShares",
		"pressure.go", "		got = min(n, s.spare)\n", "		got = n\n"),
	bug("a slot that is reserved is lost", "CapacityCounts|StaysWithinCapacity|Slots|GateShares",
		"pressure.go", `	s.spare++
	return true
`, "	return true\n"),
	bug("who stops asking gets a slot", "Slots",
		"pressure.go", `	if err == nil {
		s.spare++`, `	if s.p != nil {
		s.spare++`),
	bug("a slot that was asked for is lost", "Slots|Delays|DirectCallers",
		"pressure.go", `	if err == nil {
		s.spare++
	}
`, "	_ = err\n"),
	bug("who has asked still counts as asking", "Slots",
		"pressure.go", `	s.p.asking.Add(-1)
	s.asking = false`, "	s.asking = false"),
	bug("a shard asks though all slots are its own", "Slots",
		"pressure.go", " || s.inUse+s.spare >= s.p.opts.Capacity {", " {"),
	bug("a shard asks twice", "Slots",
		"pressure.go", "	if s.asking || s.inUse", "	if s.inUse"),
	bug("a slot that nothing needs is not free for others", "Slots|HardReject",
		"pressure.go", "	s.trim(min(s.spare, ready))\n	short", "	short"),
	bug("what lacks a slot is counted again each time", "Slots|QueueCapacity",
		"pressure.go", "s.p.addQueued(short - s.short)", "s.p.addQueued(short)"),
	bug("a place in the queue is not counted", "Slots|QueueCapacity",
		"pressure.go", "	s.short++\n", ""),
	bug("a run that finds nothing keeps its slot", "LongRuns",
		"dispatch.go", `		sh.slots.unused(slots)
		sh.runs.reuse(r)
		return`, `		sh.runs.reuse(r)
		return`),
	bug("an execution under a soft policy is counted for ever", "SoftAllow|Pressure",
		"dispatch.go", "		sh.r.gate.pressure.end()\n", ""),
	bug("nobody is told of pressure", "SoftAllow|Pressure",
		"dispatch.go", "			m.pressured = pressured\n", "			m.pressured = false && pressured\n"),
	bug("pressure begins one too early", "SoftAllow|Pressure",
		"pressure.go", "p.inUse.Add(1) > int64(p.opts.Capacity)", "p.inUse.Add(1) >= int64(p.opts.Capacity)"),
	bug("HardReject lets one more in", "HardReject",
		"pressure.go", "p.inUse.Load() >= int64(p.opts.Capacity)", "p.inUse.Load() > int64(p.opts.Capacity)"),
	bug("a retry holds its slot", "WaitingForTheNextTryHoldsNoSlot|MessageWaitingForItsNextTry",
		"worker.go", "		s.emit(m, EventRetry)\n", `		s.emit(m, EventRetry)
		time.Sleep(m.delay)
		m.delay = 0
`),
	bug("a place in the queue is kept by a caller whose wait is over", "CancelledPlace|CancelledAcquire|CancelledCaller|CallerWhose",
		"pressure.go", "	p.addQueued(-1)\n", ""),
	bug("a stream whose run is back comes before others", "ShareCapacity|Delays",
		"dispatch.go", `		sh.turns.pop()
		sh.turns.push(first)
`, ""),
	bug("a refusal takes the slot of who is before it", "QueueCapacityIsCounted|Slots",
		"pressure.go", "	if !s.p.tryQueue() {", "	if s.p.opts.QueueCapacity < 0 {"),
}
