package flowclient_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowclient"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// The tests of a Sender together with the sessions of a Flow.

// flowServer is a service that runs a Flow with sessions. It can be restarted: another process on the same store.
type flowServer struct {
	testpb.UnimplementedTestServiceServer
	handler flow.Handler[*request]
	options flow.Options
	wrap    func(net.Listener) net.Listener
	opts    []grpc.ServerOption

	mu        sync.Mutex
	ran       []string
	summaries []flow.Summary
	flow      *flow.Flow[*request]
	grpc      *grpc.Server
	lis       *bufconn.Listener
	served    chan struct{}
}

// keyOf makes the first byte of a value its key.
func keyOf(r *request) string { return valueOf(r)[:1] }

// serveFlow starts a server; it ends with the test. A nil handler takes a millisecond for each message.
func serveFlow(t *testing.T, s *flowServer) (*flowServer, testpb.TestServiceClient) {
	t.Helper()
	if s.options.Sessions == nil {
		s.options.Sessions = &flow.SessionOptions{Store: flow.NewSessionMemory(0, 0)}
	}
	if s.wrap == nil {
		s.wrap = func(lis net.Listener) net.Listener { return lis }
	}
	s.options.Ordering.Mode = flow.OrderingKeyedFIFO
	s.start(t)
	t.Cleanup(func() {
		s.kill()
		time.Sleep(30 * time.Second) // gRPC may still be writing its goodbye, and a Flow its last Save
	})
	return s, testpb.NewTestServiceClient(connect(t, s.dial,
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: time.Second})))
}

func (s *flowServer) start(t *testing.T) {
	t.Helper()
	f, err := flow.New(s.run, keyOf, s.options)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(append(s.opts, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second}))...)
	lis, served := bufconn.Listen(1<<16), make(chan struct{})
	s.mu.Lock()
	s.flow, s.grpc, s.lis, s.served = f, g, lis, served
	s.mu.Unlock()
	testpb.RegisterTestServiceServer(g, s)
	go func() {
		defer close(served)
		_ = g.Serve(s.wrap(lis))
	}()
}

// kill ends the server without a word, as far as that can be done within a process: nothing is saved any more.
func (s *flowServer) kill() {
	_ = s.flow.Close()
	s.grpc.Stop()
	<-s.served
}

func (s *flowServer) dial(ctx context.Context, _ string) (net.Conn, error) {
	s.mu.Lock()
	lis := s.lis
	s.mu.Unlock()
	return lis.DialContext(ctx)
}

func (s *flowServer) StreamingInputCall(stream uploading) error {
	s.mu.Lock()
	f := s.flow
	s.mu.Unlock()
	sum, err := f.Run(stream.Context(), stream.Recv)
	s.mu.Lock()
	s.summaries = append(s.summaries, sum)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return stream.SendAndClose(&reply{AggregatedPayloadSize: int32(sum.Succeeded)})
}

func (s *flowServer) run(ctx context.Context, m flow.Message[*request]) error {
	if s.handler != nil {
		if err := s.handler(ctx, m); err != nil {
			return err
		}
	} else {
		select {
		case <-time.After(ms):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ran = append(s.ran, valueOf(m.Value))
	return nil
}

// hasRun returns what has run of a key.
func (s *flowServer) hasRun(key string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.ran), func(v string) bool { return !strings.HasPrefix(v, key) })
}

// uploadKeys sends n messages of each of the keys "a", "b" and "c", in turn, flushes now and then, and closes.
func uploadKeys(ctx context.Context, t *testing.T, s *sender, n int) {
	t.Helper()
	for i := range n {
		for _, key := range []string{"a", "b", "c"} {
			send(t, s, fmt.Sprint(key, i+1))
		}
		if i%3 == 2 {
			if err := s.Flush(ctx); err != nil {
				t.Fatalf("Flush() = %v, %+v", err, s.Stats())
			}
		}
	}
	if err := s.Close(ctx); err != nil {
		t.Fatalf("Close() = %v", err)
	}
	checkStats(t, s)
}

