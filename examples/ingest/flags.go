package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.com/flow"
)

// parse reads the flags. Its error names a flag, its value and the rule that it breaks.
func parse(args []string) (*config, error) {
	c := &config{
		devices: 100, records: 20000, bad: "stop", streams: 1,
		mode: flow.OrderingKeyedFIFO, batch: usualBatch, grace: 10 * time.Second, slowBy: 30 * time.Millisecond,
	}
	fs := flag.NewFlagSet("ingest", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // run prints the error
	given := map[string]string{}
	c.given = given
	define := func(name string, set func(string) error) {
		fs.Func(name, "", func(s string) error {
			given[name] = s
			return set(s)
		})
	}
	define("devices", count(1, &c.devices))
	define("records", count(0, &c.records))
	define("in", text(&c.in))
	define("key", text(&c.key))
	define("bad", choice(map[string]string{"stop": "stop", "skip": "skip"}, &c.bad))
	define("streams", count(1, &c.streams))
	define("mode", choice(map[string]flow.OrderingMode{
		"fifo": flow.OrderingFIFO, "keyed": flow.OrderingKeyedFIFO, "none": flow.OrderingNone,
	}, &c.mode))
	define("batch", count(1, &c.batch))
	define("capacity", count(0, &c.capacity))
	define("policy", choice(map[string]flow.BackpressurePolicy{
		"queue": flow.BackpressureQueue, "hard": flow.BackpressureHardReject,
		"soft": flow.BackpressureSoftAllow, "signal": flow.BackpressureSoftAllowWithSignal,
	}, &c.policy))
	define("db", text(&c.db))
	define("grace", duration(&c.grace))
	define("slow", text(&c.slow))
	define("slow-by", duration(&c.slowBy))
	define("fail", share(&c.fail))
	define("debug", address(&c.debug))
	define("metrics", address(&c.metrics))
	define("serve", address(&c.serve))
	define("connect", address(&c.connect))
	define("tls", text(&c.tls))
	for name, to := range map[string]*bool{"restart": &c.restart, "kill": &c.kill} {
		fs.BoolFunc(name, "", func(s string) (err error) {
			given[name] = s
			if *to, err = strconv.ParseBool(s); err != nil {
				return errors.New("must be true or false")
			}
			return nil
		})
	}
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q: there are only flags", fs.Arg(0))
	}
	if _, ok := given["slow"]; !ok {
		c.slow = c.usuallySlow()
	} else if c.slow == noneSlow {
		c.slow = ""
	}
	c.completeBatch()
	if _, ok := given["records"]; !ok && c.policy == flow.BackpressureHardReject {
		c.records = refusedRecords
	}
	if name, rule := c.conflict(given); name != "" {
		return nil, fmt.Errorf("invalid value %q for flag -%s: %s", given[name], name, rule)
	}
	return c, nil
}

// refusedRecords is how many records there are with -policy hard: they are stored one by one, and the client slows down each
// time that one is refused, so that as many as usual would take half a minute.
const refusedRecords = 3000

// usualBatch is enough for most of what there is to win, and so few that most keys are in other calls than the slow one.
const usualBatch = 16

// completeBatch sets what was not given: a batch goes with a bounded number of calls whose records wait, and needs few of
// them to be a large one.
func (c *config) completeBatch() {
	_, batch := c.given["batch"]
	_, capacity := c.given["capacity"]
	if !batch && (c.policy != flow.BackpressureQueue || capacity && c.capacity == 0) {
		c.batch = 1
	}
	switch {
	case capacity:
	case c.batch > 1:
		c.capacity = 8
	default:
		c.capacity = 64
	}
}

// noneSlow as the value of -slow has no key slow.
const noneSlow = "none"

// usuallySlow is the key that is slow without -slow: one device of many. Own input, and a server that does not know what
// it will get, have none.
func (c *config) usuallySlow() string {
	if c.in+c.serve+c.connect != "" || c.devices < 10 {
		return ""
	}
	return device(7)
}

// Which half a flag is for, where it is not for both.
var (
	clientFlags = []string{"devices", "records", "in", "key", "bad", "streams", "restart", "kill"}
	serverFlags = []string{"mode", "batch", "capacity", "policy", "db", "grace", "slow", "slow-by", "fail", "debug", "metrics"}
)

