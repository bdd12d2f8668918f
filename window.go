package flow

import (
	"math"
	"sync"
	"sync/atomic"
)

const defaultMaxPending = 1024

// window is how far a stream is read ahead: at most limit messages are received and not finished. Not to read is the
// only backpressure that gRPC has: HTTP/2 flow control then stops the client.
//
// The reader stores waiting before it looks at finished once more, and the shard stores finished before it looks at
// waiting, so one of the two sees the other. Once a finish between the reader's look and its registering went unseen, and the
// reader waited until the next message was done, which could be stuck.
type window struct {
	limit    uint64
	finished atomic.Uint64 // messages; the shard's to write
	linedUp  atomic.Uint64 // messages whose lane, and whether they are refused, is decided; the shard's to write
	waiting  atomic.Bool   // the reader waits for finished to change
	space    chan struct{} // wakes it; a token may be left over from a wake-up that it did not need
	share    *byteShare    // of the bytes that may be pending over the Flow; nil: they are not counted
}

func (w *window) init(limit int64) { w.limit, w.space = uint64(limit), make(chan struct{}, 1) }

// room returns how many messages may be read, of which so many have been received. The reader takes it as a credit and asks
// again only when that is used up: finished lies on a cache line that the shard writes.
func (w *window) room(received uint64) uint64 {
	if pending := received - w.finished.Load(); pending < w.limit {
		return w.limit - pending
	}
	return 0
}

// batch returns how much room is worth waking the reader for while there is something else to run: an eighth of the
// window. To wake it for each single place would cost a wake-up, a quarter of a microsecond, for each message.
func (w *window) batch() uint64 { return max(1, w.limit/8) }

// wake wakes the reader if it waits. The shard calls it after it has stored finished, when there is room that is worth it, or
// when nothing else is under way that would soon make more (see makeRoom and wakeOwed).
func (w *window) wake() {
	if w.waiting.Load() {
		w.signal()
	}
}

// signal wakes the reader, or has its next wait return at once. It never blocks, which a shard must not. That a token may be
// left over does no harm: a reader that is woken looks at everything once more (see awaitRoom).
func (w *window) signal() {
	select {
	case w.space <- struct{}{}:
	default:
	}
}

// unboundedPending is the window of a stream whose MaxPending is negative.
const unboundedPending = math.MaxInt64

// byteWindow bounds the bytes that its members, which are streams, have pending together. Not to read is all that it can
// make a member do, and the member asks before it reads a message, whose size nobody knows yet:
//
//   - While the total is below the bound, everybody may read.
//   - At the bound, a member may read while it has less pending than its share, which is bound / members. So members that
//     stand still, whatever they have pending, leave each other one its share, and nobody waits for them.
//   - At twice the bound, which members that stand still reach only by coming one after the other while the shares are
//     still large, a member may read that has nothing pending.
//
// So the total is at most twice the bound plus one message a member: of every other message that is pending, its member
// has since been allowed to read one more, and at the latest of these moments all of them were in a total below twice the
// bound.
//
// What makes members wait may end in four ways, each of which wakes those that it concerns and no others, since a wake-up
// costs more than a small message: see sub, leave and stopWaiting. A member that waits registers before it looks once
// more, and what changes the numbers looks for registered members afterwards, so one of the two sees the other.
type byteWindow struct {
	bound   int64
	total   atomic.Int64
	members atomic.Int64
	waits   atomic.Int64 // how many members wait, to be read without mu

	mu          sync.Mutex
	first, last *byteShare // of those that wait, the longest waiting first
}

// byteShare is a member's part of a byteWindow. Its reader calls mayRead, add, wait and stopWaiting, Run calls leave when
// nothing of it is pending, and its shard calls sub when messages have finished; the reader does so too, for a message that
// its stream did not take any more.
type byteShare struct {
	window  *byteWindow
	pending atomic.Int64
	wake    chan<- struct{} // has room for one: its reader waits for it, maybe for other reasons too

	waiting    atomic.Bool // it is registered; written under window.mu
	prev, next *byteShare  // of those that wait; guarded by window.mu
}

func newByteWindow(bound int64) *byteWindow { return &byteWindow{bound: bound} }

// join returns the share of a new member, whose reader is woken by wake. It makes the others' shares smaller, of which
// nobody needs to be told: they ask before each read.
func (w *byteWindow) join(wake chan<- struct{}) *byteShare {
	w.members.Add(1)
	return &byteShare{window: w, wake: wake}
}

// leave ends the membership. The shares of the others grow by it, so that some of them may read now.
func (s *byteShare) leave() {
	w := s.window
	w.members.Add(-1)
	if w.waits.Load() > 0 {
		w.wakeReaders()
	}
}

// mayRead reports whether one more message may be read. It takes no lock, and the numbers may change while it looks: what it
// lets through too much is one message a member, and a reader that it holds back registers and then looks again (see wait).
func (s *byteShare) mayRead() bool {
	w := s.window
	total := w.total.Load()
	if total < w.bound {
		return true
	}
	own := s.pending.Load()
	return own == 0 || own < w.share() && total-w.bound < w.bound
}

// share returns what a member must have less than to read at the bound: bound / members, rounded up.
func (w *byteWindow) share() int64 { return (w.bound-1)/max(1, w.members.Load()) + 1 }

// add counts n bytes that were read. The reader calls it before it puts the message where its shard finds it: a message that
// is quick would otherwise be counted off before it is counted.
func (s *byteShare) add(n int64) {
	s.pending.Add(n)
	s.window.total.Add(n)
}

// sub counts n bytes that are not pending any more. It changes the numbers first and then looks for members that wait, which
// register first and then look at the numbers.
func (s *byteShare) sub(n int64) {
	w := s.window
	s.pending.Add(-n)
	total := w.total.Add(-n)
	if w.waits.Load() == 0 {
		return
	}
	switch before := total + n; { // only who crosses a bound wakes others for it
	case total-w.bound < w.bound && before-w.bound >= w.bound:
		w.wakeReaders()
	case total < w.bound && before >= w.bound: // who is woken wakes the next, see stopWaiting
		w.wakeFirst()
	}
	if s.waiting.Load() && s.mayRead() { // it has fallen below its share
		s.signal()
	}
}

// wait registers s and reports whether it must wait: then its reader waits for wake. In any case it calls stopWaiting. The
// look comes after the registration: bytes that come free before it are seen by the look, and those that do later find s.
func (s *byteShare) wait() (must bool) {
	w := s.window
	w.mu.Lock()
	if s.prev = w.last; s.prev != nil {
		s.prev.next = s
	} else {
		w.first = s
	}
	w.last = s
	s.waiting.Store(true)
	w.waits.Add(1)
	w.mu.Unlock()
	return !s.mayRead()
}

// stopWaiting ends what wait began, whatever for. While the total is below the bound, it wakes the next that waits, who
// does the same: so as many are woken as there is room for, and not all of them for each message that is finished.
func (s *byteShare) stopWaiting() {
	w := s.window
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		w.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		w.last = s.prev
	}
	s.prev, s.next = nil, nil
	s.waiting.Store(false)
	w.waits.Add(-1)
	if w.first != nil && w.total.Load() < w.bound {
		w.first.signal()
	}
}

// wakeFirst wakes the member that has waited longest.
func (w *byteWindow) wakeFirst() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first != nil {
		w.first.signal()
	}
}

// wakeReaders wakes all members that may read.
func (w *byteWindow) wakeReaders() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := w.first; s != nil; s = s.next {
		if s.mayRead() {
			s.signal()
		}
	}
}

// signal wakes s's reader, or has its next wait return at once.
func (s *byteShare) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
