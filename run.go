package flow

import (
	"sync"
	"sync/atomic"
	"time"
)

// run is what a worker gets: messages of different lanes, each with some of those behind it. It changes hands by channel,
// to the worker and back. While it is out, worker and shard share at alone:
//
//	worker                                     shard
//	claims i: CAS(i-1, i), then runs list[i]   recalls: i = Swap(recalled)
//	fails: gives the run back                  list[:i] has finished, list[i] runs, the rest is ready again
//
// So each message is either run by the worker or taken back, never both.
type run[T any] struct {
	at    atomic.Int32 // the message that runs; unclaimed, or recalled
	kind  runKind
	list  []*message[T]
	mail  *mailRun[T]   // of runMail; kept for the next one
	batch *batchCall[T] // of runBatch

	began  atomic.Int64               // when the attempt at hand began, plus 1; kept for the Observer
	asking atomic.Pointer[message[T]] // the last one about which OnFailure was asked
	next   int32                      // the worker's: all before it have finished
	took   time.Duration

	// The shard's own.
	worker   *worker[T]
	first    *stream[T]    // of its first message; kept to compare
	slots    int           // that it holds
	alone    bool          // it has a message of a key that is known to be slow
	more     bool          // others were waiting when it was sent
	recalled bool          // what its worker had not claimed has been taken back
	settled  int32         // of list, all before have been counted
	end      int32         // of list, what is behind has been taken back
	seen     int32         // at, when the shard last looked
	since    time.Duration // when at was first seen to be that
	looked   time.Duration // when the shard first saw that it was claimed; unset before
}

const (
	unclaimed = -1
	recalled  = -2
	unset     = -1
)

// runKind says what a worker does with the messages of a run.
type runKind uint8

const (
	runExecute runKind = iota // run the handler
	runMail                   // run the handler for entries of a mailbox: see mailbox.go
	runFinish                 // only bring to their end what will not run; without a slot
	runBatch                  // call the handler of a batch: see batch_run.go
)

// add puts m into r, behind all of its lane that is in it.
func (r *run[T]) add(m *message[T]) {
	m.state, m.run, m.tried = stateOut, r, m.attempts
	r.list = append(r.list, m)
}

func (r *run[T]) len() int32 { return int32(len(r.list)) }

// tail returns the last message of r.
func (r *run[T]) tail() *message[T] { return r.list[len(r.list)-1] }

// reset makes r one that can be filled.
func (r *run[T]) reset(kind runKind) {
	clear(r.list)
	list := r.list[:0]
	if cap(list) > 2*maxRun { // of the end of a stream that had much pending
		list = nil
	}
	r.at.Store(unclaimed)
	r.asking.Store(nil)
	r.kind, r.list, r.next, r.took = kind, list, 0, 0
	r.worker, r.first, r.slots, r.alone, r.more, r.recalled = nil, nil, 0, false, false, false
	r.settled, r.end, r.seen, r.since, r.looked = 0, 0, unclaimed, 0, unset
}

// stands reports whether r, whose worker is at at, has stood still since the shard last looked, or has been out for so much
// longer than a run takes that what is in it must not wait for the rest of it. A run that no worker has claimed is neither.
func (r *run[T]) stands(at int32, now time.Duration) bool {
	if at == unclaimed {
		return false
	}
	if r.looked == unset {
		r.looked = now
	}
	if at != r.seen {
		r.seen, r.since = at, now
	}
	return now-r.since >= stillTime || now-r.looked >= lookTime
}

// runSet is the runs of a shard: those that are out, and spare ones.
type runSet[T any] struct {
	out   int       // how many are with workers
	long  []*run[T] // of these, those of several messages that have not been recalled
	spare []*run[T]
}

func (rs *runSet[T]) new(kind runKind) *run[T] {
	n := len(rs.spare)
	if n == 0 {
		r := new(run[T])
		r.reset(kind)
		return r
	}
	r := rs.spare[n-1]
	rs.spare[n-1] = nil
	rs.spare = rs.spare[:n-1]
	r.kind = kind
	return r
}

