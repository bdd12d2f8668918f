package natsflow

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// effect is one effect of a handler: Seq is the message's, which the guard compares by key.
type effect struct {
	Seq, Epoch uint64
	Value      string
	Worker     string
	Guarded    bool // the guard let it happen: its Seq was higher than that of all before of its key
}

// effects is a store that handlers write to, guarded: it says of each write whether a guarded one would have happened. It
// is safe for concurrent use.
type effects struct {
	mu   sync.Mutex
	all  []effect
	last map[string]uint64
}

func (e *effects) apply(f effect) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.last == nil {
		e.last = map[string]uint64{}
	}
	key := words.Key(f.Value)
	if f.Seq > e.last[key] {
		f.Guarded, e.last[key] = true, f.Seq
	}
	e.all = append(e.all, f)
}

// done reports whether all values have had their effect at least once.
func (e *effects) done(values []string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, v := range values {
		if !slices.ContainsFunc(e.all, func(f effect) bool { return f.Value == v }) {
			return false
		}
	}
	return true
}

// judgement is how effects differ from each of values once and in order.
type judgement struct {
	lost      []string
	repeated  int      // effects beyond the first of a message
	reordered []string // the first effect came after that of a later one of its key
	stale     int      // effects right after that of a later message of the same key, by a worker of an older epoch
	guarded   []string // what of the above is true of the guarded effects, which must be nothing
}

func (j judgement) String() string {
	return fmt.Sprintf("lost %v, repeated %d, reordered %v, stale %d, guarded %v", j.lost, j.repeated, j.reordered, j.stale, j.guarded)
}

// judge compares the effects with what was stored, which is ordered by key.
func (e *effects) judge(values []string) (j judgement) {
	e.mu.Lock()
	defer e.mu.Unlock()
	number := map[string]int{} // of a value among those of its key
	perKey := map[string]int{}
	for _, v := range values {
		perKey[words.Key(v)]++
		number[v] = perKey[words.Key(v)]
	}
	seen := map[string]bool{}
	highest, guarded := map[string]int{}, map[string]int{}
	epoch := map[string]uint64{}
	for _, f := range e.all {
		key := words.Key(f.Value)
		n := number[f.Value]
		if seen[f.Value] {
			j.repeated++
		} else if n != highest[key]+1 {
			j.reordered = append(j.reordered, f.Value)
		}
		seen[f.Value] = true
		highest[key] = max(highest[key], n)
		if f.Epoch < epoch[key] {
			j.stale++
		}
		epoch[key] = max(epoch[key], f.Epoch)
		if f.Guarded {
			if n != guarded[key]+1 {
				j.guarded = append(j.guarded, f.Value+" after "+fmt.Sprint(guarded[key]))
			}
			guarded[key] = n
		}
	}
	for _, v := range values {
		if !seen[v] {
			j.lost = append(j.lost, v)
		}
	}
	for key, n := range perKey {
		if guarded[key] != n {
			j.guarded = append(j.guarded, fmt.Sprintf("%s ends with %d of %d", key, guarded[key], n))
		}
	}
	return j
}

// String is the effects, for those who look for what went wrong.
func (e *effects) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var b strings.Builder
	for _, f := range e.all {
		fmt.Fprintf(&b, "%s(%s seq %d epoch %d) ", f.Value, f.Worker, f.Seq, f.Epoch)
	}
	return b.String()
}
