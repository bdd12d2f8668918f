package flow

import (
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/metadata"
)

const (
	defaultSaveEvery = time.Second
	defaultTakeover  = 10 * time.Second

	// A state holds all skipped keys of its session, and clients choose keys and their length: without a bound a client
	// could let each Save grow for as long as the session lives. One more ends the stream with FailureOrdering.
	maxSessionSkipped      = 1024     // keys
	maxSessionSkippedBytes = 64 << 10 // of these

	// maxTakes bounds how often a session is taken while others take it between the Load and the Save. Each round means
	// that another stream has saved in between, so it takes processes that claim one session in a loop to reach it; a client
	// that is refused for it backs off.
	maxTakes = 16
)

func (o *SessionOptions) validate() error {
	switch {
	case o.SaveEvery < 0:
		return invalid("Sessions.SaveEvery", o.SaveEvery, "must not be negative")
	case o.Takeover < 0:
		return invalid("Sessions.Takeover", o.Takeover, "must not be negative")
	}
	return nil
}

// sessions are those of a Flow: what its streams share. It is made by New, lives as long as the Flow, and holds no
// goroutine. The options are not changed any more; table and saved have locks of their own, neither of which is held while
// the other is taken or while the store is called.
type sessions struct {
	owner     func(context.Context) (string, error) // nil: one name space for all
	saveEvery time.Duration
	takeover  time.Duration
	calls     sessionCalls
	memory    *sessionMemory // the store, if it is told which sessions are in use
	table     *sessionTable
	saved     savedVersions
}

func newSessions(o SessionOptions) *sessions {
	s := &sessions{owner: o.Owner, saveEvery: o.SaveEvery, takeover: o.Takeover, table: newSessionTable()}
	if s.saveEvery == 0 {
		s.saveEvery = defaultSaveEvery
	}
	if s.takeover == 0 {
		s.takeover = defaultTakeover
	}
	s.calls = sessionCalls{store: o.Store, limit: s.takeover}
	if o.Store == nil {
		s.calls.store = NewSessionMemory(0, 0)
	}
	s.memory, _ = s.calls.store.(*sessionMemory)
	return s
}

// sessionStream is a stream's session, from what its client asks for to the last Save. One is made for each stream whose
// client asks for a session, whether or not it gets it.
//
// The goroutine of Run calls take, header, keep, finish, trailer and release, in this order, and release in any case. The
// others come from elsewhere, at any time and also after release: stop and hurry from the ShutdownCoordinator, moved from
// a worker.
type sessionStream struct {
	of      *sessions
	request sessionRequest
	turn    *sessionTurn

	// stopped ends when the stream is to be refused that waits: by a shutdown. It is a context of its own, and not the end
	// of the stream's, since a shutdown without drain must not cancel the handlers of a stream that has its session.
	stopped context.Context
	refuse  context.CancelCauseFunc

	// Set by take. They are not changed after that: the reader, the workers and the shard read them without a lock, and
	// all of these are started after take has returned.
	session Session
	found   sessionFound
	before  settledBefore // which messages are duplicates
	stored  SessionState
	version uint64
	used    bool

	// The saver is started by keep, and only if the session was taken. Its context exists from the beginning, so that
	// hurry may cancel it at any time.
	saver    sessionSaver
	started  bool // the saver
	deadline struct {
		sync.Mutex
		timer *time.Timer
		over  bool // there is nothing left to save
	}
}

