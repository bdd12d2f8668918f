package flow_test

import (
	"testing"

	"pgregory.net/rapid"
)

func TestModelHoldsForAnyScript(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		if wrong := play(t, drawScript(rt)); wrong != "" {
			rt.Fatal(wrong)
		}
	})
}
