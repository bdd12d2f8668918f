package flow

import (
	"sync"
	"sync/atomic"
)

// phase is where a Run stands. It only moves forward.
//
//	open ──EOF──► finishing ───────────────────────────────► done
//	  │              └──Shutdown(drain)──► draining ────────► done   (with EOF it ends well)
//	  ├──Shutdown(drain)───────────────────► draining
//	  └──failure, Close, Shutdown without drain──► aborting ──► done  (from every phase before done)
type phase uint8

const (
	phaseOpen      phase = iota // the source is read
	phaseFinishing              // the source has ended with io.EOF; what was received runs
	phaseDraining               // a shutdown has ended the reading; what was received runs
	phaseAborting               // what has not begun to run is dropped; what runs is waited for
	phaseDone                   // every received message is finished
)

// String returns the phase's name.
func (p phase) String() string {
	return enumName(int(p), "phase", "open", "finishing", "draining", "aborting", "done")
}

// runState says where a Run stands and why it ends. It is safe for concurrent use: the reader, the workers, the shard
// and a shutdown all move it, and the first failure is the one that counts.
type runState struct {
	seen atomic.Uint32 // at, to be read without the lock: a reader looks before every message

	mu       sync.Mutex
	at       phase
	eof      bool // the source said io.EOF, in whatever phase
	stopping bool // a shutdown has ended the reading
	failure  *Failure
}

func (s *runState) phase() phase { return phase(s.seen.Load()) }

func (s *runState) moveLocked(to phase) {
	s.at = to
	s.seen.Store(uint32(to))
}

// fail aborts the run because of f. It reports whether f is the reason, which only the first failure before the end is.
func (s *runState) fail(f *Failure) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil || s.at == phaseDone {
		return false
	}
	s.failure = f
	s.moveLocked(phaseAborting)
	return true
}

// stop ends the reading. With drain what was received runs, without it what has not begun is dropped. It reports whether
// that has changed anything.
func (s *runState) stop(drain bool) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at >= phaseAborting {
		return false
	}
	before := s.at
	s.stopping = true
	if drain {
		s.moveLocked(phaseDraining)
	} else {
		s.moveLocked(phaseAborting)
	}
	return s.at != before
}

// inputEnded notes that the source has ended with io.EOF.
func (s *runState) inputEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eof = true
	if s.at == phaseOpen {
		s.moveLocked(phaseFinishing)
	}
}

// finishedAll ends the run if nothing more will be received, and reports whether it did: no message may be pending.
func (s *runState) finishedAll() (done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == phaseOpen || s.at == phaseDone {
		return false
	}
	s.moveLocked(phaseDone)
	return true
}

// reason returns the failure that aborted the run, and whether a shutdown has ended its reading.
func (s *runState) reason() (failure *Failure, stopping bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure, s.stopping
}

// result returns what Run returns. A run that no failure ended has ended well only if its client said that it had sent
// everything and all of it is settled. Otherwise its context has ended while the last message failed by that, or a
// shutdown has ended it.
func (s *runState) result(allSettled bool, contextEnded func() *Failure) *Failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failure != nil:
		return s.failure
	case s.eof && allSettled:
		return nil
	}
	if f := contextEnded(); f != nil {
		return f
	}
	return &Failure{Kind: FailureShutdown, Err: reasonShutdown}
}
