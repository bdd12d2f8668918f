package modeltest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// execution is a handler that runs.
type execution struct {
	item
	how   chan callEnd
	began time.Time
	cause error // why its context has ended, if it has
}

// callEnd is how a handler ends: of a batch, as a whole or else for each message.
type callEnd struct {
	how  ending
	each []ending
}

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
	causes []*flow.Failure // of handlers' contexts

	succeeded, skipped, began, attempts uint64 // messages, as the handlers and OnFailure saw them
}

var errModel = errors.New("the handler failed")

func (w *simulation) broken(format string, args ...any) {
	w.rules = append(w.rules, fmt.Sprintf(format, args...))
}

func (w *simulation) handle(ctx context.Context, m flow.Message[item]) error {
	id := run{m.Value.Stream, m.Seq}
	e := &execution{item: m.Value, how: make(chan callEnd, 1), began: time.Now()}
	w.mu.Lock()
	w.checkStart(m)
	w.running[id] = e
	if w.seen.starts == nil {
		w.seen.starts = map[startOf]bool{}
	}
	w.seen.starts[startOf{id, m.Attempt, m.Pressured}] = false
	w.mu.Unlock()
	how := w.await(ctx, e).how
	w.mu.Lock()
	w.checkEnd(ctx, e)
	w.leaveLanes(id, m.Value)
	delete(w.running, id)
	if how == endWell {
		w.sources[id.stream].succeeded++
	}
	w.mu.Unlock()
	return how.returned(ctx, m.Seq)
}

// returned is what a handler returns that ends like that. It panics or exits if that is how.
func (e ending) returned(ctx context.Context, seq uint64) error {
	switch e {
	case endContextError:
		return context.Canceled
	case endByContext, endByTimeout:
		if seq%2 == 0 {
			return ctx.Err()
		}
		return context.Cause(ctx)
	}
	return e.carryOut()
}

// carryOut is the last thing that a handler does whose attempt ends like that, its context apart.
func (e ending) carryOut() error {
	switch e {
	case endWell:
		return nil
	case endPermanent:
		return flow.Permanent(errModel)
	case endByCode:
		return status.Error(codes.InvalidArgument, "malformed")
	case endTypedNil:
		return (*testkit.NilError)(nil)
	case endPanic:
		panic("the handler panics")
	case endGoexit:
		runtime.Goexit()
	}
	return errModel
}

// await waits until a move ends the handler, or its context does, if it heeds that. One whose attempt's time is over is
// ended by simulation.pump, so that what follows of several comes one by one; run concurrently it goes at once.
func (w *simulation) await(ctx context.Context, e *execution) callEnd {
	select {
	case how := <-e.how:
		return how
	case <-w.freed:
		return callEnd{how: endFreed}
	case <-ctx.Done():
	}
	w.locked(func() { w.contextEnded(e, context.Cause(ctx)) })
	if !e.IgnoresContext && (w.concurrent || e.cause != flow.ErrAttemptTimeout) {
		return callEnd{how: endByContext}
	}
	select {
	case how := <-e.how:
		return how
	case <-w.freed:
		return callEnd{how: endFreed}
	}
}

// contextEnded notes why e's context has ended, and that an attempt's time is as long as it must be.
func (w *simulation) contextEnded(e *execution, why error) {
	e.cause = why
	limit, took := w.Options.Retry.AttemptTimeout, time.Since(e.began)
	if why == flow.ErrAttemptTimeout && took != limit || limit > 0 && took > limit {
		w.broken("after %v of %v an attempt's context has ended: %v", took, limit, why)
	}
	if f, ok := why.(*flow.Failure); ok && !w.Batches { // a call's is one of its streams'
		src := w.sources[e.Stream]
		src.causes = append(src.causes, f)
	}
}

// checkEnd holds a handler that returns against the time it had.
func (w *simulation) checkEnd(ctx context.Context, e *execution) {
	if limit := w.Options.Retry.AttemptTimeout; limit > 0 && time.Since(e.began) > limit && ctx.Err() == nil {
		w.broken("an attempt has run for %v, and its context has not ended after %v", time.Since(e.began), limit)
	}
}

