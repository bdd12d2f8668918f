package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if code, child := runChild(); child {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// seconds is a part for tests, which run beside others on small machines.
func seconds(kind kind) part {
	return part{kind: kind, length: 6 * time.Second, messages: 1500, keys: 50, sessions: 2}
}

func TestUploadsSurviveSecondsOfKills(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	for _, kind := range []kind{withOnce, withoutOnce, inMemory} {
		t.Run(kind.String(), func(t *testing.T) {
			for range 5 { // not all that is to happen must have happened in so few seconds
				r, err := seconds(kind).run(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				t.Log(r)
				if !holds(r.promises()) {
					t.Fatal("a promise was broken")
				}
				if r.kept() {
					return
				}
			}
			t.Error("not all happened that was to")
		})
	}
}

func TestPlantedFaultIsFound(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	for _, c := range []struct {
		name  string
		plant func(*part)
		found []string
	}{
		{"two messages of a key change places", func(p *part) { p.swap = true }, []string{" came under the number ", " is out of order: "}},
		{"servers without Once", func(p *part) { p.twice = true }, []string{" has two effects"}},
		{"messages are lost", func(p *part) { p.lose = true }, []string{" was acknowledged, and is absent"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := seconds(withOnce)
			c.plant(&p)
			for range 3 { // whether something runs twice is left to chance
				r, err := p.run(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				t.Log(r)
				if !holds(r.promises()) {
					for _, text := range c.found {
						if !strings.Contains(strings.Join(r.counts.first, "\n"), text) {
							t.Errorf("the report does not say %q", text)
						}
					}
					if r.kept() {
						t.Error("a broken promise counts as kept")
					}
					return
				}
			}
			t.Error("no promise is said to be broken")
		})
	}
}

func TestWrongFlagsAreNamed(t *testing.T) {
	for _, c := range []struct {
		o    options
		only string
		rest []string
		want string
	}{
		{options{length: -1, keys: 1, sessions: 1}, "all", nil, "-for must not be negative (got -1ns)"},
		{options{length: 1, messages: -1, keys: 1, sessions: 1}, "all", nil, "-messages must not be negative (got -1)"},
		{options{keys: 1, sessions: 1}, "all", nil, "-messages must be given with -for 0"},
		{options{length: 1, sessions: 1}, "all", nil, "-keys and -sessions must be at least 1 (got 0 and 1)"},
		{options{length: 1, keys: 1, sessions: 1}, "twice", nil, `-part must be once, plain, memory or all (got "twice")`},
		{options{length: 1, keys: 1, sessions: 1}, "all", []string{"now"}, `there are only flags (got "now")`},
	} {
		if _, err := c.o.parts(c.only, c.rest); err == nil || err.Error() != c.want {
			t.Errorf("%+v, %s, %q: %v, want %s", c.o, c.only, c.rest, err, c.want)
		}
	}
}

func TestPartsShareTheTime(t *testing.T) {
	all, err := options{length: time.Minute, keys: 7, sessions: 2}.parts("all", nil)
	if err != nil || len(all) != 3 {
		t.Fatal(all, err)
	}
	want := part{kind: withOnce, length: 40 * time.Second, messages: 20000, keys: 7, sessions: 2}
	if all[0] != want || all[1].length != 10*time.Second || all[2].length != 10*time.Second {
		t.Errorf("%+v", all)
	}
	one, err := options{length: time.Minute, messages: 600, keys: 7, sessions: 2}.parts("memory", nil)
	if err != nil || len(one) != 1 || one[0].length != time.Minute || one[0].messages != 300 || one[0].kind != inMemory {
		t.Errorf("%+v, %v", one, err)
	}
}

// A server that is started just when all are to end is killed, and must not be started once more: it would be for ever.
func TestServersThatAreToEndAreNotStartedAgain(t *testing.T) {
	r := &run{part: seconds(withOnce), database: filepath.Join(t.TempDir(), "kill.db")}
	r.ctx, r.cancel = context.WithCancel(t.Context())
	defer r.cancel()
	r.servers = &servers{run: r, all: make([]serverPlace, 1)}
	r.servers.end()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.servers.keep(0)
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("a server is started again and again")
		r.cancel()
		<-ended
	}
}
