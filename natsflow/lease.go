package natsflow

import (
	"errors"
	"sync"
	"time"
)

// ErrLeaseLost is the cause of a handler's cancelled context when its partition is not this worker's any more, or not for
// certain.
var ErrLeaseLost = errors.New("natsflow: the lease of the partition is lost")

// lease is a worker's view of its own hold of one partition: a state machine without clock or connection, so that every
// order of answers, lost answers and late ones can be tried.
//
// The hold is a record in the lease bucket, written by compare-and-set. Others take a record for abandoned when it has not
// changed for the whole Lease since they saw it; the holder stops at three quarters of that after it sent its last write
// that is known to have succeeded. So no clocks need to agree, only to run at rates within a third of each other.
//
//	claiming ──written──► held ──deadline, or another claim is seen──► lost
//	    └──another claim is seen, or the deadline──────────────────────►┘
//
// A write whose answer does not come may be done, may be refused, and may be done later. The bucket is read then, and the
// record says whose it is: by claim, which is new for each hold, and by write, which counts the writes of the hold.
type lease struct {
	claim string        // names this hold among all holds that there ever were
	term  time.Duration // three quarters of Lease

	mu       sync.Mutex
	revision uint64    // of the record as it was last known
	epoch    uint64    // the revision of the claim; 0 while claiming
	deadline time.Time // from then on the partition may be another's
	lost     bool
}

// newLease returns the lease of one who is about to claim the record that has this revision (0: there is none).
func newLease(claim string, revision uint64, term time.Duration, now time.Time) *lease {
	return &lease{claim: claim, term: term, revision: revision, deadline: now.Add(term)}
}

// valid reports whether the partition is held for certain.
func (l *lease) valid(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.lost && l.epoch > 0 && now.Before(l.deadline)
}

// mayWrite reports whether a write makes sense: to claim, to renew or to commit.
func (l *lease) mayWrite(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.lost && now.Before(l.deadline)
}

// expects returns the revision that the next write compares with.
func (l *lease) expects() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.revision
}

// until returns when the lease ends unless it is renewed.
func (l *lease) until() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deadline
}

// written notes that a write, first sent at sent, has become revision.
func (l *lease) written(revision uint64, sent time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writtenLocked(revision, sent)
}

func (l *lease) writtenLocked(revision uint64, sent time.Time) {
	l.revision = revision
	if l.epoch == 0 {
		l.epoch = revision
	}
	if until := sent.Add(l.term); until.After(l.deadline) {
		l.deadline = until
	}
}

// verdict is what a read says of a write whose answer did not come.
type verdict int

const (
	verdictUnknown verdict = iota // the write may be under way still: it is to be tried again
	verdictWritten                // it is done
	verdictLost                   // another has claimed the partition
)

// found notes that the bucket has the record r as revision. write is the number of the write that is in question, which
// was first sent at sent.
func (l *lease) found(r record, revision, write uint64, sent time.Time) verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case revision < l.revision:
		return verdictUnknown // an old copy
	case r.Claim == l.claim && r.Write == write:
		l.writtenLocked(revision, sent)
		return verdictWritten
	case r.Claim == l.claim: // an earlier write, whose answer was lost too: it prolongs nothing, since when it was sent is forgotten
		l.revision = revision
		return verdictUnknown
	case revision == l.revision:
		return verdictUnknown // as it was before the claim
	default:
		l.lost = true
		return verdictLost
	}
}

// lose ends the lease.
func (l *lease) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = true
}

// claimed returns the epoch: the revision of the claim.
func (l *lease) claimed() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch
}
