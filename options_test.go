package flow_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
	"pgregory.net/rapid"
)

// reporter is what *testing.T and *rapid.T have in common here.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
}

// wantRefusal says that err is New's and names field and value.
func wantRefusal(t reporter, err error, field, value string) {
	t.Helper()
	if err == nil {
		t.Errorf("New accepted %s = %s", field, value)
		return
	}
	if text := err.Error(); !strings.HasPrefix(text, "flow: ") || !strings.Contains(text, field) || !strings.Contains(text, value) {
		t.Errorf("New says %q, which does not name %s and %s", text, field, value)
	}
}

// with is New with the options that set has changed. A panic in New is a failure of the test.
func with(t reporter, set func(*flow.Options)) (*flow.Flow[string], error) {
	t.Helper()
	defer func() {
		if v := recover(); v != nil {
			t.Errorf("New panicked: %v", v)
		}
	}()
	var o flow.Options
	set(&o)
	return flow.New(testkit.Succeed, testkit.KeyOf, o)
}

func TestNewRefusesWhatCantMeanAnything(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	queue, reject := flow.BackpressureQueue, flow.BackpressureHardReject
	for _, c := range []struct {
		field, value string
		set          func(*flow.Options)
	}{
		// negatives
		{"IdleTimeout", "-1s", func(o *flow.Options) { o.IdleTimeout = -time.Second }},
		{"Ordering.Capacity", "-2", func(o *flow.Options) { o.Ordering.Capacity = -2 }},
		{"Ordering.KeyCapacity", "-3", func(o *flow.Options) { o.Ordering = flow.OrderingOptions{Mode: 1, KeyCapacity: -3} }},
		{"Backpressure.Capacity", "-4", func(o *flow.Options) { o.Backpressure.Capacity = -4 }},
		{"Backpressure.QueueCapacity", "-5", func(o *flow.Options) {
			o.Backpressure = flow.BackpressureOptions{Policy: queue, Capacity: 1, QueueCapacity: -5}
		}},
		{"Retry.MaxAttempts", "-6", func(o *flow.Options) { o.Retry.MaxAttempts = -6 }},
		{"Retry.Backoff", "-1ms", func(o *flow.Options) { o.Retry.Backoff = -time.Millisecond }},
		{"Retry.MaxBackoff", "-2ms", func(o *flow.Options) { o.Retry.MaxBackoff = -2 * time.Millisecond }},
		{"Retry.AttemptTimeout", "-3ms", func(o *flow.Options) { o.Retry.AttemptTimeout = -3 * time.Millisecond }},
		{"Retry.Multiplier", "-2", func(o *flow.Options) { o.Retry.Multiplier = -2 }},
		{"Retry.Jitter", "-0.5", func(o *flow.Options) { o.Retry.Jitter = -0.5 }},
		{"Retry.Budget.MaxTokens", "-1", func(o *flow.Options) { o.Retry.Budget.MaxTokens = -1 }},
		{"Retry.Budget.TokenRatio", "-0.1", func(o *flow.Options) {
			o.Retry.Budget = flow.RetryBudget{MaxTokens: 10, TokenRatio: -0.1}
		}},
		{"Shutdown.GracePeriod", "-1m0s", func(o *flow.Options) { o.Shutdown.GracePeriod = -time.Minute }},
		// unknown enum values
		{"Ordering.Mode", "OrderingMode(3)", func(o *flow.Options) { o.Ordering.Mode = 3 }},
		{"Ordering.Mode", "OrderingMode(-1)", func(o *flow.Options) { o.Ordering.Mode = -1 }},
		{"Ordering.Scope", "OrderingScope(2)", func(o *flow.Options) { o.Ordering.Scope = 2 }},
		{"Ordering.Scope", "OrderingScope(-1)", func(o *flow.Options) { o.Ordering.Scope = -1 }},
		{"Backpressure.Policy", "BackpressurePolicy(4)", func(o *flow.Options) { o.Backpressure.Policy = 4 }},
		{"Backpressure.Policy", "BackpressurePolicy(-1)", func(o *flow.Options) { o.Backpressure.Policy = -1 }},
		// what the mode has no use for
		{"Ordering.KeyCapacity", "7", func(o *flow.Options) { o.Ordering.KeyCapacity = 7 }},
		{"Ordering.KeyCapacity", "7", func(o *flow.Options) { o.Ordering = flow.OrderingOptions{Mode: 2, KeyCapacity: 7} }},
		{"Ordering.UnorderedEmptyKey", "true", func(o *flow.Options) { o.Ordering.UnorderedEmptyKey = true }},
		{"Ordering.UnorderedEmptyKey", "true", func(o *flow.Options) {
			o.Ordering = flow.OrderingOptions{Mode: flow.OrderingNone, UnorderedEmptyKey: true}
		}},
		{"Ordering.Capacity", "8", func(o *flow.Options) { o.Ordering = flow.OrderingOptions{Mode: 2, Capacity: 8} }},
		{"Ordering.Scope", "ScopeFlow", func(o *flow.Options) {
			o.Ordering = flow.OrderingOptions{Mode: flow.OrderingNone, Scope: flow.ScopeFlow}
		}},
		// what the policy has no use for
		{"Backpressure.QueueCapacity", "9", func(o *flow.Options) {
			o.Backpressure = flow.BackpressureOptions{Policy: reject, Capacity: 1, QueueCapacity: 9}
		}},
		{"Backpressure.QueueCapacity", "9", func(o *flow.Options) { o.Backpressure.QueueCapacity = 9 }},
		{"Backpressure.Policy", "BackpressureHardReject", func(o *flow.Options) { o.Backpressure.Policy = 1 }},
		{"Backpressure.Policy", "BackpressureSoftAllow", func(o *flow.Options) { o.Backpressure.Policy = 2 }},
		{"Backpressure.Policy", "BackpressureSoftAllowWithSignal", func(o *flow.Options) { o.Backpressure.Policy = 3 }},
		// numbers that are none, or out of range
		{"Retry.Budget.TokenRatio", "0.5", func(o *flow.Options) { o.Retry.Budget.TokenRatio = 0.5 }},
		{"Retry.Multiplier", "NaN", func(o *flow.Options) { o.Retry.Multiplier = nan }},
		{"Retry.Multiplier", "Inf", func(o *flow.Options) { o.Retry.Multiplier = inf }},
		{"Retry.Multiplier", "0.5", func(o *flow.Options) { o.Retry.Multiplier = 0.5 }},
		{"Retry.Jitter", "NaN", func(o *flow.Options) { o.Retry.Jitter = nan }},
		{"Retry.Jitter", "1.01", func(o *flow.Options) { o.Retry.Jitter = 1.01 }},
		{"Retry.Budget.MaxTokens", "NaN", func(o *flow.Options) { o.Retry.Budget.MaxTokens = nan }},
		{"Retry.Budget.TokenRatio", "NaN", func(o *flow.Options) {
			o.Retry.Budget = flow.RetryBudget{MaxTokens: 10, TokenRatio: nan}
		}},
		{"Retry.MaxBackoff", "1s", func(o *flow.Options) {
			o.Retry = flow.RetryOptions{Backoff: time.Minute, MaxBackoff: time.Second}
		}},
		// a budget that never recovers
		{"Retry.Budget.MaxTokens", "10", func(o *flow.Options) {
			o.Retry = flow.RetryOptions{MaxAttempts: 2, Budget: flow.RetryBudget{MaxTokens: 10}}
		}},
		// what has no effect without retries
		{"Retry.Backoff", "1s", func(o *flow.Options) { o.Retry.Backoff = time.Second }},
		{"Retry.MaxBackoff", "1s", func(o *flow.Options) { o.Retry.MaxBackoff = time.Second }},
		{"Retry.Multiplier", "2", func(o *flow.Options) { o.Retry.Multiplier = 2 }},
		{"Retry.Jitter", "0.5", func(o *flow.Options) { o.Retry.Jitter = 0.5 }},
		{"Retry.Retryable", "MaxAttempts", func(o *flow.Options) { o.Retry.Retryable = func(error) bool { return true } }},
		{"Retry.Budget", "{10 0.5}", func(o *flow.Options) { o.Retry.Budget = flow.RetryBudget{MaxTokens: 10, TokenRatio: 0.5} }},
	} {
		f, err := with(t, c.set)
		wantRefusal(t, err, c.field, c.value)
		if err != nil && f != nil {
			t.Errorf("%s: New returned a Flow with its error", c.field)
		}
	}
}