func (rs *runSet[T]) reuse(r *run[T]) {
	r.reset(runExecute)
	if len(rs.spare) < maxRun {
		rs.spare = append(rs.spare, r)
	}
}

// forget takes r out of the long ones.
func (rs *runSet[T]) forget(r *run[T]) {
	last := len(rs.long) - 1
	for i, other := range rs.long {
		if other == r {
			rs.long[i], rs.long[last] = rs.long[last], nil
			rs.long = rs.long[:last]
			return
		}
	}
}

// phase is where a Run stands. It only moves forward.
//
//	open ──EOF──► finishing ───────────────────────────────► done
//	  │              └──Shutdown(drain)──► draining ────────► done   (with EOF it ends well)
//	  ├──Shutdown(drain)───────────────────► draining
//	  └──failure, Close, Shutdown without drain──► aborting ──► done  (from every phase before done)
type phase uint8

const (
	phaseOpen      phase = iota // the source is read
	phaseFinishing              // the source has ended with io.EOF; what was received runs
	phaseDraining               // a shutdown has ended the reading; what was received runs
	phaseAborting               // what has not begun to run is dropped; what runs is waited for
	phaseDone                   // every received message is finished
)

// String returns the phase's name.
func (p phase) String() string {
	return enumName(int(p), "phase", "open", "finishing", "draining", "aborting", "done")
}

// runState says where a Run stands and why it ends. It is safe for concurrent use: the reader, the workers, the shard
// and a shutdown all move it, and the first failure is the one that counts.
type runState struct {
	seen atomic.Uint32 // at, to be read without the lock: a reader looks before every message

	mu       sync.Mutex
	at       phase
	eof      bool // the source said io.EOF, in whatever phase
	stopping bool // a shutdown has ended the reading
	failure  *Failure
}

func (s *runState) phase() phase { return phase(s.seen.Load()) }

func (s *runState) moveLocked(to phase) {
	s.at = to
	s.seen.Store(uint32(to))
}

// fail aborts the run because of f. It reports whether f is the reason, which only the first failure before the end is.
func (s *runState) fail(f *Failure) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil || s.at == phaseDone {
		return false
	}
	s.failure = f
	s.moveLocked(phaseAborting)
	return true
}

// stop ends the reading. With drain what was received runs, without it what has not begun is dropped. It reports whether
// that has changed anything.
func (s *runState) stop(drain bool) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at >= phaseAborting {
		return false
	}
	before := s.at
	s.stopping = true
	if drain {
		s.moveLocked(phaseDraining)
	} else {
		s.moveLocked(phaseAborting)
	}
	return s.at != before
}

// inputEnded notes that the source has ended with io.EOF.
func (s *runState) inputEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eof = true
	if s.at == phaseOpen {
		s.moveLocked(phaseFinishing)
	}
}

// finishedAll ends the run if nothing more will be received, and reports whether it did: no message may be pending.
func (s *runState) finishedAll() (done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == phaseOpen || s.at == phaseDone {
		return false
	}
	s.moveLocked(phaseDone)
	return true
}

// reason returns the failure that aborted the run, and whether a shutdown has ended its reading.
func (s *runState) reason() (failure *Failure, stopping bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure, s.stopping
}

// result returns what Run returns. A run that no failure ended has ended well only if its client said that it had sent
// everything and all of it is settled. Otherwise its context has ended while the last message failed by that, or a
// shutdown has ended it.
func (s *runState) result(allSettled bool, contextEnded func() *Failure) *Failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failure != nil:
		return s.failure
	case s.eof && allSettled:
		return nil
	}
	if f := contextEnded(); f != nil {
		return f
	}
	return &Failure{Kind: FailureShutdown, Err: reasonShutdown}
}