// ask reads what the client asks for, and says whose session it is. It is nil if the client asks for none; nobody is
// disturbed yet. It is called by begin, and blocks for as long as Owner does, whose ctx is the stream's. Owner is called on a
// goroutine of its own, since a Goexit in it would end the service method, whose client gRPC then leaves without an answer
// (grpc-go #5567).
func (s *sessions) ask(ctx context.Context) (*sessionStream, *Failure) {
	md, _ := metadata.FromIncomingContext(ctx)
	request, asked, err := parseSessionRequest(md)
	switch {
	case !asked:
		return nil, nil
	case err != nil:
		return nil, malformedFailure(err)
	}
	id := SessionID{Name: request.name}
	if s.owner != nil {
		err := isolated(func() (err error) {
			id.Owner, err = s.owner(ctx)
			return err
		})
		if err != nil {
			f := ownerFailure(err)
			if f.endedBy(ctx) { // what it says of the owner is then nothing that the client could mend
				f = endOfContext(ctx)
			}
			return nil, f
		}
	}
	st := &sessionStream{of: s, request: request, session: Session{ID: id}}
	st.turn = &sessionTurn{id: id, epoch: request.epoch, came: make(chan struct{})}
	// Not cancelled with the stream: the commonest end is a client that has gone, and then the last Save matters most.
	// Each call has its own limit, and hurry ends them all.
	st.saver.ctx, st.saver.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	st.stopped, st.refuse = context.WithCancelCause(context.Background())
	return st, nil
}

// stop refuses the stream if it waits for its session, or is yet to do so. A stream that has its session does not notice.
func (s *sessionStream) stop() { s.refuse(newFailure(FailureShutdown, reasonShutdown)) }

// take waits for the session and takes it. ctx is the stream's: its end, with its cause, ends the waiting. end is called
// when the session is taken away, from any goroutine and maybe after release: it ends the stream with that failure, which
// is to be the cause of ctx's end, and must not block.
//
// Whatever take returns, release must follow: the stream may be in the table. It blocks for Takeover to wait for the
// earlier stream, and for as long again for each call of the store.
func (s *sessionStream) take(ctx context.Context, end func(*Failure)) *Failure {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.stopped, func() { cancel(context.Cause(s.stopped)) })()
	s.turn.end = end
	if f := s.of.table.enter(s.turn); f != nil {
		return f
	}
	if f := s.of.table.wait(ctx, s.turn, s.of.takeover); f != nil {
		return f
	}
	// Before the Load: a session that is found must not be forgotten before it is in use.
	if s.of.memory != nil {
		s.of.memory.use(s.session.ID)
		s.used = true
	}
	for range maxTakes {
		moved, f := s.load(ctx)
		// The end of the stream is the better reason: the store has failed because of it, or what it has taken is of no
		// use.
		if ended := endOfContext(ctx); ended != nil {
			return ended
		}
		if f != nil {
			return f
		}
		if !moved {
			// Not before: a stream that ends while the store is called has not got its session.
			s.session.Epoch, s.session.Fence = s.stored.Epoch, s.stored.Fence
			s.of.table.began(s.turn, s.session.Epoch)
			return nil
		}
	}
	return storeFailure(errTakenByOthers)
}

var errTakenByOthers = errors.New("others take the session each time it has been loaded")

// load takes the session as it is in the store: it decides on the epoch, merges, and saves if epoch or fence change. moved
// says that it has moved meanwhile and is to be loaded again.
//
// A stored epoch or fence other than before is what deposes a holder in another process: its next Save finds another
// version, and an effect guarded by the fence fails. So the Save comes before the header and the first read, when nothing
// of this stream can have run. It is left out if this Flow itself saved last and the epoch stays: then the earlier holder
// was a stream of this process, which the table has waited for, and there is no holder to depose.
func (s *sessionStream) load(ctx context.Context) (moved bool, refused *Failure) {
	stored, err := s.of.calls.load(ctx, s.session.ID)
	if err != nil {
		return false, storeFailure(err)
	}
	r, state := &s.request, stored.state
	// The merge comes first, for its result is part of what is saved: what the client knows to be settled outlives a
	// server that has forgotten it.
	s.before = mergeSettled(state.Progress, r.first, r.skip)
	switch {
	case stored.version == 0 && r.claims() && r.first == 1:
		s.found = sessionNew
	case r.epoch > state.Epoch || r.first-1 > state.Progress.received:
		s.found = sessionLost
	default:
		s.found = sessionKnown
	}
	epoch := r.epoch
	switch {
	case r.claims():
		epoch = state.Epoch + 1
	case r.epoch < state.Epoch:
		return false, movedFailure(r.epoch, state.Epoch)
	// A higher epoch is adopted, since the store may have been lost, but not one so high that claims could overflow it.
	case r.epoch > max(state.Epoch, maxAdoptedEpoch):
		return false, malformedFailure(malformed(headerEpoch, "the decimal number that the server gave", strconv.FormatUint(r.epoch, 10)))
	}
	s.stored, s.version = state, stored.version
	if epoch != state.Epoch || !s.of.saved.is(s.session.ID, stored.version) {
		next := SessionState{
			Epoch: epoch, Fence: state.Fence + 1, Progress: s.before.progress(r.first-1, nil), GivenUp: state.GivenUp,
		}
		version, err := s.of.calls.save(ctx, s.session.ID, next, stored.version)
		switch {
		case err == nil:
		case isError(err, ErrSessionMoved):
			return true, nil
		default:
			return false, storeFailure(err)
		}
		s.stored, s.version = next, version
	}
	return false, nil
}

