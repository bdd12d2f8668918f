package flowclient

// SetRandom has the half of each backoff that is random be f's part of it.
func (s *Sender[Req, Resp]) SetRandom(f func() float64) { s.pacing.backoff.random = f }

// GiveUpTimerRuns reports whether the timer of GiveUpAfter runs, and stops it.
func (s *Sender[Req, Resp]) GiveUpTimerRuns() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.giveUp != nil && s.giveUp.Stop()
}
