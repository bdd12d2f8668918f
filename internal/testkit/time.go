package testkit

import (
	"testing/synctest"
	"time"
)

// Advance lets d of a bubble's time pass, and then everything in it come to rest.
func Advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
