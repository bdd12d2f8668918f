package natsflow

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// modelWrite is a write on its way to the bucket.
type modelWrite struct {
	by       *modelHolder
	r        record
	expected uint64
	number   uint64
	sent     time.Time // by the holder's clock
	answered bool      // its answer came, or is known to be lost
}

// modelHolder is one who claims and holds: a lease, a clock that runs at a rate of its own, and a view of the bucket that may
// be old.
type modelHolder struct {
	name    string
	rate    float64 // of its clock, to true time
	jump    time.Duration
	lease   *lease // nil: it holds nothing, and claims nothing
	writes  uint64
	pending *modelWrite // one at a time
	rec     record

	seenRev uint64    // what its watch has last shown,
	seenAt  time.Time // when, by its own clock
	seen    record
}

// runs reports whether h may begin something now. Who has sent a release has nothing left to run.
func (h *modelHolder) runs(now time.Time) bool {
	return h.lease != nil && (h.pending == nil || h.pending.r.Holder != "") && h.lease.valid(now)
}

// model is the bucket and all holders, in true time.
type model struct {
	t        *rapid.T
	now      time.Duration // true time
	length   time.Duration // Lease
	revision uint64
	rec      record
	holders  []*modelHolder
	onWay    []*modelWrite
	old      []modelCopy                // what the bucket once was: a read may show it
	arrived  map[string]map[uint64]bool // by claim, which of its writes are done
}

// modelCopy is the bucket at some time.
type modelCopy struct {
	rec      record
	revision uint64
}

var modelEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (m *model) clock(h *modelHolder) time.Time {
	return modelEpoch.Add(time.Duration(float64(m.now)*h.rate) + h.jump)
}

// arrive is a write that comes to the bucket, at last.
func (m *model) arrive(w *modelWrite) (revision uint64, ok bool) {
	if w.expected != m.revision {
		return 0, false
	}
	if before := m.rec.Write; m.rec.Claim == w.r.Claim && w.number <= before {
		m.t.Fatalf("write %d of a hold is done after write %d", w.number, before)
	}
	m.revision++
	if w.r.Claim != m.rec.Claim {
		m.arrived[w.r.Claim] = map[uint64]bool{}
		for _, h := range m.holders { // who takes a partition does so when nobody holds it for certain
			if h != w.by && h.runs(m.clock(h)) {
				m.t.Fatalf("%s claims what %s holds for certain", w.by.name, h.name)
			}
		}
	}
	m.old = append(m.old, modelCopy{m.rec, m.revision - 1})
	m.rec = w.r
	m.arrived[w.r.Claim][w.number] = true
	return m.revision, true
}

// Of any number of holders with clocks of different rates, whose writes are done, refused, lost, answered late or done
// late, and who see an old bucket, at most one holds the partition for certain at any time; a claim comes only when nobody
// does; who was deposed commits nothing; and who is alone and reaches the bucket gets the partition.
func TestAtMostOneHolderHasAValidLease(t *testing.T) {
	rounds := 20 // of as many scripts as rapid makes: some bugs show in one of a thousand
	if testing.Short() {
		rounds = 2
	}
	for range rounds {
		rapid.Check(t, leaseScript)
	}
}

