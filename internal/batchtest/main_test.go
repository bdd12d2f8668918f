// Package batchtest_test has the promises of batches, as a user sees them.
package batchtest_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain looks for goroutines left behind by tests that run in real time; those in bubbles look for themselves.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
