package modeltest_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"pgregory.net/rapid"
)

// The mixed test is the model's complement. In the model every handler stays until the script ends it. Here most return
// at once, so that there are long runs, straight from the mailbox and of what is lined up; and among the messages are some
// whose handlers block, are slow, fail, crash, look at the Flow or cancel their stream: then a run is recalled, goes on, or
// ends early. Whenever the simulation comes to rest, what runs, waits, is read and is counted must be exact
// (mixture_check_test.go). The options are those under which there are long runs; the model draws the others.
//
//	go test -run Mix -rapid.checks=10000

func TestMixOfFastSlowAndFailingMessagesKeepsSlotsBusyAndCountsExact(t *testing.T) {
	testkit.SkipIfShort(t)
	rapid.Check(t, holds(t, drawMixture, playMixture))
}

// mixture is what the mixed test runs.
type mixture struct {
	Options   flow.Options // without its functions
	OnFailure bool         // there is one: it answers what the message says
	Moves     []mixedMove
}

// String is the mixture as Go source.
func (x mixture) String() string {
	return strings.ReplaceAll(literal(reflect.ValueOf(x)), "mixedMove{Do:", "\n\tmixedMove{Do:")
}

// mixedMove is one thing that happens. What makes no sense where it stands does nothing.
type mixedMove struct {
	Do     mixedAction
	Stream int   // which of the streams that live, modulo their number
	Burst  burst // of mixSend
	N      int   // of mixEnd: which of the handlers that block, modulo their number
	Rush   bool  // the simulation does not come to rest before the next move
}

type mixedAction int

const (
	mixSend     mixedAction = iota
	mixEnd                  // a handler that blocks goes on
	mixEndAll               // all of them
	mixLook                 // a Snapshot, for which long runs are settled
	mixPass                 // time passes: tries that wait for their backoff are due
	mixOpen                 // one more stream
	mixEOF                  // the client has sent all
	mixCancel               // a stream's context
	mixShutdown             //
	mixClose
)

func (a mixedAction) GoString() string {
	return [...]string{"mixSend", "mixEnd", "mixEndAll", "mixLook", "mixPass", "mixOpen", "mixEOF", "mixCancel", "mixShutdown", "mixClose"}[a]
}

// burst is a number of messages that are sent together.
type burst struct {
	N          int
	Plain      []plain     // what they are, one after the other, and again from the first
	Exceptions []exception // those whose handlers do not return at once with success
}

type plain struct {
	Key   string
	Bytes int
}

// exception is how a message's handler behaves.
type exception struct {
	At           int  // which of the burst
	First, Later pace // of its first attempt, and of the others
	Fails        int  // so many attempts end like How, the next succeeds
	How          ending
	Verdict      flow.FailureAction // what OnFailure will answer
}

type pace int

const (
	atOnce  pace = iota
	slow         // for longer than a run may stand still
	blocks       // until a move ends it, or its context ends
	looks        // at the Flow
	cancels      // its own stream's context
)

func (p pace) GoString() string {
	return [...]string{"atOnce", "slow", "blocks", "looks", "cancels"}[p]
}

// mixedBackoff is also how long mixPass takes. mixedNever is a time that does not pass.
const (
	mixedBackoff = time.Millisecond
	mixedNever   = 1000 * time.Hour
)

const maxMixedStreams = 4 // that live

func drawMixture(t *rapid.T) mixture {
	x := mixture{Options: drawMixedOptions(t), OnFailure: evenly(t, 8) > 0}
	move := rapid.Custom(drawMixedMove)
	days := rapid.SliceOfN(rapid.SliceOfN(move, 0, 20), 0, 20) // nested, since rapid draws lists of about five
	for range 2 {
		for _, day := range rapid.SliceOfN(days, 0, 20).Draw(t, "moves") {
			x.Moves = append(x.Moves, slices.Concat(day...)...)
		}
	}
	if end := oneOf(t, mixSend, mixSend, mixSend, mixShutdown, mixShutdown, mixClose); end != mixSend {
		x.Moves = append(x.Moves, mixedMove{Do: end, Rush: evenly(t, 2) > 0})
		x.Moves = append(x.Moves, rapid.SliceOfN(move, 0, 10).Draw(t, "after")...)
	}
	return x
}