// The pace of a shard is the length of its runs: one message to begin with, more while runs are quick, one again after a
// run stood still. With runs of one each message crosses two channels, some 450 ns; with long ones that is shared by up
// to 128. A key whose last message was slow runs alone until one was quick again, so that it holds up nobody.
const (
	maxRun    = 128                   // messages in a run, at most
	runTime   = 40 * time.Microsecond // about how long a run may take
	stillTime = 20 * time.Microsecond // a run that has stood still for so long is recalled
	quickRuns = 16                    // of one message, one after the other, before there are longer ones,
	mostQuick = 64 * quickRuns        // and at most after runs that stood still, each of which doubles it
)

// pace is a pure value: it is told what was measured and says how to go on.
type pace struct {
	length int32         // of runs, at most
	each   time.Duration // about how long a message takes
	swift  int32         // messages, one after the other, that took no longer than to hand them over
	quick  int32         // runs of one message that were quick, one after the other
	needed int32         // so many of these before there are longer runs
	sound  int32         // messages since needed changed
	slow   slowKeys
}

func newPace() pace { return pace{length: 1, needed: quickRuns} }

// A run that takes no longer than swiftRun, or whose messages take no longer than swiftTime each, may be run by its shard's own
// goroutine. To hand a run to a worker and back takes about a microsecond.
const (
	swiftRun  = 4 * time.Microsecond
	swiftTime = 250 * time.Nanosecond
)

// isSwift reports whether messages take less time than it would take to hand them to a worker one by one.
func (p *pace) isSwift() bool { return p.swift >= p.needed && p.each <= swiftTime }

// own reports whether a run of n messages is one for the shard's own goroutine. waits says that others could run meanwhile, on
// one of so many processors.
func (p *pace) own(n int32, waits bool, processors int) bool {
	small := time.Duration(n)*p.each <= swiftRun
	switch {
	case p.swift < p.needed:
		return false
	case p.each <= swiftTime:
		return small || !waits || processors <= 2
	}
	return small && !waits
}

// heldUp is told that a run of n messages took so long on the shard's own goroutine. A message that stood still there has held
// up all of the shard: the next time it takes twice as many quick messages until the shard runs any itself.
func (p *pace) heldUp(n int32, took time.Duration) {
	if took > 2*stillTime+time.Duration(n)*swiftTime {
		p.hesitate()
	}
}

// hesitate has the next long or own runs come later.
func (p *pace) hesitate() {
	p.swift, p.sound, p.needed = 0, 0, min(2*p.needed, mostQuick)
}

// observe is told of a run of n messages that took so long. alone says that it was of a key known to be slow, hash is
// that of its first message, and more says that others were waiting to run when it was sent.
func (p *pace) observe(n int32, took time.Duration, hash uint64, alone, more bool) {
	if alone {
		p.slow.measured(hash, took < stillTime/2)
		return
	}
	if n == 1 && took > 2*stillTime {
		p.slow.add(hash)
		p.quick, p.swift, p.sound = 0, 0, 0
		return
	}
	p.each += (took/time.Duration(n) - p.each) / 4
	switch {
	case took == 0: // by the clock of a synctest bubble, which stands still while handlers wait for each other too
	case took <= max(swiftRun, time.Duration(n)*swiftTime):
		p.swift = min(p.swift+n, mostQuick)
	default:
		p.swift = 0
	}
	if p.sound += n; p.sound >= 4*p.needed {
		p.needed, p.sound = max(p.needed/2, quickRuns), 0
	}
	switch whole := took / time.Duration(n) * time.Duration(p.length); {
	case whole > runTime:
		p.length = max(1, p.length/2)
		p.quick = 0
	case whole > runTime/2 || n < p.length || !more:
	case p.length == 1 && p.quick < p.needed:
		p.quick++
	default:
		p.length = min(2*p.length, maxRun)
	}
}

// stopped is told of a run of several messages of which only the first has run, in that time, since it is to be tried again or
// has skipped its key. If that was slow, the others should not have had to wait for it: observe, which takes a slow message
// for one of a slow key, leaves the length as it is.
func (p *pace) stopped(took time.Duration) {
	if took > runTime {
		p.length, p.quick = max(1, p.length/2), 0
	}
}

