package flow

import "strconv"

// enumName is the String of every enum here: the constant's name, or Type(n) for a value that has none.
func enumName(n int, typ string, names ...string) string {
	if n >= 0 && n < len(names) {
		return names[n]
	}
	return typ + "(" + strconv.Itoa(n) + ")"
}
