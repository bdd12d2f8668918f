package contender

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"example.com/flow/bench/internal/load"
)

// ringLanes is a prototype, the floor of what lanes can cost: no contexts, errors, panics or summaries. A sharded
// intrusive table finds a key's lane; a lane is 64 bytes, holds its first message inline, has a backlog only when it
// queues, and exists only while its key has work. One lock to submit, one per worker step (finish and take next). What
// is in flight is bound by credits, taken in chunks; at most one worker is being woken, and it wakes the next.
const creditChunk = 32

type ringLane struct {
	key         string
	hash        uint64
	chain, next *ringLane
	cur         *load.Message
	q           *backlog
}

type backlog struct{ in, out []*load.Message }

type ringShard struct {
	mu         sync.Mutex
	tab        []*ringLane
	n, nfree   int
	head, tail *ringLane
	free       *ringLane
	credits    int
	_          [48]byte
}

type ringLanes struct {
	h             func(*load.Message)
	seed          maphash.Seed
	shards        []ringShard
	cap           int64
	_             [64]byte
	credits       atomic.Int64
	_             [64]byte
	ready         atomic.Int64 // shards with ready lanes
	idle, blocked atomic.Int64
	waking        atomic.Bool
	_             [64]byte
	mu            sync.Mutex
	work, space   sync.Cond
	waiters       int
	closed        bool
	wg            sync.WaitGroup
}

func newRingLanes(workers, shards, capacity int, h func(*load.Message)) *ringLanes {
	p := &ringLanes{h: h, seed: maphash.MakeSeed(), shards: make([]ringShard, shards), cap: int64(capacity)}
	p.work.L, p.space.L = &p.mu, &p.mu
	p.credits.Store(int64(capacity))
	for i := range p.shards {
		p.shards[i].tab = make([]*ringLane, 64)
	}
	p.wg.Add(workers)
	for i := range workers {
		go p.worker(i % shards)
	}
	return p
}

func (p *ringLanes) submit(m *load.Message) {
	h := maphash.String(p.seed, m.Key)
	s := &p.shards[(h>>48)%uint64(len(p.shards))]
	s.mu.Lock()
	for s.credits == 0 {
		if p.credits.Add(-creditChunk) >= 0 {
			s.credits = creditChunk
			break
		}
		p.credits.Add(creditChunk)
		s.mu.Unlock()
		p.mu.Lock()
		p.blocked.Add(1)
		if p.credits.Load() < creditChunk {
			p.space.Wait()
		}
		p.blocked.Add(-1)
		p.mu.Unlock()
		s.mu.Lock()
	}
	s.credits--
	b := &s.tab[h&uint64(len(s.tab)-1)]
	for l := *b; l != nil; l = l.chain {
		if l.hash == h && l.key == m.Key { // active lane: queue behind
			if l.q == nil {
				l.q = new(backlog)
			}
			l.q.in = append(l.q.in, m)
			s.mu.Unlock()
			return
		}
	}
	l := s.free
	if l != nil {
		s.free, s.nfree = l.next, s.nfree-1
	} else {
		l = new(ringLane)
	}
	l.key, l.hash, l.chain, l.cur = m.Key, h, *b, m
	*b = l
	if s.n++; s.n > len(s.tab) {
		s.grow()
	}
	first := s.push(l)
	s.mu.Unlock()
	if first {
		p.ready.Add(1)
	}
	p.wake()
}

func (p *ringLanes) wake() {
	if p.idle.Load() > 0 && !p.waking.Load() && p.waking.CompareAndSwap(false, true) {
		p.mu.Lock()
		if p.waiters > 0 {
			p.work.Signal()
		} else {
			p.waking.Store(false)
		}
		p.mu.Unlock()
	}
}

func (s *ringShard) push(l *ringLane) (first bool) {
	l.next = nil
	if first = s.head == nil; first {
		s.head = l
	} else {
		s.tail.next = l
	}
	s.tail = l
	return
}

func (s *ringShard) pop() *ringLane {
	l := s.head
	if l != nil {
		s.head = l.next
		if l.cur == nil {
			l.q.in, l.q.out = l.q.out, l.q.in
		}
	}
	return l
}

func (s *ringShard) remove(l *ringLane) {
	q := &s.tab[l.hash&uint64(len(s.tab)-1)]
	for *q != l {
		q = &(*q).chain
	}
	*q = l.chain
	s.n--
	if l.key = ""; s.nfree < 256 && (l.q == nil || cap(l.q.in)+cap(l.q.out) <= 256) {
		l.next, s.free = s.free, l
		s.nfree++
	}
}

func (s *ringShard) grow() {
	old := s.tab
	s.tab = make([]*ringLane, 2*len(old))
	for _, l := range old {
		for l != nil {
			nx, b := l.chain, l.hash&uint64(len(s.tab)-1)
			l.chain, s.tab[b] = s.tab[b], l
			l = nx
		}
	}
}

func (p *ringLanes) worker(si int) {
	defer p.wg.Done()
	for s, l := p.next(&si); l != nil; {
		done := 1
		if m := l.cur; m != nil {
			l.cur = nil
			p.h(m)
		} else {
			for _, m := range l.q.out {
				p.h(m)
			}
			done = len(l.q.out)
			clear(l.q.out)
			l.q.out = l.q.out[:0]
		}
		s.mu.Lock()
		s.credits += done
		give, d := 0, int64(0)
		if s.credits > 2*creditChunk || p.blocked.Load() > 0 {
			give, s.credits = s.credits, 0
		}
		if was := s.head == nil; l.q == nil || len(l.q.in) == 0 {
			s.remove(l)
			if l = s.pop(); !was && s.head == nil {
				d = -1
			}
		} else {
			s.push(l)
			l = s.pop()
		}
		more := s.head != nil
		s.mu.Unlock()
		if d != 0 {
			p.ready.Add(d)
		}
		if give > 0 && p.credits.Add(int64(give)) >= p.cap/8 && p.blocked.Load() > 0 {
			p.mu.Lock()
			p.space.Broadcast()
			p.mu.Unlock()
		}
		if l == nil {
			s, l = p.next(&si)
		} else if more {
			p.wake()
		}
	}
}

func (p *ringLanes) next(si *int) (*ringShard, *ringLane) {
	for {
		if p.ready.Load() > 0 {
			for range p.shards {
				s := &p.shards[*si]
				s.mu.Lock()
				l := s.pop()
				more := s.head != nil
				s.mu.Unlock()
				if l != nil {
					if !more {
						more = p.ready.Add(-1) > 0
					}
					if more {
						p.wake()
					}
					return s, l
				}
				*si = (*si + 1) % len(p.shards)
			}
		}
		p.mu.Lock()
		p.idle.Add(1)
		if p.ready.Load() <= 0 {
			if p.closed {
				p.idle.Add(-1)
				p.mu.Unlock()
				return nil, nil
			}
			p.waiters++
			p.work.Wait()
			p.waiters--
			p.waking.Store(false)
		}
		p.idle.Add(-1)
		p.mu.Unlock()
	}
}

// close drains. No submit may run concurrently.
func (p *ringLanes) close() {
	p.mu.Lock()
	p.closed = true
	p.work.Broadcast()
	p.mu.Unlock()
	p.wg.Wait()
}