// stoodStill is told that a message of hash holds up the run that it is in. Where that happens again and again, it takes
// longer each time until there are long runs again, and after many messages of which none did, less long: otherwise they
// would hold up other keys again and again.
func (p *pace) stoodStill(hash uint64) {
	p.slow.add(hash)
	p.length, p.quick = 1, 0
	p.hesitate()
}

// most returns how many long runs may be out at once. While even the longest are quick, one worker keeps up with the
// shard, and it keeps the order of receipt and the caches warm; but mail runs, for which the shard does nothing, may be as
// many as processors. Otherwise there are more than processors: a processor that waits for a worker is given work faster
// than one that waits for a run.
func (p *pace) most(processors int, mail bool) int {
	switch {
	case mail:
		return processors
	case p.length == maxRun:
		return 1
	}
	return 2 * processors
}

// isSlow reports whether hash is that of a slow key, whose messages run alone.
func (p *pace) isSlow(hash uint64) bool { return p.slow.has(hash) }

// next returns the pace with which another shard begins. If a key is known to be slow, nothing is taken for quick there: which
// keys are, is not handed on, since those of streams that have ended may never come again.
func (p *pace) next() pace {
	n := *p
	if p.slow.n > 0 {
		n = newPace()
		n.needed = p.needed
	}
	n.slow = slowKeys{}
	return n
}

const (
	slowPlaces  = 256  // hashes of slow keys that are remembered; a power of two
	silentSpell = 4096 // how often there were too many of them for a mail run until those that are silent are forgotten
)

// slowKeys are the hashes of keys whose last message was slow: some of them, since of those that share a place it remembers the
// last one. Hash 0, which is that of messages without an order, is never in it.
type slowKeys struct {
	n    int
	list *[slowPlaces]slowKey // by their last bits; nil: there was none yet
	many int                  // how often there were too many since the silent ones were last forgotten
}

type slowKey struct {
	hash  uint64 // 0: none
	heard bool   // a message of it was slow since the silent ones were last forgotten
}

func (sk *slowKeys) has(hash uint64) bool {
	return sk.n > 0 && hash != 0 && sk.list[hash%slowPlaces].hash == hash
}

func (sk *slowKeys) add(hash uint64) {
	if hash == 0 {
		return
	}
	if sk.list == nil {
		sk.list = new([slowPlaces]slowKey)
	}
	place := &sk.list[hash%slowPlaces]
	if place.hash == 0 {
		sk.n++
	}
	*place = slowKey{hash, true}
}

// measured is told of a message that has run alone.
func (sk *slowKeys) measured(hash uint64, quick bool) {
	if !sk.has(hash) {
		return
	}
	place := &sk.list[hash%slowPlaces]
	if place.heard = true; quick {
		*place = slowKey{}
		sk.n--
	}
}

// addTo adds them to busy. It reports whether there was room for them. Where there is none again and again, those that are
// silent are forgotten: each upload may have a key of its own, and if a database once stood still for a second, all that were
// under way then would keep later ones from mail runs for ever. One that comes again and still is slow holds up others once more.
func (sk *slowKeys) addTo(busy *busyKeys) bool {
	if sk.n > busy.room() {
		if sk.many++; sk.many == silentSpell {
			sk.forgetSilent()
		}
		return false
	}
	for i, left := 0, sk.n; left > 0; i++ {
		if hash := sk.list[i].hash; hash != 0 {
			left--
			busy.add(hash)
		}
	}
	return true
}

// forgetSilent forgets those of which nothing was heard since it was last called.
func (sk *slowKeys) forgetSilent() {
	sk.many = 0
	for i := range sk.list {
		place := &sk.list[i]
		if place.hash != 0 && !place.heard {
			*place = slowKey{}
			sk.n--
		}
		place.heard = false
	}
}
