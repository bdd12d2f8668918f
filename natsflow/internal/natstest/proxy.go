package natstest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Proxy stands between clients and a server. It sees every message that goes by, in both directions, and can lose it,
// double it, or cut the connection there.
type Proxy struct {
	target string
	listen net.Listener

	mu      sync.Mutex
	decide  func(Frame) Fate // nil: all pass
	counts  map[Direction]int
	held    chan struct{} // closed when what is held may go on; nil while nothing is held
	links   map[net.Conn]net.Conn
	closed  bool
	running sync.WaitGroup
}

// Frame is a message that goes by.
type Frame struct {
	Direction Direction
	Number    int // in its direction, from 1, since OnFrame
	Subject   string
}

// Direction is where a Frame goes.
type Direction int

const (
	// ToServer is what clients publish.
	ToServer Direction = iota
	// ToClient is what the server delivers.
	ToClient
)

// Fate is what becomes of a Frame.
type Fate int

const (
	// Pass lets it go by.
	Pass Fate = iota
	// Drop loses it.
	Drop
	// Double sends it twice.
	Double
	// CutBefore ends the connection without it.
	CutBefore
	// CutAfter ends the connection behind it.
	CutAfter
	// Hold keeps it, and all that is behind it in both directions, until Release. What goes over other connections is held
	// as well.
	Hold
)

// NewProxy starts a proxy in front of a server. It ends with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: strings.TrimPrefix(target, "nats://"), listen: l, counts: map[Direction]int{}, links: map[net.Conn]net.Conn{}}
	p.running.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// URL is the proxy's address.
func (p *Proxy) URL() string { return "nats://" + p.listen.Addr().String() }

// OnFrame has decide say what becomes of each message from now on. It is called for one message at a time, and may block.
func (p *Proxy) OnFrame(decide func(Frame) Fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.decide = decide
	clear(p.counts)
}

// Release lets go what is held.
func (p *Proxy) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held != nil {
		close(p.held)
		p.held = nil
	}
}

func (p *Proxy) close() {
	p.OnFrame(nil)
	p.Release()
	p.mu.Lock()
	p.closed = true
	_ = p.listen.Close()
	for a, b := range p.links {
		_ = a.Close()
		_ = b.Close()
	}
	p.mu.Unlock()
	p.running.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listen.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		if p.closed {
			_ = client.Close()
			_ = server.Close()
		}
		p.links[client] = server
		p.mu.Unlock()
		for _, way := range []struct {
			from, to  net.Conn
			direction Direction
		}{{client, server, ToServer}, {server, client, ToClient}} {
			p.running.Go(func() {
				_ = p.forward(way.from, way.to, way.direction)
				_ = client.Close()
				_ = server.Close()
				p.mu.Lock()
				defer p.mu.Unlock()
				delete(p.links, client)
			})
		}
	}
}

// forward copies the lines of NATS's protocol, and the payloads that follow some of them.
func (p *Proxy) forward(from, to net.Conn, direction Direction) error {
	in, out := bufio.NewReaderSize(from, 64<<10), bufio.NewWriterSize(to, 64<<10)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		fate, payload := Pass, []byte(nil)
		if fields := strings.Fields(line); len(fields) > 2 && isMessage(fields[0]) {
			size, err := strconv.Atoi(fields[len(fields)-1])
			if err != nil {
				return err
			}
			payload = make([]byte, size+len("\r\n"))
			if _, err := io.ReadFull(in, payload); err != nil {
				return err
			}
			fate = p.fateOf(direction, fields[1])
		}
		if held := p.await(fate == Hold); held != nil {
			<-held
		}
		if fate == CutBefore {
			return io.ErrUnexpectedEOF
		}
		times := map[Fate]int{Drop: 0, Double: 2}
		n, special := times[fate]
		if !special {
			n = 1
		}
		for range n {
			if _, err := fmt.Fprint(out, line, string(payload)); err != nil {
				return err
			}
		}
		if in.Buffered() == 0 || fate != Pass {
			if err := out.Flush(); err != nil {
				return err
			}
		}
		if fate == CutAfter {
			return io.ErrUnexpectedEOF
		}
	}
}

func isMessage(verb string) bool {
	switch strings.ToUpper(verb) {
	case "PUB", "HPUB", "MSG", "HMSG":
		return true
	}
	return false
}

func (p *Proxy) fateOf(d Direction, subject string) Fate {
	p.mu.Lock()
	decide := p.decide
	p.counts[d]++
	f := Frame{Direction: d, Number: p.counts[d], Subject: subject}
	p.mu.Unlock()
	if decide == nil {
		return Pass
	}
	return decide(f)
}

// await is what to wait for before anything goes on, if anything is to be held.
func (p *Proxy) await(hold bool) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if hold && p.held == nil && !p.closed {
		p.held = make(chan struct{})
	}
	return p.held
}
