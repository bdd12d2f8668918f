package natsflow

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// telling tells an Observer what happens, one event after the other in the order in which they were put. Events are put
// under locks, and while a lease is renewed: so what is not told yet waits here, and nobody waits for the Observer but Run
// at its end. It is safe for concurrent use.
type telling struct {
	observer func(PartitionEvent) // nil: nobody is told

	mu      sync.Mutex
	waiting []PartitionEvent
	under   bool          // a goroutine tells them
	over    chan struct{} // is closed when none does any more; nil: nobody waits for that
	failure error         // the first that the Observer has ended with instead of returning
}

var errObserverExited = errors.New("natsflow: WorkerOptions.Observer has called runtime.Goexit")

func (t *telling) put(e PartitionEvent) {
	if t.observer == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
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
	t.waiting = t.waiting[1:]
	return e, true
}

// wait waits until all is told, and returns the first failure of the Observer since it was last called.
func (t *telling) wait() error {
	t.mu.Lock()
	over := make(chan struct{})
	if t.under {
		t.over = over
	} else {
		close(over)
	}
	t.mu.Unlock()
	<-over
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.failure
	t.failure = nil
	return err
}
