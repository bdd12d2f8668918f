package main

import (
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// cut is how a connection ends.
type cut int

const (
	reset   cut = iota // both ends get an RST
	finish             // both ends get a FIN
	silence            // nothing comes through any more, and later both ends get an RST
	oneEnd             // the client gets an RST; the server notices nothing, until later
	cuts
)

func (c cut) String() string { return [...]string{"RST", "FIN", "silence", "RST at one end"}[c] }

// later is how long a connection stands that nothing comes through any more.
func later() time.Duration { return 200*time.Millisecond + rand.N(800*time.Millisecond) }

// proxy stands between a sender and the servers. It cuts each connection some time from 50 to 500 ms after its beginning,
// at a random byte of what passes then.
type proxy struct {
	listener *net.TCPListener
	server   func() string // where to connect to; "": nowhere
	onCut    func(cut)     // may be called concurrently

	mu     sync.Mutex
	links  map[*link]struct{}
	closed bool
	all    sync.WaitGroup
}

func newProxy(server func() string, onCut func(cut)) (*proxy, error) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: l, server: server, onCut: onCut, links: map[*link]struct{}{}}
	p.all.Go(p.accept)
	return p, nil
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		client, err := p.listener.AcceptTCP()
		if err != nil {
			return
		}
		p.all.Go(func() { p.serve(client) })
	}
}

func (p *proxy) serve(client *net.TCPConn) {
	address := p.server()
	server, err := net.Dial("tcp", address)
	if err != nil { // a server that was killed a moment ago
		abort(client)
		return
	}
	l := &link{proxy: p, address: address, client: client, server: server.(*net.TCPConn), over: make(chan struct{})}
	p.mu.Lock()
	if p.closed {
		l.end()
	}
	p.links[l] = struct{}{}
	p.mu.Unlock()
	l.run()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// cutOneEnd cuts all connections to a server at the client's end, and the server's a while later.
func (p *proxy) cutOneEnd(address string, while time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		if l.address == address {
			p.all.Go(func() { l.cut(oneEnd, while) })
		}
	}
}

// close ends all connections, and waits until nothing of the proxy is left.
func (p *proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for l := range p.links {
		l.end()
	}
	p.mu.Unlock()
	p.all.Wait()
}

// link is a connection through the proxy.
type link struct {
	proxy          *proxy
	address        string
	client, server *net.TCPConn

	due     atomic.Bool // what comes next is cut somewhere
	stopped atomic.Bool // nothing comes through any more
	once    sync.Once
	over    chan struct{}
}

// run passes bytes on until the link is cut, or one of its ends has gone.
func (l *link) run() {
	how := cut(rand.N(int(cuts)))
	after := 50*time.Millisecond + rand.N(450*time.Millisecond)
	due := time.AfterFunc(after, func() { l.due.Store(true) })
	defer due.Stop()
	// Where nothing passes, there is nothing to cut into.
	idle := time.AfterFunc(after+100*time.Millisecond, func() { l.cut(how, later()) })
	defer idle.Stop()
	var both sync.WaitGroup
	both.Go(func() { l.pass(l.server, l.client, how) })
	both.Go(func() { l.pass(l.client, l.server, how) })
	both.Wait()
	l.end()
}

// pass hands bytes on in one direction.
func (l *link) pass(to, from *net.TCPConn, how cut) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		switch {
		case l.stopped.Load():
			<-l.over
			return
		case err != nil:
			l.end()
			return
		case l.due.Load():
			_, _ = to.Write(buf[:rand.N(n)])
			l.cut(how, later())
			return
		}
		if _, err := to.Write(buf[:n]); err != nil && !l.stopped.Load() {
			l.end()
			return
		}
	}
}

// cut cuts the link, unless something else has ended it, and returns when both ends are closed: those that are to notice
// nothing so far, after a while.
func (l *link) cut(how cut, while time.Duration) {
	if l.stopped.Swap(true) {
		return
	}
	l.proxy.onCut(how)
	switch how {
	case finish:
		_, _ = l.client.CloseWrite(), l.server.CloseWrite()
		l.wait(100 * time.Millisecond)
	case silence:
		l.wait(while)
	case oneEnd:
		abort(l.client)
		l.wait(while)
	}
	l.end()
}

func (l *link) wait(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.over:
	}
}

// end closes both ends at once.
func (l *link) end() {
	l.once.Do(func() {
		l.stopped.Store(true)
		close(l.over)
		abort(l.client)
		abort(l.server)
	})
}

// abort closes a connection by an RST.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
