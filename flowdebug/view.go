package flowdebug

import (
	"time"

	"example.com/flow"
)

// The JSON form of a Flow, as the package comment documents it. Times are in seconds; lists are never null.
type (
	flowView struct {
		Flow     string        `json:"flow"`
		Time     time.Time     `json:"time"`
		Observed bool          `json:"observed"`
		InFlight int           `json:"inFlight"`
		Calls    int           `json:"calls"`
		Capacity int           `json:"capacity"` // of calls; 0: unlimited
		Waiting  int           `json:"waiting"`
		Active   int           `json:"activeKeys"`
		Open     int           `json:"openStreams"`
		Total    totalView     `json:"total"`
		Streams  []streamView  `json:"streams"`
		Keys     []keyView     `json:"keys"`
		Running  []runningView `json:"running"`
		Failures []failureView `json:"failures"`
		Failed   uint64        `json:"failuresSoFar"`
		History  *historyView  `json:"history"` // null if not observed
	}
	totalView struct {
		Received   uint64 `json:"received"`
		Succeeded  uint64 `json:"succeeded"`
		Failed     uint64 `json:"failed"`
		Rejected   uint64 `json:"rejected"`
		Dropped    uint64 `json:"dropped"`
		Retried    uint64 `json:"retried"`
		Duplicates uint64 `json:"duplicates"`
	}
	streamView struct {
		ID        uint64  `json:"id"`
		Peer      string  `json:"peer"`
		Method    string  `json:"method"`
		Age       float64 `json:"age"`
		Received  uint64  `json:"received"`
		Pending   uint64  `json:"pending"`
		Committed uint64  `json:"committed"`
		Session   string  `json:"session"`
	}
	keyView struct {
		Key     string  `json:"key"`
		Waiting int     `json:"waiting"`
		Running bool    `json:"running"`
		Age     float64 `json:"age"`
	}
	runningView struct {
		Stream  uint64  `json:"stream"`
		Seq     uint64  `json:"seq"`
		Key     string  `json:"key"`
		Attempt int     `json:"attempt"`
		Age     float64 `json:"age"`
	}
	failureView struct {
		Ago     float64 `json:"ago"`
		Stream  uint64  `json:"stream"`
		Seq     uint64  `json:"seq"` // 0: of the stream itself
		Key     string  `json:"key"`
		Attempt int     `json:"attempt"`
		Kind    string  `json:"kind"`
		Error   string  `json:"error"`
		Settled bool    `json:"settled"`
	}
	historyView struct { // one number a second, the oldest first
		Finished    []int     `json:"finished"`
		Failed      []int     `json:"failed"` // refused and dropped ones too
		WaitMean    []float64 `json:"waitMean"`
		WaitMax     []float64 `json:"waitMax"`
		HandlerMean []float64 `json:"handlerMean"`
		HandlerMax  []float64 `json:"handlerMax"`
		BatchMean   []float64 `json:"batchMean"` // both empty unless there are batches
		BatchMax    []float64 `json:"batchMax"`
	}
)

// newView returns what snap and r, which may be nil, have to show.
func newView(name string, snap flow.Snapshot, r *record, now time.Time) flowView {
	st, sum := snap.Stats, snap.Stats.Total
	v := flowView{
		Flow: name, Time: now, Observed: r != nil,
		InFlight: st.InFlight, Calls: st.Calls, Capacity: st.Capacity, Waiting: st.Waiting, Active: st.ActiveKeys, Open: st.Streams,
		Total:   totalView{sum.Received, sum.Succeeded, sum.Failed, sum.Rejected, sum.Dropped, sum.Retried, sum.Duplicates},
		Streams: make([]streamView, 0, len(snap.Streams)), Keys: make([]keyView, 0, len(snap.Keys)),
		Running: make([]runningView, 0, len(snap.Running)), Failures: []failureView{},
	}
	for _, s := range snap.Streams {
		v.Streams = append(v.Streams, streamView{
			s.ID, displayText(s.Peer, maxKey), displayText(s.Method, maxKey), s.Age.Seconds(), s.Received, s.Pending, s.Committed,
			sessionText(s.Session.ID),
		})
	}
	for _, k := range snap.Keys {
		v.Keys = append(v.Keys, keyView{displayText(k.Key, maxKey), k.Waiting, k.Running, k.Age.Seconds()})
	}
	for _, m := range snap.Running {
		v.Running = append(v.Running, runningView{
			m.Stream, m.Seq, displayText(m.Key, maxKey), m.Attempt, m.Age.Seconds(),
		})
	}
	if r == nil {
		return v
	}
	var recent []failure
	recent, v.Failed = r.recent()
	for _, f := range recent { // one of another clock may be later than now
		v.Failures = append(v.Failures, failureView{
			max(0, now.Sub(f.at)).Seconds(), f.stream, f.seq, f.key, f.attempt, f.kind, f.text, f.settled,
		})
	}
	h := &historyView{BatchMean: []float64{}, BatchMax: []float64{}}
	batches := r.hasBatches()
	for _, s := range r.history(now) {
		h.Finished = append(h.Finished, s.finished)
		h.Failed = append(h.Failed, s.failed)
		h.WaitMean = append(h.WaitMean, mean(s.waitSum, s.waits))
		h.WaitMax = append(h.WaitMax, s.waitMax.Seconds())
		h.HandlerMean = append(h.HandlerMean, mean(s.handlerSum, s.tries))
		h.HandlerMax = append(h.HandlerMax, s.handlerMax.Seconds())
		if batches {
			h.BatchMean = append(h.BatchMean, float64(s.batched)/float64(max(1, s.tries)))
			h.BatchMax = append(h.BatchMax, float64(s.batchMax))
		}
	}
	v.History = h
	return v
}

func mean(sum time.Duration, n int) float64 {
	if n == 0 {
		return 0
	}
	return (sum / time.Duration(n)).Seconds()
}

// sessionText returns id for display: empty for a stream without a session.
func sessionText(id flow.SessionID) string {
	if id == (flow.SessionID{}) {
		return ""
	}
	return displayText(id.String(), maxKey)
}
