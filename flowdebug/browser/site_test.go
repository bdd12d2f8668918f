package browser_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"example.com/flow"
	"example.com/flow/flowdebug"
	"example.com/flow/flowtest"
)

// site is a page with a Flow at work. The key of a message is what stands before its first newline. Those that begin
// with "bad" fail with the rest as their error, and are skipped; those that begin with "slow" run until the test ends;
// all others are done at once.
type site struct {
	*httptest.Server
	page   *flowdebug.Page
	source *flowtest.Source[string]
	flow   *flow.Flow[string]
	open   atomic.Int32 // streams of events
}

func newSite(t *testing.T, name string) *site {
	t.Helper()
	s := &site{page: flowdebug.New(), source: flowtest.NewSource[string](t)}
	f, err := flow.New(func(ctx context.Context, m flow.Message[string]) error {
		_, rest, _ := strings.Cut(m.Value, "\n")
		switch {
		case strings.HasPrefix(m.Key, "bad"):
			return errors.New(rest)
		case strings.HasPrefix(m.Key, "slow"):
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}, func(v string) string { key, _, _ := strings.Cut(v, "\n"); return key }, flow.Options{
		Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		Backpressure: flow.BackpressureOptions{Capacity: 64},
		OnFailure:    func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		Observer:     s.page.Observer(name),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.flow = f
	s.page.Add(name, f)
	s.Server = httptest.NewServer(s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = f.Run(ctx, s.source.Recv)
	}()
	t.Cleanup(func() {
		s.CloseClientConnections() // the tab is closed after this, and its stream of events never ends
		s.Close()
		cancel()
		<-done
	})
	return s
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("format") == "events" {
		s.open.Add(1)
		defer s.open.Add(-1)
	}
	s.page.ServeHTTP(w, r)
}
