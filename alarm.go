package flow

import (
	"sync/atomic"
	"time"
)

// alarm is a shard's one timer, for everything that is due: looks at long runs, next tries, workers without work.
type alarm struct {
	fire  func() // tells the shard
	timer *time.Timer
	at    time.Duration // when it fires; 0: it does not
	fired atomic.Bool   // it has, and the shard may have been too busy to be told
}

// set has fire called at the time at, or before.
func (a *alarm) set(now, at time.Duration) {
	if a.fired.Swap(false) {
		a.at = 0
	}
	if a.at > 0 && a.at <= at {
		return
	}
	a.at = at
	if d := max(0, at-now); a.timer == nil {
		a.timer = time.AfterFunc(d, a.fire)
	} else {
		a.timer.Reset(d)
	}
}

// rang is told that it has fired.
func (a *alarm) rang() { a.at = 0 }

func (a *alarm) stop() {
	if a.timer != nil {
		a.timer.Stop()
	}
}
