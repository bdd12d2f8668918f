package modeltest_test

import (
	"cmp"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"example.com/flow"
)

// teardown ends all streams, has some more use the whole Flow if it lives: no slot, place or byte may be missing then.
func (w *mixedSimulation) teardown() string {
	if wrong := w.finishAll(); wrong != "" || w.ending {
		return wrong
	}
	bytes := max(1, int(w.Options.MaxPendingBytes))
	fill := burst{
		N: 3, Plain: []plain{{Key: "a", Bytes: bytes - 1}, {Key: "b", Bytes: 1}, {Key: "c"}},
		Exceptions: []exception{{At: 0, First: blocks}, {At: 1, First: blocks}, {At: 2, First: blocks}},
	}
	for range max(1, w.Options.Backpressure.Capacity) { // in FIFO each takes one slot
		w.open()
		w.streams[len(w.streams)-1].send(fill)
		if wrong := w.rest(); wrong != "" {
			return "of the last streams: " + wrong
		}
		fill.Plain = []plain{{}}
	}
	return w.finishAll()
}

// finishAll lets all go on to its end.
func (w *mixedSimulation) finishAll() string {
	for _, st := range w.streams {
		st.hangUp()
	}
	w.setQuick(true)
	w.release(0, math.MaxInt)
	time.Sleep(time.Hour) // for all tries
	w.setQuick(false)
	wrong := w.rest()
	if w.atRest = true; wrong == "" {
		wrong = w.look()
	}
	for _, st := range w.streams {
		if wrong == "" && !st.returned {
			wrong = fmt.Sprintf("stream %d has not ended", st.id)
		}
	}
	if w.shutdown != nil && wrong == "" {
		select {
		case err := <-w.shutdown:
			if err != nil {
				wrong = "Shutdown: " + err.Error()
			}
		default:
			wrong = "Shutdown has not returned"
		}
	}
	if wrong != "" {
		wrong = "at the end: " + wrong
	}
	return wrong
}

func (w *mixedSimulation) setQuick(quick bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.quick = quick
}

// look takes a Snapshot. It is compared with what must be seen if the simulation is at rest.
func (w *mixedSimulation) look() string {
	if !w.atRest {
		w.f.Snapshot(1)
		return ""
	}
	got := w.f.Snapshot(math.MaxInt)
	for i := range got.Streams {
		got.Streams[i].Age = 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if want := w.snapshot(); !w.aborted && !reflect.DeepEqual(got, want) {
		w.broken("the Snapshot is\n%+v, want\n%+v", got, want)
	}
	return strings.Join(w.rules, "\n")
}

// snapshot is what must be seen at rest.
func (w *mixedSimulation) snapshot() (s flow.Snapshot) {
	s.Stats.Capacity = w.Options.Backpressure.Capacity
	total := &s.Stats.Total
	keys := map[string]flow.KeyState{}
	for _, st := range w.streams {
		total.Succeeded += st.sum.Succeeded
		total.Failed += st.sum.Failed
		total.Rejected += st.sum.Rejected
		total.Dropped += st.sum.Dropped
		total.Retried += st.sum.Retried
		if st.returned {
			continue
		}
		state := flow.StreamState{ID: uint64(st.id), Received: uint64(len(st.received)), Committed: uint64(st.finished)}
		for p := range w.pending(st) {
			state.Pending++
			k := keys[p.Key]
			if k.Key = p.Key; p.runs {
				k.Running = true
				s.Running = append(s.Running, flow.RunningMessage{Stream: state.ID, Seq: p.seq, Key: p.Key, Attempt: p.attempts})
			} else {
				k.Waiting++
			}
			keys[p.Key] = k
		}
		s.Streams = append(s.Streams, state)
		s.Stats.InFlight = len(s.Running)
		s.Stats.Waiting += int(state.Pending)
	}
	total.Received = total.Succeeded + total.Failed + total.Rejected + total.Dropped
	s.Stats.Calls = s.Stats.InFlight
	s.Stats.Waiting -= s.Stats.InFlight
	s.Stats.Streams, s.Stats.ActiveKeys = len(s.Streams), len(keys)
	for _, k := range keys {
		s.Keys = append(s.Keys, k)
	}
	slices.SortFunc(s.Streams, func(a, b flow.StreamState) int {
		return cmp.Or(cmp.Compare(b.Pending, a.Pending), cmp.Compare(a.ID, b.ID))
	})
	slices.SortFunc(s.Keys, func(a, b flow.KeyState) int {
		return cmp.Or(cmp.Compare(b.Waiting, a.Waiting), cmp.Compare(a.Key, b.Key))
	})
	return s
}
