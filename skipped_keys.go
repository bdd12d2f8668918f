package flow

import (
	"iter"
	"maps"
	"strings"
)

// skippedKeys is the keys that OnFailure has skipped, each with the Seq from which on. It has one owner at a time, and its
// zero value is empty.
//
// Clients choose keys, and how long they are: so both their number and their bytes have a limit, since MaxPendingBytes
// counts only what is pending. Each is copied: a key is often cut out of its message, which it would keep alive.
type skippedKeys struct {
	from  map[string]uint64
	bytes int // of all keys
}

// skipLimit is how many keys may be skipped, and how many bytes they may have together.
type skipLimit struct{ keys, bytes int }

var (
	streamSkips  = skipLimit{keys: 65536, bytes: 16 << 20}
	sessionSkips = skipLimit{keys: maxSessionSkipped, bytes: maxSessionSkippedBytes} // in what is saved of a session
)

// add notes that key is skipped behind the message seq. It reports false, and notes nothing, if that is beyond the limit.
func (k *skippedKeys) add(key string, seq uint64, limit skipLimit) bool {
	if from, ok := k.from[key]; ok {
		if seq < from {
			k.from[key] = seq
		}
		return true
	}
	if len(k.from) == limit.keys || len(key) > limit.bytes-k.bytes {
		return false
	}
	if k.from == nil {
		k.from = make(map[string]uint64)
	}
	k.from[strings.Clone(key)] = seq
	k.bytes += len(key)
	return true
}

// covers reports whether the message seq of key follows one with which key was skipped.
func (k *skippedKeys) covers(key string, seq uint64) bool {
	from, ok := k.from[key]
	return ok && seq > from
}

func (k *skippedKeys) len() int { return len(k.from) }

// all returns the keys, in no order.
func (k *skippedKeys) all() iter.Seq[string] { return maps.Keys(k.from) }
