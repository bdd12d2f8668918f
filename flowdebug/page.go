// Package flowdebug shows what Flows have under way on a page, mounted like net/http/pprof: streams, hottest keys,
// longest-running messages, recent failures, and throughput, wait and duration over the last three minutes.
//
//	page := flowdebug.New()
//	f, err := flow.New(handle, key, flow.Options{Observer: page.Observer("uploads")})
//	…
//	page.Add("uploads", f)
//	http.Handle("/debug/flow/", page)
//
// The page is one HTML document that loads nothing else and follows the Flow by server-sent events.
//
// # Who must not see it
//
// The page does not authenticate its readers, and it shows the keys of messages, the addresses of clients, the names of
// their sessions and the texts of errors and panics: customers' data in many services. So it must not be reachable by the public, by the customers themselves (each
// would see the keys of all the others), or by everything else on the network. Serve it on a loopback or an operators'
// address of its own, or behind a handler that admits only operators. A screenshot of it is customers' data too. The page
// only reads: nothing that it serves changes a Flow.
//
// A loopback address keeps other machines out, but not other sites in a browser on the same machine, which can reach it
// under a host name of their own (DNS rebinding). Mounting it with a host, as "localhost/debug/flow/", prevents that;
// examples/ingest admits addresses too, which cannot be forged like that.
//
// Keys and errors are words of strangers. They are cut to 128 and 512 bytes; characters that are invisible, or that change
// the direction of text, and bytes that are not UTF-8 are written as in Go; and the page treats them as text and nothing
// else, which its Content-Security-Policy enforces.
//
// # JSON
//
// For scripts, ?format=json (or an Accept header of application/json) answers {"flows": […]} with one object for each
// Flow, in the order in which they were named; &flow=NAME picks one. ?format=events is the stream of server-sent events that
// the page reads: the data of each, twice a second, is such a document. Times are in seconds, and lists are never null.
// Fields may be added.
//
//	flow           the name that the Flow was added as
//	time           when this was true (RFC 3339)
//	observed       false if the Flow lacks the page's Observer: failures and history are then unknown, and so are the ages
//	               of messages if it has no Observer at all
//	inFlight       messages whose handler runs
//	calls          calls of the handler under way: of one message each, or of many with batches
//	capacity       how many calls may be under way at once; 0 is unlimited
//	waiting        messages accepted that neither run nor are finished
//	activeKeys     keys that have messages running or waiting
//	openStreams    streams under way
//	total          what became of all finished messages so far:
//	               received, succeeded, failed, rejected, dropped, duplicates (settled by an earlier stream of their session), and
//	               retried, which counts attempts beyond the first
//	streams        at most 20, those with most pending first:
//	               id, peer and method (empty outside gRPC), age, received, pending, committed, session (owner/name; empty without one)
//	keys           at most 20, those with most waiting first:
//	               key, waiting, running (whether one of its messages runs), age (of that)
//	running        at most 20 messages, the longest-running first:
//	               stream, seq, key, attempt, age (of the attempt)
//	failures       the last 50, the latest first: ago, stream, seq (0: the stream itself failed), key, attempt,
//	               kind (FailureHandlerError and so on), error (its text), settled (OnFailure skipped the message)
//	failuresSoFar  how many there have been
//	history        null if not observed; else lists of 180 numbers, one for each whole second before now, the oldest first:
//	               finished, failed (refused and dropped messages included), waitMean and waitMax (from receipt to the
//	               first attempt), handlerMean and handlerMax (of attempts; with batches of
//	               calls), batchMean and batchMax (messages in a call; empty without batches)
//
// # What it costs
//
// While the page is not open: an Observer, which takes a lock and reads the clock for each event (0.13 µs a message), and some
// 50 KB for each Flow. While it is: one [flow.Flow.Snapshot] and 0.15 ms to write it down, at most four times a second however
// many readers there are, and 30 KB/s to each of them. A page in a background tab requests nothing.
//
// A stream of events ends when its client goes away, when the client has not read for ten seconds, or when its request's
// context ends; the server's WriteTimeout does not end it. http.Server's Shutdown ends neither: let the requests'
// contexts come from one that ends then (BaseContext, and RegisterOnShutdown with its cancel function), or use Close.
//
// # In tests
//
// A Page has no goroutines and no timers of its own. It works in testing/synctest bubbles, also if it was made outside of
// them and serves the Flows of several: it then shows each bubble the seconds of that bubble's clock.
package flowdebug

import (
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"example.com/flow"
)

// Source is what a page can show: a *flow.Flow of any type of message. Snapshot must be safe for concurrent use.
type Source interface {
	Snapshot(n int) flow.Snapshot
}

// Page is an http.Handler for one or several Flows. It is safe for concurrent use.
type Page struct {
	mu    sync.Mutex
	flows []*entry // in the order in which they were named
}

// New returns a page that shows nothing yet.
func New() *Page { return new(Page) }

// Add shows f under name, in the place of what was shown under that name before. The page holds on to f.
func (p *Page) Add(name string, f Source) { p.named(name).setSource(f) }

// Observer returns the Observer to set as Options.Observer of the Flow that is then added under name: failures, history and
// the ages of messages are known from it. [flow.Observers] joins it with others. All Observers of one name record
// together. It is safe for concurrent use, never blocks for long, and keeps no message and no error.
func (p *Page) Observer(name string) flow.Observer { return p.named(name).observer() }

// named returns the entry of name, which it makes if there is none.
func (p *Page) named(name string) *entry {
	name = validName(name)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.flows {
		if e.name == name {
			return e
		}
	}
	e := &entry{name: name}
	p.flows = append(p.flows, e)
	return e
}

// added returns the entries that have a Source: all of them or, if name is not "", the one of that name.
func (p *Page) added(name string) []*entry {
	name = validName(name)
	p.mu.Lock()
	list := slices.Clone(p.flows)
	p.mu.Unlock()
	return slices.DeleteFunc(list, func(e *entry) bool { return name != "" && e.name != name || !e.isAdded() })
}

// validName returns name as HTML, JSON and a query can carry it, which is how the page then asks for it.
func validName(name string) string { return strings.ToValidUTF8(name, string(utf8.RuneError)) }