// checkKeys checks that n messages of each key have run, once and in order.
func checkKeys(t *testing.T, s *flowServer, n int) {
	t.Helper()
	for _, key := range []string{"a", "b", "c"} {
		check(t, "ran", s.hasRun(key), numbered(key, n))
	}
}

// withoutRepeats drops the values that were there before.
func withoutRepeats(values []string) (once []string) {
	for _, v := range values {
		if !slices.Contains(once, v) {
			once = append(once, v)
		}
	}
	return once
}

func TestSenderWithFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serveFlow(t, &flowServer{})
		s := newSender(t, client, flowclient.Options{Session: "upload"})
		if next, err := s.Resume(t.Context()); next != 1 || err != nil {
			t.Fatalf("Resume() = %d, %v", next, err)
		}
		uploadKeys(t.Context(), t, s, 30)
		checkKeys(t, server, 30)
		again := newSender(t, client, flowclient.Options{Session: "upload"})
		if next, err := again.Resume(t.Context()); next != 91 || err != nil {
			t.Fatalf("Resume() = %d, %v", next, err)
		}
		mustClose(t, again)
	})
}

func TestSenderWithFlowWithoutSessions(t *testing.T) {
	for _, noHeader := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			server, client := serveFlow(t, &flowServer{})
			server.flow, _ = flow.New(server.run, keyOf, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
			s := newSender(t, client, flowclient.Options{NoHeader: noHeader})
			send(t, s, "a1")
			if err := ended(t, s); !errors.Is(err, flowclient.ErrNoSessions) {
				t.Errorf("the Sender ended with %v", err)
			}
		})
	}
}

// With a large window a session may have more holes than fit into an answer: then the answer to the claim does not say up to
// where anything may be settled.
func TestSenderWithFlowResumesASessionOfManyHoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known := flow.Summary{Received: 4000, Committed: 1}
		for n := uint64(2); n < 3000; n += 2 {
			known.Unsettled = append(known.Unsettled, n)
		}
		store := flow.NewSessionMemory(0, 0)
		state := flow.SessionState{Epoch: 1, Fence: 1, Progress: known.Progress()}
		if _, err := store.Save(t.Context(), flow.SessionID{Name: "upload"}, state, 0); err != nil {
			t.Fatal(err)
		}
		_, client := serveFlow(t, &flowServer{options: flow.Options{MaxPending: 4096, Sessions: &flow.SessionOptions{Store: store}}})
		s := newSender(t, client, flowclient.Options{Session: "upload"})
		if next, err := s.Resume(t.Context()); next != 2 || err != nil {
			t.Fatalf("Resume() = %d, %v", next, err)
		}
		send(t, s, numbered("a", 2599)...)
		if err := s.Flush(t.Context()); err != nil { // the server has settled up to 2601
			t.Error(err)
		}
		send(t, s, numbered("a", 1399)...)
		mustClose(t, s)
		check(t, "settled", s.Stats().Settled, uint64(3998))
	})
}

func TestSenderWithFlowKnownSessionIsNotSwallowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serveFlow(t, &flowServer{})
		first := newSender(t, client, flowclient.Options{Session: "upload"})
		send(t, first, "a1", "a2")
		mustClose(t, first)
		second := newSender(t, client, flowclient.Options{Session: "upload"})
		send(t, second, "b1")
		if err := ended(t, second); !errors.Is(err, flowclient.ErrSessionKnown) {
			t.Errorf("the Sender ended with %v", err)
		}
		check(t, "ran", server.hasRun(""), []string{"a1", "a2"})
	})
}

func TestSenderWithFlowDeposedEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serveFlow(t, &flowServer{})
		first := newSender(t, client, flowclient.Options{Session: "upload"})
		if _, err := first.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		send(t, first, "a1")
		time.Sleep(100 * ms) // its stream is still open
		second := newSender(t, client, flowclient.Options{Session: "upload"})
		if next, err := second.Resume(t.Context()); next != 2 || err != nil {
			t.Fatalf("Resume() = %d, %v", next, err)
		}
		synctest.Wait()
		if err := first.Send(t.Context(), requestOf("a2")); !errors.Is(err, flow.ErrSessionMoved) || err != first.Stats().Err {
			t.Errorf("Send() = %v, and the Sender ended with %v", err, first.Stats().Err)
		}
		mustClose(t, first) // "a1" is settled, and the trailers said so
		send(t, second, "a2")
		mustClose(t, second)
		check(t, "ran", server.hasRun("a"), []string{"a1", "a2"})
	})
}

func TestSenderWithFlowFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var later atomic.Int64 // c2's failures that the Sender was told of: another's may be its stream's answer
		server, client := serveFlow(t, &flowServer{handler: func(_ context.Context, m flow.Message[*request]) error {
			switch {
			case valueOf(m.Value) == "b2":
				return status.Error(codes.InvalidArgument, "poison")
			case valueOf(m.Value) == "c2" && later.Load() < 2:
				return status.Error(codes.Unavailable, "later")
			}
			return nil
		}})
		var asked []string
		s := newSender(t, client, flowclient.Options{OnFailure: func(f *flow.Failure) flowclient.Action {
			asked = append(asked, valueOf(f.Value.(*request)))
			if status.Code(f.Err) == codes.Unavailable {
				later.Add(1)
				return flowclient.Retry
			}
			return flowclient.Skip
		}})
		uploadKeys(t.Context(), t, s, 6)
		check(t, "a", server.hasRun("a"), numbered("a", 6))
		check(t, "b", server.hasRun("b"), []string{"b1", "b3", "b4", "b5", "b6"})
		check(t, "c", server.hasRun("c"), numbered("c", 6))
		slices.Sort(asked)
		check(t, "asked", asked, []string{"b2", "c2", "c2"})
		check(t, "skipped", s.Stats().Skipped, 1)
	})
}

// A panic's stream ends although the server has skipped the message: it is settled, and the Sender goes on behind it.
func TestSenderWithFlowPanicThatTheServerSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serveFlow(t, &flowServer{
			options: flow.Options{OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }},
			handler: func(_ context.Context, m flow.Message[*request]) error {
				if valueOf(m.Value) == "a2" {
					panic("poison")
				}
				return nil
			},
		})
		s := newSender(t, client, flowclient.Options{})
		send(t, s, "a1", "a2", "a3")
		mustClose(t, s)
		check(t, "ran", server.hasRun("a"), []string{"a1", "a3"})
	})
}

func TestSenderWithFlowOversizedAtServerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := serveFlow(t, &flowServer{opts: []grpc.ServerOption{grpc.MaxRecvMsgSize(1000)}})
		s := newSender(t, client, flowclient.Options{})
		send(t, s, strings.Repeat("a", 2000))
		if err := ended(t, s); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("the Sender ended with %v", err)
		}
	})
}

