package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"example.com/flow"
)

// execution is a handler that runs.
type execution struct{ how chan ending }

type source struct {
	n      int
	sent   []item // and not received
	items  chan item
	ctx    context.Context
	cancel context.CancelFunc
	hungUp chan struct{} // closed: recv has seen that its context has ended
	hangUp func()
	gone   chan struct{} // closed when Run has returned, as gRPC then fails recv
	final  bool          // nothing is sent after its last
	inRecv bool
	result *result
}

var errHandler = errors.New("the handler failed")

func (w *world) broken(format string, args ...any) {
	w.rules = append(w.rules, fmt.Sprintf(format, args...))
}

func (w *world) handle(ctx context.Context, m flow.Message[item]) error {
	id := run{m.Value.Stream, m.Seq}
	e := &execution{how: make(chan ending, 1)}
	w.mu.Lock()
	if w.running[id] != nil {
		w.broken("%v runs twice at a time", id)
	}
	w.running[id] = e
	if w.seen.starts == nil {
		w.seen.starts = map[start]bool{}
	}
	w.seen.starts[start{id, m.Attempt, m.Pressured}] = false
	w.mu.Unlock()
	how := endWell
	ended := ctx.Done()
	if m.Value.Deaf {
		ended = nil
	}
	select {
	case how = <-e.how:
	case <-ended:
		how = endByContext
	case <-w.freed:
	}
	w.mu.Lock()
	delete(w.running, id)
	w.mu.Unlock()
	switch how {
	case endWell:
		return nil
	case endPermanent:
		return flow.Permanent(errHandler)
	case endPanic:
		panic("the handler panics")
	case endGoexit:
		runtime.Goexit()
	case endContextError:
		return context.Canceled
	case endByContext:
		return context.Cause(ctx)
	}
	return errHandler
}

func (w *world) onFailure(_ context.Context, f *flow.Failure) flow.FailureAction {
	it := f.Value.(item)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen.asked == nil {
		w.seen.asked = map[asking]int{}
	}
	w.seen.asked[asking{it.Stream, f.Seq, f.Kind}]++
	return it.Verdict
}

func (w *world) callShutdown() {
	ctx, cancel := context.WithCancel(context.Background())
	w.shutdown = append(w.shutdown, cancel)
	go func() {
		err := w.f.Shutdown(ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.seen.shutdown = append(w.seen.shutdown, err)
	}()
}

func (w *world) open() {
	src := &source{n: len(w.sources), items: make(chan item), hungUp: make(chan struct{}), gone: make(chan struct{})}
	src.hangUp = sync.OnceFunc(func() { close(src.hungUp) })
	src.ctx, src.cancel = context.WithCancel(context.Background())
	w.sources = append(w.sources, src)
	go func() {
		sum, err := w.f.Run(src.ctx, func() (item, error) { return w.recv(src) })
		w.mu.Lock()
		defer w.mu.Unlock()
		for id := range w.running {
			if id.stream == src.n {
				w.broken("%v outlives its Run", id)
			}
		}
		src.result = &result{sum, err}
		close(src.gone)
	}()
}

func (w *world) recv(src *source) (it item, err error) {
	w.mu.Lock()
	src.inRecv = true
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		src.inRecv = false
	}()
	select {
	case it = <-src.items:
	case <-src.hungUp:
		return it, src.ctx.Err()
	case <-src.gone:
		return it, io.ErrClosedPipe
	}
	if !it.Last {
		return it, nil
	}
	switch it.How {
	case endWell:
		return it, io.EOF
	case endContextError:
		return it, context.Canceled
	case endPanic:
		panic("recv panics")
	case endGoexit:
		runtime.Goexit()
	}
	return it, errors.New("the source is broken")
}
