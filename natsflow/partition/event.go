package partition

// EventKind says what happened to a message or a partition. Kinds may be added: unknown ones are to be ignored.
type EventKind int

// What an Event can be about.
const (
	// EventRefused: an attempt, an OnFailure or a dead letter was refused, since the partition is not held for certain.
	EventRefused EventKind = iota
	// EventReplayed: a message is read that may have been under way in a holder that died, or has lost the partition.
	EventReplayed
	// EventSuspect: a message is about to run alone in the process.
	EventSuspect
	// EventPoison: a message is not run, since holders died of it. OnFailure is told next.
	EventPoison
	// EventDeadLetter: a dead letter was stored; or not, for the reason in Err, and it is tried again.
	EventDeadLetter
	// EventMissing: a message that was not settled is not in the log any more.
	EventMissing
)

// Event is one thing that happened.
type Event struct {
	Kind     EventKind
	Position uint64
	Key      string
	Err      error
}
