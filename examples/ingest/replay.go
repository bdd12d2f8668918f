package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
)

// state is the last state of a key: how many records it had, and a hash chained over their texts. A record that is lost,
// run twice, or run out of its turn makes another hash. So order matters here, as it does where records are readings of
// a meter or steps of an order.
type state struct {
	records uint64
	hash    [sha256.Size]byte
}

// next is the state after one more record.
func (s state) next(text string) state {
	h := sha256.New()
	h.Write(s.hash[:])
	h.Write([]byte(text))
	n := state{records: s.records + 1}
	h.Sum(n.hash[:0])
	return n
}

// replay runs the input sequentially: what the server should come to, whatever happens on the way.
type replay map[string]state

func (r replay) add(key, text string) { r[key] = r[key].next(text) }

// difference names the first key of stored, which ascends, that has another state than here; "" means that all is equal.
func (r replay) difference(stored []keyState) string {
	seen := 0
	for _, got := range stored {
		want, ok := r[got.key]
		switch {
		case !ok:
			return fmt.Sprintf("key %q is stored and was not sent", got.key)
		case got.records != want.records:
			return fmt.Sprintf("key %q: %d records stored, %d sent", got.key, got.records, want.records)
		case !bytes.Equal(got.hash[:], want.hash[:]):
			return fmt.Sprintf("key %q: its %d records were stored in another order", got.key, got.records)
		}
		seen++
	}
	if seen == len(r) {
		return ""
	}
	have := make(map[string]bool, len(stored))
	for _, got := range stored {
		have[got.key] = true
	}
	missing := ""
	for key := range r {
		if !have[key] && (missing == "" || key < missing) {
			missing = key
		}
	}
	return fmt.Sprintf("key %q: 0 records stored, %d sent", missing, r[missing].records)
}

// keyState is the state of one key, as the server tells it.
type keyState struct {
	key string
	state
}
