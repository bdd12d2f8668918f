package flow

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// At 512 bytes for an idle session without holes, some 50 MB.
	defaultMemorySessions = 100_000
	defaultMemoryIdle     = 24 * time.Hour
)

// NewSessionMemory returns a SessionStore in this process's memory: sessions survive their connections, and not the
// process. It holds no goroutine and no timer.
//
// It keeps at most so many sessions; 0 means 100,000. When one more is saved, the owner that has most of them loses the
// one that was idle longest, so that a client that invents names displaces its own. A session that was idle for longer
// than idle is forgotten too, at the next use of the store; 0 means 24 hours. A session that a stream of a Flow has taken
// is not idle and not forgotten, even if there are more than most of them; for that the Flow must have been given the
// store as it is, not wrapped.
//
// It panics if most or idle is negative.
func NewSessionMemory(most int, idle time.Duration) SessionStore {
	switch {
	case most < 0:
		panic(fmt.Sprintf("flow: NewSessionMemory: most must not be negative (got %d)", most))
	case idle < 0:
		panic(fmt.Sprintf("flow: NewSessionMemory: idle must not be negative (got %v)", idle))
	}
	if most == 0 {
		most = defaultMemorySessions
	}
	if idle == 0 {
		idle = defaultMemoryIdle
	}
	return &sessionMemory{
		most: most, idle: idle, start: time.Now(),
		sessions: map[SessionID]*rememberedSession{}, owners: map[string]*sessionOwner{}, inUse: map[SessionID]int{},
	}
}

// sessionMemory keeps a session in one of two conditions: in use, when it is in the map alone, or idle, when it is in two
// lists as well, by the time since when it is idle: in that of all, for the age, and in that of its owner, for the number.
//
// Load and Save are called on goroutines of their own (see callStore), use and unuse by the Runs of streams. Each takes mu
// for its whole length and calls nothing of the caller's. Each costs the logarithm of the number of owners: a scan for the
// longest idle of 100,000 would be made for each new session of a client that invents names.
//
// Old sessions go when the store is used next: a timer would keep a store alive that nothing refers to any more, and would
// be owned by the synctest bubble that happened to start it.
type sessionMemory struct {
	most int
	idle time.Duration
	// Times of sessions are counted from here: a Duration takes a third of the memory of a time.Time, and is monotonic.
	start time.Time

	mu       sync.Mutex
	sessions map[SessionID]*rememberedSession
	owners   map[string]*sessionOwner // those who have a session
	// The heap has no owner of whose sessions all are in use: there is nothing of theirs to forget.
	eldest  ownerHeap         // those of them who have an idle one, who has most first
	all     idleList          // the idle ones of all owners
	inUse   map[SessionID]int // by how many streams; also of sessions that are yet to be saved
	version uint64            // the last one given: none comes again, even if its session was forgotten
}

// rememberedSession is as small as it can be: there are many, and most are idle and without holes. 100,000 of those may
// take at most 512 bytes each, with their part of the maps. So the links are in it, rather than in elements of
// container/list, and the owner's name is only in the owner.
type rememberedSession struct {
	name     string
	owner    *sessionOwner
	epoch    uint64
	fence    uint64
	version  uint64
	progress Progress
	skipped  []string
	since    time.Duration // idle since, from the start of the store
	links    [2]idleLinks  // of listAll and listOwner; zero while in use
}

// sessionOwner is who has sessions. It is in the map while n is above 0, and in the heap while idle is not empty; whatever
// changes n or idle must call placeLocked.
type sessionOwner struct {
	name string
	n    int // of sessions, whether idle or in use
	idle idleList
	at   int // in the heap; -1: not there, since none is idle
}

// Load implements SessionStore. It counts as an access: an idle session that is asked for is the last to go. The skipped
// keys are copied, since the caller could change GivenUp; Progress can't be changed from outside.
func (m *sessionMemory) Load(_ context.Context, id SessionID) (SessionState, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expireLocked()
	s := m.sessions[id]
	if s == nil {
		return SessionState{}, 0, nil
	}
	m.touchLocked(id, s)
	return SessionState{Epoch: s.epoch, Fence: s.fence, Progress: s.progress, GivenUp: slices.Clone(s.skipped)}, s.version, nil
}

