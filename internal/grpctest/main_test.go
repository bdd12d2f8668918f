// Package grpctest_test has the promises that take a gRPC server and its client: in exact time over a connection in memory, over
// loopback TCP, and over a network with faults.
package grpctest_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain looks for goroutines left behind by tests that run in real time; those in bubbles look for themselves.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
