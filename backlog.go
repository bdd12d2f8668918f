package flow

import "sync"

// backlog is what a stream's shard knows of it: which of its messages are not finished, and where they are. It is the
// shard's alone; once the stream is done anybody may read it.
//
// An unfinished message is in exactly one place: in the mailbox, in chunk (taken out of it), or a message[T], in live,
// whose state says where it is.
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

	direct   bool // messages are lined up as they are received, since that decides something
	inMail   bool // it is in the shard's list of streams that have mail
	inTurns  bool // it is in the shard's list of streams that have something ready
	touched  bool // it is in the shard's list of streams to look at
	owed     bool // it is in the shard's list of streams whose readers wait for little room
	refusing bool // a refusal is under way: what comes behind it waits in the mailbox
	swept    bool // it is over, and what had not begun has been dropped
	ended    bool // it is done
}

// next takes the next entry out of the mailbox. It returns nil if there is none: then the reader tells the shard of the
// next one.
func (b *backlog[T]) next(box *mailbox[T], pool *sync.Pool) *entry[T] {
	if !b.fetch(box, pool) {
		return nil
	}
	b.pos++
	return &b.chunk.list[b.pos-1]
}

// fetch sees to it that the next entry is in chunk at pos. It reports whether there is one.
func (b *backlog[T]) fetch(box *mailbox[T], pool *sync.Pool) bool {
	b.skipEmpty(pool)
	if b.chunk != nil && b.pos < len(b.chunk.list) {
		return true
	}
	b.chunk, b.pos = box.take(b.chunk, pool), 0
	return b.chunk != nil
}

// skipEmpty gives the chunks back that are used up and have another behind them.
func (b *backlog[T]) skipEmpty(pool *sync.Pool) {
	for b.chunk != nil && b.pos == len(b.chunk.list) && b.chunk.next != nil {
		empty := b.chunk
		b.chunk, b.pos = empty.next, 0
		empty.list, empty.next = empty.list[:0], nil
		pool.Put(empty)
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

// inMailRun returns the Seq of the message that a mail run has claimed, or 0.
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

// skipFromTheStart sees to it that no message of a key runs, which an earlier stream of the session has skipped.
func (b *backlog[T]) skipFromTheStart(key string) {
	b.skipped.add(key, 0, sessionSkips) // so many were saved
	b.direct = true
}

// isSkipped reports whether m follows a message whose key OnFailure has skipped.
func (b *backlog[T]) isSkipped(m *message[T]) bool {
	return m.crash == nil && b.skipped.covers(m.key, m.seq)
}
