package modeltest_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"example.com/flow"
	"pgregory.net/rapid"
)

// A script is what the model test runs: the options of a Flow, and moves of its clients, its handlers and its owner.
// It is drawn as a whole before it is run, and prints as the Go literal that runs it again.
type script struct {
	Options   flow.Options // without its functions
	Batches   bool         // it is NewBatch's, and doEnd ends calls
	OnFailure bool         // there is one: it answers what the message says
	Observer  bool
	Hangs     bool // the Observer does, on EventShutdown, until a move lets it go on
	Moves     []move
}

// move is one thing that happens. After each the simulation comes to rest and is compared with the oracle. A move that makes
// no sense where it stands (there is nothing to finish, say) does nothing, so that any part of a script is a script.
type move struct {
	Do             action
	Stream         int // which of the streams so far, modulo their number
	Key            string
	Bytes          int                // its size
	Verdict        flow.FailureAction // what OnFailure will answer for the message
	IgnoresContext bool               // the message's handler does not heed its context; on doCancel: recv does not
	N              int                // which of the running, modulo their number; of doAdvance: how many ticks
	How            ending             // of doEnd and doBreak
	Each           []ending           // of doEnd in batches: if How is endWell, those of the call's messages, in turns
}

type action int

const (
	doSend           action = iota
	doEnd                   // a running handler returns
	doOpen                  // one more stream
	doEOF                   // the client has sent all
	doBreak                 // recv fails
	doCancel                // a stream's context
	doAdvance               // the time
	doShutdown              //
	doCancelShutdown        // the context of all Shutdowns so far ends
	doClose
	doLetGo // the Observer that hangs returns
)

// ending is how a handler, or a recv, ends.
type ending int

const (
	endWell ending = iota
	endFailed
	endPermanent
	endPanic
	endGoexit
	endContextError // an error of some other context
	endByCode       // a status whose code is not worth another try
	endTypedNil     // an error whose methods panic
	endNotAttempted // of a message in a batch: it was not touched
	endByContext    // its own context: not drawn
	endByTimeout    // its attempt's time is over: not drawn
	endFreed        // the simulation is over: not drawn
)

const (
	tick       = 100 * time.Millisecond
	maxStreams = 4
)

func (a action) GoString() string {
	return [...]string{"doSend", "doEnd", "doOpen", "doEOF", "doBreak", "doCancel", "doAdvance", "doShutdown", "doCancelShutdown", "doClose", "doLetGo"}[a]
}

func (e ending) GoString() string {
	return [...]string{"endWell", "endFailed", "endPermanent", "endPanic", "endGoexit", "endContextError", "endByCode", "endTypedNil", "endNotAttempted", "endByContext", "endByTimeout", "endFreed"}[e]
}

// String is the script as Go source.
func (s script) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "script{\n\tOptions: %s,\n", literal(reflect.ValueOf(s.Options)))
	if s.Batches {
		b.WriteString("\tBatches: true,\n")
	}
	if s.OnFailure {
		b.WriteString("\tOnFailure: true,\n")
	}
	if s.Observer {
		b.WriteString("\tObserver: true,\n")
	}
	if s.Hangs {
		b.WriteString("\tHangs: true,\n")
	}
	b.WriteString("\tMoves: []move{\n")
	for _, m := range s.Moves {
		fmt.Fprintf(&b, "\t\t%s,\n", m)
	}
	b.WriteString("\t},\n}")
	return b.String()
}

func (m move) String() string {
	rest := m
	rest.Do = 0
	text := strings.TrimSuffix(strings.TrimPrefix(literal(reflect.ValueOf(rest)), "move{"), "}")
	return "{" + strings.TrimSuffix("Do: "+m.Do.GoString()+", "+text, ", ") + "}"
}

