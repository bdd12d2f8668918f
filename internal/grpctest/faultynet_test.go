package grpctest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// A fault is what becomes of a connection at its n-th read or write.
type fault struct {
	name    string
	at      func(c *faultyConn, op op, b []byte) (n int, err error)
	mends   bool // the connection goes on afterwards, as if nothing had happened
	atReads bool // it shows at a read only
}

var errCut = errors.New("the connection was cut")

var faults = []fault{
	{name: "cut", at: func(c *faultyConn, _ op, _ []byte) (int, error) {
		_ = c.Conn.Close()
		return 0, errCut
	}},
	{name: "cut halfway through", at: func(c *faultyConn, op op, b []byte) (int, error) {
		n, _ := op(c.Conn, b[:(len(b)+1)/2])
		_ = c.Conn.Close()
		return n, errCut
	}},
	{name: "half closed", atReads: true, at: func(*faultyConn, op, []byte) (int, error) { // by a FIN: writes go on
		return 0, io.EOF
	}},
	{name: "silent", at: func(c *faultyConn, op op, b []byte) (int, error) { // all is lost, and nobody is told
		if c.writes > 0 {
			return len(b), nil
		}
		for {
			if _, err := op(c.Conn, b); err != nil {
				return 0, err
			}
		}
	}},
	{name: "delayed", mends: true, at: func(c *faultyConn, op op, b []byte) (int, error) {
		select {
		case <-time.After(5 * time.Second):
		case <-c.closed:
		}
		return op(c.Conn, b)
	}},
}

// op is a read or a write.
type op func(net.Conn, []byte) (int, error)

// faultyConn has a fault at its n-th read, or its n-th write, and from then on unless it mends.
type faultyConn struct {
	net.Conn
	fault
	reads, writes int64 // at which the fault is; 0: none
	read, written atomic.Int64
	struck        *atomic.Bool
	once          sync.Once
	closed        chan struct{}
}

func (c *faultyConn) Read(b []byte) (int, error) {
	return c.do(net.Conn.Read, b, c.read.Add(1), c.reads)
}

func (c *faultyConn) Write(b []byte) (int, error) {
	return c.do(net.Conn.Write, b, c.written.Add(1), c.writes)
}

func (c *faultyConn) do(op op, b []byte, n, at int64) (int, error) {
	if at == 0 || n < at || n > at && c.mends {
		return op(c.Conn, b)
	}
	c.struck.Store(true)
	return c.at(c, op, b)
}

func (c *faultyConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// faultyListener makes its first connection faulty; those after it are sound.
type faultyListener struct {
	*bufconn.Listener
	wrap func(net.Conn) net.Conn
}

func (l *faultyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(c), nil
}

func TestEveryFaultOfTheConnectionEndsClassifiedConservedAndWithNothingRunning(t *testing.T) {
	for _, f := range faults {
		for _, where := range []string{"server reads", "server writes", "client reads", "client writes"} {
			if f.atReads && !strings.HasSuffix(where, "reads") {
				continue
			}
			t.Run(f.name+" where the "+where, func(t *testing.T) {
				t.Parallel()
				n := int64(1)
				for ; strikes(t, f, where, n); n++ {
				}
				if n < 5 {
					t.Errorf("only %d places for a fault: that is no upload", n-1)
				}
			})
		}
	}
}

// strikes uploads over a connection whose n-th operation of a kind is faulty, and says whether there was an n-th.
func strikes(t *testing.T, f fault, where string, n int64) bool {
	var struck atomic.Bool
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { // when the server has stopped, gRPC may still be writing its goodbye
			time.Sleep(10 * time.Second)
			if t.Failed() {
				t.Logf("with the fault at operation %d", n)
			}
		})
		first := sync.OnceValue(func() *faultyConn {
			c := &faultyConn{fault: f, struck: &struck, closed: make(chan struct{})}
			if strings.HasSuffix(where, "reads") {
				c.reads = n
			} else {
				c.writes = n
			}
			return c
		})
		wrap := func(conn net.Conn) net.Conn {
			if c := first(); c.Conn == nil {
				c.Conn = conn
				return c
			}
			return conn
		}
		inner := bufconn.Listen(1 << 16)
		var lis net.Listener = inner
		dial := func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := inner.DialContext(ctx)
			if err != nil {
				return nil, err
			}
			return wrap(c), nil
		}
		if strings.HasPrefix(where, "server") {
			lis = &faultyListener{inner, wrap}
			dial = func(ctx context.Context, _ string) (net.Conn, error) { return inner.DialContext(ctx) }
		}
		uploadOverFaultyNet(t, f, lis, dial)
	})
	return struck.Load()
}

