// Package flowdebug shows what Flows have under way on a page, mounted like net/http/pprof: streams, hottest keys,
// longest-running messages, recent failures, and throughput, wait and duration over the last three minutes.
//
//	page := flowdebug.New()
//	f, err := flow.New(handle, key, flow.Options{Observer: page.Observer("uploads")})
//	…
//	page.Add("uploads", f)
//	http.Handle("/debug/flow/", page)
//
// The page is one HTML document that loads nothing and follows the Flow by server-sent events. For scripts,
// ?format=json (or an Accept header of application/json) gives the same as JSON: an object whose "flows" is a list with
// an object for each Flow, times in seconds; ?flow=NAME picks one. ?format=events is the stream of events that the page
// reads: each has such an object for its data, twice a second.
//
// # Who must not see it
//
// The page asks nobody who they are, and shows the keys of messages, the addresses of clients and the texts of errors,
// panics included: customers' data in many services. So not the public, not the customers whose keys they are (each
// would see all the others'), and not whoever else is on the network: serve it on a loopback or an operators' address of
// its own, or behind a handler that lets only operators through. A picture of it is customers' data too. It only reads:
// nothing that it serves changes a Flow.
//
// A loopback address keeps other machines out, but not other sites in a browser on this one, which reach it under a
// name of their own (DNS rebinding). A pattern with a host, "localhost/debug/flow/", does.
//
// Keys and errors are strangers' words. They are cut to 128 and 512 bytes; characters that can't be seen, or that change
// the direction of text, are written as in Go; and the page takes them for text and nothing else, which its
// Content-Security-Policy enforces.
//
// # What it costs
//
// While nobody looks: an Observer, which takes a lock and reads the clock for each event (0.13 µs a message), and some
// 50 KB for each Flow. While somebody does: one [flow.Flow.Snapshot] a look and 0.15 ms to write it down, at most four
// times a second however many look, and 30 KB/s to each. A page in a background tab asks for nothing.
//
// A stream of events ends when its client goes, when the client has not read for ten seconds, or when its request's
// context ends; the server's WriteTimeout does not end it. http.Server's Shutdown ends neither: let the requests'
// contexts come from one that ends then (BaseContext, and RegisterOnShutdown with its cancel function), or use Close.
package flowdebug

import (
	"slices"
	"sync"
	"time"

	"example.com/flow"
)

// Source is what a page can show: a *flow.Flow, whatever its messages.
type Source interface {
	Snapshot(n int) flow.Snapshot
}

// Page is an http.Handler for one or several Flows. It is safe for concurrent use.
type Page struct {
	mu    sync.Mutex
	flows []*shown // in the order of being named
}

// shown is a Flow on a page.
type shown struct {
	name string

	mu     sync.Mutex
	source Source    // nil: not yet added
	record *record   // nil: without the page's Observer
	view   []byte    // JSON of the last look, for others that look at the same moment
	looked time.Time // then
}

// New returns a page that shows nothing yet.
func New() *Page { return new(Page) }

// Add shows f as name, in the place of what was shown as that before.
func (p *Page) Add(name string, f Source) {
	s := p.named(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.source, s.looked = f, time.Time{}
}

// Observer returns what to set as Options.Observer of the Flow that is then added as name: failures, the plots and the
// ages of messages are known from it. Where there is another Observer already, call both. All Observers of one name
// record together.
func (p *Page) Observer(name string) flow.Observer {
	s := p.named(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.record == nil {
		s.record = newRecord()
	}
	return s.record.see
}

func (p *Page) named(name string) *shown {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.flows {
		if s.name == name {
			return s
		}
	}
	s := &shown{name: name}
	p.flows = append(p.flows, s)
	return s
}

// added are the Flows that can be looked at: all of them or, if name is not "", that one.
func (p *Page) added(name string) []*shown {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := slices.Clone(p.flows)
	return slices.DeleteFunc(list, func(s *shown) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.source == nil || name != "" && s.name != name
	})
}
