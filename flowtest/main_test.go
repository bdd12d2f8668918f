package flowtest

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain looks for goroutines that a test, or a check of a broken resolver, has left behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
