package proof

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"example.com/flow"
)

// A Gate under concurrent callers does nothing that it could not do under one caller at a time. What it does to one is
// said by gateModel: an Admission is the exclusive hold of a key and one of Capacity slots. Close has two moments, both
// before it returns: from the first newcomers are refused, from the second nobody gets in.
//
// Histories under HardReject have no Close: a caller that has got a slot when Close comes, and is refused for that, has
// held the slot for a moment, in which another may have been refused for pressure.

// call is an operation's input: what a caller asks for.
type call struct {
	what      string // "admit", "release", "closing" or "closed"
	key       string
	cancelled bool // its context ended meanwhile
}

// state is the sequential gate.
type state struct {
	closing, closed bool
	inUse           int
	held            [keys]bool
}

const (
	keys    = 3
	callers = 4
)

func keyName(k int) string { return string(rune('a' + k)) }

func gateModel(o flow.BackpressureOptions) porcupine.Model {
	return porcupine.Model{
		Init:  func() any { return state{} },
		Equal: func(a, b any) bool { return a == b },
		Step: func(from, input, output any) (bool, any) {
			s, in, kind := from.(state), input.(call), output.(flow.FailureKind)
			switch in.what {
			case "closing":
				s.closing = true
				return true, s
			case "closed":
				s.closed = true
				return s.closing, s
			case "release":
				k := in.key[0] - 'a'
				legal := s.held[k] && s.inUse > 0
				s.held[k] = false
				s.inUse--
				return legal, s
			}
			k := in.key[0] - 'a'
			switch kind {
			case flow.FailureNone:
				legal := !s.closed && !s.held[k] && s.inUse < o.Capacity
				s.held[k] = true
				s.inUse++
				return legal, s
			case flow.FailureBackpressure:
				return o.Policy == flow.BackpressureHardReject && s.inUse >= o.Capacity, s
			case flow.FailureContextCancelled:
				return in.cancelled, s
			case flow.FailureShutdown:
				return s.closing, s
			}
			return false, s
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %v", in, out) },
	}
}

// history collects operations with the times of their call and return, on one logical clock.
type history struct {
	clock atomic.Int64
	mu    sync.Mutex
	ops   []porcupine.Operation
}

func (h *history) note(client int, called int64, in call, err error) {
	op := porcupine.Operation{
		ClientId: client, Input: in, Call: called, Output: flow.ClassifyFailure(err), Return: h.clock.Add(1),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op)
}

func TestGateIsLinearizable(t *testing.T) {
	const histories = 1500
	for _, o := range []flow.BackpressureOptions{
		{Capacity: 1}, {Capacity: 2}, {Capacity: 2, Policy: flow.BackpressureHardReject},
	} {
		t.Run(fmt.Sprintf("%v of %d", o.Policy, o.Capacity), func(t *testing.T) {
			seen := map[flow.FailureKind]int{}
			for range histories {
				h := record(rand.New(rand.NewPCG(rand.Uint64(), 0)), o)
				for _, op := range h.ops {
					seen[op.Output.(flow.FailureKind)]++
				}
				if !porcupine.CheckOperations(gateModel(o), h.ops) {
					for _, op := range h.ops {
						t.Logf("client %d from %d to %d: %+v -> %v", op.ClientId, op.Call, op.Return, op.Input, op.Output)
					}
					t.Fatal("no order of these operations is one that the sequential gate allows")
				}
			}
			t.Log(seen)
			last := flow.FailureShutdown
			if o.Policy == flow.BackpressureHardReject {
				last = flow.FailureBackpressure
			}
			for _, kind := range []flow.FailureKind{flow.FailureNone, flow.FailureContextCancelled, last} {
				if seen[kind] == 0 {
					t.Errorf("no history has a %v: the check says little", kind)
				}
			}
		})
	}
}

// record lets a few callers loose on a new gate and returns what they did.
func record(r *rand.Rand, o flow.BackpressureOptions) *history {
	h := new(history)
	end := flow.NewShutdownCoordinator(flow.ShutdownOptions{})
	gate := flow.NewGate(flow.NewKeyedFIFO(flow.OrderingOptions{}), flow.NewPressureController(o), end)
	var all sync.WaitGroup
	for client := range callers {
		r := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
		all.Go(func() {
			for range 2 + r.IntN(3) {
				h.pass(client, gate, r)
			}
		})
	}
	if o.Policy == flow.BackpressureQueue && r.IntN(2) == 0 {
		spins := r.IntN(40)
		all.Go(func() {
			yield(spins)
			called := h.clock.Add(1)
			err := end.Close()
			h.note(callers, called, call{what: "closing"}, err)
			h.note(callers+1, called, call{what: "closed"}, err)
		})
	}
	all.Wait()
	return h
}

// pass is one caller's Admit and, if it was let in, Release.
func (h *history) pass(client int, gate *flow.Gate, r *rand.Rand) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	in := call{what: "admit", key: keyName(r.IntN(keys))}
	if r.IntN(4) == 0 {
		in.cancelled = true
		if r.IntN(2) == 0 {
			cancel()
		} else {
			defer time.AfterFunc(time.Duration(r.IntN(20))*time.Microsecond, cancel).Stop()
		}
	}
	yield(r.IntN(4))
	called := h.clock.Add(1)
	a, err := gate.Admit(ctx, in.key)
	h.note(client, called, in, err)
	if err != nil {
		return
	}
	yield(r.IntN(10))
	called = h.clock.Add(1)
	a.Release()
	h.note(client, called, call{what: "release", key: in.key}, nil)
}

func yield(n int) {
	for range n {
		runtime.Gosched()
	}
}

func TestTheModelRefusesWhatNoGateMayDo(t *testing.T) {
	o := flow.BackpressureOptions{Capacity: 1}
	admit := func(client int, from, to int64, key string, out flow.FailureKind) porcupine.Operation {
		return porcupine.Operation{ClientId: client, Input: call{what: "admit", key: key}, Call: from, Return: to, Output: out}
	}
	for _, c := range []struct {
		name string
		ops  []porcupine.Operation
	}{
		{"two in one key", []porcupine.Operation{admit(0, 1, 2, "a", flow.FailureNone), admit(1, 3, 4, "a", flow.FailureNone)}},
		{"two in one slot", []porcupine.Operation{admit(0, 1, 2, "a", flow.FailureNone), admit(1, 3, 4, "b", flow.FailureNone)}},
		{"refused by a queue", []porcupine.Operation{admit(0, 1, 2, "a", flow.FailureBackpressure)}},
		{"shut though open", []porcupine.Operation{admit(0, 1, 2, "a", flow.FailureShutdown)}},
		{"cancelled though alive", []porcupine.Operation{admit(0, 1, 2, "a", flow.FailureContextCancelled)}},
		{"let in after close", []porcupine.Operation{
			{ClientId: 1, Input: call{what: "closing"}, Call: 1, Return: 2, Output: flow.FailureNone},
			{ClientId: 2, Input: call{what: "closed"}, Call: 1, Return: 2, Output: flow.FailureNone},
			admit(0, 3, 4, "a", flow.FailureNone),
		}},
	} {
		if porcupine.CheckOperations(gateModel(o), c.ops) {
			t.Errorf("%s: the model allows it", c.name)
		}
	}
}
