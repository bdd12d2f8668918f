package flow_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
)

// The library's own costs. How they compare with what people use instead is measured in bench/, a module of its own,
// in fresh processes and interleaved rounds; here is what to profile.

// record is a message of about 128 bytes.
type record struct {
	key     string
	payload [128]byte
}

func (r *record) Size() int { return len(r.payload) }

func recordKey(r *record) string { return r.key }

func noop(context.Context, flow.Message[*record]) error { return nil }

// records are what a source repeats: a power of two of them, with n keys in random order. With 0 keys, all differ.
func records(n int) []*record {
	const size = 1 << 14
	list := make([]*record, size)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range list {
		k := i
		if n > 0 {
			k = rnd.IntN(n)
		}
		list[i] = &record{key: fmt.Sprintf("device-%05d", k)}
	}
	return list
}

// repeat is a source of n messages.
func repeat(list []*record, n int) func() (*record, error) {
	i := 0
	return func() (*record, error) {
		if i == n {
			return nil, io.EOF
		}
		i++
		return list[i&(len(list)-1)], nil
	}
}

// busyOptions are those that the targets are set for: 64 at once, 4,096 read ahead.
func busyOptions(mode flow.OrderingMode) flow.Options {
	return flow.Options{
		Ordering:     flow.OrderingOptions{Mode: mode},
		Backpressure: flow.BackpressureOptions{Capacity: 64},
		MaxPending:   4096,
	}
}

func newFlow(tb testing.TB, h flow.Handler[*record], opts flow.Options) *flow.Flow[*record] {
	tb.Helper()
	f, err := flow.New(h, recordKey, opts)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func runAll(tb testing.TB, f *flow.Flow[*record], recv func() (*record, error)) {
	if _, err := f.Run(context.Background(), recv); err != nil {
		tb.Error(err)
	}
}

var modes = []struct {
	name string
	mode flow.OrderingMode
}{
	{"fifo", flow.OrderingFIFO},
	{"keyed", flow.OrderingKeyedFIFO},
	{"none", flow.OrderingNone},
}

// BenchmarkRun is one stream with a handler that does nothing.
func BenchmarkRun(b *testing.B) {
	for _, m := range modes {
		for _, keys := range []int{1, 100, 10_000} {
			b.Run(fmt.Sprintf("%s/keys=%d", m.name, keys), func(b *testing.B) {
				f, list := newFlow(b, noop, busyOptions(m.mode)), records(keys)
				b.ReportAllocs()
				b.ResetTimer()
				runAll(b, f, repeat(list, b.N))
			})
		}
	}
}

// BenchmarkRunSession is BenchmarkRun of a session in memory, beside the same stream without one.
func BenchmarkRunSession(b *testing.B) {
	for _, m := range modes {
		for _, sessions := range []*flow.SessionOptions{nil, {}} {
			b.Run(fmt.Sprintf("%s/session=%v", m.name, sessions != nil), func(b *testing.B) {
				o := busyOptions(m.mode)
				o.Sessions = sessions
				f, list := newFlow(b, noop, o), records(100)
				ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("flow-session", "upload"))
				b.ReportAllocs()
				b.ResetTimer()
				if _, err := f.Run(ctx, repeat(list, b.N)); err != nil {
					b.Error(err)
				}
			})
		}
	}
}

// BenchmarkPingPong has one message in flight at a time: the way to a handler and back.
func BenchmarkPingPong(b *testing.B) {
	for _, m := range modes {
		b.Run(m.name, func(b *testing.B) {
			list := records(1024)
			b.ReportAllocs()
			b.ResetTimer()
			pingPong(b, m.mode, list, b.N)
		})
	}
}

// pingPong receives each message when the one before it has been handled.
func pingPong(tb testing.TB, mode flow.OrderingMode, list []*record, n int) {
	handled := make(chan struct{}, 1)
	handled <- struct{}{}
	f := newFlow(tb, func(context.Context, flow.Message[*record]) error {
		handled <- struct{}{}
		return nil
	}, busyOptions(mode))
	next := repeat(list, n)
	runAll(tb, f, func() (*record, error) {
		<-handled
		return next()
	})
}

// BenchmarkStreams has eight streams push at once.
func BenchmarkStreams(b *testing.B) {
	for _, scope := range []flow.OrderingScope{flow.ScopeStream, flow.ScopeFlow} {
		for _, streams := range []int{1, 8} {
			b.Run(fmt.Sprintf("%v/streams=%d", scope, streams), func(b *testing.B) {
				opts := busyOptions(flow.OrderingKeyedFIFO)
				opts.Ordering.Scope = scope
				f, list := newFlow(b, noop, opts), records(1024)
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for i := range streams {
					wg.Go(func() { runAll(b, f, repeat(list, (b.N+i)/streams)) })
				}
				wg.Wait()
			})
		}
	}
}