func TestNewAcceptsTheEdgesOfWhatMeansSomething(t *testing.T) {
	for name, set := range map[string]func(*flow.Options){
		"nothing":             func(*flow.Options) {},
		"negative MaxPending": func(o *flow.Options) { o.MaxPending = -1 },
		"multiplier 1":        func(o *flow.Options) { o.Retry = flow.RetryOptions{MaxAttempts: 2, Multiplier: 1} },
		"jitter 0 and 1":      func(o *flow.Options) { o.Retry = flow.RetryOptions{MaxAttempts: 2, Jitter: 1} },
		"MaxBackoff alone":    func(o *flow.Options) { o.Retry = flow.RetryOptions{MaxAttempts: 2, MaxBackoff: 1} },
		"MaxBackoff = Backoff": func(o *flow.Options) {
			o.Retry = flow.RetryOptions{MaxAttempts: 2, Backoff: time.Second, MaxBackoff: time.Second}
		},
		"in so many words no retry": func(o *flow.Options) {
			o.Retry = flow.RetryOptions{
				MaxAttempts: 1, Backoff: time.Second, MaxBackoff: time.Minute, Multiplier: 2, Jitter: 0.5,
				Retryable: func(error) bool { return true }, Budget: flow.RetryBudget{MaxTokens: 10, TokenRatio: 0.1},
			}
		},
		"a time limit without retries": func(o *flow.Options) { o.Retry.AttemptTimeout = time.Second },
		"FIFO over the Flow":           func(o *flow.Options) { o.Ordering = flow.OrderingOptions{Scope: flow.ScopeFlow, Capacity: 1} },
		"queue":                        func(o *flow.Options) { o.Backpressure = flow.BackpressureOptions{Capacity: 1, QueueCapacity: 1} },
	} {
		if _, err := with(t, set); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewRefusesNilFunctions(t *testing.T) {
	_, err := flow.New(nil, testkit.KeyOf, flow.Options{})
	wantRefusal(t, err, "handler", "nil")
	_, err = flow.New(testkit.Succeed, nil, flow.Options{Ordering: testkit.Keyed})
	wantRefusal(t, err, "key", "nil")
}

// drawOdd draws a good value mostly, and an odd one in about one of forty.
func drawOdd[T any](t *rapid.T, name string, good, odd []T) T {
	if rapid.IntRange(0, 39).Draw(t, name+" is odd") == 39 {
		return rapid.SampledFrom(odd).Draw(t, name)
	}
	return rapid.SampledFrom(good).Draw(t, name)
}

// drawAnyOptions draws from what is good, what is bad and what is odd, each field for itself.
func drawAnyOptions(t *rapid.T) flow.Options {
	number := func(name string) int {
		return drawOdd(t, name, []int{0, 0, 0, 1, 3}, []int{-1, math.MinInt, math.MaxInt})
	}
	enum := func(name string) int { return drawOdd(t, name, []int{0, 1}, []int{2, 3, 4, -1}) }
	float := func(name string) float64 {
		return drawOdd(t, name, []float64{0, 1}, []float64{0.5, 1.5, 1e300, -1, math.NaN(), math.Inf(1), math.Inf(-1)})
	}
	span := func(name string) time.Duration {
		return drawOdd(t, name, []time.Duration{0, time.Second}, []time.Duration{1, math.MaxInt64, -1, math.MinInt64})
	}
	return flow.Options{
		MaxPending: number("MaxPending"), MaxPendingBytes: int64(number("MaxPendingBytes")), IdleTimeout: span("IdleTimeout"),
		Ordering: flow.OrderingOptions{
			Mode: flow.OrderingMode(enum("Mode")), Scope: flow.OrderingScope(enum("Scope")), Capacity: number("Capacity"),
			KeyCapacity: number("KeyCapacity"), UnorderedEmptyKey: rapid.Bool().Draw(t, "UnorderedEmptyKey"),
		},
		Backpressure: flow.BackpressureOptions{
			Policy: flow.BackpressurePolicy(enum("Policy")), Capacity: number("slots"), QueueCapacity: number("QueueCapacity"),
		},
		Retry: flow.RetryOptions{
			MaxAttempts: number("MaxAttempts"), Backoff: span("Backoff"), MaxBackoff: span("MaxBackoff"),
			Multiplier: float("Multiplier"), Jitter: float("Jitter"), AttemptTimeout: span("AttemptTimeout"),
			Budget: flow.RetryBudget{MaxTokens: float("MaxTokens"), TokenRatio: float("TokenRatio")},
		},
		Shutdown: flow.ShutdownOptions{GracePeriod: span("GracePeriod"), DrainOnClose: rapid.Bool().Draw(t, "DrainOnClose")},
	}
}

func TestAnyOptionsAreRefusedOrGiveAFlowThatWorks(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		o := drawAnyOptions(r)
		o.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }
		var complaint string
		synctest.Test(t, func(t *testing.T) { // else IdleTimeout 1 might be over in real time
			f, err := with(r, func(to *flow.Options) { *to = o })
			if err != nil {
				return
			}
			sum, err := f.Run(t.Context(), testkit.Given("a1", "b1", "a2", "1", "2", "b2"))
			if err != nil || sum.Received != 6 || sum.Succeeded+sum.Rejected != 6 || sum.Committed != 6 {
				complaint = fmt.Sprintf("Run() = %+v, %v", sum, err)
			}
			if err := f.Shutdown(t.Context()); err != nil {
				complaint = fmt.Sprintf("Shutdown() = %v", err)
			}
			if _, err = f.Run(t.Context(), testkit.Given("a1")); flow.ClassifyFailure(err) != flow.FailureShutdown {
				complaint = fmt.Sprintf("Run() after Shutdown() = %v", err)
			}
		})
		if complaint != "" {
			r.Fatal(complaint)
		}
	})
}

