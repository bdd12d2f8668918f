package sessionsql

import (
	"fmt"
	"strings"
)

// Dialect says which database it is.
type Dialect int

// There is no default: the two lock in different ways.
const (
	SQLite Dialect = iota + 1
	PostgreSQL
)

// String returns the constant's name.
func (d Dialect) String() string {
	switch d {
	case SQLite:
		return "SQLite"
	case PostgreSQL:
		return "PostgreSQL"
	}
	return fmt.Sprintf("Dialect(%d)", int(d))
}

const doneSuffix = "_done" // of the other table's name

// query writes a statement for the dialect: parameters stand in it as $1, the tables as {sessions} and {done}, the type
// of bytes as {bytes}, and [[…]] encloses what is for PostgreSQL only.
func (d Dialect) query(text, table string) string {
	for {
		before, rest, found := strings.Cut(text, "[[")
		if !found {
			break
		}
		only, after, _ := strings.Cut(rest, "]]")
		if d != PostgreSQL {
			only = ""
		}
		text = before + only + after
	}
	bytes := "BYTEA"
	if d == SQLite {
		bytes = "BLOB"
		text = strings.ReplaceAll(text, "$", "?")
	}
	return strings.NewReplacer("{sessions}", table, "{done}", table+doneSuffix, "{bytes}", bytes).Replace(text)
}
