package contender

import (
	"sync"

	"github.com/alitto/pond/v2"
	"github.com/gammazero/workerpool"
	"github.com/panjf2000/ants/v2"
	"github.com/sourcegraph/conc/stream"
	"golang.org/x/sync/errgroup"

	"example.com/flow/bench/internal/load"
)

// startStream runs the work side by side; only the callbacks, here empty, are in order.
func startStream(h Handler, workers, _ int) Executor {
	s := stream.New().WithMaxGoroutines(workers)
	nothing := func() {}
	return pushing(func(m *load.Message) {
		s.Go(func() stream.Callback { h(m); return nothing })
	}, s.Wait)
}

func startPond(h Handler, workers, pending int) Executor {
	p := pond.NewPool(workers, pond.WithQueueSize(pending))
	return pushing(func(m *load.Message) { _ = p.Go(func() { h(m) }) }, p.StopAndWait)
}

// startSubpools keeps order by a pool of one worker for each key, which are never given back.
func startSubpools(h Handler, workers, _ int) Executor {
	p := pond.NewPool(workers)
	var mu sync.Mutex
	keys := make(map[string]pond.Pool)
	return pushing(func(m *load.Message) {
		mu.Lock()
		sub := keys[m.Key]
		if sub == nil {
			sub = p.NewSubpool(1)
			keys[m.Key] = sub
		}
		mu.Unlock()
		_ = sub.Go(func() { h(m) })
	}, func() {
		for _, sub := range keys {
			sub.StopAndWait()
		}
		p.StopAndWait()
	})
}

func startAnts(h Handler, workers, _ int) Executor {
	var wg sync.WaitGroup
	p, err := ants.NewPoolWithFuncGeneric(workers, func(m *load.Message) { h(m); wg.Done() })
	if err != nil {
		panic(err) // only for impossible options
	}
	return pushing(func(m *load.Message) {
		wg.Add(1)
		if err := p.Invoke(m); err != nil {
			panic(err)
		}
	}, func() { wg.Wait(); p.Release() })
}

func startWorkerpool(h Handler, workers, _ int) Executor {
	p := workerpool.New(workers)
	return pushing(func(m *load.Message) { p.Submit(func() { h(m) }) }, p.StopWait)
}

func startErrgroup(h Handler, workers, _ int) Executor {
	var g errgroup.Group
	g.SetLimit(workers)
	return pushing(func(m *load.Message) {
		g.Go(func() error { h(m); return nil })
	}, func() { _ = g.Wait() })
}