// Save implements SessionStore. Comparing and setting are one step under mu. A version of a session that was forgotten is
// refused, as one that is outdated is: the stream that has it then ends, and its client finds the session lost.
func (m *sessionMemory) Save(_ context.Context, id SessionID, state SessionState, version uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expireLocked()
	s := m.sessions[id]
	switch {
	case s == nil && version != 0, s != nil && s.version != version:
		return 0, ErrSessionMoved
	case s == nil:
		s = m.addLocked(id)
	}
	// One count for all sessions: with one for each, a session that was forgotten and made anew would have the versions of
	// the old one again, and a Save of a stream that still knew these would succeed.
	m.version++
	s.version = m.version
	s.epoch, s.fence = state.Epoch, state.Fence
	s.progress = Progress{received: state.Progress.received, unsettled: fitted(state.Progress.unsettled)}
	s.skipped = fitted(state.GivenUp)
	m.touchLocked(id, s)
	return s.version, nil
}

// fitted is a copy of list that takes no more memory than it must, for it may be kept for a day. What is empty is nil and
// takes nothing.
func fitted[E any](list []E) []E {
	if len(list) == 0 {
		return nil
	}
	return slices.Clone(list)
}

// use keeps the session from being forgotten until unuse. The session need not exist yet: a stream that begins a new one
// is counted before its first Save. Streams are counted, and not noted, since the next stream may come before the earlier
// one has called unuse.
func (m *sessionMemory) use(id SessionID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expireLocked()
	m.inUse[id]++
	if s := m.sessions[id]; s != nil {
		m.restLocked(s, false)
	}
}

// unuse ends one use. With the last the session is idle from now on, and what its use has kept beyond most is made up for
// here: while sessions are in use there may be more.
func (m *sessionMemory) unuse(id SessionID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.inUse[id]--; m.inUse[id] > 0 {
		return
	}
	delete(m.inUse, id)
	if s := m.sessions[id]; s != nil {
		m.touchLocked(id, s)
	}
	m.expireLocked()
	m.evictLocked()
}

// addLocked makes a session of id, at the cost of another if there are too many. The names are copied, since they may be
// cut out of a whole header, which they would keep alive. Owner and session share one copy of the owner's name with the
// key of the map.
func (m *sessionMemory) addLocked(id SessionID) *rememberedSession {
	owner := m.owners[id.Owner]
	if owner == nil {
		owner = &sessionOwner{name: strings.Clone(id.Owner), at: -1}
		m.owners[owner.name] = owner
	}
	s := &rememberedSession{name: strings.Clone(id.Name), owner: owner}
	m.sessions[SessionID{Owner: owner.name, Name: s.name}] = s
	owner.n++
	m.placeLocked(owner)
	m.evictLocked() // s itself is in no list yet: a newcomer never displaces itself
	return s
}

// touchLocked has s be idle from now on, unless it is in use. One in use is in no list before and after.
func (m *sessionMemory) touchLocked(id SessionID, s *rememberedSession) {
	m.restLocked(s, m.inUse[id] == 0)
}

// restLocked takes s out of the lists and, if idle, appends it again. What is appended is idle from now, so both lists
// stay ordered by since without a search. Every change of a list is made here, so that the heap is mended after it.
func (m *sessionMemory) restLocked(s *rememberedSession, idle bool) {
	m.all.remove(s, listAll)
	s.owner.idle.remove(s, listOwner)
	if idle {
		s.since = time.Since(m.start)
		m.all.push(s, listAll)
		s.owner.idle.push(s, listOwner)
	}
	m.placeLocked(s.owner)
}

// placeLocked puts the owner where it belongs in the heap, after any change of its count or of its list. Between that
// change and this call the heap is out of order, and must not be looked at.
func (m *sessionMemory) placeLocked(o *sessionOwner) {
	switch {
	case o.idle.first == nil && o.at >= 0:
		heap.Remove(&m.eldest, o.at)
	case o.idle.first != nil && o.at >= 0:
		heap.Fix(&m.eldest, o.at)
	case o.idle.first != nil:
		heap.Push(&m.eldest, o)
	}
}

// expireLocked forgets those that were idle for too long. It is called at each use of the store, and looks at one session
// more than it forgets, since the first of the list is idle longest.
func (m *sessionMemory) expireLocked() {
	for s := m.all.first; s != nil && time.Since(m.start)-s.since > m.idle; s = m.all.first {
		m.forgetLocked(s)
	}
}

// evictLocked forgets until there are no more than most, or none is idle. The first owner of the heap loses its longest
// idle one. Taking the longest idle of all instead would let a client that invents names displace the sessions of
// all others.
func (m *sessionMemory) evictLocked() {
	for len(m.sessions) > m.most && len(m.eldest) > 0 {
		m.forgetLocked(m.eldest[0].idle.first)
	}
}

// forgetLocked forgets an idle session, and its owner with the last one. n falls before the lists change, for the heap is
// ordered by both and mended once.
func (m *sessionMemory) forgetLocked(s *rememberedSession) {
	delete(m.sessions, SessionID{Owner: s.owner.name, Name: s.name})
	s.owner.n--
	m.restLocked(s, false)
	if s.owner.n == 0 {
		delete(m.owners, s.owner.name)
	}
}

