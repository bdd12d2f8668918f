package flow

import (
	"sync"
	"unsafe"
)

// mailbox joins a reader to its shard. What is received lies in chunks; the shard takes all there are at once and gives
// the empty ones back. A channel of single messages would be a lock on both sides, and often a wake-up, for each of
// them: 60 ns and more where this takes 18.
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

// entry is a message as it was received.
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
	smallChunk = 512     // bytes, about; at least one entry
	fullChunk  = 4 << 10 // bytes, about; at most 64 entries
)

func chunkLength[T any](bytes int) int {
	return max(1, min(64, bytes/int(unsafe.Sizeof(entry[T]{}))))
}

// put receives e. ok is false if nothing is received any more; tell says that the shard must be told.
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
// reader will tell the shard of the next.
func (b *mailbox[T]) take(empty *chunk[T], pool *sync.Pool) (all *chunk[T]) {
	b.mu.Lock()
	all = b.first
	b.first, b.last = nil, nil
	if empty != nil {
		empty.list, empty.next = empty.list[:0], nil
		switch {
		case cap(empty.list) < chunkLength[T](fullChunk) || chunkLength[T](fullChunk) == chunkLength[T](smallChunk):
			b.small, empty = empty, nil
		case all != nil: // the stream is busy
			empty.next, b.spare, empty = b.spare, empty, nil
		}
	}
	var idle *chunk[T]
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

// close receives nothing more.
func (b *mailbox[T]) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut = true
}

// total returns how many messages have been received.
func (b *mailbox[T]) total() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.received
}

// visit calls see for what lies here, in order of receipt.
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
// elsewhere: a key that is known to be slow, or has messages in a lane. That one becomes an ordinary message. A mail run
// that stands still is recalled like any other: the message that runs becomes an ordinary one, in front of its lane, and
// what lies behind it is lined up.
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

// mailRuns is the part of a shard that has to do with mail runs; the shard embeds it.
type mailRuns[T any] struct{ sh *shard[T] }

// maxMail is how many messages a mail run takes at most: about 10 µs.
const maxMail = 2 * maxRun

// leaves reports whether e is no message for a mail run, whose worker then ends it and does not run e.
func (x *mailRun[T]) leaves(e *entry[T]) bool { return e.crash != nil || x.busy.has(e.hash) }

// mailRun makes a mail run of s. It returns nil if there is none to be made.
func (mr mailRuns[T]) mailRun(s *stream[T]) *run[T] {
	sh := mr.sh
	b := &s.backlog
	r := sh.runs.new(runMail)
	if r.mail == nil {
		r.mail = new(mailRun[T])
	}
	x := r.mail
	if !sh.busyKeys(s, &x.busy) || !b.fetch(&s.box, &sh.r.chunks) {
		sh.runs.reuse(r)
		return nil
	}
	x.s, x.chunk, x.pos = s, b.chunk, b.pos
	n := len(b.chunk.list) - b.pos
	for k := b.chunk.next; k != nil && n < maxMail; k = k.next {
		n += len(k.list)
	}
	x.n = int32(min(n, maxMail))
	b.mailRun = r
	return r
}

// mayMail reports whether s may have a mail run.
func (mr mailRuns[T]) mayMail(s *stream[T]) bool {
	sh := mr.sh
	b := &s.backlog
	return sh.r.observer == nil && !b.direct && b.mailRun == nil && !sh.r.gate.pressure.soft() &&
		(s.order.resolver == nil || b.live.first == nil || s.order.line == 0)
}

// busyKeys collects the keys of s that a mail run must leave alone. It reports whether they are few.
func (mr mailRuns[T]) busyKeys(s *stream[T], busy *busyKeys) bool {
	sh := mr.sh
	busy.clear()
	return s.order.resolver == nil || sh.pace.slowInto(busy) && s.order.own.hashesInto(busy)
}

// mailBack takes a mail run back from its worker.
func (mr mailRuns[T]) mailBack(r *run[T]) {
	sh := mr.sh
	x := r.mail
	s := x.s
	b := &s.backlog
	m := x.last
	if !r.recalled {
		sh.runs.forget(r)
		sh.pace.observe(max(1, r.next), r.took, 0, false, false)
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
	switch {
	case m == nil:
		sh.slots.free(r.slots)
	case x.err == nil: // the worker has claimed it, and then left it alone
		sh.slots.free(r.slots)
		sh.ready(m)
	default:
		m.attempts, m.cause, m.crashed, m.step = 1, x.err, x.crashed, stepCause
		next := sh.runs.new(runExecute)
		next.add(m)
		next.slots = r.slots
		sh.give(next)
	}
	x.s, x.chunk, x.err, x.crashed, x.last = nil, nil, nil, false, nil
	sh.attend(s)
}

// lift makes a message of an entry that is in front of all others of its lane.
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

// recallMail takes back what the worker of a mail run has not claimed.
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
		b.skipEmpty(&sh.r.chunks)
		k, rest := b.chunk, b.chunk.list[b.pos:]
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

// settleMail settles the messages of a mail run up to the one that its worker has claimed.
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
		b.skipEmpty(&sh.r.chunks)
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

// busyKeys is a small set of hashes.
type busyKeys struct {
	n    int
	list [64]uint64 // by their last bits, and then in the next free place
}

// add reports whether there was room.
func (b *busyKeys) add(hash uint64) bool {
	if b.n == len(b.list)/2 {
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

func (b *busyKeys) clear() {
	if b.n > 0 {
		*b = busyKeys{}
	}
}
