// Package contender is what people run messages with, each made to fit one form.
package contender

import (
	"example.com/flow/bench/internal/load"
)

// Handler does the work of one message.
type Handler func(*load.Message)

// Contender is one way to run messages.
type Contender struct {
	Name  string
	Order string // what it promises: "key", "all" or "none"
	Start func(h Handler, workers, pending int) Executor
}

// Executor is a Contender at work. Several streams may Run at once.
type Executor struct {
	Run   func(next func() *load.Message) // takes messages until nil; they need not be done when it returns
	Close func()                          // waits until all are done and stops
}

// All lists the contenders, with what all are compared to first.
var All = []Contender{
	{Hash, "key", startHash},
	{Flow, "key", startFlow},
	{Ring, "key", startRing},
	{Sub, "key", startSubpools},
	{One, "all", startOne},
	{FIFO, "all", startFIFO},
	{"conc/stream", "none", startStream},
	{"pond", "none", startPond},
	{"ants", "none", startAnts},
	{"workerpool", "none", startWorkerpool},
	{"errgroup", "none", startErrgroup},
}

// Names that the comparison refers to.
const (
	Hash = "hash64"
	Flow = "flow"
	FIFO = "flow FIFO"
	Ring = "ringlane"
	Sub  = "pond subpools"
	One  = "one worker"
)

// Named returns the contender called so, or nil.
func Named(name string) *Contender {
	for i := range All {
		if All[i].Name == name {
			return &All[i]
		}
	}
	return nil
}

// pushing makes an Executor of a function that takes one message.
func pushing(submit func(*load.Message), done func()) Executor {
	return Executor{
		Run: func(next func() *load.Message) {
			for m := next(); m != nil; m = next() {
				submit(m)
			}
		},
		Close: done,
	}
}
