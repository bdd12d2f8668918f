package main

// crashBugs break what becomes of a panic, or a runtime.Goexit, of the caller's.
var crashBugs = []mutant{
	bug("an As method that sets nothing is believed", "MethodsPanic",
		"foreign.go", " && !empty(own.Elem())", ""),
	bug("a Goexit ends its worker", "WedgesNothing|EverythingMayExit",
		"worker.go", "			go w.work()\n", ""),
	bug("a panic is not recovered", "WedgesNothing|EverythingMayExit",
		"worker.go", "			crash = newPanicError(recover())\n", "			crash = newPanicError(nil)\n"),
	bug("a crash of the Observer is told again", "ObserverThatPanicsOn",
		"worker.go", "		m.told = true\n", ""),
	bug("OnFailure is asked again after its panic", "OnFailuresOwnPanic|WedgesNothing",
		"worker.go", "m.failure(FailureInternal, err), false, false, stepFailure", "m.failure(FailureInternal, err), false, false, stepAsk"),
	bug("a release that panics is called again", "OwnResolverThatPanics",
		"worker.go", `		s.fail(m.failure(FailureInternal, err))
		m.step = stepFinished`, "		s.fail(m.failure(FailureInternal, err))"),
	bug("a crash of the Observer at a message's end is forgiven", "WedgesNothing|EverythingMayExit|ObserverThatCrashes",
		"worker.go", `and the stream ends
		s.fail(m.failure(FailureInternal, err))
`, "and the stream ends\n"),
	bug("a message whose key function panics is lost", "PanickingKey|WedgesNothing",
		"receiver.go", `		rd.put()
	default`, "	default"),
	bug("a crash of recv ends nothing", "CrashOfRecv|WedgesNothing",
		"receiver.go", `	case inRecv:
		rd.ended(err)
`, "	case inRecv:\n"),
	bug("a Goexit of the reader is nobody's", "EverythingMayExit|WedgesNothing",
		"receiver.go", "			rd.crashed(errGoexit)\n", "			_ = errGoexit\n"),
	bug("a Goexit of a resolver is a turn", "ExternalOrder|OwnResolverThatPanics",
		"order.go", "		err := errGoexit\n", "		err := error(nil)\n"),
	bug("a turn that comes too late is not released", "OwnResolversTurnThatComesTooLate",
		"worker.go", `		if m.release != nil {
			m.release()`, `		if m.release != nil && m.outcome != outcomeDropped {
			m.release()`),
	bug("a success does not release its turn", "OwnResolversTurn",
		"worker.go", "	if observer == nil && m.release == nil {", "	if observer == nil {"),
	bug("a drop that nobody is told of does not release its turn", "OwnResolversTurnThatComesTooLate",
		"dispatch.go", "quiet = quiet && m.release == nil && (", "quiet = quiet && ("),
	bug("a crash of the handler is an attempt that took no time", "TimeOfAnAttempt|EventsOf",
		"worker.go", `		if m.took == 0 {
			s.timed(m, w.run)
		}
`, ""),
	bug("a panic of OnFailure skips its message", "OnFailuresOwnPanic|WedgesNothing|TerminalKind",
		"worker.go", "err), false, false, stepFailure", "err), true, false, stepFailure"),
}
