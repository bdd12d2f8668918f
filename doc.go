// Package flow processes the messages of gRPC client-streaming calls: concurrently, but in order for each key, with bounded
// memory, retries, dead letters, graceful shutdown, and a report to the client of how far it got.
//
//	f, err := flow.New(handle, func(r *pb.Reading) string { return r.Device }, flow.Options{
//		Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
//		Backpressure: flow.BackpressureOptions{Capacity: 64},
//	})
//	…
//	func (s *server) Upload(stream grpc.ClientStreamingServer[pb.Reading, pb.Ack]) error {
//		sum, err := s.flow.Run(stream.Context(), stream.Recv)
//		if err != nil {
//			return err // a *Failure is a gRPC status already
//		}
//		return stream.SendAndClose(&pb.Ack{Stored: sum.Succeeded})
//	}
//
// # Order
//
// With [OrderingFIFO], the default, one message of a stream runs at a time. With [OrderingKeyedFIFO] one message of a key
// does, all its attempts before the next: each key has a lane of its own, so a slow key delays no other, and a key that is
// idle costs nothing. [OrderingNone] keeps no order. An order holds within a stream, or with [ScopeFlow] over all of them.
//
// # Capacity
//
// A slot belongs to a running handler: a message that waits for its turn, or for its next try, holds none. Slots are the
// Flow's, and its streams share them fairly. What becomes of a message that finds all slots taken is the
// [BackpressurePolicy]: it waits, it is refused, or it runs all the same. A message is refused on receipt or never.
//
// # Windows
//
// What is received and not finished is bounded for each stream (MaxPending) and over the Flow (MaxPendingBytes). At the
// bound the stream is not read, HTTP/2 flow control stops its client, and nothing is lost.
//
// # Batches
//
// A Flow that [NewBatch] makes calls its handler with many messages at once, of many keys and streams, each with an outcome
// of its own: a database takes a transaction of a hundred rows for about the price of one.
//
// # Retry
//
// An attempt that failed is repeated as [RetryOptions] say, in its message's place in the order, unless the error is marked
// by [Permanent] or has a code that another try will not change.
//
// # Failure
//
// Each failure has a [FailureKind] and is a gRPC status. The first that ends a stream is what Run returns and what its
// client gets. Options.OnFailure may say that a message, or its key, is to be skipped instead: it is the place for dead
// letters. A panic of the caller's code ends its stream and never the process. No handler outlives its Run.
//
// # Progress
//
// Every [Summary] adds up, whatever happened, and says exactly which messages are settled: succeeded, or skipped. Under gRPC
// that reaches the client in trailers: [ProgressFromTrailer] reads them, [RetryAfter] says whether to go on, and [Rest] is
// what to send then.
//
// # Sessions
//
// A connection that breaks brings no trailers. With Options.Sessions an upload goes on over as many streams as it takes: its
// client names it and numbers its messages, in metadata alone, and the server remembers in a [SessionStore] which of them are
// settled, and runs none of those again. Package flowclient is such a client. Module sessionsql is a store in a database, and
// gives handlers effects that happen exactly once.
package flow
