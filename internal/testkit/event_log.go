package testkit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing/synctest"

	"example.com/flow"
)

// EventLog is an Observer that keeps the events that it is told. Its methods wait until everything in the bubble has come to
// rest.
type EventLog struct {
	mu     sync.Mutex
	events []flow.Event
}

// Observe is the [flow.Observer].
func (l *EventLog) Observe(_ context.Context, e flow.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// All returns the events so far, in order.
func (l *EventLog) All() []flow.Event {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

// Kinds returns the events so far as words: the kind, and the message's Seq if it has one.
func (l *EventLog) Kinds() string {
	var words []string
	for _, e := range l.All() {
		word := strings.TrimPrefix(e.Kind.String(), "Event")
		if e.Seq > 0 {
			word = fmt.Sprint(word, e.Seq)
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// Of returns the events of kind so far, in order.
func (l *EventLog) Of(kind flow.EventKind) []flow.Event {
	return slices.DeleteFunc(l.All(), func(e flow.Event) bool { return e.Kind != kind })
}

// Replay makes each stream's Summary from the events of its messages, by the stream's number.
func (l *EventLog) Replay() map[uint64]flow.Summary {
	streams := map[uint64]flow.Summary{}
	outcomes := map[[2]uint64]int{}
	for _, e := range l.All() {
		s := streams[e.Stream]
		settled := e.Settled
		switch e.Kind {
		case flow.EventAttempt:
			if e.Attempt > 1 {
				s.Retried++
			}
			streams[e.Stream] = s
			continue
		case flow.EventSuccess:
			s.Succeeded, settled = s.Succeeded+1, true
		case flow.EventFailure:
			s.Failed++
		case flow.EventReject:
			s.Rejected++
		case flow.EventDrop:
			s.Dropped++
		default:
			streams[e.Stream] = s
			continue
		}
		if outcomes[[2]uint64{e.Stream, e.Seq}]++; outcomes[[2]uint64{e.Stream, e.Seq}] > 1 {
			panic(fmt.Sprintf("two outcomes of message %d of stream %d", e.Seq, e.Stream))
		}
		s.Received++
		if !settled {
			s.Unsettled = append(s.Unsettled, e.Seq)
		}
		streams[e.Stream] = s
	}
	delete(streams, 0) // of EventShutdown
	for id, s := range streams {
		slices.Sort(s.Unsettled)
		s.Last = s.Received
		if s.Committed = s.Received; len(s.Unsettled) > 0 {
			s.Committed = s.Unsettled[0] - 1
		}
		streams[id] = s
	}
	return streams
}

// Count returns the number of events of kind so far.
func (l *EventLog) Count(kind flow.EventKind) int { return len(l.Of(kind)) }