// literal is v as Go source, without the fields that are zero.
func literal(v reflect.Value) string {
	if g, ok := v.Interface().(fmt.GoStringer); ok {
		return g.GoString()
	}
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		return fmt.Sprintf("%d * time.Millisecond", v.Interface().(time.Duration).Milliseconds())
	case v.Kind() == reflect.Struct:
		var fields []string
		for i := range v.NumField() {
			if f := v.Field(i); !f.IsZero() {
				fields = append(fields, v.Type().Field(i).Name+": "+literal(f))
			}
		}
		name := v.Type().String()
		return strings.TrimPrefix(name, "modeltest_test.") + "{" + strings.Join(fields, ", ") + "}"
	case v.Kind() == reflect.Slice:
		var elements []string
		for i := range v.Len() {
			elements = append(elements, literal(v.Index(i)))
		}
		return strings.ReplaceAll(v.Type().String(), "modeltest_test.", "") + "{" + strings.Join(elements, ", ") + "}"
	case v.Kind() == reflect.Int && v.Type().PkgPath() != "":
		return "flow." + fmt.Sprint(v.Interface())
	}
	return fmt.Sprintf("%#v", v.Interface())
}

// drawScript draws a script. Phases of moves, and not one long list, because rapid draws lists of about five.
func drawScript(t *rapid.T) script {
	s := script{
		Options:   drawOptions(t),
		OnFailure: rapid.Bool().Draw(t, "OnFailure"),
		Observer:  rapid.Bool().Draw(t, "Observer"),
	}
	s.Hangs = s.Observer && rapid.Bool().Draw(t, "Hangs")
	phases := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(drawMove), 0, 20), 0, 12).Draw(t, "moves")
	s.Moves = slices.Concat(phases...)
	if rapid.Bool().Draw(t, "Shutdown") { // by the odds alone, few Shutdowns would have to cut anything off
		few := rapid.SliceOfN(rapid.Custom(drawMove), 0, 6)
		s.Moves = append(append(s.Moves, move{Do: doShutdown}), few.Draw(t, "drain")...)
		last := rapid.SampledFrom([]move{{Do: doAdvance, N: 12}, {Do: doCancelShutdown}, {Do: doClose}, {Do: doLetGo}}).Draw(t, "last")
		s.Moves = append(append(s.Moves, last), few.Draw(t, "after")...)
	}
	return s
}

// drawBatches draws a script for NewBatch.
func drawBatches(t *rapid.T) script {
	s := drawScript(t)
	s.Batches = true
	o := &s.Options
	o.Backpressure = flow.BackpressureOptions{Capacity: max(1, o.Backpressure.Capacity)}
	o.Batch.MaxMessages = rapid.IntRange(0, 5).Draw(t, "MaxMessages")
	o.Batch.MaxBytes = rapid.SampledFrom([]int64{0, 0, 2, 3, 5}).Draw(t, "MaxBytes")
	if n := max(0, rapid.IntRange(0, 5).Draw(t, "Linger")-2); n > 0 {
		o.Batch.Linger = time.Duration(n)*tick + 17*time.Millisecond
	}
	o.Batch.NoIsolation = rapid.IntRange(0, 3).Draw(t, "NoIsolation") == 3
	for i := range s.Moves {
		if m := &s.Moves[i]; m.Do == doEnd {
			if rapid.Bool().Draw(t, "well") {
				m.How = endWell
			}
			m.Each = rapid.SliceOfN(rapid.SampledFrom(ends), 0, 4).Draw(t, "Each")
		}
	}
	return s
}

// ends are those of a message in a batch, as often as they are drawn.
var ends = []ending{
	endWell, endWell, endWell, endFailed, endFailed, endNotAttempted, endNotAttempted, endPermanent, endContextError, endByCode,
	endTypedNil,
}

