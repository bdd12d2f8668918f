package flowdebug_test

import (
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/flowdebug"
)

// BenchmarkObserver measures a message that succeeds at its first attempt.
func BenchmarkObserver(b *testing.B) {
	observe := flowdebug.New().Observer("f")
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			observe(b.Context(), flow.Event{Kind: flow.EventAttempt, Attempt: 1, Waited: time.Millisecond})
			observe(b.Context(), flow.Event{Kind: flow.EventSuccess, Attempt: 1, Took: time.Millisecond})
		}
	})
}

// BenchmarkJSON measures a document of a Flow with all tables full, for its only reader.
func BenchmarkJSON(b *testing.B) {
	snap, page := fake{Stats: flow.Stats{Capacity: 20}}, flowdebug.New()
	for i := range uint64(20) {
		snap.Streams = append(snap.Streams, flow.StreamState{ID: i, Peer: "127.0.0.1:12345", Method: "/readings.v1.Readings/Upload", Age: 12345678 * time.Microsecond, Received: 123456})
		snap.Keys = append(snap.Keys, flow.KeyState{Key: "device-12345", Waiting: 100, Running: true, Age: 12345678})
		snap.Running = append(snap.Running, flow.RunningMessage{Stream: i, Seq: 12345, Key: "device-12345", Age: 12345678})
	}
	observe := page.Observer("f")
	for range 50 {
		observe(b.Context(), flow.Event{Kind: flow.EventFailure, Seq: 1, Attempt: 1, Took: time.Second,
			Failure: &flow.Failure{Kind: flow.FailureHandlerError, Err: flow.ErrAttemptTimeout}})
	}
	b.ReportAllocs()
	for b.Loop() {
		page.Add("f", snap) // or the last document would do
		b.SetBytes(int64(ask(page, "GET", "?format=json").Body.Len()))
	}
}
