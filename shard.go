package flow

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// shard is a goroutine that owns, without a lock, what its streams have under way: lanes, ready queues, retries, counts
// and ends. Everything reaches it by one typed channel: a stream has mail, a run is back, or a request. (A select of a
// channel for each took 400 ns a wait.) It never waits for anybody else: user code runs in workers, and a worker always
// has room for the run that it is given. So nothing that a caller's code does can stop it, and who sends to it is never
// stuck.
//
// Shards belong to a Receiver and exist while streams do.
type shard[T any] struct {
	r     *Receiver[T]
	users int // guarded by r.mu: streams, and what else needs the goroutine
	over  bool

	events     chan event[T]
	granted    grants[T]
	epoch      time.Time
	processors int // as it was started: to ask the runtime takes a lock of all its threads
	alarm      alarm

	queues[T]
	backoff backoff[T]
	free    messageCache[T]

	mailRuns[T]
	crew    crew[T]
	runs    runSet[T]
	pace    pace
	slots   slots
	batches *batches[T]   // nil: each message runs by itself
	sent    int           // runs since the shard last let others run
	blind   int           // runs since it last did what it does before it sleeps
	lookAt  time.Duration // when to look whether long runs stand still; 0: not at all
}

// queues are the streams of a shard for which there is something to do.
type queues[T any] struct {
	mail   ring[T]      // those whose mailbox may have something
	turns  ring[T]      // those that have something ready
	nready int          // messages in all ready queues
	look   []*stream[T] // those that have changed since the last flush
	owed   []*stream[T] // those whose readers wait for less room than is worth waking them for

	owedFrom time.Duration // when the first of these was seen; unset if there is none
}

// event is what a shard is told: one of these.
type event[T any] struct {
	mail *stream[T] // it has something in its mailbox, which was empty, or its state has changed
	back *run[T]    // its worker gives it back
	do   func()     // a request. It must not block
}

const (
	eventsLength = 64
	lookTime     = 500 * time.Microsecond // the longest time between looks at long runs; on an idle Linux 1 ms
	lookRuns     = 64                     // and the most runs between two, of a shard that does not sleep
)

func startShard[T any](r *Receiver[T]) *shard[T] {
	sh := &shard[T]{
		r: r, epoch: time.Now(), processors: runtime.GOMAXPROCS(0), events: make(chan event[T], eventsLength),
		pace: newPace(), slots: slots{p: r.gate.pressure},
	}
	sh.crew.sh, sh.mailRuns = sh, mailRuns[T]{sh}
	sh.owedFrom = unset
	sh.batches = newBatches(sh, r.batching)
	sh.alarm.fire = sh.rings
	go sh.run()
	return sh
}

func (sh *shard[T]) clock() time.Duration { return time.Since(sh.epoch) }

// run does one thing after the other until there are no users any more.
func (sh *shard[T]) run() {
	for !sh.over {
		if sh.poll() {
			continue
		}
		if sh.blind >= lookRuns {
			sh.catchUp()
		}
		if sh.dispatch() {
			continue
		}
		if sh.sent > 0 { // what was sent may be quick, and back by the time that others have run
			sh.sent = 0
			runtime.Gosched()
			if len(sh.events) > 0 {
				continue
			}
		}
		if !sh.lineUpIdle() {
			sh.wait()
		}
	}
	for sh.runs.out > 0 { // they were recalled before they were claimed
		sh.heed(<-sh.events)
	}
	sh.slots.trim(0)
	sh.alarm.stop()
	sh.free.empty(&sh.r.messages)
	sh.crew.end()
}

func (sh *shard[T]) heed(e event[T]) {
	switch {
	case e.back != nil:
		sh.runBack(e.back)
	case e.mail != nil:
		sh.attend(e.mail)
	case e.do != nil:
		e.do()
	}
}

// poll heeds what has come, without waiting.
func (sh *shard[T]) poll() (some bool) {
	for {
		select {
		case e := <-sh.events:
			sh.heed(e)
			some = true
			continue
		default:
		}
		for _, m := range sh.granted.take() {
			sh.grant(m)
			some = true
		}
		sh.flush()
		return some && !sh.over
	}
}

// wait blocks until something comes.
func (sh *shard[T]) wait() {
	if sh.over || sh.recallStuck() {
		return
	}
	sh.wakeOwed()
	sh.slots.trim(0)
	if !sh.wantsSlot() && !sh.hasMail() {
		sh.slots.stopAsking()
	}
	sh.arm()
	sh.heed(<-sh.events)
}

