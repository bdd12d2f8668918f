package flowclient_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/flowclient"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// The other side of these tests: a server that keeps sessions as the wire tables say, and can be told to misbehave. It
// shares no code with the server of package flow, so that the two are checked against the tables and not each other.

type (
	request   = testpb.StreamingInputCallRequest
	reply     = testpb.StreamingInputCallResponse
	sender    = flowclient.Sender[request, reply]
	uploading = grpc.ClientStreamingServer[request, reply]
)

func requestOf(v string) *request { return &request{Payload: &testpb.Payload{Body: []byte(v)}} }

func valueOf(r *request) string { return string(r.GetPayload().GetBody()) }

// plan is what a stream does otherwise than it should. The zero value is to behave.
type plan struct {
	refuse      error // instead of all else
	silent      bool  // no header and no answer, until the stream is cancelled
	plain       bool  // as a server without sessions
	headerTime  time.Duration
	holdHeader  bool              // until the answer
	header      func(metadata.MD) // changes it
	readsNone   bool              // after the header
	handlerTime time.Duration     // of each message
	fail        map[uint64]error  // by number
	hole        map[uint64]bool   // numbers that are left unsettled, as if they were still running
	endAfter    int               // messages, with end
	end         error             // instead of the answer, and after endAfter messages
	endOK       bool              // after endAfter messages
	trailer     func(metadata.MD) // changes it
	trailerOnly bool              // no header at all
	foreign     bool              // an interceptor has set one of its own
	early       bool              // and sent it
	answerTime  time.Duration
	noAnswer    bool // until the stream is cancelled
	cut         bool // all connections before the answer
}

// seenStream is what the server has seen of a stream.
type seenStream struct {
	begun, halfClosed, ended time.Duration // since the server's beginning
	start, epoch             string
	skip                     string
	received                 []string
}

type sessionState struct {
	epoch     uint64
	settled   map[uint64]bool
	committed uint64
	last      uint64
	cancel    context.CancelFunc // the stream that writes it
	done      chan struct{}
}

type sessionServer struct {
	testpb.UnimplementedTestServiceServer
	plan func(stream int) plan // streams count from 1; nil: they behave

	began  time.Time
	lis    *bufconn.Listener
	grpc   *grpc.Server
	served chan struct{}

	mu       sync.Mutex
	sessions map[string]*sessionState
	streams  []*seenStream
	ran      []string
	conns    []net.Conn
}

// serve starts a server and returns it with a client of it. Both end with the test.
func serve(t *testing.T, planned func(stream int) plan, opts ...grpc.ServerOption) (*sessionServer, testpb.TestServiceClient) {
	t.Helper()
	s := newServer(t, planned, opts...)
	return s, testpb.NewTestServiceClient(connect(t, s.dial))
}

func newServer(t *testing.T, planned func(stream int) plan, opts ...grpc.ServerOption) *sessionServer {
	t.Helper()
	s := startServer(planned, opts...)
	t.Cleanup(func() {
		s.stop()
		time.Sleep(10 * time.Second) // gRPC may still be writing its goodbye
	})
	return s
}

func startServer(planned func(stream int) plan, opts ...grpc.ServerOption) *sessionServer {
	return startServerOn(func(lis net.Listener) net.Listener { return lis }, planned, opts...)
}

// startServerOn starts a server on what wrap makes of its listener.
func startServerOn(wrap func(net.Listener) net.Listener, planned func(stream int) plan, opts ...grpc.ServerOption) *sessionServer {
	if planned == nil {
		planned = func(int) plan { return plan{} }
	}
	s := &sessionServer{plan: planned, began: time.Now(), lis: bufconn.Listen(1 << 16), grpc: grpc.NewServer(opts...),
		served: make(chan struct{}), sessions: map[string]*sessionState{}}
	testpb.RegisterTestServiceServer(s.grpc, s)
	go func() {
		defer close(s.served)
		_ = s.grpc.Serve(wrap(s.lis))
	}()
	return s
}

func (s *sessionServer) stop() {
	s.grpc.Stop()
	<-s.served
}

func (s *sessionServer) dial(ctx context.Context, _ string) (net.Conn, error) {
	c, err := s.lis.DialContext(ctx)
	if err == nil {
		s.mu.Lock()
		s.conns = append(s.conns, c)
		s.mu.Unlock()
	}
	return c, err
}

func connect(t *testing.T, dial func(context.Context, string) (net.Conn, error), opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := newConn(dial, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// newConn makes a connection that is made again at once when it broke.
func newConn(dial func(context.Context, string) (net.Conn, error), opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///server", append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dial),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: time.Millisecond, Multiplier: 1, MaxDelay: time.Millisecond}, MinConnectTimeout: time.Second,
		}),
	}, opts...)...)
}

// cut breaks all connections.
func (s *sessionServer) cut() {
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// settle has a session be known, with so much of it settled.
func (s *sessionServer) settle(name string, epoch, committed uint64, above ...uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &sessionState{epoch: epoch, settled: map[uint64]bool{}, last: committed}
	for n := range committed {
		st.settled[n+1] = true
	}
	for _, n := range above {
		st.settled[n] = true
		st.last = max(st.last, n)
	}
	st.advance()
	s.sessions[name] = st
}

func (s *sessionServer) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, name)
}

