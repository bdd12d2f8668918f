package main

// mutant is a bug to be put into a copy of the module.
type mutant struct {
	name          string
	run           string // a pattern of the tests that should catch it
	file          string
	before, after string
	tests         string // the package of the tests, where it is not the file's
}

// mutants are what is easily got wrong when partitions change hands.
var mutants = []mutant{
	{"the deadline is not looked at before an attempt", "NoAttempt", "partition/runner.go",
		"	if err := run.check(d); err != nil { // after all that may have taken time\n		return flow.Permanent(err)\n	}\n", "", ""},
	{"the deadline is not looked at before OnFailure", "OnFailureIsNotAsked", "partition/runner.go",
		"	if err := run.check(d); err != nil {\n		run.end(err)\n", "	if err := error(nil); err != nil {\n		run.end(err)\n", ""},
	{"the deadline is not looked at before a dead letter", "DeadLetterThatCannot", "partition/dead_letter.go",
		"		if err := run.tenure.Check(); err != nil {\n			return err\n		}\n", "", ""},
	{"a message is settled though its dead letter is not stored", "DeadLetterIsStoredBefore", "partition/dead_letter.go",
		"		if err == nil {\n			return nil\n		}\n", "		if err == nil || pause > 0 {\n			return nil\n		}\n", ""},
	{"a suspect is not marked", "Suspects", "partition/runner.go",
		"		if err := run.tenure.Suspect(ctx, d.Position); err != nil {\n			return run.stale(err)\n		}\n", "", ""},
	{"a suspect stays marked", "Suspects|PoisonIsFound", "partition/runner.go",
		"		defer func() { _ = run.tenure.Suspect(context.WithoutCancel(ctx), 0) }()", "		defer func() {}()", ""},
	{"a suspect does not run alone", "Suspects", "partition/runner.go",
		"		if err := r.options.Isolation.Alone(ctx); err != nil {\n			return err\n		}\n		defer r.options.Isolation.LeaveAlone()\n", "", ""},
	{"what is unsettled beyond the frontier is forgotten", "EachHolder", "partition/ledger.go",
		"	return newProgress(l.top, append(open, l.unread...))\n", "	return newProgress(l.top, open)\n", ""},
	{"progress that does not fit settles what it leaves out", "DoesNotFit", "partition/progress.go",
		"			return newProgress(position-1, p.Unsettled[:i])\n", "			return newProgress(p.Top, p.Unsettled[:i])\n", ""},
	{"the window is not held back for commits", "WindowFull", "partition/ledger.go",
		"room, full := l.room, len(l.open) >= l.window", "room, full := l.room, l.window < 0", ""},
	{"blame is put on a message only once", "DeathsFindOut|Blame", "partition/deaths.go",
		"		d.Blamed[i].Deaths++\n", "", ""},
	{"a doubt has no end", "DeathIsForgotten", "tenure.go",
		"	t.rec.Deaths.NotBeyond(position)\n	return t.rec.Deaths\n", "	d := t.rec.Deaths\n	d.NotBeyond(position)\n	return d\n", ""},
	{"a record is written without a comparison", "Moody|AtMostOne", "tenure.go",
		"	return t.bucket.put(ctx, t.partition, value, t.lease.expects())\n",
		"	_, now, _ := t.bucket.get(ctx, t.partition)\n	return t.bucket.put(ctx, t.partition, value, now)\n", ""},
	{"a lease counts from the answer, not from the request", "AtMostOne", "lease.go",
		"	if until := sent.Add(l.term); until.After(l.deadline) {\n", "	if until := sent.Add(2 * l.term); until.After(l.deadline) {\n", ""},
	{"a lease has no deadline", "AtMostOne", "lease.go",
		"	return !l.lost && l.epoch > 0 && now.Before(l.deadline)\n", "	return !l.lost && l.epoch > 0\n", ""},
	{"an old copy of the record is believed", "AtMostOne", "lease.go",
		"	case revision < l.revision:\n", "	case revision == 0:\n", ""},
	{"an earlier write is taken for the one in question", "AtMostOne", "lease.go",
		"	case r.Claim == l.claim && r.Write == write:\n", "	case r.Claim == l.claim:\n", ""},
	{"another's claim is not seen", "AtMostOne", "lease.go",
		"		l.lost = true\n		return verdictLost\n", "		l.revision = revision\n		return verdictUnknown\n", ""},
	{"a partition is released before what runs has finished", "HandOverWaits|RollingDeploy", "holding.go",
		"	select {\n	case <-over:\n	case <-late:\n		cancel(flow.ErrGracePeriod)\n		<-over\n	}\n	return r, false, nil\n", "	_, _ = late, flow.ErrGracePeriod\n	go func() { <-over }()\n	return r, false, nil\n", ""},
	{"a partition is read from its top, not from its frontier", "MayDieOrFreeze", "holding.go",
		"source(h.partition, a.Progress.Frontier)", "source(h.partition, a.Progress.Top)", ""},
	{"silence in an outage is taken for death", "Outage", "balance.go",
		"	case !b.blind && b.since(c.at, now) >= b.lease:\n", "	case now.Sub(c.at) >= b.lease:\n", ""},
	{"what a dead worker leaves waits for who lacks it", "OfADeadWorker", "member.go",
		"		if reason == ReasonExpired || reason == ReasonResumed || reason == ReasonFree && lacking > 0 {\n", "		if reason != \"\" && lacking > 0 {\n", ""},
	{"the death of a holder is not counted", "PoisonIsFound", "tenure.go",
		"		r.Deaths.Died()\n", "", ""},
}