func uploadOverFaultyNet(t *testing.T, f fault, lis net.Listener, dial func(context.Context, string) (net.Conn, error)) {
	var mu sync.Mutex
	var ran []string
	var outcomes []outcome
	h := func(ctx context.Context, m flow.Message[string]) error {
		if err := testkit.Takes(5*time.Millisecond)(ctx, m); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		ran = append(ran, m.Value)
		return nil
	}
	fl := newRequestFlow(t, h, flow.Options{
		Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		Backpressure: flow.BackpressureOptions{Capacity: 2},
	})
	s := serveOn(t, func(stream uploading) error {
		var o outcome
		err := reports(fl, &o)(stream)
		mu.Lock()
		defer mu.Unlock()
		outcomes = append(outcomes, o)
		return err
	}, lis, dial)

	var sent []string
	for i := range 8 {
		sent = append(sent, fmt.Sprintf("%c%d", 'a'+i%3, i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	took, n, st, p := sendSlowly(ctx, s.client, sent)
	switch {
	case st.Code() == codes.OK:
		if n != took {
			t.Errorf("the answer is OK and says that %d of %d ran", n, took)
		}
	case f.mends:
		t.Errorf("the client sees %v after a delay", st)
	case !slices.Contains([]codes.Code{codes.Unavailable, codes.Canceled, codes.DeadlineExceeded, codes.Internal}, st.Code()):
		t.Errorf("the client sees %v", st)
	}

	time.Sleep(time.Minute) // a server that hears nothing has the call's deadline
	synctest.Wait()
	if got := fl.Stats(); s.active.Load() != 0 || got.Streams+got.InFlight+got.Waiting+got.ActiveKeys != 0 {
		t.Errorf("%d calls are still there, and %+v", s.active.Load(), got)
	}
	mu.Lock()
	checkOncePerMessage(t, ran, sent)
	for _, o := range outcomes {
		testkit.CheckConserved(t, o.sum)
		if o.err != nil {
			testkit.FailureOf(t, o.err, flow.FailureContextCancelled)
		} else if o.sum.Succeeded != uint64(took) {
			t.Errorf("Run returned nil with %+v", o.sum)
		}
	}
	for seq, v := range sent {
		if p.Settled(uint64(seq+1)) && !slices.Contains(ran, v) {
			t.Errorf("the trailer says that %s is settled, and it never ran", v)
		}
	}
	mu.Unlock()

	// All is as before: each slot is there for the next client.
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := testpb.NewTestServiceClient(s.connect(t))
	if _, n, st, _ := sendSlowly(ctx, client, sent); n != len(sent) || st.Code() != codes.OK {
		t.Errorf("the next client gets %d, %v", n, st)
	}
}

// sendSlowly uploads sent, so slowly that messages run meanwhile. took is how many were given to Send: all, unless it
// failed. (When nothing was processed, grpc-go may then send them again by itself, and get an OK for them alone.)
func sendSlowly(ctx context.Context, client testpb.TestServiceClient, sent []string) (
	took, n int, st *status.Status, p flow.Progress) {
	stream, err := client.StreamingInputCall(ctx)
	if err != nil {
		return 0, 0, status.Convert(err), p
	}
	for _, v := range sent {
		took++
		if err = stream.Send(requestOf(v)); err != nil {
			break
		}
		time.Sleep(3 * time.Millisecond)
	}
	if err != nil && err != io.EOF {
		return took, 0, status.Convert(err), p
	}
	r, err := stream.CloseAndRecv()
	p, _ = flow.ProgressFromTrailer(stream.Trailer())
	return took, int(r.GetAggregatedPayloadSize()), status.Convert(err), p
}

// checkOncePerMessage checks that of each key a first part of what was sent ran, in order and none of it twice.
func checkOncePerMessage(t *testing.T, ran, sent []string) {
	t.Helper()
	for _, key := range []string{"a", "b", "c"} {
		of := func(values []string) []string {
			return slices.DeleteFunc(slices.Clone(values), func(v string) bool { return testkit.KeyOf(v) != key })
		}
		if got, all := of(ran), of(sent); len(got) > len(all) || !slices.Equal(got, all[:len(got)]) {
			t.Errorf("of key %s there ran %v, sent was %v", key, got, all)
		}
	}
}
