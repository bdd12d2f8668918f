package main

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What is allowed for delays is a stall's length here, not less: tests run beside others on small machines.
func TestAFewSecondsOfMixedLoadKeepEveryPromise(t *testing.T) {
	r, err := soak(config{
		streams: 100, conns: 4, length: 5 * time.Second, life: time.Second,
		stall: 500 * time.Millisecond, grace: 15 * time.Second, keepUp: 2 * time.Second, hurt: 500 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r)
	if !r.holds() {
		t.Error("a promise does not hold")
	}
	for _, w := range r.rows() {
		if !strings.Contains(r.String(), w.what) {
			t.Errorf("the report does not tell of %q", w.what)
		}
	}
}
