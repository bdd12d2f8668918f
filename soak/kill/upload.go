package main

import (
	"sync"
	"time"
)

// upload is a session: its input, and what its senders were told.
type upload struct {
	name  string
	index int

	mu      sync.Mutex
	told    *settled // by the sender that has come furthest; nil at first
	broken  time.Time
	streams uint64 // of senders that have ended
	resent  uint64
	now     map[*child]*settled // of those under way
}

// hear takes note of what a sender was told.
func (u *upload) hear(c *child, s *settled) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.now == nil {
		u.now = map[*child]*settled{}
	}
	u.now[c] = s
	if u.told == nil || s.through() >= u.told.through() {
		u.told = s
	}
}

// ended takes note that a sender has ended.
func (u *upload) ended(c *child) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s := u.now[c]; s != nil {
		u.streams += s.Streams
		u.resent += s.Resent
	}
	delete(u.now, c)
	u.broken = time.Time{} // the next one is no resumed stream
}

// acknowledged returns what the senders were told so far: it is true from then on.
func (u *upload) acknowledged() *settled {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.told == nil {
		return &settled{}
	}
	return u.told
}

// broke takes note that what the sender has open is cut now.
func (u *upload) broke() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.broken.IsZero() {
		u.broken = time.Now()
	}
}

// opened returns how long the upload was cut off, if the stream that was begun then and has got its header is the first
// since.
func (u *upload) opened(began int64) (cutOff time.Duration, resumed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.broken.IsZero() || began <= u.broken.UnixNano() {
		return 0, false
	}
	cutOff = time.Since(u.broken)
	u.broken = time.Time{}
	return cutOff, true
}