// header is the response header, to be sent before the first read. It says what was settled before this stream, so it may
// be called once take has succeeded.
func (s *sessionStream) header() metadata.MD {
	return sessionHeader(s.session.Epoch, s.found, s.before.progress(s.before.first-1, nil))
}

// sessionView is what a stream has of its session by now, all at one moment: the shard makes it, between two events.
type sessionView struct {
	highest uint64   // the number of the last message that was received; below the first if none was
	open    []uint64 // ascending: those that were received and are not settled, without duplicates
	skipped []string // the keys skipped, all of the session. They are looked at after open, so that no message is seen settled by the skip of its key and that key is not
}

// keep saves from now on what view returns. failed is told of each Save that failed. If the session turns out to be
// somebody else's, the stream ends as take says. It is called once, after take has succeeded and before the reader starts,
// for the reader arms the saver. view is called on the goroutine of a timer or of Run, and may block for the shard; failed
// calls the Observer.
func (s *sessionStream) keep(view func() sessionView, failed func(error)) {
	s.saver.calls, s.saver.id, s.saver.every = s.of.calls, s.session.ID, s.of.saveEvery
	s.saver.view = func() (Progress, []string) {
		v := view()
		return s.before.progress(v.highest, v.open), v.skipped
	}
	s.saver.failed, s.saver.ends = failed, s.turn.end
	s.saver.start(s.stored, s.version)
	s.started = true
}

// saveWait is how long a last Save may take once the Flow is closed. A shutdown waits for cutWait: the stream whose store
// hangs has left by then. The Save and the verdict of the shutdown once had the same second, and it was chance which came
// first.
const saveWait = cutWait - 50*time.Millisecond

// moved reports whether the session is somebody else's by now, or nobody can say, and ends the stream if so. A worker calls it
// whose handler has returned ErrSessionMoved. It blocks for a call of the store, and for a Save under way. The handler's error
// alone is not believed: it may speak of another session.
func (s *sessionStream) moved() bool { return s.saver.check() }

// hurry bounds all saving to saveWait from now: the Flow is closed. It is called by the coordinator, more than once if a
// cut follows a Close, and the first call counts. It does not cancel the saver at once: what was settled until the Close
// should still be saved.
func (s *sessionStream) hurry() {
	s.deadline.Lock()
	defer s.deadline.Unlock()
	if s.deadline.timer == nil && !s.deadline.over {
		s.deadline.timer = time.AfterFunc(saveWait, func() { s.saver.cancel(errStoreTimeout) })
	}
}

// finish saves for the last time, when nothing of the stream runs any more, and before it is answered. It returns how the
// stream ends if the session is somebody else's. The goroutine of Run calls it, and it blocks for one call of the store at
// most. The order matters: the Save comes before the trailers, so that what a client was told is in the store too unless
// that has failed, and before release, so that the next stream loads what this one has saved.
func (s *sessionStream) finish() *Failure {
	if !s.started {
		return nil
	}
	lost, version := s.saver.finish()
	s.of.saved.set(s.session.ID, version)
	return lost
}

// trailer says how far the session is. A stream that was refused says nothing.
func (s *sessionStream) trailer(p Progress, f *Failure) metadata.MD {
	return sessionTrailer(s.session.Epoch, p, failedSeq(f))
}

