package flow

import (
	"sync"
	"unsafe"
)

// mailbox joins a reader to its shard. What is received lies in chunks; the shard takes all there are at once and gives
// the empty ones back. A channel of single messages would be a lock on both sides, and often a wake-up, for each of
// them: 60 ns and more where this takes 18.
//
// All fields are guarded by mu, which is held for a few instructions, and under which no event is sent. The reader alone
// puts, and the shard alone takes; close, total and visit may be called from anywhere.
//
// Chunks have one owner: those in the list are the mailbox's, and the reader appends to the last one; those that were taken
// are the shard's, which lends a claimed entry to the worker of a mail run. received never falls, and is the count with
// which a stream ends: everything is finished when as many have finished.
//
// told spares the reader an event for each message. It is set from a put until take finds nothing; so while it is set the
// shard is bound to take once more, and whatever is put before that is found.
type mailbox[T any] struct {
	mu       sync.Mutex
	first    *chunk[T] // the oldest that has something
	last     *chunk[T]
	small    *chunk[T] // for a stream that has little pending; nil while it is in use
	spare    *chunk[T] // of full length, for a stream that is busy
	received uint64    // messages so far
	shut     bool      // nothing is received any more
	told     bool      // the shard is bound to look here: the reader need not tell it
}

// entry is a message as it was received. It is written by the reader before it is put, and not changed after. The shard
// clears it when it has made a message of it or has counted it, since its chunk lives on.
type entry[T any] struct {
	value    T
	seq      uint64
	key      string
	hash     uint64 // of its lane
	received int64  // when, in nanoseconds since the stream's start; kept for the Observer and IdleTimeout
	size     int64  // bytes; kept for MaxPendingBytes
	crash    error  // of the key function
}

// chunk holds entries in order of receipt.
type chunk[T any] struct {
	next *chunk[T]
	list []entry[T]
}

// Lengths of chunks. A stream with one message pending pays for a small chunk only: ten thousand streams may be so.
const (
	smallChunk = 256     // bytes, about; at least one entry
	fullChunk  = 4 << 10 // bytes, about; at most 64 entries
)

// isSmall reports whether k is one that its stream keeps. All others are of full length, and any stream's.
func (k *chunk[T]) isSmall() bool { return cap(k.list) < chunkLength[T](fullChunk) }

func chunkLength[T any](bytes int) int {
	return max(1, min(64, bytes/int(unsafe.Sizeof(entry[T]{}))))
}

// put receives e. ok is false if nothing is received any more; tell says that the shard must be told. The reader calls it,
// and tells the shard after it has returned: to do so under the lock would have the shard, which takes, wait for a reader
// that waits for room in the shard's channel.
func (b *mailbox[T]) put(e *entry[T], pool *sync.Pool) (ok, tell bool) {
	b.mu.Lock()
	if b.shut {
		b.mu.Unlock()
		return false, false
	}
	k := b.last
	if k == nil || len(k.list) == cap(k.list) {
		k = b.growLocked(pool)
	}
	k.list = append(k.list, *e)
	b.received++
	tell = !b.told
	b.told = true
	b.mu.Unlock()
	return true, tell
}

// growLocked returns a new last chunk. A busy stream has spare ones. One that has little pending gets by with its small one,
// which is made for its first message and used again whenever nothing else is in the mailbox.
func (b *mailbox[T]) growLocked(pool *sync.Pool) (k *chunk[T]) {
	switch {
	case b.spare != nil:
		k, b.spare = b.spare, b.spare.next
		k.next = nil
	case b.first == nil && b.small != nil:
		k, b.small = b.small, nil
	case b.first == nil && b.received == 0:
		k = &chunk[T]{list: make([]entry[T], 0, chunkLength[T](smallChunk))}
	default:
		if k, _ = pool.Get().(*chunk[T]); k == nil {
			k = &chunk[T]{list: make([]entry[T], 0, chunkLength[T](fullChunk))}
		}
	}
	if b.last == nil {
		b.first = k
	} else {
		b.last.next = k
	}
	b.last = k
	return k
}

