package flow_test

import (
	"context"
	"testing"

	"example.com/flow"
)

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
			func(o flow.Options) { flow.NewEngine(newStage().handle, o.Retry) },
		},
		"handler": {flow.Options{}, func(o flow.Options) { flow.NewEngine[string](nil, o.Retry) }},
		"grace": {
			flow.Options{Shutdown: flow.ShutdownOptions{GracePeriod: -1}},
			func(o flow.Options) { flow.NewShutdownCoordinator(o.Shutdown) },
		},
	}
	for name, c := range bad {
		t.Run(name, func(t *testing.T) {
			handle := newStage().handle
			if name == "handler" {
				handle = nil
			}
			_, err := flow.New(handle, keyOf, c.opts)
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
