package browser_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"example.com/flow"
	"example.com/flow/flowdebug"
)

func TestPageComesBackAfterItsServer(t *testing.T) {
	s := newSite(t, "uploads")
	b := openTab(t, s.URL)
	b.await(live)
	addr := s.Listener.Addr().String()
	s.CloseClientConnections()
	s.Close()
	b.await(`document.body.dataset.state === "lost" && /^Connection lost at /.test(document.getElementById("status").textContent)`)
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	page := flowdebug.New() // another process, in which the Flow is not there yet
	next := &http.Server{Handler: page}
	served := make(chan error, 1)
	go func() { served <- next.Serve(listener) }()
	defer func() { _ = next.Close(); <-served }()
	time.Sleep(1500 * time.Millisecond) // the browser asks, and is told 404
	page.Add("uploads", fake{Stats: flow.Stats{Capacity: 7}})
	b.await(live)
	b.await(`document.getElementById("inflight").textContent === "0 of 7"`)
}

// fake is a Source whose Snapshot is given.
type fake flow.Snapshot

func (f fake) Snapshot(int) flow.Snapshot { return flow.Snapshot(f) }

func TestServerThatFallsSilentIsNoticed(t *testing.T) {
	page := flowdebug.New()
	page.Add("uploads", fake{})
	connections := make(chan bool, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("format") != "events" {
			page.ServeHTTP(w, r)
			return
		}
		first := len(connections) == 0
		connections <- first
		if !first {
			page.ServeHTTP(w, r)
			return
		}
		limited, cancel := context.WithTimeout(r.Context(), 100*time.Millisecond)
		defer cancel()
		page.ServeHTTP(w, r.WithContext(limited))
		<-r.Context().Done() // the connection is there, and nothing comes of it
	}))
	defer server.Close()
	defer server.CloseClientConnections()
	b := openTab(t, server.URL)
	b.await(live)
	eval[any](b, `window.said = []; new MutationObserver(() => said.push(document.getElementById("status").textContent))
		.observe(document.getElementById("status"), { childList: true })`)
	b.await(`said.length >= 2`)
	if said := eval[[]string](b, `said`); !strings.HasPrefix(said[0], "Connection lost at ") || said[1] != "Live" {
		t.Errorf("the page says %q", said)
	}
}

func TestPageThatIsNotSeenAsksForNothing(t *testing.T) {
	s := newSite(t, "uploads")
	b := openTab(t, s.URL)
	b.await(live)
	hide := func(hidden bool) {
		eval[any](b, fmt.Sprintf(`Object.defineProperty(document, "hidden", { value: %v, configurable: true }); document.dispatchEvent(new Event("visibilitychange"))`, hidden))
	}
	streams := func(want int32) { // are open, and stay so
		t.Helper()
		for end, seen := time.Now().Add(30*time.Second), 0; seen < 20; time.Sleep(20 * time.Millisecond) {
			if seen++; s.open.Load() != want {
				seen = 0
			}
			if time.Now().After(end) {
				t.Fatalf("%d streams of events are open, want %d", s.open.Load(), want)
			}
		}
	}
	streams(1)
	hide(true)
	streams(0)
	hide(false)
	streams(1)
	b.await(live)
	b.do(chromedp.Click("#pause"))
	streams(0)
	hide(true)
	hide(false)
	if state := eval[string](b, `document.body.dataset.state`); state != "paused" || s.open.Load() != 0 {
		t.Errorf("after a pause and a look elsewhere the page is %s", state)
	}
}

func TestWithoutJavaScriptThePageSaysSoAndLeadsToTheJSON(t *testing.T) {
	s := newSite(t, "uploads")
	b := openTab(t, s.URL, command(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}))
	text := eval[string](b, `document.body.innerText`)
	if !strings.Contains(text, "This page needs JavaScript. The same as JSON does not.") || strings.Contains(text, "In flight") {
		t.Errorf("the page says %q", text)
	}
	b.do(chromedp.Click("noscript a"))
	b.await(`/^\{"flows":\[/.test(document.body.innerText)`)
}

func TestPageNeedsNothingButItsServer(t *testing.T) {
	s := newSite(t, "uploads")
	b := openTab(t, s.URL)
	b.await(live)
	for _, url := range eval[[]string](b, `performance.getEntries().map((e) => e.name).filter((n) => n.includes(":"))`) {
		if !strings.HasPrefix(url, s.URL) {
			t.Errorf("the page asks for %s", url)
		}
	}
	eval[any](b, `document.body.append(Object.assign(document.createElement("script"), { textContent: "document.title = 'owned'" }))`)
	eval[any](b, `fetch("http://127.0.0.1:9/").catch(() => {})`)
	b.await(`document.title === "uploads – flow"`)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		said := b.complaints()
		if strings.Contains(said, "script-src") && strings.Contains(said, "connect-src") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("a script from elsewhere, and a request to elsewhere, are not refused: %s", said)
		}
	}
}
