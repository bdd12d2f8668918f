package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// get is what a URL answers, or "" if nobody does.
func get(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("%s answers %s: %v", url, answer.Status, err)
	}
	return string(body)
}

// watchedAt is where the server has said that the page and the metrics are.
func watchedAt(t *testing.T, said string) (page, metrics string) {
	t.Helper()
	m := regexp.MustCompile(`watch it on (http://\S+/debug/flow/)\nscrape (http://\S+/metrics)\n`).FindStringSubmatch(said)
	if m == nil {
		t.Fatalf("the server has not said where to look: %s", said)
	}
	return m[1], m[2]
}

func TestSlowKeyIsSeenOnThePageAndInTheMetrics(t *testing.T) {
	s := startServing(t, "-serve", "127.0.0.1:0", "-debug", "127.0.0.1:0", "-metrics", "127.0.0.1:0",
		"-batch", "1", "-slow", "a", "-slow-by", "20ms")
	await(t, "the addresses", func() bool { return strings.Contains(s.out.String(), "scrape") })
	page, metrics := watchedAt(t, s.out.String())
	stdin, feed := io.Pipe()
	var out, errs lockedBuffer
	code := make(chan int, 1)
	go func() {
		code <- run(context.Background(), []string{"-connect", s.addr, "-in", "-", "-key", "1"}, stdin, &out, &errs)
	}()
	var seen atomic.Bool
	go func() {
		for !seen.Load() {
			_, _ = io.WriteString(feed, "b x\na x\na y\n") // more of a than can be stored
			time.Sleep(10 * time.Millisecond)
		}
		_ = feed.Close()
	}()
	await(t, "the slow key at the top of the page", func() bool {
		var d struct {
			Flows []struct {
				Flow string
				Keys []struct {
					Key     string
					Waiting int
					Running bool
				}
			}
		}
		if err := json.Unmarshal([]byte(get(t, page+"?format=json")), &d); err != nil || len(d.Flows) != 1 || d.Flows[0].Flow != "ingest" {
			t.Fatalf("the page has %+v: %v", d, err)
		}
		keys := d.Flows[0].Keys
		return len(keys) > 0 && keys[0].Key == "a" && keys[0].Waiting > 0 && keys[0].Running
	})
	for _, line := range []string{
		`flow_messages_total\{flow_name="ingest",flow_outcome="succeeded"\} [1-9]`,
		`flow_messages_waiting\{flow_name="ingest"\} [1-9]`,
		`flow_messages_in_flight\{flow_name="ingest"\} 1\b`,
		`flow_capacity\{flow_name="ingest"\} 64\b`,
		`flow_streams_active\{flow_name="ingest"\} 1\b`,
		`flow_message_wait_duration_seconds_count\{flow_name="ingest"\} [1-9]`,
		`flow_handler_duration_seconds_bucket\{flow_name="ingest",flow_outcome="succeeded",le="0.01"\} [1-9]`,
	} {
		await(t, line, func() bool { return regexp.MustCompile(`(?m)^` + line).MatchString(get(t, metrics)) })
	}
	if html := get(t, strings.TrimSuffix(page, "debug/flow/")); !strings.Contains(html, `data-flow="ingest"`) {
		t.Errorf("the address alone does not lead to the page: %.200s", html)
	}
	seen.Store(true)
	if c := <-code; c != exitOK || !strings.HasSuffix(out.String(), yes) {
		t.Errorf("exit code %d\n%s%s", c, out.String(), errs.String())
	}
	s.terminate()
	if c := <-s.code; c != exitOK {
		t.Errorf("the server's exit code is %d: %s", c, s.errs.String())
	}
	if get(t, page) != "" || get(t, metrics) != "" {
		t.Error("the page and the metrics are served on")
	}
}