// take takes everything out, and gives back a chunk that has been emptied. It returns nil if there is nothing: then the
// reader will tell the shard of the next. The shard calls it when it has used up what it took before. Only then does it give
// its last chunk back, so that no lock is taken just for that. A stream that is found to have nothing keeps its small chunk
// at most: a burst leaves the full ones to the pool, for other streams.
func (b *mailbox[T]) take(empty *chunk[T], pool *sync.Pool) (all *chunk[T]) {
	b.mu.Lock()
	all = b.first
	b.first, b.last = nil, nil
	if empty != nil {
		empty.list, empty.next = empty.list[:0], nil
		switch {
		case empty.isSmall() || chunkLength[T](fullChunk) == chunkLength[T](smallChunk):
			b.small, empty = empty, nil
		case all != nil: // the stream is busy
			empty.next, b.spare, empty = b.spare, empty, nil
		}
	}
	var idle *chunk[T]
	// This happens under the same lock as the look at first, so that the shard is told of a message that is put after it.
	if all == nil {
		b.told = false
		idle, b.spare = b.spare, nil
	}
	b.mu.Unlock()
	if empty != nil {
		pool.Put(empty)
	}
	for idle != nil {
		next := idle.next
		idle.next = nil
		pool.Put(idle)
		idle = next
	}
	return all
}

// keep takes back the small chunk, which has been emptied though others follow.
func (b *mailbox[T]) keep(small *chunk[T]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.small = small
}

// close receives nothing more. What lies here stays, and is taken as before. It may be called more than once: whoever ends a
// stream calls it, and the shard again, at the latest when the stream is done.
func (b *mailbox[T]) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut = true
}

// closeAt is close if n messages have been received so far. It reports whether that is so.
func (b *mailbox[T]) closeAt(n uint64) (closed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.received != n {
		return false
	}
	b.shut = true
	return true
}

// total returns how many messages have been received. It is ahead of the ledger's count by what the shard has not lined up.
func (b *mailbox[T]) total() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.received
}

// visit calls see for what lies here, in order of receipt. see may not keep the entry, which moves on when the lock is free.
func (b *mailbox[T]) visit(see func(*entry[T])) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k := b.first; k != nil; k = k.next {
		for i := range k.list {
			see(&k.list[i])
		}
	}
}

// mailRun is a run straight from a stream's mailbox: its worker takes what was received as it lies there, one entry after
// the other, so that lining up and settling cost nothing for each message. It is for messages that are quick (the runs
// are of full length) in a stream of which nothing that must run before them is under way, and it keeps the order of
// receipt, so it keeps every order. It costs 62 ns of processor time a message where a run of lined-up ones costs 132.
//
// It ends at the first message that does not simply succeed, or that belongs to one of the few keys that are busy
// elsewhere: a key that is known to be slow, or skipped, or has messages in a lane. That one becomes an ordinary message. A
// mail run that stands still is recalled like any other: the message that runs becomes an ordinary one, in front of its lane,
// and what lies behind it is lined up.
//
// A stream has one at a time, and while it is out nothing else may take from the stream's mailbox or line up its messages:
// what came later would overtake what is in it. The shard sets it up; then the worker writes err and crashed, and nothing
// else, until the run is back. The worker begins at chunk and pos and keeps its own place from there: those of the backlog
// are the shard's, which moves them as it settles. last is what the shard has made of the claimed entry when it recalled the
// run.
type mailRun[T any] struct {
	s       *stream[T]
	chunk   *chunk[T]
	pos     int
	n       int32 // entries, at most
	busy    busyKeys
	err     error // of the entry next, if its attempt has failed
	crashed bool  // that was a panic or a Goexit
	last    *message[T]
}

// mailRuns is the part of a shard that has to do with mail runs; the shard embeds it. All its methods run in the shard's
// goroutine.
type mailRuns[T any] struct{ sh *shard[T] }

// maxMail is how many messages a mail run takes at most: about 10 µs.
const maxMail = 2 * maxRun

// leaves reports whether e is no message for a mail run, whose worker then ends it and does not run e. The worker asks it
// before it runs an entry, and the shard when it recalls the run, of the same entry: both come to the same answer, since the
// set of busy keys is not changed while the run is out.
func (x *mailRun[T]) leaves(e *entry[T]) bool { return e.crash != nil || x.busy.has(e.hash) }

// mailRun makes a mail run of the next n messages of s, which must have been taken out of its mailbox: the worker must
// not look for more there, since the mailbox is not its own. It returns nil if too many keys are busy. send calls it with
// a slot in hand, and for a stream for which mayMail holds.
func (mr mailRuns[T]) mailRun(s *stream[T], n int32) *run[T] {
	sh := mr.sh
	b := &s.backlog
	r := sh.runs.new(runMail)
	if r.mail == nil {
		r.mail = new(mailRun[T])
	}
	x := r.mail
	if !sh.busyKeys(s, &x.busy) {
		sh.runs.reuse(r)
		return nil
	}
	x.s, x.chunk, x.pos, x.n = s, b.chunk, b.pos, n
	b.mailRun = r
	return r
}

