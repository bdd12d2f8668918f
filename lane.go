package flow

import (
	"iter"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
)

// Lanes are the keyed FIFO: one queue for each key that has something in it, found through a hash table.
// No two keys share a queue, so a slow key delays nobody; hashing keys onto a fixed set of workers, the usual way,
// makes keys wait that have nothing to do with each other.
//
// A lane is a list of turns, and its head is the one whose turn has come. It exists only while it has a head: a key
// that is idle costs nothing. It is a list and not a channel because an element of it must be removable from the middle
// (its stream ended), because a channel per key needs a goroutine per key to serve it, and because a list costs a tenth:
// with 1,024 keys a channel and a goroutine per active key took 434 ns a message where a list in a table took 75.
// The list is intrusive: the turns are part of what waits, so that to wait allocates nothing.

// turn is a place in a lane. A message embeds one, and so does a direct caller's laneWaiter; it is in one lane at a time, or
// in none. All fields but owner are guarded by what guards the lane: the shard that owns the table, or the laneShard's lock.
// owner never changes, and a message's home is set when it is accepted, before it joins a lane.
type turn struct {
	lane       *lane // nil: in none
	prev, next *turn
	owner      turnOwner
	home       turnHome // whose turn it is to hand on; nil: the owner is told itself
	// spare is a lane's memory, which every turn has but a lane's head, whose spare the lane is: so a key's coming and
	// going allocates nothing, and there is no list of free lanes to keep small.
	spare *lane
}

// turnOwner is told, once and with no lock held, that a turn which had to wait has come. Only an owner without a home is
// told: a direct caller of a resolver or a Gate, who waits on a goroutine of his own.
type turnOwner interface{ turnCame() }

// turnHome is told, with no lock held, that the turn of an owner of its own has come. It is a shard: what its messages do
// next is decided on its goroutine alone, so whoever ends the turn before theirs, on whatever goroutine, only hands it over.
type turnHome interface{ handOver(turnOwner) }

// lane is the queue of one key. It is in its table exactly as long as it has a head, and the head has the turn: so who finds
// no lane has the turn at once, and nobody needs a flag that says who runs.
type lane struct {
	name       string
	hash       uint64
	chain      *lane // the next lane of the hash bucket
	head, tail *turn
	n          int
}

// laneBounds are what the lanes of one scope have in common: all lanes of a resolver with ScopeFlow, those of one stream
// otherwise (see laneResolver.bounds). They are safe for concurrent use: tables that share them have different locks, and a
// reader looks how near the bound is (see mayRefuse) while its shard lines up.
type laneBounds struct {
	opts    OrderingOptions
	closed  *atomic.Bool // the resolver's
	waiting atomic.Int64 // turns behind a head; kept only when Ordering.Capacity bounds it
}

