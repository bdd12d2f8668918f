package flowclient_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow/flowclient"
	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
)

// A fault is what becomes of a connection at its n-th read or write.
type fault struct {
	name    string
	strike  func(c *faultyConn, op op, b []byte) (n int, err error)
	mends   bool // the connection goes on afterwards, as if nothing had happened
	atReads bool // it shows at a read only
}

// op is a read or a write.
type op func(net.Conn, []byte) (int, error)

var errCut = errors.New("the connection was cut")

var faults = []fault{
	{name: "cut", strike: func(c *faultyConn, _ op, _ []byte) (int, error) {
		_ = c.Conn.Close()
		return 0, errCut
	}},
	{name: "cut halfway through", strike: func(c *faultyConn, op op, b []byte) (int, error) {
		n, _ := op(c.Conn, b[:(len(b)+1)/2])
		_ = c.Conn.Close()
		return n, errCut
	}},
	{name: "half closed", atReads: true, strike: func(*faultyConn, op, []byte) (int, error) { // by a FIN: writes go on
		return 0, io.EOF
	}},
	{name: "silent", strike: func(c *faultyConn, op op, b []byte) (int, error) { // all is lost, and neither side is told
		if !c.reads {
			return len(b), nil
		}
		for {
			if _, err := op(c.Conn, b); err != nil {
				return 0, err
			}
		}
	}},
	{name: "delayed", mends: true, strike: func(c *faultyConn, op op, b []byte) (int, error) {
		select {
		case <-time.After(3 * time.Second):
		case <-c.closed:
		}
		return op(c.Conn, b)
	}},
}

// faultyNet has one fault: at the n-th read, or write, of all its connections together.
type faultyNet struct {
	fault
	reads  bool // or writes
	n      int64
	ops    atomic.Int64
	struck atomic.Bool
}

func (f *faultyNet) wrap(c net.Conn) net.Conn {
	return &faultyConn{Conn: c, faultyNet: f, closed: make(chan struct{})}
}

type faultyConn struct {
	net.Conn
	*faultyNet
	faulty atomic.Bool // the fault is on this connection, and lasts
	once   sync.Once
	closed chan struct{}
}

func (c *faultyConn) Read(b []byte) (int, error)  { return c.do(net.Conn.Read, b, c.reads) }
func (c *faultyConn) Write(b []byte) (int, error) { return c.do(net.Conn.Write, b, !c.reads) }

func (c *faultyConn) do(op op, b []byte, counts bool) (int, error) {
	if !counts {
		return op(c.Conn, b)
	}
	if c.ops.Add(1) == c.n {
		c.struck.Store(true)
		c.faulty.Store(!c.mends)
		return c.strike(c, op, b)
	}
	if c.faulty.Load() {
		return c.strike(c, op, b)
	}
	return op(c.Conn, b)
}

func (c *faultyConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// faultyListener wraps the connections of the server's side.
type faultyListener struct {
	net.Listener
	wrap func(net.Conn) net.Conn
}

func (l *faultyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(c), nil
}

// Every n-th read and write of either side is where the connection has a fault, through header, body, half-close and
// answer of several streams: in the end each message has run once, in order.
func TestSenderResumesAfterEveryFaultOfTheConnection(t *testing.T) {
	for _, f := range faults {
		for _, where := range []string{"server reads", "server writes", "client reads", "client writes"} {
			if f.atReads && !strings.HasSuffix(where, "reads") {
				continue
			}
			for _, how := range []string{"", ", header held back", ", resumed"} {
				t.Run(f.name+" where the "+where+how, func(t *testing.T) {
					t.Parallel()
					n := int64(1)
					for ; uploadOver(t, &faultyNet{fault: f, reads: strings.HasSuffix(where, "reads"), n: n}, where, how); n++ {
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

// uploadOver uploads over connections with a fault, and reports whether there was an n-th operation for it.
func uploadOver(t *testing.T, network *faultyNet, where, how string) bool {
	held, resumed := strings.Contains(how, "held"), strings.Contains(how, "resumed")
	synctest.Test(t, func(t *testing.T) {
		server := startServerOn(func(lis net.Listener) net.Listener {
			if strings.HasPrefix(where, "server") {
				return &faultyListener{lis, network.wrap}
			}
			return lis
		}, always(plan{handlerTime: ms, holdHeader: held}), grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second}))
		t.Cleanup(func() {
			server.stop()
			time.Sleep(20 * time.Second) // gRPC may still be writing its goodbye
		})
		dial := server.dial
		if strings.HasPrefix(where, "client") {
			dial = func(ctx context.Context, a string) (net.Conn, error) {
				c, err := server.dial(ctx, a)
				if err != nil {
					return nil, err
				}
				return network.wrap(c), nil
			}
		}
		options := flowclient.Options{NoHeader: held}
		if resumed {
			options.Session = "upload"
		}
		conn := connect(t, dial, grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: time.Second}))
		s := newSender(t, testpb.NewTestServiceClient(conn), options)
		values := numbered("m", 12)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		if resumed {
			if next, err := s.Resume(ctx); next != 1 || err != nil {
				t.Fatalf("Resume() = %d, %v", next, err)
			}
		}
		for i, v := range values {
			send(t, s, v)
			if i%4 == 3 {
				if err := s.Flush(ctx); err != nil {
					t.Fatalf("Flush() = %v, %+v", err, s.Stats())
				}
			}
		}
		if err := s.Close(ctx); err != nil {
			t.Fatalf("Close() = %v", err)
		}
		checkStats(t, s)
		check(t, "ran", server.hasRun(), values)
		if st := s.Stats(); st.Settled != 12 || st.Lost != 0 || st.Streams > 3+1+2 {
			t.Errorf("%+v", st)
		}
	})
	return network.struck.Load()
}
