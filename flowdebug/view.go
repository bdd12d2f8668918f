package flowdebug

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"example.com/flow"
)

const (
	rows  = 20                     // of each table of what is under way
	fresh = 250 * time.Millisecond // how old a look may be that is shown to somebody else
)

// The JSON form of a Flow. Times are in seconds; lists are never null.
type (
	flowView struct {
		Flow     string        `json:"flow"`
		Time     time.Time     `json:"time"`
		Observed bool          `json:"observed"` // by the page's Observer: else no ages of messages, failures, history
		InFlight int           `json:"inFlight"`
		Capacity int           `json:"capacity"` // 0: unlimited
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
		Received  uint64 `json:"received"`
		Succeeded uint64 `json:"succeeded"`
		Failed    uint64 `json:"failed"`
		Rejected  uint64 `json:"rejected"`
		Dropped   uint64 `json:"dropped"`
		Retried   uint64 `json:"retried"`
	}
	streamView struct {
		ID        uint64  `json:"id"`
		Peer      string  `json:"peer"`
		Method    string  `json:"method"`
		Age       float64 `json:"age"`
		Received  uint64  `json:"received"`
		Pending   uint64  `json:"pending"`
		Committed uint64  `json:"committed"`
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
	}
)

// look is the JSON of what there is to see now, or was a moment ago. It is not to be changed.
func (s *shown) look() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !s.looked.IsZero() && now.Sub(s.looked) < fresh {
		return s.view
	}
	view, err := json.Marshal(newView(s.name, s.source.Snapshot(rows), s.record, now))
	if err != nil {
		panic("bug: flowdebug: " + err.Error())
	}
	s.view, s.looked = view, now
	return view
}

func newView(name string, snap flow.Snapshot, r *record, now time.Time) flowView {
	st, sum := snap.Stats, snap.Stats.Total
	v := flowView{
		Flow: name, Time: now, Observed: r != nil,
		InFlight: st.InFlight, Capacity: snap.Capacity, Waiting: st.Waiting, Active: st.ActiveKeys, Open: st.Streams,
		Total:   totalView{sum.Received, sum.Succeeded, sum.Failed, sum.Rejected, sum.Dropped, sum.Retried},
		Streams: make([]streamView, 0, len(snap.Streams)), Keys: make([]keyView, 0, len(snap.Keys)),
		Running: make([]runningView, 0, len(snap.Running)), Failures: []failureView{},
	}
	for _, s := range snap.Streams {
		v.Streams = append(v.Streams, streamView{
			s.ID, shownText(s.Peer, maxKey), shownText(s.Method, maxKey), s.Age.Seconds(), s.Received, s.Pending, s.Committed,
		})
	}
	for _, k := range snap.Keys {
		v.Keys = append(v.Keys, keyView{shownText(k.Key, maxKey), k.Waiting, k.Running, k.Age.Seconds()})
	}
	for _, m := range snap.Running {
		v.Running = append(v.Running, runningView{
			m.Stream, m.Seq, shownText(m.Key, maxKey), m.Attempt, m.Age.Seconds(),
		})
	}
	if r == nil {
		return v
	}
	var recent []failure
	recent, v.Failed = r.recent()
	for _, f := range recent {
		v.Failures = append(v.Failures, failureView{
			now.Sub(f.at).Seconds(), f.stream, f.seq, f.key, f.attempt, f.kind, f.text, f.settled,
		})
	}
	h := new(historyView)
	for _, s := range r.history(now) {
		h.Finished = append(h.Finished, s.finished)
		h.Failed = append(h.Failed, s.failed)
		h.WaitMean = append(h.WaitMean, mean(s.waitSum, s.waits))
		h.WaitMax = append(h.WaitMax, s.waitMax.Seconds())
		h.HandlerMean = append(h.HandlerMean, mean(s.handlerSum, s.tries))
		h.HandlerMax = append(h.HandlerMax, s.handlerMax.Seconds())
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

// shownText is s cut to size, with what can't be seen, or would change how its surroundings are read, written as in Go.
func shownText(s string, limit int) string {
	cut := len(s) > limit
	if cut {
		s = s[:limit]
		for i := 0; i < utf8.UTFMax && !utf8.ValidString(s[max(0, len(s)-utf8.UTFMax):]) && len(s) > 0; i++ {
			s = s[:len(s)-1]
		}
	}
	hidden := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }
	if strings.ContainsFunc(s, hidden) {
		s = strconv.Quote(s)
		s = s[1 : len(s)-1]
	} else {
		s = strings.Clone(s) // not to keep what it was cut from
	}
	if cut {
		s += "…"
	}
	return s
}
