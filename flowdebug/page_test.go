package flowdebug_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"example.com/flow"
	"example.com/flow/flowdebug"
	"example.com/flow/flowtest"
)

const hostile = `<img src=x onerror="alert(1)">`

// document is the part of the JSON form that the tests read.
type document struct {
	Flows []struct {
		Flow     string
		Observed bool
		InFlight int
		Calls    int
		Capacity int
		Total    struct{ Received, Duplicates uint64 }
		Streams  []struct {
			ID, Received, Pending, Committed uint64
			Session                          string
		}
		Keys []struct {
			Key     string
			Waiting int
			Running bool
			Age     float64
		}
		Running []struct {
			Seq uint64
			Key string
			Age float64
		}
		Failures []struct {
			Ago              float64
			Seq              uint64
			Key, Kind, Error string
			Settled          bool
		}
		FailuresSoFar int
		History       *struct {
			Finished, Failed                           []int
			WaitMean, WaitMax, HandlerMean, HandlerMax []float64
			BatchMean, BatchMax                        []float64
		}
	}
}

// ask is one request to page.
func ask(page http.Handler, method, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "/debug/flow/"+target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	page.ServeHTTP(w, r)
	return w
}

func read(t testing.TB, page http.Handler, target string) document {
	t.Helper()
	var d document
	w := ask(page, http.MethodGet, target)
	if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%q answers %d: %v\n%s", target, w.Code, err, w.Body)
	}
	return d
}

// pageOf returns a page with the Flow "uploads" of capacity 2, whose messages "a: …" run for a second and whose others for
// none. "bad" fails and is skipped. The key is what stands before the colon.
func pageOf(t testing.TB, values ...string) (*flowdebug.Page, *flowtest.Source[string]) {
	t.Helper()
	page := flowdebug.New()
	f, err := flow.New(func(ctx context.Context, m flow.Message[string]) error {
		switch m.Key {
		case "a":
			time.Sleep(time.Second)
		case "bad", hostile:
			return errors.New("no good: " + m.Value)
		}
		return nil
	}, func(v string) string { k, _, _ := strings.Cut(v, ":"); return k }, flow.Options{
		Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
		Backpressure: flow.BackpressureOptions{Capacity: 2},
		OnFailure:    func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		Observer:     page.Observer("uploads"),
	})
	if err != nil {
		t.Fatal(err)
	}
	page.Add("uploads", f)
	source := flowtest.NewSource(t, values...)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = f.Run(context.Background(), source.Recv)
	}()
	t.Cleanup(func() { source.End(); <-done })
	synctest.Wait()
	return page, source
}

func TestJSONSaysWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page, _ := pageOf(t, "a:1", "a:2", "a:3", "b:1")
		time.Sleep(700 * time.Millisecond)
		d := read(t, page, "?format=json")
		if len(d.Flows) != 1 {
			t.Fatalf("document is %+v", d)
		}
		f := d.Flows[0]
		if f.Flow != "uploads" || !f.Observed || f.InFlight != 1 || f.Capacity != 2 ||
			len(f.Streams) != 1 || f.Streams[0].Received != 4 || f.Streams[0].Pending != 3 {
			t.Errorf("flow is %+v", f)
		}
		if len(f.Keys) != 1 || f.Keys[0].Key != "a" || f.Keys[0].Waiting != 2 || f.Keys[0].Age != 0.7 {
			t.Errorf("keys are %+v", f.Keys)
		}
		if len(f.Running) != 1 || f.Running[0].Seq != 1 || f.Running[0].Age != 0.7 {
			t.Errorf("running are %+v", f.Running)
		}
	})
}

func TestHistoryHasASlotForEachSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page, source := pageOf(t, "a:1", "b:1", "b:2", "bad:1")
		time.Sleep(1100 * time.Millisecond)
		h := read(t, page, "?format=json").Flows[0].History
		at := len(h.Finished) - 1
		if at+1 != 180 || h.Finished[at] != 3 || h.Failed[at] != 1 || h.HandlerMax[at] != 0 {
			t.Errorf("in the first second %d finished, %d failed", h.Finished[at], h.Failed[at])
		}
		source.Send("a:2", "a:3")
		time.Sleep(3 * time.Second) // until 4.1
		h = read(t, page, "?format=json").Flows[0].History
		// a:1 ended at 1 s, a:2 at 2.1, a:3 at 3.1, when it had waited for a second.
		if got := fmt.Sprint(h.Finished[at-4:], h.HandlerMean[at-3:], h.WaitMax[at-3:], h.WaitMean[at-3:]); got !=
			"[0 3 1 1 1] [0 1 1 1] [0 0 1 0] [0 0 1 0]" {
			t.Errorf("history is %s", got)
		}
		time.Sleep(10 * time.Minute)
		h = read(t, page, "?format=json").Flows[0].History
		for i, n := range h.Finished {
			if n != 0 || h.HandlerMax[i] != 0 {
				t.Fatalf("after ten minutes, slot %d has %d", i, n)
			}
		}
	})
}

func TestFailuresAreListedLatestFirstAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page, source := pageOf(t)
		for i := range 60 {
			source.Send(fmt.Sprintf("bad:%d", i))
			time.Sleep(time.Second)
		}
		f := read(t, page, "?format=json").Flows[0]
		if len(f.Failures) != 50 || f.FailuresSoFar != 60 {
			t.Fatalf("%d failures of %d", len(f.Failures), f.FailuresSoFar)
		}
		for i, got := range f.Failures {
			if got.Seq != uint64(60-i) || got.Ago != float64(i+1) || got.Key != "bad" || !got.Settled ||
				got.Kind != "FailureHandlerError" || got.Error != fmt.Sprintf("no good: bad:%d", 59-i) {
				t.Fatalf("failure %d is %+v", i, got)
			}
		}
	})
}

func TestTextsAreCutAndInvisibleCharactersAreWritten(t *testing.T) {
	long := strings.Repeat("ü", 100)
	for key, want := range map[string]string{
		"plain ü":       "plain ü",
		"\u202egnp.exe": `\u202egnp.exe`,
		"zero\x00":      `zero\x00`,
		"\xff":          `\xff`,
		long:            long[:128] + "…",
		"x" + long:      "x" + long[:126] + "…",
		// A cut falls between characters, of however many bytes they are and wherever they begin.
		strings.Repeat("€", 50):         strings.Repeat("€", 42) + "…", // 126 bytes of 128
		"x" + strings.Repeat("€", 50):   "x" + strings.Repeat("€", 42) + "…",
		"xy" + strings.Repeat("€", 50):  "xy" + strings.Repeat("€", 42) + "…",
		strings.Repeat("😀", 40):         strings.Repeat("😀", 32) + "…",
		"x" + strings.Repeat("😀", 40):   "x" + strings.Repeat("😀", 31) + "…",
		"xy" + strings.Repeat("😀", 40):  "xy" + strings.Repeat("😀", 31) + "…",
		"xyz" + strings.Repeat("😀", 40): "xyz" + strings.Repeat("😀", 31) + "…",
		// Bytes that are no characters are all there.
		strings.Repeat("\xff", 200): strings.Repeat(`\xff`, 128) + "…",
		strings.Repeat("\x80", 200): strings.Repeat(`\x80`, 128) + "…",
	} {
		page := flowdebug.New()
		page.Add("keys", fake{Keys: []flow.KeyState{{Key: key}}})
		if got := read(t, page, "?format=json").Flows[0].Keys[0].Key; got != want {
			t.Errorf("%q is shown as %q, want %q", key, got, want)
		}
	}
}

// fake is a Source whose Snapshot is given.
type fake flow.Snapshot

func (f fake) Snapshot(int) flow.Snapshot { return flow.Snapshot(f) }

