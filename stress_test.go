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
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
	"example.com/flow/internal/testkit"
)

// TestStress takes Flows with random options through random rounds, in real time: messages that succeed, fail, panic,
// exit their goroutine, compute and wait for their cancellation; sources that end, break and fall silent; streams that are
// cancelled, that change the way their messages go, and that start while Shutdown and Close run. Whatever happens, order,
// capacity and conservation hold, and nothing is left.
func TestStress(t *testing.T) {
	testkit.SkipIfShort(t)
	rounds(t, func(seed uint64) error { return newStressRound(seed).run() })
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

// rounds goes through one random round after the other. FLOW_STRESS says how long (default 1s).
func rounds(t *testing.T, one func(seed uint64) error) {
	t.Helper()
	length := time.Second
	if v := os.Getenv("FLOW_STRESS"); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatalf("FLOW_STRESS: %v", err)
		}
	}
	n := 0
	for end := time.Now().Add(length); time.Now().Before(end); n++ {
		seed := rand.Uint64()
		if err := one(seed); err != nil {
			t.Fatalf("round with seed %d: %v", seed, err)
		}
	}
	t.Logf("%d rounds", n)
}

// stressRound is the life of one Flow. The choices follow its seed, the schedule doesn't.
type stressRound struct {
	mu   sync.Mutex
	rand *rand.Rand
	opts flow.Options
	flow *flow.Flow[stressMessage]

	inFlight atomic.Int64
	order    flowtest.OrderChecker[string] // of each key in its scope, where it has an order
	even     bool                          // most messages take the same time, and succeed
	spin     time.Duration                 // what that is at least
	wrong    error
	told     flow.Summary // what the Observer heard
}

func newStressRound(seed uint64) *stressRound {
	l := &stressRound{rand: rand.New(rand.NewPCG(seed, 0))}
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
func (l *stressRound) n(limit int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rand.IntN(max(1, limit))
}

func (l *stressRound) failf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong = errors.Join(l.wrong, fmt.Errorf(format, args...))
}

// stressMessage is a message: ten times the number of its key, plus what the handler does with it.
type stressMessage int

func (c stressMessage) key() string { return []string{"", "a", "b", "c"}[c/10%4] }

// Size is what MaxPendingBytes counts.
func (c stressMessage) Size() int { return int(c) % 7 }

type streamOf struct{}