func leaseScript(t *rapid.T) {
	m := &model{t: t, length: 8 * time.Second, arrived: map[string]map[uint64]bool{}}
	names := []string{"a", "b", "c"}
	for _, name := range names {
		m.holders = append(m.holders, &modelHolder{name: name, rate: rapid.Float64Range(0.9, 1.1).Draw(t, "rate"), seenAt: modelEpoch})
	}
	valid := func() {
		var who []string
		for _, h := range m.holders {
			if h.runs(m.clock(h)) {
				who = append(who, h.name)
			}
		}
		if len(who) > 1 {
			t.Fatalf("%v hold the partition at once", who)
		}
	}
	for range 250 {
		h := m.holders[rapid.IntRange(0, len(names)-1).Draw(t, "who")]
		now := m.clock(h)
		step := rapid.SampledFrom([]string{"time", "time", "time", "jump", "see", "see", "claim", "claim", "write", "write", "arrive", "arrive", "arrive", "read", "old", "release"}).Draw(t, "step")
		switch step {
		case "time":
			m.now += time.Duration(rapid.Int64Range(1, 10).Draw(t, "time")) * m.length / 16
		case "jump": // forwards: a clock that stands still, as of a suspended machine, is not promised for
			h.jump += time.Duration(rapid.Int64Range(0, int64(m.length)).Draw(t, "jump")) / 20
		case "see": // its watch shows the bucket as it is now
			if m.revision > h.seenRev {
				h.seenRev, h.seen, h.seenAt = m.revision, m.rec, now
			}
		case "claim":
			if h.lease != nil || h.pending != nil {
				continue
			}
			if h.seen.Holder != "" && now.Sub(h.seenAt) < m.length {
				continue
			}
			h.rec = h.seen
			h.rec.Holder, h.rec.Claim = h.name, h.name+rapid.StringMatching(`[a-z]{12}`).Draw(t, "claim")
			h.writes = 0
			h.lease = newLease(h.rec.Claim, h.seenRev, m.length*3/4, now)
			m.send(h, h.rec)
		case "write": // a renewal and a commit
			if h.lease == nil || h.pending != nil {
				continue
			}
			if !h.lease.mayWrite(now) {
				h.lease.lose()
				h.lease = nil
				continue
			}
			r := h.rec
			r.Missing++ // stands for the frontier
			m.send(h, r)
		case "release":
			if h.lease == nil || h.pending != nil || !h.lease.valid(now) {
				continue
			}
			r := h.rec
			r.Holder = ""
			m.send(h, r)
		case "arrive": // any of those on their way, also one whose answer was given up long ago
			if len(m.onWay) == 0 {
				continue
			}
			i := rapid.IntRange(0, len(m.onWay)-1).Draw(t, "which")
			w := m.onWay[i]
			m.onWay = slices.Delete(m.onWay, i, i+1)
			revision, ok := m.arrive(w)
			if ok && !w.answered && w.by.pending == w && rapid.IntRange(0, 3).Draw(t, "heard") > 0 {
				w.answered = true
				m.heard(w, revision)
			}
		case "read", "old": // the answer does not come: the bucket is read, as it is or as it was, and the write tried again
			c := modelCopy{m.rec, m.revision}
			if step == "old" && len(m.old) > 0 {
				c = m.old[rapid.IntRange(max(0, len(m.old)-3), len(m.old)-1).Draw(t, "which")]
			}
			w := h.pending
			if w == nil || h.lease == nil {
				continue
			}
			if !h.lease.mayWrite(now) {
				h.lease.lose()
				h.lease, h.pending = nil, nil
				continue
			}
			switch h.lease.found(c.rec, c.revision, w.number, w.sent) {
			case verdictWritten:
				m.settled(h, w)
			case verdictLost:
				if m.rec.Claim == w.r.Claim || m.revision == w.expected {
					t.Fatalf("%s takes the partition for another's, which it is not", h.name)
				}
				h.lease, h.pending = nil, nil
			case verdictUnknown: // again, under the same number
				again := *w
				again.expected = h.lease.expects()
				h.pending = &again
				m.onWay = append(m.onWay, &again)
			}
		}
		valid()
	}
	m.alone(m.holders[0])
}

// alone has h, who reaches the bucket at all times, claim and renew, beside others that are gone: he gets the partition
// within a Lease and a little, and keeps it.
func (m *model) alone(h *modelHolder) {
	m.onWay = nil
	if h.pending != nil && h.pending.r.Holder == "" { // it has released it
		h.lease, h.pending = nil, nil
	}
	rounds, epoch := 0, uint64(0)
	for round := range 60 {
		now := m.clock(h)
		if m.revision > h.seenRev {
			h.seenRev, h.seen, h.seenAt = m.revision, m.rec, now
		}
		if h.lease != nil && !h.lease.mayWrite(now) {
			h.lease, h.pending = nil, nil
		}
		switch {
		case h.lease == nil && (h.seen.Holder == "" || now.Sub(h.seenAt) >= m.length):
			h.rec, h.writes = h.seen, 0
			h.rec.Holder, h.rec.Claim = h.name, h.name+now.String()
			h.lease = newLease(h.rec.Claim, h.seenRev, m.length*3/4, now)
			m.send(h, h.rec)
		case h.lease != nil && h.pending == nil:
			m.send(h, h.rec)
		}
		if w := h.pending; w != nil {
			switch h.lease.found(m.rec, m.revision, w.number, w.sent) { // an earlier try may be done
			case verdictWritten:
				m.settled(h, w)
			case verdictLost:
				h.lease, h.pending = nil, nil
			case verdictUnknown:
				if revision, ok := m.arrive(&modelWrite{by: h, r: w.r, number: w.number, expected: h.lease.expects()}); ok {
					m.heard(w, revision)
				}
			}
		}
		switch {
		case round < 30 || h.lease == nil || !h.lease.valid(now): // a lease that it brought along may end first
		case epoch == 0:
			epoch = h.lease.claimed()
		case h.lease.claimed() != epoch:
			m.t.Fatal("who is alone loses the partition")
		default:
			rounds++
		}
		m.now += m.length / 10
	}
	if rounds < 20 {
		m.t.Fatalf("who is alone holds the partition for %d rounds", rounds)
	}
}

// send begins a write.
func (m *model) send(h *modelHolder, r record) {
	h.writes++
	r.Write, r.Epoch = h.writes, h.lease.claimed()
	w := &modelWrite{by: h, r: r, expected: h.lease.expects(), number: h.writes, sent: m.clock(h)}
	h.pending = w
	m.onWay = append(m.onWay, w)
}

// heard is a write whose answer came.
func (m *model) heard(w *modelWrite, revision uint64) {
	if w.by.lease == nil || w.by.lease.claim != w.r.Claim {
		return
	}
	w.by.lease.written(revision, w.sent)
	m.settled(w.by, w)
}

// settled is a write of which its holder knows that it is done.
func (m *model) settled(h *modelHolder, w *modelWrite) {
	if !m.arrived[w.r.Claim][w.number] {
		m.t.Fatalf("write %d of %s is taken for done", w.number, w.r.Claim)
	}
	h.rec, h.pending = w.r, nil
	if w.r.Holder == "" {
		h.lease = nil
	}
}
