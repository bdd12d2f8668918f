package main

import "slices"

// mutants are the bugs: what a concurrent pipeline gets wrong, and what this one once got wrong.
var mutants = slices.Concat(
	orderBugs, slotBugs, wakeBugs, endBugs, boundBugs, runBugs, crashBugs, memoryBugs, onceBugs, shareBugs, batchBugs,
)

// onceBugs were in the library.
var onceBugs = []mutant{
	bug("once: a typed nil is handed on", "MethodsPanic",
		"foreign.go", "	if !readable || !sound || conduct == conductUnsafe {\n", "	if !sound {\n"),
	bug("once: a negative delay", "DelayIsNeverNegative",
		"retry.go", "	if d > 0 && o.Multiplier > 1 {", "	if o.Multiplier > 1 {"),
	bug("once: the ErrorInfo of a flow behind this one stands for this one's", "ErrorInfoOfAFlowBehind",
		"status.go", "(d.UnmarshalTo(&info) != nil || info.GetDomain() == errorDomain)", "d.UnmarshalTo(&info) != nil"),
	bug("once: Admit let in after Close", "TurnThatComesAfterClose",
		"gate.go", "	a.running = !a.refused\n	return a.running\n", "	a.running = true\n	return true\n"),
	bug("once: a Shutdown returns before another has counted", "AllShutdownsReturn",
		"shutdown.go", "		<-c.judged\n", "		_ = c.judged\n"),
}
