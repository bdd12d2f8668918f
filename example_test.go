package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"example.com/flow"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// from makes a recv of values: a source as gRPC's would be.
func from[T any](values ...T) func() (T, error) {
	return func() (v T, err error) {
		if len(values) == 0 {
			return v, io.EOF
		}
		v, values = values[0], values[1:]
		return v, nil
	}
}

type reading struct {
	Device string
	Value  int
}

func device(r reading) string { return r.Device }

// One device's readings run in order, different devices' concurrently, sixteen at a time at most. In a service method recv
// is stream.Recv: see the example of Flow.Run.
func Example() {
	var stored [2]int // by device: a key's messages never run two at once, so each needs no lock
	store := func(_ context.Context, m flow.Message[reading]) error {
		switch m.Key {
		case "oven":
			stored[0] += m.Value.Value
		case "fridge":
			stored[1] += m.Value.Value
		}
		return nil
	}
	f, err := flow.New(store, func(r reading) string { return r.Device }, flow.Options{
		Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		Backpressure: flow.BackpressureOptions{Capacity: 16},
	})
	if err != nil {
		log.Fatal(err)
	}
	recv := from(reading{"oven", 180}, reading{"fridge", 4}, reading{"oven", 20})
	sum, err := f.Run(context.Background(), recv)
	fmt.Println(sum, err)
	fmt.Println("oven:", stored[0], "fridge:", stored[1])
	// Output:
	// 3 received: 3 succeeded; settled up to 3 <nil>
	// oven: 200 fridge: 4
}

// Retry tries a message again that may succeed later; OnFailure gets what failed for good, as a dead letter, and says that
// the stream goes on without it. Without OnFailure the stream would end there, and its client would be told.
func ExampleNew() {
	store := func(_ context.Context, m flow.Message[reading]) error {
		switch {
		case m.Value.Value < 0:
			return flow.Permanent(errors.New("no such temperature")) // trying it again is no use
		case m.Attempt == 1 && m.Value.Device == "fridge":
			return errors.New("the database is busy")
		}
		fmt.Println("stored", m.Value, "at attempt", m.Attempt)
		return nil
	}
	f, err := flow.New(store, nil, flow.Options{ // without a key: a stream's messages run one after the other
		Retry: flow.RetryOptions{
			MaxAttempts: 5, // the first included
			Backoff:     time.Millisecond,
			Multiplier:  2,
			MaxBackoff:  time.Second,
			Jitter:      0.5,
		},
		OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
			letter := f.Value.(reading) // the Message's Value
			fmt.Println("dead letter:", letter, "-", f)
			return flow.SkipMessage
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	sum, err := f.Run(context.Background(), from(reading{"oven", 180}, reading{"oven", -400}, reading{"fridge", 4}))
	fmt.Println(sum, err)
	// Output:
	// stored {oven 180} at attempt 1
	// dead letter: {oven -400} - flow: message 2: no such temperature
	// stored {fridge 4} at attempt 2
	// 3 received: 2 succeeded, 1 failed; 1 retried; settled up to 3 <nil>
}

// Readings of one device are handled in order, those of different devices side by side.
func ExampleOrderingKeyFunc() {
	var mu sync.Mutex
	state := map[string][]int{}
	f, err := flow.New(func(_ context.Context, m flow.Message[reading]) error {
		mu.Lock()
		defer mu.Unlock()
		state[m.Key] = append(state[m.Key], m.Value.Value)
		return nil
	}, device, flow.Options{
		Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		Backpressure: flow.BackpressureOptions{Capacity: 8},
	})
	if err != nil {
		panic(err)
	}
	_, err = f.Run(context.Background(), from(
		reading{"oven", 1}, reading{"fridge", 1}, reading{"oven", 2}, reading{"oven", 3}, reading{"fridge", 2}))
	fmt.Println(state["oven"], state["fridge"], err)
	// Output: [1 2 3] [1 2] <nil>
}

// With HardReject a message that finds no capacity ends the stream. The Progress says what is left to send.
func ExampleBackpressureHardReject() {
	running, refused := make(chan struct{}), make(chan struct{})
	f, err := flow.New(func(context.Context, flow.Message[string]) error {
		close(running)
		<-refused // it takes until then
		return nil
	}, nil, flow.Options{
		Ordering:     flow.OrderingOptions{Mode: flow.OrderingNone},
		Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1},
		OnFailure: func(context.Context, *flow.Failure) flow.FailureAction {
			close(refused)
			return flow.FailStream
		},
	})
	if err != nil {
		panic(err)
	}
	sent := []string{"first", "second"}
	ctx, ch := context.Background(), make(chan string)
	go func() {
		ch <- sent[0]
		<-running
		ch <- sent[1]
	}()
	sum, err := f.Run(ctx, flow.FromChan(ctx, ch))
	fmt.Println(err)
	fmt.Println("succeeded:", sum.Succeeded, "rejected:", sum.Rejected)
	fmt.Println("rest:", slices.Collect(flow.Rest(sum.Progress(), slices.Values(sent))))
	// Output:
	// flow: message 2: rejected: capacity exhausted
	// succeeded: 1 rejected: 1
	// rest: [second]
}

// OnFailure as a dead-letter store: the poison and all that follows it of the same key is kept, in order, and the other
// keys go on.
func ExampleSkipKey() {
	var mu sync.Mutex
	var dead []string
	f, err := flow.New(func(_ context.Context, m flow.Message[reading]) error {
		if m.Value.Value < 0 {
			return flow.Permanent(errors.New("no such value"))
		}
		return nil
	}, device, flow.Options{
		Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		OnFailure: func(_ context.Context, f *flow.Failure) flow.FailureAction {
			mu.Lock()
			defer mu.Unlock()
			dead = append(dead, fmt.Sprint(f.Value, " ", f.Kind))
			return flow.SkipKey
		},
	})
	if err != nil {
		panic(err)
	}
	sum, err := f.Run(context.Background(), from(
		reading{"oven", 1}, reading{"oven", -2}, reading{"fridge", 1}, reading{"oven", 3}))
	fmt.Println("succeeded:", sum.Succeeded, "committed:", sum.Committed, "error:", err)
	for _, d := range dead {
		fmt.Println(d)
	}
	// Output:
	// succeeded: 2 committed: 4 error: <nil>
	// {oven -2} FailureHandlerError
	// {oven 3} FailureOrdering
}

// A failed message is tried again, unless its error is marked as permanent.
func ExamplePermanent() {
	f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
		switch {
		case m.Value == "poison":
			return flow.Permanent(errors.New("can't be parsed"))
		case m.Attempt < 3:
			return errors.New("the store is busy")
		}
		fmt.Println(m.Value, "at attempt", m.Attempt)
		return nil
	}, nil, flow.Options{
		Retry: flow.RetryOptions{MaxAttempts: 5, Backoff: time.Millisecond, Multiplier: 2, Jitter: 0.2},
	})
	if err != nil {
		panic(err)
	}
	sum, err := f.Run(context.Background(), from("good", "poison"))
	fmt.Println("retried:", sum.Retried)
	fmt.Println(err)
	// Output:
	// good at attempt 3
	// retried: 2
	// flow: message 2: can't be parsed
}

