package main

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"
)

// TestWrongFlagIsNamedWithItsValueAndItsRule is what a user who mistyped needs: which flag, what was given, what may be.
func TestWrongFlagIsNamedWithItsValueAndItsRule(t *testing.T) {
	for args, want := range map[string]string{
		"-devices 0":                              `invalid value "0" for flag -devices: must be a whole number, at least 1`,
		"-records -1":                             `invalid value "-1" for flag -records: must be a whole number, at least 0`,
		"-streams many":                           `invalid value "many" for flag -streams: must be a whole number, at least 1`,
		"-capacity -3":                            `invalid value "-3" for flag -capacity: must be a whole number, at least 0`,
		"-mode lifo":                              `invalid value "lifo" for flag -mode: must be one of fifo, keyed, none`,
		"-policy block":                           `invalid value "block" for flag -policy: must be one of hard, queue, signal, soft`,
		"-policy hard -capacity 0":                `invalid value "hard" for flag -policy: needs a -capacity above 0`,
		"-batch 0":                                `invalid value "0" for flag -batch: must be a whole number, at least 1`,
		"-batch 2 -policy hard":                   `invalid value "2" for flag -batch: can't go with this -policy`,
		"-batch 2 -capacity 0":                    `invalid value "2" for flag -batch: needs a -capacity above 0`,
		"-batch 2 -connect 1.1.1.1:1":             `invalid value "2" for flag -batch: is the server's`,
		"-kill=maybe":                             `invalid boolean value "maybe" for -kill: must be true or false`,
		"-kill -restart":                          `invalid value "true" for flag -kill: can't go with -restart`,
		"-kill -connect 127.0.0.1:1":              `invalid value "true" for flag -kill: needs both halves`,
		"-grace 0s":                               `invalid value "0s" for flag -grace: must be a duration above 0`,
		"-slow-by 1 -slow device-1":               `invalid value "1" for flag -slow-by: must be a duration above 0`,
		"-slow-by 1s -slow none":                  `invalid value "1s" for flag -slow-by: needs -slow`,
		"-slow-by 1s -devices 9":                  `invalid value "1s" for flag -slow-by: needs -slow`,
		"-slow-by 1s -in x -key 1":                `invalid value "1s" for flag -slow-by: needs -slow`,
		"-slow=":                                  `invalid value "" for flag -slow: must be a key, or none`,
		"-slow toaster":                           `invalid value "toaster" for flag -slow: must be a key of the generated fleet: device-1 to device-100`,
		"-slow device-07":                         `invalid value "device-07" for flag -slow: must be a key of the generated fleet`,
		"-fail 1":                                 `invalid value "1" for flag -fail: must be a number from 0 to below 1`,
		"-fail NaN":                               `invalid value "NaN" for flag -fail: must be a number from 0 to below 1`,
		"-fail -0.1":                              `invalid value "-0.1" for flag -fail: must be a number from 0 to below 1`,
		"-restart=maybe":                          `invalid boolean value "maybe" for -restart: must be true or false`,
		"-restart -serve 127.0.0.1:0":             `invalid value "true" for flag -restart: needs both halves in one process`,
		"-serve here":                             `invalid value "here" for flag -serve: must be host:port`,
		"-serve 127.0.0.1:70000":                  `invalid value "127.0.0.1:70000" for flag -serve: must be host:port`,
		"-connect 127.0.0.1:0":                    `invalid value "127.0.0.1:0" for flag -connect: must have the port that the server printed`,
		"-serve 127.0.0.1:0 -connect 127.0.0.1:1": `invalid value "127.0.0.1:1" for flag -connect: can't go with -serve`,
		"-serve 127.0.0.1:0 -records 5":           `invalid value "5" for flag -records: is the client's`,
		"-connect 127.0.0.1:1 -mode fifo":         `invalid value "fifo" for flag -mode: is the server's`,
		"-in x":                                   `invalid value "x" for flag -in: needs -key`,
		"-in= -key 1":                             `invalid value "1" for flag -key: needs -in`,
		"-in x -key 0":                            `invalid value "0" for flag -key: must be a column counted from 1`,
		"-in x -key=":                             `invalid value "" for flag -key: must be a column counted from 1`,
		"-in x -key 1 -bad ignore":                `invalid value "ignore" for flag -bad: must be one of skip, stop`,
		"-in x -key 1 -devices 5":                 `invalid value "5" for flag -devices: can't go with -in`,
		"-key 5":                                  `invalid value "5" for flag -key: needs -in`,
		"-tls=":                                   `invalid value "" for flag -tls: must be a PEM file`,
		"-unknown":                                `-unknown`,
		"upload":                                  `unexpected argument "upload"`,

		"-debug 7070":           `invalid value "7070" for flag -debug: must be host:port`,
		"-debug=":               `invalid value "" for flag -debug: must be host:port`,
		"-metrics localhost":    `invalid value "localhost" for flag -metrics: must be host:port`,
		"-metrics 127.0.0.1:-1": `invalid value "127.0.0.1:-1" for flag -metrics: must be host:port`,
		"-debug 127.0.0.1:0 -connect 127.0.0.1:1":       `invalid value "127.0.0.1:0" for flag -debug: is the server's`,
		"-metrics 127.0.0.1:0 -connect 127.0.0.1:1":     `invalid value "127.0.0.1:0" for flag -metrics: is the server's`,
		"-debug 127.0.0.1:7071 -metrics 127.0.0.1:7071": `invalid value "127.0.0.1:7071" for flag -metrics: must be an address of its own`,
		"-debug 127.0.0.1:7443 -serve 127.0.0.1:7443":   `invalid value "127.0.0.1:7443" for flag -debug: must be an address of its own`,
	} {
		var out, errs bytes.Buffer
		code := run(context.Background(), strings.Fields(args), strings.NewReader(""), &out, &errs)
		if code != exitUsage {
			t.Errorf("%s: exit code %d, want %d", args, code, exitUsage)
		}
		if !strings.Contains(errs.String(), want) {
			t.Errorf("%s: says %q, want %q", args, errs.String(), want)
		}
		if out.Len() > 0 {
			t.Errorf("%s: wrote %q to the standard output", args, out.String())
		}
	}
}

