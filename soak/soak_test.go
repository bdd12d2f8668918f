package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"example.com/flow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// few is a load for tests, which run beside others on small machines and have so few messages that five late ones move
// the p99: so slow handlers are slow, for what is allowed follows from that, and stalls stand out all the same.
func few(length time.Duration) config {
	return config{
		streams: 100, conns: 4, length: length, life: time.Second,
		slow: 200 * time.Millisecond, stall: 3 * time.Second, grace: 15 * time.Second,
	}
}

func TestAFewSecondsOfMixedLoadKeepEveryPromise(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	var r *report
	for range 3 { // the machine may be too slow for a while; whoever is hurt while it keeps up is so at once
		var err error
		if r, err = soak(few(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		t.Log(r)
		if r.keptUp().holds {
			break
		}
	}
	if !r.holds() {
		t.Error("a promise does not hold")
	}
	for _, w := range r.rows() {
		if !strings.Contains(r.String(), w.what) {
			t.Errorf("the report does not tell of %q", w.what)
		}
	}
}

func TestWhoIsHurtByStalledStreamsShows(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	for what, worsen := range map[string]func(*flow.Options){
		"by slots": func(o *flow.Options) { o.Backpressure.Capacity = 5 }, // ten handlers stand still
		"by order": func(o *flow.Options) { o.Ordering.Scope = flow.ScopeFlow },
	} {
		t.Run(what, func(t *testing.T) {
			cfg := few(3 * time.Second)
			cfg.life, cfg.stall, cfg.grace = 3*time.Second, time.Second, 2*time.Second
			cfg.worsen = worsen
			r, err := soak(cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(r)
			if !slices.ContainsFunc(r.unhurt(), func(w row) bool { return !w.holds }) {
				t.Error("nobody is said to be hurt")
			}
		})
	}
}
