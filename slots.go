package flow

import "context"

// slots are what a shard holds of the capacity. A run takes them when it is sent and gives them back when it returns.
//
// Where messages may be refused, a slot belongs to one message from the moment that it is admitted: a run has as many as
// it has messages, and what is free is free for everybody at once. Everywhere else a run takes one, since it executes one
// message at a time, and the shard keeps a free one for its next run unless others ask.
type slots struct {
	p      *PressureController
	spare  int  // held, and in no run
	inUse  int  // held, and in runs
	short  int  // ready messages that lack one; kept where messages may be refused
	asking bool // a goroutine waits for one more
	cancel context.CancelFunc
}

// take gets up to n slots for a run and returns how many it got: at most one unless messages may be refused.
func (s *slots) take(n int) (got int) {
	switch {
	case s.p.slots == nil:
		return 1
	case s.p.refuses():
		got = min(n, s.spare)
		s.spare -= got
	case s.spare > 0:
		s.spare--
		got = 1
	case s.p.try():
		got = 1
	}
	s.inUse += got
	return got
}

// reserve gets one more slot for a message that is being admitted, where messages may be refused.
func (s *slots) reserve() bool {
	if !s.p.try() {
		return false
	}
	s.spare++
	return true
}

// queue counts one more message that waits for a slot, unless QueueCapacity of them do.
func (s *slots) queue() bool {
	if !s.p.tryQueue() {
		return false
	}
	s.short++
	return true
}

// cover tries to get a slot for each of so many ready messages, where each needs one of its own.
func (s *slots) cover(ready int) {
	if s.p.refuses() {
		for s.spare < ready && s.reserve() {
		}
	}
}

// count keeps how many of so many ready messages lack a slot, where that bounds what is accepted, and gives back what
// none of them needs.
func (s *slots) count(ready int) {
	if !s.p.refuses() {
		return
	}
	s.trim(min(s.spare, ready))
	short := ready - s.spare
	s.p.addQueued(short - s.short)
	s.short = short
}

// free takes n back from a run.
func (s *slots) free(n int) {
	if s.p.slots == nil {
		return
	}
	s.inUse -= n
	s.spare += n
	others := s.p.asking.Load()
	if s.asking {
		others--
	}
	if others > 0 { // who asked before comes first, also before what waits here
		s.trim(s.spare - int(min(int64(s.spare), others)))
	}
}

// trim gives back all but keep of those that are in no run.
func (s *slots) trim(keep int) {
	for ; s.spare > keep; s.spare-- {
		s.p.giveBack()
	}
}

// ask waits for a slot on a goroutine of its own, behind those who asked before, and hands it to got. It does nothing if
// it does so already or if all slots are this shard's anyway: they become free here.
func (s *slots) ask(enter func(), got func(error)) {
	if s.asking || s.inUse+s.spare >= s.p.opts.Capacity {
		return
	}
	s.asking = true
	s.p.asking.Add(1)
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	enter()
	go func() { got(s.p.ask(ctx)) }()
}

// answered is told what has become of the asking.
func (s *slots) answered(err error) {
	s.p.asking.Add(-1)
	s.asking = false
	s.cancel()
	if err == nil {
		s.spare++
	}
}

// stopAsking ends the asking if there is one; its answer still comes.
func (s *slots) stopAsking() {
	if s.asking {
		s.cancel()
	}
}