// mailLength returns of how many entries a mail run of the stream whose turn it is would be: 0 if it may have none, or if
// anything is ready, which should run before. It takes streams out of the ring whose mailbox turns out to be empty.
func (mr mailRuns[T]) mailLength() int32 {
	sh := mr.sh
	for sh.nready == 0 && sh.hasMail() {
		s := sh.mail.first()
		b := &s.backlog
		if !sh.mayMail(s) {
			return 0
		}
		if b.fetch(&s.box, &sh.r.chunks) {
			return b.fetched(maxMail)
		}
		b.inMail = false
		sh.mail.pop()
		sh.touch(s) // it may be able to do with less memory now
	}
	return 0
}

// mayMail reports whether s may have a mail run. It may not where each message needs more than its handler: events for an
// Observer, a turn that others give too, a slot of its own since it may be refused, or to be counted by a soft policy; nor while
// its reader waits for a verdict, for which all is lined up. In a FIFO stream all messages are of one lane, so nothing of it may
// be under way, and no key skipped; with keys those that have a lane, and those that are skipped, are left alone.
func (mr mailRuns[T]) mayMail(s *stream[T]) bool {
	sh := mr.sh
	b := &s.backlog
	p := sh.r.gate.pressure
	if sh.r.observer != nil || p.soft() || p.refuses() || s.order.sharesTurns() || s.verdict.isAsked() || b.mailRun != nil {
		return false
	}
	if s.order.resolver != nil && s.order.line == 0 {
		return true
	}
	return b.skipped.len() == 0 && (s.order.resolver == nil || b.live.first == nil)
}

// busyKeys collects the keys of s that a mail run must leave alone. It reports whether they are few. To look at each lane
// takes time for each run, so a stream with many lanes has ordinary runs, by which the lanes become empty.
func (mr mailRuns[T]) busyKeys(s *stream[T], busy *busyKeys) bool {
	sh := mr.sh
	busy.clear()
	for key := range s.backlog.skipped.all() {
		if hash, ordered := s.order.place(key); !ordered || !busy.add(hash) {
			return false
		}
	}
	return s.order.resolver == nil || sh.pace.slow.addTo(busy) && s.order.own.hashesInto(busy)
}

// mailBack takes a mail run back from its worker. If it was not recalled, everything before next has succeeded, and the
// entry at next, if there is one, is the next of the mailbox. That one is for an ordinary run: it has failed, or was left
// alone. Once it was left in the mailbox instead: a mail run whose first entry was not for it came back and was sent out
// again, for ever.
//
// If it was recalled, the claimed entry has become the message last, unless its key was busy, in which case the worker has
// left it alone and it waits in its lane.
func (mr mailRuns[T]) mailBack(r *run[T]) {
	sh := mr.sh
	x := r.mail
	s := x.s
	b := &s.backlog
	m := x.last
	if !r.recalled {
		sh.runs.forget(r)
		switch {
		case x.err != nil:
			sh.pace.observe(r.next+1, r.took, 0, false, false)
			if r.next == 0 && x.n > 1 {
				sh.pace.stopped(r.took)
			}
		case r.next > 0: // otherwise no handler has run
			sh.pace.observe(r.next, r.took, 0, false, false)
		}
		sh.settleMail(r, r.next)
		b.mailRun = nil
		switch {
		case r.next == x.n:
		case x.err != nil:
			m = sh.lift(s, b.next(&s.box, &sh.r.chunks))
		default: // it is for an ordinary run
			sh.receive(s, b.next(&s.box, &sh.r.chunks), nil)
		}
	} else if m != nil && r.next > r.settled {
		m.attempts, m.outcome, m.step = 1, outcomeSucceeded, stepFinished
		sh.settle(m)
		m = nil
	}
	free := r.slots
	switch {
	case m == nil:
	case x.err == nil: // the worker has claimed it, and then left it alone
		sh.readyUnlessSwept(m)
	default:
		free = 0
		// The attempt has been made: what is left is to decide what comes of it, in the slot in which it was made.
		m.attempts, m.cause, m.crashed, m.step = 1, x.err, x.crashed, stepCause
		next := sh.runs.new(runExecute)
		next.add(m)
		next.slots = r.slots
		sh.give(next)
	}
	x.s, x.chunk, x.err, x.crashed, x.last = nil, nil, nil, false, nil
	sh.attend(s)
	sh.ranIn(free, 1)
}

