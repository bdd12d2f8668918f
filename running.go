package flow

// Stream is a Run under way, or one that is over: see [Flow.Start]. It is safe for concurrent use.
type Stream struct{ run startedRun }

// startedRun is what a Stream needs of the run of any message type.
type startedRun interface {
	committedNow() uint64
	progressNow() Progress
	stop(drain bool)
	wait() (Summary, error)
}

// Committed returns the Seq up to which every message is settled so far. It is one atomic read. What has finished shows in
// it a moment later, and it never goes back.
func (s *Stream) Committed() uint64 { return s.run.committedNow() }

// Progress returns which messages are settled at this moment. It is exact; its cost grows with what is pending. It blocks
// for some microseconds, never for a handler.
func (s *Stream) Progress() Progress { return s.run.progressNow() }

// Stop ends this stream as [Flow.Shutdown] without DrainOnClose ends all of them: it is read no further, what waits for its
// turn, for a slot or for its next try is dropped, and what runs finishes with its context as it was. It does not wait, and
// more than once is harmless. Wait then returns a failure of kind [FailureShutdown], unless all that was received was done
// and recv had said io.EOF. A recv that is blocked is not woken: what it returns later is lost.
func (s *Stream) Stop() { s.run.stop(false) }

// Wait blocks until the stream is over and returns what [Flow.Run] would have returned, as often as it is called.
func (s *Stream) Wait() (Summary, error) { return s.run.wait() }

// started is a run on a goroutine of its own.
type started[T any] struct {
	s    *stream[T]
	over chan struct{} // closed when sum and err are set
	sum  Summary
	err  error
}

func (st *started[T]) committedNow() uint64  { return st.s.committed.Load() }
func (st *started[T]) progressNow() Progress { return ask(st.s, st.s.progress) }
func (st *started[T]) stop(drain bool)       { st.s.stop(drain) }
func (st *started[T]) wait() (Summary, error) {
	<-st.over
	return st.sum, st.err
}
