package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
)

// TestStress lets Flows with random options live through random lives, in real time: messages that succeed, fail, panic,
// exit their goroutine, compute and wait for their cancellation; sources that end, break and fall silent; streams that are
// cancelled, that change the way their messages go, and that start while Shutdown and Close run. Whatever happens, order,
// capacity and conservation hold, and nothing is left.
func TestStress(t *testing.T) {
	skipIfShort(t)
	live(t, func(seed uint64) error { return newLife(seed).live() })
	if p := pprof.Lookup("goroutineleak"); p == nil {
		t.Log("goroutines that nothing can wake are not looked for: GOEXPERIMENT=goroutineleakprofile builds that in")
	} else {
		var text strings.Builder
		if err := p.WriteTo(&text, 1); err != nil {
			t.Error(err)
		} else if strings.Contains(text.String(), "example.com/flow.") {
			t.Errorf("leaked goroutines:\n%s", text.String())
		}
	}
}

// live goes through one random life after the other. FLOW_STRESS says how long (default 1s).
func live(t *testing.T, one func(seed uint64) error) {
	t.Helper()
	length := time.Second
	if v := os.Getenv("FLOW_STRESS"); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatalf("FLOW_STRESS: %v", err)
		}
	}
	lives := 0
	for end := time.Now().Add(length); time.Now().Before(end); lives++ {
		seed := rand.Uint64()
		if err := one(seed); err != nil {
			t.Fatalf("life with seed %d: %v", seed, err)
		}
	}
	t.Logf("%d lives", lives)
}

// life is one Flow's. The choices follow its seed, the schedule doesn't.
type life struct {
	mu   sync.Mutex
	rand *rand.Rand
	opts flow.Options
	flow *flow.Flow[cargo]

	inFlight atomic.Int64
	order    flowtest.OrderChecker[string] // of each key in its scope, where it has an order
	even     bool                          // most messages take the same time, and succeed
	spin     time.Duration                 // what that is at least
	wrong    error
	told     flow.Summary // what the Observer heard
}

func newLife(seed uint64) *life {
	l := &life{rand: rand.New(rand.NewPCG(seed, 0))}
	n := l.n
	l.even = n(2) == 0
	l.spin = []time.Duration{0, 300, 1000, 3000, 20_000}[n(5)]
	o := &l.opts
	o.Ordering.Mode = flow.OrderingMode(n(3))
	if o.Ordering.Mode != flow.OrderingNone {
		o.Ordering.Scope = flow.OrderingScope(n(2))
		o.Ordering.Capacity = n(2) * n(20)
	}
	if o.Ordering.Mode == flow.OrderingKeyedFIFO {
		o.Ordering.KeyCapacity = n(2) * n(8)
		o.Ordering.UnorderedEmptyKey = n(2) == 0
	}
	if o.Backpressure.Capacity = n(6); o.Backpressure.Capacity > 0 {
		o.Backpressure.Policy = flow.BackpressurePolicy(n(4))
		if o.Backpressure.Policy == flow.BackpressureQueue {
			o.Backpressure.QueueCapacity = n(2) * n(10)
		}
	}
	if o.Retry.MaxAttempts = n(4); o.Retry.MaxAttempts > 0 {
		o.Retry.Backoff = time.Duration(n(2)*n(500)) * time.Microsecond
	}
	if n(3) == 0 {
		o.Retry.AttemptTimeout = time.Duration(1+n(300)) * time.Microsecond
	}
	if o.Retry.MaxAttempts > 0 && n(3) == 0 {
		o.Retry.Budget = flow.RetryBudget{MaxTokens: 10, TokenRatio: 0.5}
	}
	o.Shutdown = flow.ShutdownOptions{GracePeriod: time.Duration(n(3)) * time.Millisecond, DrainOnClose: n(2) == 0}
	o.MaxPending = []int{0, 1, 3, 20, -1}[n(5)]
	o.MaxPendingBytes = int64(n(2)*n(31)) - 1
	if n(4) == 0 {
		o.IdleTimeout = time.Duration(1+n(2000)) * time.Microsecond
	}
	if n(2) == 0 {
		o.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { return flow.FailureAction(n(20)) % 4 }
	}
	if n(2) == 0 {
		o.Observer = l.observe
	}
	return l
}

// n is a random number below limit.
func (l *life) n(limit int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rand.IntN(max(1, limit))
}

func (l *life) blame(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong = errors.Join(l.wrong, fmt.Errorf(format, args...))
}

// cargo is a message: ten times the number of its key, plus what the handler does with it.
type cargo int

func (c cargo) key() string { return []string{"", "a", "b", "c"}[c/10%4] }

// Size is what MaxPendingBytes counts.
func (c cargo) Size() int { return int(c) % 7 }

type streamOf struct{}

func (l *life) handle(ctx context.Context, m flow.Message[cargo]) error {
	if n, limit := l.inFlight.Add(1), l.opts.Backpressure.Capacity; limit > 0 && n > int64(limit) &&
		l.opts.Backpressure.Policy <= flow.BackpressureHardReject {
		l.blame("%d in flight with capacity %d", n, limit)
	}
	defer l.inFlight.Add(-1)
	defer l.enter(ctx, m)()
	for from := time.Now(); time.Since(from) < l.spin; { // it computes
	}
	if l.even && l.n(100) > 0 {
		return nil
	}
	switch m.Value % 10 {
	case 0:
		return errHandler
	case 1:
		if l.n(8) == 0 {
			panic("stress")
		}
	case 2:
		if l.n(8) == 0 {
			runtime.Goexit()
		}
	case 3:
		time.Sleep(time.Duration(l.n(300)) * time.Microsecond)
	case 4:
		if l.n(8) == 0 {
			wait, cancel := context.WithTimeout(ctx, time.Millisecond)
			defer cancel()
			<-wait.Done()
			return ctx.Err()
		}
	}
	return nil
}

