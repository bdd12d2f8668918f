package modeltest_test

import (
	"testing"

	"pgregory.net/rapid"
)

// The model test: rapid draws scripts (script_test.go). Each is run on a real Flow in a bubble of its own
// (simulation_test.go), which is compared with a plain model after every move (oracle_test.go, and calls_test.go for
// batches). Any number of them:
//
//	go test -run Model -rapid.checks=10000
//	go test -run FuzzModel -fuzz FuzzModel -fuzzminimizetime 1x (its minimizing takes most of the time for nothing)
//
// What goes wrong is shrunk to a few moves, and printed as a literal for TestModelRunsWhatOnceWentWrong.

func TestModelHoldsForAnyScript(t *testing.T) { rapid.Check(t, holds(t, drawScript, runScript)) }

func TestModelRulesHoldWhenMovesRunConcurrently(t *testing.T) {
	rapid.Check(t, holds(t, drawScript, runConcurrently))
}

func TestModelHoldsForAnyScriptOfBatches(t *testing.T) {
	rapid.Check(t, holds(t, drawBatches, runScript))
}

func TestModelRulesHoldForBatchesThatRunConcurrently(t *testing.T) {
	rapid.Check(t, holds(t, drawBatches, runConcurrently))
}

func FuzzModel(f *testing.F) {
	f.Fuzz(func(t *testing.T, drawn []byte) {
		rapid.MakeFuzz(func(rt *rapid.T) {
			s := drawScript(rt)
			for _, run := range []runner{runScript, runConcurrently} {
				if wrong := run(t, s); wrong != "" {
					rt.Fatal(wrong)
				}
			}
		})(t, drawn)
	})
}

// runner runs a script and says what went wrong.
type runner = func(*testing.T, script) string

// holds is the property that nothing goes wrong when what was drawn is run.
func holds[S any](t *testing.T, draw func(*rapid.T) S, run func(*testing.T, S) string) func(*rapid.T) {
	times := 1
	return func(rt *rapid.T) {
		s := draw(rt)
		for range times {
			if wrong := run(t, s); wrong != "" {
				times = 20 // from now on rapid shrinks: what depends on the schedule gets its chance to happen again
				rt.Log(wrong)
				rt.Fatal("the script above went wrong") // always the same, or rapid would call it flaky
			}
		}
	}
}

// TestModelRunsWhatOnceWentWrong runs scripts that the model has found, shrunk, when they broke the Flow.
func TestModelRunsWhatOnceWentWrong(t *testing.T) {
	for name, s := range regressions {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				for _, run := range []runner{runScript, runConcurrently} {
					if wrong := run(t, s); wrong != "" {
						t.Fatal(wrong)
					}
				}
			}
		})
	}
}