func (l *stressRound) handle(ctx context.Context, m flow.Message[stressMessage]) error {
	if n, limit := l.inFlight.Add(1), l.opts.Backpressure.Capacity; limit > 0 && n > int64(limit) &&
		l.opts.Backpressure.Policy <= flow.BackpressureHardReject {
		l.failf("%d in flight with capacity %d", n, limit)
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
		return testkit.ErrHandler
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
func (l *stressRound) enter(ctx context.Context, m flow.Message[stressMessage]) (leave func()) {
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
		l.failf("%v", err)
	}
	return func() { l.order.Leave(key) }
}

func (l *stressRound) observe(_ context.Context, e flow.Event) {
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

// run starts the Flow, its streams and its end, and checks what must hold when all is over.
func (l *stressRound) run() error {
	f, err := flow.New(l.handle, stressMessage.key, l.opts)
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
					if flow.SetRunLength(f, 1<<(mode%8)); mode%3 == 0 {
						flow.SetOwnRuns(f)
					}
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
	if st := f.Stats(); st.Streams != 0 || st.InFlight != 0 || st.Waiting != 0 || st.ActiveKeys != 0 || testkit.CountsDiffer(st.Total, total) {
		l.failf("%+v at the end, want Total %+v and nothing else", st, total)
	}
	if l.opts.Observer != nil && testkit.CountsDiffer(l.told, total) {
		l.failf("the Observer heard of %+v, the Summaries say %+v", l.told, total)
	}
	if n := l.inFlight.Load(); n != 0 {
		l.failf("%d handlers outlived their Run", n)
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

// stream is one Run.
func (l *stressRound) stream(id int) flow.Summary {
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
	recv := func() (stressMessage, error) {
		if n++; n <= messages {
			if l.n(10) == 0 && (!l.even || n%100 == 0) {
				time.Sleep(time.Duration(l.n(100)) * time.Microsecond)
			}
			return stressMessage(l.n(40)), nil
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
		l.failf("not conserved: %+v", sum)
	}
	if err == nil && len(sum.Unsettled) > 0 {
		l.failf("a good end leaves %v unsettled", sum.Unsettled)
	}
	if _, ok := errors.AsType[*flow.Failure](err); err != nil && !ok {
		l.failf("Run returned a %T", err)
	}
	return sum
}

// TestStressStuckOnesDelayNobody has some keys stuck for good, in their handlers or before their next try, among others
// that take any time up to ten microseconds. Every message of those runs, in whatever way they go.
func TestStressStuckOnesDelayNobody(t *testing.T) {
	testkit.SkipIfShort(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	rounds(t, func(seed uint64) error { return newStuckRound(seed).run() })
}

// stuckRound is a stream whose messages are their keys. Those of "b1" and so on block, and those of "p1" wait for a try
// that does not come.
type stuckRound struct {
	*rand.Rand
	opts    flow.Options
	blocked int
	parked  int
	odds    int           // every so many-th message is of one of those
	keys    int           // how many others there are
	each    time.Duration // what their messages take
	pause   time.Duration // of the source, each so often
	pauseAt int

	sent atomic.Int64 // messages of the others; all of them once end is set
	done atomic.Int64
	end  atomic.Pointer[context.CancelFunc]
}

func newStuckRound(seed uint64) *stuckRound {
	l := &stuckRound{Rand: rand.New(rand.NewPCG(seed, 0))}
	pick := func(of ...int) int { return of[l.IntN(len(of))] }
	runtime.GOMAXPROCS(1 + l.IntN(6))
	l.blocked, l.parked = l.IntN(4), pick(0, 0, 2, 64, 100)
	l.odds, l.keys = pick(2, 10, 100), 1+l.IntN(300)
	l.each = time.Duration(pick(0, 300, 1000, 3000, 9000))
	l.pause, l.pauseAt = time.Duration(pick(0, 1000, 10_000, 100_000)), pick(10, 100, 10_000)
	l.opts = flow.Options{
		Ordering:   flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		MaxPending: pick(-1, 1024),
		Retry:      flow.RetryOptions{MaxAttempts: 2, Backoff: time.Hour},
	}
	if l.IntN(3) > 0 {
		l.opts.Backpressure.Capacity = l.blocked + 1 + l.IntN(4)
	}
	return l
}

func (l *stuckRound) handle(ctx context.Context, m flow.Message[string]) error {
	switch m.Key[0] {
	case 'b':
		<-ctx.Done()
		return ctx.Err()
	case 'p':
		return errors.New("later")
	}
	for from := time.Now(); time.Since(from) < l.each; { // it computes
	}
	l.done.Add(1)
	l.endIfDone()
	return nil
}

// endIfDone ends the stream when all has run that can.
func (l *stuckRound) endIfDone() {
	if end := l.end.Load(); end != nil && l.done.Load() == l.sent.Load() {
		(*end)()
	}
}

func (l *stuckRound) run() error {
	f, err := flow.New(l.handle, func(key string) string { return key }, l.opts)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hangs := time.AfterFunc(20*time.Second, cancel)
	n, odd, total := 0, 0, l.IntN(1500)
	_, _ = f.Run(ctx, func() (string, error) {
		if n++; n > total {
			l.end.Store(&cancel)
			l.endIfDone()
			<-ctx.Done()
			return "", ctx.Err()
		}
		if n%l.pauseAt == 0 {
			for from := time.Now(); time.Since(from) < l.pause; {
				runtime.Gosched()
			}
			flow.SetRunLength(f, 1<<l.IntN(8))
		}
		if all := l.blocked + l.parked; all > 0 && odd < 800 && l.IntN(l.odds) == 0 {
			odd++
			if k := l.IntN(all); k < l.blocked {
				return fmt.Sprint("b", k), nil
			} else {
				return fmt.Sprint("p", k), nil
			}
		}
		l.sent.Add(1)
		return fmt.Sprint(l.IntN(l.keys)), nil
	})
	if !hangs.Stop() {
		return fmt.Errorf("%d of %d have run beside %d blocked and %d parked keys, on %d processors, with %+v",
			l.done.Load(), l.sent.Load(), l.blocked, l.parked, runtime.GOMAXPROCS(0), l.opts)
	}
	return nil
}

// Messages that come quickly are run as they were received. One of a key that is busy elsewhere must not hold up what lies
// behind it there.
func TestMessageOfABusyKeyHoldsUpNothingThatWasReceivedAfterIt(t *testing.T) {
	for _, maxPending := range []int{256, 1024, 4096} {
		t.Run(fmt.Sprint(maxPending), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const rounds, quick = 60, 3000
				var ran atomic.Int64
				f := testkit.New(t, func(_ context.Context, m flow.Message[string]) error {
					if m.Key == "slow" {
						time.Sleep(time.Hour)
					} else {
						ran.Add(1)
					}
					return nil
				}, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}, MaxPending: maxPending})
				var values []string
				for range rounds {
					for i := range quick {
						values = append(values, string(rune('a'+i%26)))
					}
					values = append(values, "slow")
				}
				c := testkit.Start(t, f, append(values, "last")...)
				c.End()
				time.Sleep(rounds * time.Millisecond) // each that stands still may hold up the others once
				if n := ran.Load(); n != rounds*quick+1 {
					t.Errorf("%d of %d messages of quick keys have run", n, rounds*quick+1)
				}
				time.Sleep(rounds * time.Hour)
				if sum, err := c.Result(t); err != nil || sum.Succeeded != rounds*(quick+1)+1 {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
			})
		})
	}
}
