package main

// memoryBugs keep what is not needed any more, or lose what is.
var memoryBugs = []mutant{
	bug("a table of lanes stays as large as it was", "IdleKeysCost",
		"shard.go", `			if b.live.first == nil && b.mailRun == nil && b.chunk == nil { // otherwise it would soon grow again
				s.order.trim()
			}
`, ""),
	bug("a chunk keeps its messages alive", "IdleStreamKeeps",
		"dispatch.go", "	*e = entry[T]{}\n", ""),
	bug("a reader keeps its message alive", "IdleStreamKeeps",
		"receiver.go", "	rd.at = entry[T]{} // for as long", "	// for as long"),
	bug("a message that has finished keeps its value", "IdleStreamKeeps",
		"message.go", "	m.entry = entry[T]{} //", "	//"),
	bug("a cache of messages only grows", "MessageCache",
		"message.go", "	if c.free.n >= magazine {", "	if c.free.n < 0 {"),
	bug("a cache gives a message to two", "MessageCache",
		"message.go", "	*q = messageQueue[T]{}\n", ""),
	bug("a ring keeps its streams alive", "RingStays",
		"shard.go", "	q.list[q.from] = nil\n", ""),
	bug("a ring only grows", "RingStays",
		"shard.go", "	if q.from > 32 && 2*q.from > len(q.list) {", "	if q.from < 0 {"),
	bug("a burst leaves its chunks", "Mailbox",
		"mailbox.go", "		idle, b.spare = b.spare, nil\n", "		idle = nil\n"),
	bug("a chunk comes back with what was in it", "Mailbox",
		"mailbox.go", "		empty.list, empty.next = empty.list[:0], nil\n", "		empty.next = nil\n"),
	bug("a lane's memory is lost", "StreamOrder|LongRuns",
		"lane.go", "		t.spare = l\n", "		t.spare = nil\n"),
	bug("a stream that goes takes its successor along", "LiveList",
		"message.go", "		m.nextLive.prevLive = m.prevLive\n", "		m.nextLive.prevLive = nil\n"),
}
