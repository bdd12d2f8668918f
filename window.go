package flow

import (
	"math"
	"reflect"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"
)

// The window is how far a stream is read ahead: MaxPending messages, and MaxPendingBytes over the Flow. Not to read is
// the only backpressure that gRPC has: HTTP/2 flow control then stops the client.

const defaultMaxPending = 1024

// awaitRoom blocks while the stream must not be read. false: it must not be read any more.
func (in *intake[T]) awaitRoom() bool {
	s := in.s
	for !s.closed.Load() {
		full := s.r.bytes != nil && s.r.bytes.full()
		if in.credit > 0 && !full {
			in.credit--
			return true
		}
		s.mu.Lock()
		pending := in.seq - s.finishedLocked()
		in.credit = 0
		switch {
		case pending >= uint64(s.r.maxPending):
			s.waiting = waitRoom
		case full && pending > 0:
			s.waiting = waitBytes
		default:
			// Room that was found full of bytes is for one message, else for all that fit: what finishes meanwhile
			// only makes more.
			in.credit = 1
			if !full {
				in.credit = int32(min(uint64(s.r.maxPending)-pending, math.MaxInt32))
			}
		}
		waits := s.waiting
		s.seen = in.seq
		if s.hurryLocked() { // room has come since it was found to be lacking, and nobody will say so
			s.waiting = waitNothing
			s.mu.Unlock()
			continue
		}
		s.mu.Unlock()
		switch {
		case in.credit > 0:
			in.credit--
			return true
		case s.parent.Err() != nil:
			// What contextEnded took for a recv that is blocked may have been this: there is no recv to say more.
			s.fail(contextFailure(s.parent))
		case waits == waitBytes && !s.r.bytes.join(s.space):
			// it is no longer full
		default:
			<-s.space
		}
		s.mu.Lock()
		s.waiting = waitNothing
		s.mu.Unlock()
		if waits == waitBytes {
			s.r.bytes.quit(s.space)
		}
	}
	return false
}

// roomLocked says whether the waiting receiver is to look again. To wake it for each single place would cost a wake-up
// (a quarter of a microsecond) per message, so it is woken for an eighth of the window, or when nothing is left for the
// workers: never later, or the places that a stuck key leaves would not be used. (In FIFO that is no matter: what waits
// behind the stuck one waits wherever it is.) While somebody looks out there is no hurry: whoever does so asks again when
// those at work get stuck.
func (s *stream[T]) roomLocked() bool {
	switch s.waiting {
	case waitNothing:
		return false
	case waitRoom:
		lack := s.lackLocked()
		left := s.backlogLocked() || s.starting && !s.asking
		if lack > 0 && (left || lack >= s.r.maxPending/8) {
			return false
		}
	case waitBytes:
		if s.seen > s.finishedLocked() {
			return false
		}
	}
	s.waiting = waitNothing
	return true
}

// lackLocked is how many messages must finish until the receiver that waits for room is woken while there is more to run.
func (s *stream[T]) lackLocked() int64 {
	pending := int64(s.seen - s.finishedLocked())
	return pending - min(s.r.maxPending-1, s.r.maxPending-s.r.maxPending/8)
}

// byteWindow counts the bytes pending over a Flow.
type byteWindow struct {
	limit int64
	bytes atomic.Int64
	waits atomic.Int64 // len(waiters), to be read without the lock

	mu      sync.Mutex
	waiters map[chan struct{}]struct{} // the space channels of receivers that wait
}

func newByteWindow(limit int64) *byteWindow {
	return &byteWindow{limit: limit, waiters: make(map[chan struct{}]struct{})}
}

func (w *byteWindow) full() bool { return w.bytes.Load() >= w.limit }

func (w *byteWindow) add(n int64) { w.bytes.Add(n) }

// sub takes n bytes off and wakes all who wait if there is room now: each may read one message.
func (w *byteWindow) sub(n int64) {
	if w.bytes.Add(-n) >= w.limit || w.waits.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for space := range w.waiters {
		select {
		case space <- struct{}{}:
		default: // it has been woken already
		}
	}
}

// join has space woken when there is room; false if there is some now. The look comes after the joining, as the joiner's
// look in sub comes after the subtraction: one of the two sees the other.
func (w *byteWindow) join(space chan struct{}) bool {
	w.mu.Lock()
	w.waiters[space] = struct{}{}
	w.waits.Store(int64(len(w.waiters)))
	w.mu.Unlock()
	return w.full()
}

func (w *byteWindow) quit(space chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiters, space)
	w.waits.Store(int64(len(w.waiters)))
}

// sizeFunc returns what measures a T in bytes, or nil if T has no size.
func sizeFunc[T any]() func(T) int {
	t := reflect.TypeFor[T]()
	switch {
	case t.Implements(reflect.TypeFor[proto.Message]()):
		return func(v T) int {
			m, _ := any(v).(proto.Message)
			return proto.Size(m)
		}
	case t.Implements(reflect.TypeFor[interface{ Size() int }]()):
		return func(v T) int { return max(0, any(v).(interface{ Size() int }).Size()) }
	case t.Kind() == reflect.String, t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return func(v T) int { return reflect.ValueOf(&v).Elem().Len() }
	}
	return nil
}
