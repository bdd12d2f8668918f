package main

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// senders are the processes that upload: each is started again until it has said that all is settled.
type senders struct {
	run *run

	mu    sync.Mutex
	alive []*child
}

// keep starts a sender of u again and again, until all is settled.
func (s *senders) keep(u *upload, address string) {
	p := s.run.part
	t := &senderTask{
		Address: address, Session: u.name, Messages: uint64(p.messages), Keys: p.keys, Start: s.run.start, Every: p.every(),
		Swap: p.swap && u.index == 0,
	}
	for s.run.ctx.Err() == nil {
		c, err := startChild(task{Sender: t})
		if err != nil {
			s.run.fail("a sender can't be started: %v", err)
			return
		}
		s.enter(c)
		done, moved := false, false
		code := c.listen(func(what statement) {
			done, moved = done || what.Done, moved || what.Moved
			s.hear(u, c, what)
		})
		s.leave(c)
		u.ended(c)
		switch {
		case c.wasKilled():
			s.run.count(func(n *counts) { n.sendersKilled++ })
		case code != exitKept:
			s.run.fail("a sender of %s ended with exit code %d", u.name, code)
			return
		case done:
			return
		case moved: // the other one has claimed the session, which is claimed back
			s.run.count(func(n *counts) { n.moved++ })
			s.run.sleep(500*time.Millisecond + rand.N(1500*time.Millisecond))
		}
	}
}

func (s *senders) hear(u *upload, c *child, what statement) {
	if what.Wrong != "" {
		s.run.wrong("%s: %s", u.name, what.Wrong)
	}
	if what.Opened > 0 {
		if d, resumed := u.opened(what.Opened); resumed {
			s.run.resumed(d)
		}
	}
	if what.Settled != nil {
		if err := what.Settled.check(); err != nil {
			s.run.wrong("%s: %v", u.name, err)
		}
		u.hear(c, what.Settled)
		s.run.count(func(n *counts) {
			n.buffered = max(n.buffered, what.Settled.Buffered)
			n.bufferedBytes = max(n.bufferedBytes, what.Settled.BufferedBytes)
			n.samples++
		})
	}
}

func (s *senders) enter(c *child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alive = append(s.alive, c)
	if s.run.ctx.Err() != nil {
		c.kill()
	}
}

func (s *senders) leave(c *child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alive = slices.DeleteFunc(s.alive, func(other *child) bool { return other == c })
}

// killOne kills one of them, and reports whether there was one.
func (s *senders) killOne() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.alive) == 0 {
		return false
	}
	s.alive[rand.N(len(s.alive))].kill()
	return true
}

// killAll kills all of them.
func (s *senders) killAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.alive {
		c.kill()
	}
}
