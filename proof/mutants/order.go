package main

// orderBugs break who runs after whom.
var orderBugs = []mutant{
	bug("a built-in resolver takes no notice of the Resolver in its options", "ResolversOfPartsRefuse",
		"order.go", "	if o.Resolver != nil {\n", "	if o.Resolver != nil && o.Capacity < 0 {\n"),
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
	bug("no ordering wait", "KeyedFIFORunsOneMessageOfAKey|FIFORunsOneMessageOfAStream|OrderingKeeps",
		"dispatch.go", "		if !first {\n", "		if !first && m.seq == 0 {\n"),
	bug("another stream's turn is forgotten", "StreamOrder|ScopeFlow",
		"order.go", "		other.handOver(next.owner)\n", "		_ = other\n"),
	bug("a direct caller's turn is forgotten", "StreamOrder|GateShares",
		"order.go", `		next.owner.turnCame()
	default:
`, "	default:\n"),
	bug("a retry lets its key go on", "AllAttemptsOfAMessageComeBefore|MessageWaitingForItsNextTry|OrderingKeeps",
		"dispatch.go", "		m.state = stateBackoff\n", `		m.state = stateBackoff
		if m.lane != nil {
			if next := s.order.leave(&m.turn, m.hash, sh); next != nil {
				sh.turnCame(next.owner.(*message[T]))
			}
		}
`),
	bug("a message that is used again remembers the last one's way", "MaxAttemptsCounts|ReplayingTheEvents|OrderingAccounts",
		"message.go", "	m.delivery = delivery{}\n", ""),
	bug("a message that is used again remembers what the last one's Observer was told", "TellNothingOfAnEarlierOne",
		"message.go", "m.observed = observed{}", "_ = m.observed"),
	bug("a message that is used again remembers the last one's trouble", "TellNothingOfAnEarlierOne",
		"message.go", "m.trouble = trouble[T]{}", "_ = m.trouble"),
	bug("the next of a lane is forgotten", "KeyedFIFORunsOneMessageOfAKey|FIFORunsOneMessageOfAStream|OrderingKeeps",
		"dispatch.go", "f.state == stateWaiting { // otherwise it is in a run already", "f.state == stateBackoff {"),
	bug("the next of a lane, which is in a run, is sent out again", "KeyedFIFORunsOneMessageOfAKey|FIFORunsOneMessageOfAStream|OrderingKeeps|LongRuns",
		"dispatch.go", "f.state == stateWaiting { // otherwise it is in a run already", "f.state != stateReady {"),
	bug("what is taken back is ready, though another of its lane is before it", "OrderingKeeps|OrderingLets|StressStuck|AfterManyQuick",
		"dispatch.go", "		if m.lane != nil && !m.stream.order.isHead(&m.turn, m.hash) {", "		if m.lane != nil && m.seq == 0 {"),
	bug("all of a lane have their turn", "StreamOrder",
		"order.go", "	return t.lane.head == t\n", "	return t.lane.head != nil\n"),
	bug("a lane's second is overtaken in a run", "OrderingKeeps|KeyedFIFO|AfterManyQuick|LongRuns",
		"dispatch.go", "		next = m.next\n", `		if next = m.next; next != nil && next.next != nil {
			next = next.next
		}
`),
	bug("a run takes another stream's message", "StreamOrder",
		"lane.go", "	if t.next == nil || t.next.home != t.home {", "	if t.next == nil {"),
	bug("a message joins a run which the one before it is not in", "KeyedFIFORunsOneMessageOfAKey|FIFORunsOneMessageOfAStream|OrderingKeeps|LongRuns|AfterManyQuick",
		"dispatch.go", "return m != nil && m.run == r }", "return m != nil && (m.run == r || r != nil) }"),
	bug("a message of a skipped key joins the run of the one before it", "SkippedKeyDoesNotRun",
		"dispatch.go", "m.stream.order.external == nil && !m.stream.backlog.isSkipped(m)", "m.stream.order.external == nil"),
	bug("a message behind another does not ask the caller's own resolver", "BehindAnotherAsks",
		"dispatch.go", "m.stream.order.external == nil && !m.stream.backlog", "!m.stream.backlog"),
	bug("a mail run takes messages of skipped keys", "MailRunLeavesSkipped",
		"mailbox.go", "!ordered || !busy.add(hash) {", "!ordered || hash == 0 {"),
	bug("a keyed stream is one line", "StreamOrder",
		"order.go", "if o.resolver.opts.Mode == OrderingFIFO {", "if o.resolver.opts.Mode != OrderingNone {"),
	bug("the order of the Flow is each stream's own", "ScopeFlow|StreamOrder",
		"order.go", "	if o.resolver.opts.Scope == ScopeFlow {", "	if o.resolver.opts.Scope != ScopeFlow && id == 0 {"),
	bug("a wait that is cancelled ends the turn of who has it", "StreamOrderCancelled",
		"lane.go", "	if t.lane == nil || t.lane.head == t {", "	if t.lane == nil {"),
	bug("a turn that comes is still counted as waiting", "StreamOrderTurns|AdmitRefuses|Model",
		"lane.go", `	case t.next != nil:
		tb.bounds.unreserve()
`, "	case t.next != nil:\n"),
	bug("what came before a skip is skipped with it", "SkipKeyOnARefusal|SkippedKeys",
		"lane.go", "	return ok && seq > from\n", "	return ok && seq > 0 || from > seq\n"),
	bug("what is received after a skip waits for a slot", "NeedNoCapacity",
		"dispatch.go", "	b.direct = true\n", ""),
	bug("a run goes on after its message has skipped its key", "LongRuns",
		"worker.go", "(m.skipKey || !r.at", "(!r.at"),
	bug("a resolver of the caller's is not asked", "OwnResolver",
		"order.go", "return o.external != nil && hash != 0 }", "return o.external != nil && hash == 1 }"),
	bug("a key without order asks a resolver of the caller's", "StreamOrder|Resolver",
		"order.go", "return o.external != nil && hash != 0 }", "return o.external != nil }"),
	bug("a resolver of the caller's is asked in the stream's place", "StreamOrder|Resolver",
		"order.go", `	case *resolverOption:
		o.resolver, o.external = r.local,`, `	case *resolverOption:
		o.resolver, o.external = localOrder,`),
}