// A Gate alone: order, capacity and shutdown for callers that are no streams.
func ExampleGate_Admit() {
	gate := flow.NewGate(
		flow.NewKeyedFIFO(flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}),
		flow.NewPressureController(flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1}),
		flow.NewShutdownCoordinator(flow.ShutdownOptions{}))
	first, err := gate.Admit(context.Background(), "oven")
	fmt.Println("first:", err)
	_, err = gate.Admit(context.Background(), "fridge")
	fmt.Println("second:", flow.ClassifyFailure(err))
	first.Release()
	third, err := gate.Admit(context.Background(), "fridge")
	fmt.Println("third:", err)
	third.Release()
	// Output:
	// first: <nil>
	// second: FailureBackpressure
	// third: <nil>
}

// locks is an OrderingResolver of one's own, as one that keeps a lock for each key in a database would be.
type locks struct{}

func (locks) Wait(_ context.Context, key string) (flow.ReleaseFunc, error) {
	fmt.Println("lock", key)
	return func() { fmt.Println("unlock", key) }, nil
}

func (locks) Close() {}

// An OrderingResolver of one's own is asked when a message's turn in its stream has come.
func ExampleOrderingResolver() {
	r := flow.NewReceiver(
		flow.NewGate(locks{}, nil, nil),
		flow.NewEngine(func(_ context.Context, m flow.Message[reading]) error {
			fmt.Println("handle", m.Value)
			return nil
		}, flow.RetryOptions{}))
	sum, err := r.Receive(context.Background(), from(reading{"oven", 1}, reading{"oven", 2}), device)
	fmt.Println(sum.Succeeded, err)
	// Output:
	// lock oven
	// handle {oven 1}
	// unlock oven
	// lock oven
	// handle {oven 2}
	// unlock oven
	// 2 <nil>
}