// BenchmarkOptions is what each option costs when it is set.
func BenchmarkOptions(b *testing.B) {
	for _, o := range []struct {
		name string
		set  func(*flow.Options)
	}{
		{"none", func(*flow.Options) {}},
		{"retry", func(o *flow.Options) {
			o.Retry = flow.RetryOptions{MaxAttempts: 3, Backoff: time.Millisecond, Jitter: 0.5}
		}},
		{"budget", func(o *flow.Options) {
			o.Retry = flow.RetryOptions{MaxAttempts: 3, Budget: flow.RetryBudget{MaxTokens: 100, TokenRatio: 0.1}}
		}},
		{"bytes", func(o *flow.Options) { o.MaxPendingBytes = 1 << 20 }},
		{"observer", func(o *flow.Options) {
			var n atomic.Int64
			o.Observer = func(context.Context, flow.Event) { n.Add(1) }
		}},
	} {
		b.Run(o.name, func(b *testing.B) {
			opts := busyOptions(flow.OrderingKeyedFIFO)
			o.set(&opts)
			f, list := newFlow(b, noop, opts), records(1024)
			b.ReportAllocs()
			b.ResetTimer()
			runAll(b, f, repeat(list, b.N))
		})
	}
}

// BenchmarkSlowKey has one key of 1,024 that sleeps for a millisecond each time. ns/fast is the time until all messages
// of the other keys are done, by their number: it should be what BenchmarkRun shows, whatever the slow key takes.
func BenchmarkSlowKey(b *testing.B) {
	list := records(1024)
	slow := list[0].key
	var done atomic.Int64
	fast := int64(0)
	for next := repeat(list, b.N); ; {
		r, err := next()
		if err != nil {
			break
		}
		if r.key != slow {
			fast++
		}
	}
	var took time.Duration
	start := time.Now()
	f := newFlow(b, func(_ context.Context, m flow.Message[*record]) error {
		if m.Key == slow {
			time.Sleep(time.Millisecond)
		} else if done.Add(1) == fast {
			took = time.Since(start)
		}
		return nil
	}, busyOptions(flow.OrderingKeyedFIFO))
	b.ResetTimer()
	start = time.Now()
	runAll(b, f, repeat(list, b.N))
	b.ReportMetric(float64(took)/float64(max(fast, 1)), "ns/fast")
}

// BenchmarkGateAdmit is a direct caller's Admit and Release, alone and side by side.
func BenchmarkGateAdmit(b *testing.B) {
	for _, m := range modes {
		gate := func() *flow.Gate {
			o, capacity := flow.OrderingOptions{Mode: m.mode}, flow.BackpressureOptions{Capacity: 64}
			var ordering flow.OrderingResolver
			switch m.mode {
			case flow.OrderingFIFO:
				ordering = flow.NewFIFO(o)
			case flow.OrderingKeyedFIFO:
				ordering = flow.NewKeyedFIFO(o)
			}
			return flow.NewGate(ordering, flow.NewPressureController(capacity),
				flow.NewShutdownCoordinator(flow.ShutdownOptions{}))
		}
		list := records(10_000)
		admit := func(b *testing.B, g *flow.Gate, i int) {
			a, err := g.Admit(context.Background(), list[i&(len(list)-1)].key)
			if err != nil {
				b.Error(err)
				return
			}
			a.Release()
		}
		b.Run(m.name+"/alone", func(b *testing.B) {
			g := gate()
			b.ReportAllocs()
			for i := range b.N {
				admit(b, g, i)
			}
		})
		b.Run(m.name+"/parallel", func(b *testing.B) {
			g := gate()
			var from atomic.Int64
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for i := int(from.Add(1)) << 10; pb.Next(); i++ {
					admit(b, g, i)
				}
			})
		})
	}
}

// BenchmarkSnapshot is one Snapshot of a stream that has so much pending, of 1,024 keys.
func BenchmarkSnapshot(b *testing.B) {
	for _, pending := range []int{1_000, 100_000} {
		b.Run(fmt.Sprintf("pending=%d", pending), func(b *testing.B) {
			opts := busyOptions(flow.OrderingKeyedFIFO)
			opts.MaxPending, opts.Observer = -1, seen
			f := newFlow(b, func(ctx context.Context, _ flow.Message[*record]) error {
				<-ctx.Done()
				return ctx.Err()
			}, opts)
			ctx, cancel := context.WithCancel(context.Background())
			next, received, over := repeat(records(1024), pending), make(chan struct{}), make(chan struct{})
			go func() {
				defer close(over)
				_, _ = f.Run(ctx, func() (*record, error) {
					r, err := next()
					if err != nil {
						close(received)
						<-ctx.Done()
					}
					return r, err
				})
			}()
			<-received
			for f.Stats().InFlight < opts.Backpressure.Capacity {
				time.Sleep(time.Millisecond)
			}
			b.ReportAllocs()
			for b.Loop() {
				f.Snapshot(20)
			}
			cancel()
			<-over
		})
	}
}