// idleList is a list of idle sessions through the links of one kind, who is idle longest first. A session is in both lists
// or in none.
type idleList struct{ first, last *rememberedSession }

// idleLinks are a session's neighbours in one list. Both are nil also in a list of one: see remove.
type idleLinks struct{ prev, next *rememberedSession }

const (
	listAll = iota
	listOwner
)

// push appends s, which must not be in the list.
func (l *idleList) push(s *rememberedSession, kind int) {
	s.links[kind] = idleLinks{prev: l.last}
	if l.last == nil {
		l.first = s
	} else {
		l.last.links[kind].next = s
	}
	l.last = s
}

// remove takes s out if it is there. The first of a list has no neighbour before it, as one that is in none has: only
// being the first tells them apart.
func (l *idleList) remove(s *rememberedSession, kind int) {
	at := s.links[kind]
	if l.first != s && at.prev == nil {
		return
	}
	if at.prev == nil {
		l.first = at.next
	} else {
		at.prev.links[kind].next = at.next
	}
	if at.next == nil {
		l.last = at.prev
	} else {
		at.next.links[kind].prev = at.prev
	}
	s.links[kind] = idleLinks{}
}

// ownerHeap has first the owner who has most sessions and, of several who have as many, the one with the longest idle. It
// implements heap.Interface and is changed by placeLocked alone; Less relies on each owner in it having an idle session.
type ownerHeap []*sessionOwner

func (h ownerHeap) Len() int { return len(h) }

func (h ownerHeap) Less(i, j int) bool {
	if h[i].n != h[j].n {
		return h[i].n > h[j].n
	}
	return h[i].idle.first.since < h[j].idle.first.since
}

func (h ownerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (h *ownerHeap) Push(o any) {
	owner := o.(*sessionOwner)
	owner.at = len(*h)
	*h = append(*h, owner)
}

func (h *ownerHeap) Pop() any {
	last := len(*h) - 1
	owner := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	owner.at = -1
	return owner
}

// sessionCalls are the calls of a SessionStore. The store is the caller's: it may hang, panic or end its goroutine, and a
// stream waits for none of it longer than limit. A call that is not waited for any more may still be done: the version
// then says so. It is a value without state, shared by the session's beginning and its saver. A Flow has no more calls
// under way than streams, plus those that hang and have been given up.
type sessionCalls struct {
	store SessionStore
	limit time.Duration // of each call
}

var errStoreTimeout = errors.New("the session store has not answered in time")

// loaded is what Load returns, as the one result that callStore passes on.
type loaded struct {
	state   SessionState
	version uint64
}

// load calls Store.Load. Its ctx ends with the stream, or, for the saver, when the Flow has been closed for saveWait.
func (c sessionCalls) load(ctx context.Context, id SessionID) (loaded, error) {
	return callStore(ctx, c.limit, func(ctx context.Context) (l loaded, err error) {
		l.state, l.version, err = c.store.Load(ctx, id)
		return l, err
	})
}

// save calls Store.Save. After an error other than ErrSessionMoved it is not known whether the state was saved: the caller
// loads before it saves again.
func (c sessionCalls) save(ctx context.Context, id SessionID, s SessionState, version uint64) (next uint64, err error) {
	return callStore(ctx, c.limit, func(ctx context.Context) (uint64, error) { return c.store.Save(ctx, id, s, version) })
}

// callStore calls fn on a goroutine of its own, and waits for it until ctx ends or limit is over.
//
// The goroutine is what lets a stream go on when a store ignores its ctx, and what a Goexit in the store ends in place of
// the caller. It stays for as long as the store hangs: nothing can end it from here. A Save that is given up so may be
// done later, and its caller must take its version for unknown.
func callStore[R any](ctx context.Context, limit time.Duration, fn func(context.Context) (R, error)) (r R, err error) {
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errStoreTimeout)
	defer cancel()
	type answer struct {
		r   R
		err error
	}
	// Room for one: an answer that is not waited for any more must not keep the goroutine.
	answers := make(chan answer, 1)
	go func() {
		// It stands unless fn returns or panics: after a Goexit, recover is nil and the deferred function runs all the
		// same.
		a := answer{err: errGoexit}
		defer func() {
			if v := recover(); v != nil {
				a.err = newPanicError(v)
			}
			answers <- a
		}()
		a.r, a.err = fn(ctx)
	}()
	select {
	case a := <-answers:
		return a.r, a.err
	case <-ctx.Done():
		return r, context.Cause(ctx)
	}
}
