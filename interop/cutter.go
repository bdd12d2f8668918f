package main

import (
	"context"
	"errors"
	"net"
	"sync"
)

// cutter is a proxy for TCP that breaks connections as networks do.
type cutter struct {
	lis  net.Listener
	to   string
	done sync.WaitGroup

	mu    sync.Mutex
	after []int // for each connection to come: of how many of its client's bytes it breaks; then none do
	pairs map[*pair]bool
	count int // of connections that have broken
}

// pair is a connection through a cutter: its two sides.
type pair struct {
	client, server net.Conn
	deaf           bool // what the server sends is lost; guarded by the cutter's lock
}

func newCutter(to string, after ...int) (*cutter, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &cutter{lis: lis, to: to, after: after, pairs: map[*pair]bool{}}
	c.done.Go(c.accept)
	return c, nil
}

func (c *cutter) address() string { return c.lis.Addr().String() }

func (c *cutter) accept() {
	for {
		client, err := c.lis.Accept()
		if err != nil {
			return
		}
		server, err := new(net.Dialer).DialContext(context.Background(), "tcp", c.to)
		if err != nil {
			_ = client.Close()
			continue
		}
		p := &pair{client: client, server: server}
		c.mu.Lock()
		limit := 0
		if len(c.after) > 0 {
			limit, c.after = c.after[0], c.after[1:]
		}
		c.pairs[p] = true
		c.mu.Unlock()
		c.done.Go(func() { c.forward(p, limit) })
		c.done.Go(func() { c.answer(p) })
	}
}

// forward carries what the client sends, and breaks the connection at the limit, if there is one.
func (c *cutter) forward(p *pair, limit int) {
	buf := make([]byte, 1024)
	for sent := 0; ; {
		n, err := p.client.Read(buf)
		if err != nil {
			c.drop(p)
			return
		}
		if sent += n; limit > 0 && sent >= limit {
			c.cut(p)
			return
		}
		if _, err := p.server.Write(buf[:n]); err != nil {
			c.drop(p)
			return
		}
	}
}

// answer carries what the server sends.
func (c *cutter) answer(p *pair) {
	buf := make([]byte, 1024)
	for {
		n, err := p.server.Read(buf)
		if err != nil {
			c.drop(p)
			return
		}
		c.mu.Lock()
		deaf := p.deaf
		c.mu.Unlock()
		if deaf {
			continue
		}
		if _, err := p.client.Write(buf[:n]); err != nil {
			c.drop(p)
			return
		}
	}
}

// deafen has the answers of all connections that there are be lost.
func (c *cutter) deafen() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.pairs {
		p.deaf = true
	}
}

// cutAll breaks all connections that there are.
func (c *cutter) cutAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.pairs {
		c.cutLocked(p)
	}
}

func (c *cutter) cut(p *pair) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cutLocked(p)
}

// cutLocked breaks a connection with a reset, so that what was under way is lost.
func (c *cutter) cutLocked(p *pair) {
	if c.pairs[p] {
		c.count++
		for _, conn := range []net.Conn{p.client, p.server} {
			_ = conn.(*net.TCPConn).SetLinger(0)
		}
	}
	c.dropLocked(p)
}

// drop closes both sides of a connection that one of them has closed.
func (c *cutter) drop(p *pair) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(p)
}

func (c *cutter) dropLocked(p *pair) {
	delete(c.pairs, p)
	_ = p.client.Close()
	_ = p.server.Close()
}

func (c *cutter) cuts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// close returns when nothing of it is left.
func (c *cutter) close() error {
	err := c.lis.Close()
	c.mu.Lock()
	for p := range c.pairs {
		c.dropLocked(p)
	}
	c.mu.Unlock()
	c.done.Wait()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}
