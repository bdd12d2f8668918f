package flow_test

import (
	"testing"

	"pgregory.net/rapid"
)

// The model test: rapid draws scripts, each is played in a bubble of its own. Any number of them:
//
//	go test -run Model -rapid.checks=10000

func TestModelHoldsForAnyScript(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		if wrong := play(t, drawScript(rt)); wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

func TestModelRulesHoldInAnyStorm(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		if wrong := storm(t, drawScript(rt)); wrong != "" {
			rt.Fatal(wrong)
		}
	})
}
