package flow_test

import (
	"context"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

func TestBatchCapacityZeroIsRefused(t *testing.T) {
	_, err := flow.NewBatch(succeedAll, keyOf, flow.Options{})
	wantRefusal(t, err, "Backpressure.Capacity", "0")
}

func succeedAll(context.Context, []flow.Message[string], []error) error { return nil }

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
		_, err := flow.NewBatch(succeedAll, keyOf, o)
		if c.field == "MaxPendingBytes" {
			c.field = "Ordering.KeyCapacity" // what New refuses, NewBatch does too
		}
		wantRefusal(t, err, c.field, c.value)
	}
	o := flow.Options{Backpressure: flow.BackpressureOptions{Capacity: 1}, Batch: flow.BatchOptions{MaxBytes: 5}}
	_, err := flow.NewBatch(func(context.Context, []flow.Message[int], []error) error { return nil }, nil, o)
	wantRefusal(t, err, "Batch.MaxBytes", "5")
	if _, err := flow.NewBatch[string](nil, keyOf, o); err == nil || !strings.Contains(err.Error(), "handler") {
		t.Errorf("NewBatch with a nil handler says %v", err)
	}
	o.Ordering.Mode = flow.OrderingKeyedFIFO
	if _, err := flow.NewBatch(succeedAll, nil, o); err == nil || !strings.Contains(err.Error(), "key") {
		t.Errorf("NewBatch with a nil key says %v", err)
	}
}

func TestNewRefusesBatchOptions(t *testing.T) {
	_, err := with(t, func(o *flow.Options) { o.Batch.Linger = time.Second })
	wantRefusal(t, err, "Batch", "Linger:1s")
}

func TestBatchLoneMessageGoesAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{Backpressure: flow.BackpressureOptions{Capacity: 2}})
		start(t, f, "a1")
		s.wantCalls(t, "a1")
		start(t, f, "b1")
		s.wantCalls(t, "a1 | b1")
		c := start(t, f, "c1")
		c.Send("c2")
		s.wantCalls(t, "a1 | b1")
		s.succeed(t, "a1")
		s.wantCalls(t, "b1 | c1 c2")
		s.succeed(t, "b1", "c1 c2")
	})
}

func TestBatchHotStreamLeavesRoom(t *testing.T) {
	for _, o := range []flow.Options{{}, {Ordering: keyed}, {Ordering: flow.OrderingOptions{Mode: flow.OrderingNone}}} {
		bubble(t, func(t *testing.T) {
			var s batchStage
			o.Batch.MaxMessages = 5
			f := mustNewBatch(t, s.handle, o)
			release := occupied(t, f, &s)
			start(t, f, "a1", "a2", "a3", "a4", "a5", "a6", "a7")
			start(t, f, "b1", "b2")
			start(t, f, "c1")
			release()
			s.wantCalls(t, "a1 b1 c1 a2 b2")
			s.succeed(t, "a1 b1 c1 a2 b2")
			s.wantCalls(t, "a3 a4 a5 a6 a7")
			s.succeed(t, "a3 a4 a5 a6 a7")
		})
	}
}

func TestBatchHotKeyLeavesRoom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{Ordering: keyed, Batch: flow.BatchOptions{MaxMessages: 4}})
		release := occupied(t, f, &s)
		start(t, f, "a1", "a2", "a3", "a4", "a5", "b1", "c1")
		release()
		s.wantCalls(t, "a1 b1 c1 a2")
		s.succeed(t, "a1 b1 c1 a2")
		s.wantCalls(t, "a3 a4 a5")
		s.succeed(t, "a3 a4 a5")
	})
}

func TestBatchKeyIsInOneCallOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 3}})
		c := start(t, f, "a1")
		c.Send("a2", "b1", "a3")
		s.wantCalls(t, "a1 | b1")
		start(t, f, "a1") // another stream's key
		s.wantCalls(t, "a1 | b1 | a1")
		s.succeed(t, "b1")
		s.call(t, "a1").how <- func([]error) error { return nil }
		s.wantCalls(t, "a1 | a2 a3")
		s.succeed(t, "a1", "a2 a3")
	})
}

func TestBatchKeyIsInOneCallOfTheFlowWithScopeFlow(t *testing.T) {
	for _, mode := range []flow.OrderingMode{flow.OrderingFIFO, flow.OrderingKeyedFIFO} {
		bubble(t, func(t *testing.T) {
			var s batchStage
			f := mustNewBatch(t, s.handle, flow.Options{
				Ordering:     flow.OrderingOptions{Mode: mode, Scope: flow.ScopeFlow},
				Backpressure: flow.BackpressureOptions{Capacity: 3},
			})
			one := start(t, f, "a1")
			two := start(t, f, "a2")
			one.Send("a3")
			synctest.Wait()
			two.Send("a4")
			s.wantCalls(t, "a1")
			s.succeed(t, "a1")
			s.wantCalls(t, "a2 a3 a4")
			s.give(t, "a2 a3 a4", nil, flow.ErrNotAttempted, flow.ErrNotAttempted)
			s.wantCalls(t, "a3 a4")
			s.succeed(t, "a3 a4")
		})
	}
}

func TestBatchOversizeMessageGoesAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{Batch: flow.BatchOptions{MaxBytes: 6}})
		release := occupied(t, f, &s)
		start(t, f, "a1", "a2", "aaaaaaaaa3", "a4", "a5", "a6", "a7")
		release()
		for _, want := range []string{"a1 a2", "aaaaaaaaa3", "a4 a5 a6", "a7"} {
			s.wantCalls(t, want)
			s.succeed(t, want)
		}
	})
}

func TestBatchContextHasNoStreamsValuesAndMessagesHave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		type name struct{}
		f := mustNewBatch(t, func(ctx context.Context, batch []flow.Message[string], _ []error) error {
			if _, timed := ctx.Deadline(); timed || ctx.Value(name{}) != nil {
				t.Errorf("the call's context has a stream's value or deadline")
			}
			for _, m := range batch {
				deadline, _ := m.Context().Deadline()
				if m.Context().Value(name{}) != m.Value || time.Until(deadline) != time.Minute {
					t.Errorf("%s: its context has the value %v", m.Value, m.Context().Value(name{}))
				}
			}
			return nil
		}, flow.Options{})
		for _, v := range []string{"a1", "b1"} {
			ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), name{}, v), time.Minute)
			if _, err := f.Run(ctx, given(v)); err != nil {
				t.Error(err)
			}
			cancel()
		}
	})
}

func TestMessageContextWithNewIsItsStreams(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := mustNew(t, func(ctx context.Context, m flow.Message[string]) error {
			if m.Context() != ctx {
				t.Error("the message has another context than its handler")
			}
			return nil
		}, flow.Options{})
		if _, err := f.Run(t.Context(), given("a1")); err != nil {
			t.Error(err)
		}
	})
}

func TestBatchMessageContextOutsideARun(t *testing.T) {
	m := flow.Message[string]{Seq: 1, Value: "a"}
	if m.Context() != context.Background() {
		t.Error("a literal's context is not Background")
	}
	if m != (flow.Message[string]{Seq: 1, Value: "a"}) {
		t.Error("two equal literals differ")
	}
}

func TestBatchSliceIsReused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var kept []flow.Message[string]
		var same int
		f := mustNewBatch(t, func(_ context.Context, batch []flow.Message[string], errs []error) error {
			if len(errs) != len(batch) || cap(batch) != len(batch) || cap(errs) != len(errs) {
				t.Errorf("%d messages, %d errs", len(batch), len(errs))
			}
			for _, err := range errs {
				if err != nil {
					t.Errorf("errs has %v when the call begins", err)
				}
			}
			if len(kept) > 0 && &kept[0] == &batch[0] {
				same++
			}
			kept = batch
			errs[0] = flow.Permanent(errHandler)
			return nil
		}, flow.Options{OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }})
		c := start(t, f)
		for range 3 {
			c.Send("a1")
			synctest.Wait()
		}
		c.End()
		if _, err := c.result(t); err != nil {
			t.Error(err)
		}
		if same != 2 {
			t.Errorf("%d of 2 later calls have got the slice of the first", same)
		}
		if kept[0].Value != "" {
			t.Errorf("after the call the slice still has %+v", kept[0])
		}
	})
}

func TestBatchStatsCountCallsAndMessages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		f := mustNewBatch(t, s.handle, flow.Options{Backpressure: flow.BackpressureOptions{Capacity: 1}})
		release := occupied(t, f, &s)
		start(t, f, "a1", "a2", "a3")
		release()
		start(t, f, "b1")
		st := f.Stats()
		if st.Calls != 1 || st.InFlight != 3 || st.Waiting != 1 || st.Capacity != 1 {
			t.Errorf("Stats are %+v", st)
		}
		s.succeed(t, "a1 a2 a3", "b1")
		if st := f.Stats(); st.Calls != 0 || st.InFlight != 0 {
			t.Errorf("after that Stats are %+v", st)
		}
	})
}

func TestBatchOrderingBoundsCountWhatWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s batchStage
		o := flow.Options{OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }}
		o.Ordering.Capacity = 1
		f := mustNewBatch(t, s.handle, o)
		release := occupied(t, f, &s)
		c := start(t, f, "a1", "a2", "a3")
		release()
		s.wantCalls(t, "a1 a2")
		s.succeed(t, "a1 a2")
		c.End()
		c.wantSummary(t, flow.Summary{Succeeded: 2, Rejected: 1})
	})
}

// TestBatchAllocatesNothingPerMessage allows a call a few allocations, for its context, when it is of 256 messages.
func TestBatchAllocatesNothingPerMessage(t *testing.T) {
	skipUnderRace(t)
	for _, keys := range []int{1, 1024} {
		list := records(keys)
		var read, last, done atomic.Int64
		f, err := flow.NewBatch(func(_ context.Context, batch []flow.Message[*record], _ []error) error {
			for read.Load() < min(done.Load()+800, last.Load()) { // a full batch waits when this one ends
				runtime.Gosched()
			}
			done.Add(int64(len(batch)))
			return nil
		}, recordKey, flow.Options{Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 1}})
		if err != nil {
			t.Fatal(err)
		}
		got := allocsPerMessage(100_000, func(n int) {
			read.Store(0)
			done.Store(0)
			last.Store(int64(n))
			recv := repeat(list, n)
			runAll(t, f, func() (*record, error) { read.Add(1); return recv() })
		})
		t.Logf("%d keys: %.4f allocations a message", keys, got)
		if got > 8.0/256 {
			t.Errorf("%d keys: %.4f allocations a message, want none but those of a call", keys, got)
		}
	}
}
