package sessiontest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
	"example.com/flow/internal/testkit"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// The fixtures of sessions: a resumed is a Run of a stream that asks for the session "upload", with a transport stream
// that notes what its client would get. Another Flow on the same store is another process.

// withSessions is a Flow that has sessions in a store; nil is one of its own.
func withSessions(t testing.TB, h flow.Handler[string], store flow.SessionStore, change ...func(*flow.Options)) *flow.Flow[string] {
	t.Helper()
	o := flow.Options{
		Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}, Sessions: &flow.SessionOptions{Store: store},
	}
	for _, c := range change {
		c(&o)
	}
	return testkit.New(t, h, o)
}

// transport is a grpc.ServerTransportStream that keeps what it is told.
type transport struct {
	mu              sync.Mutex
	header, trailer metadata.MD
	sent            bool
	holds           bool // it never sends a header, as a proxy that holds it back
}

func (tr *transport) Method() string { return "/upload" }

func (tr *transport) SetHeader(md metadata.MD) error {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.header = metadata.Join(tr.header, md)
	return nil
}

func (tr *transport) SendHeader(md metadata.MD) error {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.sent || tr.holds {
		return errors.New("no header can be sent")
	}
	tr.header, tr.sent = metadata.Join(tr.header, md), true
	return nil
}

func (tr *transport) SetTrailer(md metadata.MD) error {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.trailer = metadata.Join(tr.trailer, md)
	return nil
}

// resumed is a stream of a session, under way.
type resumed struct {
	*testkit.Stream
	rpc *transport
}

// resume runs a stream of the session "upload" with further headers, as in "start=5 epoch=1 skip=7", and the values.
func resume(t testing.TB, f *flow.Flow[string], headers string, values ...string) *resumed {
	t.Helper()
	return resumeOver(t, f, &transport{}, headers, values...)
}

func resumeOver(t testing.TB, f *flow.Flow[string], rpc *transport, headers string, values ...string) *resumed {
	t.Helper()
	md := metadata.Pairs("flow-session", "upload")
	for _, header := range strings.Fields(headers) {
		key, value, _ := strings.Cut(header, "=")
		md.Set("flow-"+key, value)
	}
	ctx, cancel := context.WithCancelCause(metadata.NewIncomingContext(context.Background(), md))
	ctx = grpc.NewContextWithServerTransportStream(ctx, rpc)
	c := &testkit.Stream{Source: flowtest.NewSource(t, values...), Cancel: cancel, Done: make(chan struct{})}
	go func() {
		defer close(c.Done)
		c.Sum, c.Err = f.Run(ctx, c.Recv)
	}()
	t.Cleanup(func() { cancel(nil); <-c.Done })
	synctest.Wait()
	return &resumed{Stream: c, rpc: rpc}
}

// breaks ends the stream as a broken connection does.
func (r *resumed) breaks() {
	r.Cancel(nil)
	testkit.Advance(time.Second) // while recv is blocked, it gets a moment to say more
}

// wantHeader checks what the response header says once everything has come to rest; "" is that there is none.
func (r *resumed) wantHeader(t testing.TB, want string) {
	t.Helper()
	synctest.Wait()
	r.rpc.mu.Lock()
	defer r.rpc.mu.Unlock()
	got := ""
	if r.rpc.sent {
		got = testkit.SessionMetadata(r.rpc.header)
	}
	if got != want {
		t.Fatalf("the header says %q, want %q", got, want)
	}
}

// wantEnd checks how the stream has ended: the code, reason and epoch of its status, "OK" for none, and what the trailers
// say.
func (r *resumed) wantEnd(t testing.TB, want, trailers string) flow.Summary {
	t.Helper()
	sum, err := r.Result(t)
	st := status.Convert(err)
	got := st.Code().String()
	if info := testkit.Detail[*errdetails.ErrorInfo](st); info != nil {
		got += " " + info.GetReason()
		if epoch, ok := info.GetMetadata()["epoch"]; ok {
			got += " " + epoch
		}
	}
	if testkit.Detail[*errdetails.RetryInfo](st) != nil {
		got += " retry"
	}
	if got != want {
		t.Fatalf("the stream ended with %q (%v), want %q", got, err, want)
	}
	r.rpc.mu.Lock()
	defer r.rpc.mu.Unlock()
	if got := testkit.SessionMetadata(r.rpc.trailer); got != trailers {
		t.Fatalf("the trailers say %q, want %q", got, trailers)
	}
	testkit.CheckConserved(t, sum)
	return sum
}

// uploadOK runs a whole stream that ends well, and returns its Summary.
func uploadOK(t testing.TB, f *flow.Flow[string], headers string, values ...string) flow.Summary {
	t.Helper()
	r := resume(t, f, headers, values...)
	r.End()
	sum, err := r.Result(t)
	if err != nil {
		t.Fatal(err)
	}
	testkit.CheckConserved(t, sum)
	return sum
}

// claim has another process claim the session.
func claim(store flow.SessionStore) error {
	s, version, err := store.Load(context.Background(), uploadID)
	if err != nil {
		return err
	}
	s.Epoch, s.Fence = s.Epoch+1, s.Fence+1
	_, err = store.Save(context.Background(), uploadID, s, version)
	return err
}

var uploadID = flow.SessionID{Name: "upload"}

// stored is what a store has of the session, as "epoch 1 fence 1 committed 3 of 5".
func stored(t testing.TB, store flow.SessionStore) string {
	t.Helper()
	s, _, err := store.Load(context.Background(), uploadID)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("epoch %d fence %d committed %d", s.Epoch, s.Fence, s.Progress.Committed())
}
