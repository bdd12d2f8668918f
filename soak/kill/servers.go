package main

import (
	"math/rand/v2"
	"sync"
	"syscall"
	"time"
)

// servers are the server processes on one database, one or two: each is started again until they are to end. One of them
// is connected to.
type servers struct {
	run *run

	calm sync.Mutex // held while one of them is disturbed

	mu     sync.Mutex
	all    []serverPlace
	active int
	ending bool
}

// serverPlace is where a server runs.
type serverPlace struct {
	child   *child
	address string // "" while it does not serve
}

// keep starts the server of a place again and again.
func (s *servers) keep(place int) {
	p := s.run.part
	t := &serverTask{
		Database: s.run.database, Once: p.kind == withOnce && !p.twice, Memory: p.kind == inMemory, Lose: p.lose,
	}
	for {
		c, err := startChild(task{Server: t})
		if err != nil {
			s.run.fail("a server can't be started: %v", err)
			return
		}
		s.set(place, serverPlace{child: c})
		code := c.listen(func(what statement) { s.hear(place, c, what) })
		s.set(place, serverPlace{})
		switch {
		case c.wasKilled() && s.goesOn():
			s.run.count(func(n *counts) { n.serversKilled++ })
			if p.kind != withOnce { // there is one server, and it is gone: what is stored does not change
				if err := s.run.audit.addUnsaved(); err != nil {
					s.run.fail("the database can't be read: %v", err)
				}
			}
		case code != exitKept && !c.wasKilled():
			s.run.fail("a server ended with exit code %d", code)
			return
		default:
			return
		}
	}
}

// goesOn reports whether a server that is gone is started again.
func (s *servers) goesOn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.ending && s.run.ctx.Err() == nil
}

func (s *servers) set(place int, p serverPlace) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[place] = p
	if p.child != nil && (s.ending || s.run.ctx.Err() != nil) {
		p.child.kill()
	}
}

func (s *servers) hear(place int, c *child, what statement) {
	if what.Address != "" {
		s.set(place, serverPlace{child: c, address: what.Address})
	}
	if what.Wrong != "" {
		s.run.wrong("a server: %s", what.Wrong)
	}
	if what.Pending > pendingBound {
		s.run.wrong("a server has %d bytes pending, at most %d may be", what.Pending, pendingBound)
	}
	s.run.count(func(n *counts) {
		n.pending = max(n.pending, what.Pending)
		n.cutRunning += what.Cut
		n.refused += what.Refused
		n.saveFailed += what.SaveFailed
	})
}

// address is where to connect to; "" if nobody serves there.
func (s *servers) address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[s.active].address
}

// killActive kills the server that is connected to. If there is another one, it takes over half of the times; else the
// next one does. It reports whether there was one.
func (s *servers) killActive() bool {
	s.calm.Lock()
	defer s.calm.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.all[s.active].child
	if c == nil || s.all[s.active].address == "" {
		return false
	}
	for _, u := range s.run.uploads {
		u.broke()
	}
	c.kill()
	if len(s.all) > 1 && rand.N(2) == 0 {
		s.active = 1 - s.active
	}
	return true
}

// depose stops the server that is connected to, has the other one take over, and wakes the first up once it has. It
// reports whether it has, which it can't if one of them has been killed just before.
func (s *servers) depose() (deposed bool) {
	s.calm.Lock()
	defer s.calm.Unlock()
	s.mu.Lock()
	stopped, other := s.all[s.active], s.all[1-s.active]
	if stopped.address == "" || other.address == "" {
		s.mu.Unlock()
		return false
	}
	if !s.stopUnlocked(stopped.child) {
		s.mu.Unlock()
		return false
	}
	s.active = 1 - s.active
	before := s.run.resumes()
	for _, u := range s.run.uploads {
		u.broke()
	}
	s.mu.Unlock()
	for _, p := range s.run.proxies {
		p.cutOneEnd(stopped.address, 4*time.Second)
	}
	for end := time.Now().Add(2 * time.Second); !deposed && time.Now().Before(end) && s.run.ctx.Err() == nil; {
		time.Sleep(10 * time.Millisecond)
		deposed = s.run.resumes() > before
	}
	s.run.sleep(rand.N(300 * time.Millisecond))
	stopped.child.signal(syscall.SIGCONT)
	if deposed {
		s.run.count(func(n *counts) { n.deposed++ })
	}
	return deposed
}

// stopUnlocked stops a server while it does not hold the database's lock, without which nobody could take over. It gives
// up after a while, and the server runs then.
func (s *servers) stopUnlocked(c *child) (stopped bool) {
	for range 100 {
		c.signal(syscall.SIGSTOP)
		if s.run.audit.unlocked() {
			return true
		}
		c.signal(syscall.SIGCONT)
		time.Sleep(rand.N(10 * time.Millisecond))
	}
	return false
}

// end has all servers end in good order, or if the run has failed at once.
func (s *servers) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	for _, p := range s.all {
		switch {
		case p.child == nil:
		case s.run.ctx.Err() != nil:
			p.child.kill()
		case p.address == "": // it has only just been started, and may not listen to a signal yet
			p.child.kill()
		default:
			p.child.signal(syscall.SIGTERM)
		}
	}
}
