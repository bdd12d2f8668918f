// Package sessiontest_test has the promises of sessions as a user sees them.
package sessiontest_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain looks for goroutines left behind by tests that run in real time; those in bubbles look for themselves.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
