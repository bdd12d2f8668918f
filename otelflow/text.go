package otelflow

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// A span's texts come from elsewhere: keys from clients, errors from handlers. An OTLP exporter refuses the whole batch that
// holds one string which is not UTF-8, with the spans of everything else the process traces; and a batch waits in memory, so
// one long text, or a short one cut from a long one, is many.
const (
	maxName = 128 // bytes of a Flow's name
	maxKey  = 128 // bytes of a message's key
	maxText = 512 // bytes of an error's text, as in a gRPC status of flow's
)

// exportable returns a copy of s that is valid UTF-8 and has at most limit bytes. A byte that is no UTF-8 is written as in
// Go, \xff, so that binary keys can still be told apart.
func exportable(s string, limit int) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		part := s[i : i+size]
		if r == utf8.RuneError && size == 1 {
			part = fmt.Sprintf(`\x%02x`, s[i])
		}
		if b.Len()+len(part) > limit {
			break
		}
		b.WriteString(part)
		i += size
	}
	return b.String()
}

// errorText returns err's text as a span may have it.
func errorText(err error) string {
	return exportable(guarded(err.Error, "no text: the error's Error method panicked"), maxText)
}

// guarded returns what f returns, or instead if f panics. The methods of an error are the caller's code: those of a typed
// nil panic, and a message must not fail for being traced.
func guarded[V any](f func() V, instead V) (v V) {
	v = instead
	defer func() { _ = recover() }()
	return f()
}