func TestSenderWithFlowSurvivesRestarts(t *testing.T) {
	for _, how := range []string{"shutdown", "kill", "lost"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, client := serveFlow(t, &flowServer{options: flow.Options{Shutdown: flow.ShutdownOptions{DrainOnClose: true}}})
				s := newSender(t, client, flowclient.Options{})
				const n = 200
				done := make(chan struct{})
				go func() {
					defer close(done)
					uploadKeys(t.Context(), t, s, n)
				}()
				for range 5 {
					time.Sleep(20 * ms)
					if how == "shutdown" {
						if err := server.flow.Shutdown(t.Context()); err != nil {
							t.Errorf("Shutdown() = %v", err)
						}
					}
					server.kill()
					if how == "lost" {
						server.options.Sessions = &flow.SessionOptions{Store: flow.NewSessionMemory(0, 0)}
					}
					server.start(t)
				}
				<-done
				if how == "shutdown" {
					checkKeys(t, server, n)
				}
				for _, key := range []string{"a", "b", "c"} { // at least once, and first in order
					check(t, "ran", withoutRepeats(server.hasRun(key)), numbered(key, n))
				}
				if st := s.Stats(); how == "lost" && st.Lost == 0 || how != "lost" && st.Lost != 0 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// Every n-th read and write of either side has a fault; in the end each message has run once, and those of a key in order.
func TestSenderWithFlowResumesAfterEveryFaultOfTheConnection(t *testing.T) {
	for _, f := range faults {
		for _, where := range []string{"server reads", "server writes", "client reads", "client writes"} {
			if f.atReads && !strings.HasSuffix(where, "reads") {
				continue
			}
			for how, o := range map[string]flowclient.Options{"": {}, ", named": {Session: "upload"}, ", no header": {NoHeader: true}} {
				t.Run(f.name+" where the "+where+how, func(t *testing.T) {
					t.Parallel()
					n := int64(1)
					for ; flowUploadOver(t, &faultyNet{fault: f, reads: strings.HasSuffix(where, "reads"), n: n}, where, o); n++ {
						if t.Failed() {
							t.Fatalf("with the fault at operation %d", n)
						}
					}
					if n < 6 {
						t.Errorf("only %d places for a fault: that is no upload", n-1)
					}
				})
			}
		}
	}
}

func flowUploadOver(t *testing.T, network *faultyNet, where string, o flowclient.Options) bool {
	synctest.Test(t, func(t *testing.T) {
		config := &flowServer{}
		if strings.HasPrefix(where, "server") {
			config.wrap = func(lis net.Listener) net.Listener { return &faultyListener{lis, network.wrap} }
		}
		server, client := serveFlow(t, config)
		if strings.HasPrefix(where, "client") {
			client = testpb.NewTestServiceClient(connect(t, func(ctx context.Context, a string) (net.Conn, error) {
				c, err := server.dial(ctx, a)
				if err != nil {
					return nil, err
				}
				return network.wrap(c), nil
			}, grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: time.Second})))
		}
		s := newSender(t, client, o)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		uploadKeys(ctx, t, s, 5)
		checkKeys(t, server, 5)
		if st := s.Stats(); st.Lost != 0 {
			t.Errorf("%+v", st)
		}
	})
	return network.struck.Load()
}

// A store that fails, or whose session moves, at each n-th call costs time and nothing else.
func TestSenderWithFlowWhoseStoreFailsAtEachCall(t *testing.T) {
	for name, err := range map[string]error{"fails": errors.New("the store is down"), "moves": flow.ErrSessionMoved} {
		t.Run(name, func(t *testing.T) {
			for n := int64(1); ; n++ {
				store := &failingStore{SessionStore: flow.NewSessionMemory(0, 0), n: n, err: err}
				synctest.Test(t, func(t *testing.T) {
					server, client := serveFlow(t, &flowServer{options: flow.Options{
						Sessions: &flow.SessionOptions{Store: store, SaveEvery: 2 * ms},
					}})
					s := newSender(t, client, flowclient.Options{})
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
					defer cancel()
					uploadKeys(ctx, t, s, 5)
					checkKeys(t, server, 5)
				})
				if t.Failed() {
					t.Fatalf("with the fault at call %d", n)
				}
				if store.calls.Load() < n {
					if n < 6 {
						t.Errorf("only %d calls of the store", n-1)
					}
					return
				}
			}
		})
	}
}

// failingStore fails at its n-th call. A Save that fails may have been done all the same.
type failingStore struct {
	flow.SessionStore
	n     int64
	err   error
	calls atomic.Int64
}

func (s *failingStore) Load(ctx context.Context, id flow.SessionID) (flow.SessionState, uint64, error) {
	if s.calls.Add(1) == s.n && !errors.Is(s.err, flow.ErrSessionMoved) {
		return flow.SessionState{}, 0, s.err
	}
	return s.SessionStore.Load(ctx, id)
}

func (s *failingStore) Save(ctx context.Context, id flow.SessionID, st flow.SessionState, version uint64) (uint64, error) {
	if s.calls.Add(1) == s.n {
		if !errors.Is(s.err, flow.ErrSessionMoved) && s.n%2 == 0 {
			_, _ = s.SessionStore.Save(ctx, id, st, version)
		}
		return 0, s.err
	}
	return s.SessionStore.Save(ctx, id, st, version)
}