func (s *sessionServer) seen() []seenStream {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []seenStream
	for _, st := range s.streams {
		c := *st
		c.received = slices.Clone(st.received)
		all = append(all, c)
	}
	return all
}

func (s *sessionServer) hasRun() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ran)
}

func (st *sessionState) advance() {
	for st.settled[st.committed+1] {
		st.committed++
	}
}

func (st *sessionState) progress() metadata.MD {
	md := metadata.Pairs("flow-epoch", strconv.FormatUint(st.epoch, 10), "flow-committed", strconv.FormatUint(st.committed, 10))
	if st.last > st.committed {
		sum := flow.Summary{Received: st.last, Committed: st.committed}
		for n := st.committed + 1; n <= st.last; n++ {
			if !st.settled[n] {
				sum.Unsettled = append(sum.Unsettled, n)
			}
		}
		packed, _ := sum.Progress().MarshalBinary()
		md.Set("flow-progress-bin", string(packed))
	}
	return md
}

// retryInfo is a status with details.
func retryInfo(code codes.Code, delay time.Duration) error {
	return withDetail(code, &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
}

func moved(code codes.Code, epoch string) error {
	return withDetail(code, &errdetails.ErrorInfo{Reason: "SESSION_MOVED", Domain: "example.com/flow",
		Metadata: map[string]string{"epoch": epoch}})
}

func withDetail(code codes.Code, detail protoadapt.MessageV1) error {
	st, err := status.New(code, code.String()).WithDetails(detail)
	if err != nil {
		panic(err)
	}
	return st.Err()
}

func header(md metadata.MD, key string) string { return strings.Join(md.Get(key), ";") }

func (s *sessionServer) StreamingInputCall(stream uploading) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	seen := &seenStream{begun: time.Since(s.began), start: header(md, "flow-start"), epoch: header(md, "flow-epoch"),
		skip: header(md, "flow-skip")}
	s.mu.Lock()
	s.streams = append(s.streams, seen)
	n := len(s.streams)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		seen.ended = time.Since(s.began)
	}()
	return s.serve(stream, md, seen, s.plan(n))
}

func (s *sessionServer) serve(stream uploading, md metadata.MD, seen *seenStream, p plan) error {
	if p.foreign {
		if err := stream.SetHeader(metadata.Pairs("x-request-id", "1")); err != nil {
			return err
		}
	}
	if p.early {
		if err := stream.SendHeader(metadata.Pairs("x-request-id", "1")); err != nil {
			return err
		}
	}
	switch {
	case p.refuse != nil:
		return p.refuse
	case p.silent:
		<-stream.Context().Done()
		return stream.Context().Err()
	case p.plain:
		time.Sleep(p.headerTime)
		return plainServe(stream)
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	start, err := strconv.ParseUint(seen.start, 10, 64)
	if err != nil || start == 0 {
		return status.Errorf(codes.InvalidArgument, "flow-start %q", seen.start)
	}
	st, found, err := s.take(header(md, "flow-session"), seen.epoch, start, seen.skip, cancel)
	if err != nil {
		return err
	}
	defer close(st.done)

	s.mu.Lock()
	h := st.progress()
	s.mu.Unlock()
	h.Set("flow-session", found)
	if p.header != nil {
		p.header(h)
	}
	time.Sleep(p.headerTime)
	switch {
	case p.trailerOnly, p.early:
	case p.holdHeader:
		err = stream.SetHeader(h)
	default:
		err = stream.SendHeader(h)
	}
	if err != nil {
		return err
	}
	if p.readsNone {
		<-ctx.Done()
		return ctx.Err()
	}
	err = s.receive(ctx, stream, st.sessionState, start, seen, p)
	if p.cut {
		s.cut()
	}
	if p.noAnswer {
		<-ctx.Done()
		return ctx.Err()
	}
	time.Sleep(p.answerTime)
	s.mu.Lock()
	tr := st.progress()
	s.mu.Unlock()
	if f, ok := err.(*messageError); ok {
		tr.Set("flow-failed", strconv.FormatUint(f.n, 10))
		err = f.err
	}
	if p.trailer != nil {
		p.trailer(tr)
	}
	stream.SetTrailer(tr)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&reply{AggregatedPayloadSize: int32(len(seen.received))})
}

func plainServe(stream uploading) error {
	for {
		if _, err := stream.Recv(); err == io.EOF {
			return stream.SendAndClose(&reply{})
		} else if err != nil {
			return err
		}
	}
}

// taken is a session as the stream has it that writes it.
type taken struct {
	*sessionState
	done chan struct{}
}

