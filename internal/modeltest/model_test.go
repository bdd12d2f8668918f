package modeltest_test

import (
	"testing"

	"pgregory.net/rapid"
)

// The model test: rapid draws scripts (script_test.go), each is played on a real Flow in a bubble of its own
// (world_test.go) and compared with a plain model after every move (oracle_test.go, and calls_test.go for batches). Any number of them:
//
//	go test -run Model -rapid.checks=10000
//	go test -run FuzzModel -fuzz FuzzModel -fuzzminimizetime 1x (its minimizing takes most of the time for nothing)
//
// What goes wrong is shrunk to a few moves, and printed as a literal for TestModelPlaysWhatOnceWentWrong.

func TestModelHoldsForAnyScript(t *testing.T) { rapid.Check(t, holds(t, drawScript, play)) }

func TestModelRulesHoldInAnyStorm(t *testing.T) { rapid.Check(t, holds(t, drawScript, storm)) }

func TestModelHoldsForAnyScriptOfBatches(t *testing.T) { rapid.Check(t, holds(t, drawBatches, play)) }

func TestModelRulesHoldInAnyStormOfBatches(t *testing.T) {
	rapid.Check(t, holds(t, drawBatches, storm))
}

func FuzzModel(f *testing.F) {
	f.Fuzz(func(t *testing.T, drawn []byte) {
		rapid.MakeFuzz(func(rt *rapid.T) {
			s := drawScript(rt)
			for _, play := range []player{play, storm} {
				if wrong := play(t, s); wrong != "" {
					rt.Fatal(wrong)
				}
			}
		})(t, drawn)
	})
}

// player plays a script and says what went wrong.
type player = func(*testing.T, script) string

// holds is the property that nothing goes wrong when what was drawn is played.
func holds[S any](t *testing.T, draw func(*rapid.T) S, play func(*testing.T, S) string) func(*rapid.T) {
	times := 1
	return func(rt *rapid.T) {
		s := draw(rt)
		for range times {
			if wrong := play(t, s); wrong != "" {
				times = 20 // from now on rapid shrinks: what depends on the schedule gets its chance to happen again
				rt.Log(wrong)
				rt.Fatal("the script above went wrong") // always the same, or rapid would call it flaky
			}
		}
	}
}

// TestModelPlaysWhatOnceWentWrong plays scripts that the model has found, shrunk, when they broke the Flow.
func TestModelPlaysWhatOnceWentWrong(t *testing.T) {
	for name, s := range regressions {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				for _, play := range []player{play, storm} {
					if wrong := play(t, s); wrong != "" {
						t.Fatal(wrong)
					}
				}
			}
		})
	}
}