func drawOptions(t *rapid.T) (o flow.Options) {
	small := func(name string, hi int) int { return rapid.IntRange(0, hi).Draw(t, name) }
	o.Ordering.Mode = rapid.SampledFrom([]flow.OrderingMode{
		flow.OrderingKeyedFIFO, flow.OrderingFIFO, flow.OrderingNone, flow.OrderingKeyedFIFO}).Draw(t, "Mode")
	if o.Ordering.Mode != flow.OrderingNone {
		o.Ordering.Scope = flow.OrderingScope(small("Scope", 1))
		o.Ordering.Capacity = max(0, small("Ordering.Capacity", 6)-3)
	}
	if o.Ordering.Mode == flow.OrderingKeyedFIFO {
		o.Ordering.KeyCapacity = max(0, small("KeyCapacity", 4)-2)
		o.Ordering.UnorderedEmptyKey = rapid.Bool().Draw(t, "UnorderedEmptyKey")
	}
	if o.Backpressure.Capacity = small("Capacity", 3); o.Backpressure.Capacity > 0 {
		o.Backpressure.Policy = flow.BackpressurePolicy(small("Policy", 3))
		if o.Backpressure.Policy == flow.BackpressureQueue {
			o.Backpressure.QueueCapacity = max(0, small("QueueCapacity", 4)-2)
		}
	}
	o.MaxPending = max(0, small("MaxPending", 8)-4)
	o.MaxPendingBytes = rapid.SampledFrom([]int64{0, 0, -1, 1, 2, 3, 4, 8}).Draw(t, "MaxPendingBytes")
	// What comes of different reasons never comes at the same time: hence the odd milliseconds.
	if n := max(0, small("AttemptTimeout", 6)-3); n > 0 {
		o.Retry.AttemptTimeout = time.Duration(n)*tick + 13*time.Millisecond
	}
	if o.Retry.MaxAttempts = small("MaxAttempts", 3); o.Retry.MaxAttempts > 0 {
		o.Retry.Backoff = time.Duration(small("Backoff", 3)) * tick
		o.Retry.Multiplier = float64(small("Multiplier", 2))
		o.Retry.MaxBackoff = o.Retry.Backoff * time.Duration(small("MaxBackoff", 1))
		o.Retry.Budget = rapid.SampledFrom(budgets).Draw(t, "Budget")
	}
	o.Shutdown.DrainOnClose = rapid.Bool().Draw(t, "DrainOnClose")
	if n := max(0, small("GracePeriod", 9)-3); n > 0 {
		o.Shutdown.GracePeriod = time.Duration(n)*tick + 7*time.Millisecond
	}
	if n := max(0, small("IdleTimeout", 20)-15); n > 0 {
		o.IdleTimeout = time.Duration(2*n)*tick + 11*time.Millisecond
	}
	return o
}

// budgets of which some are soon spent, and those whose successes give much soon have tokens again.
var budgets = []flow.RetryBudget{
	{}, {}, {}, {MaxTokens: 4, TokenRatio: 0.001}, {MaxTokens: 3, TokenRatio: 1}, {MaxTokens: 2.5, TokenRatio: 2.5},
	{MaxTokens: 2, TokenRatio: 1}, {MaxTokens: 4, TokenRatio: 0.5}, {MaxTokens: 2.5, TokenRatio: 2.25},
}

// odds are how often each kind of move is drawn.
var odds = func() (all []action) {
	for a, n := range map[action]int{doSend: 34, doEnd: 30, doOpen: 6, doEOF: 4, doBreak: 2, doCancel: 3, doAdvance: 8,
		doShutdown: 2, doCancelShutdown: 1, doClose: 1, doLetGo: 1} {
		all = append(all, slices.Repeat([]action{a}, n)...)
	}
	slices.Sort(all) // rapid shrinks towards the first
	return all
}()

func drawMove(t *rapid.T) move {
	m := move{Do: rapid.SampledFrom(odds).Draw(t, "Do")}
	switch m.Do {
	case doSend, doEOF, doBreak, doCancel:
		m.Stream = rapid.IntRange(0, maxStreams-1).Draw(t, "Stream")
	}
	switch m.Do {
	case doSend:
		m.Key = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "Key")
		m.Bytes = rapid.IntRange(0, 3).Draw(t, "Bytes")
		m.Verdict = rapid.SampledFrom([]flow.FailureAction{flow.SkipMessage, flow.SkipKey, flow.SkipMessage, flow.FailStream}).Draw(t, "Verdict")
		m.IgnoresContext = rapid.IntRange(0, 3).Draw(t, "IgnoresContext") == 3
	case doEnd:
		m.N = rapid.IntRange(0, 4).Draw(t, "N")
		m.How = rapid.SampledFrom([]ending{endWell, endWell, endFailed, endFailed, endFailed, endPermanent, endPanic, endGoexit, endContextError, endByCode, endTypedNil, endWell, endWell}).Draw(t, "How")
	case doBreak:
		m.How = rapid.SampledFrom([]ending{endFailed, endContextError, endPanic, endGoexit, endTypedNil}).Draw(t, "How")
	case doCancel:
		m.IgnoresContext = rapid.Bool().Draw(t, "IgnoresContext")
	case doAdvance:
		m.N = rapid.IntRange(1, 12).Draw(t, "N")
	}
	return m
}