// conflict finds a flag that doesn't go with the others. One that would do nothing is a mistake too.
func (c *config) conflict(given map[string]string) (name, rule string) {
	has := func(name string) bool { _, ok := given[name]; return ok }
	switch {
	case c.serve != "" && c.connect != "":
		return "connect", "can't go with -serve: the two halves are two processes"
	case c.restart && c.serve+c.connect != "":
		return "restart", "needs both halves in one process; with -serve, stop the server and start it again with the same -db"
	case c.kill && c.serve+c.connect != "":
		return "kill", "needs both halves; with -serve, kill the server and start it again with the same -db"
	case c.kill && c.restart:
		return "kill", "can't go with -restart: one of them is enough"
	case c.batch > 1 && c.policy != flow.BackpressureQueue:
		return "batch", "can't go with this -policy: records are batched while they wait"
	case c.batch > 1 && c.capacity == 0:
		return "batch", "needs a -capacity above 0: without a limit no batch would ever form"
	case strings.HasSuffix(c.connect, ":0"):
		return "connect", "must have the port that the server printed"
	}
	for _, name := range clientFlags {
		if c.serve != "" && has(name) {
			return name, "is the client's: give it to the process with -connect"
		}
	}
	for _, name := range serverFlags {
		if c.connect != "" && has(name) {
			return name, "is the server's: give it to the process with -serve"
		}
	}
	for _, a := range [][3]string{{"debug", c.debug, c.serve}, {"metrics", c.metrics, c.serve}, {"metrics", c.metrics, c.debug}} {
		if name, addr, other := a[0], a[1], a[2]; addr != "" && addr == other && !strings.HasSuffix(addr, ":0") {
			return name, "must be an address of its own"
		}
	}
	for _, name := range []string{"key", "bad"} {
		if c.in == "" && has(name) {
			return name, "needs -in: the generated fleet has its own keys and no bad lines"
		}
	}
	for _, name := range []string{"devices", "records"} {
		if c.in != "" && has(name) {
			return name, "can't go with -in: there is no generated fleet then"
		}
	}
	switch {
	case has("in") && c.in == "":
		return "in", "must be a file, or - for standard input"
	case c.in != "" && !has("key"):
		return "in", "needs -key: the column or the field that has a line's key"
	case has("key") && c.key == "":
		return "key", "must be a column counted from 1, or the name of a field"
	case c.policy != flow.BackpressureQueue && c.capacity == 0:
		return "policy", "needs a -capacity above 0: without a limit it is never exhausted"
	case has("slow-by") && c.slow == "":
		return "slow-by", "needs -slow: the key to make slow"
	case has("tls") && c.tls == "":
		return "tls", "must be a PEM file"
	case has("slow") && c.slow == "" && given["slow"] != noneSlow:
		return "slow", "must be a key, or none"
	case c.slow != "" && c.in+c.serve == "" && !isDevice(c.slow, c.devices):
		return "slow", fmt.Sprintf("must be a key of the generated fleet: device-1 to device-%d", c.devices)
	}
	if n, err := strconv.Atoi(c.key); err == nil && n < 1 {
		return "key", "must be a column counted from 1, or the name of a field"
	}
	return "", ""
}

func text(to *string) func(string) error {
	return func(s string) error {
		*to = s
		return nil
	}
}

func count(least int, to *int) func(string) error {
	return func(s string) (err error) {
		if *to, err = strconv.Atoi(s); err != nil || *to < least {
			return fmt.Errorf("must be a whole number, at least %d", least)
		}
		return nil
	}
}

func share(to *float64) func(string) error {
	return func(s string) (err error) {
		if *to, err = strconv.ParseFloat(s, 64); err != nil || math.IsNaN(*to) || *to < 0 || *to >= 1 {
			return errors.New("must be a number from 0 to below 1")
		}
		return nil
	}
}

func duration(to *time.Duration) func(string) error {
	return func(s string) (err error) {
		if *to, err = time.ParseDuration(s); err != nil || *to <= 0 {
			return errors.New("must be a duration above 0, such as 50ms or 10s")
		}
		return nil
	}
}

func address(to *string) func(string) error {
	return func(s string) error {
		*to = s
		_, port, err := net.SplitHostPort(s)
		if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil {
			return errors.New("must be host:port, such as 127.0.0.1:7443")
		}
		return nil
	}
}

func choice[T any](of map[string]T, to *T) func(string) error {
	return func(s string) error {
		v, ok := of[s]
		if !ok {
			names := make([]string, 0, len(of))
			for name := range of {
				names = append(names, name)
			}
			slices.Sort(names)
			return fmt.Errorf("must be one of %s", strings.Join(names, ", "))
		}
		*to = v
		return nil
	}
}
