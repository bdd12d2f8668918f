package testkit

import "testing"

// SkipIfShort skips a test that takes long if -short is set.
func SkipIfShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
}
