package flowclient

import (
	"context"
	"testing"

	"example.com/flow"
	"google.golang.org/grpc"
)

// A header may settle more than was taken on, and Send may take more on before the stream makes its next move: what comes
// then is behind numbers that are gone, so that this stream can't carry it.
func TestStreamCarriesNothingBehindAGap(t *testing.T) {
	open := func(context.Context, ...grpc.CallOption) (grpc.ClientStreamingClient[string, string], error) {
		panic("not called")
	}
	for _, committed := range []uint64{4, 8} {
		s, err := New(open, Options{Session: "upload"})
		if err != nil {
			t.Fatal(err)
		}
		s.resumed, s.limit, s.epoch = true, 8, 1
		s.buffer.resume(3, flow.Progress{})
		message := "x"
		s.buffer.take(&message, 1)
		st := s.newStreamLocked()
		s.handed = 4 // by a stream whose answer was lost
		progress := flow.Summary{Received: committed, Committed: committed}.Progress()
		if err := s.believe(st, answer{epoch: 1, told: true, progress: progress, top: committed}); err != nil {
			t.Fatal(err)
		}
		for range 6 {
			s.buffer.take(&message, 1)
		}
		if got := s.nextMove(st, 0); got != moveHalfClose {
			t.Errorf("committed %d: move %d with a batch of %d, want the half-close", committed, got, len(st.batch))
		}
		if got := s.buffer.settled(); got != max(1, committed-3) {
			t.Errorf("committed %d: %d are settled", committed, got)
		}
		s.buffer.release(s.buffer.last)
		st = s.newStreamLocked()
		if s.nextMove(st, 0) != moveSend || st.start != committed+1 || len(st.batch) != int(10-committed) {
			t.Errorf("committed %d: the next stream starts at %d with a batch of %d", committed, st.start, len(st.batch))
		}
	}
}
