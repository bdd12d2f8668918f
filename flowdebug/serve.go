package flowdebug

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // the page
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	pageTemplate = template.Must(template.New("page").Parse(pageHTML))

	// policy allows the page its own script and style, by hash, and requests to where it came from; and nothing else.
	policy = fmt.Sprintf("default-src 'none'; script-src '%s'; style-src '%s'; connect-src 'self'; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'", hashOf(pageJS), hashOf(pageCSS))
)

func hashOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// ServeHTTP implements http.Handler, for whatever path the page is mounted at. Only GET and HEAD are allowed.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	name := r.URL.Query().Get("flow")
	flows := p.added(name)
	if name != "" && len(flows) == 0 {
		http.Error(w, "no such Flow", http.StatusNotFound)
		return
	}
	switch format(r) {
	case "html":
		p.serveHTML(w, flows)
	case "json":
		h.Set("Content-Type", "application/json")
		_, _ = w.Write(append(encode(flows), '\n'))
	case "events":
		h.Set("Content-Type", "text/event-stream")
		h.Set("X-Accel-Buffering", "no") // or nginx and its like would collect events before they pass them on
		if r.Method == http.MethodGet {
			serveEvents(r.Context(), w, flows)
		}
	default:
		http.Error(w, "format must be html, json or events", http.StatusBadRequest)
	}
}

// format returns the format that the request asks for: by name, or else by the first known type in Accept.
func format(r *http.Request) string {
	if f := r.URL.Query().Get("format"); f != "" {
		return f
	}
	for accepted := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		switch kind, _, _ := strings.Cut(strings.TrimSpace(accepted), ";"); kind {
		case "text/html":
			return "html"
		case "application/json":
			return "json"
		case "text/event-stream":
			return "events"
		}
	}
	return "html"
}

// serveHTML serves the page of the first of flows, with links to the others.
func (p *Page) serveHTML(w http.ResponseWriter, flows []*entry) {
	data := struct {
		Flow  string
		Flows []string
		CSS   template.CSS
		JS    template.JS
	}{CSS: template.CSS(pageCSS), JS: template.JS(pageJS)} // trusted: they are embedded
	if len(flows) > 0 {
		data.Flow = flows[0].name
	}
	for _, e := range p.added("") {
		data.Flows = append(data.Flows, e.name)
	}
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, data); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes())
}

// encode returns the JSON document of flows.
func encode(flows []*entry) []byte {
	b := []byte(`{"flows":[`)
	for i, e := range flows {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, e.snapshot()...)
	}
	return append(b, "]}"...)
}

const (
	interval     = 500 * time.Millisecond
	retryAfter   = time.Second      // until a client that lost its connection makes another
	writeTimeout = 10 * time.Second // of an event: its client does not read
)

// serveEvents sends a document at each interval until ctx ends, or the client has gone away or does not read.
func serveEvents(ctx context.Context, w http.ResponseWriter, flows []*entry) {
	c := http.NewResponseController(w)
	defer func() { _ = c.SetWriteDeadline(time.Time{}) }()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	prefix := fmt.Sprintf("retry: %d\n", retryAfter.Milliseconds()) // of the first event only
	for ctx.Err() == nil {
		_ = c.SetWriteDeadline(time.Now().Add(writeTimeout)) // a ResponseWriter that can't has its own
		if _, err := fmt.Fprintf(w, "%sdata: %s\n\n", prefix, encode(flows)); err != nil {
			return
		}
		prefix = ""
		if c.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}