// release lets the next stream have the session. It is called for each stream in the end, whether it got it or not. It
// comes after the last Save and after EventStreamEnd: when the next stream begins, nothing of this one runs any more, and
// that is why a key keeps its order across streams.
func (s *sessionStream) release() {
	s.deadline.Lock()
	s.deadline.over = true // a hurry that comes later would start a timer for nothing
	if s.deadline.timer != nil {
		s.deadline.timer.Stop()
	}
	s.deadline.Unlock()
	s.saver.cancel(nil)
	s.refuse(nil)
	// The next stream may use the session before unuse here: uses are counted, so the memory keeps it all the same.
	s.of.table.leave(s.turn)
	if s.used {
		s.of.memory.unuse(s.session.ID)
	}
}

// savedVersions remembers which version of a session this Flow saved last: whoever finds another has to raise the fence.
// It is bounded, and what it has forgotten costs one Save more when the session is taken.
//
// It is two maps, of which the older one is dropped when the newer one is full. So no entry needs a time or a place in a
// list, and one that was saved of late stays for 8,192 further sessions at least. Streams call its methods from their
// Runs' goroutines.
type savedVersions struct {
	mu       sync.Mutex
	now, old map[SessionID]uint64 // what was saved of late, and before that
}

const maxSavedVersions = 8192 // of each of the two

// is reports whether version is the one that this Flow saved last. Version 0 is a session that the store does not know,
// and never counts as saved.
func (v *savedVersions) is(id SessionID, version uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	last, ok := v.now[id]
	if !ok {
		last = v.old[id]
	}
	return version != 0 && last == version
}

// set remembers a version; 0: it is not known. An outdated version may stay in the older map only while the newer one,
// which is looked at first, has the session too.
func (v *savedVersions) set(id SessionID, version uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.old, id)
	if version == 0 {
		delete(v.now, id)
		return
	}
	if len(v.now) >= maxSavedVersions {
		v.old, v.now = v.now, nil
	}
	if v.now == nil {
		v.now = map[SessionID]uint64{}
	}
	v.now[id] = version
}

// streamSession is what a stream has of its session; stream embeds it. begin writes session and asked, when a shutdown may
// have begun; run writes taken, before the reader starts. A stream that has asked and not taken was refused, or ended
// before.
type streamSession struct {
	session    *sessionStream // nil: its client asks for none. Written under Receiver.mu
	asked      bool           // its client asks for one, and may be refused
	taken      bool           // it has its session. Written under Receiver.mu
	duplicates atomic.Uint64  // messages that the session had settled before
}

// What a session adds to the life of a stream: its beginning is longer, its numbers don't begin with 1, some of its
// messages are duplicates, and its end is saved before it is told.

// askForSession reads what the client asks for. It is called by begin, and blocks for as long as Owner does. Owner gets the
// stream's context and not Run's: one that heeds it ends with a Close, and with the grace period of a shutdown.
func (s *stream[T]) askForSession() {
	session, refused := s.r.sessions.ask(s.ctx)
	s.asked = session != nil || refused != nil
	s.r.mu.Lock()
	s.session = session
	s.r.mu.Unlock()
	if refused != nil {
		s.fail(refused)
	}
}

// sessionNow returns the session, or nil while it is not known. A shutdown calls it, after it has changed the phase: one that
// finds nothing here has done so before run looks at the phase, and then no session is taken.
func (s *stream[T]) sessionNow() *sessionStream {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	return s.session
}

// takeSession waits for the session and takes it, before anything is read. It is called by run, before the stream enters a
// shard. So the ledger and the skipped keys, which a shard owns later, are this goroutine's; Receiver.mu keeps others from
// looking meanwhile, since a stream in no shard is looked at under it (see ask).
func (s *stream[T]) takeSession() {
	if refused := s.session.take(s.ctx, s.fail); refused != nil {
		s.fail(refused)
		return
	}
	s.r.mu.Lock() // nobody looks at the stream meanwhile
	s.origin.session, s.taken = s.session.session, true
	s.backlog.ledger = newLedger(s.session.before.first)
	s.committed.Store(s.through(s.session.before.first - 1))
	for _, key := range s.session.stored.GivenUp {
		s.backlog.skipFromTheStart(key)
	}
	s.r.mu.Unlock()
	// Saving begins before the header is sent and the Observer called, both of which may block; EventSession comes before
	// the first event of a message.
	s.session.keep(s.viewForSession, s.emitSaveFailed)
	s.emitSession()
	s.sendHeader(s.session.header())
}