// reserve counts one more waiting turn, unless Capacity of them wait: tables share the count, hence the loop.
func (b *laneBounds) reserve() bool {
	limit := int64(b.opts.Capacity)
	if limit == 0 {
		return true
	}
	for {
		n := b.waiting.Load()
		if n >= limit {
			return false
		}
		if b.waiting.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// unreserve takes back what reserve has counted: the turn has become a head, or has left before that.
func (b *laneBounds) unreserve() {
	if b.opts.Capacity > 0 {
		b.waiting.Add(-1)
	}
}

// laneTable finds lanes by name. It is not safe for concurrent use: a stream's own table belongs to its shard, and a table
// that streams share has the lock of its laneShard.
//
// It is a hash table of its own and not a map, since the lanes are links of its chains: a key that comes and goes allocates
// nothing, and the caller has computed the hash already, which the lists of slow and busy keys need too. The buckets double
// when there are as many lanes. They are given back when there are no lanes (see trim), and become fewer when there were few
// for long (see remove).
type laneTable struct {
	bounds  *laneBounds
	buckets []*lane // a power of two of them
	lanes   int
	sparse  int // lanes that have gone since an eighth of the buckets were in use
}

const (
	minBuckets  = 16
	idleBuckets = 128 // as many as a table keeps that has no lanes: the next burst will not have to make it grow
)

// join appends t to the lane called name. first says that its turn has come with that; if not, it comes when leave
// returns it. A reason that is not "" says why t was refused: it then is in no lane.
//
// The bounds count what waits behind a head, as the contract does: KeyCapacity looks at this lane, Capacity at all lanes of
// the scope. A turn that is first never counts, so neither bound can refuse a key that is idle. They are looked at here and
// never again: a message that was accepted is not refused later.
func (tb *laneTable) join(name string, hash uint64, t *turn) (first bool, why reason) {
	if tb.bounds.closed.Load() {
		return false, reasonOrderShut
	}
	l := tb.find(name, hash)
	if l == nil {
		tb.open(name, hash, t)
		return true, ""
	}
	if kc := tb.bounds.opts.KeyCapacity; kc > 0 && l.n-1 >= kc {
		return false, reasonKeyFull
	}
	if !tb.bounds.reserve() {
		return false, reasonOrderFull
	}
	t.lane, t.prev = l, l.tail
	l.tail.next = t
	l.tail = t
	l.n++
	return false, ""
}

// open makes a lane for t, whose turn it is with that. The lane's memory is t's spare, which t does not have for as long as
// it is the head.
func (tb *laneTable) open(name string, hash uint64, t *turn) {
	l := t.spare
	t.spare = nil
	*l = lane{name: name, hash: hash, head: t, tail: t, n: 1}
	tb.add(l)
	t.lane = l
}

// leave takes t out of its lane, wherever it stands. If it was the head, the turn of the one behind it has come: that
// one is returned, and the caller must see to it. The lane of a last turn ceases to exist.
//
// It is called once for each turn that has joined, and for a head only when nothing of its message runs any more, a caller's
// own release included: the one behind may start as soon as this returns. A head leaves the lane's memory to its successor
// and takes the successor's spare, so that there are always as many lanes' memories as turns.
func (tb *laneTable) leave(t *turn) (next *turn) {
	l := t.lane
	l.n--
	switch {
	case l.head != t:
		tb.bounds.unreserve()
		t.prev.next = t.next
		if t.next != nil {
			t.next.prev = t.prev
		} else {
			l.tail = t.prev
		}
	case t.next != nil:
		tb.bounds.unreserve()
		next = t.next
		next.prev, l.head = nil, next
		t.spare, next.spare = next.spare, nil
	default:
		tb.remove(l)
		t.spare = l
	}
	t.lane, t.prev, t.next = nil, nil, nil
	return next
}

// cancelWait takes t out of its lane if it stands there behind the head, and reports whether it did: nobody's turn comes
// by it. To look and to leave is one step, under the lock where there is one: in a lane that streams share the turn of a
// message that is dropped may come meanwhile. When these were two steps, both the sweep of the stream and whoever passed
// the turn on took the message on, and the next in the lane was forgotten. A head is left alone: it is in its lane until it
// has been brought to its end like any other message, by which the next gets its turn.
func (tb *laneTable) cancelWait(t *turn) bool {
	if t.lane == nil || t.lane.head == t {
		return false
	}
	tb.leave(t)
	return true
}

func (tb *laneTable) bucket(hash uint64) **lane { return &tb.buckets[hash&uint64(len(tb.buckets)-1)] }

// find returns the lane called name, or nil. The hash alone does not say it: keys are chosen by clients, and two keys must
// never share a lane, whatever their hashes are.
func (tb *laneTable) find(name string, hash uint64) *lane {
	if tb.lanes == 0 {
		return nil
	}
	l := *tb.bucket(hash)
	for l != nil && (l.hash != hash || l.name != name) {
		l = l.chain
	}
	return l
}

// hashesInto adds the hashes of all lanes to busy. It reports whether there was room for them. It is called for each mail
// run, which must leave these keys alone. A large table with few lanes is made small before it is looked through: with one key
// that is always slow it is never empty, and it was once left large, since ordinary runs kept too many lanes for shrink, so that
// there were no mail runs again.
func (tb *laneTable) hashesInto(busy *busyKeys) bool {
	switch {
	case tb.lanes == 0:
		return true
	case tb.lanes > len(busy.list)/2:
		return false
	case len(tb.buckets) > idleBuckets:
		tb.resize(idleBuckets)
	}
	for _, l := range tb.buckets {
		for ; l != nil; l = l.chain {
			if !busy.add(l.hash) {
				return false
			}
		}
	}
	return true
}

func (tb *laneTable) add(l *lane) {
	if tb.lanes == len(tb.buckets) {
		tb.resize(max(minBuckets, 2*len(tb.buckets)))
	}
	b := tb.bucket(l.hash)
	l.chain, *b = *b, l
	tb.lanes++
}

// remove takes l out of the table, and leaves nothing in it: its memory goes on as somebody's spare, and would keep the name,
// which is a client's key, alive.
func (tb *laneTable) remove(l *lane) {
	b := tb.bucket(l.hash)
	for *b != l {
		b = &(*b).chain
	}
	*b = l.chain
	tb.lanes--
	*l = lane{}
	tb.shrink()
}

// shrink makes the table smaller when it has been mostly empty while as many lanes have gone as it has buckets: one that was
// full once, and always has some lane, would stay large for ever. To wait for that long costs one step for each lane that
// goes, and spares a table that is full and nearly empty in turns.
func (tb *laneTable) shrink() {
	if len(tb.buckets) <= idleBuckets {
		return
	}
	if 8*(tb.lanes+1) > len(tb.buckets) {
		tb.sparse = 0
		return
	}
	if tb.sparse++; tb.sparse >= len(tb.buckets) {
		tb.resize(len(tb.buckets) / 4)
	}
}

// resize spreads the lanes over n buckets. It moves them all at once: that is done again only when their number has doubled,
// or when as many have gone as there are buckets.
func (tb *laneTable) resize(n int) {
	old := tb.buckets
	tb.sparse = 0
	tb.buckets = make([]*lane, n)
	for _, l := range old {
		for l != nil {
			rest := l.chain
			b := tb.bucket(l.hash)
			l.chain, *b = *b, l
			l = rest
		}
	}
}

// trim gives memory back while there are no lanes: a table that was full once must not stay large for ever. A shared table
// is trimmed as soon as it is empty. A stream's own is trimmed by its shard when nothing of the stream is pending (see
// flush): the table of a busy stream is empty for a moment again and again, and would have to grow anew each time.
func (tb *laneTable) trim() {
	if tb.lanes == 0 && len(tb.buckets) > idleBuckets {
		tb.buckets = nil
	}
}

// sharedLanes are lanes for many: streams with ScopeFlow, and direct callers. They lie in several tables with a lock each, so
// that their users rarely meet at one lock. The locks are leaves: while one is held no other is taken, another laneShard's
// included, and nothing of the caller's is called; whose turn has come is told after it has been given back.
type sharedLanes struct{ shards [laneShards]laneShard }

const laneShards = 16

type laneShard struct {
	mu sync.Mutex
	laneTable
	_ [64]byte // keeps neighbouring shards' locks off one cache line
}

func newSharedLanes(bounds *laneBounds) *sharedLanes {
	sl := new(sharedLanes)
	for i := range sl.shards {
		sl.shards[i].bounds = bounds
	}
	return sl
}

// shard spreads by the high bits, buckets by the low ones.
func (sl *sharedLanes) shard(hash uint64) *laneShard { return &sl.shards[hash>>60%laneShards] }

func (sh *laneShard) join(name string, hash uint64, t *turn) (first bool, why reason) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.laneTable.join(name, hash, t)
}

// leave is laneTable.leave. It also returns the home of the one whose turn has come, which is that one's only as long as the
// shard is locked: once it is not, that message may be brought to its end by its own shard, and be used again. For the same
// reason who is told of a turn looks whether it still has it (see shard.grant).
func (sh *laneShard) leave(t *turn) (next *turn, home turnHome) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if next = sh.laneTable.leave(t); next != nil {
		home = next.home
	}
	sh.trim()
	return next, home
}