// A channel as the source.
func ExampleFromChan() {
	f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
		fmt.Println(m.Seq, m.Value)
		return nil
	}, nil, flow.Options{})
	if err != nil {
		panic(err)
	}
	ch := make(chan string, 2)
	ch <- "hello"
	ch <- "world"
	close(ch)
	ctx := context.Background()
	_, err = f.Run(ctx, flow.FromChan(ctx, ch))
	fmt.Println(err)
	// Output:
	// 1 hello
	// 2 world
	// <nil>
}

// An Observer sees what happens to each message.
func ExampleObserver() {
	f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
		if m.Value == "b" && m.Attempt == 1 {
			return errors.New("the store is busy")
		}
		return nil
	}, nil, flow.Options{
		Retry: flow.RetryOptions{MaxAttempts: 2},
		Observer: func(_ context.Context, e flow.Event) {
			switch e.Kind {
			case flow.EventRetry:
				fmt.Println("message", e.Seq, "failed at attempt", e.Attempt, "and is tried again")
			case flow.EventSuccess:
				fmt.Println("message", e.Seq, "succeeded at attempt", e.Attempt)
			case flow.EventStreamEnd:
				fmt.Println("stream", e.Stream, "ended with", e.Summary.Succeeded, "of", e.Summary.Received)
			}
		},
	})
	if err != nil {
		panic(err)
	}
	_, _ = f.Run(context.Background(), from("a", "b"))
	// Output:
	// message 1 succeeded at attempt 1
	// message 2 failed at attempt 1 and is tried again
	// message 2 succeeded at attempt 2
	// stream 1 ended with 2 of 2
}

// Snapshot names what is under way: here a key whose message hangs, and how much waits behind it.
func ExampleFlow_Snapshot() {
	hangs, goOn := make(chan struct{}), make(chan struct{})
	f, err := flow.New(func(_ context.Context, m flow.Message[reading]) error {
		if m.Value == (reading{"oven", 1}) {
			close(hangs)
			<-goOn
		}
		return nil
	}, device, flow.Options{
		Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		Backpressure: flow.BackpressureOptions{Capacity: 8},
	})
	if err != nil {
		panic(err)
	}
	ctx, ch, done := context.Background(), make(chan reading), make(chan struct{})
	go func() {
		defer close(done)
		_, _ = f.Run(ctx, flow.FromChan(ctx, ch))
	}()
	ch <- reading{"oven", 1}
	<-hangs
	for n := range 3 {
		ch <- reading{"oven", n + 2}
	}
	close(ch)
	s := f.Snapshot(1)
	for s.Stats.Waiting < 3 { // the last of them may still be on its way
		time.Sleep(time.Millisecond)
		s = f.Snapshot(1)
	}
	hottest, longest := s.Keys[0], s.Running[0]
	fmt.Printf("%s: %d waiting; message %d is at attempt %d\n", hottest.Key, hottest.Waiting, longest.Seq, longest.Attempt)
	close(goOn)
	<-done
	fmt.Println("afterwards:", f.Stats().InFlight, "in flight,", f.Stats().Total)
	// Output:
	// oven: 3 waiting; message 1 is at attempt 1
	// afterwards: 0 in flight, 4 received: 4 succeeded
}

