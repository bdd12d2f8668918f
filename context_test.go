package flow_test

import (
	"context"
	"sync"
	"testing"

	"example.com/flow"
)

// What a stream has made of its context must not stay registered there: Run's context may live for ever.
func TestContextThatAStreamGaveAwayEndsWithIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		var contexts []context.Context
		keep := func(ctx context.Context) {
			mu.Lock()
			defer mu.Unlock()
			contexts = append(contexts, ctx)
		}
		f := mustNew(t, func(ctx context.Context, _ flow.Message[string]) error { keep(ctx); return nil },
			flow.Options{Observer: func(ctx context.Context, e flow.Event) {
				if e.Kind == flow.EventStreamStart {
					keep(ctx)
				}
			}})
		if _, err := f.Run(t.Context(), given("a1", "b1")); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		_, err := f.Run(t.Context(), given("a1")) // refused
		failureOf(t, err, flow.FailureShutdown)
		if len(contexts) != 4 {
			t.Fatalf("%d contexts, want 4", len(contexts))
		}
		for i, ctx := range contexts {
			if ctx.Err() == nil {
				t.Errorf("context %d has not ended", i)
			}
		}
	})
}

type unsized struct{ panics bool }

func (u unsized) Size() int {
	if u.panics {
		panic("secret")
	}
	return 10
}

func TestPanickingSizeIsAFailedMessageWithNoAttempts(t *testing.T) {
	for how, o := range map[string]flow.Options{"Queue": {}, "HardReject": {
		Backpressure: flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureHardReject}}} {
		bubble(t, func(t *testing.T) {
			o.MaxPendingBytes = 10
			f, err := flow.New(func(context.Context, flow.Message[unsized]) error { return nil }, nil, o)
			if err != nil {
				t.Fatal(err)
			}
			ch := make(chan unsized, 1)
			ch <- unsized{panics: true}
			sum, err := f.Run(t.Context(), flow.FromChan(t.Context(), ch))
			if fault := failureOf(t, err, flow.FailureInternal); fault.Seq != 1 || fault.Attempts != 0 {
				t.Errorf("%s: failure is %+v", how, fault)
			}
			if sum.Received != 1 || sum.Failed != 1 {
				t.Errorf("%s: summary is %+v", how, sum)
			}
			close(ch) // the receiver of the failed stream may still be in it
		})
	}
}

func TestCrashOfOnFailureOnReceiptNamesItsMessage(t *testing.T) {
	for how, crash := range crashes {
		bubble(t, func(t *testing.T) {
			s := newStage()
			c := start(t, mustNew(t, s.handle, flow.Options{
				Ordering:  flow.OrderingOptions{Capacity: 1},
				OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { crash(); return flow.SkipMessage },
			}), "a1", "a2", "a3")
			_, err := c.result(t)
			if f := failureOf(t, err, flow.FailureInternal); f.Seq != 3 || f.Value != "a3" {
				t.Errorf("%s: failure is %+v, want that of message 3", how, f)
			}
		})
	}
}