// enter notes that m runs, until the returned function is called.
func (l *life) enter(ctx context.Context, m flow.Message[cargo]) (leave func()) {
	o, key, seq := l.opts.Ordering, m.Key, m.Seq
	if o.Mode == flow.OrderingNone || key == "" && o.UnorderedEmptyKey {
		return func() {}
	}
	if o.Mode == flow.OrderingFIFO {
		key = ""
	}
	if o.Scope == flow.ScopeStream {
		key = fmt.Sprint(ctx.Value(streamOf{}), key)
	} else {
		seq = 0 // the numbers of several streams have no order
	}
	if err := l.order.Enter(key, seq, m.Attempt); err != nil {
		l.blame("%v", err)
	}
	return func() { l.order.Leave(key) }
}

func (l *life) observe(_ context.Context, e flow.Event) {
	if l.n(50) == 0 {
		l.flow.Stats()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch e.Kind {
	case flow.EventSuccess:
		l.told.Succeeded++
	case flow.EventFailure:
		l.told.Failed++
	case flow.EventReject:
		l.told.Rejected++
	case flow.EventDrop:
		l.told.Dropped++
	case flow.EventAttempt:
		if e.Attempt > 1 {
			l.told.Retried++
		}
	}
}

// live starts the Flow, its streams and its end, and checks what must hold when all is over.
func (l *life) live() error {
	f, err := flow.New(l.handle, cargo.key, l.opts)
	if err != nil {
		return fmt.Errorf("%+v: %w", l.opts, err)
	}
	l.flow = f
	var all sync.WaitGroup
	var total flow.Summary
	for id := range 1 + l.n(6) {
		late := time.Duration(l.n(3)*l.n(500)) * time.Microsecond
		all.Go(func() {
			time.Sleep(late)
			sum := l.stream(id)
			l.mu.Lock()
			defer l.mu.Unlock()
			add(&total, sum)
		})
	}
	for range l.n(3) {
		after, how := time.Duration(l.n(3000))*time.Microsecond, l.n(3)
		all.Go(func() {
			time.Sleep(after)
			if how == 0 {
				_ = f.Close()
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(how)*time.Millisecond)
			defer cancel()
			_ = f.Shutdown(ctx)
		})
	}
	over := make(chan struct{})
	go func() { all.Wait(); close(over) }()
	if every := time.Duration(l.n(2)*(1+l.n(300))) * time.Microsecond; every > 0 {
		changed := make(chan struct{})
		defer func() { <-changed }()
		go func() {
			defer close(changed)
			for mode := 0; ; mode++ {
				select {
				case <-over:
					return
				case <-time.After(every):
					flow.SetRunLength(f, 1<<(mode%8))
				}
			}
		}()
	}
	select {
	case <-over:
	case <-time.After(30 * time.Second):
		text := make([]byte, 1<<20)
		return fmt.Errorf("hangs with %+v and %+v\n%s", l.opts, f.Stats(), text[:runtime.Stack(text, true)])
	}
	if st := f.Stats(); st.Streams != 0 || st.InFlight != 0 || st.Waiting != 0 || st.ActiveKeys != 0 || differ(st.Total, total) {
		l.blame("%+v at the end, want Total %+v and nothing else", st, total)
	}
	if l.opts.Observer != nil && differ(l.told, total) {
		l.blame("the Observer heard of %+v, the Summaries say %+v", l.told, total)
	}
	if n := l.inFlight.Load(); n != 0 {
		l.blame("%d handlers outlived their Run", n)
	}
	if l.wrong != nil {
		return fmt.Errorf("%w, with %+v", l.wrong, l.opts)
	}
	return nil
}

func add(to *flow.Summary, s flow.Summary) {
	to.Succeeded += s.Succeeded
	to.Failed += s.Failed
	to.Rejected += s.Rejected
	to.Dropped += s.Dropped
	to.Retried += s.Retried
}

func differ(a, b flow.Summary) bool {
	return a.Succeeded != b.Succeeded || a.Failed != b.Failed || a.Rejected != b.Rejected || a.Dropped != b.Dropped ||
		a.Retried != b.Retried
}

// stream is one Run.
func (l *life) stream(id int) flow.Summary {
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), streamOf{}, id))
	defer cancel() // as gRPC does when the service method returns: it ends a recv that is still blocked
	if l.n(4) == 0 {
		defer time.AfterFunc(time.Duration(l.n(3000))*time.Microsecond, cancel).Stop()
	}
	messages, ending := l.n(100), l.n(5)
	if l.even {
		messages *= 20
	}
	n := 0
	recv := func() (cargo, error) {
		if n++; n <= messages {
			if l.n(10) == 0 && (!l.even || n%100 == 0) {
				time.Sleep(time.Duration(l.n(100)) * time.Microsecond)
			}
			return cargo(l.n(40)), nil
		}
		switch ending {
		case 0:
			return 0, errors.New("the source broke")
		case 1:
			select { // silent
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(2 * time.Millisecond):
			}
		}
		return 0, io.EOF
	}
	sum, err := l.flow.Run(ctx, recv)
	if sum.Received != sum.Succeeded+sum.Failed+sum.Rejected+sum.Dropped {
		l.blame("not conserved: %+v", sum)
	}
	if err == nil && len(sum.Unsettled) > 0 {
		l.blame("a good end leaves %v unsettled", sum.Unsettled)
	}
	if _, ok := errors.AsType[*flow.Failure](err); err != nil && !ok {
		l.blame("Run returned a %T", err)
	}
	return sum
}
