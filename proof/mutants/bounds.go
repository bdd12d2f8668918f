package main

// boundBugs break retries, the retry budget, the attempt's time, windows and bytes.
var boundBugs = []mutant{
	bug("budget that never empties", "Budget|Model",
		"retry.go", "return max(t-1, 0)", "return max(t, 0)"),
	bug("budget that owes tokens", "Budget",
		"retry.go", "return max(t-1, 0)", "return t - 1"),
	bug("budget that saves more than its tokens", "Budget|Model",
		"retry.go", "return min(t+b.opts.TokenRatio, b.opts.MaxTokens)", "return t + b.opts.TokenRatio"),
	bug("budget's threshold off by one", "Budget|Model",
		"retry.go", "return b.change(func(t float64) float64 { return max(t-1, 0) }) > b.opts.MaxTokens/2", "return b.change(func(t float64) float64 { return max(t-1, 0) }) >= b.opts.MaxTokens/2"),
	bug("once: what is not worth retrying takes a token", "Budget|Model",
		"retry.go", "	if last && e.budget == nil || !e.retry.worthRetrying(f) {", "	if last && e.budget == nil || !e.retry.worthRetrying(f) && (e.budget == nil || e.budget.take() || true) {"),
	bug("the last attempt takes no token", "Budget|Model",
		"retry.go", "	if last && e.budget == nil || ", "	if last || "),
	bug("an attempt's time is never over", "AttemptTimeout|Model",
		"retry.go", "	if e.retry.AttemptTimeout <= 0 {", "	if e.retry.AttemptTimeout >= 0 {"),
	bug("an attempt's end loses its cause", "AttemptTimeout|Model",
		"retry.go", "context.WithDeadlineCause(c.parent, c.deadline, ErrAttemptTimeout)", "context.WithDeadline(c.parent, c.deadline)"),
	bug("nil after the attempt's time is a failure", "AttemptTimeout|Model",
		"retry.go", "	defer ctx.end()\n	return e.handler(ctx, m)\n", "	defer ctx.end()\n	if err := e.handler(ctx, m); err != nil {\n		return err\n	}\n	return ctx.Err()\n"),
	bug("a context that somebody has asked for is not ended with its attempt", "AttemptContext|AttemptTimeout",
		"retry.go", "	if c.cancel != nil {\n", "	if c.cancel != nil && c.over == false {\n"),
	bug("a context that is asked for after its attempt lives", "AttemptContext|AttemptTimeout",
		"retry.go", "		if c.over {\n			c.cancel()\n		}\n", ""),
	bug("an own error of a handler is taken for its context's end", "ErrorUnderAContext",
		"failure.go", "return code == codes.Canceled", "return code != codes.Canceled"),
	bug("a caller asks for ever", "CallerWhoseWaitIsOver",
		"pressure.go", "	p.asking.Add(-1)\n", ""),
	bug("a window lets one more in", "StreamIsReadUpToMaxPendingAhead|WindowRoom",
		"window.go", "	if pending := received - w.finished.Load(); pending", "	if pending := received - w.finished.Load() - 1; pending"),
	bug("a window's room is counted twice", "StreamIsReadUpTo|WindowRoom",
		"window.go", "		return w.limit - pending\n", "		return w.limit\n"),
	bug("what was received is not taken off the credit", "StreamIsReadUpTo",
		"receiver.go", "		rd.credit--\n", ""),
	bug("tries come in the wrong order", "BackoffGives",
		"retry.go", "return h[i].due < h[j].due", "return h[i].due > h[j].due"),
	bug("tries due together come in the wrong order", "BackoffGives",
		"retry.go", "return h[i].order < h[j].order", "return h[i].order > h[j].order"),
	bug("a try comes before it is due", "BackoffGives|BackoffIs",
		"retry.go", "!some || due > now", "!some || due < 0 && due > now"),
	bug("a heap forgets where its waits are", "BackoffGives",
		"retry.go", "	h[i].index, h[j].index = i, j\n", ""),
	bug("a try that comes waits again", "BackoffIs",
		"dispatch.go", "	m.step = stepAttempt\n", ""),
	bug("attempts are not counted", "MaxAttempts",
		"worker.go", "	m.attempts++\n", ""),
	bug("a share's bytes are not counted", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", "	s.pending.Add(n)\n", ""),
	bug("a share's bytes stay counted", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", "	s.pending.Add(-n)\n", ""),
	bug("the total is not counted", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", "	s.window.total.Add(n)\n", ""),
	bug("a stream's bytes stay counted", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"shard.go", "			s.window.share.sub(b.bytes)\n", ""),
	bug("bytes are counted off twice", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"dispatch.go", "	b.bytes += m.size\n", "	b.bytes += 2 * m.size\n"),
	bug("a mail run's bytes stay counted", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree|AfterManyQuick",
		"mailbox.go", "				b.bytes += list[i].size\n", "				_ = list[i].size\n"),
	bug("at the bound everybody reads", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", "	if total < w.bound {\n", "	if total <= w.bound {\n"),
	bug("at the bound nobody reads", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", "	return own == 0 || own < w.share() && total-w.bound < w.bound\n", "	return own == 0 && total < w.bound\n"),
	bug("above twice the bound shares are read", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", "own < w.share() && total-w.bound < w.bound", "own < w.share()"),
	bug("a member that has left still has a share", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", "	w.members.Add(-1)\n", ""),
	bug("nobody is told that shares have grown", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", `	if w.waits.Load() > 0 {
		w.wakeReaders()
	}
`, ""),
	bug("room below the bound wakes nobody", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", "		w.wakeFirst()\n", "		_ = before\n"),
	bug("room below twice the bound wakes nobody", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", `		w.wakeReaders()
	case`, `		_ = before
	case`),
	bug("who falls below its share is not told", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", "	if s.waiting.Load() && s.mayRead() { // it has", "	if s.waiting.Load() && total < 0 { // it has"),
	bug("a member looks before it registers", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", `	w := s.window
	w.mu.Lock()
	if s.prev = w.last; s.prev`, `	w, may := s.window, s.mayRead()
	if may {
		defer func() { must = false }()
	} else {
		defer func() { must = true }()
	}
	w.mu.Lock()
	if s.prev = w.last; s.prev`),
	bug("who is woken does not wake the next", "ByteWindow|MaxPendingBytes|BytesComeBack|BytesThatComeFree",
		"window.go", "	if w.first != nil && w.total.Load() < w.bound {\n", "	if w.first != nil && w.total.Load() < 0 {\n"),
}