// lift makes a message of an entry that is in front of all others of its lane. It has its turn by that, since no lane
// existed for its key when the run was made, and none has come into being since.
func (mr mailRuns[T]) lift(s *stream[T], e *entry[T]) *message[T] {
	sh := mr.sh
	m := sh.accept(s, e)
	if m.hash != 0 {
		if first, why := s.order.join(m.key, m.hash, &m.turn); !first && why == "" {
			panic("bug: a message of a mail run has one of its key before it")
		}
	}
	return m
}

// recallMail takes back what the worker of a mail run has not claimed. From the swap on the worker claims nothing more, but
// it may still be running the entry that it has claimed. What is behind that one must wait for it if it is of the same key:
// so it becomes a message in front of its lane, before anything behind it is lined up.
func (mr mailRuns[T]) recallMail(r *run[T]) {
	sh := mr.sh
	at := r.at.Swap(recalled)
	r.recalled = true
	x := r.mail
	s := x.s
	b := &s.backlog
	sh.settleMail(r, max(0, at))
	b.mailRun = nil
	if at >= 0 {
		// Its worker may be about to read the entry: so that, and the chunk, are left as they are, and what is behind it
		// goes on in a chunk of its own.
		b.skipEmpty(&s.box, &sh.r.chunks)
		k, rest := b.chunk, b.chunk.list[b.pos:]
		// An entry of a busy key, which the worker leaves alone, is lined up behind those of its key that came earlier. Once
		// it was not: it ran out of order, and later, taken for one in front of its lane, it made the shard panic.
		if e := rest[0]; !x.leaves(&e) {
			x.last = sh.lift(s, &e)
			x.last.state, x.last.run = stateOut, r
			r.list = append(r.list, x.last)
			r.end = 1
			rest = rest[1:]
		}
		if b.chunk, b.pos = k.next, 0; len(rest) > 0 {
			b.chunk = &chunk[T]{next: k.next, list: append(make([]entry[T], 0, chunkLength[T](fullChunk)), rest...)}
		}
	}
	sh.attend(s)
}

// settleMail settles the messages of a mail run up to the one that its worker has claimed. It counts a chunk at a time,
// without a look at each entry unless bytes are counted, and clears the entries, which keep nothing alive from then on. That
// is all there is to do for them: they have no lane, and no Observer hears of them. The worker has left what is cleared
// here: it reads the entry at, and none before.
func (mr mailRuns[T]) settleMail(r *run[T], at int32) {
	sh := mr.sh
	s := r.mail.s
	b := &s.backlog
	n := int(at - r.settled)
	if n <= 0 {
		return
	}
	r.settled = at
	for n > 0 {
		b.skipEmpty(&s.box, &sh.r.chunks)
		list := b.chunk.list[b.pos:min(len(b.chunk.list), b.pos+n)]
		if sh.r.bytes != nil {
			for i := range list {
				b.bytes += list[i].size
			}
		}
		b.ledger.succeed(uint64(len(list)), list[len(list)-1].seq)
		clear(list)
		b.pos += len(list)
		n -= len(list)
	}
	sh.touch(s)
}

// busyKeys is a small set of hashes. It is at most half full, so that a search ends soon. Hash 0, which is that of messages
// without an order, is never in it. A key that only shares its hash with a busy one is left alone too, which costs an
// ordinary run and breaks no order.
type busyKeys struct {
	n    int
	list [64]uint64 // by their last bits, and then in the next free place
}

// room returns how many more hashes there is room for.
func (b *busyKeys) room() int { return len(b.list)/2 - b.n }

// add reports whether there was room.
func (b *busyKeys) add(hash uint64) bool {
	if b.room() == 0 {
		return false
	}
	i := hash % uint64(len(b.list))
	for ; b.list[i] != 0; i = (i + 1) % uint64(len(b.list)) {
		if b.list[i] == hash {
			return true
		}
	}
	b.list[i] = hash
	b.n++
	return true
}

// has reports whether hash is in the set. The worker of a mail run asks it for each message.
func (b *busyKeys) has(hash uint64) bool {
	if b.n == 0 {
		return false
	}
	for i := hash % uint64(len(b.list)); b.list[i] != 0; i = (i + 1) % uint64(len(b.list)) {
		if b.list[i] == hash {
			return true
		}
	}
	return false
}

// clear empties the set; one that is empty costs nothing.
func (b *busyKeys) clear() {
	if b.n > 0 {
		*b = busyKeys{}
	}
}