// evenly draws a number below n, each as likely as any other: rapid's own ranges and choices prefer what is small.
func evenly(t *rapid.T, n int) (i int) {
	for bit := 1; bit < 16*n; bit *= 2 {
		if i *= 2; rapid.Bool().Draw(t, "bit") {
			i++
		}
	}
	return i % n
}

func oneOf[V any](t *rapid.T, values ...V) V { return values[evenly(t, len(values))] }

func drawMixedOptions(t *rapid.T) (o flow.Options) {
	o.Ordering.Mode = oneOf(t, flow.OrderingKeyedFIFO, flow.OrderingFIFO, flow.OrderingNone, flow.OrderingKeyedFIFO)
	if o.Ordering.Mode == flow.OrderingKeyedFIFO {
		o.Ordering.UnorderedEmptyKey = evenly(t, 3) == 2
	}
	o.Backpressure.Capacity = oneOf(t, 0, 1, 2, 3, 5)
	o.MaxPending = oneOf(t, 0, 1, 2, 3, 8, 16, 20, 40, 64, 100, -1)
	o.MaxPendingBytes = oneOf[int64](t, 0, 0, -1, 1, 10, 60, 500)
	if o.Retry.MaxAttempts = evenly(t, 5); o.Retry.MaxAttempts > 1 {
		o.Retry.Backoff = oneOf(t, 0, mixedBackoff)
	}
	o.Retry.AttemptTimeout = oneOf(t, 0, 0, mixedNever)
	o.IdleTimeout = oneOf(t, 0, 0, mixedNever)
	o.Shutdown.DrainOnClose = evenly(t, 2) > 0
	return o
}

// mixedOdds are how often each kind of move is drawn.
var mixedOdds = slices.Concat(
	slices.Repeat([]mixedAction{mixSend}, 36), slices.Repeat([]mixedAction{mixEnd}, 24),
	slices.Repeat([]mixedAction{mixEndAll}, 6), slices.Repeat([]mixedAction{mixLook}, 14),
	slices.Repeat([]mixedAction{mixPass}, 10), slices.Repeat([]mixedAction{mixOpen}, 5),
	[]mixedAction{mixEOF, mixEOF, mixCancel},
)

func drawMixedMove(t *rapid.T) mixedMove {
	m := mixedMove{Do: oneOf(t, mixedOdds...), Rush: evenly(t, 4) == 3}
	switch m.Do {
	case mixSend:
		m.Stream = evenly(t, maxMixedStreams)
		m.Burst = drawBurst(t)
	case mixEOF, mixCancel:
		m.Stream = evenly(t, maxMixedStreams)
	case mixEnd:
		m.N = evenly(t, 8)
	}
	return m
}

func drawBurst(t *rapid.T) burst {
	b := burst{N: oneOf(t, 1, 2, 3, 5, 9, 20, 32, 33, 64, 100, 150, 250)}
	b.Plain = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) plain {
		return plain{Key: oneOf(t, "a", "b", "", "c", "d", "e", "f", "g"), Bytes: oneOf(t, 0, 1, 3, 9, 20)}
	}), 1, 10).Draw(t, "Plain")
	b.Exceptions = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) exception { return drawException(t, b.N) }), 0, 10).Draw(t, "Exceptions")
	return b
}

var mixedPaces = []pace{atOnce, blocks, blocks, blocks, slow, slow, looks}

// drawException draws one of a burst of n. What ends its stream is rare, for streams to get old.
func drawException(t *rapid.T, n int) exception {
	o := exception{At: evenly(t, n), First: oneOf(t, mixedPaces...), Fails: max(0, evenly(t, 8)-4)}
	if evenly(t, 4) == 3 { // nobody looks out under whom there is nothing left to do
		o.At = n - 1
	}
	if evenly(t, 64) == 63 {
		o.First = cancels
	}
	if o.Fails == 0 {
		return o
	}
	o.Later = oneOf(t, mixedPaces...)
	o.How, o.Verdict = endFailed, flow.SkipMessage
	if evenly(t, 8) == 7 { // no more runs from the mailbox in its stream
		o.Verdict = flow.SkipKey
	}
	switch evenly(t, 64) {
	case 57, 58, 59, 60:
		o.How = endPermanent
	case 61:
		o.Verdict = flow.FailStream
	case 62:
		o.How = endPanic
	case 63:
		o.How = endGoexit
	}
	return o
}