// catchUp does what a shard otherwise does before it sleeps, or when its alarm wakes it: it has been busy for long.
func (sh *shard[T]) catchUp() {
	sh.recallStuck()
	sh.wakeOwed()
	sh.doDue()
	sh.arm()
}

// wakeOwed wakes the readers that wait for less room than is worth waking them for: when no long run is out, which may soon
// make more of it, and else when they have waited for lookTime.
func (sh *shard[T]) wakeOwed() {
	if len(sh.owed) == 0 {
		return
	}
	if len(sh.runs.long) > 0 {
		now := sh.clock()
		if sh.owedFrom == unset {
			sh.owedFrom = now
		}
		if now-sh.owedFrom < lookTime {
			return
		}
	}
	for i, s := range sh.owed {
		s.backlog.owed = false
		s.window.wake()
		sh.owed[i] = nil
	}
	sh.owed, sh.owedFrom = sh.owed[:0], unset
}

// arm sets the alarm for what is due first.
func (sh *shard[T]) arm() {
	now := sh.clock()
	first, any := time.Duration(0), false
	consider := func(at time.Duration, ok bool) {
		if ok && (!any || at < first) {
			first, any = at, true
		}
	}
	if len(sh.runs.long) == 0 {
		sh.lookAt = 0
	} else if sh.lookAt == 0 {
		sh.lookAt = now + lookTime
	}
	consider(sh.lookAt, sh.lookAt > 0)
	consider(sh.backoff.next())
	consider(sh.crew.next(now))
	if b := sh.batches; b != nil {
		consider(b.due, b.forming != nil && b.due > now) // once it is due it lacks a slot
	}
	if any {
		sh.alarm.set(now, first)
	}
}

// rings asks the shard, when the alarm fires, to do what is due.
func (sh *shard[T]) rings() {
	sh.alarm.fired.Store(true) // first: if there is no room, it sees that when it sets the alarm before it sleeps
	select {
	case sh.events <- event[T]{do: sh.doDue}:
	default:
	}
}

// doDue does what is due.
func (sh *shard[T]) doDue() {
	sh.alarm.rang()
	now := sh.clock()
	for m, batch, ok := sh.backoff.pop(now); ok; m, batch, ok = sh.backoff.pop(now) {
		if batch != nil {
			sh.batches.again = append(sh.batches.again, batch)
		} else {
			sh.resume(m)
		}
	}
	if sh.lookAt > 0 && now >= sh.lookAt {
		sh.lookAt = 0
	}
	if at, ok := sh.crew.next(now); ok && now >= at {
		sh.crew.trim()
		if sh.runs.out == 0 && sh.nready == 0 {
			sh.free.empty(&sh.r.messages) // a burst leaves nothing behind
			sh.runs.spare = nil
			if sh.batches != nil {
				sh.batches.spare = nil
			}
		}
	}
}

// attend is told that s has mail, or that its state has changed.
func (sh *shard[T]) attend(s *stream[T]) {
	b := &s.backlog
	if b.ended {
		return
	}
	if s.state.phase() == phaseAborting {
		sh.sweep(s)
	}
	if sh.batches != nil {
		sh.batches.endCalls(s)
	}
	switch {
	case b.swept || b.refusing || b.mailRun != nil: // later
	case b.direct:
		sh.lineUpAll(s)
	case !b.inMail:
		b.inMail = true
		sh.mail.push(s)
	}
	sh.touch(s)
}

// touch has flush look at s.
func (sh *shard[T]) touch(s *stream[T]) {
	if !s.backlog.touched {
		s.backlog.touched = true
		sh.look = append(sh.look, s)
	}
}

// flush tells readers and others what has finished, and ends the streams of which everything has.
func (sh *shard[T]) flush() {
	for i, s := range sh.look {
		sh.look[i] = nil
		b := &s.backlog
		b.touched = false
		finished := b.ledger.finished()
		if sh.r.idle > 0 && finished != s.window.finished.Load() {
			s.activity.noted(s.clock())
		}
		s.window.finished.Store(finished)
		s.window.linedUp.Store(b.ledger.received)
		if b.bytes > 0 && s.window.share != nil {
			s.window.share.sub(b.bytes)
		}
		b.bytes = 0
		s.committed.Store(s.through(b.ledger.committed(b.firstPending())))
		switch {
		case b.ended:
		case s.state.phase() != phaseOpen && s.box.total() == finished:
			sh.end(s)
		default:
			sh.makeRoom(s)
			if b.live.first == nil && b.mailRun == nil && b.chunk == nil { // otherwise it would soon grow again
				s.order.trim()
			}
		}
	}
	sh.look = sh.look[:0]
}

