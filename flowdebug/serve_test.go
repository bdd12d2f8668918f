package flowdebug_test

import (
	"crypto/sha256"
	"encoding/base64"
	"html"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"example.com/flow/flowdebug"
)

func TestMethodsOtherThanGETAndHEADAreRefused(t *testing.T) {
	page := flowdebug.New()
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions} {
		if w := ask(page, method, ""); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s answers %d", method, w.Code)
		}
	}
	for _, format := range []string{"", "?format=json", "?format=events"} {
		if w := ask(page, http.MethodHead, format); w.Code != http.StatusOK || w.Header().Get("Content-Type") == "" {
			t.Errorf("HEAD %q answers %d", format, w.Code)
		}
	}
	if w := ask(page, http.MethodGet, "?format=xml"); w.Code != http.StatusBadRequest {
		t.Errorf("an unknown format answers %d", w.Code)
	}
}

func TestAcceptPicksTheForm(t *testing.T) {
	for accept, want := range map[string]string{
		"": "text/html", "*/*": "text/html", "application/json": "application/json",
		"text/html,application/xhtml+xml,*/*;q=0.8": "text/html",
		"application/json;q=0.9, text/html;q=0.1":   "application/json",
		"text/event-stream":                         "text/event-stream",
	} {
		got := ask(flowdebug.New(), http.MethodHead, "", "Accept", accept).Header().Get("Content-Type")
		if !strings.HasPrefix(got, want) {
			t.Errorf("Accept %q is answered with %q, want %q", accept, got, want)
		}
	}
}

func TestPageEscapesNamesAndAllowsOnlyItsOwnScript(t *testing.T) {
	page := flowdebug.New()
	page.Add(hostile, fake{})
	page.Add("other", fake{})
	w := ask(page, http.MethodGet, "")
	body := w.Body.String()
	if strings.Contains(body, "<img") || !strings.Contains(body, html.EscapeString("<img src=x")) {
		t.Errorf("the name is not escaped:\n%.2000s", body)
	}
	policy := w.Header().Get("Content-Security-Policy")
	if strings.Contains(policy, "unsafe") || !strings.HasPrefix(policy, "default-src 'none';") {
		t.Errorf("policy is %s", policy)
	}
	for _, element := range []string{"script", "style"} {
		all := regexp.MustCompile(`(?s)<`+element+`>(.*?)</`+element+`>`).FindAllStringSubmatch(body, -1)
		if len(all) != 1 {
			t.Fatalf("the page has %d of %s", len(all), element)
		}
		sum := sha256.Sum256([]byte(all[0][1]))
		if want := element + "-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !strings.Contains(policy, want) {
			t.Errorf("policy has no %s: %s", want, policy)
		}
	}
	if external := regexp.MustCompile(`(src|href)="[^?"]`).FindString(body); external != "" {
		t.Errorf("the page loads something: %s", external)
	}
}
