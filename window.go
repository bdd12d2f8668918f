package flow

import (
	"math"
	"sync/atomic"
)

const defaultMaxPending = 1024

// window is how far a stream is read ahead: at most limit messages are received and not finished. Not to read is the
// only backpressure that gRPC has: HTTP/2 flow control then stops the client.
//
// The reader stores waiting before it looks at finished once more, and the shard stores finished before it looks at
// waiting, so one of the two sees the other.
type window struct {
	limit    uint64
	finished atomic.Uint64 // messages; the shard's to write
	linedUp  atomic.Uint64 // messages whose lane, and whether they are refused, is decided; the shard's to write
	waiting  atomic.Bool   // the reader waits for finished to change
	space    chan struct{} // wakes it; a token may be left over from a wake-up that it did not need
	share    *byteShare    // of the bytes that may be pending over the Flow; nil: they are not counted
}

func (w *window) init(limit int64) { w.limit, w.space = uint64(limit), make(chan struct{}, 1) }

// room returns how many messages may be read, of which so many have been received.
func (w *window) room(received uint64) uint64 {
	if pending := received - w.finished.Load(); pending < w.limit {
		return w.limit - pending
	}
	return 0
}

// batch returns how much room is worth waking the reader for while there is something else to run: an eighth of the
// window. To wake it for each single place would cost a wake-up, a quarter of a microsecond, for each message.
func (w *window) batch() uint64 { return max(1, w.limit/8) }

// wake wakes the reader if it waits.
func (w *window) wake() {
	if w.waiting.Load() {
		w.signal()
	}
}

// signal wakes the reader, or has its next wait return at once.
func (w *window) signal() {
	select {
	case w.space <- struct{}{}:
	default:
	}
}

// unboundedPending is the window of a stream whose MaxPending is negative.
const unboundedPending = math.MaxInt64
