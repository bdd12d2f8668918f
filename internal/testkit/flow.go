package testkit

import (
	"strings"
	"testing"

	"example.com/flow"
)

// KeyOf is the key function of the messages here, which are strings: the key of "a1" is "a", and so is that of "a"; that of
// "1" is "".
func KeyOf(v string) string { return strings.TrimRight(v, "0123456789") }

// New is [flow.New] with KeyOf, for options that are valid.
func New(t testing.TB, h flow.Handler[string], o flow.Options) *flow.Flow[string] {
	t.Helper()
	f, err := flow.New(h, KeyOf, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Keyed and Unordered are the two modes that are not the zero value.
var (
	Keyed     = flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}
	Unordered = flow.OrderingOptions{Mode: flow.OrderingNone}
)