func (sh *laneShard) cancelWait(t *turn) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.laneTable.cancelWait(t)
}

// follower returns the turn behind t, which is in a lane, if that is of the same home; nil otherwise. Only a message of its
// own may a shard put into a run: what becomes of another's is that one's to say.
func (sl *sharedLanes) follower(t *turn, hash uint64) *turn {
	sh := sl.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if t.next == nil || t.next.home != t.home {
		return nil
	}
	return t.next
}

// backlog is what a stream's shard knows of it: which of its messages are not finished, and where they are. It is the
// shard's alone; once the stream is done anybody may read it.
//
// An unfinished message is in exactly one place: in the mailbox, in chunk (taken out of it), or a message[T], in live, whose
// state says where it is. What visits the backlog in this order, live, chunk, mailbox, sees it in order of receipt, which
// Progress and Summary rely on.
//
// The flags say in which of its shard's lists the stream is, so that it is in each at most once and nothing needs to be
// searched for. swept comes before ended, and neither is ever taken back.
type backlog[T any] struct {
	chunk *chunk[T] // taken out of the mailbox,
	pos   int       // of the first of its entries that is not lined up

	mailRun *run[T] // that takes its entries straight from chunk; nil: there is none

	live    liveList[T]
	ready   messageQueue[T] // those that have their turn and no worker
	behind  messageQueue[T] // while a batch is filled: those that may be in it with what is before them
	ledger  ledger
	bytes   int64 // of messages that have finished since the last flush
	skipped skippedKeys

	direct   bool // none waits in the mailbox for long, since to line it up decides something
	inMail   bool // it is in the shard's list of streams that have mail
	inTurns  bool // it is in the shard's list of streams that have something ready
	inDirect bool // it is in the shard's list of direct streams
	touched  bool // it is in the shard's list of streams to look at
	owed     bool // it is in the shard's list of streams whose readers wait for little room
	refusing bool // a refusal is under way: what comes behind it waits in the mailbox
	swept    bool // it is over, and what had not begun has been dropped
	ended    bool // it is done
}

