package main

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"example.com/flow/bench/internal/contender"
	"example.com/flow/bench/internal/load"
)

var makespanRow = &row{
	name: "makespan", unit: "ms", base: contender.Hash,
	title:      "100 workers, 10,000 messages of 0 to 5 ms",
	target:     "flow at most 1.15 × ideal",
	columns:    []string{load.Keys100.Name, load.Keys1k.Name},
	contenders: append(append([]string{}, keyed...), contender.Sub, sleepsAlone),
	measure: func(j job) (result, error) {
		keys := load.Keys100
		if j.Column == load.Keys1k.Name {
			keys = load.Keys1k
		}
		list, slots := load.Stream(keys, j.size(10_000))
		rnd := rand.New(rand.NewPCG(5, 5))
		busy := make([]time.Duration, slots)
		total := time.Duration(0)
		for i := range list {
			m := &list[i]
			m.Busy = time.Duration(1 + rnd.Int64N(int64(5*time.Millisecond)))
			busy[m.Slot] += m.Busy
			total += m.Busy
		}
		check := load.NewChecker(slots)
		h := load.Sleep(check, 0)
		start := time.Now()
		if j.Contender == sleepsAlone {
			runHands(sharedOut(list, busy), h)
		} else {
			e := contender.Named(j.Contender).Start(h, hands, len(list))
			e.Run(load.Source(list))
			e.Close()
		}
		return result{
			Value: float64(time.Since(start)) / 1e6,
			Ideal: float64(max(total/hands, slices.Max(busy))) / 1e6, Allocs: -1, Broken: check.Breaches(),
		}, nil
	},
}

const (
	hands = 100
	// sleepsAlone is what is left where there is nothing to wait for but the sleeps themselves: 100 goroutines, each with
	// keys of its own that were shared out beforehand so that all have as much to do. It shows what the timers add.
	sleepsAlone = "sleeps alone"
)

// sharedOut gives each hand the messages of some keys: the busiest first, to who has least.
func sharedOut(list []load.Message, busy []time.Duration) [hands][]*load.Message {
	order := make([]int, len(busy))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(busy[b], busy[a]) })
	var total [hands]time.Duration
	owner := make([]int, len(busy))
	for _, slot := range order {
		least := 0
		for i := range total {
			if total[i] < total[least] {
				least = i
			}
		}
		total[least] += busy[slot]
		owner[slot] = least
	}
	var share [hands][]*load.Message
	for i := range list {
		m := &list[i]
		share[owner[m.Slot]] = append(share[owner[m.Slot]], m)
	}
	return share
}

func runHands(share [hands][]*load.Message, h contender.Handler) {
	var wg sync.WaitGroup
	for _, mine := range share {
		wg.Go(func() {
			for _, m := range mine {
				h(m)
			}
		})
	}
	wg.Wait()
}
