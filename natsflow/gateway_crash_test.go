package natsflow

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/natsflow/internal/natstest"
	"github.com/nats-io/nats.go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// crashAt is a codec that ends so at message "bad-…/4".
func crashAt(c Codec[*request], in string, end func()) Codec[*request] {
	marshal, key := c.Marshal, c.Key
	crash := func(r *request, where string) {
		if body := string(r.GetPayload().GetBody()); where == in && strings.HasPrefix(body, "bad") && strings.HasSuffix(body, "/4") {
			end()
		}
	}
	c.Marshal = func(r *request) ([]byte, error) {
		crash(r, "Marshal")
		return marshal(r)
	}
	c.Key = func(r *request) string {
		crash(r, "Key")
		return key(r)
	}
	return c
}

// together is gw's Store, whose first call waits until release: what comes meanwhile is in the second one.
func together(gw *Gateway[*request]) (store flow.BatchHandler[*request], release func()) {
	wait, first := make(chan struct{}), true // calls come one after the other
	return func(ctx context.Context, batch []flow.Message[*request], errs []error) error {
		if first {
			first = false
			<-wait
		}
		return gw.Store(ctx, batch, errs)
	}, func() { close(wait) }
}

// A call of which a part is sent already when the codec crashes stores the rest all the same: nobody else's message fails,
// also where flow would not look for the one that is to blame.
func TestCrashOfACodecIsTheFailureOfItsMessageOnly(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	_, topic := testTopic(t, js, nil)
	stored := map[string]int{}
	for i, c := range []struct {
		in  string
		end func()
	}{
		{"Marshal", func() { panic("secret") }},
		{"Marshal", runtime.Goexit},
		{"Key", func() { panic(status.Error(codes.NotFound, "secret")) }},
		{"Key", runtime.Goexit},
	} {
		gw := newGateway(t, js, topic)
		gw.codec = crashAt(gw.codec, c.in, c.end)
		store, release := together(gw)
		calls := 0
		f, err := flow.NewBatch(func(ctx context.Context, batch []flow.Message[*request], errs []error) error {
			calls++
			return store(ctx, batch, errs)
		}, nil, flow.Options{
			Backpressure: flow.BackpressureOptions{Capacity: 1},
			Batch:        flow.BatchOptions{MaxMessages: 64, NoIsolation: true},
			Retry:        flow.RetryOptions{MaxAttempts: 3},
		})
		if err != nil {
			t.Fatal(err)
		}
		bad, good := fmt.Sprint("bad", i), fmt.Sprint("good", i)
		first := fmt.Sprint("first", i)
		var streams sync.WaitGroup
		streams.Go(func() { _, _ = run(f, "", 0, requests(first, 1, 1)...) })
		for f.Stats().InFlight < 1 {
			time.Sleep(time.Millisecond)
		}
		streams.Go(func() {
			s, err := run(f, "", 0, requests(bad, 1, 8)...)
			if status.Code(err) != codes.Internal || s.Committed != 3 || strings.Contains(status.Convert(err).String(), "secret") {
				t.Errorf("%+v, %v", s, err)
			}
		})
		streams.Go(func() {
			if s, err := run(f, "", 0, requests(good, 1, 20)...); err != nil {
				t.Errorf("%+v, %v", s, err)
			}
		})
		for f.Stats().Waiting < 28 {
			time.Sleep(time.Millisecond)
		}
		release()
		streams.Wait()
		if calls != 2 {
			t.Errorf("%d calls, want the first and one of all the others", calls)
		}
		stored[first], stored[bad], stored[good] = 1, 3, 20
	}
	wantUploads(t, storedMessages(t, js, topic.Name), stored)
}

// flowOfANewBatch is after how many messages the server answers a batch that begins now: many, unless another one is open.
func flowOfANewBatch(t *testing.T, p *publisher) int {
	t.Helper()
	var b fastBatch
	first := make(chan int, 1)
	e, err := p.begin(func(tail string, m *nats.Msg) {
		b.take(tail, m)
		select {
		case first <- b.flow:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.end(e)
	list := messages(1, 2)
	for i, m := range list {
		if i == 0 {
			m.Header[headerID] = []string{"/probe/" + e.id}
		}
		if err := p.ask(e, fastQuestion(i+1, operationOf(i, i == len(list)-1)), m); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case n := <-first:
		return n
	case <-time.After(10 * time.Second):
		t.Fatal("no answer")
		return 0
	}
}

func TestNoEarlyReturnLeavesABatchOpen(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	p, _ := testTopic(t, js, nil)
	if n := flowOfANewBatch(t, p); n != fastFlow {
		t.Fatalf("without another one: %d", n)
	}
	why := errors.New("why")
	for name, end := range map[string]func(cancel context.CancelCauseFunc) error{
		"an error of next": func(context.CancelCauseFunc) error { return why },
		"its panic":        func(context.CancelCauseFunc) error { panic(why) },
		"its Goexit":       func(context.CancelCauseFunc) error { runtime.Goexit(); return nil },
		"the context":      func(cancel context.CancelCauseFunc) error { cancel(why); return nil },
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		n := 0
		next := func() (m *nats.Msg, err error) {
			if n++; n == 10 {
				err = end(cancel)
			}
			m = messages(n, n)[0]
			m.Header[headerID][0] += name
			return m, err
		}
		over := make(chan struct{})
		go func() {
			defer close(over)
			defer func() { _ = recover() }()
			if _, err := p.store(ctx, next); !errors.Is(err, why) {
				t.Errorf("%s: %v", name, err)
			}
		}()
		<-over
		cancel(nil)
		if n := flowOfANewBatch(t, p); n != fastFlow {
			t.Errorf("after %s a batch is open: a new one has a flow of %d", name, n)
		}
	}
	c := natstest.Start(t, 1)
	js = natstest.Connect(t, c.URLs())
	p, _ = testTopic(t, js, nil)
	p.patience = 200 * time.Millisecond
	c.Stop(0)
	if _, err := p.store(t.Context(), eachOf(messages(1, 2*fastWindow))); !errors.Is(err, errNoProgress) {
		t.Error(err)
	}
	c.Continue(0)
	if n := flowOfANewBatch(t, p); n != fastFlow {
		t.Errorf("after silence a batch is open: a new one has a flow of %d", n)
	}
}
