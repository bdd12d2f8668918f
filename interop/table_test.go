package main

import (
	"errors"
	"testing"
)

// TestTableSaysWhatWasNotRunAndWhy has a client that is not there, one that can't do a case, and one that fails.
func TestTableSaysWhatWasNotRunAndWhy(t *testing.T) {
	m := &matrix{
		clients: []*client{
			{name: "good", version: "v1"},
			{name: "bad", version: "v2", partly: "only codes"},
			{name: "unable", version: "v3", cannot: map[string]string{"two": "it has one hand"}},
			{name: "gone", version: "v4"},
		},
		cases:   []testCase{{name: "one"}, {name: "two"}},
		routes:  routes,
		missing: map[string]error{"gone": errors.New("no network"), "nginx": errors.New("no room")},
		results: map[cell]error{},
	}
	if !m.failed() {
		t.Error("nothing was run, and that is well")
	}
	for _, c := range []string{"good", "bad"} {
		for _, test := range []string{"one", "two"} {
			for _, route := range []string{"plain", "TLS"} {
				m.results[cell{c, test, route}] = nil
			}
		}
	}
	m.results[cell{"unable", "one", "plain"}] = nil
	if m.failed() {
		t.Error("everything went well, and it failed")
	}
	m.results[cell{"bad", "two", "TLS"}] = errors.New("it\nhung")
	if !m.failed() {
		t.Error("a trial failed, and that is well")
	}
	const want = `|  | good v1 | bad v2 [1] | unable v3 | gone |
| --- | --- | --- | --- | --- |
| one | 2 of 2 | 2 of 2 | 1 of 1 | skipped [2] |
| two | 2 of 2 | 1 of 2, FAILED by TLS [3] | can't [4] | skipped [2] |

Routes: plain, TLS, nginx (skipped, no room), nginx and TLS (skipped, no room), late headers.
1. bad: only codes
2. gone is not installed: no network
3. bad, two, TLS: it hung
4. unable: it has one hand
`
	if got := m.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