// take ends the session's earlier stream and takes it over.
func (s *sessionServer) take(name, epoch string, start uint64, skip string, cancel context.CancelFunc) (*taken, string, error) {
	s.mu.Lock()
	st, found := s.sessions[name], "known"
	if st == nil {
		st, found = &sessionState{settled: map[uint64]bool{}}, "new"
		s.sessions[name] = st
	}
	if epoch != "" {
		n, _ := strconv.ParseUint(epoch, 10, 64)
		if n < st.epoch {
			defer s.mu.Unlock()
			return nil, "", moved(codes.FailedPrecondition, strconv.FormatUint(st.epoch, 10))
		}
		st.epoch = n
	} else {
		st.epoch++
	}
	earlierCancel, earlier := st.cancel, st.done
	mine := &taken{st, make(chan struct{})}
	st.cancel, st.done = cancel, mine.done
	s.mu.Unlock()
	if earlier != nil {
		earlierCancel()
		<-earlier
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if start-1 > st.last {
		found = "lost"
	}
	for n := st.committed + 1; n < start; n++ {
		st.settled[n] = true
	}
	if skip != "" {
		for _, v := range strings.Split(skip, ",") {
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil || n < start {
				close(mine.done)
				return nil, "", status.Errorf(codes.InvalidArgument, "flow-skip %q", skip)
			}
			st.settled[n] = true
			st.last = max(st.last, n)
		}
	}
	st.last = max(st.last, start-1)
	st.advance()
	return mine, found, nil
}

// messageError is a message's own failure.
type messageError struct {
	n   uint64
	err error
}

func (e *messageError) Error() string { return e.err.Error() }

func (s *sessionServer) receive(ctx context.Context, stream uploading, st *sessionState, start uint64, seen *seenStream, p plan) error {
	for n := start; ; n++ {
		if p.endAfter > 0 && n == start+uint64(p.endAfter) && (p.endOK || p.end != nil) {
			return p.end
		}
		m, err := stream.Recv()
		if err == io.EOF {
			s.mu.Lock()
			seen.halfClosed = time.Since(s.began)
			s.mu.Unlock()
			return p.end
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return status.FromContextError(ctx.Err()).Err()
		}
		v := valueOf(m)
		s.mu.Lock()
		seen.received = append(seen.received, v)
		st.last = max(st.last, n)
		settled := st.settled[n]
		s.mu.Unlock()
		if settled || p.hole[n] {
			continue
		}
		if p.handlerTime > 0 {
			select {
			case <-time.After(p.handlerTime):
			case <-ctx.Done():
				return status.FromContextError(ctx.Err()).Err()
			}
		}
		if err := p.fail[n]; err != nil {
			return &messageError{n, err}
		}
		s.mu.Lock()
		s.ran = append(s.ran, v)
		st.settled[n] = true
		st.advance()
		s.mu.Unlock()
	}
}

// newSender makes a Sender whose backoffs are as long as they can be, and that is closed with the test.
func newSender(t *testing.T, client testpb.TestServiceClient, o flowclient.Options) *sender {
	t.Helper()
	s, err := flowclient.New(client.StreamingInputCall, o)
	if err != nil {
		t.Fatal(err)
	}
	s.SetRandom(func() float64 { return 1 })
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Close(ctx)
	})
	return s
}

// send sends values, none of which has to wait.
func send(t *testing.T, s *sender, values ...string) {
	t.Helper()
	for _, v := range values {
		if err := s.Send(t.Context(), requestOf(v)); err != nil {
			t.Fatalf("Send(%s) = %v", v, err)
		}
	}
}

func mustClose(t *testing.T, s *sender) {
	t.Helper()
	if err := s.Close(t.Context()); err != nil {
		t.Fatalf("Close() = %v", err)
	}
	checkStats(t, s)
}

// numbered makes the values "prefix1" to "prefixN".
func numbered(prefix string, n int) []string {
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprintf("%s%d", prefix, i+1)
	}
	return values
}

// unsettled returns what is not settled, as "number=value".
func unsettled(s *sender) (all []string) {
	for n, m := range s.Unsettled() {
		all = append(all, fmt.Sprintf("%d=%s", n, valueOf(m)))
	}
	return all
}

// checkStats checks what holds of the figures at every moment.
func checkStats(t *testing.T, s *sender) {
	t.Helper()
	st := s.Stats()
	if open := len(unsettled(s)); st.Err != nil || st.Taken != st.Settled+st.Skipped {
		if n := int(st.Taken - st.Settled - st.Skipped); n != open {
			t.Errorf("%+v says that %d are unsettled, but there are %d", st, n, open)
		}
	}
	if st.Buffered == 0 && st.BufferedBytes != 0 || st.Buffered < 0 || st.BufferedBytes < 0 {
		t.Errorf("%+v", st)
	}
}

func check[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("%s: got %s, want %s", what, g, w)
	}
}

// exampleClient is a client of a server that fails at "poison".
func exampleClient() (client testpb.TestServiceClient, stop func()) {
	s := startServer(always(plan{fail: map[uint64]error{3: status.Error(codes.InvalidArgument, "poison")}}))
	conn, err := newConn(s.dial)
	if err != nil {
		panic(err)
	}
	return testpb.NewTestServiceClient(conn), func() {
		_ = conn.Close()
		s.stop()
	}
}
