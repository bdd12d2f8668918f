// Package modeltest_test runs random scripts and mixtures on a Flow and compares what it does with a plain model.
package modeltest_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain looks for goroutines left behind by tests that run in real time; those in bubbles look for themselves.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