// next takes the next entry out of the mailbox. It returns nil if there is none: then the reader tells the shard of the
// next one. The caller must make a message of the entry before it calls next again, and must not call it while there is a
// mail run, whose worker takes the entries from pos on.
func (b *backlog[T]) next(box *mailbox[T], pool *sync.Pool) *entry[T] {
	if !b.fetch(box, pool) {
		return nil
	}
	b.pos++
	return &b.chunk.list[b.pos-1]
}

// fetch sees to it that the next entry is in chunk at pos. It reports whether there is one. To the mailbox, which costs its
// lock, it goes only when everything that was taken out before is used up; the empty chunk goes back by the same way.
func (b *backlog[T]) fetch(box *mailbox[T], pool *sync.Pool) bool {
	b.skipEmpty(box, pool)
	if b.chunk != nil && b.pos < len(b.chunk.list) {
		return true
	}
	b.chunk, b.pos = box.take(b.chunk, pool), 0
	return b.chunk != nil
}

// fetched returns how many entries were taken out of the mailbox and are not lined up, up to most.
func (b *backlog[T]) fetched(most int) int32 {
	n := len(b.chunk.list) - b.pos
	for k := b.chunk.next; k != nil && n < most; k = k.next {
		n += len(k.list)
	}
	return int32(min(n, most))
}

// skipEmpty gives the chunks back that are used up and have another behind them. The last one stays, as the one that fetch
// gives back to the mailbox. Nobody reads a chunk that is behind pos: its entries are lined up, or settled, and the worker
// of a mail run leaves a chunk before it claims an entry of the next (see serveMail).
//
// The pool gets full ones only. It once got small ones too, until it had little else for busy streams.
func (b *backlog[T]) skipEmpty(box *mailbox[T], pool *sync.Pool) {
	for b.chunk != nil && b.pos == len(b.chunk.list) && b.chunk.next != nil {
		empty := b.chunk
		b.chunk, b.pos = empty.next, 0
		empty.list, empty.next = empty.list[:0], nil
		if empty.isSmall() {
			box.keep(empty)
		} else {
			pool.Put(empty)
		}
	}
}

