package flow

import (
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
	runMail                   // run the handler for entries of a mailbox: see mail_run.go
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