func TestPartConstructorsPanicWithTheTextOfNew(t *testing.T) {
	bad := map[string]struct {
		opts flow.Options
		part func(flow.Options)
	}{
		"capacity":     {flow.Options{Ordering: flow.OrderingOptions{Capacity: -1}}, func(o flow.Options) { flow.NewFIFO(o.Ordering) }},
		"scope":        {flow.Options{Ordering: flow.OrderingOptions{Scope: 9}}, func(o flow.Options) { flow.NewFIFO(o.Ordering) }},
		"key capacity": {flow.Options{Ordering: flow.OrderingOptions{KeyCapacity: 1}}, func(o flow.Options) { flow.NewFIFO(o.Ordering) }},
		"empty key":    {flow.Options{Ordering: flow.OrderingOptions{UnorderedEmptyKey: true}}, func(o flow.Options) { flow.NewFIFO(o.Ordering) }},
		"keyed": {
			flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, KeyCapacity: -3}},
			func(o flow.Options) { flow.NewKeyedFIFO(o.Ordering) },
		},
		"policy": {
			flow.Options{Backpressure: flow.BackpressureOptions{Policy: 9}},
			func(o flow.Options) { flow.NewPressureController(o.Backpressure) },
		},
		"queue capacity": {
			flow.Options{Backpressure: flow.BackpressureOptions{QueueCapacity: 5}},
			func(o flow.Options) { flow.NewPressureController(o.Backpressure) },
		},
		"attempts": {
			flow.Options{Retry: flow.RetryOptions{MaxAttempts: -1}},
			func(o flow.Options) { flow.NewEngine(testkit.NewManualHandler().Handle, o.Retry) },
		},
		"handler": {flow.Options{}, func(o flow.Options) { flow.NewEngine[string](nil, o.Retry) }},
		"grace": {
			flow.Options{Shutdown: flow.ShutdownOptions{GracePeriod: -1}},
			func(o flow.Options) { flow.NewShutdownCoordinator(o.Shutdown) },
		},
	}
	for name, c := range bad {
		t.Run(name, func(t *testing.T) {
			handle := testkit.NewManualHandler().Handle
			if name == "handler" {
				handle = nil
			}
			_, err := flow.New(handle, testkit.KeyOf, c.opts)
			if err == nil {
				t.Fatal("New accepts it")
			}
			defer func() {
				if v := recover(); v != err.Error() {
					t.Errorf("panicked with %v, want %q", v, err)
				}
			}()
			c.part(c.opts)
		})
	}
}