// checkCauses checks that the contexts of src's handlers were ended by what Run returns.
func (w *simulation) checkCauses(src *source, err error) {
	for _, f := range src.causes {
		if err != f {
			w.broken("stream %d: a handler's context was ended by %v, Run returns %v", src.n, f, err)
		}
	}
}

// linger makes user code of a concurrent run take its time, so that what it is called between moves apart.
func (w *simulation) linger(seq uint64) {
	if w.concurrent && seq%2 == 1 {
		time.Sleep(time.Nanosecond)
	}
}

// checkStart holds a message that starts against the rules that hold at any time.
func (w *simulation) checkStart(m flow.Message[item]) {
	src, p := w.sources[m.Value.Stream], w.Options.Backpressure
	if src.attempts++; m.Attempt == 1 {
		src.began++
	}
	if src.result != nil {
		w.broken("%d starts after its Run", m.Seq)
	}
	if !w.Batches && p.Capacity > 0 && p.Policy <= flow.BackpressureHardReject && len(w.running) >= p.Capacity {
		w.broken("%d starts beyond the capacity", m.Seq)
	}
	lane := w.o.lane(&modelMessage{item: m.Value, st: &modelStream{n: src.n}})
	if lane == "" {
		return
	}
	seq := m.Seq
	var firsts error
	if w.Batches { // it may be tried again after a later one that was in the same call, but not be tried first after that
		if id := (run{src.n, m.Seq}); !w.tried[id] {
			w.tried[id] = true
			firsts = w.firsts.Enter(laneOf{stream: src.n, lane: lane}, seq, 1)
			w.firsts.Leave(laneOf{stream: src.n, lane: lane})
		}
		seq = 0
	}
	err := errors.Join(firsts,
		w.order.Enter(laneOf{stream: src.n, lane: lane}, seq, m.Attempt),
		w.order.Enter(laneOf{stream: anyStream, lane: lane}, 0, m.Attempt), // the numbers of several streams have no order
	)
	if err != nil {
		w.broken("stream %d: %v", src.n, err)
	}
}

// laneOf is a lane as one stream sees it, or as all do that share it.
type laneOf struct {
	stream int
	lane   string
}

const anyStream = -1

// leaveLanes undoes what checkStart has entered.
func (w *simulation) leaveLanes(id run, it item) {
	if lane := w.o.lane(&modelMessage{item: it, st: &modelStream{n: id.stream}}); lane != "" {
		w.order.Leave(laneOf{stream: id.stream, lane: lane})
		w.order.Leave(laneOf{stream: anyStream, lane: lane})
	}
}

func (w *simulation) onFailure(_ context.Context, f *flow.Failure) flow.FailureAction {
	it := f.Value.(item)
	w.linger(f.Seq)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen.asked == nil {
		w.seen.asked = map[askedOf]int{}
	}
	w.seen.asked[askedOf{it.Stream, f.Seq, f.Kind}]++
	if it.Verdict != flow.FailStream {
		w.sources[it.Stream].skipped++
	}
	return it.Verdict
}

func (w *simulation) callShutdown() {
	ctx, cancel := context.WithCancel(context.Background())
	w.shutdown = append(w.shutdown, cancel)
	go func() {
		err := w.f.Shutdown(ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.seen.shutdown = append(w.seen.shutdown, err)
	}()
}

func (w *simulation) open() {
	src := &source{n: len(w.sources), hungUp: make(chan struct{}), gone: make(chan struct{})}
	src.items = make(chan item)
	if w.concurrent {
		src.items = make(chan item, 8)
	}
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
		w.checkCauses(src, err)
		src.result = &result{sum, err}
		close(src.gone)
	}()
}

func (w *simulation) recv(src *source) (it item, err error) {
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
	case endTypedNil:
		return it, (*testkit.NilError)(nil)
	case endPanic:
		panic("recv panics")
	case endGoexit:
		runtime.Goexit()
	}
	return it, errors.New("the source is broken")
}