// A page of another site's, whose name its owner has lead to this machine (DNS rebinding), reads nothing here.
func TestPageIsServedUnderAddressesAndNamesOfItsOwnOnly(t *testing.T) {
	cfg, err := parse(strings.Fields("-debug localhost:0"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWatch(cfg, newMetrics(""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	}()
	addr := regexp.MustCompile(`http://([^/]+)`).FindStringSubmatch(w.notes[0])[1]
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	for host, want := range map[string]int{
		addr: http.StatusOK, "localhost:" + port: http.StatusOK, "LOCALHOST": http.StatusOK, "127.0.0.1": http.StatusOK,
		"[::1]:" + port: http.StatusOK, "[::1]": http.StatusOK, "192.0.2.7:" + port: http.StatusOK,
		"evil.example:" + port: http.StatusForbidden, "evil.example": http.StatusForbidden,
		"localhost.evil.example:" + port: http.StatusForbidden, "127.0.0.1.evil.example": http.StatusForbidden,
		"evil.example.:" + port: http.StatusForbidden,
	} {
		for _, query := range []string{"", "?format=json"} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+debugPath+query, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = host
			answer, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(answer.Body)
			_ = answer.Body.Close()
			if err != nil || answer.StatusCode != want {
				t.Errorf("%s as %q answers %d, want %d: %v", query, host, answer.StatusCode, want, err)
			}
			if want == http.StatusForbidden && !strings.Contains(string(body), "localhost") {
				t.Errorf("the refusal does not say what to ask for: %s", body)
			}
		}
	}
}

func TestNameThatDebugIsGivenIsOneOfThePages(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	for _, c := range []struct {
		debug, host string
		want        int
	}{
		{"build-7.lan:7070", "build-7.lan:7070", http.StatusOK},
		{"build-7.lan:7070", "Build-7.LAN:80", http.StatusOK},
		{"build-7.lan:7070", "build-8.lan:7070", http.StatusForbidden},
		{"build-7.lan:7070", "", http.StatusForbidden},
		{":7070", "build-7.lan:7070", http.StatusForbidden},
		{":7070", "", http.StatusForbidden},
		{":7070", ":7070", http.StatusForbidden},
	} {
		r := httptest.NewRequest(http.MethodGet, debugPath, nil)
		r.Host = c.host
		answer := httptest.NewRecorder()
		underOwnNames(c.debug, page).ServeHTTP(answer, r)
		if answer.Code != c.want {
			t.Errorf("-debug %s: as %q it answers %d, want %d", c.debug, c.host, answer.Code, c.want)
		}
	}
}

func TestAnOpenPageHoldsNoServerUp(t *testing.T) {
	s := startServing(t, "-serve", "127.0.0.1:0", "-debug", "127.0.0.1:0", "-metrics", "127.0.0.1:0")
	await(t, "the addresses", func() bool { return strings.Contains(s.out.String(), "scrape") })
	page, _ := watchedAt(t, s.out.String())
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	events, err := client.Get(page + "?format=events")
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	if _, err := io.ReadFull(events.Body, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	s.terminate()
	if c := <-s.code; c != exitOK {
		t.Errorf("the server's exit code is %d: %s", c, s.errs.String())
	}
}

func TestMetricsCountOnOverARestart(t *testing.T) {
	cfg, err := parse(strings.Fields("-debug 127.0.0.1:0 -metrics 127.0.0.1:0 -records 500 -restart"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode(cfg, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	page, metrics := watchedAt(t, strings.Join(n.watch.notes, "\n")+"\n")
	var out, errs lockedBuffer
	j := &job{cfg: cfg, t: newTerminal(&out, &errs), addr: n.current().addr, middle: n.restart}
	if err := j.run(t.Context(), nil); err != nil {
		t.Errorf("%v\n%s%s", err, out.String(), errs.String())
	}
	if got := get(t, metrics); !regexp.MustCompile(`(?m)^flow_messages_total\{flow_name="ingest",flow_outcome="succeeded"\} 500$`).MatchString(got) ||
		strings.Count(got, "\nflow_capacity{") != 1 {
		t.Errorf("the metrics are\n%s", got)
	}
	if got := get(t, page+"?format=json"); !strings.Contains(got, `"flow":"ingest"`) {
		t.Errorf("the page has %s", got)
	}
	if err := n.stop(); err != nil {
		t.Error(err)
	}
}

func TestAddressThatIsTakenIsNamed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, name := range []string{"-debug", "-metrics"} {
		other := map[string]string{"-debug": "-metrics", "-metrics": "-debug"}[name]
		code, _, errs := try(t, context.Background(), "", name, taken.Addr().String(), other, "127.0.0.1:0", "-records", "1")
		if code != exitFailed || !strings.Contains(errs, "ingest: "+name+": listen tcp "+taken.Addr().String()) {
			t.Errorf("exit code %d: %s", code, errs)
		}
	}
}