// BenchmarkRunWatched is BenchmarkRun's keyed stream with an Observer, beside nothing and beside a Snapshot each 100 ms.
func BenchmarkRunWatched(b *testing.B) {
	for _, every := range []time.Duration{0, 100 * time.Millisecond} {
		b.Run(fmt.Sprintf("snapshot=%v", every), func(b *testing.B) {
			opts := busyOptions(flow.OrderingKeyedFIFO)
			opts.Observer = seen
			f, list := newFlow(b, noop, opts), records(1024)
			over, gone := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(gone)
				for every > 0 {
					select {
					case <-over:
						return
					case <-time.After(every):
						f.Snapshot(20)
					}
				}
			}()
			b.ReportAllocs()
			b.ResetTimer()
			runAll(b, f, repeat(list, b.N))
			b.StopTimer()
			close(over)
			<-gone
		})
	}
}

type (
	callRequest = pb.StreamingInputCallRequest
	callStream  = grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]
)

// callService answers StreamingInputCall with a method that is given.
type callService struct {
	pb.UnimplementedTestServiceServer
	call func(callStream) error
}

func (s *callService) StreamingInputCall(stream callStream) error { return s.call(stream) }

func answerCall(stream callStream) error {
	return stream.SendAndClose(&pb.StreamingInputCallResponse{})
}

// BenchmarkGRPC is a stream over loopback TCP, 128 bytes a message, client and server on the same cores: a service method
// that only receives, beside one that runs a handler for each message, keyed, and the same through the interceptor.
func BenchmarkGRPC(b *testing.B) {
	handler := func(context.Context, flow.Message[*callRequest]) error { return nil }
	key := func(r *callRequest) string { return string(r.Payload.Body[:2]) }
	f, err := flow.New(handler, key, busyOptions(flow.OrderingKeyedFIFO))
	if err != nil {
		b.Fatal(err)
	}
	for _, streams := range []int{1, 64} {
		for _, way := range []struct {
			name string
			opts []grpc.ServerOption
			call func(callStream) error
		}{
			{"loop", nil, func(stream callStream) error {
				for {
					if _, err := stream.Recv(); err == io.EOF {
						return answerCall(stream)
					} else if err != nil {
						return err
					}
				}
			}},
			{"run", nil, func(stream callStream) error {
				if _, err := f.Run(stream.Context(), stream.Recv); err != nil {
					return err
				}
				return answerCall(stream)
			}},
			{"interceptor", []grpc.ServerOption{grpc.StreamInterceptor(f.StreamServerInterceptor())}, func(stream callStream) error {
				if _, err := stream.Recv(); err != io.EOF {
					return err
				}
				return answerCall(stream)
			}},
		} {
			b.Run(fmt.Sprintf("streams=%d/%s", streams, way.name), func(b *testing.B) {
				client := serveCalls(b, way.call, way.opts...)
				callOnce(b, client, 1) // the connection, and gRPC's estimate of its window
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for i := range streams {
					wg.Go(func() { callOnce(b, client, (b.N+i)/streams) })
				}
				wg.Wait()
			})
		}
	}
}

// serveCalls starts a server on a free port and connects to it.
func serveCalls(tb testing.TB, method func(callStream) error, opts ...grpc.ServerOption) pb.TestServiceClient {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	server := grpc.NewServer(opts...)
	pb.RegisterTestServiceServer(server, &callService{call: method})
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(lis) })
	conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		served.Wait()
	})
	return pb.NewTestServiceClient(conn)
}

// callOnce sends n messages in one stream and waits for the answer.
func callOnce(tb testing.TB, client pb.TestServiceClient, n int) {
	stream, err := client.StreamingInputCall(context.Background())
	if err != nil {
		tb.Error(err)
		return
	}
	body := make([]byte, 128)
	m := &callRequest{Payload: &pb.Payload{Body: body}}
	for i := range n {
		body[0], body[1] = byte(i), byte(i>>8)&3 // 1,024 keys
		if err := stream.Send(m); err != nil {
			break
		}
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		tb.Error(err)
	}
}