func TestHelpNamesEveryFlagAndExitsWell(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(context.Background(), []string{"-h"}, nil, &out, &errs); code != exitOK {
		t.Errorf("exit code %d, want %d", code, exitOK)
	}
	for _, name := range append([]string{"serve", "connect", "tls"}, append(clientFlags, serverFlags...)...) {
		if !regexp.MustCompile(`-` + name + `\b`).MatchString(out.String()) {
			t.Errorf("the help doesn't name -%s", name)
		}
	}
}

func TestOneDeviceOfManyIsSlowByDefault(t *testing.T) {
	for args, want := range map[string]string{
		"":                     "device-7",
		"-devices 10":          "device-7",
		"-devices 9":           "",
		"-slow device-3":       "device-3",
		"-slow none":           "",
		"-in x -key 1":         "",
		"-serve 127.0.0.1:0":   "",
		"-connect 127.0.0.1:1": "",
	} {
		if c, err := parse(strings.Fields(args)); err != nil || c.slow != want {
			t.Errorf("%q: %q is slow, %v; want %q", args, c.slow, err, want)
		}
	}
}

func TestBatchesAreUsualWhereTheyCanBe(t *testing.T) {
	for args, want := range map[string][2]int{ // batch, capacity
		"":                          {16, 8},
		"-capacity 9":               {16, 9},
		"-batch 1":                  {1, 64},
		"-batch 7 -capacity 9":      {7, 9},
		"-policy hard":              {1, 64},
		"-policy soft -capacity 2":  {1, 2},
		"-policy queue":             {16, 8},
		"-capacity 0":               {1, 0},
		"-policy signal -batch 1":   {1, 64},
		"-serve 127.0.0.1:0":        {16, 8},
		"-kill -batch 3 -records 7": {3, 8},
	} {
		if c, err := parse(strings.Fields(args)); err != nil || c.batch != want[0] || c.capacity != want[1] {
			t.Errorf("%q: batch %d, capacity %d, %v; want %v", args, c.batch, c.capacity, err, want)
		}
	}
}

func TestRecordsAreFewerWhereTheyAreRefused(t *testing.T) {
	for args, want := range map[string]int{"": 20000, "-policy soft": 20000, "-policy hard": 3000, "-policy hard -records 7": 7} {
		if c, err := parse(strings.Fields(args)); err != nil || c.records != want {
			t.Errorf("%q: %d records, %v; want %d", args, c.records, err, want)
		}
	}
}

// A server in a process of its own is given what concerns it, and nothing else.
func TestServerProcessIsGivenTheServersFlags(t *testing.T) {
	for args, want := range map[string]string{
		"-kill": "-serve a -db f -slow device-7",
		"-kill -slow none -records 5 -streams 2 -tls x -fail 0.1 -grace 1s -batch 2": "-serve a -db f -tls=x -batch=2 -grace=1s -fail=0.1",
		"-kill -slow device-3 -slow-by 1s -debug 127.0.0.1:0 -db x":                  "-serve a -db f -slow-by=1s -debug=127.0.0.1:0 -slow device-3",
	} {
		c, err := parse(strings.Fields(args))
		if err != nil {
			t.Fatal(err)
		}
		got := c.serverArgs("a", "f")
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %q", args, got, want)
		}
		if _, err := parse(append([]string{"-serve", "127.0.0.1:0"}, got[2:]...)); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
}
