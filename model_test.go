package flow_test

import (
	"testing"

	"pgregory.net/rapid"
)

func TestModelHoldsForAnyScript(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := drawScript(rt)
		if wrong := play(t, s); wrong != "" {
			rt.Fatal(wrong)
		}
	})
}
