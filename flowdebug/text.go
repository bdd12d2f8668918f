package flowdebug

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxText = 512 // bytes of an error
	maxKey  = 128 // bytes of a key, of a client's address and of a method
)

// displayText returns a copy of s, cut to limit bytes, in which whatever is invisible, changes how its surroundings are read
// or is not UTF-8 is written as in Go. It is a copy so as not to keep alive the message that s was cut from.
func displayText(s string, limit int) string {
	cut := len(s) > limit
	if cut {
		s = s[:characterStart(s, limit)]
	}
	hidden := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }
	if strings.ContainsFunc(s, hidden) {
		s = strconv.Quote(s)
		s = s[1 : len(s)-1]
	} else {
		s = strings.Clone(s)
	}
	if cut {
		s += "…"
	}
	return s
}

// characterStart returns the start of the character that s has at i, so that a cut there divides none. Of bytes that belong
// to no character it is i.
func characterStart(s string, i int) int {
	for start := i; start > max(0, i-utf8.UTFMax); start-- {
		if utf8.RuneStart(s[start]) {
			return start
		}
	}
	return i
}

// errorText returns err's text for display. Error is the caller's code and may panic, as that of a typed nil does; then it
// says so, since a panic here would fail the message that the Observer is told of.
func errorText(err error) (text string) {
	if err == nil {
		return ""
	}
	text = "no text: the error's Error method panicked"
	defer func() { _ = recover() }()
	return displayText(err.Error(), maxText)
}
