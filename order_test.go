package flow_test

import (
	"testing"

	"example.com/flow"
)

func TestKeyedFIFORunsOneMessageOfAKeyAtATimeInSeqOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
		c := start(t, f, "a1", "b1", "a2", "a3", "b2", "c1")
		c.End()
		wantNow(t, s, "a1 b1 c1")
		s.finish(t, "b1")
		wantNow(t, s, "a1 b2 c1")
		s.finish(t, "a1")
		wantNow(t, s, "a2 b2 c1")
		s.finishAll(t)
		sum, err := c.result(t)
		if err != nil || sum.Succeeded != 6 || sum.Committed != 6 {
			t.Errorf("Run() = %+v, %v, want 6 succeeded and committed", sum, err)
		}
		conserved(t, sum)
	})
}
