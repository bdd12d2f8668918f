package flow

import "unsafe"

// StreamSize is what the state of a stream takes, in bytes.
const StreamSize = unsafe.Sizeof(stream[*byte]{})

// BeginSpread has f's streams begin as if messages had been seen to take some microseconds each: where time stands still
// none is seen to.
func BeginSpread[T any](f *Flow[T]) { f.receiver.begin = paceMedium }

// ChangeMode has all streams of f run their messages in another of the three ways, for as long as it seems best to them.
func ChangeMode[T any](f *Flow[T], mode int) {
	f.receiver.mu.Lock()
	defer f.receiver.mu.Unlock()
	for s := range f.receiver.streams {
		s.mu.Lock()
		if s.mayLease && !s.serial {
			s.setModeLocked(paceMode(mode))
			s.startLocked()
		}
		s.mu.Unlock()
	}
}