func TestReceiverNeedsAGateAndAnEngine(t *testing.T) {
	handle := func(context.Context, flow.Message[string]) error { return nil }
	for name, construct := range map[string]func(){
		"no gate":   func() { flow.NewReceiver(nil, flow.NewEngine(handle, flow.RetryOptions{})) },
		"no engine": func() { flow.NewReceiver[string](flow.NewGate(nil, nil, nil), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			construct()
		})
	}
}

func TestBatchCapacityZeroIsRefused(t *testing.T) {
	_, err := flow.NewBatch(testkit.SucceedAll, testkit.KeyOf, flow.Options{})
	wantRefusal(t, err, "Backpressure.Capacity", "0")
}

func TestNewBatchRefusesWhatCantBeHadWithBatches(t *testing.T) {
	for _, c := range []struct {
		field, value string
		set          func(*flow.Options)
	}{
		{"Batch.MaxMessages", "-1", func(o *flow.Options) { o.Batch.MaxMessages = -1 }},
		{"Batch.MaxBytes", "-2", func(o *flow.Options) { o.Batch.MaxBytes = -2 }},
		{"Batch.Linger", "-3ms", func(o *flow.Options) { o.Batch.Linger = -3 * time.Millisecond }},
		{"Backpressure.Policy", "BackpressureHardReject", func(o *flow.Options) { o.Backpressure.Policy = flow.BackpressureHardReject }},
		{"Backpressure.Policy", "BackpressureSoftAllow", func(o *flow.Options) { o.Backpressure.Policy = flow.BackpressureSoftAllow }},
		{"Backpressure.Policy", "BackpressureSoftAllowWithSignal", func(o *flow.Options) {
			o.Backpressure.Policy = flow.BackpressureSoftAllowWithSignal
		}},
		{"Backpressure.QueueCapacity", "7", func(o *flow.Options) { o.Backpressure.QueueCapacity = 7 }},
		{"Ordering.Resolver", "a resolver", func(o *flow.Options) { o.Ordering.Resolver = flow.NewFIFO(flow.OrderingOptions{}) }},
		{"MaxPendingBytes", "-4", func(o *flow.Options) {
			o.MaxPendingBytes, o.IdleTimeout = 0, 0
			o.Shutdown.GracePeriod = 0
			o.Ordering.KeyCapacity = -4
		}},
	} {
		o := flow.Options{Backpressure: flow.BackpressureOptions{Capacity: 1}}
		c.set(&o)
		_, err := flow.NewBatch(testkit.SucceedAll, testkit.KeyOf, o)
		if c.field == "MaxPendingBytes" {
			c.field = "Ordering.KeyCapacity" // what New refuses, NewBatch does too
		}
		wantRefusal(t, err, c.field, c.value)
	}
	o := flow.Options{Backpressure: flow.BackpressureOptions{Capacity: 1}, Batch: flow.BatchOptions{MaxBytes: 5}}
	_, err := flow.NewBatch(func(context.Context, []flow.Message[int], []error) error { return nil }, nil, o)
	wantRefusal(t, err, "Batch.MaxBytes", "5")
	if _, err := flow.NewBatch[string](nil, testkit.KeyOf, o); err == nil || !strings.Contains(err.Error(), "handler") {
		t.Errorf("NewBatch with a nil handler says %v", err)
	}
	o.Ordering.Mode = flow.OrderingKeyedFIFO
	if _, err := flow.NewBatch(testkit.SucceedAll, nil, o); err == nil || !strings.Contains(err.Error(), "key") {
		t.Errorf("NewBatch with a nil key says %v", err)
	}
}

func TestNewRefusesBatchOptions(t *testing.T) {
	_, err := with(t, func(o *flow.Options) { o.Batch.Linger = time.Second })
	wantRefusal(t, err, "Batch", "Linger:1s")
}
