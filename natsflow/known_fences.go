package natsflow

import (
	"sync"
	"time"

	"example.com/flow"
)

// knownFences remembers which fence each session had in the bucket when this process last read or wrote it. A gateway that was
// stopped for so long that the stream has forgotten its messages' ids must not go on storing as if nothing had happened: by
// then the session may be another gateway's, which has stored the same messages.
//
// What it knows is good for a while, and is forgotten after that. It is safe for concurrent use.
type knownFences struct {
	good time.Duration

	mu    sync.Mutex
	known map[flow.SessionID]fenceSeen
	swept time.Time
}

type fenceSeen struct {
	fence uint64
	at    time.Time
}

// note remembers that the session had that fence at some moment not before at.
func (t *knownFences) note(id flow.SessionID, fence uint64, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil {
		t.known = map[flow.SessionID]fenceSeen{}
	}
	if old, ok := t.known[id]; !ok || fence > old.fence || fence == old.fence && at.After(old.at) {
		t.known[id] = fenceSeen{fence: fence, at: at}
	}
	if at.Sub(t.swept) < t.good {
		return
	}
	t.swept = at
	for id, seen := range t.known {
		if at.Sub(seen.at) > t.good {
			delete(t.known, id)
		}
	}
}

// fence is what the session's was not long ago; until is when that is too long ago. ok is false if it is not known.
func (t *knownFences) fence(id flow.SessionID, now time.Time) (fence uint64, until time.Time, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	seen, ok := t.known[id]
	until = seen.at.Add(t.good)
	return seen.fence, until, ok && now.Before(until)
}
