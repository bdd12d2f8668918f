package sessiontest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// A client of a few lines, as in any language: it sends from flow-start = committed + 1 and keeps what flow-committed does
// not cover. It breaks off now and then.
type plainClient struct {
	t      *testing.T
	values []string
	start  int    // number of the first message that is not committed
	epoch  string // as the server gave it
	ends   map[codes.Code]int
}

// stream runs one stream, of which the connection breaks when the n-th message has been received, or not if n is 0.
func (c *plainClient) stream(f *flow.Flow[string], n int) {
	headers := fmt.Sprint("start=", c.start)
	if c.epoch != "" {
		headers += " epoch=" + c.epoch
	}
	r := resume(c.t, f, headers)
	for i, v := range c.values[c.start-1:] {
		if n > 0 && i == n {
			break
		}
		r.Send(v)
	}
	testkit.Advance(1500 * time.Millisecond) // so that a Save comes in between
	if n > 0 {
		r.breaks()
	} else {
		r.End()
	}
	testkit.Advance(time.Minute) // for a store that hangs
	_, err := r.Result(c.t)
	c.ends[status.Code(err)]++
	r.rpc.mu.Lock()
	defer r.rpc.mu.Unlock()
	header, trailer := r.rpc.header, r.rpc.trailer
	if n > 0 {
		trailer = nil // they come with a connection that broke to nobody
	}
	for _, md := range []metadata.MD{header, trailer} {
		if values := md.Get("flow-epoch"); len(values) == 1 {
			c.epoch = values[0]
		}
		if p, ok := flow.ProgressFromTrailer(md); ok {
			if int(p.Committed()) < c.start-1 || int(p.Committed()) > len(c.values) {
				c.t.Fatalf("%d is committed, the client began with %d", p.Committed(), c.start)
			}
			c.start = int(p.Committed()) + 1
		}
	}
}

// TestStoreThatFailsAtEachCallLosesNothing has each call of the store, in turn, fail, fail after it was done, hang, or find
// the session taken by another process of the same writer's.
func TestStoreThatFailsAtEachCallLosesNothing(t *testing.T) {
	errDown := errors.New("down")
	for name, fault := range map[string]func(store *testkit.HookedStore, nth int){
		"fails": func(store *testkit.HookedStore, nth int) {
			store.SetBefore(func(context.Context, string, int) error { return nthCall(&nth, errDown) })
		},
		"fails after it was done": func(store *testkit.HookedStore, nth int) {
			store.SetAfter(func(context.Context, string, int) error { return nthCall(&nth, errDown) })
		},
		"hangs": func(store *testkit.HookedStore, nth int) {
			store.SetBefore(func(ctx context.Context, _ string, _ int) error {
				if nthCall(&nth, errDown) != nil {
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			})
		},
		"finds the session taken": func(store *testkit.HookedStore, nth int) {
			store.SetBefore(func(context.Context, string, int) error {
				if nthCall(&nth, errDown) == nil {
					return nil
				}
				s, version, err := store.SessionStore.Load(context.Background(), uploadID)
				if version > 0 && err == nil {
					s.Fence++
					_, err = store.SessionStore.Save(context.Background(), uploadID, s, version)
				}
				return err
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			for nth := 1; nth <= 14; nth++ {
				synctest.Test(t, func(t *testing.T) {
					ran := map[string]int{}
					settled := func(_ context.Context, m flow.Message[string]) error {
						ran[m.Value]++
						return nil
					}
					store := testkit.NewHookedStore()
					fault(store, nth)
					f := withSessions(t, settled, store, func(o *flow.Options) { o.Ordering.Mode = flow.OrderingFIFO })
					c := &plainClient{t: t, start: 1, ends: map[codes.Code]int{}}
					for i := range 12 {
						c.values = append(c.values, fmt.Sprint("a", i+1))
					}
					for _, n := range []int{3, 1, 4} {
						c.stream(f, n)
					}
					for range 5 {
						if c.start <= len(c.values) {
							c.stream(f, 0)
						}
					}
					if c.start <= len(c.values) {
						t.Fatalf("call %d: not done after many streams, which ended with %v", nth, c.ends)
					}
					for _, v := range c.values {
						// No process is killed, so what was settled is known: but for what another one has taken over meanwhile.
						if n := ran[v]; n == 0 || n > 1 && name != "finds the session taken" {
							t.Errorf("call %d: %s ran %d times", nth, v, n)
						}
					}
				})
			}
		})
	}
}

// nthCall is err for the n-th call.
func nthCall(n *int, err error) error {
	if *n--; *n == 0 {
		return err
	}
	return nil
}