func TestPageOfSeveralFlowsIsOneDocumentAndAPageForEach(t *testing.T) {
	page := flowdebug.New()
	page.Observer("never added")
	page.Add("one", fake{Stats: flow.Stats{Capacity: 1}})
	page.Add("two & more", fake{Stats: flow.Stats{Capacity: 2}})
	page.Add("one", fake{Stats: flow.Stats{Capacity: 3}}) // in its place
	d := read(t, page, "?format=json")
	if len(d.Flows) != 2 || d.Flows[0].Capacity != 3 || d.Flows[1].Flow != "two & more" || d.Flows[0].Observed {
		t.Errorf("document is %+v", d)
	}
	if d = read(t, page, "?format=json&flow=two+%26+more"); len(d.Flows) != 1 || d.Flows[0].Capacity != 2 {
		t.Errorf("one flow's document is %+v", d)
	}
	body := ask(page, http.MethodGet, "").Body.String()
	for _, want := range []string{`data-flow="one"`, `href="?flow=one" aria-current="page"`, `href="?flow=two%20%26%20more"`} {
		if !strings.Contains(body, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	if w := ask(page, http.MethodGet, "?flow=three"); w.Code != http.StatusNotFound {
		t.Errorf("an unknown Flow answers %d", w.Code)
	}
}

func TestPageWithoutAFlowSaysSo(t *testing.T) {
	if w := ask(flowdebug.New(), http.MethodGet, ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "No Flow is added") {
		t.Errorf("it answers %d:\n%s", w.Code, w.Body)
	}
	if d := read(t, flowdebug.New(), "?format=json"); d.Flows == nil || len(d.Flows) != 0 {
		t.Errorf("its document is %+v", d)
	}
}

// anError is an error of the caller's whose text takes a while.
type anError struct{ asked, answer chan struct{} }

func (e anError) Error() string {
	close(e.asked)
	<-e.answer
	return "at last"
}

func TestObserverWithASlowErrorHoldsUpNoOther(t *testing.T) {
	page := flowdebug.New()
	page.Add("f", fake{})
	observe, slow := page.Observer("f"), anError{make(chan struct{}), make(chan struct{})}
	told := make(chan struct{})
	go func() {
		defer close(told)
		observe(t.Context(), flow.Event{Kind: flow.EventFailure, Seq: 1, Failure: &flow.Failure{Kind: flow.FailureHandlerError, Err: slow}})
	}()
	<-slow.asked
	observe(t.Context(), flow.Event{Kind: flow.EventSuccess, Seq: 2})
	if n := len(read(t, page, "?format=json").Flows[0].Failures); n != 0 {
		t.Errorf("%d failures are shown before their text is known", n)
	}
	close(slow.answer)
	<-told
}

// nilError is an error whose methods panic on nil, as a decoder's typed nil does.
type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }

func TestObserverSurvivesAnErrorWhoseErrorMethodPanics(t *testing.T) {
	page := flowdebug.New()
	page.Add("f", fake{})
	page.Observer("f")(t.Context(), flow.Event{
		Kind: flow.EventFailure, Seq: 1, Failure: &flow.Failure{Kind: flow.FailureHandlerError, Err: (*nilError)(nil)},
	})
	got := read(t, page, "?format=json").Flows[0].Failures
	if len(got) != 1 || got[0].Error != "no text: the error's Error method panicked" {
		t.Errorf("failures are %+v", got)
	}
}

func TestJSONHasSessionsAndTheirDuplicates(t *testing.T) {
	page := flowdebug.New()
	page.Add("f", fake{
		Stats:   flow.Stats{Total: flow.Summary{Received: 5, Succeeded: 2, Duplicates: 3}},
		Streams: []flow.StreamState{{ID: 1, Session: flow.Session{ID: flow.SessionID{Owner: "me", Name: "up/load \xff"}}}, {ID: 2}},
	})
	synctest.Test(t, func(t *testing.T) {
		observe := page.Observer("f")
		observe(t.Context(), flow.Event{Kind: flow.EventDuplicate, Seq: 1})
		observe(t.Context(), flow.Event{Kind: flow.EventDuplicate, Seq: 2})
		time.Sleep(2 * time.Second)
		f := read(t, page, "?format=json").Flows[0]
		if f.Total.Received != 5 || f.Total.Duplicates != 3 {
			t.Errorf("total is %+v", f.Total)
		}
		if got, want := f.Streams[0].Session, "me/up%2Fload%20%FF"; got != want || f.Streams[1].Session != "" {
			t.Errorf("sessions are %q and %q, want %q and none", got, f.Streams[1].Session, want)
		}
		finished := 0
		for _, n := range f.History.Finished {
			finished += n
		}
		if finished != 2 {
			t.Errorf("%d finished, want both duplicates", finished)
		}
	})
}

// Everything that the page says is UTF-8, and no longer than it must be, whatever a client, a handler or an operator calls things.
func TestPageIsValidUTF8AndBounded(t *testing.T) {
	bad := "\xff" + strings.Repeat("\U000e0001", 1<<18) // a byte that is not UTF-8, then a mebibyte of invisible runes
	page := flowdebug.New()
	page.Add("flow \xff", fake{
		Keys: []flow.KeyState{{Key: bad}}, Running: []flow.RunningMessage{{Key: bad}},
		Streams: []flow.StreamState{{Peer: bad, Method: bad}},
	})
	page.Observer("flow \xff")(t.Context(), flow.Event{
		Kind: flow.EventFailure, Seq: 1, Key: bad, Failure: &flow.Failure{Kind: flow.FailureHandlerError, Err: errors.New(bad)},
	})
	for _, target := range []string{"", "?flow=flow+%EF%BF%BD", "?flow=flow+%FF", "?format=json", "?format=json&flow=flow+%EF%BF%BD"} {
		w := ask(page, http.MethodGet, target)
		if body := w.Body.String(); w.Code != http.StatusOK || !utf8.ValidString(body) || len(body) > 64<<10 {
			t.Errorf("%q answers %d with %d bytes, UTF-8: %v", target, w.Code, len(body), utf8.ValidString(body))
		}
	}
	f := read(t, page, "?format=json").Flows[0]
	for _, text := range []string{f.Keys[0].Key, f.Running[0].Key, f.Failures[0].Key, f.Failures[0].Error} {
		if !strings.HasPrefix(text, `\xff\U000e0001`) || len(text) > 2048 {
			t.Errorf("%d bytes are shown: %.40q", len(text), text)
		}
	}
}

// The package comment is where scripts' authors look: it names every field, and no other.
func TestJSONFieldsAreDocumented(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page, source := pageOf(t, "a:1", "a:2", "bad:1")
		source.Send("a:3")
		synctest.Wait()
		var d struct{ Flows []map[string]any }
		if err := json.Unmarshal(ask(page, http.MethodGet, "?format=json").Body.Bytes(), &d); err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), "page.go", nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Fatal(err)
		}
		_, section, _ := strings.Cut(file.Doc.Text(), "# JSON")
		section, _, _ = strings.Cut(section, "# What it costs")
		fields := regexp.MustCompile(`(?m)^\t(\w+) +((?:.|\n\t +)+)`).FindAllStringSubmatch(section, -1)
		documented := map[string]string{}
		for _, f := range fields {
			documented[f[1]] = f[2]
		}
		for name, value := range d.Flows[0] {
			text, ok := documented[name]
			if !ok {
				t.Errorf("%s is not documented", name)
			}
			delete(documented, name)
			inner, _ := value.(map[string]any)
			if list, ok := value.([]any); ok {
				if len(list) == 0 {
					t.Fatalf("%s is empty: the test sees none of its fields", name)
				}
				inner = list[0].(map[string]any)
			}
			for field := range inner {
				if !regexp.MustCompile(`\b` + field + `\b`).MatchString(text) {
					t.Errorf("%s.%s is not documented in %q", name, field, text)
				}
			}
		}
		for name := range documented {
			t.Errorf("%s is documented, and there is none", name)
		}
	})
}