// saveSession saves what has come of the stream, of which nothing runs any more. It returns how the stream ends if the
// session turns out to be somebody else's. It is called by end, before the summary is made. A stream that was refused its
// session saves nothing.
func (s *stream[T]) saveSession() (moved *Failure) {
	if s.session == nil {
		return nil
	}
	return s.session.finish()
}

// sessionMoved reports whether the session is somebody else's, as a handler says that has looked at it in the store, or
// nobody can say whose it is. Then that ends the stream, and it is no failure of a message. It is called by workers, whose
// handler has returned ErrSessionMoved, and blocks as moved does.
func (s *stream[T]) sessionMoved() bool { return s.taken && s.session.moved() }

// viewForSession returns what is to be saved by now. The saver calls it, from any goroutine but the shard's: it blocks
// until the shard has answered. Both parts are read in one visit to the shard: a state in which a message is settled by
// the skip of its key, but the key not skipped, would let later messages of that key run in the next stream.
func (s *stream[T]) viewForSession() sessionView {
	return ask(s, func() (v sessionView) {
		v.highest, v.open = s.unsettled()
		if s.backlog.skipped.len() > 0 {
			v.skipped = slices.Collect(s.backlog.skipped.all())
		}
		return v
	})
}

// through returns up to which number everything is settled, if the stream's own messages are up to committed. The shard
// calls it whenever it has counted, for Stream.Committed; takeSession calls it for what was settled before.
func (s *stream[T]) through(committed uint64) uint64 {
	if !s.taken {
		return committed
	}
	return s.session.before.through(committed, s.backlog.ledger.highest)
}

// summary is complete once the stream is done. Counts are the stream's, and what is settled is the session's. The ledger
// knows nothing of duplicates, which no shard sees: they are added here to what was received, as one more outcome of those
// that Received is the sum of.
func (s *stream[T]) summary() Summary {
	sum := s.backlog.ledger.summary()
	if !s.taken {
		return sum
	}
	sum.Duplicates = s.duplicates.Load()
	sum.Received += sum.Duplicates
	p := s.session.before.progress(s.backlog.ledger.highest, sum.Unsettled)
	sum.Committed, sum.Unsettled, sum.Last = p.Committed(), p.unsettled, p.received
	return sum
}

// toldUpTo returns up to which message the client is told what is settled: up to the first one with which a key was skipped
// that the store does not know of, since the last Save has failed. A client that was told more would go on behind it, with
// messages of a key that nobody knows to be skipped. It is called after saveSession.
func (s *stream[T]) toldUpTo() uint64 {
	skipped := &s.backlog.skipped
	saved := s.session.saver.saved.GivenUp
	told := uint64(math.MaxUint64)
	if skipped.len() > len(saved) {
		for key, seq := range skipped.from {
			if !slices.Contains(saved, key) {
				told = min(told, seq-1)
			}
		}
	}
	return told
}

// lostSession says what became of the session that the stream asks for and has not got, if it ends with f; "" if it asks for
// none, or has it. A client that could not say which one it asks for is among those that were refused.
func (s *stream[T]) lostSession(f *Failure) string {
	switch {
	case !s.asked || s.taken:
		return ""
	case f != nil && isError(f.Err, ErrSessionMoved):
		return string(sessionMoved)
	}
	return string(sessionRefused)
}

// trailer says how far the stream got, or its session. One that was refused its session says nothing: what is settled is
// not known to it. An answer of "committed 0" would be believed, and have its client send everything again.
func (s *stream[T]) trailer(sum Summary, f *Failure) metadata.MD {
	switch {
	case s.taken:
		return s.session.trailer(sum.Progress().upTo(s.toldUpTo()), f)
	case s.asked:
		return nil
	}
	return sum.trailer()
}
