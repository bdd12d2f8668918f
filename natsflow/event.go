package natsflow

import (
	"strconv"
	"time"
)

// EventKind says what happened to a partition. Kinds may be added: unknown ones are to be ignored.
type EventKind int

// What a PartitionEvent can be about.
const (
	// EventClaimed: the worker holds the partition from now on. Reason says what it was before.
	EventClaimed EventKind = iota
	// EventReleased: the worker has handed the partition over.
	EventReleased
	// EventLost: the worker does not hold the partition any more, or not for certain. Its handlers' contexts have ended.
	EventLost
	// EventStopped: the worker runs no more of the partition, for the reason in Err. It holds it until it ends or hands it
	// over; the next holder tries again.
	EventStopped
	// EventCommitted: the partition's progress was written, which took Took, with all tries; or a write of its record, be it
	// of progress or to renew the lease, has failed for the reason in Err and is tried again while the partition is held.
	EventCommitted
	// EventDied: the holder before has died, as far as is known: the Deaths-th in a row.
	EventDied
	// EventRefused: an attempt or an OnFailure did not happen, since the partition is not held for certain.
	EventRefused
	// EventReplayed: a message was read that a holder that died, or has lost the partition, may have run. Its Origin says
	// Replayed.
	EventReplayed
	// EventSuspect: a message runs alone in the process, since holders died.
	EventSuspect
	// EventPoison: a message does not run, since holders died of it: OnFailure is asked.
	EventPoison
	// EventDeadLetter: a dead letter was stored; or not yet, for the reason in Err.
	EventDeadLetter
	// EventMissing: the stream has lost a message, or all from Seq to Last, before it was settled: an operator has purged
	// it, or it was older than Topic.MaxAge.
	EventMissing
)

var eventNames = [...]string{
	"EventClaimed", "EventReleased", "EventLost", "EventStopped", "EventCommitted", "EventDied", "EventRefused",
	"EventReplayed", "EventSuspect", "EventPoison", "EventDeadLetter", "EventMissing",
}

// String returns the constant's name.
func (k EventKind) String() string {
	if k >= 0 && int(k) < len(eventNames) {
		return eventNames[k]
	}
	return "EventKind(" + strconv.Itoa(int(k)) + ")"
}

// isOfHold reports whether the kind is about a worker's hold of a partition, and so happens a few times in each.
func (k EventKind) isOfHold() bool {
	switch k {
	case EventClaimed, EventReleased, EventLost, EventStopped, EventDied:
		return true
	}
	return false
}

// The reasons for which a partition changes its holder, in PartitionEvent.Reason of EventClaimed.
const (
	ReasonFree    = "free"    // nobody held it: it was released, or is new
	ReasonExpired = "expired" // its holder has not renewed its lease
	ReasonResumed = "resumed" // its holder was this worker, which had lost sight of the bucket
)

// PartitionEvent is one thing that happened. Fields that say nothing about it are zero.
type PartitionEvent struct {
	Kind      EventKind
	Time      time.Time // when it happened, which may be long before the Observer is told
	Partition int
	Epoch     uint64
	Reason    string // of EventClaimed
	Seq, Last uint64 // the message
	Key       string // its key
	Deaths    int    // of EventDied
	Took      time.Duration
	Err       error
	// Dropped is how many events, of any kind and partition, happened between the one that was told before and this one and
	// are told to nobody: too many waited for the Observer.
	Dropped int
}
