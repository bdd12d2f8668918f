package contender

import (
	"context"
	"fmt"
	"io"

	"example.com/flow"
	"example.com/flow/bench/internal/load"
)

// FlowOptions are those that all measurements of the library start from.
func FlowOptions(mode flow.OrderingMode, workers, pending int) flow.Options {
	return flow.Options{
		Ordering:     flow.OrderingOptions{Mode: mode},
		Backpressure: flow.BackpressureOptions{Capacity: workers},
		MaxPending:   pending,
	}
}

func startFlow(h Handler, workers, pending int) Executor {
	return StartFlow(h, FlowOptions(flow.OrderingKeyedFIFO, workers, pending))
}

func startFIFO(h Handler, workers, pending int) Executor {
	return StartFlow(h, FlowOptions(flow.OrderingFIFO, workers, pending))
}

// StartFlow is the library with options of one's own.
func StartFlow(h Handler, opts flow.Options) Executor {
	f, err := flow.New(func(_ context.Context, m flow.Message[*load.Message]) error {
		h(m.Value)
		return nil
	}, func(m *load.Message) string { return m.Key }, opts)
	if err != nil {
		panic(err) // only for impossible options
	}
	return Executor{
		Run: func(next func() *load.Message) {
			sum, err := f.Run(context.Background(), func() (*load.Message, error) {
				if m := next(); m != nil {
					return m, nil
				}
				return nil, io.EOF
			})
			if err != nil || sum.Succeeded != sum.Received {
				panic(fmt.Sprintf("flow: %+v %v", sum, err))
			}
		},
		Close: func() {},
	}
}