// visit shows see everything that is not finished, in order of receipt: messages, and what is not lined up yet, whose m
// is nil.
func (b *backlog[T]) visit(box *mailbox[T], see func(m *message[T], seq uint64, e *entry[T])) {
	for m := b.live.first; m != nil; m = m.nextLive {
		see(m, m.seq, &m.entry)
	}
	show := func(e *entry[T]) { see(nil, e.seq, e) }
	for k, i := b.chunk, b.pos; k != nil; k, i = k.next, 0 {
		for ; i < len(k.list); i++ {
			show(&k.list[i])
		}
	}
	box.visit(show)
}

// inMailRun returns the Seq of the message that a mail run has claimed, or 0. pos is where the first entry lies that is not
// settled, and the run's settled counts the same entries, so the claimed one lies as far behind pos as at is beyond settled.
// The worker goes on meanwhile: the answer is of the moment when at was read.
func (b *backlog[T]) inMailRun() uint64 {
	if b.mailRun == nil {
		return 0
	}
	at := b.mailRun.at.Load()
	if at < 0 {
		return 0
	}
	i := b.pos + int(at-b.mailRun.settled)
	for k := b.chunk; k != nil; k = k.next {
		if i < len(k.list) {
			return k.list[i].seq
		}
		i -= len(k.list)
	}
	return 0
}

// firstPending returns the lowest Seq that is lined up and not finished, or 0.
func (b *backlog[T]) firstPending() uint64 {
	if b.live.first == nil {
		return 0
	}
	return b.live.first.seq
}

// skipFromTheStart sees to it that no message of a key runs, which an earlier stream of the session has skipped. It is
// called by Run before the stream enters a shard, while the backlog is still Run's. The stream is direct from then on, as
// after a skip of its own: a message of a skipped key needs no capacity, and must not wait in the mailbox for a run that has
// room.
func (b *backlog[T]) skipFromTheStart(key string) {
	b.skipped.add(key, 0, sessionSkips) // so many were saved
	b.direct = true
}

// isSkipped reports whether m follows a message whose key OnFailure has skipped. Not if the key function has panicked: then
// the key is unknown, and the message has a failure of its own.
func (b *backlog[T]) isSkipped(m *message[T]) bool {
	return m.crash == nil && b.skipped.covers(m.key, m.seq)
}

// skippedKeys is the keys that OnFailure has skipped, each with the Seq from which on. It has one owner at a time, and its
// zero value is empty.
//
// Clients choose keys, and how long they are: so both their number and their bytes have a limit, since MaxPendingBytes
// counts only what is pending. Each is copied: a key is often cut out of its message, which it would keep alive.
type skippedKeys struct {
	from  map[string]uint64
	bytes int // of all keys
}

// skipLimit is how many keys may be skipped, and how many bytes they may have together.
type skipLimit struct{ keys, bytes int }

var (
	streamSkips  = skipLimit{keys: 65536, bytes: 16 << 20}
	sessionSkips = skipLimit{keys: maxSessionSkipped, bytes: maxSessionSkippedBytes} // in what is saved of a session
)

// add notes that key is skipped behind the message seq. It reports false, and notes nothing, if that is beyond the limit:
// the stream then ends, since to run the key's later messages would break the promise, and to forget another key too. Of two
// skips of a key the lower Seq counts: a refusal on receipt may be skipped while an earlier message of the key still runs,
// and is skipped in its turn.
func (k *skippedKeys) add(key string, seq uint64, limit skipLimit) bool {
	if from, ok := k.from[key]; ok {
		if seq < from {
			k.from[key] = seq
		}
		return true
	}
	if len(k.from) == limit.keys || len(key) > limit.bytes-k.bytes {
		return false
	}
	if k.from == nil {
		k.from = make(map[string]uint64)
	}
	k.from[strings.Clone(key)] = seq
	k.bytes += len(key)
	return true
}

// covers reports whether the message seq of key follows one with which key was skipped.
func (k *skippedKeys) covers(key string, seq uint64) bool {
	from, ok := k.from[key]
	return ok && seq > from
}

func (k *skippedKeys) len() int { return len(k.from) }

// all returns the keys, in no order.
func (k *skippedKeys) all() iter.Seq[string] { return maps.Keys(k.from) }
