package flowdebug

import (
	"encoding/json"
	"sync"
	"time"

	"example.com/flow"
)

const (
	rows   = 20                     // of each table of what is under way
	maxAge = 250 * time.Millisecond // of a document that is given to another reader too
)

// entry is a Flow on a page.
type entry struct {
	name string

	mu     sync.Mutex
	source Source  // nil until it is added
	record *record // nil without the page's Observer

	document []byte    // the last snapshot as JSON; never changed, only replaced
	taken    time.Time // when; zero if there is none of source
}

func (e *entry) setSource(s Source) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.source, e.taken = s, time.Time{}
}

func (e *entry) isAdded() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.source != nil
}

func (e *entry) observer() flow.Observer {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.record == nil {
		e.record = newRecord(time.Now())
	}
	return e.record.observe
}

// snapshot returns the JSON of what there is to see now, or was a moment ago. The caller must not change it.
//
// The lock is held meanwhile, so that many readers of one moment cost one Snapshot. No Observer takes it.
func (e *entry) snapshot() []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	// The age is negative if the document was made on another clock: outside of a bubble that is read inside.
	if age := now.Sub(e.taken); !e.taken.IsZero() && age >= 0 && age < maxAge {
		return e.document
	}
	document, err := json.Marshal(newView(e.name, e.source.Snapshot(rows), e.record, now))
	if err != nil {
		panic("bug: flowdebug: " + err.Error())
	}
	e.document, e.taken = document, now
	return document
}
