package natsflow

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// telling tells an Observer what happens, one event after the other in the order in which they were put. Events are put
// under locks, and while a lease is renewed: so what is not told yet waits here, and nobody waits for the Observer but Run
// at its end, for a while. So much waits at most: what happens beyond that is dropped and counted. It is safe for concurrent
// use.
type telling struct {
	observer func(PartitionEvent) // nil: nobody is told

	mu      sync.Mutex
	waiting []PartitionEvent
	dropped int           // since the last that was put
	under   bool          // a goroutine tells them
	over    chan struct{} // is closed when none does any more; nil: nobody waits for that
	failure error         // the first that the Observer has ended with instead of returning
}

// maxWaiting is how many events wait for the Observer. Of those that are about the partition and not about its messages or
// its commits, which are few, twice as many do: whoever counts claims and their ends is told of both.
const maxWaiting = 8192

var errObserverExited = errors.New("natsflow: WorkerOptions.Observer has called runtime.Goexit")

func (t *telling) put(e PartitionEvent) {
	if t.observer == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	most := maxWaiting
	if e.Kind.isOfHold() {
		most *= 2
	}
	if len(t.waiting) >= most {
		t.dropped++
		return
	}
	e.Time, e.Dropped, t.dropped = time.Now(), t.dropped, 0
	t.waiting = append(t.waiting, e)
	if !t.under {
		t.under = true
		go t.tell()
	}
}

// tell tells what waits. When the Observer panics or exits its goroutine, another goes on behind that event.
func (t *telling) tell() {
	done := false
	defer func() {
		if done {
			return
		}
		err := errObserverExited
		if v := recover(); v != nil {
			err = fmt.Errorf("natsflow: WorkerOptions.Observer has panicked: %v\n%s", v, debug.Stack())
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.failure == nil {
			t.failure = err
		}
		go t.tell()
	}()
	for {
		e, ok := t.next()
		if !ok {
			done = true
			return
		}
		t.observer(e)
	}
}

// next takes the event that is told next. ok is false if there is none: then who has asked tells no more.
func (t *telling) next() (e PartitionEvent, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		t.waiting, t.under = nil, false
		if t.over != nil {
			close(t.over)
			t.over = nil
		}
		return e, false
	}
	e = t.waiting[0]
	t.waiting[0] = PartitionEvent{} // what it refers to is free once it was told
	t.waiting = t.waiting[1:]
	return e, true
}

// wait waits until all is told, or for patience. It returns the first failure of the Observer since it was last called, and
// that there is more to tell.
func (t *telling) wait(patience time.Duration) error {
	t.mu.Lock()
	over := make(chan struct{})
	if t.under {
		t.over = over
	} else {
		close(over)
	}
	t.mu.Unlock()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-over:
	case <-timer.C:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.failure
	t.failure = nil
	if t.under {
		err = errors.Join(err, fmt.Errorf("natsflow: WorkerOptions.Observer has not returned within %v of the worker's end; %d more events wait for it",
			patience, len(t.waiting)))
	}
	return err
}
