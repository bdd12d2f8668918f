package main

// runBugs break what a worker and its shard share: who runs a message, and who counts it.
var runBugs = []mutant{
	bug("a worker goes on after its run was recalled", "OrderingKeeps|OrderingLets|StressStuck|MessageOfABusyKey|AfterManyQuick|LongRuns",
		"worker.go", "(m.skipKey || !r.at.CompareAndSwap(r.next-1, r.next))", "(m.skipKey || r.next > 1<<20)"),
	bug("what runs is taken back", "OrderingKeeps|OrderingLets|StressStuck|MessageOfABusyKey|AfterManyQuick|LongRuns",
		"dispatch.go", "sh.takeBack(r, max(0, at+1))", "sh.takeBack(r, max(0, at))"),
	bug("what is recalled is forgotten", "OrderingKeeps|OrderingLets|StressStuck|MessageOfABusyKey|AfterManyQuick|LongRuns",
		"dispatch.go", "	sh.takeBack(r, max(0, at+1))\n", "	r.end = max(0, at+1)\n"),
	bug("what runs is counted as finished", "OrderingKeeps|OrderingLets|StressStuck|MessageOfABusyKey|AfterManyQuick|LongRuns",
		"dispatch.go", "	for _, m := range r.list[from:at] {", "	for _, m := range r.list[from : at+1] {"),
	bug("what has finished is counted twice", "OrderingKeeps|OrderingLets|StressStuck|MessageOfABusyKey|AfterManyQuick|LongRuns",
		"dispatch.go", `	r.settled = at
	for`, "	for"),
	bug("what a run leaves behind a retry is forgotten", "LongRuns|AfterManyQuick",
		"dispatch.go", "			sh.takeBack(r, from)\n", "			r.end = from\n"),
	bug("a try of a run is forgotten", "BackoffIs|OrderingAccounts",
		"dispatch.go", `	if k < r.end {
		sh.retry`, `	if k < r.settled {
		sh.retry`),
	bug("a run that is back is taken for one that is out", "OrderingKeeps|OrderingLets|StressStuck|MessageOfABusyKey|AfterManyQuick|LongRuns",
		"dispatch.go", `		if len(r.list) > 1 && !r.recalled {
			sh.runs.forget(r)
		}
`, ""),
	bug("a run that is used again is claimed already", "RunSet",
		"run.go", "	r.at.Store(unclaimed)\n", ""),
	bug("a key that stood still is not remembered", "Pace",
		"run.go", `	p.markSlow(hash)
	p.length, p.quick`, "	p.length, p.quick"),
	bug("runs stay long though one stood still", "Pace",
		"run.go", "	p.length, p.quick = 1, 0\n", ""),
	bug("runs are long again as soon after the tenth that stood still as after the first", "Pace",
		"run.go", "min(2*p.needed, mostQuick)", "quickRuns"),
	bug("a run that goes on ever so slowly is never recalled", "LongRunThat|RunStands",
		"run.go", " || now-r.looked >= lookTime", ""),
	bug("what stood still long ago is never forgotten", "Pace",
		"run.go", "p.needed, p.sound = max(p.needed/2, quickRuns), 0", "p.sound = 0"),
	bug("a run that stands still keeps the slots of what was taken back", "KeepsNoSlot",
		"dispatch.go", "		sh.slots.free(r.slots - keep)\n		r.slots = keep\n", "		_ = keep\n"),
	bug("what gets its turn by a long run waits for the next look", "GetsItsTurnByALong",
		"dispatch.go", "return some || sh.nready > before", "return some || before < 0"),
	bug("runs grow without a bound", "Pace",
		"run.go", "p.length = min(2*p.length, maxRun)", "p.length *= 2"),
	bug("the first run is as long as any", "Pace|OrderingLets|SlowKeyDelays",
		"run.go", "return pace{length: 1, ", "return pace{length: maxRun, "),
	bug("runs do not get shorter", "Pace",
		"run.go", "		p.length = max(1, p.length/2)\n", "		p.length = max(1, p.length)\n"),
	bug("a slow key stays slow", "Pace",
		"run.go", "			p.markQuick(hash)\n", "			p.quick = 0\n"),
	bug("a key that is known to be slow runs with others", "KeyThatWasSlow",
		"dispatch.go", "	case open == nil || sh.pace.isSlow(m.hash):", "	case open == nil:"),
	bug("a mail run runs a message of a busy key", "OrderingKeeps|OrderingLets|StressStuck|MessageOfABusyKey|AfterManyQuick|LongRuns",
		"mailbox.go", "return e.crash != nil || x.busy.has(e.hash)", "return e.crash != nil"),
	bug("a mail run runs a message whose key function panicked", "AfterManyQuick",
		"mailbox.go", "return e.crash != nil || x.busy.has(e.hash)", "return x.busy.has(e.hash)"),
	bug("once: a busy key's message is left in the mailbox", "MessageOfABusyKey",
		"mailbox.go", "			sh.receive(s, b.next(&s.box, &sh.r.chunks), nil)\n", "			_ = s\n"),
	bug("a mail run counts what runs", "OrderingKeeps|OrderingLets|StressStuck|MessageOfABusyKey|AfterManyQuick|LongRuns",
		"mailbox.go", "	n := int(at - r.settled)\n", "	n := int(at-r.settled) + 1\n"),
	bug("what runs when a mail run is recalled has no lane", "OrderingKeeps|OrderingLets|StressStuck|MessageOfABusyKey|AfterManyQuick|LongRuns",
		"mailbox.go", "	if m.hash != 0 {\n", "	if m.hash != 0 && m.seq == 0 {\n"),
	bug("a mail run does not know of lanes", "OrderingKeeps|OrderingLets|StressStuck|MessageOfABusyKey|AfterManyQuick|LongRuns",
		"mailbox.go", " && s.order.own.hashesInto(busy)", ""),
	bug("what failed in a mail run is run again", "AfterManyQuick",
		"mailbox.go", "m.attempts, m.cause, m.crashed, m.step = 1, x.err, x.crashed, stepCause", "m.step = stepAttempt"),
	bug("a set of busy keys takes all", "BusyKeys",
		"mailbox.go", "	if b.n == len(b.list)/2 {", "	if b.n < 0 {"),
	bug("a set of busy keys finds the first of a place only", "BusyKeys",
		"mailbox.go", `		if b.list[i] == hash {
			return true
		}
	}
	return false`, `		return b.list[i] == hash
	}
	return false`),
}