// makeRoom wakes s's reader if it waits for room and there is enough. For less it is woken soon: see wakeOwed. Otherwise the
// places that a stuck key leaves would not be used.
func (sh *shard[T]) makeRoom(s *stream[T]) {
	w := &s.window
	if !w.waiting.Load() {
		return
	}
	if pending := s.box.total() - w.finished.Load(); pending == 0 || pending+w.batch() <= w.limit {
		w.wake()
	} else if !s.backlog.owed {
		s.backlog.owed = true
		sh.owed = append(sh.owed, s)
	}
}

// end ends s: everything has finished, and nothing more comes.
func (sh *shard[T]) end(s *stream[T]) {
	s.backlog.ended = true
	s.state.finishedAll()
	s.box.close()
	s.cancel(nil)
	s.order.trim()
	s.window.signal()
	close(s.done)
	sh.over = sh.r.leave(sh)
}

// sweep drops everything of s that has not begun.
func (sh *shard[T]) sweep(s *stream[T]) {
	b := &s.backlog
	if b.swept {
		return
	}
	b.swept = true
	s.box.close()
	s.order.end()
	s.window.signal()
	sh.recallAll(s)
	kind := s.abortKind()
	r := sh.runs.new(runFinish)
	sh.nready -= b.ready.n
	b.ready = messageQueue[T]{}
	for m := b.live.last; m != nil; {
		before := m.prevLive
		switch m.state {
		case stateOut, stateAsking: // they come back
			m = before
			continue
		case stateBackoff:
			sh.backoff.remove(m)
		case stateWaiting:
			s.order.cancelWait(&m.turn, m.hash)
		case stateForming, stateHeld:
			sh.batches.takeOut(m)
		}
		m.abort(kind)
		r.add(m)
		m = before
	}
	for i, j := 0, len(r.list)-1; i < j; i, j = i+1, j-1 { // drops are told in order of receipt
		r.list[i], r.list[j] = r.list[j], r.list[i]
	}
	for e := b.next(&s.box, &sh.r.chunks); e != nil; e = b.next(&s.box, &sh.r.chunks) {
		m := sh.accept(s, e)
		m.abort(kind)
		r.add(m)
	}
	sh.finish(r)
}

// keep makes the caller a user of sh for as long as a request of its own is under way.
func (sh *shard[T]) keep() {
	sh.r.mu.Lock()
	defer sh.r.mu.Unlock()
	sh.users++
}

// alarm is a shard's one timer, for everything that is due: looks at long runs, next tries, workers without work.
type alarm struct {
	fire  func() // tells the shard
	timer *time.Timer
	at    time.Duration // when it fires; 0: it does not
	fired atomic.Bool   // it has, and the shard may have been too busy to be told
}

// set has fire called at the time at, or before.
func (a *alarm) set(now, at time.Duration) {
	if a.fired.Swap(false) {
		a.at = 0
	}
	if a.at > 0 && a.at <= at {
		return
	}
	a.at = at
	if d := max(0, at-now); a.timer == nil {
		a.timer = time.AfterFunc(d, a.fire)
	} else {
		a.timer.Reset(d)
	}
}

// rang is told that it has fired.
func (a *alarm) rang() { a.at = 0 }

func (a *alarm) stop() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

// ring holds streams that take turns.
type ring[T any] struct {
	list []*stream[T]
	from int // of the first
}

func (q *ring[T]) len() int { return len(q.list) - q.from }

// first returns the one whose turn it is, or nil.
func (q *ring[T]) first() *stream[T] {
	if q.from == len(q.list) {
		return nil
	}
	return q.list[q.from]
}

func (q *ring[T]) push(s *stream[T]) {
	if q.from > 32 && 2*q.from > len(q.list) {
		n := copy(q.list, q.list[q.from:])
		clear(q.list[n:])
		q.list, q.from = q.list[:n], 0
	}
	q.list = append(q.list, s)
}

func (q *ring[T]) pop() {
	q.list[q.from] = nil
	if q.from++; q.from == len(q.list) {
		q.list, q.from = q.list[:0], 0
	}
}

// grants are the turns that others, who share lanes with a shard's streams, have handed to its messages.
type grants[T any] struct {
	some atomic.Bool // list is not empty
	mu   sync.Mutex
	list []*message[T]
}

func (g *grants[T]) add(m *message[T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.list = append(g.list, m)
	g.some.Store(true)
}

func (g *grants[T]) take() (all []*message[T]) {
	if !g.some.Load() {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	all, g.list = g.list, nil
	g.some.Store(false)
	return all
}
