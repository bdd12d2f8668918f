package grpctest_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

const (
	clientHolds = 64 << 10 // of a stream, in grpc-go's client, before Send blocks
	framing     = 5        // bytes before each message
)

// A handler that stands still stops its client, and nobody else: Send blocks once the stream's window is full, while a
// stream beside it, on the same connection and of the same Flow, sends many times that window. How much the stopped
// client could send is what the README says: the window, what its own gRPC holds, MaxPending messages, and the one that
// was let through last.
func TestStalledHandlerBlocksItsClientsSendAndNoSibling(t *testing.T) {
	testkit.SkipIfShort(t)
	const maxPending = 4
	pinned := func(window int32) []grpc.ServerOption {
		return []grpc.ServerOption{grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(1 << 20)}
	}
	for _, c := range []struct {
		name    string
		options []grpc.ServerOption
		window  int
		size    int // of a message's body
	}{
		{"64 KiB, small messages", pinned(64 << 10), 64 << 10, 10},
		{"64 KiB, messages of 1 kB", pinned(64 << 10), 64 << 10, 1000},
		{"64 KiB, messages larger than the window", pinned(64 << 10), 64 << 10, 100 << 10},
		{"1 MiB, messages of 1 kB", pinned(1 << 20), 1 << 20, 1000},
		{"1 MiB for streams, nothing said of the connection", []grpc.ServerOption{grpc.InitialWindowSize(1 << 20)}, 1 << 20, 1000},
		{"not pinned: gRPC lets it grow up to here", nil, 16 << 20, 32 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			release := make(chan struct{})
			f := newRequestFlow(t, func(ctx context.Context, m flow.Message[string]) error {
				if m.Value[0] != 's' {
					return nil
				}
				select {
				case <-release:
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}, flow.Options{MaxPending: maxPending, Backpressure: flow.BackpressureOptions{Capacity: 2}})
			s := serveTCP(t, runs(f), c.options...)
			stalled, err := s.client.StreamingInputCall(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			message := requestOf(strings.Repeat("s", c.size))
			each := proto.Size(message) + framing
			least, most := clientHolds+c.window-each, clientHolds+c.window+(maxPending+1)*each
			if c.options == nil { // the window begins with what HTTP/2 says and grows
				least = clientHolds + 64<<10 - each
			}
			total := 2 * most / each
			var sent atomic.Int64
			over := make(chan error, 1)
			go func() {
				for range total {
					if err := stalled.Send(message); err != nil {
						over <- err
						return
					}
					sent.Add(1)
				}
				over <- nil
			}()
			await(t, "the client to send what it can", func() bool { return int(sent.Load())*each >= least })

			sibling, err := s.client.StreamingInputCall(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			other := requestOf(strings.Repeat("o", 8<<10))
			const others = 1024 // 8 MiB
			for range others {
				if err := sibling.Send(other); err != nil {
					t.Fatal(err)
				}
			}
			if r, err := sibling.CloseAndRecv(); r.GetAggregatedPayloadSize() != others || err != nil {
				t.Errorf("the sibling's answer is %v, %v, want %d", r, err, others)
			}

			ahead := int(sent.Load()) * each
			t.Logf("Send blocks after %d messages, %d bytes", sent.Load(), ahead)
			if ahead > most {
				t.Errorf("%d bytes are sent, at most %d can be", ahead, most)
			}
			if st := f.Stats(); st.InFlight != 1 || st.InFlight+st.Waiting > maxPending {
				t.Errorf("%d run and %d wait, want 1, and both at most %d", st.InFlight, st.Waiting, maxPending)
			}
			select {
			case err := <-over:
				t.Fatalf("all is sent (%v) although the handler stands still", err)
			default:
			}
			close(release)
			if err := <-over; err != nil {
				t.Fatal(err)
			}
			if r, err := stalled.CloseAndRecv(); int(r.GetAggregatedPayloadSize()) != total || err != nil {
				t.Errorf("the answer is %v, %v, want %d", r, err, total)
			}
		})
	}
}