// SlogObserver writes a line for what failed and for each stream that ended, and none for a message that succeeded.
func ExampleSlogObserver() {
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr { // times differ from run to run
			if a.Value.Kind() == slog.KindDuration || a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
	f, err := flow.New(func(_ context.Context, m flow.Message[reading]) error {
		if m.Value.Value < 0 {
			return errors.New("no such temperature")
		}
		return nil
	}, device, flow.Options{
		Ordering:  flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		Observer:  flow.SlogObserver(logger),
	})
	if err != nil {
		panic(err)
	}
	_, _ = f.Run(context.Background(), from(reading{"oven", 180}, reading{"oven", -400}))
	// Output:
	// level=WARN msg="flow: message failed" stream=1 seq=2 key=oven attempt=1 kind=FailureHandlerError error="flow: message 2: no such temperature" settled=true
	// level=INFO msg="flow: stream ended" stream=1 received=2 succeeded=1 failed=1 rejected=0 dropped=0 retried=0 committed=2 unsettled=0
}

// Start is Run that does not wait: what is settled so far can be asked for at any time, and saved elsewhere.
func ExampleFlow_Start() {
	f, err := flow.New(func(context.Context, flow.Message[string]) error { return nil }, nil, flow.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	rows := make(chan string, 3)
	s := f.Start(context.Background(), flow.FromChan(context.Background(), rows))
	rows <- "a"
	rows <- "b"
	for s.Committed() < 2 { // one atomic read
		time.Sleep(time.Millisecond)
	}
	fmt.Println("so far:", s.Progress().Committed())
	rows <- "c"
	close(rows)
	sum, err := s.Wait()
	fmt.Println("in the end:", sum.Committed, err)
	// Output:
	// so far: 2
	// in the end: 3 <nil>
}

// The service of the examples is one that grpc-go brings; a message of it carries a text.
type (
	request = testpb.StreamingInputCallRequest
	reply   = testpb.StreamingInputCallResponse
)

func requestOf(v string) *request { return &request{Payload: &testpb.Payload{Body: []byte(v)}} }

func valueOf(r *request) string { return string(r.GetPayload().GetBody()) }

// readings is a service whose client-streaming method stores what it is sent.
type readings struct {
	testpb.UnimplementedTestServiceServer
	flow *flow.Flow[*request]
}

func (s *readings) StreamingInputCall(stream grpc.ClientStreamingServer[request, reply]) error {
	sum, err := s.flow.Run(stream.Context(), stream.Recv)
	if err != nil {
		return err // a *Failure is a gRPC status already
	}
	return stream.SendAndClose(&reply{AggregatedPayloadSize: int32(sum.Succeeded)})
}

// A service method: one line runs the whole stream.
func ExampleFlow_Run() {
	store := func(_ context.Context, m flow.Message[*request]) error {
		fmt.Println("stored", valueOf(m.Value))
		return nil
	}
	f, err := flow.New(store, nil, flow.Options{})
	if err != nil {
		panic(err)
	}
	client, stop := exampleServer(&readings{flow: f})
	defer stop()

	stored, err := uploadAll(client, "21.5", "21.7", "21.4")
	fmt.Println(stored, err)
	// Output:
	// stored 21.5
	// stored 21.7
	// stored 21.4
	// 3 <nil>
}

// behindInterceptor is a service whose method knows nothing of the Flow but what came of it.
type behindInterceptor struct {
	testpb.UnimplementedTestServiceServer
}

func (behindInterceptor) StreamingInputCall(stream grpc.ClientStreamingServer[request, reply]) error {
	if _, err := stream.Recv(); err != io.EOF { // the first Recv runs the whole stream
		return err
	}
	sum, _ := flow.SummaryFromContext(stream.Context())
	return stream.SendAndClose(&reply{AggregatedPayloadSize: int32(sum.Succeeded)})
}

// The interceptor runs the streams of every client-streaming method with this message.
func ExampleFlow_StreamServerInterceptor() {
	store := func(_ context.Context, m flow.Message[*request]) error {
		fmt.Println("stored", valueOf(m.Value))
		return nil
	}
	f, err := flow.New(store, nil, flow.Options{})
	if err != nil {
		panic(err)
	}
	client, stop := exampleServer(behindInterceptor{}, grpc.StreamInterceptor(f.StreamServerInterceptor()))
	defer stop()

	stored, err := uploadAll(client, "21.5", "21.7")
	fmt.Println(stored, err)
	// Output:
	// stored 21.5
	// stored 21.7
	// 2 <nil>
}

// Shutdown ends the streams, then GracefulStop has nothing left to wait for. The client is told to come back.
func ExampleFlow_Shutdown() {
	started := make(chan struct{})
	store := func(_ context.Context, m flow.Message[*request]) error {
		close(started)
		time.Sleep(10 * time.Millisecond)
		fmt.Println("stored", valueOf(m.Value))
		return nil
	}
	f, err := flow.New(store, nil, flow.Options{
		Shutdown: flow.ShutdownOptions{DrainOnClose: true, GracePeriod: 30 * time.Second},
	})
	if err != nil {
		panic(err)
	}
	lis := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	testpb.RegisterTestServiceServer(server, &readings{flow: f})
	go func() { _ = server.Serve(lis) }()
	client, hangUp := exampleClient(lis)
	defer hangUp()

	stream, err := client.StreamingInputCall(context.Background()) // a stream that stays open
	if err != nil {
		panic(err)
	}
	_ = stream.Send(requestOf("21.5"))
	<-started

	fmt.Println("shutdown:", f.Shutdown(context.Background()))
	server.GracefulStop()
	_, err = stream.CloseAndRecv()
	fmt.Println("client:", status.Code(err), flow.ClassifyFailure(err))
	// Output:
	// stored 21.5
	// shutdown: <nil>
	// client: Unavailable FailureShutdown
}

// A client resumes a stream that failed with what is not settled yet.
func ExampleRest() {
	full := true
	store := func(_ context.Context, m flow.Message[*request]) error {
		if valueOf(m.Value) == "third" && full {
			full = false
			return status.Error(codes.Unavailable, "the disk is full")
		}
		fmt.Println("stored", valueOf(m.Value))
		return nil
	}
	f, err := flow.New(store, nil, flow.Options{})
	if err != nil {
		panic(err)
	}
	client, stop := exampleServer(&readings{flow: f})
	defer stop()

	rest := slices.Values([]string{"first", "second", "third", "fourth"})
	for {
		sent := slices.Collect(rest)
		stream, err := client.StreamingInputCall(context.Background())
		if err != nil {
			panic(err)
		}
		for _, v := range sent {
			if stream.Send(requestOf(v)) != nil {
				break // CloseAndRecv says why
			}
		}
		if _, err = stream.CloseAndRecv(); err == nil {
			break
		}
		progress, ok := flow.ProgressFromTrailer(stream.Trailer())
		if !ok {
			panic("the connection broke: ask the service how far it got")
		}
		fmt.Println(status.Convert(err).Message(), "after", progress.Committed())
		rest = flow.Rest(progress, slices.Values(sent))
	}
	// Output:
	// stored first
	// stored second
	// the disk is full after 2
	// stored third
	// stored fourth
}

// The trailer says how far the server got, also when the call failed: what is not settled is what to send again.
func ExampleProgressFromTrailer() {
	store := func(_ context.Context, m flow.Message[*request]) error {
		if valueOf(m.Value) == "poison" {
			return status.Error(codes.InvalidArgument, "no such value")
		}
		return nil
	}
	f, err := flow.New(store, nil, flow.Options{})
	if err != nil {
		panic(err)
	}
	client, stop := exampleServer(&readings{flow: f})
	defer stop()

	stream, err := client.StreamingInputCall(context.Background())
	if err != nil {
		panic(err)
	}
	for _, v := range []string{"21.5", "poison", "21.7"} {
		if stream.Send(requestOf(v)) != nil {
			break // CloseAndRecv says why
		}
	}
	_, err = stream.CloseAndRecv()
	fmt.Println(status.Convert(err).Message())
	if progress, ok := flow.ProgressFromTrailer(stream.Trailer()); ok { // false when the connection broke: nothing is known then
		fmt.Println("up to", progress.Committed(), "all is settled; message 2:", progress.Settled(2))
	}
	// Output:
	// no such value
	// up to 1 all is settled; message 2: false
}

// RetryAfter tells a client whether sending the rest again may help, and how long the server asks to wait.
func ExampleRetryAfter() {
	f, err := flow.New(func(_ context.Context, m flow.Message[*request]) error {
		return status.Error(codes.InvalidArgument, "no such value")
	}, nil, flow.Options{})
	if err != nil {
		panic(err)
	}
	client, stop := exampleServer(&readings{flow: f})
	defer stop()

	_, err = uploadAll(client, "poison")
	_, again := flow.RetryAfter(err)
	fmt.Println(status.Code(err), "- send again:", again)

	_ = f.Shutdown(context.Background()) // as at a deploy
	_, err = uploadAll(client, "21.5")
	delay, again := flow.RetryAfter(err)
	fmt.Println(status.Code(err), "- send again:", again, "after", delay)
	// Output:
	// InvalidArgument - send again: false
	// Unavailable - send again: true after 1s
}

// exampleServer serves s over a connection in memory.
func exampleServer(s testpb.TestServiceServer, opts ...grpc.ServerOption) (testpb.TestServiceClient, func()) {
	lis := bufconn.Listen(1 << 16)
	server := grpc.NewServer(opts...)
	testpb.RegisterTestServiceServer(server, s)
	go func() { _ = server.Serve(lis) }()
	client, hangUp := exampleClient(lis)
	return client, func() { hangUp(); server.Stop() }
}

func exampleClient(lis *bufconn.Listener) (testpb.TestServiceClient, func()) {
	conn, err := grpc.NewClient("passthrough:///memory",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		panic(err)
	}
	return testpb.NewTestServiceClient(conn), func() { _ = conn.Close() }
}

// uploadAll sends values in one stream and returns how many the service says it stored.
func uploadAll(client testpb.TestServiceClient, values ...string) (int, error) {
	stream, err := client.StreamingInputCall(context.Background())
	if err != nil {
		return 0, err
	}
	for _, v := range values {
		if stream.Send(requestOf(v)) != nil {
			break // CloseAndRecv says why
		}
	}
	r, err := stream.CloseAndRecv()
	return int(r.GetAggregatedPayloadSize()), err
}
